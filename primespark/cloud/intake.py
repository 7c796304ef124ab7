"""What programs of other makes send, point by point: what can be stored is kept, the rest is counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from pydantic import TypeAdapter, ValidationError

from primespark.cloud.metrics import INTAKE
from primespark.cloud.state import Cloud
from primespark.core.identifiers import check_device_id
from primespark.errors import InvalidInputError, PrimeSparkError, TooLargeError
from primespark.store import samples
from primespark.store.samples import Sample
from primespark.sync.records import Name

MAX_BODY_BYTES = 4 * 1024 * 1024
_MAX_LABELS = 64
# No series takes more; checked here once for all points that share them.
_MAX_LABEL_CHARACTERS = 1024
_MAX_NAME_CHARACTERS = 128
_MAX_SAMPLES = 50_000
_MAX_REASON = 200
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
# Every machine is that to itself.
_NO_DEVICE = "localhost"
_name: TypeAdapter[str] = TypeAdapter(Name)


@dataclass(slots=True)
class Intake:
    """The points of one request.

    Attributes:
        samples: To be stored.
        refused: How many points cannot be.
        skipped: How many say that there is nothing to say.
        reason: Why the first refused one cannot be stored.
    """

    samples: list[Sample] = field(default_factory=list)
    refused: int = 0
    skipped: int = 0
    reason: str = ""

    def add(self, point: Sequence[Sample]) -> None:
        """Take all samples of a point, or refuse it.

        Raises:
            TooLargeError: Code `too_many_values`: the request has more samples than one transaction should take.
        """
        try:
            for sample in point:
                samples.check(sample)
        except InvalidInputError as error:
            self.refuse(f"{point[0].metric[:60]}: {error.message}")
        else:
            self.samples += point
        check_count(len(self.samples))

    def refuse(self, reason: str, points: int = 1) -> None:
        """Count points that cannot be stored."""
        self.refused += points
        if points:
            self.reason = self.reason or reason[:_MAX_REASON]


class Door(StrEnum):
    """Where points come in."""

    OTLP = "otlp"
    REMOTE_WRITE = "remote_write"


async def store(cloud: Cloud, intake: Intake, door: Door) -> None:
    """Store what was taken, in one transaction; what is there already is left as it is.

    Raises:
        UnavailableError: As `Cloud.transact`.
        DeadlineExceededError: As `Cloud.transact`.
    """
    if intake.samples:
        done = await cloud.transact(lambda connection: samples.insert(connection, intake.samples))
    else:
        done = samples.Inserted(0, 0)
    counts = {
        "inserted": done.inserted, "duplicate": done.duplicates, "beyond_retention": done.beyond,
        "refused": intake.refused, "skipped": intake.skipped,
    }  # fmt: skip
    for outcome, count in counts.items():
        INTAKE.labels(door, outcome).inc(count)


def told(error: PrimeSparkError) -> tuple[str, dict[str, str]]:
    """An error for senders that read no problem+json: its text, and the headers of its answer."""
    headers = {"WWW-Authenticate": "Bearer"} if error.http_status == 401 else {}
    if error.retryable:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s or 1))
    return f"{error.message} ({error.code}); {error.remedy}".removesuffix("; "), headers


def moment(nanoseconds: int) -> datetime:
    """The time so many nanoseconds after 1970, in whole microseconds; the last or first there is for one beyond."""
    try:
        return _EPOCH + timedelta(microseconds=nanoseconds // 1000)
    except OverflowError:
        return _LAST if nanoseconds > 0 else _FIRST


def is_device(name: str) -> bool:
    """Whether a name of a machine can be the id of a device."""
    try:
        check_device_id(name)
    except ValueError:
        return False
    return name != _NO_DEVICE


def check_count(points: int) -> None:
    """Refuse more samples, or points, than one transaction should take.

    Raises:
        TooLargeError: Code `too_many_values`.
    """
    if points > _MAX_SAMPLES:
        raise TooLargeError(f"more than {_MAX_SAMPLES} samples", remedy="send less at once", code="too_many_values")


def check_metric(name: str) -> None:
    """Refuse what questions cannot name.

    Raises:
        InvalidInputError: Code `bad_metric`.
    """
    try:
        _name.validate_python(name)
    except ValidationError:
        raise InvalidInputError(
            f"{name[:60]!r} is no name of a metric", remedy="letters, digits and _.:/- after one", code="bad_metric"
        ) from None


def check_lengths(source: str, labels: Mapping[str, str]) -> None:
    """Refuse at once what the store would refuse of each point, however long it is.

    Raises:
        InvalidInputError: Code `series_too_long`.
    """
    characters = sum(len(name) + len(value) for name, value in labels.items())
    is_too_long = characters > _MAX_LABEL_CHARACTERS or len(source) > _MAX_NAME_CHARACTERS
    if is_too_long or len(labels) > _MAX_LABELS:
        raise InvalidInputError(
            f"a source of more than {_MAX_NAME_CHARACTERS} characters, or more than {_MAX_LABELS} labels or"
            f" {_MAX_LABEL_CHARACTERS} characters of them",
            remedy="name less in labels",
            code="series_too_long",
        )
