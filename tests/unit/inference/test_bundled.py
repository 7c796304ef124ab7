"""Each bundled model on real photographs and recordings, and the laws of what stands behind it."""

from __future__ import annotations

import wave
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from primespark.errors import InvalidInputError
from primespark.inference.classification import best_of
from primespark.inference.images import decode_image
from primespark.inference.models import ServedModel, load_bundled
from primespark.inference.samples import sample_images
from primespark.inference.segmentation import decode_mask, encode_mask
from primespark.inference.speech import CHUNK, SAMPLE_RATE, SpeechDetector, find_segments

ALSA = Path("/usr/share/sounds/alsa")
CHUNK_S = CHUNK / SAMPLE_RATE


@pytest.fixture(scope="module")
def images() -> dict[str, NDArray[np.uint8]]:
    return {name: decode_image(data, 1_000_000) for name, data in sample_images()}


def only(model: ServedModel, image: NDArray[np.uint8]) -> Any:
    [answer] = model.predict(image)
    return answer


def load(name: str) -> ServedModel:
    return load_bundled(name, threads=1, minimum_score=0.4)


@pytest.fixture(scope="module")
def classifier() -> ServedModel:
    return load("efficientnet-lite0")


@pytest.fixture(scope="module")
def pose() -> ServedModel:
    return load("movenet-lightning")


@pytest.fixture(scope="module")
def segmenter() -> ServedModel:
    return load("selfie-landscape")


@pytest.fixture(scope="module")
def speech() -> ServedModel:
    return load("silero-vad")


@pytest.mark.parametrize(
    ("name", "labels", "score"),
    [
        ("coffee.png", {"espresso"}, 0.9),
        ("chelsea.png", {"tabby", "tiger cat", "Egyptian cat"}, 0.3),
        ("motorcycle_left.png", {"moped", "motor scooter"}, 0.4),
        ("china.jpg", {"palace"}, 0.3),
        ("flower.jpg", {"daisy"}, 0.2),
        ("camera.png", {"tripod"}, 0.9),
    ],
)
def test_the_classifier_names_what_is_there(
    classifier: ServedModel, images: dict[str, NDArray[np.uint8]], name: str, labels: set[str], score: float
) -> None:
    answers: list[Any] = classifier.predict(images[name])
    assert answers[0]["label"] in labels
    assert answers[0]["score"] >= score
    assert classifier.labels[answers[0]["class_id"]] == answers[0]["label"]
    scores = [answer["score"] for answer in answers]
    assert len(answers) == 5
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) <= 1.001


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.data())
def test_what_was_decided_comes_first_and_the_rest_by_score(scores: list[float], data: st.DataObject) -> None:
    decided = data.draw(st.none() | st.integers(0, len(scores) - 1))
    labels = tuple(str(index) for index in range(len(scores)))
    found = best_of(np.array(scores), labels, decided)
    rest = found if decided is None else found[1:]
    assert decided is None or found[0]["class_id"] == decided
    assert [one["score"] for one in rest] == sorted((one["score"] for one in rest), reverse=True)
    assert len({one["class_id"] for one in found}) == min(5, len(scores))


# By hand, from the photograph: x, y.
ASTRONAUT = {
    "nose": (227, 117), "left_eye": (243, 100), "right_eye": (211, 100), "left_shoulder": (330, 235),
    "right_shoulder": (140, 235),
}  # fmt: skip


def test_the_pose_of_a_person_is_where_the_person_is(pose: ServedModel, images: dict[str, NDArray[np.uint8]]) -> None:
    found = only(pose, images["astronaut.png"])
    points = {point["name"]: point for point in found["keypoints"]}
    assert tuple(points) == pose.labels
    assert np.mean([point["score"] for point in found["keypoints"][:7]]) > 0.55
    for name, (x, y) in ASTRONAUT.items():
        assert points[name]["score"] > 0.4, name
        assert np.hypot(points[name]["x"] - x, points[name]["y"] - y) < 45, (name, points[name])


def test_the_points_move_with_the_person(pose: ServedModel, images: dict[str, NDArray[np.uint8]]) -> None:
    """The same person in the right half of a wide image, and in the lower half of a tall one."""
    alone = only(pose, images["astronaut.png"])
    for axis, (dx, dy) in ((1, (512, 0)), (0, (0, 512))):
        both = np.concatenate((np.zeros_like(images["astronaut.png"]), images["astronaut.png"]), axis=axis)
        found = only(pose, both)
        for before, after in zip(alone["keypoints"][:3], found["keypoints"][:3], strict=True):
            assert after["x"] == pytest.approx(before["x"] + dx, abs=25)
            assert after["y"] == pytest.approx(before["y"] + dy, abs=25)


def test_an_animal_has_no_pose_to_speak_of(pose: ServedModel, images: dict[str, NDArray[np.uint8]]) -> None:
    found = only(pose, images["chelsea.png"])
    assert found["score"] < 0.15


@pytest.mark.parametrize(("name", "least", "most"), [("astronaut.png", 0.45, 0.65), ("camera.png", 0.25, 0.4)])
def test_the_mask_covers_the_person(
    segmenter: ServedModel, images: dict[str, NDArray[np.uint8]], name: str, least: float, most: float
) -> None:
    mask = only(segmenter, images[name])
    inside = decode_mask(mask)
    assert inside.shape == images[name].shape[:2]
    assert least < inside.mean() < most
    if name == "astronaut.png":
        face, sky = inside[90:150, 190:260], inside[0:60, 0:60]
        assert face.all()
        assert not sky.any()


def test_there_is_nobody_on_a_launch_pad(segmenter: ServedModel, images: dict[str, NDArray[np.uint8]]) -> None:
    mask = only(segmenter, images["rocket.jpg"])
    assert mask["counts"] == [images["rocket.jpg"].shape[0] * images["rocket.jpg"].shape[1]]


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_run_lengths_lead_back_to_the_mask(mask: NDArray[np.bool_]) -> None:
    encoded = encode_mask(mask)
    assert np.array_equal(decode_mask(encoded), mask)
    assert sum(encoded["counts"]) == mask.size
    assert all(count > 0 for count in encoded["counts"][1:])
    # The format itself, column by column, counted the slow way.
    column_major = [bool(mask[row, column]) for column in range(mask.shape[1]) for row in range(mask.shape[0])]
    counts, current = [0], False
    for pixel in column_major:
        if pixel != current:
            counts.append(0)
            current = pixel
        counts[-1] += 1
    assert encoded["counts"] == counts


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 3000, 3), (2000, 2, 3)])
@pytest.mark.parametrize("name", ["efficientnet-lite0", "movenet-lightning", "selfie-landscape"])
def test_tiny_and_long_images_are_answered(name: str, shape: tuple[int, ...]) -> None:
    assert load(name).predict(np.zeros(shape, np.uint8))


def recording(name: str) -> NDArray[np.float32]:
    """A recording of ALSA at 16 kHz: every third sample of 48 kHz after a mean over three."""
    path = ALSA / name
    if not path.exists():
        pytest.skip(f"no {path}: apt-get install alsa-utils")
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 48_000)
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / 32768
    return np.asarray(samples[: len(samples) // 3 * 3].reshape(-1, 3).mean(axis=1), dtype=np.float32)


@pytest.mark.parametrize("name", ["Front_Center.wav", "Rear_Left.wav", "Side_Right.wav"])
def test_speech_is_heard(speech: ServedModel, name: str) -> None:
    samples = recording(name)
    found: list[Any] = speech.predict(samples)
    spoken = sum(one["end_s"] - one["start_s"] for one in found)
    assert spoken > 0.4 * len(samples) / SAMPLE_RATE
    assert all(0 <= one["start_s"] < one["end_s"] <= len(samples) / SAMPLE_RATE for one in found)
    assert all(0.5 < one["score"] <= 1 for one in found)


def test_speech_is_heard_where_it_is(speech: ServedModel) -> None:
    silence = np.zeros(2 * SAMPLE_RATE, np.float32)
    found: list[Any] = speech.predict(np.concatenate((silence, recording("Front_Center.wav"), silence)))
    assert found[0]["start_s"] == pytest.approx(2.05, abs=0.15)


def test_noise_tone_and_silence_are_no_speech(speech: ServedModel) -> None:
    noise = np.random.default_rng(3).normal(0, 0.1, 2 * SAMPLE_RATE).astype(np.float32)
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
    for samples in (noise, tone, np.zeros(1, np.float32), np.zeros(0, np.float32), recording("Noise.wav")):
        assert speech.predict(samples) == []


def test_each_chunk_is_heard_with_the_samples_before_it(speech: ServedModel) -> None:
    samples = np.random.default_rng(1).normal(0, 0.1, CHUNK * 3 + 1).astype(np.float32)
    assert isinstance(speech.answer, SpeechDetector)
    heard = list(speech.answer.probabilities(samples))
    state, context, expected = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32), []
    for chunk in np.concatenate((samples, np.zeros(CHUNK - 1, np.float32))).reshape(-1, CHUNK):
        inputs = {"input": np.concatenate((context, chunk))[None], "state": state, "sr": np.array(16_000)}
        output, state = speech.engine.run(inputs)
        expected.append(float(output[0, 0]))
        context = chunk[-64:]
    assert heard == expected


@given(st.lists(st.sampled_from([0.0, 0.3, 0.4, 0.6, 1.0]), max_size=80))
def test_segments_are_apart_long_enough_and_cover_what_is_loud(probabilities: list[float]) -> None:
    found = find_segments(np.array(probabilities), len(probabilities) * CHUNK_S)
    for before, after in pairwise(found):
        assert after["start_s"] - before["end_s"] > 0.1
    assert all(one["end_s"] - one["start_s"] >= 0.25 - 1e-3 for one in found)
    for one in found:
        first, last = round(one["start_s"] / CHUNK_S), round(one["end_s"] / CHUNK_S)
        assert probabilities[first] >= 0.5
        assert probabilities[last - 1] >= 0.35
        assert one["score"] == pytest.approx(np.mean(probabilities[first:last]), abs=1e-4)
    for first in range(len(probabilities) - 8):
        if min(probabilities[first : first + 9]) >= 0.5:
            start, end = first * CHUNK_S + 1e-3, (first + 9) * CHUNK_S - 1e-3
            assert any(one["start_s"] <= start and end <= one["end_s"] for one in found)


@pytest.mark.parametrize("samples", [np.zeros(4), np.zeros((2, 4), np.float32), np.full(4, np.nan, np.float32)])
def test_an_array_that_is_no_recording_is_refused(speech: ServedModel, samples: NDArray[Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        speech.predict(samples)
    assert caught.value.code == "bad_audio_array"
