"""HEF files in a folder: what they tell of themselves, in which chips they run, and what is broken about others."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primespark.cli.hailo_models import list_hefs
from primespark.errors import IntegrityError, UnavailableError
from primespark.inference import hailo_catalog
from primespark.inference.catalog import ModelType
from primespark.inference.hailo_catalog import VendorModel, find_hefs
from primespark.inference.hailo_device import HailoDevice, identify
from primespark.inference.hailo_hef import HefNetwork, read_header, read_network
from primespark.inference.protobuf import Message
from tests import poses
from tests.doubles import hailo
from tests.doubles.hailo import Hef, Machine, Nms, Stream
from tests.doubles.hailo_platform._hef import _bytes_field, _varint, _varint_field

IMAGE = (Stream("in", (64, 64, 3), "in"),)
DETECTOR = Hef("yolov8n", IMAGE, (Stream("nms", (), nms=Nms(80, 100)),), function="nothing_seen")
MASKS = Hef("fcn8", IMAGE, (Stream("out", (64, 64, 19), "out"),), function="add_one")
CLASSIFIER = Hef("resnet_v1_50", IMAGE, (Stream("out", (1000,), "out"),), "HAILO8L", function="add_one")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with hailo.fitted(tmp_path) as fitted:
        yield fitted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "usr/share/hailo-models"
    made.mkdir(parents=True)
    (made / "yolov8n.hef").write_bytes(DETECTOR.to_bytes())
    (made / "resnet_h8l.hef").write_bytes(CLASSIFIER.to_bytes())
    (made / "broken.hef").write_bytes(DETECTOR.to_bytes()[:-1])
    (made / "labels.json").write_text("{}")
    return made


def container(proto: bytes, weights: bytes = b"", version: int = 0) -> bytes:
    tail = {0: 20, 1: 16, 2: 28, 3: 44}[version]
    head = (0x01484546).to_bytes(4, "big") + version.to_bytes(4, "big") + len(proto).to_bytes(4, "big")
    return head + bytes(tail) + proto + weights


def network_of(path: Path, *groups: bytes) -> HefNetwork:
    path.write_bytes(container(b"".join(_bytes_field(2, group) for group in groups)))
    return read_network(path)


def suppression(classes: int, extra: bytes = b"", told: int = 0) -> bytes:
    boxes = _bytes_field(3, _bytes_field(7, _varint_field(1, told))) if told else b""
    return _bytes_field(8, boxes + _bytes_field(5, _varint_field(4, classes) + extra))


def test_each_file_is_described_and_the_broken_one_has_its_reason(folder: Path) -> None:
    broken, resnet, yolo = find_hefs(folder)
    data = (folder / "yolov8n.hef").read_bytes()
    assert yolo == VendorModel(
        folder / "yolov8n.hef", len(data), hashlib.sha256(data).hexdigest(), "hailo8", "double", "yolov8n",
        ModelType.OBJECT_DETECTION, 80,
    )  # fmt: skip
    assert (resnet.architecture, resnet.network) == ("hailo8l", "resnet_v1_50")
    assert (resnet.model_type, resnet.labels) == (ModelType.CLASSIFICATION, 1000)
    assert (yolo.chips, resnet.chips, broken.chips) == (("hailo8",), ("hailo8", "hailo8l"), ())
    size = len(data) - 1
    assert broken == VendorModel(
        folder / "broken.hef", size, problem=f"broken.hef has {size} bytes and must have {size + 1} or more"
    )


def test_no_folder_and_what_only_looks_like_a_model(tmp_path: Path) -> None:
    assert find_hefs(tmp_path / "absent") == ()
    os.mkfifo(tmp_path / "pipe.hef")
    (tmp_path / "folder.hef").mkdir()
    (tmp_path / "gone.hef").symlink_to(tmp_path / "nowhere")
    assert find_hefs(tmp_path) == ()


def test_bounds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hailo_catalog, "MAX_FILES", 2)
    assert len(find_hefs(folder)) == 2
    monkeypatch.setattr(hailo_catalog, "MAX_FILE_BYTES", 1)
    assert {model.problem for model in find_hefs(folder)} == {"larger than 0 MiB"}


def test_a_name_is_found_wherever_the_compiler_put_it(tmp_path: Path) -> None:
    path = tmp_path / "m.hef"
    metadata = _bytes_field(1, _bytes_field(1, b"net"))
    for group in (
        metadata,
        # Of a Hailo-8L: in the first of the partial networks.
        _bytes_field(1, b"") + _bytes_field(7, _bytes_field(1, metadata)),
        _bytes_field(10, b"net"),
        _bytes_field(8, _bytes_field(4, metadata)),
    ):
        assert network_of(path, group) == HefNetwork(("net",), None)
    assert network_of(path, b"") == HefNetwork(("",), None)
    assert network_of(path, metadata, metadata) == HefNetwork(("net", "net"), None)


def test_what_is_a_detector_and_what_is_not(tmp_path: Path) -> None:
    path = tmp_path / "m.hef"
    assert network_of(path, suppression(80)).box_classes == 80
    # A background class is no class of boxes.
    assert network_of(path, suppression(91, told=90)).box_classes == 90
    assert network_of(path, suppression(80, _varint_field(13, 1))).box_classes is None
    assert network_of(path, suppression(80, _bytes_field(11, b""))).box_classes is None
    assert network_of(path, suppression(80) * 2).box_classes is None
    assert network_of(path, suppression(80), b"").box_classes is None
    assert network_of(path, _bytes_field(8, _bytes_field(6, b""))).box_classes is None


def test_weights_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context of 50 MB lies before what is asked for, as in files of version 0; a few hundred bytes are read."""
    context = _bytes_field(3, bytes(50_000_000))
    path = tmp_path / "m.hef"
    read, pread = [], os.pread

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        read.append(length)
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    found = network_of(path, _bytes_field(1, _bytes_field(1, b"net")) + context + suppression(80))
    assert found == HefNetwork(("net",), 80)
    assert sum(read) < 2000


def test_a_file_of_very_many_fields_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "m.hef"
    with pytest.raises(IntegrityError, match="more than 50000 fields"):
        network_of(path, *[_bytes_field(8, _varint_field(1, 1) * 1000)] * 1000)


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_every_version_of_the_container(tmp_path: Path, version: int) -> None:
    header = _bytes_field(1, _varint_field(1, 3) + _bytes_field(3, b"3.30.0"))
    path = tmp_path / "m.hef"
    path.write_bytes(container(header + _bytes_field(2, suppression(7)), b"weights" * 9, version))
    assert (read_header(path).architecture, read_header(path).compiler) == ("hailo8l", "3.30.0")
    assert read_network(path).box_classes == 7


@given(where=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 10_000))
def test_any_damage_is_a_description_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, where: int, byte: int, cut: int
) -> None:
    damaged = bytearray(DETECTOR.to_bytes())
    damaged[where % len(damaged)] = byte
    path = tmp_path_factory.getbasetemp() / "damaged" / "m.hef"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(damaged[: 1 + (cut % len(damaged))])
    (found,) = find_hefs(path.parent)
    assert bool(found.problem) != bool(found.sha256)


def content(value: int | Message) -> int | bytes:
    return os.pread(value.descriptor, value.end - value.start, value.start) if isinstance(value, Message) else value


@given(
    fields=st.lists(
        st.tuples(st.integers(1, 2**29 - 1), st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=300))), max_size=20
    )
)
def test_fields_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, fields: list[tuple[int, int | bytes]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "message"
    written = [
        _varint(number << 3) + _varint(value) if isinstance(value, int) else _bytes_field(number, value)
        for number, value in fields
    ]
    path.write_bytes(b"".join(written))
    with path.open("rb") as file:
        message = Message(file.fileno(), 0, path.stat().st_size)
        back = [(number, content(value)) for number, value in message.fields()]
    assert back == fields


@pytest.mark.parametrize("damaged", [b"\x0a\x05abc", b"\x0a\x80", b"\x0b", b"\x00\x00", b"\x09abc", b"\x80" * 11])
def test_a_field_that_is_none_is_told(tmp_path: Path, damaged: bytes) -> None:
    """A length beyond the end, a number without one, a kind that is gone, the number 0, a fixed field cut off."""
    path = tmp_path / "m.hef"
    for proto in (damaged, _bytes_field(2, damaged)):
        path.write_bytes(container(proto, bytes(100)))
        with pytest.raises(IntegrityError, match=r"the header of m\.hef is damaged"):
            read_network(path)


def test_the_chip_is_asked_while_a_process_owns_it(machine: Machine) -> None:
    owner = HailoDevice(machine.root)
    owner.open()
    assert identify(machine.root) == "hailo8"
    owner.close()
    machine.unplug()
    with pytest.raises(UnavailableError, match="no Hailo chip"):
        identify(machine.root)


def test_the_command_tells_each_and_where_it_runs(
    folder: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.architecture = "HAILO8L"
    list_hefs(folder, as_json=True, root=machine.root)
    told = json.loads(capsys.readouterr().out)
    assert (told["folder"], told["chip"]) == (str(folder), {"architecture": "hailo8l", "cause": None})
    broken, resnet, yolo = told["items"]
    assert (broken["runs_here"], resnet["runs_here"], yolo["runs_here"]) == (False, True, False)
    assert (broken["problem"], yolo["problem"]) == (find_hefs(folder)[0].problem, None)
    assert yolo == {
        "name": "yolov8n", "path": str(folder / "yolov8n.hef"), "size_bytes": (folder / "yolov8n.hef").stat().st_size,
        "sha256": find_hefs(folder)[2].sha256, "architecture": "hailo8", "compiler": "double", "network": "yolov8n",
        "runs_on": ["hailo8"], "runs_here": False, "model_type": "object_detection", "labels": 80, "problem": None,
    }  # fmt: skip


def test_each_is_offered_as_what_its_form_is(
    tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    files = (DETECTOR.to_bytes(), CLASSIFIER.to_bytes(), poses.hef(is_quantised=True), MASKS.to_bytes())
    for place, file in enumerate(files):
        (tmp_path / f"{place}.hef").write_bytes(file)
    found = [(model.model_type, model.labels) for model in find_hefs(tmp_path)]
    assert found == [
        (ModelType.OBJECT_DETECTION, 80),
        (ModelType.CLASSIFICATION, 1000),
        (ModelType.POSE, 17),
        (None, None),
    ]
    list_hefs(tmp_path, as_json=False, root=machine.root)
    told = capsys.readouterr().out
    assert "accelerator.detector" in told
    assert "one vector for an image" in told
    assert "all people in an image" in told


def test_no_detector_is_offered_that_the_chip_does_not_run(
    folder: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    list_hefs(folder, as_json=False, root=machine.root)
    assert "edge.inference.accelerator.detector" in capsys.readouterr().out
    machine.architecture = "HAILO8L"
    list_hefs(folder, as_json=False, root=machine.root)
    assert "edge.inference.accelerator.detector" not in capsys.readouterr().out


def test_without_a_chip_where_it_runs_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.hef").write_bytes(replace(DETECTOR, name="[red]\x1b[2J").to_bytes())
    list_hefs(tmp_path, as_json=True, root=tmp_path)
    told = json.loads(capsys.readouterr().out)
    assert (told["items"][0]["runs_here"], told["chip"]["architecture"]) == (None, None)
    assert "hailo_platform is not installed" in told["chip"]["cause"]

    list_hefs(tmp_path, as_json=False, root=tmp_path)
    printed = capsys.readouterr().out
    assert "unknown" in printed
    assert "edge.inference.accelerator.detector" in printed
    assert not re.search(r"\x1b\[2J", printed)

    list_hefs(tmp_path / "absent", as_json=False, root=tmp_path)
    assert "apt install hailo-models" in capsys.readouterr().out
