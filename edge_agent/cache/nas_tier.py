"""The tier in a folder of network storage: values there, the index here, so that a miss never asks the network."""

from __future__ import annotations

from pathlib import Path

from edge_agent.cache.disk_tier import DiskTier
from edge_agent.cache.store import EntryStore
from primespark.core.cache_settings import CachePolicy
from primespark.errors import UnavailableError

# Each thread that hangs is lost until the mount answers; the circuit breaker asks rarely enough that four last.
_THREADS = 4


class NasTier(DiskTier):
    """A tier whose values lie in `directory/primespark-cache/<device>`.

    Args:
        index: Its index, on a local disk.
        directory: The mounted folder, which is never made.
        device_id: Of the device; devices share no entries.
        limit_bytes: Most bytes, and at most half of what is free there.
        policy: What to let go first.
    """

    def __init__(self, index: Path, directory: Path, device_id: str, limit_bytes: int, policy: CachePolicy) -> None:
        self._directory = directory
        # Which folder the index tells of: when that is gone, its mount is, and below its place is the local disk.
        self._made = index.with_suffix(".folder")
        store = EntryStore(
            index, directory / "primespark-cache" / device_id, limit_bytes, policy, inline_bytes=0,
            make_folder=self._make_folder,
        )  # fmt: skip
        super().__init__(store, name="cache-nas", threads=_THREADS)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            self._note(folder)
            return
        was_made = self._made.is_file() and self._made.read_text(encoding="utf-8") == str(folder)
        if was_made or not self._directory.is_dir():
            raise UnavailableError(
                f"{folder if was_made else self._directory} is not there",
                remedy=f"mount it; if it was emptied, `mkdir -p {folder}`",
                code="cache_nas_absent",
            )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._note(folder)

    def _note(self, folder: Path) -> None:
        self._made.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._made.write_text(str(folder), encoding="utf-8")
