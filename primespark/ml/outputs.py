"""What each stage of a learning run hands to the next: small JSON in the store that names blobs."""

from __future__ import annotations

from typing import Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from primespark.core.manifests import GoldenInput, Sha256
from primespark.errors import IntegrityError


class StageOutput(BaseModel):
    """Strict and frozen; `labels` is the number of labels the run began with."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    labels: int = Field(ge=0)

    @classmethod
    def from_stored(cls, stored: object) -> Self:
        """The output that was stored as JSON.

        Raises:
            IntegrityError: Code `bad_stage_output`: of another version of this program.
        """
        try:
            return cls.model_validate(stored)
        except ValidationError as error:
            raise IntegrityError(
                f"stored {cls.__name__} has {error.error_count()} faults", remedy="start the pipeline anew",
                code="bad_stage_output",
            ) from None  # fmt: skip


class Ingested(StageOutput):
    """A snapshot of all labels; later ones belong to the next run."""

    dataset: Sha256


class RejectedSample(BaseModel):
    """A sample that cannot be learned from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample: str
    code: str


class Validated(StageOutput):
    """Which samples are fit to learn from; the first rejected ones by name."""

    dataset: Sha256
    usable: int
    rejected: int
    rejected_samples: tuple[RejectedSample, ...]
    counts: dict[str, int]


class Preprocessed(StageOutput):
    """Images as 8 x 8 pixels of 0 to 16."""

    pixels: Sha256
    samples: int


class Featured(StageOutput):
    """Model inputs; `withheld` samples are in the evaluation set and were left out."""

    features: Sha256
    samples: int
    withheld: int


class Trained(StageOutput):
    """The candidate, as ONNX."""

    artifact: Sha256
    samples: int


class Evaluated(StageOutput):
    """Candidate and champion on the same held-back digits."""

    artifact: Sha256
    held_back: int
    accuracy: float
    champion_version: int | None
    champion_accuracy: float | None
    is_champion: bool
    golden: GoldenInput


class Judged(StageOutput):
    """Whether the candidate may replace the champion, and why."""

    artifact: Sha256
    passed: bool
    reason: str
    accuracy: float
    champion_accuracy: float | None


class Deployed(StageOutput):
    """The version in the registry, and the blobs devices need.

    Attributes:
        registry_mark: The registry's mark after the promotion, see `Registry.mark`.
    """

    version: int
    registered_at: AwareDatetime
    manifest: Sha256
    artifact: Sha256
    promoted: bool
    registry_mark: int | None
