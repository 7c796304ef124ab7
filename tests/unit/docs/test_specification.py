"""The specification's classes are where the map of the code says, and its usage examples are run as printed."""

from __future__ import annotations

import ast
import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# Of the specification, not of our code: its modules, where the design has them, and their key classes.
CLASSES = {
    "edge.inference_manager": (
        "edge_agent.inference_manager",
        "HailoInferenceEngine CPUInferenceEngine EdgeInferenceManager InferenceRequest InferenceResult",
    ),
    "edge.preprocessing": (
        "edge_agent.preprocessing",
        "ImagePreprocessor AudioPreprocessor SensorPreprocessor EdgePreprocessingPipeline",
    ),
    "edge.cache_manager": ("edge_agent.cache_manager", "MemoryCacheManager DiskCacheManager EdgeCacheManager"),
    "edge.offline_manager": ("edge_agent.offline_manager", "ConnectivityMonitor OperationQueue OfflineManager"),
    "cloud.kva_analytics": (
        "primespark.cloud.kva_analytics",
        "TimescaleDBManager RedisAnalyticsCache KVAAnalyticsEngine",
    ),
    "cloud.aggregation_engine": (
        "streams.aggregation_engine",
        "TumblingWindowManager SlidingWindowManager StreamProcessor AggregationEngine",
    ),
    "cloud.ml_pipeline": ("primespark.cloud.ml_pipeline", "MLflowManager PipelineStageExecutor MLPipelineManager"),
    "cloud.compute_manager": (
        "primespark.cloud.compute_manager",
        "ResourceMonitor LoadBalancer AutoScaler ComputeManager",
    ),
    "sync.sync_engine": ("edge_agent.sync_engine", "VersionTracker ConflictResolver BandwidthOptimizer SyncEngine"),
    "orchestration.orchestrator": (
        "primespark.orchestration.orchestrator",
        "ServiceMesh HealthMonitor AlertManager Orchestrator",
    ),
}

# As printed, without the import.
EXAMPLES = {
    "edge.inference_manager": """
manager = get_inference_manager()
await manager.initialize()
request = InferenceRequest(
    request_id="req-001",
    model_name="yolov8n",
    model_type=ModelType.OBJECT_DETECTION,
    input_data=image_array
)
result = await manager.infer(request)
print(f"Predictions: {result.predictions}")
print(f"Latency: {result.latency_ms}ms")
""",
    "edge.preprocessing": """
pipeline = get_preprocessing_pipeline()
processed = await pipeline.preprocess(
    data=raw_image,
    data_type=DataType.IMAGE,
    config=PreprocessingConfig(resize_dims=(640, 640))
)
""",
    "edge.cache_manager": """
cache = get_cache_manager()
await cache.initialize()
await cache.set("inference_result_123", result, tier=CacheTier.MEMORY, ttl=3600)
value = await cache.get("inference_result_123")
""",
    "edge.offline_manager": """
manager = get_offline_manager()
await manager.initialize()
operation_id = await manager.queue_operation(
    operation_type=OperationType.INFERENCE,
    payload={"model": "yolov8", "data": image},
    priority=Priority.HIGH
)
print(f"Online: {manager.is_online()}")
print(f"Queue size: {manager.get_status()['queue_size']}")
""",
    "cloud.kva_analytics": """
engine = get_analytics_engine()
await engine.initialize()
await engine.insert_metric(
    metric_name="cpu_usage",
    value=75.5,
    labels={"host": "edge-01"},
    device_id="pi5-001"
)
result = await engine.query(QueryConfig(
    metric_name="cpu_usage",
    aggregation=AggregationType.AVG,
    time_range=(start_time, end_time),
    granularity=TimeGranularity.MINUTE
))
""",
    "cloud.aggregation_engine": """
engine = get_aggregation_engine()
await engine.initialize()
rule = AggregationRule(
    rule_id="cpu_avg_per_minute",
    source_topic="edge.telemetry",
    target_topic="cloud.aggregated",
    window_config=WindowConfig(
        window_type=WindowType.TUMBLING,
        size_seconds=60
    ),
    aggregation_function=AggregationFunction.AVG,
    group_by=["device_id"],
    value_field="cpu_percent"
)
await engine.add_rule(rule)
await engine.start()  # Begin processing
""",
    "sync.sync_engine": """
engine = get_sync_engine()
await engine.initialize()
records = [
    SyncRecord(
        record_id="metric_001",
        data_type=DataType.METRICS,
        source="edge",
        destination="cloud",
        data_hash="abc123",
        version=1,
        timestamp=datetime.now(),
        size_bytes=1024
    )
]
operation = await engine.sync_data(records, SyncDirection.EDGE_TO_CLOUD)
print(f"Status: {operation.status}")
""",
}
# Names that an example is given by what stands around it.
GIVEN = {"image_array", "raw_image", "image", "result", "start_time", "end_time", "datetime", "print"}

_ROW = re.compile(r"^\| `([\w.]+)` \| `([\w.]+)` \| (.+) \| `(tests/[\w/]+\.py)::(\w+)` \|$", re.MULTILINE)
ROWS = {
    module: (door, re.findall(r"\w+", classes), ROOT / path, test)
    for module, door, classes, path, test in _ROW.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
}


def _is_built(door: str) -> bool:
    try:
        return find_spec(door) is not None
    except ModuleNotFoundError:
        return False


def test_what_is_built_and_nothing_else_is_on_the_map() -> None:
    assert ROWS.keys() == {module for module, (door, _) in CLASSES.items() if _is_built(door)}
    assert EXAMPLES.keys() == ROWS.keys()


@pytest.mark.parametrize("module", ROWS)
def test_each_class_is_a_name_of_its_door(module: str) -> None:
    door, classes, _, _ = ROWS[module]
    assert (door, " ".join(classes)) == CLASSES[module]
    public = importlib.import_module(door)
    assert set(classes) <= set(public.__all__)
    assert all(isinstance(getattr(public, name), type) for name in classes)


@pytest.mark.parametrize("module", ROWS)
def test_what_an_example_needs_is_a_name_of_its_door(module: str) -> None:
    nodes = [node for node in ast.walk(ast.parse(EXAMPLES[module])) if isinstance(node, ast.Name)]
    made = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
    needed = {node.id for node in nodes if isinstance(node.ctx, ast.Load)} - made - GIVEN
    assert needed <= set(importlib.import_module(ROWS[module][0]).__all__)


@pytest.mark.parametrize("module", ROWS)
def test_the_example_is_run_as_printed(module: str) -> None:
    _, _, path, name = ROWS[module]
    tests = ast.parse(path.read_text(encoding="utf-8")).body
    (test,) = [node for node in tests if isinstance(node, ast.AsyncFunctionDef) and node.name == name]
    run = iter(map(ast.dump, test.body))
    missing = [ast.unparse(printed) for printed in ast.parse(EXAMPLES[module]).body if ast.dump(printed) not in run]
    assert missing == []
