"""What is kept of a model: read as it was written, by this version and by earlier ones, or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.slots.state import MAX_KNOWN_MODELS, Attempt, Pointer, Refusal, SlotState, StateFiles
from primespark.errors import IntegrityError

SHA = "0123456789abcdef" * 4
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
states = st.builds(
    SlotState,
    manifest=st.none() | digests,
    artifact=st.none() | digests,
    highest_counter=st.integers(0, 2**53),
    attempt=st.none() | st.builds(Attempt, manifest=digests, count=st.integers(1, 3)),
    refused=st.none()
    | st.builds(Refusal, manifest=digests, version=st.integers(1, 9), code=st.just("candidate_failed")),
)


@given(states)
def test_a_state_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, state: SlotState) -> None:
    folder = tmp_path_factory.mktemp("models", numbered=True)
    files = StateFiles(folder)
    files.save("digits", state)
    assert files.load_all().get("digits", SlotState()) == state
    files.save("digits", SlotState())
    assert list(folder.iterdir()) == []


def test_what_an_earlier_version_wrote_is_understood(tmp_path: Path) -> None:
    (tmp_path / "digits.json").write_text(json.dumps({"manifest": SHA, "artifact": SHA}))
    assert StateFiles(tmp_path).load_all() == {"digits": SlotState(manifest=SHA, artifact=SHA)}


@pytest.mark.parametrize("content", [b"", b"no json", b"[]", b'{"manifest": 1}', b'{"highest_counter": -1}', b"\xff"])
def test_a_damaged_file_is_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "digits.json").write_bytes(content)
    assert StateFiles(tmp_path).load_all() == {}
    assert list(tmp_path.iterdir()) == []


def test_names_without_end_are_refused(tmp_path: Path) -> None:
    for number in range(MAX_KNOWN_MODELS):
        (tmp_path / f"m{number}.json").write_text("{}")
    files, kept = StateFiles(tmp_path), SlotState(highest_counter=1)
    with pytest.raises(IntegrityError) as caught:
        files.save("one-more", kept)
    assert caught.value.code == "too_many_models"
    files.save("m1", kept)
    assert len(files.load_all()) == MAX_KNOWN_MODELS


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5))
def test_no_value_in_a_twin_breaks_the_reader(value: Any) -> None:
    with pytest.raises(IntegrityError) as caught:
        Pointer.parse("digits", {"version": 1, "manifest": SHA, "artifacts": value} if value != [SHA] else value)
    assert caught.value.code == "bad_pointer"


def test_a_pointer_as_the_cloud_writes_it() -> None:
    pointer = Pointer.parse("digits", {"version": 3, "manifest": SHA, "artifacts": [SHA], "note": "kept for later"})
    assert (pointer.version, pointer.manifest, pointer.artifacts) == (3, SHA, (SHA,))


@pytest.mark.parametrize("lay", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path)])
def test_what_is_no_file_is_as_none_and_makes_room(tmp_path: Path, lay: Callable[[Path], None]) -> None:
    lay(tmp_path / "a.json")
    files = StateFiles(tmp_path)
    assert files.load_all() == {}
    state = SlotState(highest_counter=3)
    files.save("a", state)
    assert files.load_all() == {"a": state}
