"""Cells of tables for a person."""

from __future__ import annotations

from rich.text import Text


def plain(text: str) -> Text:
    """What others named, as it is: it may look like markup, or have characters that steer a terminal."""
    return Text("".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text))
