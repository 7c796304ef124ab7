"""The process in which a version is tried: `python -m edge_agent.slots.trial_child`, started by `trial.py`.

It loads the file, compares the graph with the manifest, asks the golden input and measures. A file that crashes, hangs
or bloats ONNX Runtime does so here. Whoever started it watches its memory and its time, and kills it.

    stdin   a JSON line `{parent, file, manifest, threads, minimum_score, max_image_pixels, limits}`
    stdout  a JSON line: `{"load_s", "run_s", "peak_bytes"}`, or `{"fault", "message"}`
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_LEAST_RUNS, _MOST_RUNS = 3, 20
_MEASURE_S = 0.1
_OPEN_FILES = 256


def main() -> NoReturn:
    """Try one file, say what came of it, end."""
    # What libraries print goes where their errors go, so that the answer stands alone.
    answers = os.dup(1)
    os.dup2(2, 1)
    task = json.loads(sys.stdin.buffer.readline())
    _bind(task["parent"], task["limits"])
    try:
        answer = _try(task)
    except MemoryError:
        answer = {"fault": "model_too_large", "message": "it asked for more memory than there is for it"}
    # Whatever a strange file makes a library raise is the file's fault, and told.
    except Exception as error:  # noqa: BLE001
        answer = {"fault": getattr(error, "code", "model_crashed"), "message": f"{type(error).__name__}: {error}"}
        if "alloc" in answer["message"]:
            answer["fault"] = "model_too_large"
    os.write(answers, json.dumps({name: value for name, value in answer.items() if value is not None}).encode() + b"\n")
    # Threads of native libraries need not end; nothing here is left to be saved.
    os._exit(0)


def _bind(parent: int, limits: dict[str, int]) -> None:
    """Die with the parent, write no file, and take no more than was given."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)
    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_AS, limits["address_space_bytes"]),
    ):
        _, hard = resource.getrlimit(kind)
        highest = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (highest, highest))


def _try(task: dict[str, Any]) -> dict[str, Any]:
    from edge_agent.slots.golden import check_forms, check_golden, golden_array
    from primespark.core.manifests import Manifest
    from primespark.inference.models import load_model

    manifest = Manifest.model_validate_json(task["manifest"])
    started = time.perf_counter()
    model = load_model(manifest, Path(task["file"]).read_bytes(), task["threads"], task["minimum_score"])
    loaded_s = time.perf_counter() - started
    check_forms(manifest, model.engine)
    given = golden_array(manifest, model, task["max_image_pixels"])
    check_golden(manifest.golden, model, given)
    seconds: list[float] = []
    while len(seconds) < _LEAST_RUNS or (len(seconds) < _MOST_RUNS and sum(seconds) < _MEASURE_S):
        began = time.perf_counter()
        model.predict(given)
        seconds.append(time.perf_counter() - began)
    return {"load_s": loaded_s, "run_s": median(seconds), "peak_bytes": _peak_bytes()}


def _peak_bytes() -> int:
    # Not `ru_maxrss`, which begins with what the parent had.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
