"""The documentation is true: every code, metric, command and setting is in it, and every link leads somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from fastapi.routing import APIRoute

from edge_agent import api, cache_api, capture_api, examples_api, openai_api, preprocess_api, records_api
from edge_agent.capture.configured import configured_sources
from edge_agent.open_inference import routes as open_inference
from primespark.cli.main import app
from primespark.cloud import (
    analytics_api,
    blobs_api,
    commands_api,
    conflicts_api,
    gate,
    lineage_api,
    otlp_api,
    people,
    remote_write_api,
    rules_api,
    summary_api,
)
from primespark.cloud import records_api as cloud_records_api
from primespark.core.clock import utc_now
from primespark.core.manifests import Manifest, SignedManifest, SigningKey, Variant
from primespark.core.settings import Settings, load_settings
from primespark.store.blobs import BlobStore

ROOT = Path(__file__).parents[3]
PACKAGES = ("primespark", "edge_agent", "streams", "resources", "primespark_assets")
METRIC_TYPES = {"Counter", "Gauge", "GaugeMetricFamily", "Histogram"}
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def _calls() -> Iterator[ast.AST]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def _error_codes() -> set[str]:
    codes = set()
    for node in _calls():
        if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
            codes.add(node.value.value)
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
            for statement in node.body:
                if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "code":
                    codes.add(ast.literal_eval(statement.value))
    return {code for code in codes if isinstance(code, str)}


def _metrics() -> set[str]:
    names = set()
    for node in _calls():
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in METRIC_TYPES and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and str(first.value).startswith("primespark_"):
                names.add(str(first.value))
    return names


def _commands(group: typer.Typer, prefix: str = "primespark") -> Iterator[str]:
    for command in group.registered_commands:
        yield f"{prefix} {command.name or command.callback.__name__}"  # type: ignore[union-attr]
    for sub in group.registered_groups:
        assert sub.typer_instance is not None
        yield from _commands(sub.typer_instance, f"{prefix} {sub.name}")


def _settings() -> Iterator[str]:
    for section, fields in Settings().model_dump(by_alias=True).items():
        yield from _leaves(fields, section)


def _leaves(fields: dict[str, object], prefix: str) -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}"


def _missing(page: str, names: set[str]) -> set[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return {name for name in names if f"`{name}`" not in text}


def test_every_error_code_is_explained() -> None:
    assert _missing("errors.md", _error_codes()) == set()


def test_every_metric_is_explained() -> None:
    assert _missing("metrics.md", _metrics()) == set()


def test_every_setting_is_explained() -> None:
    assert _missing("settings.md", set(_settings())) == set()


def test_every_command_is_explained() -> None:
    assert _missing("commands.md", set(_commands(app))) == set()


async def _nothing() -> dict[str, str]:
    return {}


def _routes() -> Iterator[str]:
    routers = (
        api.router, cache_api.router, capture_api.router, examples_api.router, openai_api.router,
        preprocess_api.router, records_api.router, open_inference.router,
        open_inference.health_router(_nothing, open_health=True), blobs_api.router, commands_api.router,
        analytics_api.router, cloud_records_api.router, conflicts_api.router, gate.router, lineage_api.router,
        otlp_api.router, people.router, remote_write_api.router,
        rules_api.router, summary_api.router,
    )  # fmt: skip
    for router in routers:
        for route in router.routes:
            assert isinstance(route, APIRoute)
            yield from (f"{method} {route.path}" for method in route.methods or ())


def test_every_route_is_explained() -> None:
    text = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    routes = [route.replace("{data_class}", "configurations").replace(":path}", "}") for route in _routes()]
    assert [route for route in routes if not re.search(rf"`{re.escape(route)}[`?]", text)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), name


def test_architecture_is_short_enough_to_read() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_settings_of_the_page_on_capture_are_settings(tmp_path: Path) -> None:
    (written,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "capture.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "capture.yaml").write_text(written)
    capture = load_settings(tmp_path / "capture.yaml").edge.capture
    sources = configured_sources(capture)
    assert [source.kind for source in sources] == ["path", "url", "device", "csi", "microphone"]
    rules = [rule.name for source in sources for rule in source.settings.rules]
    assert rules == ["person-at-door", "parcel-left", "somebody-speaks"]
    assert capture.images == "crops"


def test_the_settings_of_the_page_on_the_device_are_settings(tmp_path: Path) -> None:
    (written,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "edge.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "device.yaml").write_text(written)
    settings = load_settings(tmp_path / "device.yaml").edge
    assert settings.device_id == "garden-1"
    assert [source.settings.name for source in configured_sources(settings.capture)] == ["frames", "door"]


def test_the_settings_of_the_page_on_devices_are_settings(tmp_path: Path) -> None:
    (written,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "devices.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "device.yaml").write_text(written)
    assert load_settings(tmp_path / "device.yaml").edge.device_id == "garden-1"


def test_the_page_on_models_signs_an_old_file_anew(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "models.md").read_text(encoding="utf-8"), re.DOTALL)
    (written,) = (block for block in blocks if "rollback_counter" in block)
    key = SigningKey.load_or_create(tmp_path / "cloud" / "signing.key")
    variant = Variant(format="onnx", architecture="any", sha256="0" * 64, size_bytes=1)
    old = Manifest(
        name="digits", version=3, model_type="classification", created=utc_now(), labels=("0",), variants=(variant,)
    )
    blobs = BlobStore(tmp_path / "blobs")
    names: dict[str, object] = {"home": tmp_path, "blobs": blobs, "old_digest": blobs.put(key.sign(old).to_bytes())}
    exec(written, names)
    signed = SignedManifest.parse(blobs.get(str(names["digest"])))
    new = signed.verify({key.key_id: key.public_bytes})
    assert (new.version, new.rollback_counter, new.variants) == (12, 3, old.variants)
