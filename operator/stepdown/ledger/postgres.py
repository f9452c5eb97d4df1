"""All that is particular to PostgreSQL: finding the ledger in a database, durable sessions, and what its errors mean.

`database` calls `open_database`. Several operators may have the same ledger open; the epoch says which of them writes, and the
lock on its row makes writers wait for each other, so there is no conflict left that a transaction could fail on.

The address is a URL as libpq takes it, and the password need not be in it: PGPASSWORD and PGPASSFILE are libpq's own, and
`?passwordfile=FILE` names a file of nothing but the password, read for each connection, so that one that is changed in a
mounted Secret needs no restart.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.types.numeric import Int8Dumper

from stepdown.ledger import errors, schema
from stepdown.ledger.deadline import Deadline

CONNECT_S = 3
STATEMENT_MS = 5_000
READING_MS = 60_000
"""For those who only read, such as a report over a year."""
LOCK_MS = 3_000
IDLE_MS = 5_000
"""A keeper that is paused in the middle of a transaction holds the lock of the epoch no longer than this."""
OPENING_S = 600.0
"""For what nobody waits for: a migration or an import of a large ledger."""
SILENCE_S = 2.0
"""By how much a server may be late with giving a statement up. Then it is not there, and the connection is cut from here."""

PASSWORD_FILE = "passwordfile"

_ADVISORY = 0x53744C67
"""`StLg`: who changes the schema holds this lock."""

_SESSION = """
SET lock_timeout = {lock_ms}; SET statement_timeout = {statement_ms}; SET idle_in_transaction_session_timeout = {idle_ms};
SET client_encoding = 'UTF8'; SET timezone = 'UTC';
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local')
"""
"""`local` and `off` could lose a grant that was answered; what waits for more than `on` is left as it is.

By SET, not by startup parameters: a pooler in between would refuse those."""

_AT_LEISURE = (
    f"SET LOCAL statement_timeout = '{OPENING_S:.0f}s'; SET LOCAL idle_in_transaction_session_timeout = '{OPENING_S:.0f}s'"
)

_ALIVE = {"keepalives_idle": "5", "keepalives_interval": "2", "keepalives_count": "3", "tcp_user_timeout": "10000"}
"""A machine that is gone says nothing; TCP alone would wait for hours."""

_INTERRUPTED = ("08", "40", "57", "55P03", "25P03", "25006")
"""Classes and codes of SQLSTATE after which another attempt may do: lost connections, conflicts, a server that restarts or
gives a statement up, locks, and a server that has become a standby."""

_STANDBY = "25006"


class PostgresDatabase:
    """One connection, made anew when it has broken."""

    may_go_back = True

    def __init__(self, url: sa.URL, *, read_only: bool, statement_ms: int | None = None) -> None:
        self._read_only = read_only
        self._statement_ms = statement_ms or (READING_MS if read_only else STATEMENT_MS)
        query: dict[str, Any] = {"connect_timeout": str(CONNECT_S), "application_name": "stepdown", **_ALIVE, **url.query}
        password_file = query.pop(PASSWORD_FILE, None)
        url = url.set(password=query.pop("password", url.password))
        self._where = address(url)
        self._password_file = Path(password_file) if isinstance(password_file, str) else None
        if not read_only:
            query = {"target_session_attrs": "read-write", **query}
        self.engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg", query=query), pool_size=1, max_overflow=0, pool_timeout=CONNECT_S
        )
        self._deadline = Deadline(self._statement_ms / 1000 + SILENCE_S)
        sa.event.listen(self.engine, "do_connect", self._give_password)
        sa.event.listen(self.engine, "connect", self._begin_session)
        self._deadline.watch(self.engine)

    @property
    def where(self) -> str:
        return self._where

    @contextlib.contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[sa.Connection]:
        looks = self._read_only or not write
        options = {"isolation_level": "REPEATABLE READ" if looks else "READ COMMITTED", "postgresql_readonly": looks}
        committing = False
        try:
            with self.engine.connect() as plain:
                connection = plain.execution_options(**options)
                transaction = connection.begin()
                yield connection
                committing = True
                with self._deadline.over(connection):
                    transaction.commit()
        except (sa.exc.DBAPIError, psycopg.Error) as error:  # The driver's own are those of `together`.
            state = getattr(error.orig if isinstance(error, sa.exc.DBAPIError) else error, "sqlstate", "")
            if self._read_only and state == _STANDBY:
                raise errors.LedgerReadOnly(f"the ledger {self._where} was opened to read only") from error
            if state == _STANDBY:
                self.engine.dispose()  # Who takes writes is found by connecting anew.
            raise translated(error, self._where, unsure=committing) from error

    def stamp(self, connection: sa.Connection, turn: int) -> int:
        return turn

    @contextlib.contextmanager
    def together(self, connection: sa.Connection) -> Iterator[None]:
        driver: Any = connection.connection.driver_connection
        with self._deadline.over(connection), driver.pipeline():
            yield

    @contextlib.contextmanager
    def opening(self) -> Iterator[sa.Connection]:
        with self._deadline.extended(OPENING_S), self.transaction() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY)))
            connection.exec_driver_sql(_AT_LEISURE)
            yield connection

    def close(self) -> None:
        self._deadline.close()
        self.engine.dispose()

    def _give_password(self, dialect: object, record: object, arguments: object, parameters: dict[str, Any]) -> None:
        if self._password_file is None:
            return
        try:
            parameters["password"] = self._password_file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise errors.LedgerUnavailable(
                f"the password of the ledger {self._where} cannot be read from {self._password_file}: {error}"
            ) from error

    def _begin_session(self, connection: psycopg.Connection[Any], record: object) -> None:
        # Whatever its value: else each statement would be prepared for each mixture of small and large numbers.
        connection.adapters.register_dumper(int, Int8Dumper)
        connection.autocommit = True
        connection.execute(_SESSION.format(lock_ms=LOCK_MS, statement_ms=self._statement_ms, idle_ms=IDLE_MS))
        connection.autocommit = False


def open_database(url: str, *, create: bool, read_only: bool) -> PostgresDatabase:
    """Finds the ledger in the database, or makes it where `create` says so and there is no table of its names."""
    database = PostgresDatabase(parsed(url), read_only=read_only)
    try:
        with database.opening() as connection:
            _find(connection, database.where, create=create and not read_only)
    except BaseException:
        database.close()
        raise
    return database


def parsed(url: str) -> sa.URL:
    """Raises LedgerRefused for what is no URL."""
    try:
        return sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise errors.LedgerRefused(
            "the ledger's address is no URL: write postgresql://USER@HOST/DATABASE, the password by PGPASSWORD, PGPASSFILE or "
            "?passwordfile=FILE"
        ) from None


def address(url: sa.URL) -> str:
    """For messages: without a password, in whichever part it is."""
    return sa.URL.create(url.drivername, url.username, None, url.host, url.port, url.database).render_as_string()


def _find(connection: sa.Connection, where: str, *, create: bool) -> None:
    tables = set(sa.inspect(connection).get_table_names())
    there = tables & set(schema.metadata.tables)
    lacking = schema.FIRST_TABLES - tables
    if not there:
        if not create:
            raise errors.LedgerMissing(
                f"there is no ledger in {where}: the operator makes it when it starts, or `stepdown ledger init` does"
            )
        schema.create(connection)
    elif lacking:
        raise errors.LedgerForeign(
            f"{where} has a table {min(there)!r} that is no ledger's, for there is no {min(lacking)!r}: give the ledger a "
            "database of its own, or a schema: postgresql://…/DATABASE?options=-csearch_path%3Dstepdown"
        )


def translated(error: sa.exc.DBAPIError | psycopg.Error, where: str, *, unsure: bool) -> errors.LedgerError:
    """PostgreSQL's error in the ledger's words, by its SQLSTATE."""
    original, invalidated = (
        (error.orig, error.connection_invalidated) if isinstance(error, sa.exc.DBAPIError) else (error, False)
    )
    state = getattr(original, "sqlstate", None) or ""
    text = " ".join(str(original).split())
    if state.startswith(_INTERRUPTED) or invalidated or (not state and _broken(original)):
        so = "it may have happened" if unsure else "nothing of this was written"
        hint = "" if state or text.endswith("?") else ". Does the database run, and is this its address?"
        return errors.LedgerInterrupted(f"the ledger {where} was interrupted, {so}: {text}{hint}", unsure=unsure)
    if state == "53100":
        return errors.LedgerFull(
            f"no room to write the ledger {where}: nothing can be granted. Make room on the database's disk"
        )
    if state == "42501" or state.startswith("28"):
        return errors.LedgerReadOnly(f"the ledger {where} may not be used: {text}. Grant its user the rights on the tables")
    if state == "3D000":
        return errors.LedgerMissing(f"the database of the ledger {where} does not exist: create it, or correct --ledger")
    if state.startswith("XX0"):
        return errors.LedgerCorrupt(
            f"the ledger {where} is damaged: {text}. Nothing is granted from it. Bring it back from a backup"
        )
    return errors.LedgerUnavailable(f"the ledger {where} failed: {text}. Nothing of this was written")


def _broken(error: BaseException | None) -> bool:
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
