"""Nothing is told to the maker of a library: ONNX Runtime leaves no id and no record of what it ran."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RUNS_A_MODEL = """
from primespark.inference.models import DETECTOR, load_bundled
load_bundled(DETECTOR, 1, 0.4)
"""


def left_in_home(home: Path, code: str, **environment: str) -> list[str]:
    """Names of the files that the code leaves at home; it has no network."""
    left_out = ("ORT_DISABLE_TELEMETRY", "HOME", "XDG_CACHE_HOME")
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    subprocess.run(
        ["unshare", "--map-root-user", "--net", sys.executable, "-c", code],
        env={**inherited, "HOME": str(home), **environment},
        check=True,
        timeout=120,
    )
    return [path.name for path in home.rglob("*") if path.is_file()]


def test_a_model_that_runs_leaves_nothing_at_home(tmp_path: Path) -> None:
    assert left_in_home(tmp_path, RUNS_A_MODEL) == []


def test_who_wants_it_may_have_it(tmp_path: Path) -> None:
    # That this leaves something shows that the other test would see it.
    assert "deviceid" in left_in_home(tmp_path, RUNS_A_MODEL, ORT_DISABLE_TELEMETRY="0")
