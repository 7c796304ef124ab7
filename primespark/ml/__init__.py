"""Learning: data sets, the stages of the pipeline, evaluation, registry and promotion; nothing here knows Dagster."""
