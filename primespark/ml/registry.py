"""The model registry: versions as raw artifacts in MLflow, the one in service under the alias `champion`.

MLflow has no compare-and-swap, so one run at a time may register and promote; Dagster's pool sees to that.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primespark.core.paths import home, private_directory
from primespark.errors import UnavailableError
from primespark.ml.digits_model import MODEL

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "champion"
EXPERIMENT = "primespark"
_FOLDER = "model"
_ARTIFACT_TAG = "artifact_sha256"
_MANIFEST_TAG = "manifest_sha256"
_PASSING_FAULTS = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
_MLFLOW_DEFAULTS = {
    # Seven retries with doubling pauses are four minutes, longer than a sensor may take.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version of the model; `manifest` is empty until it was signed."""

    version: int
    artifact: str
    manifest: str
    registered_at: datetime


class Registry:
    """Versions of the digit reader.

    Args:
        tracking_uri: Of an MLflow server; None for SQLite under the state directory.
    """

    def __init__(self, tracking_uri: str | None = None) -> None:
        self._tracking_uri = tracking_uri
        self._connected: MlflowClient | None = None

    def champion(self) -> RegisteredVersion | None:
        """The version in service."""
        from mlflow.exceptions import MlflowException

        with _passing_faults():
            try:
                aliases = self._client.get_registered_model(MODEL).aliases
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
            if ALIAS not in aliases:
                return None
            return _registered(self._client.get_model_version(MODEL, str(aliases[ALIAS])))

    def register(self, artifact: str, onnx: bytes, facts: dict[str, float]) -> RegisteredVersion:
        """The version with this ONNX file; a new one unless there is one already.

        Args:
            artifact: SHA-256 of `onnx`.
            onnx: The file.
            facts: Figures worth comparing, logged as metrics.
        """
        with _passing_faults():
            known = self._client.search_model_versions(f"name = '{MODEL}' and tags.{_ARTIFACT_TAG} = '{artifact}'")
            if known:
                return min((_registered(version) for version in known), key=lambda version: version.version)
            run_id = self._run(artifact, onnx, facts)
            source = f"runs:/{run_id}/{_FOLDER}"
            return _registered(self._client.create_model_version(MODEL, source, run_id, tags={_ARTIFACT_TAG: artifact}))

    def attach_manifest(self, version: int, sha256: str, manifest: bytes) -> None:
        """Keep the signed manifest beside the version's file."""
        with _passing_faults():
            run_id = self._client.get_model_version(MODEL, str(version)).run_id
            self._log(str(run_id), "manifest.json", manifest)
            self._client.set_model_version_tag(MODEL, str(version), _MANIFEST_TAG, sha256)

    def promote(self, version: int) -> None:
        """Put a version into service."""
        with _passing_faults():
            self._client.set_registered_model_alias(MODEL, ALIAS, str(version))

    def mark(self) -> int | None:
        """Changes with every write to the registry under the state directory, and costs a stat; None of a server."""
        if self._tracking_uri is not None:
            return None
        file = _database_file()
        return file.stat().st_mtime_ns if file.exists() else 0

    def prepare(self) -> None:
        """Make schema, experiment and model where they are missing."""
        with _passing_faults():
            _ = self._client

    @property
    def _client(self) -> MlflowClient:
        if self._connected is None:
            self._connected = _connect(self._tracking_uri)
        return self._connected

    def _run(self, artifact: str, onnx: bytes, facts: dict[str, float]) -> str:
        """The finished run that made a file; one that was cut off is taken up again."""
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None  # noqa: S101 (made when the client was)
        found = self._client.search_runs([experiment.experiment_id], f"tags.{_ARTIFACT_TAG} = '{artifact}'")
        run = found[0] if found else self._client.create_run(experiment.experiment_id, tags={_ARTIFACT_TAG: artifact})
        run_id: str = run.info.run_id
        self._log(run_id, "model.onnx", onnx)
        for name, value in facts.items():
            self._client.log_metric(run_id, name, value)
        self._client.set_terminated(run_id)
        return run_id

    def _log(self, run_id: str, name: str, data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            self._client.log_artifact(run_id, str(path), _FOLDER)


def prepare(tracking_uri: str | None = None) -> None:
    """Make the registry's schema ahead of its first use, which would wait a second for it.

    Raises:
        UnavailableError: The MLflow server does not answer.
    """
    Registry(tracking_uri).prepare()


def _connect(tracking_uri: str | None) -> MlflowClient:
    for name, value in _MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    if tracking_uri is not None:
        client = MlflowClient(tracking_uri, tracking_uri)
        _make_missing(client, None)
        return client
    file = _database_file()
    private_directory(file.parent)
    uri = f"sqlite:///{file}"
    # Two processes that make the schema at once leave half of it.
    with (file.parent / "prepare.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(uri, uri)
        _make_missing(client, (file.parent / "artifacts").as_uri())
    return client


def _make_missing(client: MlflowClient, artifact_location: str | None) -> None:
    from mlflow.exceptions import MlflowException

    try:
        if client.get_experiment_by_name(EXPERIMENT) is None:
            client.create_experiment(EXPERIMENT, artifact_location)
        if not client.search_registered_models(f"name = '{MODEL}'"):
            client.create_registered_model(MODEL)
    except MlflowException as error:
        # Another client of the same server was first; whoever finds one missing comes here again.
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _database_file() -> Path:
    return home() / "mlflow" / "mlflow.db"


def _registered(version: Any) -> RegisteredVersion:
    return RegisteredVersion(
        version=int(version.version),
        artifact=version.tags[_ARTIFACT_TAG],
        manifest=version.tags.get(_MANIFEST_TAG, ""),
        registered_at=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
    )


@contextmanager
def _passing_faults() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in _PASSING_FAULTS:
            raise
        raise UnavailableError(
            "the model registry does not answer", remedy="see cloud.learning.tracking_uri", code="registry_unavailable"
        ) from error
