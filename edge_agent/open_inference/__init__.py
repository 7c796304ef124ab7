"""Open Inference Protocol v2 over HTTP: the raw tensors of the models in service, in JSON or as binary data."""
