"""The state of one partition as encoded lines, one a group: what snapshots are made of, whole ones and changes alike.

The first line is the partition's head, then for each rule a line of its own and one for each group: its names, a tab,
its watermark and windows. A group that is gone has its names alone. JSON never holds a bare tab or end of line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from primespark.errors import IntegrityError

_RULE_FIELDS = ("rule_id", "fingerprint", "watermark", "is_whole")


@dataclass(slots=True)
class _Rule:
    fingerprint: str
    watermark: list[int]
    # Groups that are not here are none; else they are as before.
    is_whole: bool
    # None: the group is gone.
    groups: dict[str, str | None] = field(default_factory=dict)


@dataclass(slots=True)
class StateLines:
    """What `WindowEngine.snapshot` or `take_changes` says, each group encoded by itself."""

    _head: dict[str, Any] = field(default_factory=dict)
    _rules: dict[str, _Rule] = field(default_factory=dict)

    @classmethod
    def encode(cls, snapshot: Mapping[str, Any]) -> Self:
        """From what the engine says."""
        self = cls({name: value for name, value in snapshot.items() if name != "rules"})
        for rule_id, saved in snapshot["rules"].items():
            groups: dict[str, str | None] = {_text(names): _text(rest) for names, *rest in saved["groups"]}
            groups |= dict.fromkeys(map(_text, saved.get("removed", ())))
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
            texts = [f"[{names},{saved[1:]}" for names, saved in rule.groups.items() if saved is not None]
            groups = json.loads(f"[{','.join(texts)}]")
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


# `json.dumps` would make one for each value.
_text = json.JSONEncoder(separators=(",", ":")).encode
