"""Laws of blobs in pieces."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from primespark.sync.chunks import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, ChunkList, cut_bytes, cut_file

# Hypothesis draws what is random about a blob, not its megabyte; left alone, it draws small numbers.
sizes = st.builds(lambda large, small: large * 65_536 + small, st.integers(0, 24), st.integers(0, 65_536))
blobs = st.builds(lambda seed, size: random.Random(seed).randbytes(size), st.integers(0, 2**32), sizes)
flat = st.builds(lambda byte, size: bytes([byte]) * size, st.integers(0, 255), sizes)


@given(blobs | flat)
@settings(max_examples=30, deadline=None)
def test_chunks_joined_are_the_blob(data: bytes) -> None:
    cut = cut_bytes(data)
    pieces = [data[start : start + chunk.size] for chunk, start in cut.places()]
    assert b"".join(pieces) == data
    assert [hashlib.sha256(piece).hexdigest() for piece in pieces] == [chunk.sha256 for chunk in cut.chunks]
    assert (cut.sha256, cut.size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert all(MIN_CHUNK_BYTES <= chunk.size <= MAX_CHUNK_BYTES for chunk in cut.chunks[:-1])
    assert ChunkList.model_validate_json(cut.to_json()) == cut
    assert ChunkList.model_validate_json(cut.to_json()).to_json() == cut.to_json()


@given(blobs | flat)
@settings(max_examples=15, deadline=None)
def test_a_file_is_cut_as_its_bytes_are(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("cut") / "blob"
    path.write_bytes(data)
    assert cut_file(path) == cut_bytes(data)


@given(blobs, st.data())
@settings(max_examples=30, deadline=None)
def test_an_insertion_changes_the_chunks_it_lies_in(data: bytes, draw: st.DataObject) -> None:
    place = draw.draw(st.integers(0, len(data)))
    inserted = draw.draw(st.binary(min_size=1, max_size=2000))
    before = {chunk.sha256 for chunk in cut_bytes(data).chunks}
    after = cut_bytes(data[:place] + inserted + data[place:])
    new = [chunk for chunk in after.chunks if chunk.sha256 not in before]
    # The chunk itself, one that it may split off, and few more until the old ends are met again.
    assert sum(chunk.size for chunk in new) <= 6 * MAX_CHUNK_BYTES
    assert len(new) <= 12


def test_one_changed_run_of_a_hundredth_costs_little_more_than_itself() -> None:
    data = random.Random(5).randbytes(20_000_000)
    changed = bytearray(data)
    changed[9_000_000:9_200_000] = random.Random(6).randbytes(200_000)
    known = {chunk.sha256 for chunk in cut_bytes(data).chunks}
    new = [chunk for chunk in cut_bytes(bytes(changed)).chunks if chunk.sha256 not in known]
    assert sum(chunk.size for chunk in new) <= 0.03 * len(data)


DIGEST = "0" * 64


@pytest.mark.parametrize(
    "body",
    [
        {"sha256": DIGEST, "size": 2, "chunks": [{"sha256": DIGEST, "size": 1}]},
        {"sha256": DIGEST, "size": 2, "chunks": [{"sha256": DIGEST, "size": 1}, {"sha256": "1" * 64, "size": 1}]},
        {"sha256": DIGEST, "size": 0, "chunks": [{"sha256": DIGEST, "size": 0}]},
        {"sha256": DIGEST, "size": MAX_CHUNK_BYTES + 1, "chunks": [{"sha256": DIGEST, "size": MAX_CHUNK_BYTES + 1}]},
        {"sha256": DIGEST, "size": -1, "chunks": []},
        {"sha256": DIGEST.upper() + "A", "size": 0, "chunks": []},
        {"sha256": DIGEST, "size": 1, "chunks": [{"sha256": DIGEST, "size": True}]},
        {"sha256": DIGEST, "size": 1, "chunks": [{"sha256": DIGEST, "size": 1, "more": 1}]},
        {
            "sha256": DIGEST,
            "size": 2 * MIN_CHUNK_BYTES + 1,
            "chunks": [{"sha256": DIGEST, "size": MIN_CHUNK_BYTES}, {"sha256": DIGEST, "size": MIN_CHUNK_BYTES + 1}],
        },
    ],
)
def test_a_list_that_is_none_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChunkList.model_validate(body)
