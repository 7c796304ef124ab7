"""The topics of the stream worker: made with the right number of partitions before anything reads or writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, KafkaError, TopicAlreadyExistsError, for_code

from primespark.core.settings import KafkaSettings
from primespark.errors import ConfigurationError, UnavailableError
from primespark.windows.live_rules import RULES_TOPIC, RULES_TOPIC_CONFIG

DEAD_LETTER_TOPIC = "edge.dead-letter"
SNAPSHOT_TOPIC = "primespark-streams-snapshots"
SNAPSHOT_CONFIG = {
    "cleanup.policy": "compact",
    # Snapshots replace each other every second; small young segments keep what has to be read at start small.
    "segment.ms": "60000",
    "segment.bytes": "16777216",
    "min.cleanable.dirty.ratio": "0.1",
    "max.message.bytes": "1048588",
}
_MAX_REPLICAS = 3


async def ensure_topics(kafka: KafkaSettings, sources: Iterable[str], targets: Iterable[str]) -> None:
    """Make what is missing; a topic that exists keeps its partitions.

    Raises:
        UnavailableError: The broker does not answer or refuses.
        ConfigurationError: A source topic has more partitions than the snapshot topic.
    """
    wanted: dict[str, Mapping[str, str]] = {name: {} for name in (*sources, *targets, DEAD_LETTER_TOPIC)}
    wanted[SNAPSHOT_TOPIC] = SNAPSHOT_CONFIG
    wanted[RULES_TOPIC] = RULES_TOPIC_CONFIG
    admin = AIOKafkaAdminClient(bootstrap_servers=require_bootstrap_servers(kafka), client_id="primespark-streams")
    try:
        await admin.start()
        existing = set(await admin.list_topics())
        replicas = min(_MAX_REPLICAS, len((await admin.describe_cluster())["brokers"]))
        missing = [
            NewTopic(name, 1 if name == RULES_TOPIC else kafka.partitions, replicas, topic_configs=dict(config))
            for name, config in wanted.items()
            if name not in existing
        ]
        if missing:
            _check(await admin.create_topics(missing, timeout_ms=10_000))
        await _check_partitions(admin, kafka, list(sources), existing)
    except KafkaConnectionError as error:
        raise UnavailableError(f"no Kafka at {kafka.bootstrap_servers}: {error}", remedy="start the broker") from None
    except KafkaError as error:
        raise UnavailableError(f"topics cannot be made: {error}", remedy="look at the broker's log") from None
    finally:
        await admin.close()


def require_bootstrap_servers(kafka: KafkaSettings) -> str:
    """The broker's address.

    Raises:
        ConfigurationError: None is set.
    """
    if not kafka.bootstrap_servers:
        raise ConfigurationError(
            "cloud.kafka.bootstrap_servers is not set",
            remedy="start everything with `primespark up`, or set PRIMESPARK_CLOUD__KAFKA__BOOTSTRAP_SERVERS",
        )
    return kafka.bootstrap_servers


def _check(response: object) -> None:
    for _name, code, *_message in getattr(response, "topic_errors", ()):
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:
            raise error


async def _check_partitions(
    admin: AIOKafkaAdminClient, kafka: KafkaSettings, sources: list[str], existing: set[str]
) -> None:
    # A topic made a moment ago may not yet be described, but its partitions are known.
    asked = [name for name in (*sources, SNAPSHOT_TOPIC) if name in existing]
    described = await admin.describe_topics(asked) if asked else []
    counts = {entry["topic"]: len(entry["partitions"]) for entry in described}
    limit = counts.get(SNAPSHOT_TOPIC, kafka.partitions)
    for name in sources:
        if counts.get(name, kafka.partitions) > limit:
            raise ConfigurationError(
                f"{name} has {counts.get(name)} partitions, {SNAPSHOT_TOPIC} only {limit}",
                remedy=f"add partitions to {SNAPSHOT_TOPIC}",
            )
