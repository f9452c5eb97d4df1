"""Brings an older ledger to the newest schema, forward only. `Ledger.open` calls this, and `stepdown ledger migrate`.

Which schema a file has is read without alembic: that is imported only when there is something to do, since it costs a
long-running process ten megabytes for a thing that happens once a release.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from stepdown.ledger import errors, schema
from stepdown.ledger.database import open_database


class Step(NamedTuple):
    """One migration, in words."""

    revision: str
    about: str
    adds: Sequence[str]


class Account(NamedTuple):
    """What bringing a ledger up to date does, or has done."""

    where: str
    found: str
    steps: Sequence[Step]


class _Rehearsed(Exception):
    """Undoes what was done."""


def bring_up(place: "str | Path", *, rehearse: bool = False) -> Account:
    """To this build's schema, as its keeper; step by step, all or none. `rehearse`: and back again. Raises a LedgerError."""
    database, steps = open_database(place, create=False, read_only=False, beside=False), []
    try:
        with suppress(_Rehearsed), database.opening() as connection:
            found = revision_of(connection, database.where)
            for revision in schema.REVISIONS[schema.REVISIONS.index(found) + 1 :]:
                before = _columns(connection)
                upgrade(connection, revision)
                steps.append(Step(revision, _about(revision), _added(before, _columns(connection))))
            if rehearse:
                raise _Rehearsed
        return Account(database.where, found, steps)
    finally:
        database.close()


def refuse_older(connection: sa.Connection, where: str) -> None:
    """Raises a LedgerError for a ledger that is not of this build's schema."""
    found = revision_of(connection, where)
    if found != schema.REVISIONS[-1]:
        raise errors.LedgerOld(
            f"the ledger {where} has schema {found}, this build reads {schema.REVISIONS[-1]}: its keeper upgrades it, or "
            "`stepdown ledger migrate` while there is none"
        )


def revision_of(connection: sa.Connection, where: str) -> str:
    """The schema that the file has; refuses what this build cannot work on.

    A newer one may say that it only adds to what this build knows: then it is as good as this build's own.
    """
    there = set(sa.inspect(connection).get_table_names())
    _refuse_incomplete(schema.FIRST_TABLES - there, where)
    revision = connection.execute(sa.select(schema.version.c.version_num)).scalar()
    if revision is None:
        raise errors.LedgerCorrupt(
            f"the ledger {where} says nowhere which schema it has: it is damaged. Bring it back from a backup"
        )
    if revision == schema.REVISIONS[-1]:
        _refuse_incomplete(schema.metadata.tables.keys() - there, where)
    if revision not in schema.REVISIONS:
        oldest = connection.execute(sa.select(schema.meta.c.value).where(schema.meta.c.name == "oldest")).scalar()
        if oldest in schema.REVISIONS:
            return schema.REVISIONS[-1]
        raise errors.LedgerNewer(
            f"the ledger {where} has schema {revision}; this build knows up to {schema.REVISIONS[-1]}. Run the newer Stepdown "
            "that wrote it, or bring back a backup from before the upgrade"
        )
    return str(revision)


def _refuse_incomplete(lacking: Collection[str], where: str) -> None:
    if lacking:
        raise errors.LedgerCorrupt(
            f"the ledger {where} has no table {min(lacking)!r}: it is damaged, or another program's. Bring it back from a"
            " backup"
        )


def _columns(connection: sa.Connection) -> dict[str, set[str]]:
    look = sa.inspect(connection)
    return {table: {column["name"] for column in look.get_columns(table)} for table in look.get_table_names()}


def _added(before: dict[str, set[str]], after: dict[str, set[str]]) -> list[str]:
    tables = [f"table {name}" for name in sorted(after.keys() - before.keys())]
    columns = [f"column {table}.{name}" for table, had in sorted(before.items()) for name in sorted(after[table] - had)]
    return tables + columns


def _about(revision: str) -> str:
    """The first line of what its file says of itself."""
    (file,) = (Path(__file__).parent / "migrations" / "versions").glob(f"{revision}_*.py")
    return file.read_text(encoding="utf-8").removeprefix('"""').partition("\n")[0].rstrip('"')


def upgrade(connection: sa.Connection, to: str = "head") -> None:
    """Runs the migrations that are missing, in the caller's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, to)
