"""Blobs that devices write: who wrote which, and those on their way with the chunks they are made of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005_uploads"
down_revision = "0004_fact_quality"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    for name, moment in (("blob", "written_at"), ("upload", "moved_at")):
        op.create_table(
            name,
            sa.Column("device_id", sa.Text(), nullable=False),
            sa.Column("sha256", sa.Text(), nullable=False),
            sa.Column("size", sa.BigInteger(), nullable=False),
            sa.Column(moment, MOMENT, nullable=False),
            sa.PrimaryKeyConstraint("device_id", "sha256"),
            schema="sync",
        )
    op.create_table(
        "upload_chunk",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("blob_sha256", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "sha256", "blob_sha256"),
        sa.ForeignKeyConstraint(
            ["device_id", "blob_sha256"], ["sync.upload.device_id", "sync.upload.sha256"], ondelete="CASCADE"
        ),
        schema="sync",
    )
    op.create_index("upload_chunk_blob", "upload_chunk", ["device_id", "blob_sha256"], schema="sync")
