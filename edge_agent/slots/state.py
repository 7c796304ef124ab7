"""What a device keeps of each model: one small file per name, replaced as a whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from primespark.core.logging import get_logger
from primespark.core.paths import holds_file, private_directory, remove_whatever, write_private
from primespark.errors import IntegrityError

MAX_KNOWN_MODELS = 1000
MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

log = get_logger(__name__)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Pointer(_Frozen):
    """`desired.models.<name>` of a twin."""

    version: Annotated[int, Field(gt=0)]
    manifest: _Sha256
    artifacts: Annotated[tuple[_Sha256, ...], Field(strict=False, min_length=1, max_length=16)]

    @classmethod
    def parse(cls, name: str, value: Any) -> Self:
        """The pointer that stands in a twin.

        Raises:
            IntegrityError: Code `bad_pointer`.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            cause = error.errors()[0]["msg"]
            raise IntegrityError(f"desired.models.{name[:64]}: {cause}", code="bad_pointer") from None


class Attempt(_Frozen):
    """A version that was let into the serving process, and how often that process did not come to its end."""

    manifest: _Sha256
    count: Annotated[int, Field(ge=1)]


class Refusal(_Frozen):
    """A version that was taken back for what it did under trial; it is not tried again."""

    manifest: _Sha256
    version: Annotated[int, Field(gt=0)]
    code: Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,64}$")]


class SlotState(_Frozen):
    """What is kept of one model.

    Attributes:
        manifest: Of the version that is live; None: none is.
        artifact: Its file for the processor.
        accelerated: Its file for the accelerator, if it has one here.
        highest_counter: Of all versions that were live here; it outlives them.
        attempt: A version that is between trial and live.
        refused: The last version that was taken back.
    """

    manifest: _Sha256 | None = None
    artifact: _Sha256 | None = None
    accelerated: _Sha256 | None = None
    highest_counter: Annotated[int, Field(ge=0)] = 0
    attempt: Attempt | None = None
    refused: Refusal | None = None

    def blobs(self) -> set[str]:
        """What must stay on the disk for the live version."""
        return {sha256 for sha256 in (self.manifest, self.artifact, self.accelerated) if sha256 is not None}

    def changed(self, **fields: Any) -> SlotState:
        """This, but for `fields`."""
        return self.model_copy(update=fields)


class StateFiles:
    """The files of one device's models.

    Args:
        folder: Theirs alone, but for folders in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = private_directory(folder)

    def load_all(self) -> dict[str, SlotState]:
        """All that can be read, by name; a damaged file is named in the log and removed."""
        found = {}
        for path in sorted(self._folder.glob("*.json"))[:MAX_KNOWN_MODELS]:
            if not MODEL_NAME.fullmatch(path.stem):
                continue
            try:
                found[path.stem] = SlotState.model_validate_json(path.read_bytes() if holds_file(path) else b"")
            except ValidationError:
                log.error("model_not_restored", model=path.stem, cause="damaged record of what ran")
                _remove(path)
            except OSError as error:
                log.error("model_not_restored", model=path.stem, cause=str(error)[:200])
        return found

    def save(self, name: str, state: SlotState) -> None:
        """Replace what is kept of a model; a kill leaves the one or the other.

        Raises:
            IntegrityError: Code `too_many_models`: it would be the thousand and first.
            OSError: The disk does not take it.
        """
        path = self._folder / f"{name}.json"
        if state == SlotState():
            path.unlink(missing_ok=True)
            return
        if not path.exists() and len(list(self._folder.glob("*.json"))) >= MAX_KNOWN_MODELS:
            raise IntegrityError(
                f"{MAX_KNOWN_MODELS} models were served here", remedy="use names again", code="too_many_models"
            )
        write_private(path, state.model_dump_json(exclude_defaults=True).encode())


def _remove(path: Path) -> None:
    try:
        remove_whatever(path)
    except OSError as error:
        log.error("model_not_restored", model=path.stem, cause=str(error)[:200])
