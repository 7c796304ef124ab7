"""Versions of documents that lost against a concurrent one, and who last wrote what both sides may write."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003_conflicts"
down_revision = "0002_rounds"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("document", sa.Column("written_hlc", sa.Text(), server_default="", nullable=False), schema="sync")
    op.add_column(
        "document", sa.Column("shared_writes", JSONB(), server_default=sa.text("'{}'"), nullable=False), schema="sync"
    )
    # Of older documents it is not known which write was of the shared part: each may have been.
    op.execute(
        "UPDATE sync.document SET shared_writes = (SELECT coalesce(jsonb_object_agg(key,"
        " jsonb_build_object('counter', value, 'hlc', '')), '{}') FROM jsonb_each(vv))"
    )
    op.create_table(
        "conflict",
        sa.Column("conflict_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("data_class", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("cloud_version", JSONB(), nullable=False),
        sa.Column("device_version", JSONB(), nullable=False),
        sa.Column("opened_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("resolved_at", MOMENT, nullable=True),
        sa.Column("winner", sa.Text(), nullable=True),
        sa.Column("resolved_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("conflict_id"),
        schema="sync",
    )
    op.create_index("conflict_record", "conflict", ["scope", "key", "conflict_id"], schema="sync")
    op.create_index(
        "conflict_open", "conflict", ["scope", "key", "device_id"], unique=True, schema="sync",
        postgresql_where=sa.text("resolved_at IS NULL"),
    )  # fmt: skip
