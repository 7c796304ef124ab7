"""Draw the pictures of docs/streams.md: what the window engine says of some records; writes docs/pictures/*.svg."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from primespark.windows.replay import Replay, read_event
from primespark.windows.rules import parse_rules

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"

_LEFT = 70
_WIDTH = 640
_ROW = 30
_TOP = 62
_STYLE = (
    "text{font:12px sans-serif;fill:#333}.axis{stroke:#999}.grid{stroke:#ddd}"
    ".record{fill:#d95f02}.window{fill:#7570b3;fill-opacity:.25;stroke:#7570b3}"
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture: records at these seconds, windows of this shape, and a tick every so many seconds."""

    name: str
    title: str
    window_config: dict[str, Any]
    seconds: tuple[float, ...]
    end_s: int
    tick_s: int


SCENES = (
    Scene(
        "tumbling", "Tumbling windows of 60 s", {"window_type": "tumbling", "size_seconds": 60},
        (4, 17, 38, 55, 80, 121, 133), 180, 60,
    ),
    Scene(
        "sliding", "Sliding windows of 60 s, one every 30 s",
        {"window_type": "sliding", "size_seconds": 60, "slide_seconds": 30}, (4, 17, 38, 55, 80), 120, 30,
    ),
    Scene(
        "session", "Session windows with a gap of 10 s", {"window_type": "session", "session_gap_seconds": 10},
        (1, 4, 14, 33, 37), 50, 10,
    ),
)  # fmt: skip


def windows_of(scene: Scene) -> list[tuple[float, float, int]]:
    """Beginning and end in seconds and number of records of each window, as the engine has them."""
    rule = {
        "rule_id": "picture", "source_topic": "in", "target_topic": "out", "window_config": scene.window_config,
        "aggregation_function": "count", "group_by": [],
    }  # fmt: skip
    replay = Replay(parse_rules([rule], "picture"), [0])
    events = [f'{{"ts": {round(second * 1000)}, "row": {{}}}}' for second in scene.seconds]
    said = [result for event in [*events, '{"flush": true}'] for result in replay.play(read_event(event))]
    return sorted((one["window_start"] / 1000, one["window_end"] / 1000, one["count"]) for one in said)


def draw(scene: Scene) -> str:
    """The picture as SVG."""
    windows = windows_of(scene)
    first_s = min(0.0, windows[0][0])
    scale = (_WIDTH - _LEFT - 20) / (scene.end_s - first_s)

    def x(second: float) -> str:
        return f"{_LEFT + (second - first_s) * scale:.1f}"

    rows = _rows(windows)
    bottom = _TOP + (max(rows) + 1) * _ROW
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom + 30}" role="img">',
        f"<title>{escape(scene.title)}</title><style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{bottom + 30}" fill="#fff"/>',
        f'<text x="8" y="18">{escape(scene.title)}</text>',
        f'<text x="8" y="44">records</text><text x="8" y="{_TOP + 18}">windows</text>',
    ]
    for second in range(round(first_s), scene.end_s + 1, scene.tick_s):
        lines.append(f'<line class="grid" x1="{x(second)}" y1="28" x2="{x(second)}" y2="{bottom}"/>')
        lines.append(f'<text x="{x(second)}" y="{bottom + 18}" text-anchor="middle">{second} s</text>')
    lines.append(f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{x(scene.end_s)}" y2="{bottom}"/>')
    lines += [f'<circle class="record" cx="{x(second)}" cy="40" r="5"/>' for second in scene.seconds]
    for (start, end, count), row in zip(windows, rows, strict=True):
        y, width = _TOP + row * _ROW, (end - start) * scale
        label = f"[{start:g}, {end:g}): {count} record{'s' if count > 1 else ''}"
        lines.append(f'<rect class="window" x="{x(start)}" y="{y}" width="{width:.1f}" height="24" rx="4"/>')
        lines.append(f'<text x="{_LEFT + ((start + end) / 2 - first_s) * scale:.1f}" y="{y + 17}" '
                     f'text-anchor="middle">{label}</text>')  # fmt: skip
    return "\n".join([*lines, "</svg>", ""])


def _rows(windows: list[tuple[float, float, int]]) -> list[int]:
    """The row of each window, none of which lie over one another in a row."""
    ends: list[float] = []
    rows = []
    for start, end, _ in windows:
        row = next((number for number, until in enumerate(ends) if until <= start), len(ends))
        ends[row : row + 1] = [end]
        rows.append(row)
    return rows


def main() -> None:
    """Write all pictures."""
    for scene in SCENES:
        (FOLDER / f"{scene.name}.svg").write_text(draw(scene), encoding="utf-8")


if __name__ == "__main__":
    main()
