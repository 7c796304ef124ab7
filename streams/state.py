"""The state of one partition as encoded lines, one a group: what snapshots are made of, whole ones and changes alike.

The first line is the partition's head, then for each rule a line of its own. A group has a line: its names, a tab, its
watermark and what is to be known of its windows together. Each pane or session has one: the names, a space, where it
begins, a tab, what is in it. What is gone has no tab. JSON never holds a bare tab or end of line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Self

from pydantic_core import to_json

from primespark.errors import IntegrityError

_RULE_FIELDS = ("rule_id", "fingerprint", "watermark", "is_whole")


@dataclass(slots=True)
class _Rule:
    fingerprint: str
    watermark: list[int]
    # Groups that are not here are none; else they are as before.
    is_whole: bool
    # By names, or names and the beginning of a part; None: it is gone.
    groups: dict[str, str | None] = field(default_factory=dict)


@dataclass(slots=True)
class StateLines:
    """What `WindowEngine.snapshot` or `take_changes` says, each group and each of its parts encoded by itself."""

    _head: dict[str, Any] = field(default_factory=dict)
    _rules: dict[str, _Rule] = field(default_factory=dict)

    @classmethod
    def encode(cls, snapshot: Mapping[str, Any]) -> Self:
        """From what the engine says."""
        self = cls({name: value for name, value in snapshot.items() if name != "rules"})
        for rule_id, saved in snapshot["rules"].items():
            groups = dict(_encode_groups(saved))
            self._rules[rule_id] = _Rule(saved["fingerprint"], saved["watermark"], saved.get("is_whole", True), groups)
        return self

    @classmethod
    def parse(cls, lines: bytes) -> Self:
        """From `to_bytes`.

        Raises:
            IntegrityError: Something else.
        """
        try:
            head, *rest = lines.decode().split("\n")
            self = cls(json.loads(head))
            self._parse_rules(rest)
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(f"a snapshot that cannot be read: {error}") from None
        return self

    def apply(self, changes: StateLines) -> None:
        """Take in what changed since; rules that are not named there are dropped."""
        self._head = changes._head
        known, self._rules = self._rules, {}
        for rule_id, changed in changes._rules.items():
            before = known.get(rule_id)
            is_new = before is None or changed.is_whole or before.fingerprint != changed.fingerprint
            groups = {} if before is None or is_new else before.groups
            for names, saved in changed.groups.items():
                if saved is None:
                    groups.pop(names, None)
                else:
                    groups[names] = saved
            self._rules[rule_id] = _Rule(changed.fingerprint, changed.watermark, True, groups)

    def to_bytes(self) -> bytes:
        """All lines."""
        return "\n".join(self._lines()).encode()

    def to_snapshot(self) -> dict[str, Any]:
        """What `WindowEngine.restore` takes."""
        rules = {}
        for rule_id, rule in self._rules.items():
            groups = _decode_groups(rule.groups)
            rules[rule_id] = {"fingerprint": rule.fingerprint, "watermark": rule.watermark, "groups": groups}
        return {**self._head, "rules": rules}

    def copy(self) -> StateLines:
        """Another that changes by itself."""
        rules = {name: replace(rule, groups=dict(rule.groups)) for name, rule in self._rules.items()}
        return StateLines(dict(self._head), rules)

    def _lines(self) -> Iterable[str]:
        yield _text(self._head)
        for rule_id, rule in self._rules.items():
            yield _text(
                dict(zip(_RULE_FIELDS, (rule_id, rule.fingerprint, rule.watermark, rule.is_whole), strict=True))
            )
            for names, saved in rule.groups.items():
                yield names if saved is None else f"{names}\t{saved}"

    def _parse_rules(self, lines: Iterable[str]) -> None:
        groups: dict[str, str | None] = {}
        for line in lines:
            if line.startswith("{"):
                saved_rule = json.loads(line)
                rule_id, *rest = (saved_rule[name] for name in _RULE_FIELDS)
                rule = self._rules[rule_id] = _Rule(*rest)
                groups = rule.groups
            else:
                names, tab, saved = line.partition("\t")
                groups[names] = saved if tab else None


def _text(value: Any) -> str:
    return to_json(value, inf_nan_mode="constants").decode()


def _encode_groups(saved: Mapping[str, Any]) -> Iterable[tuple[str, str | None]]:
    for names, watermark, head, parts, *gone in saved["groups"]:
        key = _text(names)
        yield key, _text([watermark, head])
        for start, *part in parts:
            yield f"{key} {start}", _text(part)
        for start in chain.from_iterable(gone):
            yield f"{key} {start}", None
    for names, starts in saved.get("removed", ()):
        key = _text(names)
        yield key, None
        for start in starts:
            yield f"{key} {start}", None


def _decode_groups(lines: Mapping[str, str | None]) -> list[list[Any]]:
    """All at once, as one text: each by itself takes three times as long."""
    keys = [key for key, saved in lines.items() if saved is not None]
    names = [key for key in keys if key.endswith("]")]
    starts = [key.rpartition(" ")[::2] for key in keys if not key.endswith("]")]
    heads = json.loads(f"[{','.join(f'[{key},{lines[key]}]' for key in names)}]")
    parts = json.loads(f"[{','.join(str(lines[f'{key} {start}']) for key, start in starts)}]")
    groups = {key: [*head[0:1], *head[1], []] for key, head in zip(names, heads, strict=True)}
    for (key, start), part in zip(starts, parts, strict=True):
        groups[key][-1].append([int(start), *part])
    return list(groups.values())
