"""Shapes of what a network takes and gives, wherever in a HEF the compiler put them; none where that is not all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primespark.inference.catalog import ModelType
from primespark.inference.hailo_catalog import offered_as
from primespark.inference.hailo_hef import HefNetwork, read_network
from primespark.inference.hailo_layers import EdgeShapes, Shape
from tests.doubles.hailo_platform._hef import _bytes_field, _varint_field

IMAGE = (224, 224, 3)
CLASSES = (1, 1, 1000)
CLASSIFIER = EdgeShapes((IMAGE,), (CLASSES,))


def base(shape: Shape, more: bytes = b"") -> bytes:
    height, width, channels = shape
    padded = _varint_field(2, height + 8) + _varint_field(4, width + 8) + _varint_field(6, channels + 8)
    sizes = _varint_field(1, height) + _varint_field(3, width) + _varint_field(5, channels)
    return _bytes_field(2, padded + sizes + more)


def info(shape: Shape, more: bytes = b"") -> bytes:
    return _bytes_field(1, b"layer") + base(shape, more)


def takes(shape: Shape) -> bytes:
    return _bytes_field(3, info(shape))


def gives(shape: Shape, more: bytes = b"") -> bytes:
    return _varint_field(1, 1) + _bytes_field(3, info(shape, more))


def joined(*parts: bytes) -> bytes:
    """Outputs that leave the chip as one, for HailoRT to take apart."""
    return _varint_field(1, 1) + _bytes_field(4, base((9, 9, 9)) + b"".join(_bytes_field(5, part) for part in parts))


def part(shape: Shape) -> bytes:
    return _bytes_field(1, info(shape))


def contexts(*layers: bytes) -> bytes:
    """One context a layer, behind what the chip does in it."""
    return b"".join(
        _bytes_field(3, _bytes_field(2, bytes(500)) + _bytes_field(3, _bytes_field(2, layer))) for layer in layers
    )


def read(path: Path, *groups: bytes) -> HefNetwork:
    proto = b"".join(_bytes_field(2, group) for group in groups)
    path.write_bytes((0x01484546).to_bytes(4, "big") + bytes(4) + len(proto).to_bytes(4, "big") + bytes(20) + proto)
    return read_network(path)


def operation(what: bytes) -> bytes:
    return _bytes_field(8, what)


OWNERS: dict[str, Callable[[bytes], bytes]] = {
    "the network": lambda found: found,
    "the network for a part of the chip": lambda found: _bytes_field(7, _bytes_field(1, found)),
    "an operation": lambda found: operation(_bytes_field(4, found)),
    "an operation for a part of the chip": lambda found: operation(
        _bytes_field(4, _bytes_field(7, _bytes_field(1, found)))
    ),
}


@pytest.mark.parametrize("owner", OWNERS.values(), ids=list(OWNERS))
def test_shapes_are_found_wherever_the_contexts_are(tmp_path: Path, owner: Callable[[bytes], bytes]) -> None:
    found = read(tmp_path / "m.hef", owner(contexts(takes(IMAGE), gives(CLASSES))))
    assert found.shapes == CLASSIFIER
    assert offered_as(found) == (ModelType.CLASSIFICATION, 1000)


def test_layers_between_contexts_are_none_of_the_host(tmp_path: Path) -> None:
    between = _bytes_field(5, _varint_field(3, 1))
    found = read(
        tmp_path / "m.hef",
        contexts(takes(IMAGE), gives((7, 7, 512)) + between, takes((7, 7, 512)) + between, gives(CLASSES)),
    )
    assert found.shapes == CLASSIFIER
    # To be connected to the host is the default, and can be said.
    told = _bytes_field(5, _varint_field(1, 3) + _varint_field(3, 0))
    assert read(tmp_path / "m.hef", contexts(takes(IMAGE) + told, gives(CLASSES) + told)).shapes == CLASSIFIER


def test_joined_outputs_are_taken_apart(tmp_path: Path) -> None:
    inner = _bytes_field(2, _bytes_field(5, part((80, 80, 1))) + _bytes_field(5, part((80, 80, 51))))
    found = read(tmp_path / "m.hef", contexts(takes(IMAGE), joined(part((80, 80, 64)), inner), gives((40, 40, 64))))
    assert found.shapes is not None
    assert sorted(found.shapes.gives) == [(40, 40, 64), (80, 80, 1), (80, 80, 51), (80, 80, 64)]


@pytest.mark.parametrize(
    "layers",
    [
        [takes(IMAGE)],
        [gives(CLASSES)],
        [],
        # Planes of colour, also as a part.
        [_bytes_field(8, _bytes_field(1, b"nv12")), gives(CLASSES)],
        [takes(IMAGE), joined(_bytes_field(3, b""))],
        # The host looks for the largest value; suppression on the chip.
        [takes(IMAGE), gives(CLASSES, _varint_field(14, 1))],
        [takes(IMAGE), gives(CLASSES, _bytes_field(11, _bytes_field(1, _varint_field(2, 80))))],
        [takes(IMAGE), _varint_field(1, 1) + _bytes_field(3, b"")],
        [takes(IMAGE), *[gives(CLASSES)] * 64],
    ],
)
def test_what_is_more_than_shapes_is_not_told(tmp_path: Path, layers: list[bytes]) -> None:
    found = read(tmp_path / "m.hef", contexts(*layers))
    assert found.shapes is None
    assert offered_as(found) is None


def test_what_the_host_does_afterwards_must_keep_the_shape(tmp_path: Path) -> None:
    core = operation(_bytes_field(4, contexts(takes(IMAGE), gives(CLASSES))))
    assert read(tmp_path / "m.hef", core + operation(_bytes_field(6, _varint_field(1, 1)))).shapes == CLASSIFIER
    largest, masks = operation(_bytes_field(6, b"")), operation(_bytes_field(5, _bytes_field(11, b"")))
    for behind in (largest, masks):
        assert read(tmp_path / "m.hef", core + behind).shapes is None
    assert read(tmp_path / "m.hef", core, core).shapes is None


def test_a_damaged_layer_leaves_the_rest_of_the_file_known(tmp_path: Path) -> None:
    damaged = _bytes_field(3, _bytes_field(3, b"\x0b"))
    found = read(tmp_path / "m.hef", _bytes_field(1, _bytes_field(1, b"net")) + damaged)
    assert found == HefNetwork(("net",), None)


@pytest.mark.parametrize("depth", [50, 3000])
def test_parts_within_parts_do_not_end_the_process(tmp_path: Path, depth: int) -> None:
    inner = part(CLASSES)
    for _ in range(depth):
        inner = _bytes_field(2, _bytes_field(5, inner))
    found = read(tmp_path / "m.hef", contexts(takes(IMAGE), joined(inner)))
    assert found.shapes in (None, CLASSIFIER)


@given(st.binary(max_size=200))
def test_any_bytes_are_shapes_or_none(tmp_path_factory: pytest.TempPathFactory, layer: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "layers.hef"
    found = read(path, contexts(takes(IMAGE), layer))
    assert found.shapes is None or found.shapes.takes[0] == IMAGE
