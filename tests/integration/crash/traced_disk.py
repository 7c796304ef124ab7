"""A disk whose power is cut: what a traced process wrote to a folder, as a strict drive would have kept it.

What was synced is there. Of what was written since, any part may be, in sectors of 512 bytes, whatever the order; of
the folder's entries made since it was synced, any number of the first.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

SECTOR = 512
# More than the queue writes at once; a longer write would be cut off in the trace, which is refused.
_LONGEST_WRITE = 80_000
_CALLS = (
    "openat,pwrite64,write,fsync,fdatasync,ftruncate,unlink,rename,fallocate,pwritev,writev,link,unlinkat,renameat2"
)
_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)")
_UNFINISHED, _RESUMED = (
    re.compile(r"(\d+) +(\w+\(.*) <unfinished \.\.\.>"),
    re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)"),
)
_TEXT = re.compile(r'[<"]((?:\\x[0-9a-f]{2})*)[>"](\.\.\.)?')
_NUMBER = re.compile(r", (\d+)$")


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that succeeded: what it is about, in the order it has them."""

    name: str
    texts: tuple[bytes, ...]
    last: int
    flags: str


def trace(log: Path, command: Sequence[str]) -> list[Call]:
    """Run a command to its end under strace; its calls that change files or sync them."""
    options = ["-f", "-y", "-xx", "-s", str(_LONGEST_WRITE), "-e", "signal=none", "-e", f"trace={_CALLS}"]
    subprocess.run(["strace", *options, "-o", str(log), *command], check=True, timeout=120, stdout=subprocess.DEVNULL)
    return list(_read(log))


def _read(log: Path) -> Iterator[Call]:
    unfinished: dict[str, str] = {}
    with log.open() as lines:
        for line in lines:
            if found := _UNFINISHED.match(line):
                unfinished[found[1]] = found[2]
                continue
            if found := _RESUMED.match(line):
                line = f"{found[1]} {unfinished.pop(found[1])}{found[2]}"
            found = _LINE.match(line)
            if found is None or int(found[4]) < 0:
                continue
            arguments = found[3]
            texts = _TEXT.findall(arguments)
            assert not any(dots for _, dots in texts), "a write longer than the trace has"
            last = _NUMBER.search(arguments)
            yield Call(
                found[2],
                tuple(bytes.fromhex(text.replace("\\x", "")) for text, _ in texts),
                int(last[1]) if last else 0,
                arguments,
            )


@dataclass(slots=True)
class File:
    """What is safe of it, and what was done since: data at an offset, or None for its end."""

    safe: bytearray = field(default_factory=bytearray)
    since: list[tuple[int, bytes | None]] = field(default_factory=list)

    @property
    def now(self) -> bytearray:
        """As a program sees it."""
        return _apply(bytearray(self.safe), self.since)

    def sync(self) -> None:
        """All of it is safe."""
        _apply(self.safe, self.since)
        self.since.clear()

    def cut(self, chance: random.Random, share: float) -> bytearray:
        """What a power cut leaves."""
        kept: list[tuple[int, bytes | None]] = []
        for offset, data in self.since:
            if data is None:
                kept += [(offset, None)] if chance.random() < share else []
                continue
            # Sectors lie at multiples in the file; the first and last part of a write may be less.
            edges = [offset, *range(offset - offset % SECTOR + SECTOR, offset + len(data), SECTOR), offset + len(data)]
            is_torn = chance.random() < 0.3
            whole = chance.random() < share
            for start, end in pairwise(edges):
                if (chance.random() < share) if is_torn else whole:
                    kept.append((start, data[start - offset : end - offset]))
        return _apply(bytearray(self.safe), kept)


def _apply(content: bytearray, changes: Sequence[tuple[int, bytes | None]]) -> bytearray:
    for offset, data in changes:
        if data is None:
            del content[offset:]
            content.extend(bytes(max(0, offset - len(content))))
        else:
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data
    return content


class Disk:
    """A folder on it, brought forth call by call.

    Args:
        folder: The one that is looked at.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder).encode()
        self._safe_entries: dict[bytes, File] = {}
        self._entries: dict[bytes, File] = {}
        self._history: list[dict[bytes, File]] = []

    def take(self, call: Call) -> str | None:
        """Do what the call did; what it said, if it was that."""
        if call.name == "write" and call.texts[0].endswith(b"/null"):
            return call.texts[1].decode()
        if call.texts[:1] == (self._folder,) and call.name in ("fsync", "fdatasync"):
            self._safe_entries, self._history = dict(self._entries), []
        elif (paths := [path for path in call.texts[:2] if self._is_ours(path)]) or call.name == "openat":
            self._take(call, paths)
        return None

    def leave(self, target: Path, chance: random.Random) -> None:
        """Write to `target` what a power cut now would leave."""
        share = chance.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        states = [self._safe_entries, *self._history]
        for path, file in chance.choice(states).items():
            (target / Path(path.decode()).name).write_bytes(file.cut(chance, share))

    def _take(self, call: Call, paths: list[bytes]) -> None:
        match call.name:
            case "openat":
                path = b"/".join(call.texts[-2:]) if not call.texts[-1].startswith(b"/") else call.texts[-1]
                if "O_CREAT" in call.flags and self._is_ours(path) and path not in self._entries:
                    self._change({**self._entries, path: File()})
            case "pwrite64":
                self._entries[paths[0]].since.append((call.last, call.texts[1]))
            case "write":
                file = self._entries[paths[0]]
                file.since.append((len(file.now), call.texts[1]))
            case "ftruncate":
                self._entries[paths[0]].since.append((call.last, None))
            case "fsync" | "fdatasync":
                self._entries[paths[0]].sync()
            case "unlink":
                self._change({path: file for path, file in self._entries.items() if path != paths[0]})
            case _:
                raise AssertionError(f"the disk does not know {call.name}")

    def _change(self, entries: dict[bytes, File]) -> None:
        self._entries = entries
        self._history.append(entries)

    def _is_ours(self, path: bytes) -> bool:
        # The index of the log is memory that processes share; whoever opens the file first makes it anew.
        return path.startswith(self._folder + b"/") and not path.endswith(b"-shm")
