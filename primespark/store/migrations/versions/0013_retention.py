"""Samples in parts of days or weeks, by how long they are kept; values that are missing, with the reason."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013_retention"
down_revision = "0012_fact_blob"
branch_labels = None
depends_on = None

CLASSES = ("short", "standard", "long")

# Answers from when on samples of the class are kept, which holds until the transaction ends. All before 2015 is one
# part: a clock that was never set makes no part for each of its weeks. A part is a week where the one before it had
# less than five million samples a day, else a day.
_ENSURE_PARTS = """
CREATE FUNCTION metrics.ensure_parts(of_class text, moments timestamptz[]) RETURNS timestamptz
LANGUAGE plpgsql AS $$
DECLARE
    kept_from timestamptz;
    moment timestamptz;
    first timestamptz;
    finish timestamptz;
    per_day double precision;
    name text;
BEGIN
    -- Whoever moves `raw_from` waits for those who write by it.
    PERFORM pg_advisory_xact_lock_shared(7301008);
    SELECT raw_from INTO kept_from FROM metrics.retention WHERE class = of_class;
    FOR moment IN
        SELECT DISTINCT date_bin('1 day', given, '2000-01-03Z') FROM unnest(moments) AS given
        WHERE given >= kept_from ORDER BY 1
    LOOP
        CONTINUE WHEN EXISTS (
            SELECT FROM metrics.part WHERE class = of_class AND starts <= moment AND ends > moment
        );
        -- Who makes the same part at the same time waits here, and finds it made.
        PERFORM pg_advisory_xact_lock(7301007);
        CONTINUE WHEN EXISTS (
            SELECT FROM metrics.part WHERE class = of_class AND starts <= moment AND ends > moment
        );
        IF moment < '2015-01-05Z' THEN
            first := '-infinity';
            finish := '2015-01-05Z';
            name := 'sample_' || of_class || '_before';
        ELSE
            SELECT greatest(c.reltuples, 0) / (extract(epoch FROM p.ends - p.starts) / 86400) INTO per_day
                FROM metrics.part p JOIN pg_class c ON c.oid = to_regclass(format('metrics_parts.%I', p.name))
                WHERE p.class = of_class AND p.ends <= moment AND p.starts > '-infinity' ORDER BY p.ends DESC LIMIT 1;
            first := date_bin('7 days', moment, '2000-01-03Z');
            finish := first + interval '7 days';
            IF per_day > 5000000 OR EXISTS (
                SELECT FROM metrics.part WHERE class = of_class AND starts < finish AND ends > first
            ) THEN
                first := moment;
                finish := moment + interval '24 hours';
            END IF;
            name := 'sample_' || of_class || '_' || to_char(first AT TIME ZONE 'UTC', 'YYYYMMDD');
        END IF;
        EXECUTE format(
            'CREATE TABLE metrics_parts.%I (LIKE metrics.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
            name, 'sample_' || of_class
        );
        -- ATTACH lets readers and writers of other parts go on, where CREATE … PARTITION OF does not.
        EXECUTE format(
            'ALTER TABLE metrics.%I ATTACH PARTITION metrics_parts.%I FOR VALUES FROM (%s) TO (%L)',
            'sample_' || of_class, name, CASE WHEN first = '-infinity' THEN 'MINVALUE' ELSE quote_literal(first) END,
            finish
        );
        INSERT INTO metrics.part (class, starts, ends, name) VALUES (of_class, first, finish, name);
    END LOOP;
    RETURN kept_from;
END
$$
"""
_DROP_PART = """
CREATE FUNCTION metrics.drop_part(of_class text, part_name text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('DROP TABLE IF EXISTS metrics_parts.%I', part_name);
    DELETE FROM metrics.part WHERE class = of_class AND name = part_name;
END
$$
"""


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.execute("CREATE SCHEMA metrics_parts")
    op.create_table(
        "retention",
        sa.Column("class", sa.Text(), nullable=False),
        sa.Column("prefixes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("raw_from", moment, nullable=False),
        sa.Column("beyond", sa.BigInteger(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("class"),
        schema="metrics",
    )
    op.create_table(
        "part",
        sa.Column("class", sa.Text(), nullable=False),
        sa.Column("starts", moment, nullable=False),
        sa.Column("ends", moment, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("class", "starts"),
        schema="metrics",
    )
    op.add_column("series", sa.Column("class", sa.Text(), nullable=False, server_default="standard"), schema="metrics")
    op.execute("ALTER TABLE metrics.sample RENAME TO sample_of_before")
    op.execute("ALTER TABLE metrics.sample_of_before RENAME CONSTRAINT sample_pkey TO sample_of_before_pkey")
    for name in CLASSES:
        op.execute(f"INSERT INTO metrics.retention VALUES ('{name}', '{{}}', '1970-01-01Z')")  # noqa: S608 (constants)
        op.execute(
            f"CREATE TABLE metrics.sample_{name} (series_id bigint NOT NULL, time timestamptz NOT NULL,"
            " seq bigint NOT NULL, value double precision, quality text, PRIMARY KEY (series_id, time, seq))"
            " PARTITION BY RANGE (time)"
        )
    every = " UNION ALL ".join(f"SELECT * FROM metrics.sample_{name}" for name in CLASSES)  # noqa: S608 (constants)
    op.execute(f"CREATE VIEW metrics.sample AS {every}")
    op.execute(_ENSURE_PARTS)
    op.execute(_DROP_PART)
    op.execute(
        "SELECT metrics.ensure_parts('standard', (SELECT array_agg(DISTINCT date_trunc('day', time, 'UTC'))"
        " FROM metrics.sample_of_before))"
    )
    op.execute(
        "INSERT INTO metrics.sample_standard SELECT series_id, time, seq, value, NULL FROM metrics.sample_of_before"
    )
    op.drop_table("sample_of_before", schema="metrics")
