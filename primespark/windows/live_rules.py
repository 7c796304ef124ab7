"""Rules that change while workers run: which are allowed, and how they lie in their compacted topic.

A record's key is the `rule_id`; without a value the rule is deleted.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from primespark.core.settings import Settings
from primespark.core.values import storable_json
from primespark.errors import ConfigurationError, InvalidInputError
from primespark.windows.rules import AggregationRule, load_rules, parse_rules

RULES_TOPIC = "primespark-streams-rules"
# One partition: what it says has one order, and is read whole.
RULES_TOPIC_CONFIG = {"cleanup.policy": "compact", "segment.ms": "3600000"}
# Beyond, every record is worked on too often, whoever sends it.
MAX_LIVE_RULES = 200
MAX_RULE_BYTES = 16_384
_OWN_TOPICS = re.compile(r"primespark-streams|edge\.dead-letter|__")
DEFAULT_RULES = "config/stream_rules.yaml"


def configured_rules(settings: Settings) -> list[AggregationRule]:
    """The rules of `cloud.streams.rules_file`, else those that ship with the package.

    Raises:
        ConfigurationError: Rules that cannot work.
    """
    if settings.cloud.streams.rules_file is not None:
        rules = load_rules(settings.cloud.streams.rules_file)
    else:
        with resources.as_file(resources.files("primespark._data").joinpath(DEFAULT_RULES)) as path:
            rules = load_rules(Path(path))
    return rules


def parse_live_rule(document: Any) -> AggregationRule:
    """A rule as somebody sent it.

    Raises:
        InvalidInputError: Code `bad_rule`: it cannot work; `unstorable_value`.
    """
    try:
        (rule,) = parse_rules([document], "rule")
    except ConfigurationError as error:
        raise InvalidInputError(
            error.message, remedy="correct the rule", code="bad_rule", errors=error.errors
        ) from None
    if _OWN_TOPICS.match(rule.source_topic) or _OWN_TOPICS.match(rule.target_topic):
        raise InvalidInputError(
            "rules, snapshots and dead letters have topics of their own", remedy="name others", code="bad_rule"
        )
    if len(storable_json(definition_of(rule)).encode()) > MAX_RULE_BYTES:
        raise InvalidInputError(f"a rule of more than {MAX_RULE_BYTES} bytes", remedy="shorten it", code="bad_rule")
    return rule


def definition_of(rule: AggregationRule) -> dict[str, Any]:
    """The whole rule as JSON values, defaults too, so that it stays what it is when they change."""
    return rule.model_dump(mode="json")


def encode_rule(version: int, definition: dict[str, Any]) -> bytes:
    """The value of a record; equal rules of equal version are equal bytes."""
    return json.dumps({"version": version, "rule": definition}, sort_keys=True, separators=(",", ":")).encode()


def decode_rule(key: bytes, value: bytes) -> AggregationRule:
    """The rule of a record.

    Raises:
        InvalidInputError: It is none, or not that of its key.
    """
    try:
        rule = parse_live_rule(json.loads(value)["rule"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInputError(f"not a rule: {error}"[:300], remedy="write rules over HTTP only") from None
    if rule.rule_id.encode() != key:
        raise InvalidInputError(f"rule {rule.rule_id} under another key", remedy="write rules over HTTP only")
    return rule
