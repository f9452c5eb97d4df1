"""All that is particular to SQLite: opening a file without ever mistaking one, pragmas, locks, and what its errors mean.

`database` calls `open_database`. One keeper holds a ledger at a time (an advisory lock on a side file, freed by the kernel
when the process ends, however it ends); readers need no lock. A new ledger is made under another name and renamed when it is
whole, so a file under the ledger's name is a ledger, or damaged, or somebody else's: never half of one.
"""

import contextlib
import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from stepdown.ledger import errors, schema

APPLICATION_ID = 0x53744C67
"""`StLg`, at offset 68 of the file: this SQLite file is a Stepdown ledger."""

MAGIC = b"SQLite format 3\x00"
BUSY_TIMEOUT_MS = 5_000


class SqliteDatabase:
    """An open SQLite file: one connection, for one thread at a time, and the keeper's lock."""

    may_go_back = False  # What is open stays open: whoever replaces the file replaces it for the next to open.

    def __init__(self, path: Path | None, connection: sqlite3.Connection, lock: int | None, *, read_only: bool = False) -> None:
        self.path, self._connection, self._lock = path, connection, lock
        self.engine = sa.create_engine(
            "sqlite+pysqlite://", creator=lambda: connection, poolclass=StaticPool, pool_reset_on_return=None
        )
        self._begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"
        sa.event.listen(self.engine, "begin", self._begin_transaction)

    def _begin_transaction(self, connection: sa.Connection) -> None:
        connection.exec_driver_sql(self._begin)

    @property
    def where(self) -> str:
        return str(self.path)

    def opening(self) -> contextlib.AbstractContextManager[sa.Connection]:
        return self.transaction()

    def stamp(self, connection: sa.Connection, turn: int) -> int:
        return int(connection.exec_driver_sql("PRAGMA data_version").scalar_one())

    def together(self, connection: sa.Connection) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[sa.Connection]:
        """One transaction, in the ledger's words when it fails; then nothing of it has happened."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            raise translated(error.orig, self.path) from error
        except sqlite3.Error as error:
            raise translated(error, self.path) from error

    def close(self) -> None:
        self.engine.dispose()
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def open_database(path: Path | None, *, create: bool, read_only: bool, beside: bool = False) -> SqliteDatabase:
    """Opens the file, or makes it where `create` says so and no trace of an earlier one is left. None: in memory, for tests.

    `beside`: to write while a keeper may be at work, without its lock.
    """
    if path is None:
        connection = _connect(":memory:")
        database = SqliteDatabase(None, connection, None)
        _fill(database)
        return database
    lock = None if read_only or beside else _locked(path)
    try:
        if not path.exists():
            _refuse_traces(path)
            if read_only or not create:
                raise errors.LedgerMissing(
                    f"there is no ledger at {path}: name the file that `stepdown run --ledger` was given, or start "
                    "`stepdown run`, which makes one"
                )
            _make(path)
        _check_header(path)
        return _opened(path, lock, read_only=read_only)
    except BaseException as error:
        if lock is not None:
            os.close(lock)
        if isinstance(error, sqlite3.Error):
            raise translated(error, path) from error
        raise


def _opened(path: Path, lock: int | None, *, read_only: bool) -> SqliteDatabase:
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    connection = _connect(uri)
    try:
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise errors.LedgerCorrupt(_corrupt(path, verdict))
        return SqliteDatabase(path, connection, lock, read_only=read_only)
    except BaseException:
        connection.close()
        raise


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri, uri=uri != ":memory:", timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _fill(database: SqliteDatabase) -> None:
    with database.transaction() as connection:
        schema.create(connection)


def _make(path: Path) -> None:
    """A whole new ledger, or none: built beside, made durable, renamed."""
    draft = path.with_name(path.name + ".new")
    try:
        draft.unlink(missing_ok=True)
        connection = _connect(draft.absolute().as_uri() + "?mode=rwc")
        try:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _fill(SqliteDatabase(draft, connection, None))
        finally:
            connection.close()
        draft.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise _os_error(error, path) from error
    except (sqlite3.Error, errors.LedgerError):
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def finish(draft: Path, path: Path) -> None:
    """One file with nothing beside it, whole on the disk, under its own name: to be carried elsewhere. Nobody has it open."""
    try:
        connection = _connect(f"{draft.absolute().as_uri()}?mode=rw")
        try:
            connection.execute("PRAGMA journal_mode = DELETE")
        finally:
            connection.close()
        _sync(draft)
        draft.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise _os_error(error, path) from error
    except sqlite3.Error as error:
        raise translated(error, path) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_traces(path: Path) -> None:
    """No file, but something that only a ledger leaves behind: somebody's spend is gone, and a new file would forget it."""
    log = path.with_name(path.name + ".wal")
    for trace in (path.with_name(path.name + "-wal"), path.with_name(path.name + "-journal"), log):
        if not trace.exists() or (trace is log and not any(trace.iterdir())):
            continue
        raise errors.LedgerMissing(
            f"the ledger {path} is gone, but {trace} shows that there was one: a new ledger would forget what has been spent. "
            f"Bring the file back from a backup. If what it held may be forgotten, move {trace} away and start again"
        )


def _locked(path: Path) -> int:
    """The keeper's lock: two keepers would each grant the same money."""
    side = path.with_name(path.name + ".lock")
    try:
        lock = os.open(side, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _os_error(error, path) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        keeper = os.pread(lock, 20, 0).decode(errors="replace").strip()
        os.close(lock)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise _os_error(error, path) from error
        raise errors.LedgerBusy(
            f"the ledger {path} is kept by another process{f' (pid {keeper})' if keeper else ''}: stop that `stepdown run`, "
            "or give this one a ledger of its own with --ledger"
        ) from error
    with contextlib.suppress(OSError):  # The number is for the message only; a full disk is found out when it matters.
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _check_header(path: Path) -> None:
    """Reads the first 100 bytes as SQLite lays them out, before SQLite does: it would take an empty file for a new database."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
        size = path.stat().st_size
    except OSError as error:
        raise _os_error(error, path) from error
    if not size:
        raise errors.LedgerCorrupt(_corrupt(path, "it is empty (0 bytes)"))
    if header[:16] != MAGIC[: len(header)]:
        raise errors.LedgerForeign(f"{path} is not a ledger, nor any SQLite file: name the ledger's own file")
    if len(header) < 100:
        raise errors.LedgerCorrupt(_corrupt(path, f"it ends after {size} bytes"))
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise errors.LedgerForeign(f"{path} is a SQLite file of another program, not a ledger: name the ledger's own file")
    page = int.from_bytes(header[16:18], "big")
    expected = int.from_bytes(header[28:32], "big") * (65_536 if page == 1 else page)
    if header[24:28] == header[92:96] and size < expected:
        raise errors.LedgerCorrupt(_corrupt(path, f"it has {size} of {expected} bytes"))


def _corrupt(path: Path | None, what: str) -> str:
    return (
        f"the ledger {path} is damaged: {' '.join(what.split())}. Nothing is granted from it. Bring it back from a backup, or "
        "move the file, its -wal, -shm and .wal away to begin a new one that forgets what has been spent"
    )


def _os_error(error: OSError, path: Path) -> errors.LedgerError:
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return errors.LedgerReadOnly(f"the ledger {path} cannot be written: {error.strerror}. Make its folder writable")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.LedgerFull(f"no room for the ledger {path}: {error.strerror}. Make room on that disk")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return errors.LedgerMissing(f"the folder of the ledger {path} does not exist: make it, or correct --ledger")
    if error.errno == errno.EISDIR:
        return errors.LedgerForeign(f"{path} is a folder: name the ledger's file")
    return errors.LedgerUnavailable(f"the ledger {path} cannot be opened: {error}")


def translated(error: Any, path: Path | None) -> errors.LedgerError:
    """SQLite's error in the ledger's words. The low byte of its code is the kind."""
    kind = (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
    if kind == sqlite3.SQLITE_FULL:
        return errors.LedgerFull(f"no room to write the ledger {path}: nothing can be granted. Make room on that disk")
    if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return errors.LedgerReadOnly(f"the ledger {path} cannot be written: {error}. Make the file and its folder writable")
    if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return errors.LedgerCorrupt(_corrupt(path, str(error)))
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return errors.LedgerBusy(f"the ledger {path} is locked by another program: {error}. Close it; nothing was written")
    return errors.LedgerUnavailable(f"the ledger {path} failed: {error}. Nothing of this was written")
