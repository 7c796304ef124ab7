"""Rules: what is accepted, and errors that name the rule and the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from primespark.core.settings import load_settings
from primespark.errors import ConfigurationError
from primespark.windows.live_rules import configured_rules
from primespark.windows.rules import load_rules, parse_rules

GOOD: dict[str, Any] = {
    "rule_id": "cpu", "source_topic": "edge.telemetry", "target_topic": "cloud.aggregated",
    "aggregation_function": "avg", "value_field": "cpu_percent", "window_config": {"size_seconds": 60},
}  # fmt: skip


def test_the_rules_that_ship_are_valid_and_average_a_minute_by_key() -> None:
    (rule,) = configured_rules(load_settings())
    assert rule.aggregation_function == "avg"
    assert (rule.source_topic, rule.target_topic, rule.value_field) == (
        "edge.telemetry", "cloud.aggregated", "cpu_percent",
    )  # fmt: skip
    assert (rule.window_config.size_ms, rule.window_config.watermark_scope) == (60_000, "key")


def test_bounds_have_the_documented_defaults() -> None:
    window = parse_rules([GOOD], "x")[0].window_config
    assert (window.max_out_of_orderness_ms, window.allowed_lateness_ms) == (10_000, 600_000)
    assert (window.idle_timeout_ms, window.max_future_ms) == (30_000, 60_000)
    assert window.watermark_scope == "partition"


def test_a_bound_that_is_null_is_off() -> None:
    off = dict.fromkeys(("allowed_lateness_seconds", "idle_timeout_seconds", "max_future_seconds"))
    window = parse_rules([{**GOOD, "window_config": {"size_seconds": 0.25, **off}}], "x")[0].window_config
    assert (window.size_ms, window.allowed_lateness_ms, window.idle_timeout_ms) == (250, None, None)
    assert window.max_future_ms is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value_fild": 1}, "cpu.value_fild: unknown key"),
        ({"window_config": {"size_seconds": 0}}, "cpu.window_config.size_seconds"),
        ({"window_config": {"size_seconds": "60"}}, "cpu.window_config.size_seconds"),
        ({"window_config": {"size_seconds": 0.0005}}, "three decimals"),
        ({"window_config": {"size_seconds": 60, "window_type": "spiral"}}, "available: tumbling, sliding, session"),
        ({"window_config": {"size_seconds": 60, "slide_seconds": 30}}, "tumbling windows have size_seconds, and no"),
        ({"window_config": {"size_seconds": 60, "window_type": "sliding"}}, "size_seconds and slide_seconds"),
        (
            {"window_config": {"size_seconds": 60, "slide_seconds": 61, "window_type": "sliding"}},
            "at most size_seconds",
        ),
        ({"window_config": {"size_seconds": 60, "slide_seconds": 0.05, "window_type": "sliding"}}, "1000 windows"),
        ({"window_config": {"session_gap_seconds": 0, "window_type": "session"}}, "session_gap_seconds"),
        ({"window_config": {"size_seconds": 60, "window_type": "session"}}, "session windows have session_gap_seconds"),
        ({"aggregation_function": "percentile"}, "percentile is a number from 0 to 100"),
        ({"aggregation_function": "percentile", "percentile": 101}, "percentile"),
        ({"percentile": 50}, "for no other"),
        ({"filters": [["a", "~", 1]]}, "no operator '~'"),
        ({"filters": [["a", "<", True]]}, "compares with a finite number or a text"),
        ({"filters": [["a", "<"]]}, "filters"),
        ({"window_config": {"size_seconds": 60, "watermark_scope": "all"}}, "watermark_scope"),
        ({"window_config": {"size_seconds": float("nan")}}, "size_seconds"),
        ({"aggregation_function": "mode"}, "available: avg, sum"),
        ({"value_field": None}, "value_field is required for avg"),
        ({"group_by": ["device_id", "device_id"]}, "twice"),
        ({"target_topic": "edge.telemetry"}, "must differ"),
        ({"source_topic": "cloud.aggregated.late"}, "must differ"),
        ({"rule_id": "a|b"}, "rule_id"),
        ({"source_topic": "no such/topic"}, "source_topic"),
        ({"enabled": "yes"}, "enabled"),
        ({"ddof": 2}, "ddof"),
    ],
)
def test_what_cannot_work_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_rules([{**GOOD, **change}], "rules.yaml")
    assert said in str(refused.value)
    assert str(refused.value).startswith("rules.yaml: ")


@pytest.mark.parametrize("document", [None, {}, "text", {"rules": [GOOD]}])
def test_rules_are_a_list(document: object) -> None:
    with pytest.raises(ConfigurationError, match="rules are a list"):
        parse_rules(document, "x")


@pytest.mark.parametrize("entry", [None, 5, [], "cpu"])
def test_an_entry_that_is_no_mapping_is_named_by_its_place(entry: object) -> None:
    with pytest.raises(ConfigurationError, match="rule 2"):
        parse_rules([GOOD, entry], "x")


def test_an_identifier_used_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'cpu' is used twice"):
        parse_rules([GOOD, GOOD], "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {a: 1, a: 2}", "repeated"),
        ("- &x 1\n- *x", "aliases"),
        ("- [", "line"),
        ("\xff", "rules are a list"),
    ],
)
def test_a_file_that_is_no_plain_yaml_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=said):
        load_rules(file)


def test_a_file_that_is_not_utf8_or_not_there_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        load_rules(file)
    with pytest.raises(ConfigurationError, match="cannot read") as refused:
        load_rules(tmp_path / "absent.yaml")
    assert "rules_file" in refused.value.remedy


def test_json_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "rules.json"
    file.write_text('[{"rule_id": "n", "source_topic": "a", "target_topic": "b", "aggregation_function": "count",'
                    ' "window_config": {"size_seconds": 1}}]')  # fmt: skip
    assert load_rules(file)[0].value_field is None
