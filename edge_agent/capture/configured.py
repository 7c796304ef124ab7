"""The sources of the settings, each with a name of its own; a plain text is the path of frames."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from primespark.core.capture_settings import SOURCE_KINDS, CaptureSettings, SourceSettings

_MAX_NAME = 48


@dataclass(frozen=True, slots=True)
class ConfiguredSource:
    """A source as it is looked at, or listened to.

    Attributes:
        frames_per_second: Of a microphone, windows.
        frame_name: What its frames are called after; None leaves that to the path.
    """

    settings: SourceSettings
    frames_per_second: float
    frame_name: str | None

    @property
    def name(self) -> str:
        """Its name, unique among the sources."""
        return self.settings.name

    @property
    def kind(self) -> str:
        """Which of `path`, `url`, `device`, `csi` and `microphone` it is."""
        return next(kind for kind in SOURCE_KINDS if getattr(self.settings, kind) is not None)


def configured_sources(settings: CaptureSettings) -> list[ConfiguredSource]:
    """All sources, in their order; one given as text is named after the last part of its path."""
    taken = {source.name for source in settings.sources if isinstance(source, SourceSettings)}
    found = []
    for source in settings.sources:
        if isinstance(source, SourceSettings):
            pace = source.frames_per_second or settings.frames_per_second
            if source.microphone is not None:
                pace = 1 / source.listening.hop_s
            found.append(ConfiguredSource(source, pace, source.name))
        else:
            named = SourceSettings(name=_free_name(source, taken), path=source or ".")
            taken.add(named.name)
            found.append(ConfiguredSource(named, settings.frames_per_second, None))
    return found


def _free_name(path: str, taken: set[str]) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(path).name)[:_MAX_NAME].lstrip("_.-") or "source"
    candidates = (name if number == 1 else f"{name}-{number}" for number in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)
