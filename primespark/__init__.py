"""Prime Spark: run AI on a fleet of small computers, survive without a network, learn with a cloud."""

import os
from importlib.metadata import version

__version__ = version("primespark")

# ONNX Runtime (1.32) makes an id of the device, keeps a database of what it ran under ~/.cache, and sends it to its
# maker. It reads this when it is imported; its own `disable_telemetry_events` comes too late for the id.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# MLflow (3.17) writes an id of the installation under ~/.config when any of its modules is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

__all__ = ["__version__"]
