"""Tables of the one database, in three schemas: `sync` what devices exchange, `metrics` series, `control` the rest."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

SCHEMAS = ("sync", "metrics", "control")
metadata = MetaData()
_Moment = DateTime(timezone=True)

device = Table(
    "device",
    metadata,
    Column("device_id", Text, primary_key=True),
    Column("key_sha256", Text, unique=True),  # null: forgotten
    # The token it enrolled with, by which it may ask again when the first answer was lost.
    Column("token_sha256", Text),
    Column("epoch", BigInteger, nullable=False),
    Column("enrolled_at", _Moment, nullable=False, server_default=func.now()),
    Column("last_seen_at", _Moment),  # null: not since it enrolled
    # How far it has read the log, by its own word when it pulls; null: it has not pulled yet.
    Column("cursor", BigInteger),
    Column("cursor_at", _Moment),
    # Since when it is silent for longer than it may be; no longer true once it was seen after that.
    Column("overdue_since", _Moment),
    Column("epoch_began_at", _Moment),
    # `enrolled`, `database_lost` or `cloud_restored`; null: from before it was noted.
    Column("epoch_reason", Text),
    Column("capabilities", JSONB, nullable=False),
    Column("versions", JSONB, nullable=False),
    schema="sync",
)

# Groups, by their devices: who reads the documents of scope `group:NAME`.
member = Table(
    "member",
    metadata,
    Column("device_id", Text, nullable=False),
    Column("group_name", Text, nullable=False),
    Column("joined_at", _Moment, nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("device_id", "group_name"),
    schema="sync",
)

enrolment_token = Table(
    "enrolment_token",
    metadata,
    Column("token_sha256", Text, primary_key=True),
    Column("uses_left", Integer, nullable=False),
    Column("expires_at", _Moment, nullable=False),
    schema="sync",
)

# The answers of each device's newest batches, so that the same batch sent again gets the same answer.
batch = Table(
    "batch",
    metadata,
    Column("device_id", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("batch_seq", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("response", JSONB, nullable=False),
    Column("received_at", _Moment, nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("device_id", "epoch", "batch_seq"),
    schema="sync",
)

# Highest contiguous seq received of each stream; decides what is new.
watermark = Table(
    "watermark",
    metadata,
    Column("device_id", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("stream", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    PrimaryKeyConstraint("device_id", "epoch", "stream"),
    schema="sync",
)

fact = Table(
    "fact",
    metadata,
    Column("device_id", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("stream", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("data_class", Text, nullable=False),
    Column("time", _Moment, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("monotonic_ns", BigInteger, nullable=False),
    Column("quality", Text),  # null: the device's clock was right
    Column("value", JSONB, nullable=False),
    Column("batch_seq", BigInteger),  # null: from before batches were kept
    Column("blob", Text),
    PrimaryKeyConstraint("device_id", "epoch", "stream", "seq"),
    Index("fact_blob", "blob", postgresql_where=text("blob IS NOT NULL")),
    schema="sync",
)

lost = Table(
    "lost",
    metadata,
    Column("device_id", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("stream", Text, nullable=False),
    Column("seq_from", BigInteger, nullable=False),
    Column("seq_to", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("received_at", _Moment, nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("device_id", "epoch", "stream", "seq_from"),
    schema="sync",
)

# One row per (batch, stream, class) of facts, of long values several, and per document change; allocated under a lock,
# so its order is commit order and the rows of a batch follow one another.
log = Table(
    "log",
    metadata,
    Column("log_seq", BigInteger, Identity(always=True), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("data_class", Text, nullable=False),
    Column("device_id", Text),
    Column("epoch", BigInteger),
    Column("stream", Text),
    Column("seq_from", BigInteger),
    Column("seq_to", BigInteger),
    Column("rows", Integer, nullable=False),
    Column("scope", Text),
    Column("key", Text),
    Column("time_from", _Moment),
    Column("time_to", _Moment),
    Column("received_at", _Moment, nullable=False, server_default=func.now()),
    Column("batch_seq", BigInteger),  # null: a document
    Index("log_batch", "device_id", "epoch", "batch_seq", postgresql_where=text("batch_seq IS NOT NULL")),
    schema="sync",
)

document = Table(
    "document",
    metadata,
    Column("data_class", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("vv", JSONB, nullable=False),
    Column("leaf_hlc", JSONB, nullable=False),
    Column("value", JSONB, nullable=False),
    Column("log_seq", BigInteger, nullable=False),
    Column("updated_at", _Moment, nullable=False, server_default=func.now()),
    Column("written_hlc", Text, nullable=False, server_default=""),
    # Of each replica the last write to the part that both sides may write: {replica: {counter, hlc}}.
    Column("shared_writes", JSONB, nullable=False, server_default=text("'{}'")),
    PrimaryKeyConstraint("data_class", "scope", "key"),
    Index("document_scope", "scope", "log_seq"),
    schema="sync",
)

# Versions that lost against a concurrent one, or wait for somebody to decide (`resolved_at` is null).
conflict = Table(
    "conflict",
    metadata,
    Column("conflict_id", BigInteger, Identity(always=True), primary_key=True),
    Column("data_class", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("strategy", Text, nullable=False),
    Column("device_id", Text, nullable=False),
    # Both as they travel, without what is one side's alone.
    Column("cloud_version", JSONB, nullable=False),
    Column("device_version", JSONB, nullable=False),
    Column("opened_at", _Moment, nullable=False, server_default=func.now()),
    Column("resolved_at", _Moment),
    # `cloud`, a device, `merge` for the leaves of both, `value` for a third one.
    Column("winner", Text),
    Column("resolved_by", Text),
    Index("conflict_record", "scope", "key", "conflict_id"),
    Index("conflict_open", "scope", "key", "device_id", unique=True, postgresql_where=text("resolved_at IS NULL")),
    schema="sync",
)

# What devices are told to do. `delivered_at`: when it was first in an answer to the device.
command = Table(
    "command",
    metadata,
    Column("command_id", Text, primary_key=True),
    Column("device_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("arguments", JSONB, nullable=False),
    Column("issued_by", Text, nullable=False),
    Column("issued_at", _Moment, nullable=False),
    Column("expires_at", _Moment, nullable=False),
    Column("log_seq", BigInteger, nullable=False),
    Column("delivered_at", _Moment),
    Column("answered_at", _Moment),
    # succeeded, failed or expired; null until it is answered.
    Column("outcome", Text),
    Column("code", Text),
    Column("message", Text, nullable=False, server_default=""),
    Column("output", JSONB, nullable=False, server_default=text("'{}'")),
    Index("command_device", "device_id", "log_seq"),
    Index("command_open", "device_id", "log_seq", postgresql_where=text("answered_at IS NULL")),
    schema="sync",
)

relay = Table(
    "relay",
    metadata,
    Column("name", Text, primary_key=True),
    Column("log_seq", BigInteger, nullable=False),
    schema="sync",
)

# Up to which seq of a stream a round found every fact stored or on record as lost.
audited = Table(
    "audited",
    metadata,
    Column("device_id", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("stream", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    PrimaryKeyConstraint("device_id", "epoch", "stream"),
    schema="sync",
)

# What the rounds of the cloud's side remember.
round_ = Table(
    "round",
    metadata,
    Column("only_row", Boolean, CheckConstraint("only_row"), primary_key=True, server_default=text("true")),
    Column("log_seq", BigInteger, nullable=False),
    # The highest `log_seq` of a removed tombstone: a device that has read less far may have missed it.
    Column("tombstone_watermark", BigInteger, nullable=False),
    Column("finished_at", _Moment),
    schema="sync",
)

series = Table(
    "series",
    metadata,
    Column("series_id", BigInteger, Identity(always=True), primary_key=True),
    Column("metric", Text, nullable=False),
    Column("device_id", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("labels", JSONB, nullable=False),
    Column("class", Text, nullable=False, server_default="standard"),
    UniqueConstraint("metric", "device_id", "source", "labels"),
    Index("series_labels", "labels", postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"}),
    schema="metrics",
)


def _samples(retention_class: str) -> Table:
    return Table(
        f"sample_{retention_class}",
        metadata,
        Column("series_id", BigInteger, nullable=False),
        Column("time", _Moment, nullable=False),
        Column("seq", BigInteger, nullable=False),
        # Null: there was none, and `quality` says why.
        Column("value", Double),
        Column("quality", Text),
        PrimaryKeyConstraint("series_id", "time", "seq"),
        schema="metrics",
        postgresql_partition_by="RANGE (time)",
    )


# By how long they are kept; `metrics.sample` shows all. Their parts are tables in a schema of their own,
# `metrics_parts`, and are listed in `part`. Where TimescaleDB is, they are chunks of hypertables.
RETENTION_CLASSES = ("short", "standard", "long")
sample_short, sample_standard, sample_long = map(_samples, RETENTION_CLASSES)

part = Table(
    "part",
    metadata,
    Column("class", Text, nullable=False),
    Column("starts", _Moment, nullable=False),
    Column("ends", _Moment, nullable=False),
    Column("name", Text, nullable=False),
    Column("packed_at", _Moment),  # null: its time is not over, or has been only now
    PrimaryKeyConstraint("class", "starts"),
    schema="metrics",
)

# Series whose metric begins with one of `prefixes` are of a class; before `raw_from` its samples are gone, and what
# came for that time since is counted in `beyond`.
retention = Table(
    "retention",
    metadata,
    Column("class", Text, primary_key=True),
    Column("prefixes", ARRAY(Text), nullable=False),
    Column("raw_from", _Moment, nullable=False),
    Column("beyond", BigInteger, nullable=False, server_default=text("0")),
    schema="metrics",
)

# Hours of a series that have samples no rollup has seen. Marks are only ever added, without a key: a mark that were
# merged into one a refresh is just taking would be lost with it.
dirty = Table(
    "dirty",
    metadata,
    Column("series_id", BigInteger, nullable=False),
    Column("bucket", _Moment, nullable=False),
    Index("dirty_bucket", "bucket"),
    schema="metrics",
)


# Hours whose marks were taken while they lasted; the hourly asset closes them.
open_hour = Table("open_hour", metadata, Column("bucket", _Moment, primary_key=True), schema="metrics")


def _rollup(name: str) -> Table:
    return Table(
        name,
        metadata,
        Column("series_id", BigInteger, ForeignKey("metrics.series.series_id"), nullable=False),
        Column("bucket", _Moment, nullable=False),
        Column("n", BigInteger, nullable=False),
        Column("sum", Double, nullable=False),
        # Sum of squared deviations from the mean: merges exactly (Chan), where sums of squares lose all digits.
        Column("m2", Double, nullable=False),
        Column("min", Double, nullable=False),
        Column("max", Double, nullable=False),
        Column("first", Double, nullable=False),
        Column("last", Double, nullable=False),
        PrimaryKeyConstraint("series_id", "bucket"),
        schema="metrics",
    )


rollup_1h = _rollup("rollup_1h")
rollup_1d = _rollup("rollup_1d")

# How many values of an hour are in each bin, see `metrics.log_bin`.
rollup_histogram = Table(
    "rollup_histogram",
    metadata,
    Column("series_id", BigInteger, ForeignKey("metrics.series.series_id"), nullable=False),
    Column("bucket", _Moment, nullable=False),
    Column("bins", ARRAY(Integer), nullable=False),
    Column("counts", ARRAY(BigInteger), nullable=False),
    PrimaryKeyConstraint("series_id", "bucket"),
    schema="metrics",
)

# The newest of each series: over the samples themselves the question takes longer the more there are.
last_sample = Table(
    "last_sample",
    metadata,
    Column("series_id", BigInteger, primary_key=True, autoincrement=False),
    Column("time", _Moment, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("value", Double, nullable=False),
    schema="metrics",
)

# How often the samples of a series and day have changed.
day_version = Table(
    "day_version",
    metadata,
    Column("series_id", BigInteger, nullable=False),
    Column("day", _Moment, nullable=False),
    Column("version", BigInteger, nullable=False),
    PrimaryKeyConstraint("series_id", "day"),
    schema="metrics",
)

window_result = Table(
    "window_result",
    metadata,
    Column("rule_id", Text, nullable=False),
    Column("group_key", Text, nullable=False),
    Column("window_start", _Moment, nullable=False),
    Column("window_end", _Moment, nullable=False),
    Column("value", Double),
    Column("count", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    PrimaryKeyConstraint("rule_id", "group_key", "window_start", "window_end"),
    schema="metrics",
)

api_key = Table(
    "api_key",
    metadata,
    Column("key_sha256", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("created_at", _Moment, nullable=False, server_default=func.now()),
    schema="control",
)

label = Table(
    "label",
    metadata,
    Column("dataset", Text, nullable=False),
    Column("sample", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("image_png", LargeBinary, nullable=False),
    Column("source", Text, nullable=False),
    Column("labelled_at", _Moment, nullable=False),
    Column("received_at", _Moment, nullable=False),
    PrimaryKeyConstraint("dataset", "sample"),
    schema="control",
)

pipeline_stage = Table(
    "pipeline_stage",
    metadata,
    Column("run_id", Text, nullable=False),
    Column("stage", Text, nullable=False),
    Column("output", JSONB, nullable=False),
    Column("finished_at", _Moment, nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("run_id", "stage"),
    schema="control",
)

stream_rule = Table(
    "stream_rule",
    metadata,
    Column("rule_id", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("definition", JSONB, nullable=False),
    Column("changed_by", Text, nullable=False),
    Column("changed_at", _Moment, nullable=False),
    schema="control",
)
stream_rule_version = Sequence("stream_rule_version", schema="control", metadata=metadata)

server = Table(
    "server",
    metadata,
    Column("only_row", Boolean, CheckConstraint("only_row"), primary_key=True, server_default=text("true")),
    Column("server_epoch", BigInteger, nullable=False),
    # Counter of the cloud's own writes in version vectors.
    Column("document_counter", BigInteger, nullable=False),
    Column("last_hlc", Text, nullable=False),
    Column("restored_at", _Moment),
    Column("restored_why", Text),
    schema="control",
)

# Who wrote a blob, all of which has come; the device may read it, and it is kept for a while.
device_blob = Table(
    "blob",
    metadata,
    Column("device_id", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("written_at", _Moment, nullable=False),
    PrimaryKeyConstraint("device_id", "sha256"),
    schema="sync",
)

# Blobs on their way from a device, until all is there.
upload = Table(
    "upload",
    metadata,
    Column("device_id", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("moved_at", _Moment, nullable=False),
    PrimaryKeyConstraint("device_id", "sha256"),
    schema="sync",
)

# What they are made of, each piece once; those that came lie in a folder of the device.
upload_chunk = Table(
    "upload_chunk",
    metadata,
    Column("device_id", Text, nullable=False),
    Column("blob_sha256", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("size", Integer, nullable=False),
    PrimaryKeyConstraint("device_id", "sha256", "blob_sha256"),
    ForeignKeyConstraint(
        ["device_id", "blob_sha256"], ["sync.upload.device_id", "sync.upload.sha256"], ondelete="CASCADE"
    ),
    Index("upload_chunk_blob", "device_id", "blob_sha256"),
    schema="sync",
)
