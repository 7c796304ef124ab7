"""Prometheus metrics of the cloud."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

RECORDS = Counter("primespark_gate_records_total", "Records received, by what became of their batch.", ["status"])
PUBLISHED = Counter("primespark_relay_messages_total", "Messages acknowledged by Kafka.", ["topic"])
RELAY_POSITION = Gauge("primespark_relay_log_seq", "Position in the sync log up to which Kafka has everything.")
RELAY_FAILURES = Counter("primespark_relay_failures_total", "Times the relay had to begin again.")
LANE_WAITING = Gauge("primespark_gate_waiting_requests", "Requests that wait for their turn at the store.", ["lane"])
LANE_REFUSED = Counter("primespark_gate_refused_requests_total", "Requests refused since too many waited.", ["lane"])
INTAKE = Counter("primespark_intake_samples_total", "Samples from programs of other makes.", ["door", "outcome"])

for _status in ("applied", "replayed"):
    RECORDS.labels(_status)
