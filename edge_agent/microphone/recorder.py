"""What a recorder does before it records: ask to be killed with the device, then become the program.

    python -I -S recorder.py PARENT PROGRAM ARGUMENT...

A recorder that hangs in a driver notices nothing of a device that was killed, and would keep the sound card for good.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG = 1


def main() -> NoReturn:
    """Become the program; exit 1 if the parent has died already."""
    parent, program, *arguments = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != int(parent):
        os._exit(1)
    os.execv(program, [program, *arguments])  # noqa: S606 (a program of the system, no shell)


if __name__ == "__main__":
    main()
