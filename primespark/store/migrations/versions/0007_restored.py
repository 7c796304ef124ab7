"""When and why epochs began: a device's, and the cloud's after it was restored from a backup."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007_restored"
down_revision = "0006_groups"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table, schema, prefix in (("device", "sync", "epoch_began"), ("server", "control", "restored")):
        op.add_column(table, sa.Column(f"{prefix}_at", sa.DateTime(timezone=True), nullable=True), schema=schema)
    op.add_column("device", sa.Column("epoch_reason", sa.Text(), nullable=True), schema="sync")
    op.add_column("server", sa.Column("restored_why", sa.Text(), nullable=True), schema="control")
