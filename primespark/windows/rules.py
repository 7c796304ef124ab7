"""Rules of the stream worker: what a rule may say, and reading a list of them from YAML or JSON."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from primespark.core.settings import read_yaml_document
from primespark.errors import ConfigurationError, InvalidInputError
from primespark.windows.aggregates import AggregationFunction
from primespark.windows.filters import Condition, condition

# Messages are keyed by the device, so a group that names it lies in one partition whole.
MESSAGE_KEY_FIELD = "device_id"

_TopicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,240}$")]
_Seconds = Annotated[float, Field(gt=0, le=31_536_000, strict=True)]
_SecondsOrZero = Annotated[float, Field(ge=0, le=31_536_000, strict=True)]
_AnySeconds = Annotated[float, Field(ge=-31_536_000, le=31_536_000, strict=True)]


# A sliding window's result is made of its panes anew whenever one of them changes.
MAX_OVERLAP = 1000


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WindowType(StrEnum):
    """How windows lie on the axis of time."""

    TUMBLING = "tumbling"
    SLIDING = "sliding"
    SESSION = "session"


class WindowConfig(_Strict):
    """Shape and bounds of a rule's windows; of the bounds below `None` switches one off.

    Attributes:
        size_seconds: Of a tumbling or sliding window.
        slide_seconds: From the beginning of a sliding window to that of the next, at most its size.
        session_gap_seconds: Records that are further apart belong to different sessions.
    """

    window_type: WindowType = WindowType.TUMBLING
    size_seconds: _Seconds | None = None
    slide_seconds: _Seconds | None = None
    session_gap_seconds: _Seconds | None = None
    offset_seconds: _AnySeconds = 0.0
    max_out_of_orderness_seconds: _SecondsOrZero = 10.0
    allowed_lateness_seconds: _SecondsOrZero | None = 600.0
    idle_timeout_seconds: _Seconds | None = 30.0
    max_future_seconds: _SecondsOrZero | None = 60.0
    watermark_scope: Literal["partition", "key"] = "partition"

    @field_validator("window_type", mode="before")
    @classmethod
    def _known_type(cls, value: object) -> object:
        if value not in list(WindowType):
            raise ValueError(f"{value!r} is not available; available: {', '.join(WindowType)}")
        return value

    @model_validator(mode="after")
    def _of_its_type(self) -> Self:
        needed = _NEEDED[self.window_type]
        for name in ("size_seconds", "slide_seconds", "session_gap_seconds"):
            if (getattr(self, name) is not None) != (name in needed):
                raise ValueError(f"{self.window_type.value} windows have {' and '.join(needed)}, and no {name}")
        if self.slide_ms > self.size_ms:
            raise ValueError("slide_seconds is at most size_seconds, or records between two windows would be in none")
        if self.slide_ms and self.size_ms // self.slide_ms > MAX_OVERLAP:
            raise ValueError(f"a record is in at most {MAX_OVERLAP} windows")
        if self.window_type is WindowType.SESSION and self.offset_seconds:
            raise ValueError("sessions have no offset")
        return self

    @field_validator("*")
    @classmethod
    def _whole_milliseconds(cls, value: object) -> object:
        if isinstance(value, float) and abs(value * 1000 - round(value * 1000)) > 1e-6:
            raise ValueError("seconds may have at most three decimals")
        return value

    @property
    def size_ms(self) -> int:
        """Length of a window; 0 for sessions."""
        return round((self.size_seconds or 0) * 1000)

    @property
    def slide_ms(self) -> int:
        """From the beginning of a window to that of the next; 0 for sessions."""
        return round((self.slide_seconds or self.size_seconds or 0) * 1000)

    @property
    def session_gap_ms(self) -> int:
        """How far apart the records of a session are at most; 0 for others."""
        return round((self.session_gap_seconds or 0) * 1000)

    @property
    def offset_ms(self) -> int:
        """Distance of the window grid from the epoch."""
        return round(self.offset_seconds * 1000)

    @property
    def max_out_of_orderness_ms(self) -> int:
        """How far the watermark stays behind the newest record."""
        return round(self.max_out_of_orderness_seconds * 1000)

    @property
    def allowed_lateness_ms(self) -> int | None:
        """How long after its end a window still takes records."""
        return _to_ms(self.allowed_lateness_seconds)

    @property
    def idle_timeout_ms(self) -> int | None:
        """After how long without a record a partition no longer holds the watermark back."""
        return _to_ms(self.idle_timeout_seconds)

    @property
    def max_future_ms(self) -> int | None:
        """How far ahead of its arrival a record's event time may lie."""
        return _to_ms(self.max_future_seconds)


_NEEDED = {
    WindowType.TUMBLING: ("size_seconds",),
    WindowType.SLIDING: ("size_seconds", "slide_seconds"),
    WindowType.SESSION: ("session_gap_seconds",),
}


class AggregationRule(_Strict):
    """One aggregation over the records of one topic."""

    rule_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,120}$")]
    source_topic: _TopicName
    target_topic: _TopicName
    window_config: WindowConfig
    aggregation_function: AggregationFunction
    percentile: Annotated[float, Field(ge=0, le=100)] | None = None
    ddof: Annotated[int, Field(ge=0, le=1, strict=True)] = 1
    group_by: Annotated[tuple[str, ...], Field(max_length=8)] = (MESSAGE_KEY_FIELD,)
    value_field: Annotated[str, Field(min_length=1)] | None = None
    filters: Annotated[tuple[tuple[str, str, Any], ...], Field(max_length=32)] = ()
    enabled: Annotated[bool, Field(strict=True)] = True

    @field_validator("aggregation_function", mode="before")
    @classmethod
    def _known_function(cls, value: object) -> object:
        names = [function.value for function in AggregationFunction]
        if value not in names:
            raise ValueError(f"{value!r} is not available; available: {', '.join(names)}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.group_by)) != len(self.group_by):
            raise ValueError("group_by names a field twice")
        function = self.aggregation_function
        if self.value_field is None and function not in (AggregationFunction.COUNT, AggregationFunction.RATE):
            raise ValueError(f"value_field is required for {function.value}; only count and rate work without")
        if (self.percentile is not None) != (function is AggregationFunction.PERCENTILE):
            raise ValueError("percentile is a number from 0 to 100 for that function, and for no other")
        if self.source_topic in (self.target_topic, self.late_topic):
            raise ValueError("source_topic and target_topic must differ")
        return self

    @field_validator("filters")
    @classmethod
    def _possible(cls, value: tuple[tuple[str, str, Any], ...]) -> tuple[tuple[str, str, Any], ...]:
        for given in value:
            try:
                condition(*given)
            except InvalidInputError as error:
                raise ValueError(f"{error.message}; {error.remedy}") from None
        return value

    @property
    def conditions(self) -> list[Condition]:
        """The filters as functions of rows."""
        return [condition(*given) for given in self.filters]

    @property
    def late_topic(self) -> str:
        """Where records go that came too late for their window."""
        return f"{self.target_topic}.late"


_RULES = TypeAdapter(list[AggregationRule])


def load_rules(path: Path) -> list[AggregationRule]:
    """The rules of a YAML or JSON file, in file order.

    Raises:
        ConfigurationError: Unreadable file, not a list, or a rule that cannot work; names each place.
    """
    document = read_yaml_document(path, "correct cloud.streams.rules_file")
    return parse_rules(document, str(path))


def parse_rules(document: Any, origin: str) -> list[AggregationRule]:
    """The rules of a parsed document, which `origin` names in errors.

    Raises:
        ConfigurationError: Not a list, a rule that cannot work, or an identifier used twice.
    """
    if not isinstance(document, list):
        raise ConfigurationError(f"{origin}: rules are a list", remedy="start each rule with `- rule_id:`")
    try:
        rules = _RULES.validate_python(document)
    except ValidationError as error:
        problems: list[dict[str, object]] = [
            {"loc": _location(document, item["loc"]), "msg": _message(item)} for item in error.errors()
        ]
        summary = "; ".join(f"{problem['loc']}: {problem['msg']}" for problem in problems)
        raise ConfigurationError(f"{origin}: {summary}", remedy="correct the rules", errors=problems) from None
    names = [rule.rule_id for rule in rules]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigurationError(f"{origin}: rule_id {repeated[0]!r} is used twice", remedy="give each rule its own")
    return rules


def _location(document: list[Any], location: tuple[int | str, ...]) -> str:
    if not location:
        return "rules"
    entry = document[int(location[0])]
    name = entry.get("rule_id") if isinstance(entry, dict) else None
    return ".".join(str(part) for part in (name or f"rule {int(location[0]) + 1}", *location[1:]))


def _message(item: Any) -> str:
    return "unknown key" if item["type"] == "extra_forbidden" else str(item["msg"]).removeprefix("Value error, ")


def _to_ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
