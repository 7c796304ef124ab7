"""The command around the loop: a fresh state directory, progress, the table, the exit status."""

from __future__ import annotations

import asyncio
import platform
import resource
import shutil
from pathlib import Path

import typer
from rich.console import Console

from primespark.cli.demo.loop import ClosedLoop, DemoOptions
from primespark.cli.up import endpoints_table, stop_event
from primespark.core.paths import home
from primespark.core.settings import load_settings
from primespark.embedded.stack import claim_home
from primespark.errors import PrimeSparkError, UnavailableError

console = Console(stderr=True)


def run_demo(*, as_json: bool, keep: bool, images: list[Path]) -> int:
    """Run the loop; 0 only if every check holds."""
    if platform.machine() != "x86_64":
        console.print("faust-streaming has no wheel for this machine: the loop runs without the stream worker")
    folder = home() / "demo"
    claim = claim_home(folder)
    _clear(folder)
    loop = asyncio.run(_run(DemoOptions(folder, load_settings(), images, claim), keep))
    if as_json:
        typer.echo(loop.report.to_json())
    elif keep:
        console.print(f"stopped in {loop.report.stop_s:.1f} s")
    else:
        Console().print(loop.report.to_table())
        console.print("Next, in .venv/bin: `primespark up`, `primespark doctor`, `primespark device token`.")
    return 0 if loop.report.ok else 1


async def _run(options: DemoOptions, keep: bool) -> ClosedLoop:
    stop = stop_event()
    loop = ClosedLoop(
        options, lambda line: console.print(f"[dim]{loop.elapsed_s():6.1f} s[/]  {line}", highlight=False)
    )
    work = asyncio.create_task(_work(loop))
    interrupted = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({work, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            raise KeyboardInterrupt
        work.result()
        if keep:
            console.print(loop.report.to_table())
            console.print(endpoints_table(loop.stack))
            console.print(f"Other commands find it with PRIMESPARK_HOME={options.home}", soft_wrap=True)
            console.print("Ctrl-C stops everything.")
            await interrupted
    finally:
        interrupted.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await loop.stop()
    loop.report.total_s = loop.elapsed_s()
    loop.report.cpu_s = _cpu_seconds()
    loop.report.checks["stopped_within_10_s"] = loop.report.stop_s is not None and loop.report.stop_s <= 10
    return loop


async def _work(loop: ClosedLoop) -> None:
    """The steps, in order; a step that fails is told with the folder of the logs."""
    try:
        await loop.start()
        await loop.serve_first_version()
        await loop.work_without_link()
        await loop.heal_and_drain()
        rolling_up = asyncio.create_task(loop.roll_up())
        await loop.serve_better_version()
        await rolling_up
        await loop.check_everything()
    except PrimeSparkError as error:
        raise UnavailableError(error.message, remedy=f"read the logs in {home() / 'demo' / 'logs'}") from error


def _clear(folder: Path) -> None:
    """Remove what an earlier demo left; the folder with the claim on it stays."""
    for entry in folder.iterdir():
        if entry.name == "run":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _cpu_seconds() -> float:
    """Of this process and every child that has ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )
