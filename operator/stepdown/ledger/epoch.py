"""Who may write: the keeper that took the epoch last. `Ledger` looks here at the start of every transaction that writes.

A Lease of Kubernetes says who should lead, but a process that was paused past its end does not know yet that another one does.
The ledger knows: the number is compared in the very transaction that would grant, so an earlier leader's is undone before it
has done anything. Where a database locks rows, the row of the epoch is locked, and with it every other writer waits its turn.
"""

from typing import NamedTuple

import sqlalchemy as sa

from stepdown.ledger.errors import LedgerFenced
from stepdown.ledger.schema import meta
from stepdown.ledger.store import write_meta

_EPOCH, _HOLDER = "epoch", "holder"


class Epoch(NamedTuple):
    """As stored. 0: nobody has ever taken it, and whoever has the file may write."""

    number: int
    holder: str


def read(connection: sa.Connection) -> Epoch:
    """Locks the row until the transaction ends, where rows are locked at all."""
    select = sa.select(meta.c.name, meta.c.value).where(meta.c.name.in_((_EPOCH, _HOLDER))).with_for_update()
    found = {row.name: row.value for row in connection.execute(select)}
    return Epoch(int(found.get(_EPOCH, "0")), found.get(_HOLDER, ""))


def take(connection: sa.Connection, holder: str, *, above: int = 0) -> int:
    """The next epoch, `holder`'s from now on; higher than `above`, which somebody else may have seen."""
    number = max(read(connection).number, above) + 1
    write_meta(connection, _EPOCH, str(number))
    write_meta(connection, _HOLDER, holder)
    return number


def check(connection: sa.Connection, mine: int) -> None:
    """Raises LedgerFenced unless `mine` is the epoch in force (0: this object has taken none)."""
    number, holder = read(connection)
    if number == mine:
        return
    who = f"{holder or 'another process'} took epoch {number}"
    had = f"this process had epoch {mine}" if mine else "this process has taken none"
    raise LedgerFenced(f"the ledger has another keeper: {who}, {had}. Nothing was written; only the keeper may write")
