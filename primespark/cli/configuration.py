"""`primespark config`."""

from __future__ import annotations

import re
from typing import Any

import typer
import yaml

from primespark.core.settings import Settings

_PASSWORD = re.compile(r"(://[^/@:]*:)[^@]*@")


def show(settings: Settings) -> None:
    """Print the settings as YAML, secrets and passwords in addresses masked."""
    values = _masked(settings.model_dump(mode="json", by_alias=True))
    typer.echo(yaml.safe_dump(values, sort_keys=False), nl=False)


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _masked(child) for key, child in value.items()}
    return _PASSWORD.sub(r"\1**********@", value) if isinstance(value, str) else value
