"""Batches in the log and in facts; cursors and silence of devices; what the rounds of the cloud remember."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_rounds"
down_revision = "0001"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    for table in ("fact", "log"):
        op.add_column(table, sa.Column("batch_seq", sa.BigInteger(), nullable=True), schema="sync")
    op.create_index(
        "log_batch", "log", ["device_id", "epoch", "batch_seq"], schema="sync",
        postgresql_where=sa.text("batch_seq IS NOT NULL"),
    )  # fmt: skip
    op.add_column("device", sa.Column("cursor", sa.BigInteger(), nullable=True), schema="sync")
    for name in ("cursor_at", "overdue_since"):
        op.add_column("device", sa.Column(name, MOMENT, nullable=True), schema="sync")
    op.create_table(
        "audited",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "epoch", "stream"),
        schema="sync",
    )
    op.create_table(
        "round",
        sa.Column(
            "only_row", sa.Boolean(), sa.CheckConstraint("only_row"), server_default=sa.text("true"), nullable=False
        ),
        sa.Column("log_seq", sa.BigInteger(), nullable=False),
        sa.Column("tombstone_watermark", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("only_row"),
        schema="sync",
    )
    op.execute("INSERT INTO sync.round (log_seq, tombstone_watermark) VALUES (0, 0)")
