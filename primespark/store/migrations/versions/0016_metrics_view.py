"""All samples as one table of six columns, for SQL."""

from __future__ import annotations

from alembic import op

revision = "0016_metrics_view"
down_revision = "0015_hypertables"
branch_labels = None
depends_on = None

_VIEW = """
CREATE VIEW metrics.metrics AS
    SELECT m.time, s.metric AS metric_name, m.value, s.labels, s.source, s.device_id
    FROM metrics.sample m JOIN metrics.series s USING (series_id)
"""
# What `primespark.store.samples.insert` does with many.
_INSERT = """
CREATE FUNCTION metrics.insert_metric() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    of_labels jsonb := coalesce(NEW.labels, '{}');
    of_source text := coalesce(NEW.source, 'sql');
    of_device text := coalesce(NEW.device_id, '');
    number bigint;
    of_class text;
    kept_from timestamptz;
    is_new int;
BEGIN
    IF NEW.time IS NULL OR NEW.metric_name IS NULL THEN
        RAISE not_null_violation USING MESSAGE = 'a metric has a time and a name';
    ELSIF NOT NEW.time >= '1970-01-01Z' OR NEW.time > now() + interval '31 days' THEN
        RAISE datetime_field_overflow USING MESSAGE = 'a time before 1970 or more than 31 days ahead',
            HINT = 'set the clock';
    ELSIF NOT abs(NEW.value) <= 1e140 THEN
        RAISE numeric_value_out_of_range USING MESSAGE = 'not a finite number up to 1e+140';
    ELSIF greatest(length(NEW.metric_name), length(of_source), length(of_device)) > 128
        OR octet_length(of_labels::text) > 1024 THEN
        RAISE string_data_right_truncation USING
            MESSAGE = 'a name of more than 128 characters, or labels of more than 1024 bytes';
    ELSIF jsonb_typeof(of_labels) <> 'object' OR jsonb_path_exists(of_labels, '$.* ? (@.type() != "string")') THEN
        RAISE invalid_parameter_value USING MESSAGE = 'labels are an object of texts';
    END IF;
    LOOP
        SELECT s.series_id, s.class INTO number, of_class FROM metrics.series s
            WHERE (s.metric, s.device_id, s.source, s.labels) = (NEW.metric_name, of_device, of_source, of_labels);
        EXIT WHEN FOUND;
        INSERT INTO metrics.series (metric, device_id, source, labels, class)
            VALUES (NEW.metric_name, of_device, of_source, of_labels, metrics.class_of(NEW.metric_name))
            ON CONFLICT DO NOTHING;
    END LOOP;
    kept_from := metrics.ensure_parts(of_class, ARRAY[NEW.time]);
    IF NEW.time < kept_from THEN
        UPDATE metrics.retention SET beyond = beyond + 1 WHERE class = of_class;
        RETURN NULL;
    END IF;
    EXECUTE format(
        'INSERT INTO metrics.%I (series_id, time, seq, value, quality) VALUES ($1, $2, 0, $3, $4)'
        ' ON CONFLICT DO NOTHING',
        'sample_' || of_class
    ) USING number, NEW.time, NEW.value, CASE WHEN NEW.value IS NULL THEN 'missing' END;
    GET DIAGNOSTICS is_new = ROW_COUNT;
    IF is_new = 0 THEN
        RETURN NULL;
    END IF;
    INSERT INTO metrics.dirty (series_id, bucket) VALUES (number, date_trunc('hour', NEW.time, 'UTC'));
    IF NEW.value IS NOT NULL THEN
        INSERT INTO metrics.last_sample AS known (series_id, time, seq, value) VALUES (number, NEW.time, 0, NEW.value)
            ON CONFLICT (series_id) DO UPDATE SET (time, seq, value) = (excluded.time, excluded.seq, excluded.value)
            WHERE (excluded.time, excluded.seq) > (known.time, known.seq);
    END IF;
    INSERT INTO metrics.day_version AS known (series_id, day, version)
        VALUES (number, date_trunc('day', NEW.time, 'UTC'), 1)
        ON CONFLICT (series_id, day) DO UPDATE SET version = known.version + 1;
    RETURN NEW;
END
$$
"""
_CLASS_OF = """
CREATE FUNCTION metrics.class_of(metric text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT coalesce((
        SELECT r.class FROM metrics.retention r, unnest(r.prefixes) AS prefix WHERE starts_with(metric, prefix)
        ORDER BY length(prefix) DESC, r.class LIMIT 1
    ), 'standard')
$$
"""


def upgrade() -> None:
    op.execute(_CLASS_OF)
    op.execute(_VIEW)
    op.execute(_INSERT)
    op.execute(
        "CREATE TRIGGER insert_metric INSTEAD OF INSERT ON metrics.metrics"
        " FOR EACH ROW EXECUTE FUNCTION metrics.insert_metric()"
    )
