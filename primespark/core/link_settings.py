"""Settings of the link between a device and its cloud."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field

from primespark.core.sections import Seconds, Section


def _http_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("write http://HOST:PORT or https://HOST")
    return text


HttpUrl = Annotated[str, AfterValidator(_http_url)]


class ProbeSettings(Section):
    """How a device asks whether its cloud is there, while no exchange tells."""

    interval_s: Seconds = 30.0
    timeout_s: Seconds = 5.0
    failures: Annotated[int, Field(ge=1, le=100)] = 2
    successes: Annotated[int, Field(ge=1, le=100)] = 1
    endpoints: Annotated[tuple[HttpUrl, ...], Field(max_length=8)] = ()


# Slower, a gate would not wait for the largest fact.
_BytesPerSecond = Annotated[int, Field(ge=8192, le=10**12)]
_TimeOfDay = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]


def _time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError("not a time zone of this machine, as Europe/Berlin is") from None
    return name


class TimeWindow(Section):
    """From `begin` until `end`, over midnight where that is earlier."""

    begin: _TimeOfDay
    end: _TimeOfDay

    def has(self, time_of_day: str) -> bool:
        """Whether HH:MM is in it; one that ends when it begins is the whole day."""
        if self.begin < self.end:
            return self.begin <= time_of_day < self.end
        return time_of_day >= self.begin or time_of_day < self.end


class BandwidthWindow(TimeWindow):
    """When the limit is another; null is none."""

    bytes_per_s: _BytesPerSecond | None = None


_Weight = Annotated[int, Field(ge=1, le=100)]


class BandwidthShares(Section):
    """What parts of a limited link batches and pulls have, and blobs, while both want all of it."""

    records: _Weight = 4
    blobs: _Weight = 1


class BandwidthSettings(Section):
    """How fast a device may send, and receive; null is without limit, and times without a zone are the device's."""

    bytes_per_s: _BytesPerSecond | None = None
    windows: Annotated[tuple[BandwidthWindow, ...], Field(max_length=24)] = ()
    shares: BandwidthShares = BandwidthShares()
    # When facts of low priority and blobs may travel; empty is always.
    low_windows: Annotated[tuple[TimeWindow, ...], Field(max_length=24)] = ()
    timezone: Annotated[str, AfterValidator(_time_zone)] | None = None
