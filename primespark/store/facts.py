"""What a fact means for the store: measurements, labels, or nothing beyond itself."""

from __future__ import annotations

import base64
import binascii
import re
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from primespark.core.values import LARGEST_NUMBER, check_text, check_time, storable_parsed_json
from primespark.errors import InvalidInputError
from primespark.store.labels import Label
from primespark.store.samples import Sample, check_storable
from primespark.sync.records import CommandResult, DataClass, Fact

MAX_MEASUREMENTS_PER_FACT = 100
MAX_LABEL_BYTES = 64 * 1024
# The stream worker takes records of up to 128 KiB, the identity of the fact included.
MAX_VALUE_BYTES = 100 * 1024
_PNG = b"\x89PNG\r\n\x1a\n"
_METRIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")
_MAX_METRIC_CHARACTERS = 128
_DATASET = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def check_fact(fact: Fact) -> None:
    """Refuse what the store cannot keep of a fact beside its value.

    Raises:
        InvalidInputError: Code `bad_time` or `unstorable_value`.
    """
    check_time(fact.time)
    check_text(fact.boot_id)


def storable_value(fact: Fact) -> str:
    """The fact's value as JSON text.

    Raises:
        InvalidInputError: Code `unstorable_value` or `fact_too_large`.
    """
    value = storable_parsed_json(fact.value)
    # A character takes at most four bytes.
    if len(value) > MAX_VALUE_BYTES // 4 and len(value.encode()) > MAX_VALUE_BYTES:
        raise InvalidInputError(
            f"a fact of more than {MAX_VALUE_BYTES} bytes", remedy="send a blob and its name", code="fact_too_large"
        )
    return value


def measurements(device_id: str, fact: Fact) -> list[Sample]:
    """Samples that a fact gives: each number of a telemetry fact, the value of a metric; none for other classes.

    Raises:
        InvalidInputError: Code `bad_metric` or `too_many_fields`.
    """
    if fact.data_class is DataClass.TELEMETRY:
        return _telemetry(device_id, fact)
    if fact.data_class is DataClass.METRICS:
        return [_metric(device_id, fact)]
    return []


def label(device_id: str, fact: Fact) -> tuple[str, Label]:
    """Dataset and label of a fact of class `labels`.

    Raises:
        InvalidInputError: Code `bad_label`.
    """
    value = fact.value
    dataset, sample, name = value.get("dataset"), value.get("sample"), value.get("label")
    texts = [text for text in (dataset, sample, name) if isinstance(text, str)]
    if len(texts) < 3 or not _DATASET.fullmatch(texts[0]) or not _METRIC.fullmatch(texts[1]):
        raise _bad_label("`dataset`, `sample` and `label` are names")
    if not 0 < len(texts[2]) <= 100:
        raise _bad_label("`label` has 1 to 100 characters")
    return texts[0], Label(texts[1], texts[2], _image(value.get("image_png_base64")), device_id, fact.time)


def command_result(fact: Fact) -> CommandResult:
    """What became of a command, of a fact of class `command_results`.

    Raises:
        InvalidInputError: Code `bad_command_result`.
    """
    try:
        return CommandResult.model_validate(fact.value)
    except ValidationError as error:
        raise InvalidInputError(
            f"not the result of a command: {error.errors()[0]['msg']}",
            remedy="send command_id, outcome, code, message and output",
            code="bad_command_result",
        ) from None


def _telemetry(device_id: str, fact: Fact) -> list[Sample]:
    numbers = {name: number for name, value in fact.value.items() if (number := _number(value)) is not None}
    if len(numbers) > MAX_MEASUREMENTS_PER_FACT:
        raise InvalidInputError(
            f"more than {MAX_MEASUREMENTS_PER_FACT} numbers in one fact", remedy="send fewer", code="too_many_fields"
        )
    return [
        Sample(name, device_id, "telemetry", {}, fact.time, fact.seq, number)
        for name, number in numbers.items()
        if _is_metric(name)
    ]


def _is_metric(name: str) -> bool:
    # First the length: what is kept of names that devices choose must not grow with them.
    return len(name) <= _MAX_METRIC_CHARACTERS and _has_form_of_metric(name)


@lru_cache(1024)
def _has_form_of_metric(name: str) -> bool:
    return _METRIC.fullmatch(name) is not None


def _metric(device_id: str, fact: Fact) -> Sample:
    name, labels = fact.value.get("name"), fact.value.get("labels", {})
    source, number = fact.value.get("source", "metrics"), _number(fact.value.get("value"))
    if not isinstance(name, str) or not _is_metric(name) or number is None or not isinstance(source, str):
        raise _bad_metric()
    if not isinstance(labels, dict) or not all(isinstance(text, str) for text in labels.values()):
        raise _bad_metric()
    sample = Sample(name, device_id, source, labels, fact.time, fact.seq, number)
    check_storable(sample)
    return sample


def _number(value: Any) -> float | None:
    """A number that can be aggregated; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # NaN and infinity fail the comparison; it comes before the conversion, for which an int may be too long.
    return float(value) if abs(value) <= LARGEST_NUMBER else None


def _image(encoded: Any) -> bytes:
    if not isinstance(encoded, str) or len(encoded) > MAX_LABEL_BYTES * 4 // 3 + 4:
        raise _bad_label(f"`image_png_base64` is text of an image of up to {MAX_LABEL_BYTES} bytes")
    try:
        image = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise _bad_label("`image_png_base64` is not base64") from None
    if not image.startswith(_PNG):
        raise _bad_label("the image is not a PNG")
    return image


def _bad_label(message: str) -> InvalidInputError:
    return InvalidInputError(message, remedy="send dataset, sample, label and image_png_base64", code="bad_label")


def _bad_metric() -> InvalidInputError:
    return InvalidInputError(
        "a metric has a name, a finite number, and labels of text", remedy="send such a fact", code="bad_metric"
    )
