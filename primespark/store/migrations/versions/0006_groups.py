"""Groups of devices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006_groups"
down_revision = "0005_uploads"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "member",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("group_name", sa.Text(), nullable=False),
        sa.Column("joined_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "group_name"),
        schema="sync",
    )
