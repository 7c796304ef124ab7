"""Commands at the device: each run once, whatever comes twice and whenever it is killed, and each answered."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.cache.build import build_cache, running
from edge_agent.commands import CommandRunner, Handler, handlers_of, inbox
from edge_agent.database import Database
from edge_agent.documents import Documents
from edge_agent.outgoing import Outgoing
from edge_agent.queue import OfflineQueue
from edge_agent.schema import STEPS
from primespark.core.cache_settings import EdgeCacheSettings
from primespark.core.clock import utc_now
from primespark.core.settings import EdgeSettings, OfflineSettings
from primespark.errors import ConflictError, OverloadedError
from primespark.sync.records import Command, PulledChange, PullResponse
from tests.helpers import rounds

HLC = "1790000000000-0000-cloud"
NOW_MS = 1_790_000_000_000
ONCE, SAFE = "once", "safe_to_repeat"


def command(number: int, name: str = ONCE, expires_in_s: float = 60, **arguments: Any) -> Command:
    return Command(
        command_id=f"{number:032x}", name=name, arguments=arguments, expires_at=utc_now(), expires_in_s=expires_in_s
    )


class Killed(BaseException):
    """The process is no more."""


class Life:
    """A device from one start to a kill; what it does to the world outlives it."""

    def __init__(self, path: Path, effects: list[str], limits: OfflineSettings | None = None, **other: Any) -> None:
        self.database = Database(path)
        self.queue = OfflineQueue(self.database, limits or OfflineSettings(minimum_free_disk_bytes=0))
        self.documents = Documents(self.database, "edge-1", now_ms=lambda: self.now_ms)
        self.outgoing = Outgoing(self.database, "edge-1", 100, 1_000_000)
        self.now_ms = NOW_MS
        self.kill: str | None = None
        self.effects = effects
        handlers = {ONCE: Handler(self._effect), SAFE: Handler(self._effect, is_idempotent=True)}
        self.runner = self.runs(handlers | other.pop("handlers", {}), **other)

    def runs(self, handlers: Mapping[str, Handler], **other: Any) -> CommandRunner:
        allowed = other.pop("allowed", set(handlers))
        return CommandRunner(
            self.database, self.queue, handlers, allowed, asyncio.Event(), lambda: self.now_ms, **other
        )

    async def _effect(self, given: dict[str, Any]) -> dict[str, Any]:
        if self.kill == "before":
            raise Killed
        self.effects.append(given["id"])
        if self.kill == "after":
            raise Killed
        return {"done": given["id"]}

    async def receive(self, *commands: Command) -> bool:
        """As by a pull."""
        if await self.outgoing.epoch() is None:
            await self.outgoing.begin_epoch(1)
        cursor = (await self.documents.position()).cursor
        changes = [PulledChange(cursor=cursor + 1, change=entry) for entry in commands]
        page = PullResponse(changes=changes, next_cursor=cursor + 1, has_more=False, server_epoch=1, server_hlc=HLC)
        return await self.documents.apply(page, cursor)

    async def start(self) -> None:
        """Settle and work off, as `run` does first; a kill ends it in the middle."""
        working = asyncio.create_task(self.runner.run())
        settled = asyncio.create_task(self._idle())
        await asyncio.wait({working, settled}, return_when=asyncio.FIRST_COMPLETED)
        for task in (working, settled):
            task.cancel()
        await asyncio.gather(working, settled, return_exceptions=True)

    async def _idle(self) -> None:
        open_ = "SELECT count(*) FROM command WHERE NOT is_told"
        while (await self.database.run(lambda connection: connection.execute(open_).fetchone()))[0]:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def answers(self) -> list[dict[str, Any]]:
        """What waits in the queue for the cloud."""

        def work(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            rows = connection.execute("SELECT tail FROM operation WHERE stream = 'command_results' ORDER BY seq")
            return [json.loads(b"{" + tail)["value"] for (tail,) in rows.fetchall()]

        return await self.database.run(work)


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    life = Life(tmp_path / "queue.db", [])
    yield life
    life.database.close()


STEP = st.tuples(
    st.sampled_from(["run", "kill before", "kill after", "kill received", "send again"]), st.sampled_from([ONCE, SAFE])
)


@settings(max_examples=rounds(40, 1000), deadline=None)
@given(steps=st.lists(STEP, min_size=1, max_size=8))
def test_every_command_runs_once_and_is_answered(steps: list[tuple[str, str]]) -> None:
    """The law: over all kills and repetitions, one effect at most, and an answer that says so."""
    with tempfile.TemporaryDirectory() as folder:
        effects, answers = asyncio.run(_live(Path(folder) / "queue.db", steps))
    for number, (step, name) in enumerate(steps):
        command_id = f"{number:032x}"
        told = [answer for answer in answers if answer["command_id"] == command_id]
        assert len(told) == (2 if step == "send again" else 1)
        assert len({json.dumps(answer, sort_keys=True) for answer in told}) == 1
        interrupted = step in ("kill before", "kill after") and name == ONCE
        assert (told[0]["outcome"], told[0]["code"]) == (
            ("failed", "interrupted") if interrupted else ("succeeded", None)
        )
        count = effects.count(command_id)
        if name == SAFE:
            assert count == (2 if step == "kill after" else 1)
        else:
            assert count == (0 if step == "kill before" else 1)


async def _live(path: Path, steps: list[tuple[str, str]]) -> tuple[list[str], list[dict[str, Any]]]:
    effects: list[str] = []
    life = Life(path, effects)
    for number, (step, name) in enumerate(steps):
        sent = command(number, name, id=f"{number:032x}")
        assert await life.receive(sent, sent)
        if step.startswith("kill"):
            life.kill = step.partition(" ")[2]
            if life.kill != "received":
                with pytest.raises(Killed):
                    await life.runner.work()
            life.database.close()
            life = Life(path, effects)
        await life.start()
        if step == "send again":
            await life.receive(sent)
            await life.start()
    answers = await life.answers()
    life.database.close()
    return effects, answers


async def test_what_cannot_be_run_says_why(life: Life) -> None:
    async def fails(_: dict[str, Any]) -> dict[str, Any]:
        raise ConflictError("not\0now " + "x" * 300, code="no_cache")

    async def breaks(_: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("a fault of ours")

    async def hangs(_: dict[str, Any]) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def floods(_: dict[str, Any]) -> dict[str, Any]:
        return {"text": "x" * 100_000}

    async def spits(_: dict[str, Any]) -> dict[str, Any]:
        return {"text": "\ud800"}

    known = {"fails": fails, "breaks": breaks, "hangs": hangs, "floods": floods, "spits": spits, "other": fails}
    handlers = {name: Handler(run) for name, run in known.items()}
    life.runner = life.runs(handlers, allowed=known.keys() - {"other"}, limit_s=0.01)
    names = [*known, "unknown"]
    await life.receive(*(command(number, name) for number, name in enumerate(names)))
    await life.start()
    answers = await life.answers()
    assert {answer["outcome"] for answer in answers} == {"failed"}
    assert [answer["code"] for answer in sorted(answers, key=lambda answer: answer["command_id"])] == [
        "no_cache", "internal", "command_timeout", "output_too_large", "unstorable_value", "not_allowed",
        "unknown_command",
    ]  # fmt: skip


async def test_the_deadline_is_by_what_was_left_when_it_was_sent(life: Life) -> None:
    await life.receive(command(0, expires_in_s=-1, id="0"), command(1, expires_in_s=60, id="1"))
    await life.receive(command(2, expires_in_s=59.9, id="2"))
    life.now_ms += 59_950
    await life.start()
    assert life.effects == ["1"]
    assert [answer["outcome"] for answer in await life.answers()] == ["expired", "succeeded", "expired"]


async def test_answers_wait_for_room_and_are_told_once(tmp_path: Path) -> None:
    full = Life(tmp_path / "queue.db", [], OfflineSettings(capacity_operations=1, minimum_free_disk_bytes=0))
    await full.receive(command(0, id="0"), command(1, id="1"))
    with pytest.raises(OverloadedError):
        await full.runner.work()
    # Both were run all the same.
    assert full.effects == ["0", "1"]
    full.database.close()
    wide = Life(tmp_path / "queue.db", full.effects)
    await wide.start()
    await wide.start()
    assert [answer["output"] for answer in await wide.answers()] == [{"done": "0"}, {"done": "1"}]
    assert wide.effects == ["0", "1"]
    wide.database.close()


async def test_what_ends_the_process_does_so_after_its_answer_is_on_disk(life: Life) -> None:
    ended: list[int] = []

    async def nothing(_: dict[str, Any]) -> dict[str, Any]:
        return {}

    waiting = "SELECT count(*) FROM operation"

    def end() -> None:
        with sqlite3.connect(life.database.path) as other:
            ended.append(other.execute(waiting).fetchone()[0])

    life.runner = life.runs({"end": Handler(nothing, after=end)})
    await life.receive(command(0, "end"), command(1, "end"))
    await life.runner.work()
    assert ended == [1]
    assert len(await life.answers()) == 1


async def test_no_more_than_a_thousand_are_remembered(life: Life) -> None:
    for first in range(0, 1200, 100):
        await life.receive(*(command(number, id=str(number)) for number in range(first, first + 100)))
        await life.runner.work()
    count = await life.database.run(lambda connection: connection.execute("SELECT count(*) FROM command").fetchone())
    assert inbox.REMEMBERED <= count[0] <= inbox.REMEMBERED + 100


def test_a_file_of_the_version_before_takes_commands(tmp_path: Path) -> None:
    before_commands = next(number for number, step in enumerate(STEPS) if "TABLE command" in step)
    with sqlite3.connect(tmp_path / "queue.db") as before:
        before.executescript("; ".join(STEPS[:before_commands]) + f"; PRAGMA user_version = {before_commands}")
        before.execute("INSERT INTO meta VALUES ('epoch', '7')")
    life = Life(tmp_path / "queue.db", [])
    assert asyncio.run(life.outgoing.epoch()) == 7
    assert asyncio.run(life.receive(command(0)))
    life.database.close()


async def test_the_commands_of_the_device_do_what_they_say(
    life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    asked: list[bool] = []
    cache = build_cache(EdgeCacheSettings(), tmp_path / "cache", "edge-1")
    async with running(cache):
        handlers = handlers_of(lambda: asked.append(True), cache)
        assert handlers.keys() == set(get_args(get_args(EdgeSettings.model_fields["commands"].annotation)[0]))
        await cache.set("a", b"1")
        life.runner = life.runs(handlers)
        await life.receive(
            command(0, "sync_now"), command(1, "clear_cache", tier="l0"), command(2, "clear_cache"),
            command(3, "clear_cache", tier="tape"), command(4, "sync_now", now=True), command(5, "restart"),
        )  # fmt: skip
        await life.start()
    answers = await life.answers()
    assert asked == [True]
    assert answers[1]["output"] == {"cleared": {"l0": 1}}
    assert set(answers[2]["output"]["cleared"]) == {"l0", "disk"}
    assert [answer["code"] for answer in answers] == [
        None, None, None, "bad_arguments", "bad_arguments", "not_supervised"
    ]  # fmt: skip
    life.runner = life.runs(handlers_of(lambda: None, None))
    await life.receive(command(6, "clear_cache"))
    await life.start()
    assert (await life.answers())[-1]["code"] == "no_cache"
