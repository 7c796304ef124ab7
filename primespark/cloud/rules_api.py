"""`/api/v1/streams/rules`: rules of the stream workers that change while they run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import JSONResponse, Response

from primespark.cloud.state import Cloud, cloud_of
from primespark.core.clock import to_rfc3339
from primespark.core.logging import get_logger
from primespark.core.web import Principal, Role, read_json, require
from primespark.core.web.preconditions import check_preconditions, is_unchanged
from primespark.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    PreconditionError,
    UnavailableError,
)
from primespark.store import outbox, stream_rules
from primespark.store.outbox import TOPICS
from primespark.store.stream_rules import StoredRule
from primespark.windows.live_rules import MAX_LIVE_RULES, configured_rules, definition_of, parse_live_rule
from primespark.windows.replay import Record
from primespark.windows.trial import try_rule

if TYPE_CHECKING:
    from primespark.cloud.rule_publisher import RulePublisher

router = APIRouter(prefix="/api/v1/streams/rules")
CloudState = Annotated[Cloud, Depends(cloud_of)]
Viewer = Depends(require(Role.VIEWER))
Operator = Annotated[Principal, Depends(require(Role.OPERATOR))]
_TRIAL_DEADLINE_S = 5.0
RuleId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,120}$")]

log = get_logger(__name__)


def publisher_of(request: Request) -> Any:
    """What tells the workers, for use with `Depends`.

    Raises:
        UnavailableError: Code `streams_off`: there is no broker to tell them by.
    """
    publisher: RulePublisher | None = request.app.state.rule_publisher
    if publisher is None:
        raise UnavailableError(
            "no broker is set, so no worker would hear of it",
            remedy="set cloud.kafka.bootstrap_servers and features.streams of the cloud, then start it again",
            code="streams_off",
        )
    return publisher


# Of a package that is not needed where there is no broker.
Publisher = Annotated[Any, Depends(publisher_of)]


@router.get("", dependencies=[Viewer])
async def list_rules(cloud: CloudState) -> dict[str, Any]:
    """Rules of the file, then live ones in order of name."""
    live = await cloud.transact(stream_rules.everything)
    return {"items": [*_configured(cloud).values(), *map(describe, live)], "next_cursor": None}


@router.get("/{rule_id}", dependencies=[Viewer])
async def show_rule(rule_id: RuleId, request: Request, cloud: CloudState) -> Response:
    """One rule."""
    configured = _configured(cloud).get(rule_id)
    if configured is not None:
        return JSONResponse(configured)
    rule = await cloud.transact(lambda connection: stream_rules.find(connection, rule_id))
    if rule is None:
        raise NotFoundError(f"no rule {rule_id!r}", remedy="list them first: GET /api/v1/streams/rules")
    if is_unchanged(request, _etag(rule)):
        return Response(status_code=304, headers={"ETag": _etag(rule)})
    return JSONResponse(describe(rule), headers={"ETag": _etag(rule)})


@router.post("")
async def put_rule(request: Request, cloud: CloudState, person: Operator, publisher: Publisher) -> Response:
    """Add a rule, or with `If-Match` change one; answered when the broker has it."""
    rule = parse_live_rule(await read_json(request))
    _refuse_configured(cloud, rule.rule_id)
    stored, is_new = await cloud.transact(
        lambda connection: stream_rules.put(
            connection, rule.rule_id, definition_of(rule), f"person:{person.name}", _may_change(request),
            most=MAX_LIVE_RULES,
        )
    )  # fmt: skip
    await publisher.publish()
    log.info("rule_stored", rule_id=rule.rule_id, version=stored.version, by=stored.changed_by)
    headers = {"ETag": _etag(stored), "Location": f"{router.prefix}/{rule.rule_id}"}
    return JSONResponse(describe(stored), 201 if is_new else 200, headers)


@router.post("/dry-run")
async def dry_run(
    request: Request, cloud: CloudState, _: Operator, records: Annotated[int, Query(ge=1, le=10_000)] = 1000
) -> dict[str, Any]:
    """What a rule would have said of the newest facts of its topic; nothing is stored."""
    rule = parse_live_rule(await read_json(request))
    data_class = next((name for name, topic in TOPICS.items() if topic == rule.source_topic), None)
    if data_class is None:
        raise InvalidInputError(
            f"the cloud keeps no records of {rule.source_topic}",
            remedy=f"take one of {', '.join(TOPICS.values())}, or try it on a file: primespark streams replay",
            code="topic_not_kept",
        )
    partitions = cloud.settings.cloud.kafka.partitions
    trials: asyncio.Semaphore = request.app.state.trials
    if trials.locked():
        raise OverloadedError("another dry run is on its way", remedy="try again in a moment", retry_after_s=2)
    async with trials:
        newest = await cloud.transact(lambda connection: outbox.read_newest(connection, data_class, records))
        ends_at = time.monotonic() + _TRIAL_DEADLINE_S
        said = await asyncio.to_thread(
            try_rule, rule, _records(newest, partitions), partitions, lambda: time.monotonic() < ends_at
        )
    return {"rule_id": rule.rule_id, **said}


@router.delete("/{rule_id}")
async def delete_rule(
    rule_id: RuleId, request: Request, cloud: CloudState, person: Operator, publisher: Publisher
) -> Response:
    """Delete a live rule and its windows; answered when the broker has it."""
    _refuse_configured(cloud, rule_id)

    def check(present: StoredRule | None) -> None:
        check_preconditions(request, _etag(present) if present else None)

    try:
        await cloud.transact(lambda connection: stream_rules.remove(connection, rule_id, check))
    except NotFoundError:
        # Perhaps deleted by the same request, whose answer was lost before the broker had it.
        await publisher.publish()
        raise
    await publisher.publish()
    log.info("rule_deleted", rule_id=rule_id, by=f"person:{person.name}")
    return Response(status_code=204)


def describe(rule: StoredRule) -> dict[str, Any]:
    """A live rule as JSON."""
    return {
        "rule_id": rule.rule_id, "origin": "live", "version": rule.version, "rule": rule.definition,
        "changed_by": rule.changed_by, "changed_at": to_rfc3339(rule.changed_at),
    }  # fmt: skip


def _records(newest: Iterable[outbox.PublishedRow], partitions: int) -> Iterator[Record]:
    """As a worker would read them from the topic."""
    from aiokafka.partitioner import DefaultPartitioner

    numbers = list(range(partitions))
    partition_of = DefaultPartitioner()
    for one in newest:
        yield Record(
            ts=one.row["ts"], row=one.row, partition=partition_of(one.row["device_id"].encode(), numbers, numbers),
            at=round(one.received_at.timestamp() * 1000),
        )  # fmt: skip


def _may_change(request: Request) -> Callable[[StoredRule | None], None]:
    def check(present: StoredRule | None) -> None:
        if present is not None and "if-match" not in request.headers:
            raise PreconditionError(
                f"there is another rule {present.rule_id!r}, version {present.version}",
                remedy=f"read it, then send If-Match: {_etag(present)} to change it; a changed rule starts empty",
                code="rule_exists",
            )
        check_preconditions(request, _etag(present) if present else None)

    return check


def _configured(cloud: Cloud) -> dict[str, dict[str, Any]]:
    return {
        rule.rule_id: {
            "rule_id": rule.rule_id, "origin": "file", "version": None, "rule": definition_of(rule),
            "changed_by": None, "changed_at": None,
        }
        for rule in configured_rules(cloud.settings)
    }  # fmt: skip


def _refuse_configured(cloud: Cloud, rule_id: str) -> None:
    if rule_id in _configured(cloud):
        raise ConflictError(
            f"rule {rule_id!r} is in cloud.streams.rules_file",
            remedy="change it there and start the workers again, or take another rule_id",
            code="rule_of_file",
        )


def _etag(rule: StoredRule) -> str:
    return f'"{rule.version}"'
