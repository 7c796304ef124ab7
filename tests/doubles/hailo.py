"""Puts the double of `hailo_platform` where `import hailo_platform` finds it, and makes HEFs for it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from tests.doubles.hailo_platform._hef import Hef, Nms, Stream
from tests.doubles.hailo_platform._machine import Machine

VERSIONS = ("4.18.0", "4.20.0", "4.21.0", "4.23.0")
_FOLDER = str(Path(__file__).parent)
_NAME = "hailo_platform"


@contextmanager
def fitted(root: Path, version: str = VERSIONS[-1], architecture: str = "HAILO8") -> Iterator[Machine]:
    """A machine with a chip, while in the block; the package is imported anew in that version.

    Args:
        root: An empty folder for the machine's files.
        version: HailoRT's.
        architecture: The chip's.
    """
    sys.path.insert(0, _FOLDER)
    _forget()
    machine: Any = importlib.import_module(f"{_NAME}._machine")
    machine.MACHINE = fitted_machine = machine.Machine(version, root, architecture)
    # The package read the version before it could be set.
    for name in [name for name in sys.modules if name.startswith(_NAME) and not name.endswith(("_machine", "_claims"))]:
        del sys.modules[name]
    fitted_machine.plug_in()
    try:
        yield fitted_machine
    finally:
        fitted_machine.thaw()
        sys.path.remove(_FOLDER)
        _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name == _NAME or name.startswith(_NAME + ".")]:
        del sys.modules[name]


def compiled(model: bytes, shapes: dict[str, tuple[int, ...]], **described: Any) -> Hef:
    """A HEF that computes an ONNX model in float, one frame at a time.

    Args:
        model: The ONNX file; its first dimension is the batch.
        shapes: Shape of each input and output, without the batch.
        described: Further fields of `Hef`.
    """
    graph = onnx.load_from_string(model).graph
    types = {1: "FLOAT32", 2: "UINT8", 4: "UINT16"}

    def streams(values: Any) -> tuple[Stream, ...]:
        return tuple(
            Stream(one.name, shapes[one.name], one.name, types[one.type.tensor_type.elem_type]) for one in values
        )

    return Hef(graph.name, streams(graph.input), streams(graph.output), onnx=model, **described)


__all__ = ["VERSIONS", "Hef", "Machine", "Nms", "Stream", "compiled", "fitted"]
