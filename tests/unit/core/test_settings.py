"""Settings: where they come from, and how a mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from primespark.core.settings import Settings, load_settings
from primespark.errors import ConfigurationError

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_shipped_file_states_the_defaults() -> None:
    shipped: dict[str, Any] = yaml.safe_load((REPOSITORY / "config/integration_config.yaml").read_text())
    assert set(shipped) == {
        "global", "edge", "cloud", "sync", "orchestration", "network", "security", "monitoring", "features"
    }  # fmt: skip
    assert load_settings(REPOSITORY / "config/integration_config.yaml") == Settings()
    defaults = Settings().model_dump(mode="json", by_alias=True)
    assert _paths(shipped) == _paths(defaults)


def test_environment_wins_over_the_file_and_files_of_secrets_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "c.yaml", "cloud: {port: 1, host: 127.0.0.2}")
    secret = write(tmp_path / "url", "postgresql://u:p@h/d\n")
    monkeypatch.setenv("PRIMESPARK_CLOUD__PORT", "2")
    monkeypatch.setenv("PRIMESPARK_CLOUD__STORE__URL_FILE", str(secret))
    monkeypatch.setenv("PRIMESPARK_EDGE__CAPTURE__SOURCES", '["samples", "/data"]')
    monkeypatch.setenv("PRIMESPARK_GLOBAL__LOG_LEVEL", "debug")
    settings = load_settings(file)
    assert (settings.cloud.port, settings.cloud.host) == (2, "127.0.0.2")
    assert settings.require_store_url() == "postgresql://u:p@h/d"
    assert settings.edge.capture.sources == ("samples", "/data")
    assert settings.global_.log_level == "debug"
    assert "u:p" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cloud: {prot: 1}", "cloud.prot: unknown key, did you mean 'port'?"),
        ("clod: {}", "clod: unknown key, did you mean 'cloud'?"),
        ("cloud: {port: many}", "cloud.port: "),
        ("cloud: {port: 70000}", "cloud.port: "),
        ("cloud: 3", "cloud: "),
        (
            "edge: {capture: {sources: /tmp}}",
            "edge.capture.sources: Input should be a list, in a variable written as JSON",
        ),
        ("edge: {device_id: A}", "edge.device_id: a device id is "),
        ("a: &x 1\nb: *x", "aliases are not accepted"),
        ("cloud: {port: 1, port: 2}", "repeated"),
        ("cloud: [", "line 1"),
        ("[1, 2]", "mapping"),
        ("edge: {device_id: Cloud!}", "edge.device_id"),
        ("edge: {device_id: cloud}", "reserved"),
        ("1: 2", "a key that is not text"),
        ("null: x", "a key that is not text"),
        ("? [a]\n: b", "a key that is not text"),
        ("x: 2026-99-99", "not readable"),
        ("x: !!int abc", "not readable"),
        ("x: !!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_mistakes_are_told_with_their_path(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(write(tmp_path / "c.yaml", text))
    assert expected in caught.value.message
    assert caught.value.remedy


def test_unknown_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIMESPARK_CLOUD__PROT", "1")
    with pytest.raises(ConfigurationError, match="did you mean 'port'"):
        load_settings()


def test_a_missing_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load_settings(tmp_path / "absent.yaml")
    monkeypatch.setenv("PRIMESPARK_CLOUD__STORE__URL_FILE", str(tmp_path / "absent"))
    with pytest.raises(ConfigurationError, match="URL_FILE"):
        load_settings()


def _paths(value: Any, prefix: str = "") -> set[str]:
    if not isinstance(value, dict):
        return {prefix}
    return {path for key, child in value.items() for path in _paths(child, f"{prefix}.{key}")}


@pytest.mark.parametrize("section", ["edge", "cloud", "cloud.streams", "orchestration"])
def test_no_address_is_not_every_address(section: str) -> None:
    overrides: Any = {"host": ""}
    for name in reversed(section.split(".")):
        overrides = {name: overrides}
    with pytest.raises(ConfigurationError, match=f"{section}.host"):
        load_settings(overrides=overrides)


def test_a_setting_that_is_a_file_can_be_given_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIMESPARK_EDGE__LANGUAGE__FILE", "/models/one.gguf")
    assert load_settings().edge.language.file == Path("/models/one.gguf")


def test_a_file_without_end_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIMESPARK_EDGE__ENROLMENT_TOKEN_FILE", "/dev/zero")
    with pytest.raises(ConfigurationError, match="ENROLMENT_TOKEN_FILE names /dev/zero"):
        load_settings()


@pytest.mark.parametrize("url", ["redis://127.0.0.1:99999/0", "redis://127.0.0.1:0", "redis://[::1", "redis://"])
def test_a_cache_where_nothing_can_be_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"edge\.cache\.memory\.url"):
        load_settings(overrides={"edge": {"cache": {"memory": {"url": url}}}})
