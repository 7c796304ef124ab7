"""MLflow, at `cloud.learning.tracking_uri`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from primespark.ml.registry import Registry


class RegistryResource(dg.ConfigurableResource["RegistryResource"]):
    """Versions of the digit reader."""

    def registry(self) -> Registry:
        """The registry; connects on first use."""
        from primespark.core.settings import load_settings
        from primespark.ml.registry import Registry

        return Registry(load_settings().cloud.learning.tracking_uri)
