"""The closed loop, step by step: each method is a step a person could do by hand, and leaves figures behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

from sqlalchemy import Engine

from primespark.cli.demo import verify
from primespark.cli.demo.clients import DeviceClient, until
from primespark.cli.demo.dagster_client import DagsterClient
from primespark.cli.demo.digits import Digit, leave_in_folder, load_demo_digits
from primespark.cli.demo.report import ModelFigures, Report
from primespark.core.settings import Settings
from primespark.embedded.link import Link
from primespark.embedded.ports import choose_port
from primespark.embedded.stack import AgentSpec, Stack
from primespark.embedded.supervisor import State
from primespark.store import database

DEVICES = ("edge-1", "edge-2")
RULE = "cpu_avg_per_minute"
ROLLUP_JOB = "hourly_rollup_job"
STAGES = (
    "data_ingestion", "data_validation", "preprocessing", "feature_engineering",
    "training", "evaluation", "model_validation", "deployment",
)  # fmt: skip
EDGE_CLASSES = ("telemetry", "inference_results", "labels")
TARGET_ACCURACY = 0.97
_FRAMES_PER_SECOND = 2
_MINIMUM_OFFLINE_FRAMES = 10
_STEP_TIMEOUT_S = 120.0
_PUSH = b"POST /sync/v1/push"

Say = Callable[[str], None]


@dataclass(slots=True)
class DemoOptions:
    """What the caller asked for."""

    home: Path
    settings: Settings
    images: list[Path] = field(default_factory=list)
    claim: TextIO | None = None


class ClosedLoop:
    """One run of the loop.

    Args:
        options: What the caller asked for.
        say: Called with one line per event worth showing.
    """

    def __init__(self, options: DemoOptions, say: Say) -> None:
        self.report = Report()
        self._options = options
        self._say = say
        self._started = time.monotonic()
        self._stopping = False
        self._first: list[Digit] = []
        self._remaining: list[Digit] = []
        self._held_back: list[Digit] = []
        link_port = choose_port(0, set())
        self.stack = Stack(
            options.settings,
            options.home,
            agents=tuple(self._agent(device_id, link_port) for device_id in DEVICES),
            on_change=self._on_change,
            claim=options.claim,
        )
        self._link = Link(int(self.stack.endpoints["cloud"].rpartition(":")[2]), link_port)
        self.devices = [
            DeviceClient(device_id, self.stack.endpoints[device_id], self.stack.key_file(device_id))
            for device_id in DEVICES
        ]
        self._dagster = DagsterClient(self.stack.endpoints["dagster"])
        self._engine: Engine | None = None

    def elapsed_s(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._started

    async def start(self) -> None:
        """Everything up, two devices enrolled, the first labelled digits in front of their cameras."""
        await self._link.start()
        self.stack.launch()
        loading = asyncio.create_task(asyncio.to_thread(self._load_digits))
        await until("a first inference on a device", self._has_first_result, _STEP_TIMEOUT_S)
        self.report.first_result_s = self.elapsed_s()
        self._say(f"first inference after {self.report.first_result_s:.1f} s")
        await loading
        self._leave(self._first)
        await self.stack.supervisor.wait_ready()
        self.report.ready_s = self.elapsed_s()
        self.report.checks["everything_ready"] = True
        self._engine = database.connect(self.stack.store_url, pool_size=2)
        self._say(f"everything ready after {self.report.ready_s:.1f} s")

    async def serve_first_version(self) -> None:
        """Version 1, trained from 60 labels, serves on both devices."""
        await until("version 1 on both devices", lambda: self._serves_at_least(1), _STEP_TIMEOUT_S)
        self._say("version 1 of the digit reader serves on both devices")

    async def work_without_link(self) -> None:
        """The link is cut: inference goes on, results and labels pile up, version 1 is measured."""
        frames_before = await self._frames()
        self._link.cut()
        self._say("the link is cut")
        self._leave(self._remaining)
        self.report.before = await self._measure()
        await until("labels in the queues", self._labels_are_queued, _STEP_TIMEOUT_S)

        async def saw_more() -> bool:
            return await self._frames() >= frames_before + _MINIMUM_OFFLINE_FRAMES

        await until("frames seen without a link", saw_more, _STEP_TIMEOUT_S)
        self.report.queued_offline = sum([await self._pending(device) for device in self.devices])
        self.report.checks["queued_while_cut_off"] = self.report.queued_offline >= len(self._remaining)
        self._say(f"{self.report.queued_offline} operations queued; version 1 reads {self.report.before.accuracy:.3f}")

    async def heal_and_drain(self) -> None:
        """The link heals, one reply is lost, the queues drain."""
        self._link.lose_next_reply(_PUSH)
        self._link.heal()
        await until("the queues drained", self._labels_are_stored, _STEP_TIMEOUT_S)
        statuses = [await device.get("/api/v1/offline/status") for device in self.devices]
        replayed = sum(int(status["replayed_batches"]) for status in statuses)
        self.report.checks["lost_reply_was_replayed"] = self._link.counts.replies_lost == 1 and replayed >= 1
        self._say(
            f"the queues are drained; replies lost: {self._link.counts.replies_lost}, batches sent again: {replayed}"
        )

    async def serve_better_version(self) -> None:
        """A better version is trained, promoted, pulled, proven and served; it is measured on the devices."""
        wanted = await self._version_trained_from(len(self._first) + len(self._remaining))
        await until(f"version {wanted} on both devices", lambda: self._serves_at_least(wanted), _STEP_TIMEOUT_S)
        self.report.redeploy_s = await self._redeploy_seconds(wanted)
        self.report.after = await self._measure()
        self.report.checks["accuracy_improved"] = self.report.after.accuracy > self.report.before.accuracy
        self.report.checks["accuracy_at_least_97_percent"] = self.report.after.accuracy >= TARGET_ACCURACY
        self._say(f"version {self.report.after.version} reads {self.report.after.accuracy:.3f}")

    async def roll_up(self) -> None:
        """A Dagster run rolls up the last hours."""
        now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        first, last = (f"{moment:%Y-%m-%d-%H:%M}" for moment in (now - timedelta(hours=1), now))
        tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
        run_id = await self._dagster.launch(ROLLUP_JOB, tags)
        status = await asyncio.wait_for(self._dagster.wait(run_id), _STEP_TIMEOUT_S)
        start, end = now - timedelta(hours=1), now + timedelta(hours=1)
        rows, equal = await self._in_store(lambda connection: verify.check_rollups(connection, start, end))
        self.report.rollup_rows = rows
        self.report.checks["rollups_equal_samples"] = equal and status == "SUCCESS"
        self._say(f"{rows} rollup rows for the last hours")

    async def check_everything(self) -> None:
        """Recompute what is stored, and read Dagster's history."""
        await self._check_windows()
        await self._check_delivery()
        stats = [await device.get("/api/v1/inference/stats") for device in self.devices]
        self.report.frames = sum(int(stat["frames"]) for stat in stats)
        self.report.p50_ms = max(float(stat["p50_ms"]) for stat in stats)
        history = await self._dagster.history()
        self.report.dagster_runs = history.runs
        self.report.materializations = sum(history.materializations.values())
        made = history.materializations
        self.report.checks["dagster_runs_succeeded"] = history.failed_runs == 0 and history.runs >= 3
        self.report.checks["edge_batches_in_asset_graph"] = all(made.get(f"edge/{name}", 0) for name in EDGE_CLASSES)
        self.report.checks["eight_stages_materialised"] = all(made.get(f"ml/{stage}", 0) >= 2 for stage in STAGES)

    async def stop(self) -> None:
        """Stop everything."""
        self._stopping = True
        started = time.monotonic()
        for device in self.devices:
            await device.aclose()
        await self._dagster.aclose()
        if self._engine is not None:
            self._engine.dispose()
        await self.stack.stop()
        await self._link.stop()
        self.report.stop_s = time.monotonic() - started

    def _agent(self, device_id: str, link_port: int) -> AgentSpec:
        sources = ["samples", *(str(path.absolute()) for path in self._options.images)]
        return AgentSpec(
            device_id,
            f"http://127.0.0.1:{link_port}",
            {
                "PRIMESPARK_EDGE__CAPTURE__LABELLED_FOLDER": str(self._folder(device_id)),
                "PRIMESPARK_EDGE__CAPTURE__SOURCES": "[" + ", ".join(f'"{source}"' for source in sources) + "]",
                "PRIMESPARK_EDGE__CAPTURE__FRAMES_PER_SECOND": str(_FRAMES_PER_SECOND),
                "PRIMESPARK_EDGE__TELEMETRY__REPLAY_RECORDING": "true",
                "PRIMESPARK_EDGE__TELEMETRY__INTERVAL_S": "1",
                "PRIMESPARK_SYNC__BATCH_WAIT_S": "0.5",
                # Nobody asks for digits while a version is under trial here, so its phases have nothing to wait for.
                "PRIMESPARK_EDGE__MODELS__SHADOW__MAX_S": "0",
                "PRIMESPARK_EDGE__MODELS__CANARY__MAX_S": "0",
                # The link is cut for seconds here, not for hours.
                "PRIMESPARK_SYNC__RETRY_BASE_S": "0.2",
                "PRIMESPARK_SYNC__RETRY_MAX_S": "1",
            },
        )

    def _load_digits(self) -> None:
        self._first, self._remaining, self._held_back = load_demo_digits(self._options.settings.cloud.learning.seed)

    def _folder(self, device_id: str) -> Path:
        return self._options.home / "cameras" / device_id

    def _leave(self, digits: list[Digit]) -> None:
        for index, device_id in enumerate(DEVICES):
            leave_in_folder(self._folder(device_id), digits[index :: len(DEVICES)])

    def _on_change(self, name: str, state: State) -> None:
        if state in {State.READY, State.RESTARTING, State.FAILED} and not self._stopping:
            self._say(f"{name} is {state}")

    async def _has_first_result(self) -> bool:
        for device in self.devices:
            if (await device.get("/api/v1/inference/stats"))["first_result_at"]:
                return True
        return False

    async def _serves_at_least(self, version: int) -> bool:
        versions = [await device.digits_version() for device in self.devices]
        return min(versions) >= version

    async def _frames(self) -> int:
        return sum([int((await device.get("/api/v1/inference/stats"))["frames"]) for device in self.devices])

    async def _pending(self, device: DeviceClient) -> int:
        return int((await device.get("/api/v1/offline/status"))["pending"])

    async def _labels_are_queued(self) -> bool:
        total = 0
        for device in self.devices:
            streams = (await device.get("/api/v1/offline/status"))["streams"]
            total += int(streams.get("labels", {}).get("last_seq", 0))
        return total == len(self._first) + len(self._remaining)

    async def _labels_are_stored(self) -> bool:
        acknowledged = await self._acknowledged()
        labels = sum(last for (_, stream), last in acknowledged.items() if stream == "labels")
        return labels == len(self._first) + len(self._remaining)

    async def _acknowledged(self) -> dict[tuple[str, str], int]:
        return {
            (device.device_id, stream): int(state["acknowledged_seq"])
            for device in self.devices
            for stream, state in (await device.get("/api/v1/offline/status"))["streams"].items()
        }

    async def _measure(self) -> ModelFigures:
        """Accuracy on the held-back digits, read by both devices."""
        frames = [digit.png for digit in self._held_back]
        answers = [await device.read_digits(frames) for device in self.devices]
        truth = [digit.label for digit in self._held_back]
        right = sum(label == expected for answer in answers for (label, _), expected in zip(answer, truth, strict=True))
        versions = {version for answer in answers for _, version in answer}
        return ModelFigures(version=min(versions), accuracy=right / (len(truth) * len(answers)))

    async def _version_trained_from(self, labels: int) -> int:
        """The version that was trained from so many labels, once it is in the twins."""
        found = 0

        async def promoted() -> bool:
            nonlocal found
            found = int(await self._in_store(lambda connection: verify.promoted_version(connection, labels)))
            return found > 0

        await until("a version trained from all labels", promoted, _STEP_TIMEOUT_S)
        return found

    async def _redeploy_seconds(self, version: int) -> float:
        registered = await self._in_store(lambda connection: verify.registered_at(connection, version))
        since = [
            datetime.fromisoformat((await device.get("/api/v1/inference/stats"))["models"]["digits"]["since"])
            for device in self.devices
        ]
        return float((max(since) - registered).total_seconds())

    async def _check_windows(self) -> None:
        found: verify.WindowCheck | None = None

        async def all_equal() -> bool:
            nonlocal found
            found = await self._in_store(lambda connection: verify.check_windows(connection, RULE))
            return found.equal and found.checked >= 60 * len(DEVICES)

        # Results of the newest window may be on their way while its samples are stored already.
        try:
            await until("windows equal to their recomputation", all_equal, 15)
        finally:
            if found is not None:
                self.report.windows, self.report.windows_checked = found.stored, found.checked
                self.report.windows_equal = found.equal
            self.report.checks["windows_equal"] = self.report.windows_equal

    async def _check_delivery(self) -> None:
        acknowledged = await self._acknowledged()
        delivery = await self._in_store(lambda connection: verify.check_delivery(connection, acknowledged))
        self.report.delivered = delivery.delivered
        self.report.duplicates, self.report.lost = delivery.duplicates, delivery.lost
        self.report.checks["nothing_lost"] = delivery.lost == 0 and delivery.delivered > 0
        self.report.checks["nothing_doubled"] = delivery.duplicates == 0

    async def _in_store(self, question: Callable[[Any], Any]) -> Any:
        engine = self._engine
        assert engine is not None  # noqa: S101 (start() has run)

        def ask() -> Any:
            with engine.connect() as connection:
                return question(connection)

        return await asyncio.to_thread(ask)
