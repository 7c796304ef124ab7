"""Hours whose rollup is kept up to date while they last, until the hourly asset has closed them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011_open_hours"
down_revision = "0010_day_versions"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "open_hour",
        sa.Column("bucket", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("bucket"),
        schema="metrics",
    )
