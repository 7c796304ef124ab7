"""Where state lives: `PRIMESPARK_HOME`, else `.primespark/` in a checkout, else the user's state directory."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from primespark.errors import ConfigurationError


def home() -> Path:
    """Root of all state of this installation, created private (0700) when missing.

    Raises:
        ConfigurationError: It cannot be made, or is no folder.
    """
    configured = os.environ.get("PRIMESPARK_HOME")
    if configured:
        root = Path(configured)
    elif (Path.cwd() / "pyproject.toml").is_file() and (Path.cwd() / "primespark").is_dir():
        root = Path.cwd() / ".primespark"
    else:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        root = Path(state) / "primespark"
    root = root.absolute()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"cannot use {root} as the state directory: {error.strerror}",
            remedy="set PRIMESPARK_HOME to a folder of yours",
        ) from None
    return root


def private_directory(path: Path) -> Path:
    """`path`, created with its parents and readable by its owner alone."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def holds_file(path: Path) -> bool:
    """Whether a file lies there; no link, folder, pipe or device, which reading could follow or wait for."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def remove_whatever(path: Path) -> None:
    """Leave nothing there, be it a file, a link (not what it points to), a pipe, or a folder with all in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` atomically and durably by `data`, readable by its owner alone (0600); a failure leaves nothing."""
    private_directory(path.parent)
    staging = path.with_name(f".{path.name}.{os.getpid()}.staging")
    try:
        descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    except OSError:
        staging.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
