"""The leader's epoch, and what a ledger needs to be told from an older copy of itself."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    zero = sa.text("0")
    op.add_column("instances", sa.Column("born", sa.BigInteger(), nullable=False, server_default=zero))
    op.add_column("instances", sa.Column("unheard", sa.Integer(), nullable=False, server_default=zero))
    op.add_column("accounts", sa.Column("awaited", sa.BigInteger(), nullable=False, server_default=zero))
    op.add_column("accounts", sa.Column("unaccounted", sa.BigInteger(), nullable=False, server_default=zero))
    op.execute("INSERT INTO meta (name, value) VALUES ('epoch', '0'), ('oldest', '0002')")
