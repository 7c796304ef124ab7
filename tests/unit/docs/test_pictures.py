"""The pictures of windows are drawn anew, and held to plain arithmetic."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[3]
TOOL = runpy.run_path(str(ROOT / "tools" / "draw_windows.py"))
SCENES = {scene.name: scene for scene in TOOL["SCENES"]}


@pytest.mark.parametrize("name", SCENES)
def test_a_picture_is_what_the_tool_draws(name: str) -> None:
    kept = (ROOT / "docs" / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
    assert kept == TOOL["draw"](SCENES[name]), "run: python tools/draw_windows.py"


def test_the_page_shows_each_picture_once() -> None:
    page = (ROOT / "docs" / "streams.md").read_text(encoding="utf-8")
    kept = {path.name for path in (ROOT / "docs" / "pictures").iterdir()}
    assert sorted(re.findall(r"!\[[^\]]+\]\(pictures/([^)]+)\)", page)) == sorted(kept)
    assert kept == {f"{name}.svg" for name in SCENES}


def _expected(scene: Any) -> list[tuple[float, float, int]]:
    """By the meaning of the words, second by second."""
    seconds, config = scene.seconds, scene.window_config
    if "session_gap_seconds" in config:
        gap = config["session_gap_seconds"]
        starts = [at for at in seconds if not any(0 < at - other <= gap for other in seconds)]
        bounds = [*starts[1:], float("inf")]
        own = [[at for at in seconds if start <= at < bound] for start, bound in zip(starts, bounds, strict=True)]
        return [(found[0], found[-1] + gap, len(found)) for found in own]
    size = config["size_seconds"]
    slide = config.get("slide_seconds", size)
    windows = [(start, start + size) for start in range(-10 * slide, scene.end_s, slide)]
    counted = [(start, end, sum(start <= at < end for at in seconds)) for start, end in windows]
    return [window for window in counted if window[2]]


@pytest.mark.parametrize("name", SCENES)
def test_its_windows_are_those_of_the_records(name: str) -> None:
    scene = SCENES[name]
    texts = [element.text or "" for element in ElementTree.fromstring(TOOL["draw"](scene)).iter()]
    drawn = [re.fullmatch(r"\[(\S+), (\S+)\): (\d+) records?", text) for text in texts]
    found = sorted((float(match[1]), float(match[2]), int(match[3])) for match in drawn if match)
    assert found == sorted(_expected(scene))
