"""`python -m benchmarks [AREA…] [--json]`: run the benchmarks of these areas, all of them without a name."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.result import Result

# Areas with figures so far; each is a module with `run() -> Iterator[Result]`.
AREAS = (
    "analytics",
    "bandwidth",
    "cache",
    "conflicts",
    "dagster",
    "device",
    "edge",
    "embedded",
    "hailo",
    "ingest",
    "manager",
    "preprocessing",
    "queue",
    "streams",
    "sync",
    "windows",
    "wire",
)
_PAGE_HEAD = """\
# Benchmarks

Written by `python -m benchmarks --write-page`. Each figure stands beside a peer or a physical limit taken in the same
run: medians of interleaved runs. The ratio is the promise; the absolute figures are those of one machine, and areas may
have been measured on different days.

"""
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main() -> int:
    """Exit status 1 when a promise does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"one of {', '.join(AREAS)}")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--write-page", action="store_true", help=f"write {PAGE.name} from the results of all areas")
    arguments = parser.parse_args()
    unknown = set(arguments.areas) - set(AREAS)
    if unknown:
        parser.error(f"no such area: {', '.join(sorted(unknown))}; there are {', '.join(AREAS)}")
    results = []
    for result in _run(arguments.areas or AREAS):
        results.append(result)
        if arguments.json:
            sys.stdout.write(result.to_json() + "\n")
            sys.stdout.flush()
    if not arguments.json:
        Console().print(_table(results))
    if arguments.write_page:
        if arguments.areas:
            parser.error("--write-page needs all areas")
        PAGE.write_text(_page(results), encoding="utf-8")
    return 0 if all(result.ok for result in results) else 1


def _run(areas: tuple[str, ...] | list[str]) -> Iterator[Result]:
    for area in areas:
        yield from importlib.import_module(f"benchmarks.{area}").run()


def _table(results: list[Result]) -> Table:
    table = Table(title="Benchmarks: medians of interleaved runs")
    for heading in ("area", "what", "value", "against", "reference", "ratio", "goal", "holds"):
        table.add_column(heading)
    for result in results:
        table.add_row(
            result.area,
            result.name,
            f"{result.value:.4g} {result.unit}",
            result.against,
            f"{result.reference:.4g} {result.unit}",
            f"{result.ratio:.3f}",
            result.goal,
            "yes" if result.ok else "NO",
        )
    return table


def _page(results: list[Result]) -> str:
    columns = ("area", "what", "value", "against", "reference", "ratio", "goal", "holds")
    rows = [columns, ("---",) * len(columns)]
    for result in results:
        figures = (f"{result.value:.4g} {result.unit}", result.against, f"{result.reference:.4g} {result.unit}")
        rows.append(
            (result.area, result.name, *figures, f"{result.ratio:.3f}", result.goal, "yes" if result.ok else "no")
        )
    return _PAGE_HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
