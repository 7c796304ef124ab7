"""Files that name other files, wherever they hide it, are refused; sound ones are not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from primespark.errors import IntegrityError
from primespark.inference import catalog
from primespark.inference.catalog import BUNDLED, BundledModel
from primespark.inference.onnx_files import check_self_contained


def outside(name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    return tensor


def inside(name: str = "w") -> TensorProto:
    return numpy_helper.from_array(np.arange(4, dtype=np.float32), name)


def graph(
    *, nodes: list[onnx.NodeProto] | None = None, initializer: list[TensorProto] | None = None
) -> onnx.GraphProto:
    return helper.make_graph(
        nodes or [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        initializer or [],
    )


def model(whole: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def branch(tensor: TensorProto) -> onnx.NodeProto:
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    body = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [4])])
    return helper.make_node("If", ["k"], ["y"], then_branch=body, else_branch=body)


def in_function(tensor: TensorProto) -> onnx.ModelProto:
    whole = model(graph(initializer=[inside()]))
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    whole.functions.append(helper.make_function("d", "f", [], ["c"], [constant], [helper.make_opsetid("", 17)]))
    return whole


def in_sparse(tensor: TensorProto) -> onnx.ModelProto:
    whole = model(graph(initializer=[inside()]))
    whole.graph.sparse_initializer.add().values.CopyFrom(tensor)
    return whole


def in_training(tensor: TensorProto) -> onnx.ModelProto:
    whole = model(graph(initializer=[inside()]))
    whole.training_info.add().initialization.initializer.append(tensor)
    return whole


PLACES: dict[str, Callable[[TensorProto], onnx.ModelProto]] = {
    "initializer": lambda tensor: model(graph(initializer=[tensor])),
    "constant": lambda tensor: model(graph(nodes=[helper.make_node("Constant", [], ["y"], value=tensor)])),
    "branch": lambda tensor: model(graph(nodes=[branch(tensor)])),
    "graphs": lambda tensor: model(
        graph(nodes=[helper.make_node("Odd", [], ["y"], bodies=[graph(initializer=[tensor])], domain="d")])
    ),
    "function": in_function,
    "sparse": in_sparse,
    "training": in_training,
    "tensors": lambda tensor: model(graph(nodes=[helper.make_node("Odd", [], ["y"], many=[tensor], domain="d")])),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_outside_the_file_is_found_in_every_place(place: str) -> None:
    check_self_contained(PLACES[place](inside()).SerializeToString())
    with pytest.raises(IntegrityError) as caught:
        check_self_contained(PLACES[place](outside()).SerializeToString())
    assert caught.value.code == "external_data"


def test_a_name_without_the_mark_is_refused_too() -> None:
    tensor = inside()
    tensor.external_data.add(key="location", value="x.bin")
    with pytest.raises(IntegrityError):
        check_self_contained(model(graph(initializer=[tensor])).SerializeToString())


def test_the_default_location_written_out_is_inside() -> None:
    tensor = inside()
    tensor.data_location = TensorProto.DEFAULT
    whole = model(graph(initializer=[tensor]))
    assert whole.graph.initializer[0].HasField("data_location")
    check_self_contained(whole.SerializeToString())


def test_a_long_form_of_the_field_number_hides_nothing() -> None:
    def field(tag: bytes, body: bytes) -> bytes:
        return tag + bytes([0x80 | len(body), 0]) + body

    # Tag 114 (field 14, varint) in three bytes; graph 7 and initializer 5 with lengths in two.
    tensor = bytes([0x80 | 112, 0x80, 0x00, 0x01])
    data = field(b"\x3a", field(b"\x2a", tensor))
    assert onnx.load_from_string(data).graph.initializer[0].data_location == TensorProto.EXTERNAL
    with pytest.raises(IntegrityError) as caught:
        check_self_contained(data)
    assert caught.value.code == "external_data"


@pytest.mark.parametrize("bundled", BUNDLED, ids=lambda bundled: bundled.name)
def test_the_bundled_models_are_whole(bundled: BundledModel) -> None:
    check_self_contained(catalog.read_bytes(bundled))


WHOLE = model(graph(initializer=[inside()])).SerializeToString()


@pytest.mark.parametrize(
    "data", [b"", b"<html>", WHOLE[:-3], b"\0" * 40, WHOLE + b"\xff", b"\x18\0\0\0ORTM" + b"\0" * 64]
)
def test_what_is_no_onnx_file_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError) as caught:
        check_self_contained(data)
    assert caught.value.code == "bad_model"


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=40).map(lambda tail: WHOLE + tail)))
def test_any_bytes_end_in_a_verdict(data: bytes) -> None:
    with contextlib.suppress(IntegrityError):
        check_self_contained(data)
