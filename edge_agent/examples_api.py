"""Hard examples over HTTP: which there are, and what people say that they show."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AfterValidator, Field, model_validator
from starlette.responses import JSONResponse, Response

from edge_agent.capture.geometry import Box
from edge_agent.capture.picture_store import PictureKind, PictureStore
from edge_agent.capture_api import describe_picture
from edge_agent.example_labels import ExampleLabels, LabelledBox, Labelling
from primespark.core.values import is_storable_text
from primespark.core.web import Principal, Role, read_model, require
from primespark.sync.records import Message

router = APIRouter(prefix="/api/v1/examples")
# Labels are words; what is larger is no labelling.
MAX_BODY_BYTES = 64 * 1024
MAX_BOXES = 32


def _storable(text: str) -> str:
    if not is_storable_text(text):
        raise ValueError("no NUL and no half of a surrogate pair")
    return text


LabelText = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_storable)]
Pixel = Annotated[float, Field(ge=0, le=100_000)]


class GivenBox(Message):
    """A part of a picture, in its pixels."""

    x_min: Pixel
    y_min: Pixel
    x_max: Pixel
    y_max: Pixel


class GivenPart(Message):
    """What a part of a picture shows."""

    label: LabelText
    box: GivenBox


class LabelRequest(Message):
    """What a picture shows; a label, boxes, or both."""

    dataset: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")] = "examples"
    label: LabelText | None = None
    boxes: Annotated[list[GivenPart], Field(max_length=MAX_BOXES)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.label is None and not self.boxes:
            raise ValueError("give `label`, `boxes`, or both")
        return self


def _labels_of(request: Request) -> ExampleLabels:
    labels: ExampleLabels = request.app.state.example_labels
    return labels


def _pictures_of(request: Request) -> PictureStore:
    pictures: PictureStore = request.app.state.capture_parts.pictures[PictureKind.EXAMPLE]
    return pictures


Labels = Annotated[ExampleLabels, Depends(_labels_of)]
Pictures = Annotated[PictureStore, Depends(_pictures_of)]


@router.get("", dependencies=[Depends(require(Role.VIEWER))])
async def list_examples(
    pictures: Pictures,
    labels: Labels,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> dict[str, Any]:
    """Kept hard examples, the newest first, with the last revision of their labels by dataset."""
    found = await asyncio.to_thread(pictures.list, cursor, limit)
    items = [describe_picture(one) | {"labelled": await labels.revisions(one.id)} for one in found.pictures]
    return {"items": items, "next_cursor": found.next_cursor}


@router.post("/{example_id}/label")
async def label_example(
    request: Request, example_id: str, labels: Labels, _: Annotated[Principal, Depends(require(Role.OPERATOR))]
) -> Response:
    """Say what a hard example shows; 201 for another word than the last one, 200 for the same again."""
    asked = await read_model(request, LabelRequest, MAX_BODY_BYTES)
    boxes = [LabelledBox(part.label, Box.of(part.box.model_dump())) for part in asked.boxes]
    made = await labels.label(example_id, Labelling(asked.dataset, asked.label, boxes))
    answer = {"id": example_id, "dataset": asked.dataset, "revision": made.revision, "samples": made.samples}
    return JSONResponse(answer, 201 if made.is_new else 200)
