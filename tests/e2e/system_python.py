"""A Python of its own prefix, as a distribution installs one: whatever lies in its site folder is a system package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

_NOT_LINKED = {"site-packages", "dist-packages", "__pycache__"}


def make_system_python(prefix: Path) -> Path:
    """The interpreter of a new prefix whose standard library is that of the one running, by links; no packages yet."""
    running = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    standard_library = Path(sysconfig.get_path("stdlib"))
    own_library = prefix / standard_library.parent.name / standard_library.name
    own_library.mkdir(parents=True)
    for entry in standard_library.iterdir():
        if entry.name not in _NOT_LINKED:
            (own_library / entry.name).symlink_to(entry)
    for library in standard_library.parent.glob("libpython*"):
        (own_library.parent / library.name).symlink_to(library)
    interpreter = prefix / "bin" / "python3"
    interpreter.parent.mkdir()
    # A link would lead back to the prefix it points to.
    shutil.copy2(running, interpreter)
    return interpreter


def install_system_package(interpreter: Path, package: Path) -> None:
    """Put a package's folder where the interpreter of `make_system_python` looks for system packages."""
    code = "import site; print(site.getsitepackages()[0])"
    shown = subprocess.run([str(interpreter), "-I", "-c", code], capture_output=True, text=True, check=True)
    folder = Path(shown.stdout.strip())
    assert folder.is_relative_to(interpreter.parents[1])
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
