"""`primespark streams replay`: rules over a file of events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import typer

from primespark.errors import InvalidInputError
from primespark.windows.replay import Event, Replay, partitions_of, read_event
from primespark.windows.rules import load_rules


def replay_file(rules: Path, events: Path, *, manual_watermark: bool) -> None:
    """Print what each event makes the windows say, then what was skipped.

    Raises:
        ConfigurationError: Rules that cannot work.
        InvalidInputError: A line that is no event.
    """
    loaded = load_rules(rules)
    # Read twice: a partition holds the watermark back before its first record.
    replay = Replay(loaded, partitions_of(_events(events)), manual_watermark=manual_watermark)
    for event in _events(events):
        for result in replay.play(event):
            typer.echo(json.dumps(result))
    typer.echo(json.dumps(replay.totals()))


def _events(path: Path) -> Iterator[Event]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield read_event(line)
            except InvalidInputError as error:
                raise InvalidInputError(f"{path}, line {number}: {error.message}", remedy=error.remedy) from None
