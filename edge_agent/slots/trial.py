"""A version is tried in a process of its own before it comes near the one that serves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil

from primespark.core.manifests import Manifest
from primespark.core.settings import InferenceSettings
from primespark.core.slot_settings import TrialSettings
from primespark.errors import IntegrityError, UnavailableError

_WATCH_S = 0.01
_MAX_ANSWER_BYTES = 64 * 1024
_MAX_MESSAGE = 300
# Libraries reserve address space that they never touch; this bound only ends what would reserve without one.
_SPARE_ADDRESS_SPACE_BYTES = 4 * 1024**3
_SPARE_CPU_S = 10
# The child's faults that are of the file or its manifest; any other word of it means that it went astray.
_FAULTS = frozenset(
    {
        "bad_model", "bad_manifest", "external_data", "wrong_artifact", "golden_mismatch", "wrong_shape",
        "model_too_large", "model_crashed", "inference_failed", "wrong_model_input", "undecodable_image",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trial:
    """What a version showed in its trial: seconds to load it and to answer once, most resident memory."""

    load_s: float
    run_s: float
    peak_bytes: int


async def try_version(manifest: Manifest, file: Path, inference: InferenceSettings, limits: TrialSettings) -> Trial:
    """Load and run a version's file in a child process, which is gone when this returns or is cancelled.

    Args:
        manifest: Verified by the caller.
        file: One of its variants.
        inference: How it would be served.
        limits: Of memory and time.

    Raises:
        IntegrityError: Code `model_too_large`, `model_too_slow`, `model_crashed`, `golden_mismatch`, `wrong_shape`, or
            what `load_model` says of the file.
        UnavailableError: The process could not be started.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "edge_agent.slots.trial_child",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            limit=_MAX_ANSWER_BYTES, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise UnavailableError(f"no process for the trial: {error.strerror}", remedy="free memory") from None
    try:
        return await _ask(process, _task(manifest, file, inference, limits), limits)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _task(manifest: Manifest, file: Path, inference: InferenceSettings, limits: TrialSettings) -> dict[str, Any]:
    return {
        "parent": os.getpid(), "file": str(file.absolute()), "manifest": manifest.model_dump_json(),
        "threads": inference.threads, "minimum_score": inference.minimum_score,
        "max_image_pixels": inference.max_image_pixels,
        "limits": {
            "cpu_s": math.ceil(limits.timeout_s * inference.threads) + _SPARE_CPU_S,
            "address_space_bytes": limits.max_memory_bytes + _SPARE_ADDRESS_SPACE_BYTES,
        },
    }  # fmt: skip


async def _ask(process: asyncio.subprocess.Process, task: dict[str, Any], limits: TrialSettings) -> Trial:
    stdin, stdout = cast("asyncio.StreamWriter", process.stdin), cast("asyncio.StreamReader", process.stdout)
    stdin.write(json.dumps(task).encode() + b"\n")
    watching = asyncio.create_task(_watch(process.pid, limits.max_memory_bytes))
    reading = asyncio.create_task(stdout.readline())
    try:
        await asyncio.wait({watching, reading}, timeout=limits.timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if watching.done() and watching.result():
            raise _too_large(limits)
        if not reading.done():
            raise IntegrityError(
                f"the model did not load and answer within {limits.timeout_s:g} s",
                remedy="publish a smaller one, or raise edge.models.trial.timeout_s",
                code="model_too_slow",
            )
        trial = _parse(_line(reading))
    finally:
        for task_ in (watching, reading):
            task_.cancel()
        await asyncio.gather(watching, reading, return_exceptions=True)
    # A peak between two looks is told by the child itself.
    if trial.peak_bytes > limits.max_memory_bytes:
        raise _too_large(limits)
    return trial


async def _watch(process_id: int, max_bytes: int) -> bool:
    """True as soon as a process has more resident memory; never returns while it has not, or once it is gone."""
    try:
        process = psutil.Process(process_id)
        while process.memory_info().rss <= max_bytes:  # noqa: ASYNC110 (another process tells nobody)
            await asyncio.sleep(_WATCH_S)
    except psutil.Error:
        await asyncio.Event().wait()
    return True


def _line(reading: asyncio.Task[bytes]) -> bytes:
    try:
        return reading.result()
    except (ValueError, OSError):  # longer than any answer, or a broken pipe
        return b""


def _parse(line: bytes) -> Trial:
    """What a child said; it ran a file of strangers, so none of it is taken at its word."""
    try:
        message = json.loads(line)
        if "fault" in message:
            raise _refusal(message["fault"], message["message"])
        trial = Trial(float(message["load_s"]), float(message["run_s"]), int(message["peak_bytes"]))
    except (ValueError, TypeError, LookupError, OverflowError):
        raise _refusal("model_crashed", "its trial ended without an answer") from None
    return trial


def _refusal(fault: object, message: object) -> IntegrityError:
    code = fault if isinstance(fault, str) and fault in _FAULTS else "model_crashed"
    return IntegrityError(f"in its trial: {message}"[:_MAX_MESSAGE], code=code)


def _too_large(limits: TrialSettings) -> IntegrityError:
    return IntegrityError(
        f"the model takes more than {limits.max_memory_bytes} bytes of memory",
        remedy="publish a smaller one, or raise edge.models.trial.max_memory_bytes",
        code="model_too_large",
    )
