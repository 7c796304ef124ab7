"""Starts services in order of need, notices their deaths, starts them again, and takes them all along when it ends.

Written by hand because the kept supervisors know neither readiness by a real connection, nor order, nor survive their
own SIGKILL without leaving orphans (honcho 2.0, supervisor 4.3, circus 0.19).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from primespark.core.logging import get_logger
from primespark.core.paths import private_directory
from primespark.errors import PrimeSparkError, UnavailableError

log = get_logger(__name__)

_PR_SET_PDEATHSIG = 1
_PROBE_INTERVAL_S = 0.05
_STOP_TIMEOUT_S = 8.0
_RESTART_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
# A service that ran this long starts again without the pauses of its earlier deaths.
_STABLE_AFTER_S = 60.0
# A service that dies this often before it was ever ready will not get better by itself.
_MAX_FALSE_STARTS = 3
_MAX_LOG_BYTES = 5_000_000
# Loaded before any fork: between fork and exec only async-signal-safe work is allowed.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class State(StrEnum):
    """Where a service stands."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"
    FAILED = "failed"


async def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Service:
    """One process to keep running.

    Attributes:
        name: Unique among the services.
        command: Program and arguments; secrets go into files.
        is_ready: Whether it serves, found out by a real connection.
        needs: Services that must be ready first.
        environment: Added to the supervisor's environment.
        prepare: Run before each start, after what it needs is ready.
        after_ready: Run once, before the services that need this one start.
        after_stop_signal: Run when it was asked to end, so that nothing keeps it.
        stop_signal: Asks it to end.
        start_timeout_s: Time from start to ready.
    """

    name: str
    command: tuple[str, ...]
    is_ready: Callable[[], Awaitable[bool]]
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], Awaitable[None]] = _nothing
    after_ready: Callable[[], Awaitable[None]] = _nothing
    after_stop_signal: Callable[[], Awaitable[None]] = _nothing
    stop_signal: signal.Signals = signal.SIGTERM
    start_timeout_s: float = 60.0


class _Entry:
    """A service and its present process."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.state = State.WAITING
        self.ready = asyncio.Event()
        self.process: asyncio.subprocess.Process | None = None
        self.restarts = 0
        self.started = 0.0
        self.prepared_once = False
        self.failure: UnavailableError | None = None
        self.keeper: asyncio.Task[None] | None = None


class Supervisor:
    """Keeps services running; create and use it on the main thread of its process.

    Args:
        log_folder: One file per service is written here; None: services write where the supervisor does.
        on_change: Called with name and state at every change.
    """

    def __init__(self, log_folder: Path | None, on_change: Callable[[str, State], None] | None = None) -> None:
        self._log_folder = None if log_folder is None else private_directory(log_folder)
        self._on_change = on_change or (lambda _name, _state: None)
        self._entries: dict[str, _Entry] = {}
        self._stopping = False

    def states(self) -> dict[str, State]:
        """State by service."""
        return {name: entry.state for name, entry in self._entries.items()}

    def process_ids(self) -> dict[str, int]:
        """Process id by service that runs."""
        return {name: entry.process.pid for name, entry in self._entries.items() if entry.process is not None}

    async def start(self, services: list[Service]) -> None:
        """Start all; return when all are ready.

        Raises:
            UnavailableError: One did not become ready; the message names it and its log.
        """
        self.launch(services)
        await self.wait_ready()

    def launch(self, services: list[Service]) -> None:
        """Begin to start all."""
        for service in services:
            self._entries[service.name] = _Entry(service)
        for entry in self._entries.values():
            if entry.keeper is None:
                entry.keeper = asyncio.create_task(self._keep(entry), name=f"keep-{entry.service.name}")

    async def wait_ready(self) -> None:
        """Wait until every service is ready."""
        for entry in self._entries.values():
            await entry.ready.wait()
            if entry.failure is not None:
                raise entry.failure

    async def wait_ready_of(self, name: str) -> None:
        """Wait until one service is ready."""
        entry = self._entries[name]
        await entry.ready.wait()
        if entry.failure is not None:
            raise entry.failure

    async def stop(self) -> None:
        """Stop all, those first which nothing running needs."""
        self._stopping = True
        remaining = set(self._entries)
        while remaining:
            needed = {need for name in remaining for need in self._entries[name].service.needs}
            wave = remaining - needed or remaining
            await asyncio.gather(*(self._end(self._entries[name]) for name in wave))
            remaining -= wave

    async def _keep(self, entry: _Entry) -> None:
        service = entry.service
        try:
            for need in service.needs:
                if need in self._entries:
                    await self.wait_ready_of(need)
            while True:
                try:
                    await self._run_once(entry)
                except Exception as error:
                    # What was ready once is started again for ever: its trouble may pass, as that of what it needs.
                    if not entry.ready.is_set():
                        raise
                    is_known = isinstance(error, PrimeSparkError | OSError)
                    log.warning("service_did_not_start", name=service.name, cause=str(error), exc_info=not is_known)
                if self._is_stopping():
                    return
                self._change(entry, State.RESTARTING)
                if time.monotonic() - entry.started > _STABLE_AFTER_S:
                    entry.restarts = 0
                pause = _RESTART_BACKOFF_S[min(entry.restarts, len(_RESTART_BACKOFF_S) - 1)]
                entry.restarts += 1
                if not entry.ready.is_set() and entry.restarts >= _MAX_FALSE_STARTS:
                    raise UnavailableError(f"{service.name} ended {entry.restarts} times before it was ready")
                await asyncio.sleep(pause)
        # Whatever it is, those who wait for the service are told.
        except Exception as error:  # noqa: BLE001
            self._fail(entry, error)

    async def _run_once(self, entry: _Entry) -> None:
        """Start the process, see it ready, wait for its end."""
        service = entry.service
        await service.prepare()
        entry.process = await self._spawn(service)
        self._change(entry, State.STARTING)
        ended = asyncio.create_task(entry.process.wait())
        entry.started = time.monotonic()
        try:
            while not ended.done() and not self._stopping:
                if await service.is_ready():
                    await self._became_ready(entry)
                    break
                if time.monotonic() - entry.started > service.start_timeout_s:
                    raise UnavailableError(f"{service.name} was not ready after {service.start_timeout_s:.0f} s")
                await asyncio.wait({ended}, timeout=_PROBE_INTERVAL_S)
            status = await ended
            if not self._stopping:
                log.warning(
                    "service_ended", name=service.name, status=status, last_words=_last_words(self._log_of(service))
                )
        finally:
            ended.cancel()
            _kill_group(entry.process.pid)

    async def _became_ready(self, entry: _Entry) -> None:
        if not entry.prepared_once:
            await entry.service.after_ready()
            entry.prepared_once = True
        self._change(entry, State.READY)
        entry.ready.set()

    async def _spawn(self, service: Service) -> asyncio.subprocess.Process:
        environment = {**os.environ, **service.environment}
        # Without bytecode every start of a Python process takes twice the time.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        with self._output(service) as output:
            return await asyncio.create_subprocess_exec(
                *service.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
                preexec_fn=dies_with_parent(os.getpid(), service.stop_signal),
            )

    async def _end(self, entry: _Entry) -> None:
        process = entry.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(entry.service.stop_signal)
            await entry.service.after_stop_signal()
            try:
                await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
            except TimeoutError:
                log.warning("service_killed", name=entry.service.name, after_s=_STOP_TIMEOUT_S)
                _kill_group(process.pid)
                await process.wait()
        # The keeper ends what is left of the process group; here its id might already be someone else's.
        if entry.keeper is not None:
            entry.keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await entry.keeper
        self._change(entry, State.STOPPED)

    def _is_stopping(self) -> bool:
        return self._stopping

    def _fail(self, entry: _Entry, error: Exception) -> None:
        path = self._log_of(entry.service)
        cause = str(error) if isinstance(error, PrimeSparkError | OSError) else f"{type(error).__name__}: {error}"
        words = f"; its last words: {_last_words(path)}" if entry.process is not None and path else ""
        remedy = getattr(error, "remedy", "") or (f"read {path}" if path else "read what it wrote")
        entry.failure = UnavailableError(f"{entry.service.name} did not start: {cause}{words}", remedy=remedy)
        self._change(entry, State.FAILED)
        entry.ready.set()

    def _log_of(self, service: Service) -> Path | None:
        return None if self._log_folder is None else self._log_folder / f"{service.name}.log"

    def _output(self, service: Service) -> contextlib.AbstractContextManager[BinaryIO | None]:
        """The service's file, the full one put aside; None: where the supervisor writes."""
        path = self._log_of(service)
        if path is None:
            return contextlib.nullcontext()
        if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return path.open("ab")

    def _change(self, entry: _Entry, state: State) -> None:
        entry.state = state
        self._on_change(entry.service.name, state)


def dies_with_parent(parent: int, number: signal.Signals) -> Callable[[], None]:
    """What a child does before exec: ask for a signal at its parent's death, and take signals as usual.

    A process started from a background shell inherits SIGINT ignored, and Dagster copies that onto SIGTERM.
    """

    def in_child() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, int(number))
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getppid() != parent:
            os._exit(1)

    return in_child


def _kill_group(process_id: int) -> None:
    """End what a child left behind in its own process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process_id, signal.SIGKILL)


def _last_words(path: Path | None) -> str:
    """What a service said last: the cause its failure was told with, else its last line."""
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return "none"
    causes = [line.removeprefix("error: ") for line in lines[-3:] if line.startswith("error: ")]
    return (causes or lines or ["none"])[-1][:300]
