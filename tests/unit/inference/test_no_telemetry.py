"""Nothing is told to the maker of a library: ONNX Runtime and MLflow leave no id and no record of what they ran."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RUNS_A_MODEL = """
from primespark.inference.models import DETECTOR, load_bundled
load_bundled(DETECTOR, 1, 0.4)
"""

ASKS_THE_REGISTRY = """
from primespark.ml.registry import Registry
Registry().champion()
"""


def left_in_home(home: Path, code: str, **environment: str) -> list[str]:
    """Names of the files that the code leaves at home; it has no network."""
    subprocess.run(
        ["unshare", "--map-root-user", "--net", sys.executable, "-c", code],
        # Nothing else is inherited: both libraries keep quiet under continuous integration and pytest.
        env={"PATH": os.environ["PATH"], "HOME": str(home), **environment},
        check=True,
        timeout=120,
    )
    return [path.name for path in home.rglob("*") if path.is_file()]


def test_a_model_that_runs_leaves_nothing_at_home(tmp_path: Path) -> None:
    assert left_in_home(tmp_path, RUNS_A_MODEL) == []


def test_who_wants_it_may_have_it(tmp_path: Path) -> None:
    # That this leaves something shows that the other test would see it.
    assert "deviceid" in left_in_home(tmp_path, RUNS_A_MODEL, ORT_DISABLE_TELEMETRY="0")


def test_the_registry_leaves_nothing_at_home(tmp_path: Path) -> None:
    home, state = tmp_path / "home", tmp_path / "state"
    home.mkdir()
    assert left_in_home(home, ASKS_THE_REGISTRY, PRIMESPARK_HOME=str(state)) == []
    # It was asked, and would have left its id.
    assert (state / "mlflow" / "mlflow.db").is_file()
    left = left_in_home(home, ASKS_THE_REGISTRY, PRIMESPARK_HOME=str(state), MLFLOW_DISABLE_TELEMETRY="false")
    assert "telemetry.json" in left
