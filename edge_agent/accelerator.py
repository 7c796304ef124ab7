"""The accelerator of a device: one owner in this process, and models on it with their standby on the processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_agent.placement import Overflow, ProcessorLoad
from edge_agent.standby import StandbyModel
from primespark.core.logging import get_logger
from primespark.core.settings import InferenceSettings
from primespark.core.variants import Runtime
from primespark.errors import PrimeSparkError
from primespark.inference.catalog import ModelType
from primespark.inference.hailo_device import HailoDevice, load_vendor
from primespark.inference.hailo_health import HailoHealth
from primespark.inference.models import Model, ServedModel

log = get_logger(__name__)

_VERSION = 1
# The answer to it is of no interest; that there is one is.
_NOTHING_TO_SEE = np.zeros((64, 64, 3), dtype=np.uint8)
# What a HEF answers is read for these types (`primespark.inference.hailo_models`).
SERVED_TYPES = frozenset({ModelType.OBJECT_DETECTION, ModelType.CLASSIFICATION, ModelType.POSE})


class Accelerator:
    """Puts models on the chip; nothing is opened before the first.

    Args:
        settings: Of inference.

    Attributes:
        health: Of the chip, while a model has it open.
    """

    def __init__(self, settings: InferenceSettings) -> None:
        self._settings = settings
        self._device = HailoDevice(settings.accelerator.system_root)
        self._load = ProcessorLoad()
        self._refusal: str | None = None
        self.health = HailoHealth(self._device)

    @property
    def is_wanted(self) -> bool:
        """Whether models may come to run on it: a chip is there, or the settings name a HEF."""
        return self._settings.accelerator.detector is not None or self._device.is_available()

    def runtime(self) -> Runtime | None:
        """What the chip runs, opened for it; None where none answers. Blocks for a second."""
        if not self._device.is_available():
            return None
        try:
            _, architecture = self._device.open()
            version = str(load_vendor().__version__)
        except PrimeSparkError as error:
            # Asked again and again; told once.
            if error.code != self._refusal:
                log.warning("accelerator_not_used", code=error.code, cause=error.message[:200])
            self._refusal = error.code
            return None
        self._refusal = None
        # A Hailo-8 runs what was compiled for the smaller one, too.
        smaller = ("hailo8l",) if architecture == "hailo8" else ()
        return Runtime("hef", (architecture, *smaller), version)

    def detector(self, standby: ServedModel) -> Model:
        """The detector of the settings with `standby` behind it, which alone it is without such a setting.

        Returns at once: the HEF is loaded on a thread of its own, and `standby` answers until then. It is of another
        network, so it answers only for a chip that fails.
        """
        path = self._settings.accelerator.detector
        if path is None:
            return standby

        def load() -> ServedModel:
            from primespark.inference.hailo_models import read_detector_labels

            labels = read_detector_labels(self._settings.accelerator.labels)
            return self._loaded(path, path.stem, ModelType.OBJECT_DETECTION, _VERSION, labels)

        return StandbyModel(path.stem, load, standby, _see_nothing)

    def variants(
        self,
        hef: Path,
        standby: ServedModel,
        depth: Callable[[], int],
        workers: int,
        prove: Callable[[ServedModel], None],
    ) -> Model:
        """The two variants of a deployed model; the processor also helps an accelerator that cannot keep up.

        Args:
            hef: The accelerator's, of the same network.
            standby: The processor's.
            depth: Requests that wait or run, of all models.
            workers: As many run at once.
            prove: Asks the accelerator's variant a known input; raises where it is not right.
        """

        def load() -> ServedModel:
            return self._loaded(hef, standby.name, standby.model_type, standby.version, standby.labels)

        return StandbyModel(standby.name, load, standby, prove, Overflow(depth, workers, self._load))

    def close(self) -> None:
        """Give the chip back, after all models on it are closed."""
        self._device.close()

    def _loaded(
        self, path: Path, name: str, model_type: ModelType, version: int, labels: tuple[str, ...]
    ) -> ServedModel:
        from primespark.inference.hailo_models import load_hef

        return load_hef(
            path,
            self._device,
            name=name,
            model_type=model_type,
            version=version,
            labels=labels,
            minimum_score=self._settings.minimum_score,
            timeout_s=self._settings.accelerator.timeout_s,
        )


def _see_nothing(model: ServedModel) -> None:
    model.predict(_NOTHING_TO_SEE)
