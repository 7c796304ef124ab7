"""What the demo measured, as a table and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table


@dataclass(slots=True)
class ModelFigures:
    """One version of the digit reader, as measured on the devices."""

    version: int = 0
    accuracy: float = 0.0


@dataclass(slots=True)
class Report:
    """Everything measured, filled in as the loop goes on."""

    frames: int = 0
    p50_ms: float = 0.0
    queued_offline: int = 0
    delivered: int = 0
    duplicates: int = 0
    lost: int = 0
    windows: int = 0
    windows_checked: int = 0
    windows_equal: bool = False
    rollup_rows: int = 0
    dagster_runs: int = 0
    materializations: int = 0
    before: ModelFigures = field(default_factory=ModelFigures)
    after: ModelFigures = field(default_factory=ModelFigures)
    redeploy_s: float = 0.0
    first_result_s: float = 0.0
    ready_s: float = 0.0
    stop_s: float | None = None
    total_s: float = 0.0
    cpu_s: float = 0.0
    checks: dict[str, bool] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return bool(self.checks) and all(self.checks.values())

    def to_json(self) -> str:
        """One JSON object."""
        values: dict[str, Any] = asdict(self)
        values["model"] = {"before": values.pop("before"), "after": values.pop("after")}
        values["ok"] = self.ok
        return json.dumps(
            {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
        )

    def to_table(self) -> Table:
        """The same for a person."""
        table = Table(title="The closed loop, as measured", title_justify="left")
        table.add_column("what")
        table.add_column("measured", justify="right")
        table.add_column("means")
        for row in self._rows():
            table.add_row(*row)
        for name, holds in self.checks.items():
            table.add_row(f"check: {name.replace('_', ' ')}", "yes" if holds else "[bold red]NO[/]", "")
        return table

    def _rows(self) -> list[tuple[str, str, str]]:
        return [
            ("first inference", f"{self.first_result_s:.1f} s", "after the start, on a device"),
            ("everything ready", f"{self.ready_s:.1f} s", "database, broker, cloud, streams, Dagster, two devices"),
            ("frames seen", f"{self.frames}", f"inference p50 {self.p50_ms:.1f} ms"),
            ("queued while cut off", f"{self.queued_offline}", "operations, durable on the devices"),
            ("delivered", f"{self.delivered}", f"{self.duplicates} doubled, {self.lost} lost"),
            ("windows", f"{self.windows_checked} of {self.windows}", "recomputed with numpy"),
            ("rollup rows", f"{self.rollup_rows}", "hourly, made by a Dagster run"),
            ("Dagster", f"{self.dagster_runs} runs", f"{self.materializations} materialisations"),
            ("reading digits before", f"{self.before.accuracy:.3f}", f"version {self.before.version}, on the devices"),
            ("reading digits after", f"{self.after.accuracy:.3f}", f"version {self.after.version}, on the devices"),
            ("redeployed in", f"{self.redeploy_s:.1f} s", "from registered to serving on both devices"),
            *self._rows_of_end(),
        ]

    def _rows_of_end(self) -> list[tuple[str, str, str]]:
        if self.stop_s is None:
            return []
        return [
            ("stopped in", f"{self.stop_s:.1f} s", "every process"),
            ("total", f"{self.total_s:.1f} s", f"{self.cpu_s:.1f} s of CPU"),
        ]
