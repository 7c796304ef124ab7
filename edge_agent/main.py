"""`primespark edge`: the device service, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from primespark.core.logging import configure_logging
from primespark.core.paths import home, private_directory
from primespark.core.settings import Settings
from primespark.errors import ConfigurationError, PrimeSparkError, UnavailableError

if TYPE_CHECKING:
    from primespark.inference.models import ServedModel


def run(settings: Settings) -> None:
    """Serve until a signal.

    Raises:
        ConfigurationError: The address is in use, or a file of the device is damaged, or cannot be used.
        UnavailableError: Another process runs this device.
    """
    configure_logging(settings.global_, "edge")
    folder = private_directory(home() / "edge" / settings.edge.device_id)
    try:
        with _only_one(folder):
            _serve(settings, folder)
    except OSError as error:
        raise ConfigurationError(
            f"cannot use {error.filename or folder}: {error.strerror}",
            remedy="check what lies there, its owner and mode, and the free space of the disk",
        ) from error


def _serve(settings: Settings, folder: Path) -> None:
    # The detector loads beside the imports of everything else: the first result waits for the longer of the two.
    detector = _load_detector(settings)
    from edge_agent.agent import serve_device

    try:
        asyncio.run(serve_device(settings, folder, detector))
    except ExceptionGroup as group:
        raise _first_of_ours(group) from group
    _leave_what_hangs()


def _leave_what_hangs() -> None:
    """End the process here if a thread in ONNX Runtime never will; all state is on the disk by now."""
    from edge_agent.slots.candidate import is_any_abandoned

    if is_any_abandoned():
        logging.shutdown()
        os._exit(0)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    with (folder / "agent.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UnavailableError(
                f"another process runs the device of {folder}",
                remedy="stop it, or choose another edge.device_id",
                code="device_in_use",
            ) from None
        yield


def _load_detector(settings: Settings) -> Future[ServedModel | None]:
    """The detector for the cameras and to stand by; where neither is, none: it is loaded when it is first asked for."""
    loading: Future[ServedModel | None] = Future()
    if not settings.looks and settings.edge.inference.accelerator.detector is None:
        loading.set_result(None)
        return loading

    def load() -> None:
        try:
            from edge_agent.bundled_models import batching_of
            from primespark.inference.models import DETECTOR, load_bundled

            limits = settings.edge.inference
            loading.set_result(load_bundled(DETECTOR, limits.threads, limits.minimum_score, batching_of(limits)))
        except Exception as error:  # noqa: BLE001 (handed to whoever waits for the detector)
            loading.set_exception(error)

    # No daemon: an interpreter that ends under a thread which loads a native library aborts (SIGABRT).
    threading.Thread(target=load, name="detector").start()
    return loading


def _first_of_ours(group: ExceptionGroup[Exception]) -> Exception:
    """What a person is told: the first error of our tree, else all of it."""
    found: Exception | None = group.subgroup(PrimeSparkError)
    while isinstance(found, ExceptionGroup):
        found = found.exceptions[0]
    return found or group
