"""Brings an older ledger to the newest schema, forward only. `Ledger.open` calls this.

Which schema a file has is read without alembic: that is imported only when there is something to do, since it costs a
long-running process ten megabytes for a thing that happens once a release.
"""

from pathlib import Path

import sqlalchemy as sa

from stepdown.ledger import errors, schema


def revision_of(connection: sa.Connection, where: str) -> str:
    """The schema that the file has; refuses what this build cannot work on.

    A newer one may say that it only adds to what this build knows: then it is as good as this build's own.
    """
    try:
        revision = connection.execute(sa.select(schema.version.c.version_num)).scalar()
    except sa.exc.OperationalError as error:
        raise errors.LedgerCorrupt(
            f"the ledger {where} says nowhere which schema it has: it is damaged. Bring it back from a backup"
        ) from error
    if revision not in schema.REVISIONS:
        oldest = connection.execute(sa.select(schema.meta.c.value).where(schema.meta.c.name == "oldest")).scalar()
        if oldest in schema.REVISIONS:
            return schema.REVISIONS[-1]
        raise errors.LedgerNewer(
            f"the ledger {where} has schema {revision}; this build knows up to {schema.REVISIONS[-1]}. Run the newer Stepdown "
            "that wrote it, or bring back a backup from before the upgrade"
        )
    return str(revision)


def upgrade(connection: sa.Connection, to: str = "head") -> None:
    """Runs the migrations that are missing, in the caller's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, to)
