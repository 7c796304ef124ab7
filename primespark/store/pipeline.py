"""What each stage of a learning run handed over."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import insert

from primespark.store.schema import pipeline_stage


def save_stage(connection: Connection, run_id: str, stage: str, output: dict[str, Any]) -> None:
    """Store a stage's output; a stage that runs again replaces it."""
    statement = insert(pipeline_stage).values(run_id=run_id, stage=stage, output=output)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["run_id", "stage"], set_={"output": statement.excluded.output, "finished_at": func.now()}
        )
    )


def load_stage(connection: Connection, run_id: str, stage: str) -> dict[str, Any] | None:
    """A stage's output in one run."""
    output: dict[str, Any] | None = connection.execute(
        select(pipeline_stage.c.output).where(pipeline_stage.c.run_id == run_id, pipeline_stage.c.stage == stage)
    ).scalar()
    return output


def latest(connection: Connection, stage: str) -> dict[str, Any] | None:
    """A stage's newest output of any run."""
    output: dict[str, Any] | None = connection.execute(
        select(pipeline_stage.c.output)
        .where(pipeline_stage.c.stage == stage)
        .order_by(pipeline_stage.c.finished_at.desc())
        .limit(1)
    ).scalar()
    return output
