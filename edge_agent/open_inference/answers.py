"""What a request asks of a model, held against its form; and the answer as it is sent. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from pydantic_core import to_json as encode_json

from edge_agent.open_inference import tensors
from edge_agent.open_inference.messages import Asked
from edge_agent.open_inference.tensors import Datatype, TensorForm
from edge_agent.priority import Priority
from primespark.core.web.json_bounds import MAX_JSON_VALUES
from primespark.errors import InvalidInputError, PrimeSparkError, UnavailableError

# An image's layers take hundreds of times its bytes, so a batch of tiny ones could take all memory there is.
MAX_BATCH = 8
_PRIORITIES = {0: Priority.NORMAL, 1: Priority.CRITICAL, 2: Priority.HIGH, 3: Priority.NORMAL}


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output to answer: its place among the model's, and how it is sent."""

    index: int
    name: str
    is_binary: bool


@dataclass(frozen=True, slots=True)
class Encoded:
    """An answer's body; `head_bytes` of it are JSON where binary data follows, else None."""

    body: bytes
    head_bytes: int | None


def priority_of(asked: Asked) -> Priority:
    """Ours for the protocol's: 1 is the first to go, and 0 the default."""
    return _PRIORITIES.get(asked.parameters.priority, Priority.LOW)


def deadline_of(asked: Asked, received: float) -> float | None:
    """When the timeout ends that a request gave in microseconds, in the clock that told `received`."""
    return received + asked.parameters.timeout / 1e6 if asked.parameters.timeout else None


def check_inputs(arrays: Mapping[str, NDArray[Any]], wanted: Sequence[TensorForm], most: int = MAX_BATCH) -> None:
    """Nothing, if a model takes these arrays.

    Args:
        arrays: What was sent.
        wanted: What the model takes.
        most: Largest first length, where it is not fixed.

    Raises:
        InvalidInputError: Code `wrong_model_input`: others than the model's; `batch_too_large`.
    """
    if set(arrays) != {form.name for form in wanted}:
        raise _wrong_input(f"the model takes {_names(wanted)}, not {', '.join(name[:64] for name in arrays)}")
    for form in wanted:
        array = arrays[form.name]
        if not form.fits(array):
            raise _wrong_input(f"{form}, not {tensors.datatype_of(array)} {list(array.shape)}")
        if form.shape and form.shape[0] is None and array.shape[0] > most:
            raise InvalidInputError(
                f"{form.name} has a batch of {array.shape[0]}, limit {most}",
                remedy="send fewer at once",
                code="batch_too_large",
            )


def told_apart(error: UnavailableError, wanted: Sequence[TensorForm]) -> PrimeSparkError:
    """A failed run's error, the caller's where lengths were at fault: ONNX Runtime tells both, and memory, as one."""
    is_open = any(None in form.shape for form in wanted)
    if error.code != "inference_failed" or not is_open or "alloc" in error.message.lower():
        return error
    return InvalidInputError(
        f"the model does not take these lengths: {error.message}",
        remedy="see the model's description for lengths that go together",
        code="wrong_model_input",
    )


def choose_outputs(asked: Asked, given: Sequence[TensorForm]) -> tuple[WantedOutput, ...]:
    """The outputs a request wants, in its order; all of the model's where it names none.

    Raises:
        InvalidInputError: Code `wrong_outputs`: none of the model's; `unsupported_tensor`: it is text.
    """
    by_default = asked.parameters.binary_data_output
    if asked.outputs is None:
        wanted = [WantedOutput(index, form.name, by_default) for index, form in enumerate(given)]
    else:
        places = {form.name: index for index, form in enumerate(given)}
        unknown = next((output.name for output in asked.outputs if output.name not in places), None)
        if unknown is not None:
            raise InvalidInputError(
                f"no output {unknown[:64]!r}", remedy=f"the model gives {_names(given)}", code="wrong_outputs"
            )
        wanted = [
            WantedOutput(
                places[output.name],
                output.name,
                by_default if output.parameters.binary_data is None else output.parameters.binary_data,
            )
            for output in asked.outputs
        ]
    for output in wanted:
        if given[output.index].datatype is Datatype.BYTES:
            raise tensors.unsupported(f"{output.name} is text, which is not answered")
    return tuple(wanted)


def encode(head: Mapping[str, Any], outputs: Sequence[WantedOutput], arrays: Sequence[NDArray[Any]]) -> Encoded:
    """An answer's body.

    Args:
        head: Members of the answer beside its outputs.
        outputs: What is answered.
        arrays: All outputs of the model.

    Raises:
        InvalidInputError: Code `non_finite_output`, `answer_too_large`: what JSON cannot say, or not in bounds.
    """
    if sum(arrays[output.index].size for output in outputs if not output.is_binary) > MAX_JSON_VALUES:
        raise InvalidInputError(
            f"more than {MAX_JSON_VALUES} values to answer in JSON",
            remedy="ask for them as binary data",
            code="answer_too_large",
        )
    told, pieces = [], []
    for output in outputs:
        array = arrays[output.index]
        form = {"name": output.name, "datatype": tensors.datatype_of(array), "shape": array.shape}
        if output.is_binary:
            pieces.append(tensors.to_bytes(array))
            told.append({**form, "parameters": {"binary_data_size": len(pieces[-1])}})
        else:
            told.append({**form, "data": tensors.to_json(output.name, array)})
    # Six times as fast as the standard library's for a million numbers.
    encoded = encode_json({**head, "outputs": told})
    if not pieces:
        return Encoded(encoded, None)
    return Encoded(b"".join((encoded, *pieces)), len(encoded))


def _names(given: Sequence[TensorForm]) -> str:
    return ", ".join(form.name for form in given)


def _wrong_input(message: str) -> InvalidInputError:
    return InvalidInputError(message, remedy="GET /v2/models/{model} tells what it takes", code="wrong_model_input")
