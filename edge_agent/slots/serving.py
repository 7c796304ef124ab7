"""A version as it is served: on the processor, or on the accelerator with the processor behind it."""

from __future__ import annotations

from collections.abc import Callable

from edge_agent.accelerator import Accelerator
from edge_agent.inference_service import InferenceService
from edge_agent.slots.golden import check_golden, golden_array
from edge_agent.slots.stages import Verified
from primespark.inference.models import Model, ServedModel

Serve = Callable[[Verified, ServedModel], Model]


def serving(accelerator: Accelerator, service: InferenceService) -> Serve:
    """What puts the two variants of a version together; one without a HEF here is its model on the processor."""

    def serve(verified: Verified, model: ServedModel) -> Model:
        if verified.hef is None:
            return model
        manifest, max_pixels = verified.manifest, service.settings.max_image_pixels

        def prove(accelerated: ServedModel) -> None:
            check_golden(manifest.golden, accelerated, golden_array(manifest, accelerated, max_pixels))

        return accelerator.variants(verified.hef, model, lambda: service.depth, service.workers, prove)

    return serve
