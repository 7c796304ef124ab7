"""The command: help in time, one line of cause and one of remedy."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from primespark.cli import doctor


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "primespark.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PRIMESPARK_HOME": str(cwd / "home"), **environment},
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "command",
    [
        (), ("up",), ("demo",), ("edge",), ("cloud",), ("streams",), ("doctor",), ("device",), ("device", "token"),
        ("device", "list"), ("device", "command"), ("device", "forget"), ("device", "rotate"), ("models",),
        ("models", "list"), ("models", "fetch"), ("models", "publish"), ("models", "withdraw"), ("models", "deployed"),
        ("config",), ("config", "show"), ("config", "check"),
    ],
)  # fmt: skip
def test_every_command_answers_help(command: tuple[str, ...], tmp_path: Path) -> None:
    answer = run(*command, "--help", cwd=tmp_path)
    assert answer.returncode == 0
    assert "Usage:" in answer.stdout


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; import primespark.cli.main; "
        "print([m for m in ('fastapi','sqlalchemy','numpy','pydantic','dagster','mlflow') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("nothing",), 2, "No such command"),
        (("device", "token", "--uses", "0"), 2, "--uses"),
        (("device", "token", "--ttl", "soon"), 1, "not a duration"),
        (("device", "list"), 1, "cloud.store.url is not set"),
        (("models", "fetch", "gpt"), 1, "no model 'gpt'"),
        (("models", "publish", "setup.onnx", "--name", "x", "--type", "audio"), 2, "does not exist"),
        (("models", "deployed"), 1, "cloud.store.url is not set"),
        (("--config", "absent.yaml", "config", "check"), 1, "No such file"),
    ],
)
def test_failures_are_told_in_one_line(arguments: tuple[str, ...], status: int, words: str, tmp_path: Path) -> None:
    answer = run(*arguments, cwd=tmp_path)
    assert answer.returncode == status
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr
    if status == 1:
        cause, remedy = answer.stderr.strip().splitlines()
        assert cause.startswith("error: ")
        assert remedy.startswith("  try: ")


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (("device", "list"), {"PRIMESPARK_CLOUD__STORE__URL": "postgresql://u:p@127.0.0.1:1/x"}, "does not answer"),
        (("device", "list"), {"PRIMESPARK_CLOUD__STORE__URL": "postgresql://u:p@127.0.0.1:abc/x"}, "cannot be read"),
        (("doctor",), {"PRIMESPARK_HOME": "/dev/null"}, "cannot use /dev/null as the state directory"),
        (("config", "check"), {"PRIMESPARK_NETWORK__CLOUD_URL": "cloud:8080"}, "http://HOST:PORT"),
        (("config", "check"), {"PRIMESPARK_NETWORK__CLOUD_URL": "http://x:99999"}, "network.cloud_url"),
        (("config", "check"), {"PRIMESPARK_EDGE__CAPTURE__SOURCES": "[" * 20_000}, "edge.capture.sources"),
        (("config", "check"), {"PRIMESPARK_EDGE__CAPTURE__SOURCES": "{[a]: b}"}, "edge.capture.sources"),
        (("config", "check"), {"PRIMESPARK_EDGE__INFERENCE__THREADS": "1000000"}, "edge.inference.threads"),
        (("demo", "--images", "/nope"), {}, "'/nope' does not exist"),
    ],
)
def test_wrong_surroundings_are_told_in_one_line(
    arguments: tuple[str, ...], environment: dict[str, str], words: str, tmp_path: Path
) -> None:
    answer = run(*arguments, cwd=tmp_path, **environment)
    assert answer.returncode in (1, 2)
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr
    assert "report it" not in answer.stderr


def test_a_bundled_model_needs_no_fetching(tmp_path: Path) -> None:
    answer = run("models", "fetch", "coco-ssd", cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (0, "coco-ssd is bundled: it is here already\n")


def test_extras_that_are_named_as_a_remedy_exist() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert doctor._PACKAGES.keys() <= project["optional-dependencies"].keys()


def test_remedies_keep_the_brackets_of_extras() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(doctor._table([doctor.Check("x", doctor.State.ABSENT, "[a]", "pip install 'primespark[edge-cv]'")]))
    assert "primespark[edge-cv]" in console.export_text()


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "sqlalchemy.py").write_text("raise ModuleNotFoundError('no', name='sqlalchemy')")
    answer = run("device", "list", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert answer.stderr.splitlines()[0] == "error: the Python package sqlalchemy is not installed"


def test_a_traceback_is_shown_on_request(tmp_path: Path) -> None:
    assert "Traceback" in run("-v", "--config", "absent.yaml", "config", "check", cwd=tmp_path).stderr


def test_secrets_are_masked(tmp_path: Path) -> None:
    url = "postgresql://someone:planted-password@localhost/db"
    environment = {
        "PRIMESPARK_CLOUD__STORE__URL": url,
        "PRIMESPARK_CLOUD__LEARNING__TRACKING_URI": "https://someone:planted-password@mlflow/x",
        "PRIMESPARK_NETWORK__CLOUD_URL": "http://someone:planted-password@cloud",
    }
    answer = run("config", "show", cwd=tmp_path, **environment)
    assert answer.returncode == 0
    assert "planted-password" not in answer.stdout + answer.stderr
