"""When the indexes of a part were built anew."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014_packed_parts"
down_revision = "0013_retention"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("part", sa.Column("packed_at", sa.DateTime(timezone=True), nullable=True), schema="metrics")
