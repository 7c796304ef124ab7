"""What every stage has in common: find its input, do its work once per run, show what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg

from primespark.errors import InvalidInputError, PermanentError
from resources import StoreResource

if TYPE_CHECKING:
    from primespark.core.settings import LearningSettings
    from primespark.ml.outputs import StageOutput

    Output = TypeVar("Output", bound=StageOutput)

# On a run that ended with a verdict: the same labels would end the same way.
REFUSED_TAG = "primespark/refused"


class Stage:
    """One stage in one run."""

    def __init__(self, context: dg.AssetExecutionContext, store: StoreResource) -> None:
        self._context = context
        self._store = store
        self._run_id = context.run.run_id
        self._name = context.asset_key.path[-1]

    def run(self, work: Callable[[], StageOutput]) -> dict[str, Any]:
        """What `work` makes, stored; or what it made earlier in this run.

        Raises:
            dg.Failure: The same labels would fail again.
        """
        stored = self._store.load_stage(self._run_id, self._name)
        if stored is not None:
            return stored
        try:
            output = work().model_dump(mode="json")
        except PermanentError as error:
            self.refuse(error.code)
            raise dg.Failure(
                error.message, metadata={"code": error.code, "remedy": error.remedy}, allow_retries=False
            ) from error
        self._store.save_stage(self._run_id, self._name, output)
        return output

    def input(self, stage: str, kind: type[Output]) -> Output:
        """What another stage made in this run, else in the latest run that had it.

        Raises:
            InvalidInputError: Code `stage_missing`.
        """
        stored = self._store.load_stage(self._run_id, stage) or self._store.latest_stage(stage)
        if stored is None:
            raise InvalidInputError(
                f"{self._name} needs what {stage} makes", remedy=f"materialise ml/{stage}", code="stage_missing"
            )
        return kind.from_stored(stored)

    def refuse(self, code: str) -> None:
        """Note on the run why the same labels need no other one."""
        self._context.instance.add_run_tags(self._run_id, {REFUSED_TAG: code})


def result(output: dict[str, Any], check_results: Sequence[dg.AssetCheckResult] = ()) -> dg.MaterializeResult[None]:
    """A materialisation that shows a stage's output."""
    metadata = {name: dg.MetadataValue.json(value) if isinstance(value, dict | list) else value
                for name, value in output.items()}  # fmt: skip
    return dg.MaterializeResult(metadata=metadata, check_results=check_results)


def learning_settings() -> LearningSettings:
    """When a model is good enough, and the seed of the split."""
    from primespark.core.settings import load_settings

    return load_settings().cloud.learning
