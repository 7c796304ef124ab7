"""The fetchable language model, fetched once for all runs of the suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from primespark.cli.models import fetch_model
from primespark.inference import catalog

HOME = Path(__file__).parents[1] / ".artifacts" / "home"


@pytest.fixture(scope="session")
def language_model() -> Path:
    """SmolLM2, as `primespark models fetch smollm2` brings it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIMESPARK_HOME", str(HOME))
        fetch_model("smollm2")
        return catalog.FETCHABLE["smollm2"].path
