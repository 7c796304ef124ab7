"""How often the samples of a series and day have changed, for answers that are kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010_day_versions"
down_revision = "0009_daily_rollup"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "day_version",
        sa.Column("series_id", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("series_id", "day"),
        schema="metrics",
        # Written with each batch: with room on its page a new version needs no new entry in the index.
        postgresql_with={"fillfactor": 50},
    )
