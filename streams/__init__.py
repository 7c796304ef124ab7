"""The stream worker: a Faust app that reads facts from Kafka, runs them through windows and writes the results."""
