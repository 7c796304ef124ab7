"""The cloud's HTTP service: the gate devices talk to, the relay to Kafka, and the API for people."""
