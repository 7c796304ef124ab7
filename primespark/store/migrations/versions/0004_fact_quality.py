"""What is to be known of a fact's time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_fact_quality"
down_revision = "0003_conflicts"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("fact", sa.Column("quality", sa.Text(), nullable=True), schema="sync")
