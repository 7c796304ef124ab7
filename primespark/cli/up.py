"""`primespark up`: everything on this machine until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from primespark.core.paths import home
from primespark.core.settings import Settings
from primespark.embedded.stack import Stack
from primespark.embedded.supervisor import State

console = Console(stderr=True)


def run_up(settings: Settings, only: list[str], config_file: Path | None) -> None:
    """Start, say where things are, wait for a signal, stop."""
    environment = {"PRIMESPARK_CONFIG": str(config_file.absolute())} if config_file else {}
    asyncio.run(_run(settings, only, environment))


async def _run(settings: Settings, only: list[str], environment: dict[str, str]) -> None:
    started = time.monotonic()

    def on_change(name: str, state: State) -> None:
        if state in {State.READY, State.RESTARTING, State.FAILED}:
            console.print(f"[dim]{time.monotonic() - started:6.1f} s[/]  {name:<15} {state}")

    stack = Stack(settings, home(), only=tuple(only), environment=environment, on_change=on_change)
    for replaced in stack.replaced_ports:
        console.print(f"[yellow]{replaced}[/]")
    stopping = asyncio.create_task(stop_event().wait())
    ready = asyncio.create_task(_start(stack))
    try:
        await asyncio.wait({ready, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
            Console().print(endpoints_table(stack))
            Console().print("Ctrl-C stops everything.")
            await stopping
    finally:
        ready.cancel()
        stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(ready, return_exceptions=True)
        await stack.stop()
        console.print("stopped")


async def _start(stack: Stack) -> None:
    stack.launch()
    await stack.supervisor.wait_ready()


def stop_event() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, event.set)
    return event


def endpoints_table(stack: Stack) -> Table:
    """Where things are."""
    table = Table(title="Running", title_justify="left")
    table.add_column("what")
    table.add_column("where", no_wrap=True)
    table.add_column("key", overflow="fold")
    for name, url in stack.endpoints.items():
        if name == "cloud":
            key = _short(stack.admin_key_file)
        elif name in {"dagster", "streams"}:
            key = "-"
        else:
            key = _short(stack.key_file(name))
        table.add_row(name, url, key)
    return table


def _short(path: Path) -> str:
    """The path from here, if it is below: a person copies it from a narrow terminal."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
