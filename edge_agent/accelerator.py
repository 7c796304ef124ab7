"""The accelerator of a device: one owner in this process, and models on it with their standby on the processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_agent.standby import StandbyModel
from primespark.core.settings import InferenceSettings
from primespark.inference.hailo_device import HailoDevice
from primespark.inference.models import Model, ServedModel

_VERSION = 1
# Its answer is of no interest; that there is one is.
_PROOF = np.zeros((64, 64, 3), dtype=np.uint8)


class Accelerator:
    """Puts models on the chip; nothing is opened before the first.

    Args:
        settings: Of inference.
    """

    def __init__(self, settings: InferenceSettings) -> None:
        self._settings = settings
        self._device = HailoDevice(settings.accelerator.system_root)

    def detector(self, standby: ServedModel) -> Model:
        """The detector of the settings with `standby` behind it, which alone it is without such a setting.

        Returns at once: the HEF is loaded on a thread of its own, and `standby` answers until then.
        """
        path = self._settings.accelerator.detector
        if path is None:
            return standby
        return StandbyModel(path.stem, lambda: self._load_detector(path), standby, _PROOF)

    def close(self) -> None:
        """Give the chip back, after all models on it are closed."""
        self._device.close()

    def _load_detector(self, path: Path) -> ServedModel:
        from primespark.inference.hailo_models import load_hef_detector, read_detector_labels

        return load_hef_detector(
            path,
            self._device,
            name=path.stem,
            version=_VERSION,
            labels=read_detector_labels(self._settings.accelerator.labels),
            minimum_score=self._settings.minimum_score,
            timeout_s=self._settings.accelerator.timeout_s,
        )
