"""A device loads nothing of the cloud: a small computer has no room and no time for it."""

from __future__ import annotations

import subprocess
import sys

FORBIDDEN = (
    "dagster",
    "mlflow",
    "sqlalchemy",
    "psycopg2",
    "pandas",
    "sklearn",
    "skimage",
    "scipy",
    "cv2",
    "soundfile",
    "soxr",
    "faust",
)


def test_the_device_service_imports_nothing_of_the_cloud() -> None:
    code = f"""
import pkgutil, importlib, sys, edge_agent
for module in pkgutil.iter_modules(edge_agent.__path__):
    importlib.import_module("edge_agent." + module.name)
from primespark.inference.models import load_bundled
from edge_agent.sources import frames
next(frames("samples", 25_000_000)).see()
print([name for name in {FORBIDDEN!r} if name in sys.modules])
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert process.stdout.strip() == "[]"
