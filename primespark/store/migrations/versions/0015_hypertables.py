"""Where TimescaleDB is, samples in its hypertables; weeks begin on Thursdays, as they do there."""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

revision = "0015_hypertables"
down_revision = "0014_packed_parts"
branch_labels = None
depends_on = None

CLASSES = ("short", "standard", "long")

# As before, but for who makes the part and the day its week begins on.
_ENSURE_PARTS = """
CREATE OR REPLACE FUNCTION metrics.ensure_parts(of_class text, moments timestamptz[]) RETURNS timestamptz
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
        SELECT DISTINCT date_bin('1 day', given, '1970-01-01Z') FROM unnest(moments) AS given
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
        IF moment < '2015-01-01Z' THEN
            first := '-infinity';
            finish := '2015-01-01Z';
            name := 'sample_' || of_class || '_before';
        ELSE
            SELECT greatest(c.reltuples, 0) / (extract(epoch FROM p.ends - p.starts) / 86400) INTO per_day
                FROM metrics.part p JOIN pg_class c ON c.oid = to_regclass(format('metrics_parts.%I', p.name))
                WHERE p.class = of_class AND p.ends <= moment AND p.starts > '-infinity' ORDER BY p.ends DESC LIMIT 1;
            first := date_bin('7 days', moment, '1970-01-01Z');
            finish := first + interval '7 days';
            IF per_day > 5000000 OR EXISTS (
                SELECT FROM metrics.part WHERE class = of_class AND starts < finish AND ends > first
            ) THEN
                first := moment;
                finish := moment + interval '24 hours';
            END IF;
            name := 'sample_' || of_class || '_' || to_char(first AT TIME ZONE 'UTC', 'YYYYMMDD');
        END IF;
        PERFORM metrics.create_part(of_class, name, first, finish);
    END LOOP;
    RETURN kept_from;
END
$$
"""
_CREATE_PART = """
CREATE FUNCTION metrics.create_part(of_class text, part_name text, first timestamptz, finish timestamptz) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    samples regclass := format('metrics.%I', 'sample_' || of_class);
    begins timestamptz := greatest(first, '1970-01-01Z');
    extension_schema name;
    chunk regclass;
BEGIN
    IF metrics.is_hypertable(samples) THEN
        SELECT nspname INTO extension_schema FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
            WHERE extname = 'timescaledb';
        EXECUTE format('SELECT %I.set_chunk_time_interval($1, $2)', extension_schema) USING samples, finish - begins;
        -- A chunk is only ever made for a row. Made beforehand, nobody who holds rows waits for one that makes a chunk.
        EXECUTE format('INSERT INTO %s (series_id, time, seq) VALUES (0, $1, 0) RETURNING tableoid::regclass', samples)
            INTO chunk USING begins;
        EXECUTE format('DELETE FROM %s WHERE series_id = 0', chunk);
        EXECUTE format('ALTER TABLE %s RENAME TO %I', chunk, part_name);
    ELSE
        EXECUTE format(
            'CREATE TABLE metrics_parts.%I (LIKE %s INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', part_name, samples
        );
        -- ATTACH lets readers and writers of other parts go on, where CREATE … PARTITION OF does not.
        EXECUTE format(
            'ALTER TABLE %s ATTACH PARTITION metrics_parts.%I FOR VALUES FROM (%s) TO (%L)',
            samples, part_name, CASE WHEN first = '-infinity' THEN 'MINVALUE' ELSE quote_literal(first) END, finish
        );
    END IF;
    INSERT INTO metrics.part (class, starts, ends, name) VALUES (of_class, first, finish, part_name);
END
$$
"""
_DROP_PART = """
CREATE OR REPLACE FUNCTION metrics.drop_part(of_class text, part_name text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    samples regclass := format('metrics.%I', 'sample_' || of_class);
    extension_schema name;
BEGIN
    IF metrics.is_hypertable(samples) THEN
        SELECT nspname INTO extension_schema FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
            WHERE extname = 'timescaledb';
        EXECUTE format(
            'SELECT %I.drop_chunks($1, older_than => ends, newer_than => nullif(starts, ''-infinity''))'
            ' FROM metrics.part WHERE class = $2 AND name = $3', extension_schema
        ) USING samples, of_class, part_name;
    ELSE
        EXECUTE format('DROP TABLE IF EXISTS metrics_parts.%I', part_name);
    END IF;
    DELETE FROM metrics.part WHERE class = of_class AND name = part_name;
END
$$
"""
# The other kind is a partitioned table.
_IS_HYPERTABLE = """
CREATE FUNCTION metrics.is_hypertable(samples regclass) RETURNS boolean
LANGUAGE sql STABLE RETURN (SELECT relkind = 'r' FROM pg_class WHERE oid = samples)
"""
# Where the server has not loaded it there is no such setting, and asking for the extension would end the session.
_HAS_TIMESCALEDB = """
SELECT current_setting('timescaledb.disable_load', true) = 'off' AND (
    EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')
    OR (SELECT has_database_privilege(current_database(), 'CREATE') AND (v.trusted OR u.usesuper)
        FROM pg_available_extensions e JOIN pg_available_extension_versions v
        ON v.name = e.name AND v.version = e.default_version, pg_user u
        WHERE e.name = 'timescaledb' AND u.usename = current_user)
)
"""


def upgrade() -> None:
    for function in (_IS_HYPERTABLE, _CREATE_PART, _ENSURE_PARTS, _DROP_PART):
        op.execute(function)
    if op.get_bind().execute(text(_HAS_TIMESCALEDB)).scalar():
        op.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        _make_hypertables()


def _make_hypertables() -> None:
    """Of the classes that have no samples yet: those of the others would all have to be written anew."""
    with_parts = set(op.get_bind().execute(text("SELECT class FROM metrics.part")).scalars())
    op.execute("DROP VIEW metrics.sample")
    for name in CLASSES:
        if name in with_parts:
            continue
        op.execute(f"DROP TABLE metrics.sample_{name}")
        op.execute(
            f"CREATE TABLE metrics.sample_{name} (series_id bigint NOT NULL, time timestamptz NOT NULL,"
            " seq bigint NOT NULL, value double precision, quality text, PRIMARY KEY (series_id, time, seq))"
        )
        # The index on time that it would make by itself doubles the cost of a row, and nothing reads it.
        op.execute(
            f"SELECT create_hypertable('metrics.sample_{name}', 'time', associated_schema_name => 'metrics_parts',"
            f" associated_table_prefix => 'sample_{name}', create_default_indexes => false)"
        )
    every = " UNION ALL ".join(f"SELECT * FROM metrics.sample_{name}" for name in CLASSES)  # noqa: S608 (constants)
    op.execute(f"CREATE VIEW metrics.sample AS {every}")
