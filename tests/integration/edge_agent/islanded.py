"""A device in a network namespace of its own, with nothing but loopback, and a clock that is wrong.

Run as `unshare --map-root-user --net --mount python -m tests.integration.edge_agent.islanded HOME CLOCK`, CLOCK as
`faketime` takes it. Prints what the device said, as JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2

from primespark.core.paths import private_directory
from primespark.inference.samples import sample_images
from tests.helpers import wait_until
from tests.integration.edge_agent.gate import TOKEN
from tests.integration.edge_agent.test_process import environment

# Names are resolved nowhere, and no address but loopback can be reached.
CLOUD_URL = "https://cloud.prime-spark.example"
_PORT = 8000
_TELEMETRY_ROWS = 3
_SIOCSIFFLAGS, _UP_AND_RUNNING = 0x8914, 0x1 | 0x40
# `select` and asyncio's timers count by the monotonic clock, which no wrong wall clock changes.
_WALL_CLOCK_ONLY = {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}


def main(home: Path, clock: str) -> dict[str, Any]:
    """Start the device, ask it, stop it."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _UP_AND_RUNNING))
    # faketime shares its time there under its process id, fails where a killed one left it, and is killed here.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
    settings = {
        "PRIMESPARK_NETWORK__CLOUD_URL": CLOUD_URL,
        "PRIMESPARK_EDGE__TELEMETRY__INTERVAL_S": "0.2",
        **_WALL_CLOCK_ONLY,
    }
    folder = private_directory(home / "edge" / "edge-1")
    (folder / "enrolment.token").write_text(TOKEN)
    with (home / "edge.log").open("ab") as log_file:
        process = subprocess.Popen(
            ["faketime", "-f", clock, sys.executable, "-m", "primespark.cli.main", "edge"],
            env=environment(home, _PORT, **settings),
            stderr=log_file,
            # faketime waits for the device: a signal is for both.
            start_new_session=True,
        )
        try:
            return {**_ask(folder), "doctor": _diagnose(home, clock, settings)}
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def _ask(folder: Path) -> dict[str, Any]:
    url = f"http://127.0.0.1:{_PORT}"
    wait_until(lambda: _is_ready(url), 60)
    key = (folder / "local.key").read_text()
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:

        def get(path: str) -> Any:
            return client.get(path).raise_for_status().json()

        def status() -> dict[str, Any]:
            found: dict[str, Any] = get("/api/v1/offline/status")
            return found

        seen = client.post(
            "/api/v1/inference", content=dict(sample_images())["coffee.png"], headers={"Content-Type": "image/png"}
        )
        wait_until(lambda: status()["streams"].get("telemetry", {}).get("pending", 0) >= _TELEMETRY_ROWS, 30)
        wait_until(lambda: get("/api/v1/sync/status")["code"], 30)
        return {
            "labels": [one["label"] for one in seen.raise_for_status().json()["predictions"]],
            "sync": get("/api/v1/sync/status"),
            "health": get("/health"),
            "waiting": get("/api/v1/offline/queue?limit=1000")["items"],
            "offline": status(),
        }


def _diagnose(home: Path, clock: str, settings: dict[str, str]) -> dict[str, Any]:
    """What `primespark doctor` finds here, by name."""
    finished = subprocess.run(
        ["faketime", "-f", clock, sys.executable, "-m", "primespark.cli.main", "doctor", "--json"],
        env=environment(home, _PORT, **settings), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return {check["name"]: check for check in json.loads(finished.stdout)["checks"]}


def _is_ready(url: str) -> bool:
    try:
        return bool(httpx2.get(f"{url}/readyz", timeout=5).is_success)
    except httpx2.HTTPError:
        return False


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
