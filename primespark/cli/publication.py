"""`primespark models publish`, `withdraw` and `deployed`: own models on devices, from the cloud's machine."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import Connection

from primespark.cli.store import connect_store
from primespark.core.clock import utc_now
from primespark.core.identifiers import sha256_hex
from primespark.core.manifests import GoldenInput, Manifest, SigningKey, Variant
from primespark.core.paths import home
from primespark.core.settings import Settings
from primespark.errors import InvalidInputError, NotFoundError
from primespark.inference.catalog import BUNDLED, DEPLOYABLE, LABELLED
from primespark.store import devices, documents
from primespark.store.blobs import BlobStore
from primespark.store.database import available

TWIN = "twin"


@dataclass(frozen=True, slots=True)
class Publication:
    """What is asked to be published.

    Attributes:
        onnx: The model's file.
        name: What it is to be asked for by.
        model_type: One of `DEPLOYABLE`.
        labels: A text file, the name of a class (of a pose's point) a line; None where the type needs none.
        golden: An image of at most 48 KiB that the device must answer rightly before it serves, and its label.
        version: Its number; None: one more than the highest that is desired of a device.
        device_ids: Who is to serve it; empty: every device that is enrolled.
    """

    onnx: Path
    name: str
    model_type: str
    labels: Path | None
    golden: tuple[Path, str] | None
    version: int | None
    device_ids: Sequence[str]


def publish(settings: Settings, asked: Publication) -> None:
    """Store the file, sign a manifest that names it, and desire the version of the devices.

    Raises:
        InvalidInputError: A name, type, file or label that no device would take.
        NotFoundError: A device that is not enrolled, or no signing key: this is not the cloud's machine.
    """
    key, blobs = _signing_key(), BlobStore(home() / "blobs")
    onnx = asked.onnx.read_bytes()
    manifest = _manifest(asked, onnx, settings.cloud.learning.rollback_counter)
    artifact = blobs.put(onnx)
    with available(), connect_store(settings).begin() as connection:
        twins = _twins(connection, asked.device_ids, for_update=True)
        version = asked.version or 1 + max(_desired_version(twin, asked.name) for twin in twins.values())
        digest = blobs.put(key.sign(manifest.model_copy(update={"version": version})).to_bytes())
        _desire(connection, twins, asked.name, {"version": version, "manifest": digest, "artifacts": [artifact]})
    typer.echo(f"version {version} of {asked.name} is desired of {', '.join(twins)}")
    typer.echo("where it is: primespark models deployed")


def withdraw(settings: Settings, name: str, device_ids: Sequence[str]) -> None:
    """Desire a model of devices no more; they drop it, and a bundled one of its type answers again.

    Raises:
        NotFoundError: A device that is not enrolled, or none of whom the model is desired.
    """
    with available(), connect_store(settings).begin() as connection:
        twins = {
            device_id: twin
            for device_id, twin in _twins(connection, device_ids, for_update=True).items()
            if _desired_version(twin, name)
        }
        if not twins:
            raise NotFoundError(f"{name!r} is desired of no device", remedy="primespark models deployed")
        _desire(connection, twins, name, None)
    typer.echo(f"{name} is withdrawn from {', '.join(twins)}")


def list_deployed(settings: Settings, as_json: bool) -> None:
    """Print what is desired of each device, and what it reports of it."""
    with available(), connect_store(settings).begin() as connection:
        rows = [row for device_id, twin in _twins(connection, ()).items() for row in _deployed(device_id, twin)]
    if as_json:
        typer.echo(json.dumps({"items": rows, "next_cursor": None}))
        return
    table = Table(title="Deployed models")
    for heading in ("device", "model", "desired", "serves", "state", "candidate", "error"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else escape(str(value)) for value in row.values()))
    Console().print(table)


def _signing_key() -> SigningKey:
    path = home() / "cloud" / "signing.key"
    if not path.exists():
        raise NotFoundError(
            f"no signing key of a cloud under {home()}",
            remedy="run this on the cloud's machine, with its PRIMESPARK_HOME, once the cloud ran",
        )
    return SigningKey.load_or_create(path)


def _manifest(asked: Publication, onnx: bytes, rollback_counter: int) -> Manifest:
    """What is to be signed, but for its version."""
    if asked.name in {model.name for model in BUNDLED}:
        raise InvalidInputError(f"{asked.name} is the name of a bundled model", remedy="choose another")
    if asked.model_type not in DEPLOYABLE:
        raise InvalidInputError(f"no type {asked.model_type!r}", remedy=f"there is {', '.join(DEPLOYABLE)}")
    labels = _lines(asked.labels) if asked.labels else ()
    if not labels and asked.model_type in LABELLED:
        raise InvalidInputError(f"a model of type {asked.model_type} needs labels", remedy="give --labels FILE")
    try:
        return Manifest(
            name=asked.name, version=asked.version or 1, model_type=asked.model_type, created=utc_now(), labels=labels,
            variants=(Variant(format="onnx", architecture="any", sha256=sha256_hex(onnx), size_bytes=len(onnx)),),
            golden=_golden(asked.golden, labels) if asked.golden else None, rollback_counter=rollback_counter,
        )  # fmt: skip
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise InvalidInputError(f"no manifest can be made: {faults}", remedy="correct what is named") from None


def _golden(given: tuple[Path, str], labels: Sequence[str]) -> GoldenInput:
    image, label = given
    if label not in labels:
        raise InvalidInputError(f"the golden label {label!r} is none of the labels", remedy="write it as in their file")
    return GoldenInput(image_png_base64=base64.b64encode(image.read_bytes()).decode(), label=label)


def _lines(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path} is no text in UTF-8", remedy="give a file with a label a line") from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _twins(connection: Connection, device_ids: Sequence[str], *, for_update: bool = False) -> dict[str, dict[str, Any]]:
    """The twins of the named devices, else of all that are enrolled; with `for_update` until commit nobody writes."""
    enrolled = [row.device_id for row in devices.list_devices(connection)]
    unknown = [device_id for device_id in device_ids if device_id not in enrolled]
    if unknown or not enrolled:
        what = f"no device {unknown[0]!r} is enrolled" if unknown else "no device is enrolled"
        raise NotFoundError(what, remedy="primespark device list names them, docs/devices.md tells how to enrol one")
    found = {
        device_id: documents.read(connection, device_id, TWIN, for_update=for_update)
        for device_id in device_ids or enrolled
    }
    return {device_id: document.value if document else {} for device_id, document in found.items()}


def _desire(connection: Connection, twins: dict[str, dict[str, Any]], name: str, pointer: Any) -> None:
    for device_id in twins:
        documents.write_cloud(connection, device_id, TWIN, {"desired": {"models": {name: pointer}}})


def _models(twin: dict[str, Any], side: str) -> dict[str, Any]:
    """What a twin says of each model; devices write their side, so nothing is taken for granted."""
    part = twin.get(side)
    models = part.get("models") if isinstance(part, dict) else None
    return {name: told for name, told in models.items() if isinstance(told, dict)} if isinstance(models, dict) else {}


def _desired_version(twin: dict[str, Any], name: str) -> int:
    version = _models(twin, "desired").get(name, {}).get("version")
    return version if isinstance(version, int) else 0


def _deployed(device_id: str, twin: dict[str, Any]) -> Iterator[dict[str, Any]]:
    desired, reported = _models(twin, "desired"), _models(twin, "reported")
    for name in sorted(desired.keys() | reported.keys()):
        told = reported.get(name, {})
        yield {
            "device": device_id, "model": name, "desired": desired.get(name, {}).get("version"),
            "serves": told.get("version"), "state": told.get("state"), "candidate": told.get("candidate"),
            "error": told.get("error"),
        }  # fmt: skip
