"""Frames of every kind of source, and clear faults of those that have none."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_agent.sources import frames
from primespark.errors import InvalidInputError, NotFoundError

LIMIT = 1_000_000


def write_image(path: Path, level: int) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), level, np.uint8)).save(file, "PNG")
    path.write_bytes(file.getvalue())


def test_samples_come_with_the_installed_packages() -> None:
    found = list(frames("samples", 25_000_000))
    assert len(found) >= 6
    assert found[0].see().pixels.shape[2] == 3
    assert found[0].source.startswith("samples/")


def test_a_folder_gives_its_images_in_order(tmp_path: Path) -> None:
    for name, level in (("b.png", 2), ("a.PNG", 1)):
        write_image(tmp_path / name, level)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 cut off")
    found = list(frames(str(tmp_path), LIMIT))
    assert [frame.source for frame in found] == [f"{tmp_path.name}/{name}" for name in ("a.PNG", "b.png", "broken.jpg")]
    assert [int(frame.see().pixels[0, 0, 0]) for frame in found[:2]] == [1, 2]
    with pytest.raises(InvalidInputError):
        found[2].see()


def test_a_video_gives_its_frames_in_rgb(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless: pip install 'primespark[edge-cv]'")
    path = tmp_path / "clip.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for _ in range(5):
        video.write(np.full((48, 64, 3), (0, 0, 250), np.uint8))  # red, in OpenCV's order
    video.release()
    found = list(frames(str(path), LIMIT))
    assert [frame.source for frame in found] == [f"clip.avi#{n}" for n in range(5)]
    red, green, blue = found[0].see().pixels[20, 30]
    assert red > 200
    assert max(green, blue) < 60
    with pytest.raises(InvalidInputError):
        next(iter(frames(str(path), 100)))


def test_what_is_no_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        next(iter(frames(str(tmp_path / "absent"), LIMIT)))
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(InvalidInputError):
        next(iter(frames(str(tmp_path / "clip.mp4"), LIMIT)))
