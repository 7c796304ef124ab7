"""The doctor's view of a Hailo chip: what fits, what does not, and the remedy, from files and import alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from primespark.cli.doctor import run_doctor
from primespark.core.settings import Settings, load_settings
from primespark.errors import IntegrityError, MissingDependencyError
from primespark.inference.hailo_facts import HailoFacts, gather, judge
from primespark.inference.hailo_hef import read_header, runs_on
from tests.doubles import hailo
from tests.doubles.hailo import Hef, Machine, Stream

WHOLE = HailoFacts(
    on_bus=1, chips=("0001:01:00.0",), driver="4.21.0", libraries=("4.21.0",), firmware="4.21.0", package="4.21.0",
    scanned=1, numpy="1.26.4", hefs=(("hailo8", 3), ("hailo8l", 2)),
)  # fmt: skip
STREAM = (Stream("in", (2,), "in"),)


def write_hef(path: Path, architecture: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(Hef("h", STREAM, STREAM, architecture, function="add_one").to_bytes())


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with hailo.fitted(tmp_path, "4.21.0") as fitted:
        pci = tmp_path / "sys/bus/pci/devices/0001:01:00.0"
        pci.mkdir(parents=True)
        (pci / "vendor").write_text("0x1e60\n")
        for name, architecture in (("a", "HAILO8"), ("b", "HAILO8"), ("c", "HAILO8L"), ("d", "HAILO10H")):
            write_hef(tmp_path / f"usr/share/hailo-models/{name}.hef", architecture)
        yield fitted


def test_everything_is_found_without_opening_the_chip(machine: Machine) -> None:
    machine.open_status = 74
    found = gather(machine.root)
    assert replace(found, numpy="1.26.4") == replace(WHOLE, hefs=(("hailo10h", 1), ("hailo8", 2), ("hailo8l", 1)))


def test_a_whole_machine_has_no_fault() -> None:
    assert all(finding.fits for finding in judge(WHOLE))
    assert {finding.name for finding in judge(WHOLE)} == {
        "hailo chip", "hailo driver", "hailo library", "hailo firmware", "hailo package", "hailo models",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "name", "found", "remedy"),
    [
        ({"driver": "4.20.0", "firmware": "4.20.0"}, "hailo driver", "4.20.0, but the library is 4.21.0", "hailo-dkms"),
        ({"libraries": ()}, "hailo library", "no libhailort", "apt install hailort"),
        ({"package": "4.18.0"}, "hailo library", "Python package is 4.18.0", "one release"),
        ({"firmware": "4.17.0"}, "hailo firmware", "4.17.0, but the driver is 4.21.0", "hailofw"),
        ({"firmware": None}, "hailo firmware", "no firmware file", "apt install hailofw"),
        ({"numpy": "2.4.6"}, "hailo package", "numpy 2.4.6, but it needs numpy 1", "numpy<2"),
        ({"chips": ()}, "hailo chip", "its driver does not show it", "dmesg"),
        ({"chips": (), "driver": None}, "hailo driver", "not loaded", "modprobe hailo_pci"),
        ({"scanned": 0}, "hailo chip", "HailoRT 4.21.0 finds 0", "one release"),
        ({"node_problem": "/dev/hailo0 is not there"}, "hailo chip", "not there", "udev"),
        ({"bad_hefs": ("x.hef",)}, "hailo models", "damaged: x.hef", "fetch"),
        (
            {"package": None, "package_problem": MissingDependencyError("no package", remedy="install it")},
            "hailo package", "no package", "install it",
        ),
    ],
)  # fmt: skip
def test_each_mismatch_is_named_with_its_remedy(change: dict[str, object], name: str, found: str, remedy: str) -> None:
    (bad,) = [finding for finding in judge(replace(WHOLE, **change)) if finding.fits is False]  # type: ignore[arg-type]
    assert bad.name == name
    assert found in bad.found
    assert remedy in bad.remedy


def test_a_machine_without_any_of_it_has_one_line_and_no_fault(tmp_path: Path) -> None:
    (finding,) = judge(gather(tmp_path))
    assert finding.fits is None


@pytest.mark.parametrize("version", ["4.17.0", "5.2.0"])
def test_a_release_that_is_not_supported_is_a_finding(tmp_path: Path, version: str) -> None:
    with hailo.fitted(tmp_path, version):
        bad = [finding for finding in judge(gather(tmp_path)) if finding.fits is False]
    assert [finding.name for finding in bad] == ["hailo package"]
    assert version in bad[0].found


def test_the_doctor_prints_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRIMESPARK_HOME", str(machine.root / "home"))
    machine.plug_in(driver="4.20.0")
    assert run_doctor(Settings(), as_json=True, root=machine.root) == 1
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["hailo driver"]["state"] == "bad"
    assert "reboot" in checks["hailo driver"]["remedy"]
    assert checks["hailo models"]["found"] == "1 for hailo10h, 2 for hailo8, 1 for hailo8l"
    assert {"state", "clock", "cache", "kafka", "cloud"} <= set(checks)


def test_the_doctor_counts_the_folder_in_the_settings_too(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRIMESPARK_HOME", str(machine.root / "home"))
    write_hef(machine.root / "mine/e.hef", "HAILO8L")
    chosen = {"edge": {"inference": {"accelerator": {"models_folder": str(machine.root / "mine")}}}}
    run_doctor(load_settings(overrides=chosen), as_json=True, root=machine.root)
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["hailo models"]["found"] == "1 for hailo10h, 2 for hailo8, 2 for hailo8l"


def test_the_command_sees_the_systems_package(tmp_path: Path) -> None:
    """The double stands where an environment with the system's packages would find the vendor's."""
    environment = {**os.environ, "PYTHONPATH": str(Path(hailo.__file__).parent), "PRIMESPARK_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "primespark.cli.main", "doctor", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    checks = {check["name"]: check for check in json.loads(process.stdout)["checks"]}
    assert "hailo_platform 4.23.0, numpy " in checks["hailo package"]["found"]


@pytest.mark.parametrize("architecture", ["HAILO8", "HAILO8L", "HAILO10H", "HAILO15H"])
def test_a_hef_says_what_it_is_for(tmp_path: Path, architecture: str) -> None:
    write_hef(tmp_path / "m.hef", architecture)
    assert read_header(tmp_path / "m.hef").architecture == architecture.lower()
    assert read_header(tmp_path / "m.hef").compiler == "double"


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut off": lambda data: data[:-1],
    "cut in the header": lambda data: data[:20],
    "no HEF": lambda data: b"PK" + data,
    "a later version": lambda data: data[:7] + b"\x09" + data[8:],
    "no protobuf": lambda data: data[:32] + b"\xff" * (len(data) - 32),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_hef_is_told(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_hef(tmp_path / "m.hef", "HAILO8")
    (tmp_path / "m.hef").write_bytes(damage((tmp_path / "m.hef").read_bytes()))
    with pytest.raises(IntegrityError) as caught:
        read_header(tmp_path / "m.hef")
    assert caught.value.code == "bad_model"


def test_hailo8_runs_what_is_for_its_smaller_kind_and_not_the_reverse() -> None:
    assert runs_on("hailo8l", "hailo8")
    assert not runs_on("hailo8", "hailo8l")
    assert not runs_on("hailo10h", "hailo8")
