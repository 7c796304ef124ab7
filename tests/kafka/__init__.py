"""Kafka brokers for tests: the embedded one from its wheel, and a real Apache Kafka node from Maven Central."""
