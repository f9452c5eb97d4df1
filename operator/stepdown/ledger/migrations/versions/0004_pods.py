"""In which pod a proxy runs: while the pod is there, a proxy that cannot be heard may still serve."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    nothing = sa.text("''")
    op.add_column("instances", sa.Column("pod", sa.String(length=253), nullable=False, server_default=nothing))
    op.add_column("instances", sa.Column("pod_uid", sa.String(length=64), nullable=False, server_default=nothing))
    op.create_index("instances_by_pod", "instances", ["pod_uid"], unique=False)
