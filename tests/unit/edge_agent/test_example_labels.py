"""Labels of hard examples: each revision once, nothing that the policy keeps, and what the gate makes of them."""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_agent.capture.geometry import Box
from edge_agent.capture.picture_store import PictureKind, PictureStore
from edge_agent.database import Database
from edge_agent.example_labels import MAX_IMAGE_BYTES, ExampleLabels, Labelled, LabelledBox, Labelling
from edge_agent.queue import OfflineQueue
from primespark.core.capture_settings import HardExampleSettings, ImagePolicy
from primespark.core.settings import OfflineSettings
from primespark.errors import ConflictError, InvalidInputError, NotFoundError, OverloadedError
from primespark.store.facts import label, storable_value
from primespark.store.labels import Label
from primespark.sync.records import Fact

LEFT, RIGHT = Box(0, 0, 100, 200), Box(200, 50, 300, 150)


@dataclass(frozen=True)
class Shelf:
    """A kept example, and where its labels go."""

    database: Database
    queue: OfflineQueue
    pictures: PictureStore
    example: str

    def labels(self, images: ImagePolicy = "full") -> ExampleLabels:
        return ExampleLabels(self.pictures, self.queue, images)

    def sent(self) -> list[tuple[str, Label]]:
        """What the gate makes of all facts that wait."""
        rows = self.database.submit(
            lambda connection: connection.execute("SELECT stream, seq, tail FROM operation ORDER BY id").fetchall()
        ).result()
        facts = [
            Fact.model_validate_json(json.dumps(json.loads(b"{" + tail) | {"op": "append", "stream": s, "seq": n}))
            for s, n, tail in rows
        ]
        assert all(storable_value(fact) for fact in facts)
        return [label("edge-1", fact) for fact in facts]


def shelf_on(folder: Path) -> Shelf:
    database = Database(folder / "queue.db")
    pictures = PictureStore(folder / "examples", PictureKind.EXAMPLE, HardExampleSettings(), 0)
    pixels = np.random.default_rng(1).integers(0, 256, (400, 600, 3), np.uint8)
    pixels[:, :150] = (255, 0, 0)
    kept = pictures.keep(pixels, {"reason": "novelty"})
    assert kept is not None
    return Shelf(database, OfflineQueue(database, OfflineSettings(minimum_free_disk_bytes=0)), pictures, kept)


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = shelf_on(tmp_path)
    yield made
    made.database.close()


def size_of(png: bytes) -> tuple[int, int]:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return image.size


async def test_a_label_of_the_whole_travels_with_all_of_it(shelf: Shelf) -> None:
    made = await shelf.labels().label(shelf.example, Labelling("examples", "mug"))
    assert made == Labelled(1, [shelf.example], is_new=True)
    ((dataset, sent),) = shelf.sent()
    assert (dataset, sent.sample, sent.label) == ("examples", shelf.example, "mug")
    assert len(sent.image_png) <= MAX_IMAGE_BYTES
    width, height = size_of(sent.image_png)
    assert width / height == pytest.approx(1.5, rel=0.02)
    assert width > 120


async def test_boxes_travel_as_what_is_in_them(shelf: Shelf) -> None:
    given = Labelling("examples", boxes=[LabelledBox("red", LEFT), LabelledBox("grain", RIGHT)])
    made = await shelf.labels("crops").label(shelf.example, given)
    assert made.samples == [f"{shelf.example}/0", f"{shelf.example}/1"]
    (_, red), (_, grain) = shelf.sent()
    assert (red.sample, red.label, grain.label) == (f"{shelf.example}/0", "red", "grain")
    assert (size_of(red.image_png), size_of(grain.image_png)) == ((100, 200), (100, 100))
    pixels = np.asarray(Image.open(io.BytesIO(red.image_png)), np.int16)
    assert np.abs(pixels[..., :3] - (255, 0, 0)).mean() < 10


@pytest.mark.parametrize(
    ("images", "given"),
    [
        ("off", Labelling("examples", "mug")),
        ("off", Labelling("examples", boxes=[LabelledBox("red", LEFT)])),
        ("crops", Labelling("examples", "mug")),
        ("crops", Labelling("examples", "mug", [LabelledBox("red", LEFT)])),
    ],
)
async def test_what_the_policy_keeps_stays(shelf: Shelf, images: ImagePolicy, given: Labelling) -> None:
    with pytest.raises(ConflictError) as caught:
        await shelf.labels(images).label(shelf.example, given)
    assert caught.value.code == "images_stay"
    assert "edge.capture.images" in caught.value.remedy
    assert shelf.sent() == []


@pytest.mark.parametrize(
    "box",
    [Box(0, 0, 601, 10), Box(0, 0, 10, 401), Box(5, 5, 5, 10), Box(9, 0, 3, 10), Box(0.1, 0.1, 0.2, 0.2)],
)
async def test_a_box_outside_the_picture_is_refused_with_all_others(shelf: Shelf, box: Box) -> None:
    given = Labelling("examples", boxes=[LabelledBox("red", LEFT), LabelledBox("x", box)])
    with pytest.raises(InvalidInputError) as caught:
        await shelf.labels().label(shelf.example, given)
    assert caught.value.code == "bad_box"
    assert shelf.sent() == []
    assert await shelf.labels().revisions(shelf.example) == {}


async def test_what_is_not_kept_cannot_be_labelled(shelf: Shelf) -> None:
    for example in ("example-0000000000000-00000000", "../queue", "example:x", ""):
        with pytest.raises(NotFoundError):
            await shelf.labels().label(example, Labelling("examples", "mug"))


async def test_a_full_queue_takes_none_and_the_same_word_is_new_afterwards(shelf: Shelf) -> None:
    shelf.queue._free_bytes = lambda: -1
    with pytest.raises(OverloadedError):
        await shelf.labels().label(shelf.example, Labelling("examples", "mug"))
    shelf.queue._free_bytes = lambda: 10**9
    assert (await shelf.labels().label(shelf.example, Labelling("examples", "mug"))).is_new
    assert len(shelf.sent()) == 1


async def test_a_revision_names_every_sample_of_the_earlier_ones(shelf: Shelf) -> None:
    labels = shelf.labels()
    await labels.label(shelf.example, Labelling("examples", boxes=[LabelledBox("a", LEFT), LabelledBox("b", RIGHT)]))
    with pytest.raises(ConflictError) as caught:
        await labels.label(shelf.example, Labelling("examples", boxes=[LabelledBox("a", LEFT)]))
    assert caught.value.code == "label_missing"
    assert f"{shelf.example}/1" in caught.value.message
    # Another dataset has words of its own.
    await labels.label(shelf.example, Labelling("digits", "7"))
    assert await labels.revisions(shelf.example) == {"examples": 1, "digits": 1}


async def test_many_at_once_say_one_word_once(shelf: Shelf) -> None:
    labels = shelf.labels()
    made = await asyncio.gather(*(labels.label(shelf.example, Labelling("examples", "mug")) for _ in range(8)))
    assert sorted(one.is_new for one in made) == [False] * 7 + [True]
    assert {one.revision for one in made} == {1}
    assert len(shelf.sent()) == 1


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=8))
def test_each_change_is_one_revision_and_one_fact_over_restarts(words: list[tuple[str, bool]]) -> None:
    async def say(folder: Path) -> tuple[list[tuple[int, bool]], list[str]]:
        shelf, told = shelf_on(folder), []
        for word, restarts in words:
            if restarts:
                shelf.database.close()
                database = Database(folder / "queue.db")
                shelf = Shelf(database, OfflineQueue(database, OfflineSettings()), shelf.pictures, shelf.example)
            made = await shelf.labels().label(shelf.example, Labelling("examples", word))
            told.append((made.revision, made.is_new))
        sent = [found.label for _, found in shelf.sent()]
        shelf.database.close()
        return told, sent

    with tempfile.TemporaryDirectory() as name:
        told, sent = asyncio.run(say(Path(name)))
    heard: list[Any] = [word for word, _ in words]
    is_new = [index == 0 or heard[index - 1] != word for index, word in enumerate(heard)]
    assert sent == [word for word, new in zip(heard, is_new, strict=True) if new]
    assert told == [(sum(is_new[: index + 1]), new) for index, new in enumerate(is_new)]
