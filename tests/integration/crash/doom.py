"""Processes that kill themselves at a point of their work, and how a test has them do it."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.helpers import wait_until

REACHED = "reached"
LIMIT_S = 60.0
# Forked of one that has imported the programs: each would need seconds for that.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        "edge_agent.agent",
        "primespark.cloud.main",
        "tests.integration.crash.doomed_agent",
        "tests.integration.crash.doomed_cloud",
    ]
)


class Doom:
    """Counts how often a point is come by, and ends the process there.

    Args:
        point: Where.
        times: How often it is come by, the last time included.
        notes: A file for lines that outlive the kill; the last says that the point was reached.
    """

    def __init__(self, point: StrEnum, times: int, notes: Path) -> None:
        self._point, self._times = point, times
        self._notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, *entry: Any) -> None:
        """Keep a line."""
        os.write(self._notes, json.dumps(entry).encode() + b"\n")

    def pass_by(self, *points: StrEnum) -> None:
        """Die if it is one of these, for the last of the times."""
        if self._point in points:
            self._times -= 1
            if self._times == 0:
                self.note(REACHED)
                os.kill(os.getpid(), signal.SIGKILL)


def read_notes(notes: Path) -> list[list[Any]]:
    """All lines noted."""
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


class Program:
    """A command of ours in a process of its own.

    Args:
        command: As `edge`.
        environment: All of its variables.
        log: Where it logs.
        prepare: Called in the process before.
    """

    def __init__(
        self, command: str, environment: dict[str, str], log: Path, prepare: Callable[[], None] | None = None
    ) -> None:
        self._log = log
        self._process = _PROCESSES.Process(target=_run, args=(command, environment, log, prepare))
        self._process.start()

    def killed(self) -> None:
        """Wait for the process to die by SIGKILL."""
        self._process.join(LIMIT_S)
        code = self._process.exitcode
        self.kill()
        assert code == -signal.SIGKILL, f"ended with {code}\n{self._log.read_text()[-2000:]}"

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self._process.join()

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Wait until it is ready."""
        wait_until(lambda: not self._process.is_alive() or is_ready(), LIMIT_S)
        assert self._process.is_alive(), self._log.read_text()[-2000:]


def _run(command: str, environment: dict[str, str], log: Path, prepare: Callable[[], None] | None) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    if prepare is not None:
        prepare()
    sys.argv = ["primespark", command]
    runpy.run_module("primespark.cli.main", run_name="__main__")
