"""The eight stages as assets; what they do is in `primespark.ml`."""

# Without postponed annotations: Dagster looks at the type of `context` itself.

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from primespark_assets.ml.stage import Stage, learning_settings, result
from resources import BlobResource, RegistryResource, StoreResource

BETTER_THAN_CHAMPION = "better_than_champion"
# MLflow knows no compare-and-swap: one run at a time may compare with the champion and replace it.
MODEL_POOL = "digits_model"

if TYPE_CHECKING:
    Shown = dg.MaterializeResult[None]
else:
    # Dagster does not recognise the generic form beside a check.
    Shown = dg.MaterializeResult


def _stage(after: list[str], kinds: set[str], **options: Any) -> Callable[[Callable[..., Shown]], dg.AssetsDefinition]:
    make = dg.asset(
        key_prefix="ml", group_name="ml", deps=[after], kinds=kinds, pool=MODEL_POOL, code_version="1", **options
    )
    return cast("Callable[[Callable[..., Shown]], dg.AssetsDefinition]", make)


@_stage(after=["edge", "labels"], kinds={"postgres"})
def data_ingestion(context: dg.AssetExecutionContext, store: StoreResource, blobs: BlobResource) -> Shown:
    """All labels as they are now, frozen as one blob."""
    from primespark.ml import datasets, digits_pipeline, outputs
    from primespark.store import labels

    def work() -> outputs.Ingested:
        with store.transaction() as connection:
            rows = labels.read(connection, datasets.DATASET)
        return digits_pipeline.ingest(rows, blobs.store())

    return result(Stage(context, store).run(work))


@_stage(after=["ml", "data_ingestion"], kinds={"python"})
def data_validation(context: dg.AssetExecutionContext, store: StoreResource, blobs: BlobResource) -> Shown:
    """Labels whose image can be read and whose class exists; every class must be among them."""
    from primespark.ml import digits_pipeline, outputs

    stage = Stage(context, store)

    def work() -> outputs.Validated:
        return digits_pipeline.validate(stage.input("data_ingestion", outputs.Ingested), blobs.store())

    return result(stage.run(work))


@_stage(after=["ml", "data_validation"], kinds={"numpy"})
def preprocessing(context: dg.AssetExecutionContext, store: StoreResource, blobs: BlobResource) -> Shown:
    """Images as 8 x 8 pixels, by the code that serves."""
    from primespark.ml import digits_pipeline, outputs

    stage = Stage(context, store)
    return result(
        stage.run(lambda: digits_pipeline.preprocess(stage.input("data_validation", outputs.Validated), blobs.store()))
    )


@_stage(after=["ml", "preprocessing"], kinds={"numpy"})
def feature_engineering(context: dg.AssetExecutionContext, store: StoreResource, blobs: BlobResource) -> Shown:
    """Model inputs, without the digits that will judge the model."""
    from primespark.ml import digits_pipeline, outputs

    stage, seed = Stage(context, store), learning_settings().seed

    def work() -> outputs.Featured:
        return digits_pipeline.engineer_features(
            stage.input("preprocessing", outputs.Preprocessed), blobs.store(), seed
        )

    return result(stage.run(work))


@_stage(after=["ml", "feature_engineering"], kinds={"scikitlearn", "onnx"})
def training(context: dg.AssetExecutionContext, store: StoreResource, blobs: BlobResource) -> Shown:
    """The candidate, as one ONNX file."""
    from primespark.ml import digits_pipeline, outputs

    stage = Stage(context, store)
    return result(
        stage.run(lambda: digits_pipeline.train(stage.input("feature_engineering", outputs.Featured), blobs.store()))
    )


@_stage(after=["ml", "training"], kinds={"onnx"})
def evaluation(
    context: dg.AssetExecutionContext, store: StoreResource, blobs: BlobResource, registry: RegistryResource
) -> Shown:
    """Candidate and champion on digits no device ever sends."""
    from primespark.ml import digits_pipeline, outputs

    stage, seed = Stage(context, store), learning_settings().seed

    def work() -> outputs.Evaluated:
        champion = registry.registry().champion()
        return digits_pipeline.evaluate(stage.input("training", outputs.Trained), champion, blobs.store(), seed)

    return result(stage.run(work))


@_stage(
    after=["ml", "evaluation"],
    kinds={"python"},
    check_specs=[
        dg.AssetCheckSpec(
            BETTER_THAN_CHAMPION,
            asset=["ml", "model_validation"],
            blocking=True,
            description="The gate before deployment: the minimum accuracy is reached and the champion is beaten.",
        )
    ],
)
def model_validation(context: dg.AssetExecutionContext, store: StoreResource) -> Shown:
    """The verdict on the candidate."""
    from primespark.ml import digits_pipeline, outputs

    stage, minimum = Stage(context, store), learning_settings().minimum_accuracy
    output = stage.run(lambda: digits_pipeline.judge(stage.input("evaluation", outputs.Evaluated), minimum))
    if not output["passed"]:
        stage.refuse("not_better")
    check = dg.AssetCheckResult(
        passed=output["passed"], check_name=BETTER_THAN_CHAMPION, metadata={"reason": output["reason"]}
    )
    return result(output, [check])


@_stage(after=["ml", "model_validation"], kinds={"mlflow"})
def deployment(
    context: dg.AssetExecutionContext, store: StoreResource, blobs: BlobResource, registry: RegistryResource
) -> Shown:
    """The candidate registered, signed and put into service."""
    from primespark.ml import outputs
    from primespark.ml.deployment import deploy

    stage = Stage(context, store)

    def work() -> outputs.Deployed:
        judged = stage.input("model_validation", outputs.Judged)
        evaluated = stage.input("evaluation", outputs.Evaluated)
        counter = learning_settings().rollback_counter
        return deploy(judged, evaluated, registry.registry(), blobs.store(), blobs.signing_key(), counter)

    return result(stage.run(work))


STAGES = [
    data_ingestion, data_validation, preprocessing, feature_engineering,
    training, evaluation, model_validation, deployment,
]  # fmt: skip
