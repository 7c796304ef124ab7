"""How long the embedded PostgreSQL takes until it answers, against the bare programs of the same build.

Cold: no data yet, so both run `initdb`. Warm: it was shut down in order. Killed: with SIGKILL while it wrote, and its
lock file then names a process that lives and is none of PostgreSQL's. Bare is `pg_ctl start`, which waits too, with the
same settings; what it does about such a lock is refuse, so after the kill there is the goal alone. In turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2

from benchmarks.processes import process, wait
from benchmarks.result import Result
from primespark.embedded.ports import choose_port
from primespark.embedded.postgres import SETTINGS, USER, EmbeddedPostgres, as_unprivileged, binary
from primespark.embedded.supervisor import Supervisor

ROUNDS = 5
_LONGEST_S = {"cold": 1.0, "warm": 0.5, "killed": 3.0}
_MOST_OF_BARE = {"cold": 1.25, "warm": 1.5}
_WRITE = "CREATE TABLE written AS SELECT number FROM generate_series(1, 200000) AS number"


def run() -> Iterator[Result]:
    """Seconds from nothing to an answer."""
    ours: dict[str, list[float]] = {"cold": [], "warm": [], "killed": []}
    bare: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(ROUNDS):
        with (
            tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder,
            tempfile.TemporaryDirectory(prefix="ps-pg-") as sockets,
        ):
            for kind, taken_s in asyncio.run(_measure_ours(Path(folder), Path(sockets))).items():
                ours[kind].append(taken_s)
            for kind, taken_s in _measure_bare(Path(folder) / "bare", Path(sockets)).items():
                bare[kind].append(taken_s)
    for kind, most in _MOST_OF_BARE.items():
        yield _result(kind, "initdb and pg_ctl start" if kind == "cold" else "pg_ctl start",
                      statistics.median(ours[kind]), statistics.median(bare[kind]), most)  # fmt: skip
    for kind, longest_s in _LONGEST_S.items():
        yield _result(kind, f"the goal of {longest_s:g} s", statistics.median(ours[kind]), longest_s, 1.0)


def _result(kind: str, against: str, value: float, reference: float, most: float) -> Result:
    names = {"cold": "without data", "warm": "with data", "killed": "after kill -9, its lock naming a foreign process"}
    return Result(
        area="embedded", name=f"PostgreSQL answers, started {names[kind]}", value=value, unit="s", against=against,
        reference=reference, ratio=value / reference, goal=f"<= {most}", ok=value / reference <= most,
    )  # fmt: skip


async def _measure_ours(folder: Path, sockets: Path) -> dict[str, float]:
    server = EmbeddedPostgres(folder / "postgres", sockets, choose_port(0, set()))
    taken_s = {}
    for kind in _LONGEST_S:
        if kind == "killed":
            await asyncio.to_thread(_kill_while_it_writes, server, folder)
        supervisor = Supervisor(folder / "logs")
        started = time.perf_counter()
        await supervisor.start([server.service()])
        taken_s[kind] = time.perf_counter() - started
        await supervisor.stop()
    return taken_s


def _kill_while_it_writes(server: EmbeddedPostgres, folder: Path) -> None:
    """Run it without a supervisor, kill it within a transaction, and let its lock name this process."""
    with process(server.service().command, {}, folder / "killed.log", cwd="/") as victim:
        wait(lambda: asyncio.run(_is_ready(server)), folder / "killed.log")
        with contextlib.closing(psycopg2.connect(server.url.replace("+psycopg2", ""))) as connection:
            connection.cursor().execute(_WRITE)
            victim.kill()
            victim.wait()
    lock = folder / "postgres" / "data" / "postmaster.pid"
    _, *rest = lock.read_text().splitlines(keepends=True)
    lock.write_text(f"{os.getpid()}\n" + "".join(rest))


async def _is_ready(server: EmbeddedPostgres) -> bool:
    return await server.service().is_ready()


def _measure_bare(data: Path, sockets: Path) -> dict[str, float]:
    settings = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
    options = f"-p {choose_port(0, set())} -k {sockets} {settings}"
    started = time.perf_counter()
    _bare("initdb", "--pgdata", str(data), "--username", USER, "--auth", "trust", "--encoding", "UTF8",
          "--locale", "C.UTF-8")  # fmt: skip
    taken_s = {}
    for kind in ("cold", "warm"):
        _bare("pg_ctl", "-D", str(data), "-l", f"{data}.log", "-w", "-o", options, "start")
        taken_s[kind] = time.perf_counter() - started
        _bare("pg_ctl", "-D", str(data), "-w", "-m", "fast", "stop")
        started = time.perf_counter()
    return taken_s


def _bare(program: str, *arguments: str) -> None:
    command = [*as_unprivileged(), str(binary(program)), *arguments]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, cwd="/")
