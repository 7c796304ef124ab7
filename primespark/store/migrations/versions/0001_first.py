"""The first schema: what devices exchange, series of measurements, and control tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    for schema in ("sync", "metrics", "control"):
        op.execute(f"CREATE SCHEMA {schema}")
    _create_devices()
    _create_intake()
    _create_log()
    _create_metrics()
    _create_control()
    # The one row; a server restored from a backup gets the next epoch.
    op.execute("INSERT INTO control.server (server_epoch, document_counter, last_hlc) VALUES (1, 0, '')")


def _create_devices() -> None:
    op.create_table(
        "device",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("key_sha256", sa.Text(), nullable=True),
        sa.Column("token_sha256", sa.Text(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("enrolled_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("last_seen_at", MOMENT, nullable=True),
        sa.Column("capabilities", JSONB(), nullable=False),
        sa.Column("versions", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("device_id"),
        sa.UniqueConstraint("key_sha256"),
        schema="sync",
    )
    op.create_table(
        "enrolment_token",
        sa.Column("token_sha256", sa.Text(), nullable=False),
        sa.Column("uses_left", sa.Integer(), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("token_sha256"),
        schema="sync",
    )


def _create_intake() -> None:
    op.create_table(
        "batch",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("batch_seq", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("response", JSONB(), nullable=False),
        sa.Column("received_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "epoch", "batch_seq"),
        schema="sync",
    )
    op.create_table(
        "fact",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("data_class", sa.Text(), nullable=False),
        sa.Column("time", MOMENT, nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("monotonic_ns", sa.BigInteger(), nullable=False),
        sa.Column("value", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "epoch", "stream", "seq"),
        schema="sync",
    )
    op.create_table(
        "lost",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("seq_from", sa.BigInteger(), nullable=False),
        sa.Column("seq_to", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("received_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "epoch", "stream", "seq_from"),
        schema="sync",
    )
    op.create_table(
        "watermark",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "epoch", "stream"),
        schema="sync",
    )


def _create_log() -> None:
    op.create_table(
        "document",
        sa.Column("data_class", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("vv", JSONB(), nullable=False),
        sa.Column("leaf_hlc", JSONB(), nullable=False),
        sa.Column("value", JSONB(), nullable=False),
        sa.Column("log_seq", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("data_class", "scope", "key"),
        schema="sync",
    )
    op.create_index("document_scope", "document", ["scope", "log_seq"], schema="sync")
    op.create_table(
        "log",
        sa.Column("log_seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("data_class", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=True),
        sa.Column("stream", sa.Text(), nullable=True),
        sa.Column("seq_from", sa.BigInteger(), nullable=True),
        sa.Column("seq_to", sa.BigInteger(), nullable=True),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=True),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("time_from", MOMENT, nullable=True),
        sa.Column("time_to", MOMENT, nullable=True),
        sa.Column("received_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("log_seq"),
        schema="sync",
    )
    op.create_table(
        "relay",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("log_seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        schema="sync",
    )


def _create_metrics() -> None:
    op.create_table(
        "dirty",
        sa.Column("series_id", sa.BigInteger(), nullable=False),
        sa.Column("bucket", MOMENT, nullable=False),
        schema="metrics",
    )
    op.create_index("dirty_bucket", "dirty", ["bucket"], schema="metrics")
    op.create_table(
        "sample",
        sa.Column("series_id", sa.BigInteger(), nullable=False),
        sa.Column("time", MOMENT, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("series_id", "time", "seq"),
        schema="metrics",
    )
    op.create_table(
        "series",
        sa.Column("series_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("labels", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("series_id"),
        sa.UniqueConstraint("metric", "device_id", "source", "labels"),
        schema="metrics",
    )
    op.create_index(
        "series_labels",
        "series",
        ["labels"],
        schema="metrics",
        postgresql_using="gin",
        postgresql_ops={"labels": "jsonb_path_ops"},
    )
    op.create_table(
        "window_result",
        sa.Column("rule_id", sa.Text(), nullable=False),
        sa.Column("group_key", sa.Text(), nullable=False),
        sa.Column("window_start", MOMENT, nullable=False),
        sa.Column("window_end", MOMENT, nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("rule_id", "group_key", "window_start", "window_end"),
        schema="metrics",
    )
    op.create_table(
        "rollup_1h",
        sa.Column("series_id", sa.BigInteger(), nullable=False),
        sa.Column("bucket", MOMENT, nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("sum", sa.Double(), nullable=False),
        sa.Column("m2", sa.Double(), nullable=False),
        sa.Column("min", sa.Double(), nullable=False),
        sa.Column("max", sa.Double(), nullable=False),
        sa.Column("first", sa.Double(), nullable=False),
        sa.Column("last", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["series_id"],
            ["metrics.series.series_id"],
        ),
        sa.PrimaryKeyConstraint("series_id", "bucket"),
        schema="metrics",
    )


def _create_control() -> None:
    op.create_table(
        "api_key",
        sa.Column("key_sha256", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("key_sha256"),
        sa.UniqueConstraint("name"),
        schema="control",
    )
    op.create_table(
        "label",
        sa.Column("dataset", sa.Text(), nullable=False),
        sa.Column("sample", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("image_png", sa.LargeBinary(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("labelled_at", MOMENT, nullable=False),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("dataset", "sample"),
        schema="control",
    )
    op.create_table(
        "pipeline_stage",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("output", JSONB(), nullable=False),
        sa.Column("finished_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "stage"),
        schema="control",
    )
    op.create_table(
        "server",
        sa.Column(
            "only_row", sa.Boolean(), sa.CheckConstraint("only_row"), server_default=sa.text("true"), nullable=False
        ),
        sa.Column("server_epoch", sa.BigInteger(), nullable=False),
        sa.Column("document_counter", sa.BigInteger(), nullable=False),
        sa.Column("last_hlc", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("only_row"),
        schema="control",
    )
