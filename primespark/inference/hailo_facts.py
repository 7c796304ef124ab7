"""What of Hailo is on this machine, and whether its parts fit each other: files, import and scan, nothing is opened.

HailoRT demands that driver and library are of one release, to the last number; every update of a system may break that.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from primespark.core.logging import get_logger
from primespark.errors import IntegrityError, PrimeSparkError
from primespark.inference.hailo_device import load_vendor
from primespark.inference.hailo_hef import read_header

log = get_logger(__name__)

HEF_FOLDER = "usr/share/hailo-models"
_PCI_VENDOR = "0x1e60"
_LIBRARY_FOLDERS = ("usr/lib", "usr/lib/*-linux-gnu", "usr/local/lib", "usr/lib64")
_FIRMWARE = struct.Struct("<5I")
_FIRMWARE_MAGIC = 0x1DD89DE0
_MAX_HEFS = 200
_FIRST_NUMPY_REFUSED = 2
_ONE_RELEASE = (
    "bring all to one release: sudo apt update && sudo apt install --reinstall hailo-dkms hailofw hailort"
    " python3-hailort && sudo reboot"
)
_UDEV = (
    "install the driver's udev rule (51-hailo-udev.rules), then: sudo udevadm control --reload && sudo udevadm trigger"
)


@dataclass(frozen=True, slots=True)
class HailoFacts:
    """What was found; None or empty where it is not there.

    Attributes:
        on_bus: Chips on the PCI bus.
        chips: Chips the driver shows, by address.
        driver: Version of the loaded driver.
        node_problem: Why the device file cannot be used by this user.
        libraries: Versions of the installed libraries.
        firmware: Version of the firmware file the driver loads.
        package: Version of the Python package, when it loads and is supported.
        package_problem: The error when it does not.
        scanned: Chips HailoRT finds.
        numpy: Version of numpy.
        hefs: Number of HEFs for each architecture.
        bad_hefs: Names of files that are no whole HEF.
    """

    on_bus: int = 0
    chips: tuple[str, ...] = ()
    driver: str | None = None
    node_problem: str = ""
    libraries: tuple[str, ...] = ()
    firmware: str | None = None
    package: str | None = None
    package_problem: PrimeSparkError | None = None
    scanned: int | None = None
    numpy: str = ""
    hefs: tuple[tuple[str, int], ...] = ()
    bad_hefs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One line for the user; `fits` is None where the part is not there and need not be."""

    name: str
    fits: bool | None
    found: str
    remedy: str = ""


def gather(root: Path = Path("/"), hef_folders: Iterable[Path] = ()) -> HailoFacts:
    """What is on the machine whose files lie under `root`; further HEFs are looked for in `hef_folders`."""
    package, problem, scanned = _package()
    architectures, bad = _hefs(chain([root / HEF_FOLDER], hef_folders))
    return HailoFacts(
        on_bus=sum(_text(file) == _PCI_VENDOR for file in (root / "sys/bus/pci/devices").glob("*/vendor")),
        chips=tuple(
            sorted(_text(file) for file in (root / "sys/class/hailo_chardev").glob("*/board_location") if _text(file))
        ),
        driver=_text(root / "sys/module/hailo_pci/version") or None,
        node_problem=_node_problem(root / "dev/hailo0"),
        libraries=tuple(sorted(set(_libraries(root)))),
        firmware=_firmware(root / "lib/firmware/hailo"),
        package=package,
        package_problem=problem,
        scanned=scanned,
        numpy=_numpy(),
        hefs=tuple(sorted(architectures.items())),
        bad_hefs=tuple(bad),
    )


def judge(facts: HailoFacts) -> list[Finding]:
    """Each part with what is wrong with it and how to mend it; one line where there is nothing of Hailo."""
    if not (facts.on_bus or facts.chips or facts.driver or facts.libraries or facts.package):
        return [Finding("hailo", None, "no chip, driver or library; models run on the CPU")]
    judges = (_chip, _driver, _library, _judge_firmware, _judge_package, _models)
    return [judge_part(facts) for judge_part in judges]


def _chip(facts: HailoFacts) -> Finding:
    name = "hailo chip"
    if not facts.chips:
        if facts.on_bus and facts.driver:
            return Finding(name, False, "on the bus, but its driver does not show it", "see `dmesg` for lines of hailo")
        return Finding(
            name, None, "on the bus" if facts.on_bus else "none", "check its seat and cable, and that PCIe is enabled"
        )
    found = ", ".join(facts.chips)
    if facts.node_problem:
        return Finding(name, False, f"{found}; {facts.node_problem}", _UDEV)
    if facts.scanned is not None and facts.scanned < len(facts.chips):
        return Finding(name, False, f"{found}; HailoRT {facts.package} finds {facts.scanned}", _ONE_RELEASE)
    return Finding(name, True, found)


def _driver(facts: HailoFacts) -> Finding:
    name = "hailo driver"
    if facts.driver is None:
        return Finding(name, False if facts.on_bus else None, "not loaded", "sudo modprobe hailo_pci")
    if facts.libraries and facts.driver not in facts.libraries:
        found = f"{facts.driver}, but the library is {', '.join(facts.libraries)} (status 76)"
        return Finding(name, False, found, _ONE_RELEASE)
    return Finding(name, True, facts.driver)


def _library(facts: HailoFacts) -> Finding:
    name = "hailo library"
    if not facts.libraries:
        return Finding(name, False if facts.chips else None, "no libhailort", "sudo apt install hailort")
    if facts.package and facts.package not in facts.libraries:
        found = f"{', '.join(facts.libraries)}, but the Python package is {facts.package}"
        return Finding(name, False, found, _ONE_RELEASE)
    return Finding(name, True, ", ".join(facts.libraries))


def _judge_firmware(facts: HailoFacts) -> Finding:
    name = "hailo firmware"
    if facts.firmware is None:
        return Finding(name, False if facts.chips else None, "no firmware file", "sudo apt install hailofw")
    if facts.driver and facts.firmware != facts.driver:
        return Finding(name, False, f"{facts.firmware}, but the driver is {facts.driver}", _ONE_RELEASE)
    return Finding(name, True, facts.firmware)


def _judge_package(facts: HailoFacts) -> Finding:
    name = "hailo package"
    problem = facts.package_problem
    if problem is not None:
        return Finding(name, False if facts.chips else None, problem.message, problem.remedy)
    found = f"hailo_platform {facts.package}, numpy {facts.numpy}"
    if facts.numpy.split(".")[0].isdigit() and int(facts.numpy.split(".")[0]) >= _FIRST_NUMPY_REFUSED:
        return Finding(name, False, f"{found}, but it needs numpy 1", "pip install 'numpy<2' in this environment")
    return Finding(name, True, found)


def _models(facts: HailoFacts) -> Finding:
    name = "hailo models"
    counted = ", ".join(f"{number} for {architecture}" for architecture, number in facts.hefs)
    if facts.bad_hefs:
        found = f"{counted or 'none'}; damaged: {', '.join(facts.bad_hefs)}"
        return Finding(name, False, found, "fetch the damaged files again, or remove them")
    if not facts.hefs:
        return Finding(name, None, "no HEF", "sudo apt install hailo-models")
    return Finding(name, True, counted)


def _package() -> tuple[str | None, PrimeSparkError | None, int | None]:
    try:
        vendor: Any = load_vendor()
    except PrimeSparkError as error:
        return None, error, None
    try:
        scanned = len(vendor.Device.scan())
    # Raw exceptions of the binding have no base of their own.
    except Exception as error:  # noqa: BLE001
        log.warning("accelerator_not_scanned", cause=f"{type(error).__name__}: {error}"[:200])
        scanned = 0
    return str(vendor.__version__), None, scanned


def _node_problem(node: Path) -> str:
    if not node.exists():
        return "/dev/hailo0 is not there"
    return "" if os.access(node, os.R_OK | os.W_OK) else "/dev/hailo0 is not this user's to open"


def _libraries(root: Path) -> Iterator[str]:
    for folder in _LIBRARY_FOLDERS:
        for file in root.glob(f"{folder}/libhailort.so.*"):
            yield file.name.removeprefix("libhailort.so.")


def _firmware(folder: Path) -> str | None:
    for file in sorted(folder.glob("hailo8_fw*.bin")):
        try:
            with file.open("rb") as opened:
                magic, _, *numbers = _FIRMWARE.unpack(opened.read(_FIRMWARE.size))
        except (OSError, struct.error):
            continue
        if magic == _FIRMWARE_MAGIC:
            return ".".join(map(str, numbers))
    return None


def _hefs(folders: Iterable[Path]) -> tuple[Counter[str], list[str]]:
    architectures: Counter[str] = Counter()
    bad = []
    for file in islice(chain.from_iterable(sorted(folder.rglob("*.hef")) for folder in folders), _MAX_HEFS):
        try:
            architectures[read_header(file).architecture] += 1
        except IntegrityError:
            bad.append(file.name)
    return architectures, bad


def _numpy() -> str:
    import numpy as np

    return str(np.__version__)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
