"""A version as it is served: on the processor, or on the accelerator with the processor behind it."""

from __future__ import annotations

from collections.abc import Callable

from edge_agent.accelerator import Accelerator
from edge_agent.slots.golden import check_golden, golden_array
from edge_agent.slots.stages import Verified
from primespark.inference.models import Model, ServedModel

Serve = Callable[[Verified, ServedModel], Model]


def serving(accelerator: Accelerator, max_image_pixels: int, depth: Callable[[], int], workers: int) -> Serve:
    """What puts the two variants of a version together; one without a HEF here is its model on the processor.

    Args:
        accelerator: Runs the HEF.
        max_image_pixels: Of an image among the golden inputs.
        depth: Requests that wait or run, of all models.
        workers: As many run at once.
    """

    def serve(verified: Verified, model: ServedModel) -> Model:
        if verified.hef is None:
            return model
        manifest = verified.manifest

        def prove(accelerated: ServedModel) -> None:
            check_golden(manifest.golden, accelerated, golden_array(manifest, accelerated, max_image_pixels))

        return accelerator.variants(verified.hef, model, depth, workers, prove)

    return serve
