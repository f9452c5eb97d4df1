"""What a statement needs beside the counters: purchase orders, and which models have cost more than their worst case."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "overruns",
        sa.Column("route", number, autoincrement=False, nullable=False),
        sa.Column("model", number, autoincrement=False, nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("largest", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["names.id"]),
        sa.ForeignKeyConstraint(["route"], ["names.id"]),
        sa.PrimaryKeyConstraint("route", "model"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "purchase_orders",
        sa.Column("route", number, autoincrement=False, nullable=False),
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("reference", sa.String(length=63), nullable=False),
        sa.ForeignKeyConstraint(["route"], ["names.id"]),
        sa.PrimaryKeyConstraint("route", "day"),
        sqlite_with_rowid=False,
    )
