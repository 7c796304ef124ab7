"""Live rules as their topic has them, taken up by a worker before it reads its first record and ever after."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable

from aiokafka.errors import KafkaError

from primespark.core.logging import get_logger
from primespark.core.topic_tail import TopicRecord, TopicTail
from primespark.errors import ConfigurationError, InvalidInputError, TransientError, UnavailableError
from primespark.windows.live_rules import RULES_TOPIC, decode_rule
from primespark.windows.rules import AggregationRule

_POLL_S = 1.0
_RETRY_S = 2.0

# Told of a rule's name and what it is now; `None`: there is none.
TakeUp = Callable[[str, AggregationRule | None], Awaitable[None]]

log = get_logger(__name__)


class RuleFollower:
    """Tells of each difference between the topic and what was told; the topic is read anew after a failure.

    Args:
        servers: Of the broker.
        configured: Rules that never change; a live one of the same name is left out.
        take_up: What is told.
    """

    def __init__(self, servers: str, configured: Iterable[AggregationRule], take_up: TakeUp) -> None:
        self._servers = servers
        self._configured = {rule.rule_id for rule in configured}
        self._take_up = take_up
        self._told: dict[str, AggregationRule] = {}

    async def catch_up(self) -> None:
        """Tell of all rules that there are now.

        Raises:
            UnavailableError: The topic cannot be read.
        """
        try:
            async with self._tail() as tail:
                rules: dict[bytes, AggregationRule] = {}
                await self._read(tail, rules)
        except (KafkaError, OSError) as error:
            raise UnavailableError(f"{RULES_TOPIC} cannot be read: {error}", remedy="look at the broker") from None

    async def follow(self) -> None:
        """Tell of changes until cancelled."""
        while True:
            try:
                async with self._tail() as tail:
                    rules: dict[bytes, AggregationRule] = {}
                    while True:
                        await self._read(tail, rules)
                        await asyncio.sleep(_POLL_S)
            except (KafkaError, TransientError, OSError) as error:
                log.warning("rules_not_read", error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(random.uniform(0.5, 1) * _RETRY_S)  # noqa: S311 (jitter, not a secret)

    def _tail(self) -> TopicTail:
        return TopicTail(self._servers, RULES_TOPIC, "primespark-streams-rules")

    async def _read(self, tail: TopicTail, rules: dict[bytes, AggregationRule]) -> None:
        for record in await tail.read_to_end():
            self._absorb(record, rules)
        now = {rule.rule_id: rule for rule in rules.values()}
        for rule_id in self._told.keys() - now.keys():
            await self._tell(rule_id, None)
            del self._told[rule_id]
        for rule_id, rule in now.items():
            if self._told.get(rule_id) != rule:
                await self._tell(rule_id, rule)
                self._told[rule_id] = rule

    def _absorb(self, record: TopicRecord, rules: dict[bytes, AggregationRule]) -> None:
        if record.value is None:
            rules.pop(record.key, None)
            return
        try:
            rule = decode_rule(record.key, record.value)
        except InvalidInputError as error:
            log.warning("rule_skipped", key=record.key.decode(errors="replace")[:120], reason=error.message)
            return
        if rule.rule_id in self._configured:
            log.warning("rule_skipped", key=rule.rule_id, reason="a rule of the file has this name")
            return
        rules[record.key] = rule

    async def _tell(self, rule_id: str, rule: AggregationRule | None) -> None:
        try:
            await self._take_up(rule_id, rule)
        except ConfigurationError as error:
            log.error("rule_cannot_run", rule_id=rule_id, reason=error.message)
            await self._take_up(rule_id, None)
