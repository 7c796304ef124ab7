"""The registry on a real MLflow with SQLite."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from primespark.errors import UnavailableError
from primespark.ml.registry import Registry, prepare
from tests.helpers import wait_until

ROOT = Path(__file__).parents[3]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRIMESPARK_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_versions_are_found_by_the_digest_of_their_file(state: Path) -> None:
    registry = Registry()
    assert registry.champion() is None
    first = registry.register("a" * 64, b"first", {"accuracy": 0.8})
    second = registry.register("b" * 64, b"second", {"accuracy": 0.9})
    assert (first.version, second.version) == (1, 2)
    assert Registry().register("a" * 64, b"first", {"accuracy": 0.8}) == first
    assert registry.champion() is None, "registering puts nothing into service"
    registry.attach_manifest(1, "c" * 64, b"{}")
    registry.promote(1)
    champion = Registry().champion()
    assert champion is not None
    assert (champion.version, champion.artifact, champion.manifest) == (1, "a" * 64, "c" * 64)
    assert champion.registered_at == first.registered_at
    files = {path.name: path.read_bytes() for path in (state / "mlflow" / "artifacts").rglob("*") if path.is_file()}
    assert files["manifest.json"] == b"{}"
    assert sorted(path.name for path in state.parent.iterdir()) == ["home"], "nothing is left in the working directory"


def test_the_mark_changes_with_writes_only(state: Path) -> None:
    registry = Registry()
    assert registry.mark() == 0
    prepare()
    marks = [registry.mark()]
    prepare()
    registry.champion()
    assert registry.mark() == marks[0]
    registry.register("a" * 64, b"first", {})
    marks.append(registry.mark())
    registry.promote(1)
    marks.append(registry.mark())
    assert len(set(marks)) == 3
    assert Registry("http://127.0.0.1:9").mark() is None


def test_processes_that_make_the_schema_at_once_make_it_once(state: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", "from primespark.ml.registry import prepare; prepare()"],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    outcomes = [(process.communicate()[1], process.returncode) for process in processes]
    assert [code for _, code in outcomes] == [0, 0], outcomes
    assert Registry().register("a" * 64, b"first", {}).version == 1


def test_a_version_whose_making_was_killed_is_made_once(state: Path) -> None:
    """A real SIGKILL once the run of a file exists, and the version perhaps not yet."""
    program = "from primespark.ml.registry import Registry\nRegistry().register('a' * 64, b'first', {})\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    prepare()
    artifacts = state / "mlflow" / "artifacts"
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", program], env=environment)
        wait_until(lambda: list(artifacts.rglob("model.onnx")), timeout_s=60)
        process.kill()
        process.wait()
    made = Registry().register("a" * 64, b"first", {})
    assert made.version == 1
    assert Registry().register("b" * 64, b"second", {}).version == 2
    assert len(list(artifacts.rglob("model.onnx"))) == 2, "a run that was cut off is taken up again"


def test_a_server_that_does_not_answer_is_said_to(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UnavailableError) as raised:
        Registry("http://127.0.0.1:9").champion()
    assert raised.value.code == "registry_unavailable"
