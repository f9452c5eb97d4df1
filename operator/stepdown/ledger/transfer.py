"""A ledger from one database into another, row by row: `stepdown ledger export` and `import`. `cli.ledger` calls this.

What travels is a ledger itself, in a SQLite file: every command reads it, its version is in it, and so is a seal, a digest of
every row, by which a file that was damaged on its way is found out. No other format, so nothing to convert and nothing to keep
in step with the tables.

A ledger that is moved must not be kept any more where it was: `import` from one that has a life of its own takes its epoch
first, which fences its keeper in mid-grant, and leaves word there, so that no other begins. Where that cannot be, since the
copy went by a file, the witness guards: whoever begins on either of the two is compared with what was granted under the other.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from stepdown.ledger import epoch, errors, migrate, schema, sqlite, store, verify
from stepdown.ledger.database import Database, open_database, where_of

PART = 1_000
"""Rows that are read and written at once."""

SEAL, MOVED = "seal", "moved"
_OWN = frozenset({"epoch", "holder", "turn", "oldest", SEAL, MOVED, "sync_ca"})
"""Of `meta`: what is a database's own, and not of the money."""

_NUMBERED = (schema.names, schema.instances, schema.accounts)
"""Tables whose rows the database numbers."""


class Moved(NamedTuple):
    """What has been copied."""

    where: str
    accounts: int
    rows: int
    digest: str
    epoch: int


class _Rows(NamedTuple):
    digest: str
    rows: int


class _Found(NamedTuple):
    """What a ledger is that may be copied."""

    digest: str
    sealed: bool
    """A copy that nobody has led since."""


def export(source: "str | Path", path: Path) -> Moved:
    """Writes a sealed copy of the ledger as it is at this moment; its keeper may be at work. Raises a LedgerError."""
    if path.exists():
        raise errors.LedgerRefused(f"{path} is there already: name another file. Nothing was written")
    draft = path.with_name(f"{path.name}.part")
    for trace in (draft, *(draft.with_name(draft.name + end) for end in ("-wal", "-shm", "-journal", ".new"))):
        trace.unlink(missing_ok=True)
    try:
        with closing(_reader(source)) as old, old.transaction(write=False) as reads:
            found = _check(reads, old.where)
            with closing(_opened(draft, create=True, beside=True)) as new, new.opening() as writes:
                copied, number = _copy(reads, writes, new.where, found.digest), _epoch(reads)
                store.write_meta(writes, "epoch", str(number))
                store.write_meta(writes, SEAL, _seal(copied.digest, number))
        sqlite.finish(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    return copied._replace(where=str(path), epoch=number)


def move(source: "str | Path", target: "str | Path") -> Moved:
    """Everything of the source into the target, which must be empty, or not there yet. Raises a LedgerError.

    Whatever is wrong with either is found before anything is written.
    """
    with closing(_reader(source)) as old:
        with old.transaction(write=False) as reads:
            sealed = _check(reads, old.where).sealed
            if not sealed:
                refuse_moved(reads, old.where, into=target)
        if not sealed:
            _opened(source, create=False, beside=True).close()  # Whoever keeps it must be told.
        with closing(_opened(target, create=True)) as new:
            if old.where == new.where:
                raise errors.LedgerRefused(f"{old.where} is the ledger itself: name the one that it is to be imported into")
            with new.opening() as writes:
                _refuse_unless_empty(writes, new.where)
            if sealed:
                return _moved(old, new)
            _take_over(source, new.where)
            try:
                return _moved(old, new)
            except BaseException:
                with suppress(errors.LedgerError):
                    _give_back(source)
                raise


def refuse_moved(connection: sa.Connection, where: str, *, into: "str | Path | None" = None) -> None:
    """Raises LedgerMoved for a ledger that is kept elsewhere now. `Ledger.open` asks, for who means to keep it.

    `into`: where it is to be moved; an import that was broken off may be begun again.
    """
    now = store.read_meta(connection, MOVED, "")
    if now and (into is None or now != where_of(into)):
        raise errors.LedgerMoved(
            f"the ledger {where} was moved to {now}, and what was spent since is known there only. Name that one; or import it "
            f"back into a new ledger. If it is lost: `stepdown ledger export {where} -o NEW` makes a ledger of this one, which "
            "is an older copy then, as after the restore of a backup"
        )


# Both ends ------------------------------------------------------------------------------------------------------------


def _moved(old: Database, new: Database) -> Moved:
    with old.transaction(write=False) as reads, new.opening() as writes:
        _refuse_unless_empty(writes, new.where)
        copied = _copy(reads, writes, new.where, _digest(reads).digest)
        if wrong := verify.differences(writes):
            raise errors.LedgerCorrupt(f"the ledger {new.where} does not add up after the import: {wrong[0]}. It stays empty")
        taken = epoch.take(writes, f"stepdown ledger import of {old.where}", above=_epoch(reads))
        return copied._replace(epoch=taken.number)


def _check(reads: sa.Connection, where: str) -> _Found:
    """Reads every row. Raises a LedgerError where it cannot be copied as it is."""
    revision = reads.execute(sa.select(schema.version.c.version_num)).scalar()
    if revision != schema.REVISIONS[-1]:  # One that only adds can be worked on; a copy would leave out what it adds.
        raise errors.LedgerNewer(
            f"the ledger {where} has schema {revision}, this build copies {schema.REVISIONS[-1]} alone: use the build that "
            "wrote it"
        )
    wrong = verify.differences(reads)
    if wrong:
        raise errors.LedgerCorrupt(
            f"the ledger {where} does not add up, so it is not copied: {wrong[0]}"
            + (f" (and {len(wrong) - 1} more; `stepdown ledger verify` names them)" if len(wrong) > 1 else "")
        )
    seal = store.read_meta(reads, SEAL, "")
    number, digest = _epoch(reads), _digest(reads).digest
    if not seal or not seal.endswith(f":{number}"):  # Who leads takes an epoch: then it is a ledger like any other.
        return _Found(digest, sealed=False)
    if seal != _seal(digest, number):
        raise errors.LedgerCorrupt(
            f"{where} is not what was exported: a row was changed, or the file was damaged on its way. Export again; nothing "
            "was imported"
        )
    return _Found(digest, sealed=True)


def _refuse_unless_empty(connection: sa.Connection, where: str) -> None:
    found = []
    for table in schema.metadata.sorted_tables:
        if table in (schema.version, schema.meta):
            continue
        count = sa.select(sa.func.count()).select_from(table)
        rows = connection.execute(count.where(table.c.id != 0) if table is schema.instances else count).scalar()
        if rows:
            found.append(f"{rows} row{'' if rows == 1 else 's'} of {table.name}")
    if found:
        raise errors.LedgerRefused(
            f"the ledger {where} is not empty ({', '.join(found)}): nothing is imported over money that is known. Give the "
            "import a new file, or a database that no operator has used"
        )


def _take_over(source: "str | Path", target: str) -> None:
    """Who keeps the source may write no more from here on."""
    with closing(_opened(source, create=False, beside=True)) as database, database.transaction() as connection:
        epoch.take(connection, f"`stepdown ledger import`, which moved the ledger to {target},")
        store.write_meta(connection, MOVED, target)


def _give_back(source: "str | Path") -> None:
    with closing(_opened(source, create=False, beside=True)) as database, database.transaction() as connection:
        connection.execute(schema.meta.delete().where(schema.meta.c.name == MOVED))


# Rows -----------------------------------------------------------------------------------------------------------------


def _copy(reads: sa.Connection, writes: sa.Connection, where: str, digest: str) -> Moved:
    """`digest`: of what is there. Raises LedgerCorrupt if what has arrived is something else."""
    for table in _tables():
        for rows in _parts(reads, table):
            writes.execute(table.insert(), [dict(row._mapping) for row in rows])
    for name, value in reads.execute(sa.select(schema.meta.c.name, schema.meta.c.value)):
        if name not in _OWN:
            store.write_meta(writes, name, value)
    if writes.dialect.name == "postgresql":
        for table in _NUMBERED:
            newest = sa.select(sa.func.max(table.c.id)).scalar_subquery()
            sequence = sa.func.pg_get_serial_sequence(table.name, "id")
            writes.execute(sa.select(sa.func.setval(sequence, sa.func.greatest(newest, 1))))
    arrived = _digest(writes)
    if digest != arrived.digest:
        raise errors.LedgerCorrupt(f"what was written to {where} is not what was read. Nothing of it stays")
    accounts = writes.execute(sa.select(sa.func.count()).select_from(schema.accounts)).scalar() or 0
    return Moved(where, accounts, arrived.rows, digest, 0)


def _tables() -> list[sa.Table]:
    return [table for table in schema.metadata.sorted_tables if table not in (schema.version, schema.meta)]


def _parts(connection: sa.Connection, table: sa.Table) -> Iterator[Sequence[sa.Row[Any]]]:
    """All rows but that of nobody, who is in every ledger."""
    select = sa.select(table)
    if table is schema.instances:
        select = select.where(table.c.id != 0)
    yield from connection.execute(select, execution_options={"yield_per": PART}).partitions()


def _digest(connection: sa.Connection) -> _Rows:
    """Of every row, in no order, since two databases sort names differently."""
    total, count = 0, 0
    for table in _tables():
        names = [column.name for column in table.columns]
        for rows in _parts(connection, table):
            count += len(rows)
            total += sum(_of(table.name, names, row) for row in rows)
    for row in connection.execute(sa.select(schema.meta.c.name, schema.meta.c.value)):
        if row.name not in _OWN:
            total += _of("meta", ["name", "value"], row)
    return _Rows(f"{total % 2**256:064x}", count)


def _of(table: str, names: Sequence[str], row: Sequence[Any]) -> int:
    text = json.dumps([table, names, list(row)], ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def _epoch(reads: sa.Connection) -> int:
    """Without the lock that a keeper takes on it."""
    return int(store.read_meta(reads, "epoch", "0"))


def _seal(digest: str, number: int) -> str:
    return f"{digest}:{number}"


# Opening --------------------------------------------------------------------------------------------------------------


def _reader(place: "str | Path") -> Database:
    return _opened(place, create=False, read_only=True)


def _opened(place: "str | Path", *, create: bool, read_only: bool = False, beside: bool = False) -> Database:
    """Of this build's schema."""
    database = open_database(place, create=create, read_only=read_only, beside=beside)
    try:
        with database.opening() as connection:
            migrate.refuse_older(connection, database.where)
    except BaseException:
        database.close()
        raise
    return database
