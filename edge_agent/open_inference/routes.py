"""`/v2`: the Open Inference Protocol's routes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

import primespark
from edge_agent.api import Here, Operator, Viewer
from edge_agent.inference_service import InferenceService
from edge_agent.open_inference import answers, tensors
from edge_agent.open_inference.answers import Encoded
from edge_agent.open_inference.messages import Asked, read_request
from edge_agent.open_inference.tensors import TensorForm
from primespark.core.web import read_body
from primespark.core.web.access import require_viewer_unless_local
from primespark.core.web.application import Readiness
from primespark.core.web.bodies import Turns, turns_of
from primespark.errors import InvalidInputError, NotFoundError, UnavailableError
from primespark.inference.models import BUNDLED_VERSION, InputKind, Model, RawInputs, ServedModel
from primespark.inference.tabular import MAX_ROWS

PREFIX = "/v2"
HEADER_LENGTH = "Inference-Header-Content-Length"
_CPU = "cpu"

router = APIRouter(prefix=PREFIX)


def error_members(problem: Mapping[str, Any]) -> dict[str, Any]:
    """The member `error` as clients of the protocol read it: a text, from the members of a problem."""
    detail, remedy = problem["detail"], problem.get("remedy")
    return {"error": f"{detail}; {remedy}" if remedy else detail}


@dataclass(frozen=True, slots=True)
class Addressed:
    """The model a path names, and the version if it does."""

    name: str
    version: str | None

    def check_version(self, version: int) -> None:
        """Nothing, if the path names this version or none.

        Raises:
            NotFoundError: Code `unknown_model_version`.
        """
        if self.version not in (None, str(version)):
            raise NotFoundError(
                f"no version {str(self.version)[:64]!r} of {self.name} is in service",
                remedy=f"there is {version}",
                code="unknown_model_version",
            )


def _addressed(request: Request) -> Addressed:
    return Addressed(request.path_params["model"], request.path_params.get("version"))


Named = Annotated[Addressed, Depends(_addressed)]


def health_router(readiness: Readiness, open_health: bool) -> APIRouter:
    """`/v2/health/*`, for whom `/health` is.

    Args:
        readiness: What is not ready, cause by name.
        open_health: Whether they are open from loopback.
    """
    health = APIRouter(prefix=f"{PREFIX}/health", dependencies=[Depends(require_viewer_unless_local(open_health))])

    @health.get("/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @health.get("/ready")
    async def ready() -> dict[str, bool]:
        missing = await readiness()
        if missing:
            causes = ", ".join(f"{name}: {cause}" for name, cause in missing.items())
            raise UnavailableError(f"not ready: {causes}", remedy="ask again later", code="not_ready")
        # The protocol's text has the one, its servers answer the other.
        return {"live": True, "ready": True}

    return health


@router.get("", dependencies=[Viewer])
async def server_metadata() -> dict[str, Any]:
    """Who answers, and which extensions of the protocol it has."""
    return {"name": "primespark-edge", "version": primespark.__version__, "extensions": ["binary_tensor_data"]}


@router.get("/models/{model}", dependencies=[Viewer])
@router.get("/models/{model}/versions/{version}", dependencies=[Viewer])
async def model_metadata(here: Here, named: Named) -> dict[str, Any]:
    """A model's inputs and outputs."""
    model = await _current(here.service, named)
    inputs, outputs = _forms(model)
    return {
        "name": model.name, "versions": [str(model.version)],
        "platform": "onnxruntime_onnx" if model.device == _CPU else "hailort_hef",
        "inputs": [_describe(form) for form in inputs], "outputs": [_describe(form) for form in outputs],
    }  # fmt: skip


@router.get("/models/{model}/ready", dependencies=[Viewer])
@router.get("/models/{model}/versions/{version}/ready", dependencies=[Viewer])
async def model_ready(here: Here, named: Named) -> dict[str, Any]:
    """Whether a model answers; a bundled one does, and is loaded when it is first asked."""
    service = here.service
    if service.slots.get(named.name) is None and service.bundled.find(named.name, None) is not None:
        # Who only looks must not have it loaded, and another one unloaded for it.
        named.check_version(BUNDLED_VERSION)
    else:
        await _current(service, named)
    return {"name": named.name, "ready": True}


@router.post("/models/{model}/infer")
@router.post("/models/{model}/versions/{version}/infer")
async def infer(
    request: Request, here: Here, named: Named, _: Operator, turns: Annotated[Turns, Depends(turns_of)]
) -> Response:
    """A model's outputs for its inputs, with nothing before or behind the model."""
    received = time.monotonic()
    body = await read_body(request)
    header_length = request.headers.get(HEADER_LENGTH)
    asked = await turns.run(len(body), partial(read_request, body, header_length))
    if asked.model_name not in (None, named.name):
        raise InvalidInputError("`model_name` is not the model of the path", remedy="leave it out")
    deadline = answers.deadline_of(asked, received)
    model = await here.service.model(named.name, deadline)
    variant = _variant_for(asked, model, named)
    inputs, outputs = _forms(variant)
    wanted = answers.choose_outputs(asked, outputs)
    raw = RawInputs(asked.arrays, variant, is_version_named=named.version is not None)
    try:
        found = await here.service.compute(model, raw, answers.priority_of(asked), deadline)
    except UnavailableError as error:
        raise answers.told_apart(error, inputs) from None
    size = sum(found.outputs[output.index].nbytes for output in wanted)
    return _sent(await turns.run(size, partial(answers.encode, _head(found.by, asked), wanted, found.outputs)))


def _variant_for(asked: Asked, model: Model, named: Addressed) -> ServedModel:
    """The variant that a request is made for: the one that answers now, or the one that is away if only that takes it.

    Raises:
        NotFoundError: Code `unknown_model_version`.
        InvalidInputError: As `answers.check_inputs`.
    """
    # Asked in this order, none is missed that leaves or comes back meanwhile.
    variants = [one for one in (model.current, model.away, model.current) if one is not None]
    fitting = next((one for one in variants if _takes(asked, one, named)), variants[0])
    _check(asked, fitting, named)
    return fitting


def _takes(asked: Asked, variant: ServedModel, named: Addressed) -> bool:
    try:
        _check(asked, variant, named)
    except (NotFoundError, InvalidInputError):
        return False
    return True


def _check(asked: Asked, variant: ServedModel, named: Addressed) -> None:
    named.check_version(variant.version)
    inputs, _ = _forms(variant)
    is_table = variant.input_kind is InputKind.TABLE
    answers.check_inputs(asked.arrays, inputs, MAX_ROWS if is_table else answers.MAX_BATCH)


def _head(model: ServedModel, asked: Asked) -> dict[str, Any]:
    return {
        "model_name": model.name, "model_version": str(model.version),
        **({} if asked.id is None else {"id": asked.id}),
        "parameters": {"device": model.device, "model_digest": model.digest},
    }  # fmt: skip


def _sent(answer: Encoded) -> Response:
    if answer.head_bytes is None:
        return Response(answer.body, media_type="application/json")
    headers = {HEADER_LENGTH: str(answer.head_bytes)}
    return Response(answer.body, headers=headers, media_type="application/octet-stream")


async def _current(service: InferenceService, named: Addressed) -> ServedModel:
    """The variant that would answer now."""
    current = (await service.model(named.name)).current
    named.check_version(current.version)
    return current


def _forms(model: ServedModel) -> tuple[tuple[TensorForm, ...], tuple[TensorForm, ...]]:
    engine = model.engine
    return (
        tensors.forms(engine.input_names, engine.input_types, engine.input_shapes),
        tensors.forms(engine.output_names, engine.output_types, engine.output_shapes),
    )


def _describe(form: TensorForm) -> dict[str, Any]:
    return {"name": form.name, "datatype": form.datatype, "shape": form.wire_shape}
