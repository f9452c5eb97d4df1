"""The first ledger."""

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Nothing: a new ledger is made whole, by `sqlite.py`. Later schemas add to this one."""
