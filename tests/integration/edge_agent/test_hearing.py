"""A microphone of ALSA, the real model, the real queue: events, clips, what leaves the device, and faults."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
from prometheus_client import REGISTRY

from edge_agent.capture import Capture
from edge_agent.capture.broadcast import Broadcast
from edge_agent.capture.picture_store import PictureKind, PictureStore
from edge_agent.capture.watching import SourceState
from edge_agent.database import Database
from edge_agent.inference_service import InferenceService
from edge_agent.slots.in_service import Slots
from primespark.core.capture_settings import CaptureSettings
from primespark.core.settings import InferenceSettings
from primespark.store.facts import storable_value
from primespark.sync.records import Fact
from tests.integration.edge_agent.cameras import build_capture
from tests.integration.edge_agent.device import until
from tests.integration.edge_agent.microphones import (
    RATE_HZ,
    Samples,
    microphone,
    needs_alsa,
    open_pipe,
    recording,
    silence,
)

pytestmark = needs_alsa()

RULE = {"name": "somebody-speaks", "labels": ["speech"], "minimum_duration_s": 0.5, "cool_down_s": 3600}


@dataclass(frozen=True)
class Listening:
    """A capture at work."""

    capture: Capture
    clips: PictureStore
    broadcast: Broadcast
    database: Database

    @property
    def state(self) -> SourceState:
        return self.capture.sources["desk"].state

    def facts(self, stream: str) -> list[dict[str, Any]]:
        """All facts of a stream that wait, as they will travel."""
        select = "SELECT seq, tail FROM operation WHERE stream = ? ORDER BY seq"
        rows = self.database.submit(lambda connection: connection.execute(select, (stream,)).fetchall()).result()
        return [json.loads(b"{" + tail) | {"op": "append", "stream": stream, "seq": seq} for seq, tail in rows]


@contextlib.asynccontextmanager
async def listening(folder: Path, *, source: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[Listening]:
    database = Database(folder / "queue.db")
    service = InferenceService(Slots(), InferenceSettings())
    desk = {"name": "desk", "microphone": "desk", "rules": [RULE]} | (source or {})
    capture, _, pictures, broadcast = build_capture(
        CaptureSettings.model_validate({"sources": [desk]} | settings), service, database
    )
    task = asyncio.create_task(capture.run(None))
    try:
        yield Listening(capture, pictures[PictureKind.EVENT], broadcast, database)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        service.close()
        database.close()


def scene(name: str) -> Samples:
    return np.concatenate((silence(2.3), recording(name), silence(2)))


async def heard(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[list[Any], list[Any], Any]:
    """Results, events and kept clips of a scene with somebody who speaks."""
    with microphone(folder, monkeypatch, scene("Front_Center.wav")):
        async with listening(folder, **settings) as at_work:
            await until(lambda: len(at_work.facts("inference_results")) >= 5, 30)
            kept = at_work.clips.list(None, 10).pictures
            files = [(one.note, at_work.clips.read(one.id)) for one in kept]
            return at_work.facts("inference_results"), at_work.facts("events"), files


async def test_speech_makes_one_event_with_a_clip_and_no_sound_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, (event,), ((note, clip),) = await heard(tmp_path, monkeypatch)
    value = event["value"]
    assert (value["event"], value["source"], value["label"], value["model"]) == (
        "somebody-speaks",
        "desk",
        "speech",
        "silero-vad",
    )
    assert value["score"] > 0.5
    assert 0.5 <= value["duration_s"] <= 1.5
    started, ended = (datetime.fromisoformat(value[name]) for name in ("started_at", "ended_at"))
    assert (ended - started).total_seconds() == pytest.approx(value["duration_s"], abs=0.002)
    assert note.items() <= value.items()
    assert {result["value"]["window_s"] for result in results} == {2.0}
    assert any(result["value"]["predictions"] for result in results)
    assert max(len(json.dumps(fact)) for fact in [event, *results]) < 2_000
    assert not [key for key in value if "sound" in key]
    check_clip(clip, value)


def check_clip(clip: bytes, value: dict[str, Any]) -> None:
    """It begins a second before the speech, and holds it bit for bit."""
    samples, rate = soundfile.read(io.BytesIO(clip), dtype="int16")
    assert rate == RATE_HZ
    whole = scene("Front_Center.wav")
    possible = range(RATE_HZ, 3 * RATE_HZ)
    offsets = [begin for begin in possible if np.array_equal(whole[begin : begin + len(samples)], samples)]
    assert len(offsets) == 1
    speech_begin = offsets[0] / RATE_HZ + 1.0
    assert 2.3 <= speech_begin <= 2.9
    assert len(samples) / RATE_HZ >= 1.0 + value["duration_s"]


async def test_what_the_policy_lets_leave_travels_in_the_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (event,), ((note, clip),) = await heard(tmp_path, monkeypatch, sounds="clips")
    # What the gate does with a fact of the device.
    storable_value(Fact.model_validate_json(json.dumps(event)))
    assert "sound_flac_base64" not in note
    assert event["value"]["sound_kind"] == "clip"
    data = base64.b64decode(event["value"]["sound_flac_base64"])
    assert len(data) <= 48 * 1024
    sent, kept = (soundfile.read(io.BytesIO(one), dtype="int16")[0] for one in (data, clip))
    np.testing.assert_array_equal(sent, kept[: len(sent)])
    assert len(sent) > RATE_HZ


async def test_a_rule_without_snapshots_keeps_and_sends_no_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"rules": [RULE | {"snapshot": False}]}
    _, (event,), files = await heard(tmp_path, monkeypatch, source=source, sounds="clips")
    assert (event["value"]["snapshot"], files) == (None, [])
    assert "sound_flac_base64" not in event["value"]


async def test_noise_is_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with microphone(tmp_path, monkeypatch, scene("Noise.wav")):
        async with listening(tmp_path) as at_work:
            await until(lambda: len(at_work.facts("inference_results")) >= 5, 30)
            assert at_work.facts("events") == []
            assert [fact["value"]["predictions"] for fact in at_work.facts("inference_results")[:5]] == [[]] * 5


async def test_a_microphone_that_hangs_is_opened_anew_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_pipe(tmp_path, monkeypatch) as pipe:
        async with listening(tmp_path, source={"silence_s": 0.3}) as at_work:
            desk, before = at_work.capture.sources["desk"], reconnects()
            os.write(pipe, silence(0.5).tobytes())
            await until(lambda: at_work.state is SourceState.LIVE, 20)
            await until(lambda: at_work.state is SourceState.RECONNECTING, 20)
            assert "no sound for 0.3 s" in desk.fault
            assert (up(), reconnects(), len(recorders())) == (0, before + 1, len(recorders()))
            await until(lambda: write(pipe, silence(0.1)) and at_work.state is SourceState.LIVE, 20)
            assert (desk.fault, up()) == ("", 1)
            assert len(recorders()) == 1
    assert recorders() == []


def write(pipe: int, samples: Samples) -> bool:
    """Write to a pipe that has room for it; one that is full is being read by nobody."""
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        os.write(pipe, samples.tobytes())
    return True


def recorders() -> list[psutil.Process]:
    """Processes of ours that record, or will."""
    found = []
    for child in psutil.Process(os.getpid()).children():
        with contextlib.suppress(psutil.Error):
            if any(part.endswith("arecord") for part in child.cmdline()):
                found.append(child)
    return found


def up() -> float | None:
    return REGISTRY.get_sample_value("primespark_capture_source_up", {"source": "desk"})


def reconnects() -> float:
    labels = {"source": "desk", "code": "microphone_silent"}
    return REGISTRY.get_sample_value("primespark_capture_reconnects_total", labels) or 0.0


async def test_a_full_queue_costs_facts_not_clips_and_not_listeners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with microphone(tmp_path, monkeypatch, scene("Front_Center.wav")):
        async with listening(tmp_path) as at_work:
            with at_work.broadcast.listen() as listener:
                at_work.capture._hearing._earwitness._queue._free_bytes = lambda: 0
                messages = listener.messages()
                while not (message := await asyncio.wait_for(anext(messages), 20)).startswith(b"event: event"):
                    pass
                value = json.loads(message.split(b"data: ")[1])
                assert at_work.clips.read(value["snapshot"])
                assert at_work.facts("events") == at_work.facts("inference_results") == []
