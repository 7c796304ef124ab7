"""The blob that a fact names."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012_fact_blob"
down_revision = "0011_open_hours"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("fact", sa.Column("blob", sa.Text(), nullable=True), schema="sync")
    op.create_index("fact_blob", "fact", ["blob"], schema="sync", postgresql_where=sa.text("blob IS NOT NULL"))
