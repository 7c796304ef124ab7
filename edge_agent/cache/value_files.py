"""Large values as files under names that are never used twice and come from no key."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from zlib import crc32


class ValueFiles:
    """The files of one store.

    Args:
        folder: Its own alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._prefix = uuid.uuid4().hex
        self._numbers = itertools.count()

    def write(self, data: bytes) -> str:
        """Write a file whole; its name. Nothing waits for the disk.

        Raises:
            OSError: Nothing was left behind that `sweep` of a later process would not remove.
        """
        name = f"{self._prefix}-{next(self._numbers):x}"
        path = self._path(name)
        # Not the folder itself: where a mount has vanished, this must not begin another below its place.
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            with path.open("xb") as file:
                file.write(data)
        except OSError:
            self.remove([name])
            raise
        return name

    def read(self, name: str, most: int) -> bytes | None:
        """The bytes, as many as `most`; None where there is no such file.

        Raises:
            NotADirectoryError: The whole folder is gone.
        """
        try:
            with self._path(name).open("rb") as file:
                return file.read(most + 1)
        except FileNotFoundError:
            if not self.folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "the folder of the cache is gone") from None
            return None

    def remove(self, names: Iterable[str | None]) -> None:
        """Remove these; one that stays is found by the next sweep."""
        for name in names:
            if name is not None:
                with contextlib.suppress(OSError):
                    self._path(name).unlink()

    def sweep(self, is_known: Callable[[str], bool], own: bool = False) -> int:
        """Remove files that nobody knows; how many.

        Args:
            is_known: Whether an entry names this file.
            own: Also those of this life, some of which may be about to get their entry.
        """
        removed = 0
        for shard in self._list(self.folder):
            if not shard.is_dir(follow_symlinks=False):
                continue
            for file in self._list(Path(shard.path)):
                if (own or not file.name.startswith(self._prefix)) and not is_known(file.name):
                    with contextlib.suppress(OSError):
                        Path(file.path).unlink()
                        removed += 1
        return removed

    def _list(self, folder: Path) -> list[os.DirEntry[str]]:
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            return list(entries)
        return []

    def _path(self, name: str) -> Path:
        return self.folder / f"{crc32(name.encode()) & 0xFF:02x}" / name
