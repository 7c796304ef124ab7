"""The computer the double runs on: files under a root of its own, one chip, and the faults a test asks for.

A process of its own takes the machine from `HAILO_DOUBLE_VERSION`, `HAILO_DOUBLE_ROOT`, `HAILO_DOUBLE_ARCHITECTURE`;
a test in this process gets it from `tests.doubles.hailo.fitted`. Death is a file, so that both sides can cause it.
"""

from __future__ import annotations

import os
import shutil
import struct
import threading
from collections import deque
from pathlib import Path
from typing import Any

from ._claims import Release, holds

DEVICE_ID = "0001:01:00.0"
_FIRMWARE_MAGIC = 0x1DD89DE0
# Of a cool chip: the protections are on, nothing is throttled.
_HEALTH = {
    "overcurrent_protection_active": True, "current_overcurrent_zone": 0, "overcurrent_throttling_active": True,
    "temperature_throttling_active": True, "current_temperature_zone": 0, "current_temperature_throttling_level": -1,
    "orange_temperature_threshold": 104, "red_temperature_threshold": 120,
}  # fmt: skip


class Machine:
    """Version, files and faults; `plug_in` makes the files of a machine where everything fits.

    Attributes:
        architecture: Of the chip: `HAILO8` or `HAILO8L`.
        import_error: Text of an ImportError at import, or none.
        open_status: Status with which every `VDevice()` fails, or none.
        configure_status: The same for `configure()`.
        submit_statuses: Statuses of the next calls of `run_async`, one each; 0 is success.
        completion_statuses: Statuses of the next frames, one each.
        place_s: Seconds from a frame's callback until its place in the queue is free.
        delay_s: Seconds a frame takes beyond its computation.
        reorder: Completions that are gathered and then told in reverse order.
        compute_s: CPU seconds spent in computing frames so far.
        temperatures: Degrees Celsius of the chip's two sensors.
        power_w: Watts; none on a board without a current monitor.
        health: Fields of the health information; none where firmware does not have it.
        control_statuses: Statuses of the next control calls but `identify`, one each; 0 is success.
        control_s: Seconds a control call takes, during which no other thread of the process runs.
        controls: Names of the control calls so far.
    """

    def __init__(self, version: str, root: Path, architecture: str = "HAILO8") -> None:
        self.version = version
        self.root = root
        self.architecture = architecture
        major, minor = version.split(".")[:2]
        self.release: Release = (int(major), int(minor))
        self.import_error: str | None = None
        self.open_status: int | None = None
        self.configure_status: int | None = None
        self.submit_statuses: deque[int] = deque()
        self.completion_statuses: deque[int] = deque()
        self.delay_s = 0.0
        self.place_s = 0.0
        self.reorder = 1
        self.compute_s = 0.0
        self.temperatures = (47.5, 48.25)
        self.power_w: float | None = None
        self.health: dict[str, Any] | None = dict(_HEALTH)
        self.control_statuses: deque[int] = deque()
        self.control_s = 0.0
        self.controls: list[str] = []
        self.running = threading.Event()
        self.running.set()

    def holds(self, key: str) -> bool:
        """Whether this release behaves as the claim says."""
        return holds(key, self.release)

    def plug_in(self, driver: str | None = None) -> None:
        """Make the files of a chip, its driver (`driver` or the same version), library and firmware."""
        self._write("sys/module/hailo_pci/version", (driver or self.version).encode() + b"\n")
        self._write(f"usr/lib/libhailort.so.{self.version}", b"")
        numbers = [int(part) for part in self.version.split(".")]
        self._write("lib/firmware/hailo/hailo8_fw.bin", struct.pack("<6I", _FIRMWARE_MAGIC, 0, *numbers, 80))
        # Last, as a driver makes a device of a chip that it finds: who waits for the chip opens it at once.
        board = self._board()
        board.mkdir(parents=True, exist_ok=True)
        (board / "board_location").write_text(DEVICE_ID + "\n")
        (board / "accelerator_type").write_text("0\n")
        self._write("dev/hailo0", b"")

    def unplug(self) -> None:
        """Take chip and device file away; the driver stays."""
        shutil.rmtree(self._board())
        (self.root / "dev/hailo0").unlink()

    def kill(self, status: int = 36) -> None:
        """From now on everything the chip does ends with this status, in every process."""
        self._write("dead", str(status).encode())

    def revive(self) -> None:
        """End what `kill` began."""
        (self.root / "dead").unlink(missing_ok=True)

    def freeze(self) -> None:
        """From now on frames stay in the chip, without any status."""
        self.running.clear()

    def thaw(self) -> None:
        """Let the frames go on, late ones too."""
        self.running.set()

    def dead_status(self) -> int | None:
        """Status of a dead chip, none when it lives."""
        try:
            return int((self.root / "dead").read_text() or 36)
        except FileNotFoundError:
            return None

    def device_ids(self) -> list[str]:
        """What a scan finds."""
        needed = ["board_location", "accelerator_type"] if self.holds("accelerator_type") else ["board_location"]
        boards = sorted((self.root / "sys/class/hailo_chardev").glob("*"))
        whole = [board for board in boards if all((board / name).is_file() for name in needed)]
        return [(board / "board_location").read_text().strip() for board in whole]

    def driver_version(self) -> str:
        """Version of the loaded driver."""
        return (self.root / "sys/module/hailo_pci/version").read_text().strip()

    def _board(self) -> Path:
        return self.root / "sys/class/hailo_chardev/hailo0"

    def _write(self, path: str, content: bytes) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


# Set by whoever imports the package on purpose, before the rest of it is imported.
MACHINE = Machine(
    os.environ.get("HAILO_DOUBLE_VERSION", "4.23.0"),
    Path(os.environ.get("HAILO_DOUBLE_ROOT", "/nonexistent")),
    os.environ.get("HAILO_DOUBLE_ARCHITECTURE", "HAILO8"),
)
