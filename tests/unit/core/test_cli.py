"""The command: help in time, one line of cause and one of remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


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
        ("device", "list"), ("device", "forget"), ("device", "rotate"), ("models",), ("models", "list"),
        ("models", "fetch"), ("config",), ("config", "show"), ("config", "check"),
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


def test_a_traceback_is_shown_on_request(tmp_path: Path) -> None:
    assert "Traceback" in run("-v", "--config", "absent.yaml", "config", "check", cwd=tmp_path).stderr


def test_secrets_are_masked(tmp_path: Path) -> None:
    url = "postgresql://someone:planted-password@localhost/db"
    answer = run("config", "show", cwd=tmp_path, PRIMESPARK_CLOUD__STORE__URL=url)
    assert answer.returncode == 0
    assert "planted-password" not in answer.stdout + answer.stderr
