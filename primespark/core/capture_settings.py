"""Settings of what a device looks at, what it makes of it, and what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    SecretStr,
    StringConstraints,
    Tag,
    TypeAdapter,
    model_validator,
)

from primespark.core.sections import Fraction, Seconds, Section

STREAM_SCHEMES = ("rtsp", "rtsps", "http", "https")
MAX_SOURCES = 64

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Point = tuple[Fraction, Fraction]
FramesPerSecond = Annotated[float, Field(gt=0, le=1000)]


def _word(value: Any) -> Any:
    """`off` as a word: YAML reads it as false where it stands without quotes."""
    return "off" if value is False else value


ImagePolicy = Annotated[Literal["off", "crops", "full"], BeforeValidator(_word)]
SoundPolicy = Annotated[Literal["off", "clips"], BeforeValidator(_word)]
SOURCE_KINDS = ("path", "url", "device", "csi", "microphone")
# What the models for sounds tell.
SOUND_LABELS = ("speech",)


class RegionSettings(Section):
    """The part of a source's image that is looked at, in fractions of width and height."""

    x_min: Fraction = 0.0
    y_min: Fraction = 0.0
    x_max: Fraction = 1.0
    y_max: Fraction = 1.0

    @model_validator(mode="after")
    def _has_an_area(self) -> Self:
        if self.x_min >= self.x_max or self.y_min >= self.y_max:
            raise ValueError("x_min must be below x_max, y_min below y_max")
        return self


class EventRule(Section):
    """When what is seen becomes an event.

    Attributes:
        zone: Corners of a polygon in fractions of the region; none is all of it.
        minimum_duration_s: An object must have stayed in the zone so long.
        cool_down_s: After an event of the rule at a source, the least time to the next.
    """

    name: Name
    labels: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=100)], ...], Field(min_length=1)]
    zone: Annotated[tuple[Point, ...], Field(min_length=3, max_length=64)] | None = None
    minimum_score: Fraction = 0.5
    minimum_duration_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    cool_down_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    snapshot: bool = True


def _stream_url(secret: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(secret.get_secret_value())
        is_good = parts.scheme in STREAM_SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise ValueError("write rtsp://HOST/PATH or http://HOST/PATH")
    return secret


_Index = Annotated[int, Field(ge=0, le=255)]
_index: TypeAdapter[int] = TypeAdapter(_Index)


def _device(value: int | str) -> int | str:
    if isinstance(value, str) and value.isdecimal():
        return _index.validate_python(value)
    if isinstance(value, str) and not value.startswith("/dev/"):
        raise ValueError("write a number, or a path like /dev/video0")
    return value


class ListeningSettings(Section):
    """How a microphone is listened to: windows of `window_s`, each beginning `hop_s` after the one before."""

    window_s: Annotated[float, Field(ge=0.5, le=10)] = 2.0
    hop_s: Annotated[float, Field(ge=0.1, le=10)] = 1.0

    @model_validator(mode="after")
    def _leaves_no_gap(self) -> Self:
        if self.hop_s > self.window_s:
            raise ValueError("hop_s must not be above window_s: what lies between would not be heard")
        return self


class SourceSettings(Section):
    """One source: exactly one of `path`, `url`, `device`, `csi`, `microphone` says where it is.

    Attributes:
        path: `samples`, an image, a folder of images, or a video file.
        url: An RTSP or HTTP stream; may hold a password.
        device: A V4L2 camera by number or path.
        csi: A CSI camera by its number in picamera2.
        microphone: A name of ALSA: `default`, `plughw:CARD=Device`.
        silence_s: A camera, stream or microphone that gives nothing for so long is opened anew.
    """

    name: Name
    path: Annotated[str, Field(min_length=1)] | None = None
    url: Annotated[SecretStr, AfterValidator(_stream_url)] | None = None
    device: Annotated[_Index | str, AfterValidator(_device)] | None = None
    csi: Annotated[int, Field(ge=0, le=15)] | None = None
    microphone: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_:=,./-]{0,127}$")] | None = None
    frames_per_second: FramesPerSecond | None = None
    region: RegionSettings = RegionSettings()
    listening: ListeningSettings = ListeningSettings()
    silence_s: Annotated[float, Field(ge=0.1, le=3600)] = 10.0
    rules: Annotated[tuple[EventRule, ...], Field(max_length=32)] = ()

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        given = [name for name in SOURCE_KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(SOURCE_KINDS)}, not {' and '.join(given) or 'none'}")
        names = [rule.name for rule in self.rules]
        if len(set(names)) < len(names):
            raise ValueError("two rules have one name")
        return self

    @model_validator(mode="after")
    def _has_what_its_kind_has(self) -> Self:
        is_heard = self.microphone is not None
        foreign = {"region", "frames_per_second"} if is_heard else {"listening"}
        if given := sorted(foreign & self.model_fields_set):
            raise ValueError(f"{' and '.join(given)} are not of a {'microphone' if is_heard else 'camera'}")
        for rule in self.rules if is_heard else ():
            if rule.zone is not None:
                raise ValueError(f"the rule {rule.name} has a zone, and sounds have none")
            if unknown := sorted(set(rule.labels) - set(SOUND_LABELS)):
                raise ValueError(f"{unknown[0]} is not heard; there is {', '.join(SOUND_LABELS)}")
        return self


class TrackingSettings(Section):
    """How boxes of successive frames are taken for one object."""

    minimum_iou: Annotated[float, Field(gt=0, le=1)] = 0.3
    max_gap_s: Seconds = 2.0


class KeptSettings(Section):
    """Bounds of pictures kept on the device; the oldest go first."""

    max_bytes: Annotated[int, Field(ge=2 * 1024 * 1024)] = 512 * 1024 * 1024
    max_days: Annotated[float, Field(gt=0, le=3650)] = 14.0


class HardExampleSettings(KeptSettings):
    """Frames worth a person's label.

    Attributes:
        daily_bytes: Most of them in a day (UTC); 0 keeps none.
        minimum_interval_s: Between two of one source.
        uncertainty_margin: A score less than this above `edge.inference.minimum_score` is uncertain.
        novelty_distance: A frame is new if its signature is at least so far (0..255) from those kept.
        chance: Share of frames taken whatever they show.
        seed: Of the chance.
    """

    daily_bytes: Annotated[int, Field(ge=0)] = 0
    minimum_interval_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    uncertainty_margin: Fraction = 0.1
    novelty_distance: Annotated[float, Field(gt=0, le=255)] = 24.0
    chance: Fraction = 0.001
    seed: int = 20260101


def _kind(value: Any) -> str:
    return "text" if isinstance(value, str) else "object"


Source = Annotated[Annotated[str, Tag("text")] | Annotated[SourceSettings, Tag("object")], Discriminator(_kind)]


class CaptureSettings(Section):
    """Where frames come from; `samples` stands for the images that ship with scikit-image and scikit-learn."""

    sources: Annotated[tuple[Source, ...], Field(max_length=MAX_SOURCES)] = ("samples",)
    labelled_folder: Path | None = None
    frames_per_second: FramesPerSecond = 2.0
    loop: bool = True
    images: ImagePolicy = "off"
    sounds: SoundPolicy = "off"
    tracking: TrackingSettings = TrackingSettings()
    snapshots: KeptSettings = KeptSettings()
    hard_examples: HardExampleSettings = HardExampleSettings()

    @property
    def has_images(self) -> bool:
        """Whether a source gives images."""
        return any(isinstance(source, str) or source.microphone is None for source in self.sources)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [source.name for source in self.sources if isinstance(source, SourceSettings)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are named {twice[0]}")
        return self
