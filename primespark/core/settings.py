"""Typed settings: `config/integration_config.yaml`, overridden by `PRIMESPARK_<SECTION>__<KEY>` and `…_FILE`.

Precedence, highest first: keyword arguments, environment variables, files named by `…_FILE` variables, the YAML file
(`PRIMESPARK_CONFIG`, else `config/integration_config.yaml` under the working directory), the defaults below.
Every address has the embedded value as its default (none: `primespark up` fills it in); a URL switches to the real
system. Unknown keys are refused with their path and the nearest known name.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from primespark.core.cache_settings import EdgeCacheSettings
from primespark.core.capture_settings import CaptureSettings
from primespark.core.identifiers import DeviceId
from primespark.core.link_settings import BandwidthSettings, HttpUrl, ProbeSettings
from primespark.core.sections import Days, Host, Port, PositiveInt, Seconds, Section
from primespark.core.slot_settings import SlotSettings
from primespark.errors import ConfigurationError

CONFIG_PATH = Path("config/integration_config.yaml")
ENV_PREFIX = "PRIMESPARK_"
_MAX_SECRET_BYTES = 64 * 1024
# Read elsewhere (paths, the loader below, the command line, the device's supervision), so not settings.
_NOT_SETTINGS = {"HOME", "CONFIG", "SUPERVISED"}


class GlobalSettings(Section):
    """What holds for every process."""

    environment: Literal["development", "production"] = "development"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"


class BatchingSettings(Section):
    """Requests that come at once go through a model together, where it takes any number of inputs; 1 is never."""

    size: Annotated[int, Field(ge=1, le=32)] = 1
    wait_ms: Annotated[float, Field(ge=0, le=100)] = 0.0


class AcceleratorSettings(Section):
    """A Hailo-8 or Hailo-8L, and the HEF that detects in place of the bundled detector while the chip is well."""

    detector: Path | None = None
    labels: Path | None = None
    timeout_s: Annotated[float, Field(ge=0.05, le=60)] = 1.0
    system_root: Path = Path("/")
    models_folder: Path = Path("/usr/share/hailo-models")


class InferenceSettings(Section):
    """Models on the device, and what they take."""

    threads: Annotated[int, Field(gt=0, le=64)] = 1
    minimum_score: Annotated[float, Field(ge=0, le=1)] = 0.4
    loaded_bundled_models: Annotated[int, Field(gt=0, le=16)] = 2
    result_cache_entries: Annotated[int, Field(ge=0, le=100_000)] = 1000
    max_image_pixels: PositiveInt = 25_000_000
    max_audio_s: Annotated[float, Field(gt=0, le=3600)] = 300
    max_body_bytes: PositiveInt = 20 * 1024 * 1024
    batching: BatchingSettings = BatchingSettings()
    accelerator: AcceleratorSettings = AcceleratorSettings()


class LanguageSettings(Section):
    """The language model; without `file` the one that `primespark models fetch` brings, once it is there."""

    file: Path | None = None
    threads: Annotated[int, Field(gt=0, le=64)] = 1
    context_tokens: Annotated[int, Field(ge=256, le=131_072)] = 2048
    max_answer_tokens: Annotated[int, Field(gt=0, le=131_072)] = 512
    answer_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 120


class StreamSettings(Section):
    """How urgent a stream of facts is, and what gives way to it when the queue is full."""

    stream: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,121}$")]
    priority: Literal["critical", "high", "normal", "low"] = "normal"
    on_full: Literal["reject", "drop_oldest", "drop_lowest"] = "reject"

    @model_validator(mode="after")
    def _check(self) -> StreamSettings:
        if self.priority == "critical" and self.on_full == "drop_oldest":
            raise ValueError("what is critical is never dropped: reject, or drop_lowest of the others")
        return self


class OfflineSettings(Section):
    """Bounds of the durable queue."""

    capacity_operations: PositiveInt = 1_000_000
    capacity_bytes: PositiveInt = 1024 * 1024 * 1024
    minimum_free_disk_bytes: Annotated[int, Field(ge=0)] = 64 * 1024 * 1024
    max_blob_bytes: PositiveInt = 256 * 1024 * 1024
    streams: Annotated[tuple[StreamSettings, ...], Field(max_length=64)] = ()


class TelemetrySettings(Section):
    """The device's own measurements."""

    interval_s: Seconds = 10.0
    replay_recording: bool = False


class EdgeSettings(Section):
    """The device service."""

    device_id: DeviceId = "edge-1"
    host: Host = "127.0.0.1"
    port: Port = 8000
    enrolment_token: SecretStr | None = None
    inference: InferenceSettings = InferenceSettings()
    models: SlotSettings = SlotSettings()
    language: LanguageSettings = LanguageSettings()
    capture: CaptureSettings = CaptureSettings()
    offline: OfflineSettings = OfflineSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    cache: EdgeCacheSettings = EdgeCacheSettings()
    # Which commands of the cloud are run.
    commands: tuple[Literal["sync_now", "clear_cache", "restart"], ...] = ("sync_now", "clear_cache")


class StoreSettings(Section):
    """PostgreSQL, embedded or by URL."""

    url: SecretStr | None = None
    # At least one for each lane of the gate.
    pool_size: Annotated[int, Field(ge=6)] = 12


class CacheSettings(Section):
    """Valkey or Redis, embedded or by URL."""

    url: SecretStr | None = None


class RetentionClassSettings(Section):
    """How long samples of metrics are kept before their hours stand for them; null: for ever."""

    raw_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    prefixes: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(max_length=100)] = ()


class RetentionSettings(Section):
    """Three classes; a metric is of the one with the longest prefix of its name, else of `standard`."""

    short: RetentionClassSettings = RetentionClassSettings()
    standard: RetentionClassSettings = RetentionClassSettings()
    long: RetentionClassSettings = RetentionClassSettings()


class KafkaSettings(Section):
    """The broker; `embedded` marks the small bundled broker, which needs paced fetches and static membership."""

    bootstrap_servers: str | None = None
    embedded: bool = False
    partitions: PositiveInt = 3


class LearningSettings(Section):
    """When the pipeline starts and what a new model must reach."""

    tracking_uri: str | None = None
    minimum_new_labels: PositiveInt = 60
    settle_s: Seconds = 1.5
    minimum_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.7
    rollback_counter: Annotated[int, Field(ge=0)] = 0
    seed: int = 20260101


class StreamsSettings(Section):
    """The stream worker; its rules are a YAML list."""

    host: Host = "127.0.0.1"
    port: Port = 6066
    rules_file: Path | None = None
    worker_id: str = "worker-0"


class CloudSettings(Section):
    """The gate and what stands behind it."""

    host: Host = "127.0.0.1"
    port: Port = 8080
    max_body_bytes: PositiveInt = 16 * 1024 * 1024
    # Of blobs that devices write; the second is of one device.
    max_blob_bytes: PositiveInt = 256 * 1024 * 1024
    max_unfinished_bytes: PositiveInt = 512 * 1024 * 1024
    store: StoreSettings = StoreSettings()
    cache: CacheSettings = CacheSettings()
    retention: RetentionSettings = RetentionSettings()
    kafka: KafkaSettings = KafkaSettings()
    learning: LearningSettings = LearningSettings()
    streams: StreamsSettings = StreamsSettings()


class StrategySettings(Section):
    """What decides between concurrent versions of the documents whose keys begin with `prefix`."""

    data_class: Literal["configurations"] = "configurations"
    prefix: Annotated[str, Field(max_length=128)] = ""
    strategy: Literal["latest_wins", "cloud_wins", "edge_wins", "merge", "manual"]


class SyncSettings(Section):
    """How a device and its cloud exchange records."""

    batch_records: Annotated[int, Field(gt=0, le=5000)] = 500
    batch_wait_s: Seconds = 1.0
    pull_wait_s: Annotated[float, Field(ge=0, le=60)] = 20.0
    backlog_records_per_s: PositiveInt = 2000
    retry_base_s: Seconds = 1.0
    retry_max_s: Seconds = 300.0
    clock_tolerance_s: Annotated[float, Field(ge=0.1, le=3600)] = 5.0
    bandwidth: BandwidthSettings = BandwidthSettings()
    # What the rounds of the cloud's side go by.
    overdue_after_s: Seconds = 900.0
    backlog_warning_s: Seconds = 3600.0
    cursor_inactive_days: Days = 30.0
    tombstone_days: Days = 30.0
    blob_days: Days = 30.0
    conflict_days: Days = 30.0
    command_days: Days = 7.0
    # What the cloud decides by; the longest prefix counts.
    strategies: tuple[StrategySettings, ...] = ()
    fleet_writable: tuple[Annotated[str, Field(max_length=128)], ...] = ()


class OrchestrationSettings(Section):
    """Dagster."""

    host: Host = "127.0.0.1"
    port: Port = 3000


class NetworkSettings(Section):
    """How a device reaches its cloud."""

    cloud_url: HttpUrl | None = None
    connect_timeout_s: Seconds = 5.0
    request_timeout_s: Seconds = 30.0
    probe: ProbeSettings = ProbeSettings()


class SecuritySettings(Section):
    """Who may do what."""

    open_health: bool = True


class MonitoringSettings(Section):
    """Prometheus exposition on `/metrics` of each service."""

    metrics: bool = True


class FeatureSettings(Section):
    """A feature that is off starts nothing of it."""

    cache: bool = True
    streams: bool = True
    orchestration: bool = True
    capture: bool = True
    telemetry: bool = True


class Settings(BaseSettings):
    """All settings of one process; build with `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, populate_by_name=True
    )

    global_: GlobalSettings = Field(default=GlobalSettings(), alias="global")
    edge: EdgeSettings = EdgeSettings()
    cloud: CloudSettings = CloudSettings()
    sync: SyncSettings = SyncSettings()
    orchestration: OrchestrationSettings = OrchestrationSettings()
    network: NetworkSettings = NetworkSettings()
    security: SecuritySettings = SecuritySettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    features: FeatureSettings = FeatureSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the explicit sources of `load_settings`: no .env file, no secrets directory."""
        return (init_settings,)

    @property
    def looks(self) -> bool:
        """Whether the device has cameras, or files in their place, which need a detector from the start."""
        return self.features.capture and self.edge.capture.has_images

    def require_store_url(self) -> str:
        """The store's URL.

        Raises:
            ConfigurationError: None is set.
        """
        if self.cloud.store.url is None:
            raise ConfigurationError(
                "cloud.store.url is not set",
                remedy="start everything with `primespark up`, or set PRIMESPARK_CLOUD__STORE__URL_FILE",
            )
        return self.cloud.store.url.get_secret_value()


def load_settings(path: Path | None = None, overrides: dict[str, Any] | None = None) -> Settings:
    """Settings from file and environment.

    Args:
        path: A YAML file; without one, `PRIMESPARK_CONFIG`, else the default path if it exists.
        overrides: Nested values that win over everything.

    Raises:
        ConfigurationError: Unreadable file, unknown key, wrong type; names each key and every place looked at.
    """
    file = _config_file(path)
    values: dict[str, Any] = read_yaml(file) if file else {}
    _merge(values, _from_environment(os.environ))
    _merge(values, overrides or {})
    try:
        return Settings(**values)
    except ValidationError as error:
        raise _explain(error, file) from None


def read_yaml_document(path: Path, remedy: str) -> Any:
    """Any one YAML document; aliases (billion laughs) and repeated keys are refused.

    Args:
        path: The file.
        remedy: What to tell who gave a file that does not exist.

    Raises:
        ConfigurationError: Missing, unreadable or malformed file.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}", remedy=remedy) from None
    # A scalar may have the form of a date or number and be none.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or f"not readable as UTF-8 YAML ({error})"
        raise ConfigurationError(f"{path}{line}: {problem}", remedy="correct the YAML") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML mapping, read as `read_yaml_document` does; an empty file is an empty mapping.

    Raises:
        ConfigurationError: Missing, unreadable or malformed file.
    """
    document = read_yaml_document(path, "give an existing YAML file with --config")
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path}: the top level must be a mapping of sections", remedy="correct the YAML")
    return document


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without aliases, without repeated keys and with text as keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "aliases are not accepted", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "a key that is not text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is repeated", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _config_file(path: Path | None) -> Path | None:
    if path is not None:
        return path
    configured = os.environ.get(ENV_PREFIX + "CONFIG")
    if configured:
        return Path(configured)
    return CONFIG_PATH if CONFIG_PATH.is_file() else None


def _from_environment(environment: os._Environ[str] | dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, raw in sorted(environment.items()):
        if not name.startswith(ENV_PREFIX) or name.removeprefix(ENV_PREFIX) in _NOT_SETTINGS:
            continue
        text, key = raw, name.removeprefix(ENV_PREFIX)
        # A setting may itself be a file's name: `…__FILE`, `…__RULES_FILE`.
        if key.endswith("_FILE") and not key.endswith(("__FILE", "RULES_FILE")):
            text, key = _read_secret(name, Path(raw)), key.removesuffix("_FILE")
        parts = [part.lower() for part in key.split("__")]
        target = values
        for part in parts[:-1]:
            child = target.setdefault(part, {})
            if not isinstance(child, dict):
                raise ConfigurationError(f"{name}: {part} is a value, not a section", remedy="unset one of the two")
            target = child
        target[parts[-1]] = _parse_scalar(text)
    return values


def _read_secret(name: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_SECRET_BYTES + 1)
        if len(data) > _MAX_SECRET_BYTES:
            raise OSError(f"more than {_MAX_SECRET_BYTES} bytes")
        return data.decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{name} names {path}, which cannot be read: {getattr(error, 'strerror', None) or error}",
            remedy="correct the path",
        ) from None


def _parse_scalar(text: str) -> Any:
    """Lists and mappings are given as JSON or YAML flow; all else stays text, which pydantic converts."""
    if text[:1] in "[{" and text:
        try:
            return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError):
            return text
    return text


def _merge(target: dict[str, Any], source: dict[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _explain(error: ValidationError, file: Path | None) -> ConfigurationError:
    problems: list[dict[str, object]] = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        path = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] in ("tuple_type", "list_type"):
            message = "Input should be a list, in a variable written as JSON"
        if item["type"] == "extra_forbidden":
            nearest = difflib.get_close_matches(str(item["loc"][-1]), _known_names(item["loc"][:-1]), n=1, cutoff=0.5)
            message = "unknown key" + (f", did you mean {nearest[0]!r}?" if nearest else "")
        problems.append({"loc": path, "msg": message})
    summary = "; ".join(f"{problem['loc']}: {problem['msg']}" for problem in problems)
    places = [f"{ENV_PREFIX}* variables", str(file) if file else f"{CONFIG_PATH} (absent)"]
    return ConfigurationError(
        f"bad settings: {summary}",
        remedy=f"correct it where it is set; looked at, highest first: {', '.join(places)}",
        errors=problems,
    )


def _known_names(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in location:
        field = model.model_fields.get(str(part)) or model.model_fields.get(f"{part}_")
        # Positions in a list, and tags of a union, are no fields: they stand for the model inside.
        if field is not None:
            inner = _model_in(field.annotation)
            if inner is None:
                return []
            model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
