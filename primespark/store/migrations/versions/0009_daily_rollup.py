"""Days and histograms beside the hourly rollup, and the last sample of each series."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009_daily_rollup"
down_revision = "0008_commands"
branch_labels = None
depends_on = None

# Bins of 1 % relative error: each upper end is 1.02 of its lower. Smaller values have smaller numbers, whatever their
# sign; 0 is zero. 40,000 is more than any exponent of a double needs. None of these functions is STRICT: the planner
# could not inline them.
_LOG_BIN = """
CREATE FUNCTION metrics.log_bin(value double precision) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
SELECT CASE WHEN value > 0 THEN 40000 + ceil(ln(value) / ln(1.02::double precision))::integer
            WHEN value < 0 THEN -40000 - ceil(ln(-value) / ln(1.02::double precision))::integer
            ELSE 0 END
$$
"""
# What is equally far from both ends of a bin, in relation to them. Nearer to zero than 1e-300 bins are as one.
_BIN_VALUE = """
CREATE FUNCTION metrics.bin_value(bin integer) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
SELECT sign(bin) * power(1.02::double precision, greatest(abs(bin) - 40000, -35000)) * (2 / 2.02::double precision)
$$
"""
# PostgreSQL refuses to compute what is nearer to zero than any double, where others take it for zero.
_RATIO = """
CREATE FUNCTION metrics.ratio(value double precision, n double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT CASE WHEN abs(value) > 1e-290 THEN value / n ELSE 0 END $$
"""
_SQUARE = """
CREATE FUNCTION metrics.square(value double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT CASE WHEN abs(value) > 1e-145 THEN value * value ELSE 0 END $$
"""


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "rollup_1d",
        sa.Column("series_id", sa.BigInteger(), nullable=False),
        sa.Column("bucket", moment, nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.Double(), nullable=False) for name in ("sum", "m2", "min", "max", "first", "last")),
        sa.ForeignKeyConstraint(["series_id"], ["metrics.series.series_id"]),
        sa.PrimaryKeyConstraint("series_id", "bucket"),
        schema="metrics",
    )
    op.create_table(
        "rollup_histogram",
        sa.Column("series_id", sa.BigInteger(), nullable=False),
        sa.Column("bucket", moment, nullable=False),
        sa.Column("bins", postgresql.ARRAY(sa.Integer()), nullable=False),
        sa.Column("counts", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.ForeignKeyConstraint(["series_id"], ["metrics.series.series_id"]),
        sa.PrimaryKeyConstraint("series_id", "bucket"),
        schema="metrics",
    )
    op.create_table(
        "last_sample",
        sa.Column("series_id", sa.BigInteger(), nullable=False),
        sa.Column("time", moment, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("series_id"),
        schema="metrics",
        # Written with each batch: with room on its page a new version needs no new entry in the index.
        postgresql_with={"fillfactor": 50},
    )
    for function in (_LOG_BIN, _BIN_VALUE, _RATIO, _SQUARE):
        op.execute(function)
    op.execute(
        "INSERT INTO metrics.last_sample SELECT DISTINCT ON (series_id) series_id, time, seq, value"
        " FROM metrics.sample ORDER BY series_id, time DESC, seq DESC"
    )
    # The next refresh computes what is new here for all hours there are.
    op.execute("INSERT INTO metrics.dirty SELECT series_id, bucket FROM metrics.rollup_1h")
