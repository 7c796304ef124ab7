"""Settings of how a new version of a model comes into service on a device."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from primespark.core.sections import Fraction, PositiveInt, Seconds, Section

MAX_PHASE_REQUESTS = 10_000

_Requests = Annotated[int, Field(ge=0, le=MAX_PHASE_REQUESTS)]
_PhaseSeconds = Annotated[float, Field(ge=0, le=31_536_000)]


class TrialSettings(Section):
    """The process in which a version is loaded and run first."""

    max_memory_bytes: PositiveInt = 512 * 1024 * 1024
    timeout_s: Seconds = 60.0


class ShadowSettings(Section):
    """The phase in which a version sees a share of the requests and answers none; 0 requests leave it out."""

    share: Fraction = 0.25
    requests: _Requests = 40
    max_s: _PhaseSeconds = 30.0


class CanarySettings(Section):
    """The phase in which a version answers a share of the requests; 0 requests leave it out."""

    share: Fraction = 0.1
    requests: _Requests = 40
    max_s: _PhaseSeconds = 30.0


class SlotSettings(Section):
    """What a version must show before it is live; the limits hold in `shadow` and in `canary`."""

    trial: TrialSettings = TrialSettings()
    shadow: ShadowSettings = ShadowSettings()
    canary: CanarySettings = CanarySettings()
    max_error_ratio: Fraction = 0.02
    max_latency_ratio: Annotated[float, Field(ge=1, le=1000)] = 3.0
    minimum_agreement: Fraction = 0.5
