"""What a blob shares with those that are here already, so that of a new version only what differs has to come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from primespark.core.identifiers import sha256_hex
from primespark.core.paths import holds_file
from primespark.sync.chunks import ChunkList, cut_file

# Of a smaller blob the list of its chunks would not be worth a question.
MIN_BYTES = 1024 * 1024
# Cutting reads the whole file.
_MAX_CUT_BYTES = 512 * 1024 * 1024
_OLDER_FILES = 4
# Asking for all of a blob is one request; for less than this share it is not worth many.
_WORTH_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a blob that follow one another.

    Attributes:
        start: Where they begin.
        end: Where the next piece begins.
        sha256: Of a chunk that another file here has; None: they have to come.
        path: That file.
        place: Where in it the chunk begins.
    """

    start: int
    end: int
    sha256: str | None = None
    path: Path = Path()
    place: int = 0

    def read(self) -> bytes | None:
        """The chunk; None where the file is not what it was."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.place)
                data = file.read(self.end - self.start)
        except OSError:
            return None
        return data if sha256_hex(data) == self.sha256 else None


def older_files(folder: Path, sha256: str, size: int) -> list[Path]:
    """Whole blobs of a like size beside the wanted one, newest first."""
    found = [
        path for path in folder.iterdir() if path.name != sha256 and len(path.name) == len(sha256) and holds_file(path)
    ]
    like = [path for path in found if size // 4 <= path.stat().st_size <= min(4 * size, _MAX_CUT_BYTES)]
    return sorted(like, key=lambda path: path.stat().st_mtime, reverse=True)[:_OLDER_FILES]


def compare(wanted: ChunkList, files: list[Path]) -> list[Piece]:
    """The pieces of a blob in their order; none where the files share too little with it."""
    known: dict[str, tuple[Path, int]] = {}
    for path in files:
        for chunk, place in cut_file(path).places():
            known.setdefault(chunk.sha256, (path, place))
    shared = sum(chunk.size for chunk in wanted.chunks if chunk.sha256 in known)
    if shared < _WORTH_SHARE * wanted.size:
        return []
    pieces: list[Piece] = []
    for chunk, start in wanted.places():
        end = start + chunk.size
        if chunk.sha256 in known:
            pieces.append(Piece(start, end, chunk.sha256, *known[chunk.sha256]))
        elif pieces and pieces[-1].sha256 is None:
            # What is missing side by side comes with one request.
            pieces[-1] = Piece(pieces[-1].start, end)
        else:
            pieces.append(Piece(start, end))
    return pieces
