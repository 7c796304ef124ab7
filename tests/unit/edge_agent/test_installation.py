"""A device that installs the lock of the extra `edge` has all that its service loads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Loads the service where the packages in its first argument are not installed.
LOAD = """
import importlib, json, pkgutil, sys
absent = set(json.loads(sys.argv[1]))

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import edge_agent, primespark.core.web
for package in (edge_agent, primespark.core.web):
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
"""


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", ["edge.lock", "edge-hailo.lock"])
def test_the_service_loads_where_only_the_lock_is_installed(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text(encoding="utf-8")
    present = {normalised(name) for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE)} | {"primespark"}
    absent = [
        package
        for package, distributions in packages_distributions().items()
        if present.isdisjoint(map(normalised, distributions))
    ]
    assert "dagster" in absent
    process = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(absent)], capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 0, process.stderr
