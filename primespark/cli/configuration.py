"""`primespark config`."""

from __future__ import annotations

import typer
import yaml

from primespark.core.settings import Settings


def show(settings: Settings) -> None:
    """Print the settings as YAML; pydantic masks secrets."""
    values = settings.model_dump(mode="json", by_alias=True)
    typer.echo(yaml.safe_dump(values, sort_keys=False), nl=False)
