"""`primespark models hailo`: the HEF files that are here, and what they are good for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from primespark.errors import PrimeSparkError
from primespark.inference.catalog import ModelType
from primespark.inference.hailo_catalog import MAX_FILES, VendorModel, find_hefs
from primespark.inference.hailo_device import identify
from primespark.inference.hailo_hef import runs_on

_BESIDE_ONNX = "it serves as the HEF of a deployed version, beside the ONNX file of the same network"
_OFFERS = {
    ModelType.OBJECT_DETECTION: (
        "a detector serves where edge.inference.accelerator.detector is its path;\n"
        "the names of its classes, unless they are COCO's 80, are a file in edge.inference.accelerator.labels"
    ),
    ModelType.CLASSIFICATION: (
        "what gives one vector for an image may be a classifier: whether its values are classes only its maker knows;\n"
        + _BESIDE_ONNX
    ),
    ModelType.POSE: f"a model of poses answers all people in an image;\n{_BESIDE_ONNX}",
}
_LABELS = {ModelType.POSE: "points"}


def list_hefs(folder: Path, as_json: bool, root: Path = Path("/")) -> None:
    """Print the HEF files of a folder; `root` is where the files of the chip's driver are looked for."""
    models = find_hefs(folder)
    chip, cause = _this_chip(root)
    if as_json:
        items = [_item(model, chip) for model in models]
        told = {"architecture": chip, "cause": cause or None}
        typer.echo(json.dumps({"folder": str(folder), "chip": told, "items": items, "next_cursor": None}))
        return
    if models:
        Console().print(_table(folder, models, chip))
        usable = {model.model_type for model in models if _runs_here(model, chip) is not False}
        for offer in (offer for model_type, offer in _OFFERS.items() if model_type in usable):
            typer.echo(offer)
    else:
        typer.echo(f"no HEF in {folder}\n  try: sudo apt install hailo-models, or --folder PATH")
    typer.echo(f"the chip here is a {chip}" if chip else f"which chip is here is not known: {cause}")
    if len(models) == MAX_FILES:
        typer.echo(f"no more than {MAX_FILES} files are looked at")


def _this_chip(root: Path) -> tuple[str | None, str]:
    try:
        return identify(root), ""
    except PrimeSparkError as error:
        return None, error.message


def _item(model: VendorModel, chip: str | None) -> dict[str, Any]:
    return {
        "name": model.path.stem, "path": str(model.path), "size_bytes": model.size_bytes,
        "sha256": model.sha256 or None, "architecture": model.architecture or None,
        "compiler": model.compiler or None, "network": model.network or None, "runs_on": list(model.chips),
        "runs_here": _runs_here(model, chip), "model_type": model.model_type, "labels": model.labels,
        "problem": model.problem or None,
    }  # fmt: skip


def _runs_here(model: VendorModel, chip: str | None) -> bool | None:
    if model.problem:
        return False
    return None if chip is None else runs_on(model.architecture, chip)


def _table(folder: Path, models: tuple[VendorModel, ...], chip: str | None) -> Table:
    table = Table(title=_shown(f"HEF files in {folder}"))
    for heading in ("file", "network", "serves", "for", "runs here", "MB", "sha256"):
        table.add_column(heading)
    words = {True: "yes", False: "no", None: "unknown"}
    for model in models:
        if model.problem:
            table.add_row(_shown(model.path.name), _shown(model.problem), "nothing", "", "no", _megabytes(model), "")
            continue
        table.add_row(
            _shown(model.path.name), _shown(model.network), _serves(model), model.architecture,
            words[_runs_here(model, chip)], _megabytes(model), model.sha256[:16],
        )  # fmt: skip
    return table


def _serves(model: VendorModel) -> str:
    if model.model_type is None:
        return "unknown"
    return f"{model.model_type}, {model.labels} {_LABELS.get(model.model_type, 'classes')}"


def _shown(text: str) -> str:
    """Without markup, and without what would steer the terminal."""
    return escape("".join(sign if sign.isprintable() else "?" for sign in text))


def _megabytes(model: VendorModel) -> str:
    return f"{model.size_bytes / 1e6:.1f}"
