"""What libhailort and the chip do: one thread computes for all models, each model has one thread for callbacks."""

from __future__ import annotations

import fcntl
import os
import queue
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _machine
from ._network import Network, host_dtype, host_shape

TIMEOUT, INVALID_OPERATION, NOT_FOUND, STREAM_ABORT, QUEUE_IS_FULL = 4, 6, 61, 63, 82
OUT_OF_PHYSICAL_DEVICES, DEVICE_IN_USE, INVALID_DRIVER_VERSION = 74, 73, 76
_INPUTS, _OUTPUTS = 0, 1

Buffers = tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]


class Status(Exception):  # noqa: N818 (no error of ours)
    """A status of libhailort, before the binding makes an exception of it."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(eq=False)
class Job:
    """One call of `run_async`."""

    pipeline: Pipeline
    frames: list[Buffers]
    callback: Callable[[int], None] | None
    transferred: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)
    status: int = 0

    def wait(self, timeout_ms: float) -> None:
        """First for the transfers, then for the callback: at worst twice the timeout."""
        for event in (self.transferred, self.finished):
            if not event.wait(timeout_ms / 1000):
                raise Status(TIMEOUT)
        if self.status:
            raise Status(self.status)


class Chip:
    """An opened chip; holds the device file against other processes and against other groups."""

    _opened: dict[str, Chip] = {}  # noqa: RUF012 (one process, one table)
    _lock = threading.Lock()

    def __init__(self, group: str, file: Any) -> None:
        self.group = group
        self.users = 1
        self.broken = False
        self.pipelines: weakref.WeakSet[Pipeline] = weakref.WeakSet()
        self._file = file
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="chip")
        self._thread.start()

    @classmethod
    def open(cls, group: str, device_ids: list[str]) -> Chip:
        """The chip for a group; VDevices of one group other than UNIQUE share it within a process."""
        machine = _machine.MACHINE
        if machine.open_status:
            raise Status(machine.open_status)
        found = machine.device_ids()
        if any(one not in found for one in device_ids):
            raise Status(2)
        with cls._lock:
            shared = cls._opened.get(group)
            if shared is not None and group != "UNIQUE":
                shared.users += 1
                return shared
            if not found:
                raise Status(OUT_OF_PHYSICAL_DEVICES)
            if machine.driver_version() != machine.version:
                raise Status(INVALID_DRIVER_VERSION)
            dead = machine.dead_status()
            if dead:
                raise Status(dead)
            chip = cls(group, _claimed(machine, explicit=bool(device_ids)))
            cls._opened[group] = chip
            return chip

    def release(self) -> None:
        """Give back one use; the last one closes the device file."""
        with self._lock:
            self.users -= 1
            if self.users:
                return
            type(self)._opened = {key: chip for key, chip in self._opened.items() if chip is not self}
        for pipeline in list(self.pipelines):
            pipeline.shutdown()
        self._file.close()
        self._jobs.put(None)

    def submit(self, job: Job) -> None:
        """Queue a job of any model."""
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.pipeline.execute(job)


class Pipeline:
    """The inside of a configured model."""

    def __init__(self, chip: Chip, network: Network, types: dict[str, str]) -> None:
        self.queue_size = network.hef.queue_size
        self._chip = chip
        chip.pipelines.add(self)
        self._network = network
        self._types = types
        self._changed = threading.Condition()
        self._in_flight: list[Job] = []
        self._closed = not chip.users
        self._callbacks: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._callback_thread: threading.Thread | None = None
        self._held: list[Job] = []
        hef = network.hef
        self._expected = (
            {stream.name: _bytes(stream, types[stream.name]) for stream in hef.inputs},
            {stream.name: _bytes(stream, types[stream.name]) for stream in hef.outputs},
        )

    def wait_ready(self, timeout_ms: float, frames: int) -> None:
        """Return when so many frames can be pushed."""
        with self._changed:
            ready = self._changed.wait_for(
                lambda: self._closed or self._frames() + frames <= self.queue_size, timeout_ms / 1000
            )
            if self._closed:
                raise Status(STREAM_ABORT)
        if not ready:
            raise Status(TIMEOUT)
        if _machine.MACHINE.place_s:
            # One place is told to all who wait: the binding lets go of the interpreter here.
            threading.Event().wait(0.001)

    def run_async(self, frames: list[Buffers], callback: Callable[[int], None] | None) -> Job:
        """Start the frames; any failure shuts the model down."""
        if self._closed:
            raise Status(STREAM_ABORT)
        try:
            self._check(frames)
            machine = _machine.MACHINE
            if machine.submit_statuses and (status := machine.submit_statuses.popleft()):
                raise Status(status)
            job = Job(self, frames, callback)
            with self._changed:
                if self._frames() + len(frames) > self.queue_size:
                    raise Status(QUEUE_IS_FULL)
                self._in_flight.append(job)
        except Status:
            self.shutdown()
            raise
        self._chip.submit(job)
        return job

    def shutdown(self) -> None:
        """Abort what is in flight."""
        with self._changed:
            self._closed = True
            aborted = list(self._in_flight)
        for job in aborted:
            self._complete(job, STREAM_ABORT)

    def execute(self, job: Job) -> None:
        """Compute on the chip's thread: the inputs are read now, not at the call."""
        machine = _machine.MACHINE
        while not machine.running.wait(0.02):
            if self._closed:
                return
        if machine.delay_s:
            threading.Event().wait(machine.delay_s)
        dead = machine.dead_status()
        self._chip.broken = self._chip.broken or dead is not None
        status = (
            dead
            or (36 if self._chip.broken else 0)
            or (machine.completion_statuses.popleft() if machine.completion_statuses else 0)
        )
        started = time.thread_time()
        if not status:
            for inputs, outputs in job.frames:
                self._frame(inputs, outputs)
        machine.compute_s += time.thread_time() - started
        self._complete(job, status)
        if status:
            self.shutdown()

    def _frame(self, inputs: dict[str, NDArray[Any]], outputs: dict[str, NDArray[Any]]) -> None:
        hef = self._network.hef
        given = {
            stream.name: _view(inputs[stream.name], host_dtype(stream, self._types[stream.name])).reshape(stream.shape)
            for stream in hef.inputs
        }
        for name, value in self._network.compute(given, self._types).items():
            raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            if not self._closed:
                outputs[name].reshape(-1).view(np.uint8)[: raw.size] = raw

    def _check(self, frames: list[Buffers]) -> None:
        for buffers in frames:
            for side in (_INPUTS, _OUTPUTS):
                for name, expected in self._expected[side].items():
                    if name not in buffers[side]:
                        raise Status(NOT_FOUND)
                    if buffers[side][name].nbytes != expected:
                        raise Status(INVALID_OPERATION)

    def _frames(self) -> int:
        return sum(len(job.frames) for job in self._in_flight)

    def _complete(self, job: Job, status: int) -> None:
        with self._changed:
            if job.transferred.is_set():
                return
            job.status = status
            job.transferred.set()
            if self._callback_thread is None:
                self._callback_thread = threading.Thread(target=self._tell, daemon=True, name="callbacks")
                self._callback_thread.start()
            self._held.append(job)
            if len(self._held) >= _machine.MACHINE.reorder or self._closed:
                for one in reversed(self._held):
                    self._callbacks.put(one)
                self._held = []

    def _tell(self) -> None:
        while True:
            try:
                job = self._callbacks.get(timeout=0.5)
            except queue.Empty:
                if self._closed:
                    return
                continue
            try:
                if job.callback is not None:
                    job.callback(job.status)
            except BaseException:  # noqa: BLE001
                # In C++ it escapes a std::thread.
                traceback.print_exc()
                os.abort()
            # Only now is its place in the queue free.
            if _machine.MACHINE.place_s:
                threading.Event().wait(_machine.MACHINE.place_s)
            with self._changed:
                self._in_flight.remove(job)
                self._changed.notify_all()
            job.finished.set()


def _bytes(stream: Any, host_type: str) -> int:
    return int(np.prod(host_shape(stream))) * int(np.dtype(host_dtype(stream, host_type)).itemsize)


def _view(buffer: NDArray[Any], dtype: Any) -> NDArray[Any]:
    return buffer.reshape(-1).view(np.uint8).view(dtype)


def _claimed(machine: _machine.Machine, explicit: bool) -> Any:
    file = (machine.root / "dev/hailo0").open("rb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise Status(DEVICE_IN_USE if explicit else OUT_OF_PHYSICAL_DEVICES) from None
    return file
