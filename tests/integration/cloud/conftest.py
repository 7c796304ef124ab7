"""Brokers for the relay."""

from tests.kafka.fixtures import apache_kafka, embedded_broker

__all__ = ["apache_kafka", "embedded_broker"]
