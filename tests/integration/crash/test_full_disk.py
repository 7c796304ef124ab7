"""A disk that fills up: refused with its code, nothing torn, nothing dropped, and it goes on when there is space."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

STREAMS = ("alarm", "telemetry")


def seen(program: str, folder: Path, *scenario: str) -> dict[str, Any]:
    """What a device or a cloud saw on a small disk."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare (Debian: util-linux)")
    own = ["unshare", "--map-root-user", "--mount"]
    command = [*own, sys.executable, "-m", f"{__package__}.{program}", *scenario, str(folder / "disk")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def test_what_must_stay_free_is_refused_and_what_waits_goes_though_nothing_is_free(tmp_path: Path) -> None:
    found = seen("small_disk", tmp_path, "reserve")
    # Whatever its policy: letting facts go would not make the disk any freer.
    assert found["refusals"] == ["queue_full", "queue_full"]
    assert found["kept"] == {stream: list(range(1, 101)) for stream in STREAMS}
    assert found["sent"] == 200
    assert found["again"] == ["", ""]
    assert found["waiting"] == {stream: list(range(101, 106)) for stream in STREAMS}
    assert found["verdict"] == ["ok"]


def test_a_write_that_fails_for_want_of_space_leaves_the_queue_whole(tmp_path: Path) -> None:
    found = seen("small_disk", tmp_path, "brim")
    assert set(found["refusals"]) == {"queue_full"}
    assert found["kept"] == {stream: list(range(1, found["answered_when_full"][stream] + 1)) for stream in STREAMS}
    assert min(found["answered_when_full"].values()) > 100
    # The same process, once there is space: what was refused left no gap.
    assert found["again"] == ["", ""]
    assert found["waiting"] == {stream: list(range(1, found["answered"][stream] + 1)) for stream in STREAMS}
    assert found["answered"] == {stream: last + 5 for stream, last in found["answered_when_full"].items()}
    assert found["sent"] == sum(found["answered"].values())
    assert found["verdict"] == ["ok"]


def test_a_blob_without_space_is_not_there_and_comes_later(tmp_path: Path) -> None:
    found = seen("small_disk", tmp_path, "blobs")
    assert found["refusals"] == {"model": "disk_full", "blob": "no space", "chunk": "disk_full"}
    assert found["files_when_full"] == []
    assert found["again"] == dict.fromkeys(("model", "blob", "chunk"), "")
    assert found["whole"] == {"model": True, "blob": True, "chunk": True}


def test_a_caller_of_the_api_is_told_and_nothing_of_what_was_refused_is_there(tmp_path: Path) -> None:
    found = seen("small_disk_api", tmp_path)
    ok, created, full = [200, ""], [201, ""], [429, "queue_full"]
    for device in found.values():
        assert device["before"] == [created, created, ok]
        # A document may be written while the queue's reserve is; then nothing may, until there is room.
        assert full in device["puts"]
        assert [told for told in device["puts"] if told != full] == [created] * device["puts"].index(full)
        assert device["change"] == full
        # What takes no room is answered all the time.
        assert device["inference"] == ok
        assert device["again"] == [ok, created, created, ok]
        assert (device["kept"], device["kept_again"], device["verdict"]) == (True, True, "ok")
    assert (found["with_reserve"]["uploads"], found["with_reserve"]["put"]) == ([full, full], ok)
    # Of a file whose size nobody told, the disk itself does.
    assert found["without"]["uploads"] == [full, [503, "disk_full"]]
