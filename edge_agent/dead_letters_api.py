"""`/api/v1/offline/dead-letters`: what the cloud refused, for people beside the device."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request

from edge_agent.api import Operator, Viewer
from edge_agent.dead_letters import DeadLetters

router = APIRouter(prefix="/api/v1/offline/dead-letters")
Number = Annotated[int, Path(ge=1, lt=2**62)]


def _letters_of(request: Request) -> DeadLetters:
    letters: DeadLetters = request.app.state.dead_letters
    return letters


Letters = Annotated[DeadLetters, Depends(_letters_of)]


@router.get("", dependencies=[Viewer])
async def list_dead_letters(
    letters: Letters,
    cursor: Annotated[int, Query(ge=0, lt=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """Records the cloud refused for good, oldest first, without their content."""
    items = await letters.page(cursor, limit)
    return {"items": [asdict(item) for item in items], "next_cursor": items[-1].id if len(items) == limit else None}


@router.get("/{number}", dependencies=[Viewer])
async def read_dead_letter(number: Number, letters: Letters) -> dict[str, Any]:
    """One of them with its record as it was sent."""
    letter, record = await letters.read(number)
    return {**asdict(letter), "record": json.loads(record)}


@router.post("/{number}/replay")
async def replay_dead_letter(number: Number, letters: Letters, _: Operator) -> dict[str, Any]:
    """Enqueue a fact anew under the next number of its stream."""
    return {"seq": await letters.replay(number)}


@router.post("/{number}/discard", status_code=204)
async def discard_dead_letter(number: Number, letters: Letters, _: Operator) -> None:
    """Forget one."""
    await letters.discard(number)
