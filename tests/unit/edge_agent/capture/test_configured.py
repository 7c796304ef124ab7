"""Sources of the settings: texts stay what they were, every source has a name of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_agent.capture.configured import configured_sources
from edge_agent.sources import frames
from primespark.core.capture_settings import CaptureSettings, SourceSettings
from primespark.core.settings import load_settings
from primespark.errors import ConfigurationError


@given(st.lists(st.text(max_size=80), max_size=10), st.lists(st.sampled_from(["a", "source", "samples"]), unique=True))
def test_every_source_has_a_name_of_its_own(texts: list[str], names: list[str]) -> None:
    objects = [SourceSettings(name=name, path="x") for name in names]
    found = configured_sources(CaptureSettings(sources=(*texts, *objects)))
    assert len({source.name for source in found}) == len(texts) + len(objects)
    assert [source.settings.path for source in found] == [text or "." for text in texts] + ["x"] * len(objects)


def test_texts_and_objects_may_stand_side_by_side() -> None:
    settings = CaptureSettings.model_validate(
        {"sources": ["/data/yard", {"name": "yard", "device": "2", "frames_per_second": 5}], "frames_per_second": 3}
    )
    text, camera = configured_sources(settings)
    assert (text.name, text.kind, text.frames_per_second, text.frame_name) == ("yard-2", "path", 3, None)
    assert (camera.name, camera.kind, camera.frames_per_second, camera.settings.device) == ("yard", "device", 5, 2)


def test_frames_of_a_named_folder_are_called_after_it(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert [frame.source for frame in frames(str(tmp_path), 100, "door")] == ["door/a.png"]
    assert [frame.source for frame in frames(str(tmp_path / "a.png"), 100, "door")] == ["door"]


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ([{"name": "a"}], "give one of path, url, device, csi, microphone, not none"),
        ([{"name": "a", "path": "x", "csi": 0}], "microphone, not path and csi"),
        ([{"name": "a", "url": "ftp://host/x"}], "write rtsp://HOST/PATH"),
        ([{"name": "a", "url": "rtsp://[/x"}], "write rtsp://HOST/PATH"),
        ([{"name": "a", "device": "camera"}], "write a number, or a path like /dev/video0"),
        ([{"name": "a", "device": 999}], "less than or equal to 255"),
        ([{"name": "a", "path": "x"}, {"name": "a", "path": "y"}], "two sources are named a"),
        ([{"name": "../a", "path": "x"}], "sources.0.object.name"),
        ([{"name": "a", "path": "x", "region": {"x_min": 0.5, "x_max": 0.5}}], "x_min must be below x_max"),
        ([{"name": "a", "path": "x", "regoin": {}}], "did you mean 'region'?"),
        ([{"name": "a", "path": "x", "rules": [{"name": "r", "labels": ["cat"], "zon": []}]}], "did you mean 'zone'?"),
        ([{"name": "a", "path": "x", "rules": [{"name": "r", "labels": []}]}], "at least 1 item"),
        ([{"name": "a", "path": "x", "rules": [{"name": "r", "labels": ["cat"]}] * 2}], "two rules have one name"),
        ([{"name": "a", "path": "x", "rules": [{"name": "r", "labels": ["cat"], "zone": [[0, 2]] * 3}]}], "equal to 1"),
        ([{"name": "a", "microphone": "-D default"}], "sources.0.object.microphone"),
        ([{"name": "a", "microphone": "default", "region": {}}], "region are not of a microphone"),
        ([{"name": "a", "csi": 0, "listening": {}}], "listening are not of a camera"),
        ([{"name": "a", "microphone": "x", "listening": {"window_s": 1, "hop_s": 2}}], "hop_s must not be above"),
        ([{"name": "a", "microphone": "x", "rules": [{"name": "r", "labels": ["cat"]}]}], "cat is not heard"),
        (
            [{"name": "a", "microphone": "x", "rules": [{"name": "r", "labels": ["speech"], "zone": [[0, 1]] * 3}]}],
            "r has a zone",
        ),
        ([3], "valid dictionary"),
    ],
    ids=str,
)
def test_a_bad_source_is_told_with_its_place(sources: list[Any], told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(overrides={"edge": {"capture": {"sources": sources}}})
    assert told in str(caught.value)
    assert "edge.capture" in str(caught.value)


def test_a_password_in_an_address_is_not_shown() -> None:
    sources = [{"name": "a", "url": "rtsp://user:secret@host/x"}]
    settings = load_settings(overrides={"edge": {"capture": {"sources": sources}}})
    assert "secret" not in str(settings) + settings.model_dump_json()


@pytest.mark.parametrize("written", ["off", "'off'"])
def test_off_is_a_word_with_and_without_quotes(tmp_path: Path, written: str) -> None:
    file = tmp_path / "device.yaml"
    file.write_text(f"edge: {{capture: {{images: {written}, sounds: {written}}}}}")
    capture = load_settings(file).edge.capture
    assert (capture.images, capture.sounds) == ("off", "off")
    file.write_text("edge: {capture: {images: yes}}")
    with pytest.raises(ConfigurationError):
        load_settings(file)


def test_only_sources_of_images_ask_for_a_detector() -> None:
    desk = {"name": "desk", "microphone": "default"}
    door = {"name": "door", "csi": 0}
    found = [
        load_settings(overrides={"edge": {"capture": {"sources": sources}}}).looks
        for sources in ([], [desk], [desk, door], [desk, "samples"])
    ]
    assert found == [False, False, True, True]
    assert configured_sources(CaptureSettings.model_validate({"sources": [desk]}))[0].frames_per_second == 1.0
