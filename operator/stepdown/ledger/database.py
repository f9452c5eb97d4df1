"""What a ledger is stored in: a SQLite file or a PostgreSQL database, with one text of SQL for both. `Ledger` opens one here.

A database gives transactions, in the ledger's own errors, and nothing else. What differs between the two is in `sqlite` and
`postgres`: how one is opened and never mistaken, who locks whom, and what their errors mean.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import sqlalchemy as sa

from stepdown.ledger import errors, sqlite

T = TypeVar("T")

PAUSES_S = (0.02, 0.1, 0.3)
"""Between the attempts at a transaction that was interrupted: half a second in all, for a proxy waits for two."""
PATIENCE_S = 2.0
"""After so long nobody waits for the answer any more, and there is no other attempt."""


class Database(Protocol):
    """An open one, for one thread at a time."""

    @property
    def where(self) -> str:
        """For messages: a file's path, or an address without a password."""

    @property
    def may_go_back(self) -> bool:
        """Whether it could be replaced by an older copy of itself while it is open, as when a standby takes over."""

    def stamp(self, connection: sa.Connection, turn: int) -> int:
        """The same as in the last transaction only if nobody else has written since. `turn`: of `epoch`, as this transaction
        has found it, or is about to leave it."""

    def together(self, connection: sa.Connection) -> contextlib.AbstractContextManager[None]:
        """Statements in here answer nothing, and need not wait for each other; what fails of them raises at the end."""

    def transaction(self, *, write: bool = True) -> contextlib.AbstractContextManager[sa.Connection]:
        """Whole or not at all; raises a LedgerError. Without `write` it sees one state of everything, and changes nothing."""

    def opening(self) -> contextlib.AbstractContextManager[sa.Connection]:
        """A transaction that nobody else has at the same time: the schema may be changed."""

    def close(self) -> None: ...


def open_database(path_or_url: str | Path, *, create: bool, read_only: bool, beside: bool) -> Database:
    """Raises a LedgerError that says what to do. `create`: where there is none. `beside`: to write without a keeper's lock."""
    place = _place(path_or_url)
    if isinstance(place, str):
        from stepdown.ledger import postgres  # Its driver is megabytes that a file does not need.

        return postgres.open_database(place, create=create, read_only=read_only)
    return sqlite.open_database(place, create=create, read_only=read_only, beside=beside)


def where_of(path_or_url: str | Path) -> str:
    """As `Database.where` says it, of one that need not be there. Raises LedgerRefused for an address of neither kind."""
    place = _place(path_or_url)
    if isinstance(place, str):
        from stepdown.ledger import postgres

        return postgres.address(postgres.parsed(place))
    return str(place)


def _place(path_or_url: str | Path) -> Path | str | None:
    """A file, an address of PostgreSQL, or None: in memory."""
    scheme, separator, rest = str(path_or_url).partition("://")
    if isinstance(path_or_url, Path) or not separator:
        return None if path_or_url == ":memory:" else Path(path_or_url)
    if scheme in ("postgresql", "postgres"):
        return path_or_url
    if scheme == "sqlite":
        return Path(rest.removeprefix("/") if not rest.startswith("//") else rest[1:]) if rest else None
    raise errors.LedgerRefused(f"a ledger at {scheme}:// is not supported: name a file, sqlite:///FILE or postgresql://…")


def again(work: Callable[[], T], failed: Callable[[], None], *, once: bool = False) -> T:
    """`work()`, one transaction; again when the database has interrupted it.

    `failed` is called after every failure. `once`: it must not happen twice, so it is not tried again when it may have.
    """
    ends_s = time.monotonic() + PATIENCE_S
    for pause_s in (*PAUSES_S, None):
        try:
            return work()
        except errors.LedgerInterrupted as error:
            failed()
            if pause_s is None or (once and error.unsure) or time.monotonic() > ends_s:
                raise
            time.sleep(pause_s)
        except BaseException:
            failed()
            raise
    raise AssertionError("the last attempt returns or raises")
