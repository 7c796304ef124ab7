"""What the double claims of HailoRT, and in which releases; docs/hailo.md prints this table."""

from __future__ import annotations

from dataclasses import dataclass

Release = tuple[int, int]
FIRST: Release = (4, 18)


@dataclass(frozen=True, slots=True)
class Claim:
    """One behaviour of the vendor's package that the double has from `since` on."""

    key: str
    text: str
    since: Release = FIRST


CLAIMS = (
    Claim("infer_model", "`VDevice.create_infer_model`; before, only the older stream API, which the double lacks"),
    Claim("raw_exception", "`_pyhailort.HailoRTStatusException` escapes `Device.scan`, `Device()`, `VDevice.release`"),
    Claim("status_text", "most statuses are a plain `HailoRTException` whose number stands in its text only"),
    Claim("no_batch", "shapes have no batch dimension; one `Bindings` is one frame; only bytes are counted, at run"),
    Claim("unset_buffer", "a buffer that is not set is status 61 at run"),
    Claim("shutdown_after_failure", "a `run_async` that fails shuts the model down; from then on status 63"),
    Claim("queue_full", "`run_async` beyond `get_async_queue_size` is status 82; it does not wait"),
    Claim("reopen", "a `VDevice` whose chip died stays dead (36), a new one works; this is assumed, not read"),
    Claim("late_place", "a frame's place in the queue is free only after its callback"),
    Claim("sequential_callbacks", "one callback thread per model; `completion_info` comes as a keyword"),
    Claim("callback_abort", "an exception in a callback ends the process"),
    Claim("direct_buffers", "inputs are read while the frame runs, outputs written when it ends, after a timeout too"),
    Claim("scheduler_default", "`VDeviceParams` default to scheduling NONE and group UNIQUE"),
    Claim("one_process", "a model is made only in the process of its `VDevice`; a second process gets status 74"),
    Claim("driver_match", "driver and library of different releases are status 76"),
    Claim("path_type_error", "`create_infer_model` takes text, a `Path` is a `TypeError`"),
    Claim("hef_integrity", "a HEF of another magic is status 92, one of another digest or size 91"),
    Claim("hef_architecture", "a HEF for Hailo-8 does not run on Hailo-8L; the reverse does, with a warning"),
    Claim("quantisation", "a stream with scale and zero point is rounded to its type; others are computed in float"),
    Claim("physical_devices", "`VDevice.get_physical_devices` opens each chip a second time, beside the `VDevice`"),
    Claim("released_control", "a control call on a `Device` that was released, or that nobody holds, is status 6"),
    Claim("control_blocks", "a control call keeps the interpreter until it ends, with a chip that is silent a second"),
    Claim("power", "`power_measurement` is status 48, with its own class, on a board without a current monitor"),
    Claim(
        "throttling",
        "`get_throttling_state` and `*_throttling_active` tell that a protection is on, not that it acts",
    ),
    Claim("throttling_level", "`_get_health_information` tells level -1 at full clock (inferred), else 0 to 3"),
    Claim("c_contiguous", "`set_buffer` refuses what is not C-contiguous", (4, 19)),
    Claim("flat_lists", "`get_buffer` of an NMS output is one list per class; before, in one more list", (4, 19)),
    Claim("name_argument", "`create_infer_model` names its second argument `name`; before `network_name`", (4, 19)),
    Claim("driver_exception", "36 and 62 have exception classes of their own; before, plain", (4, 20)),
    Claim("architecture_status", "another architecture is status 93 with its own class; before 26", (4, 21)),
    Claim("nms_orders", "`HAILO_NMS_BY_CLASS` and `HAILO_NMS_BY_SCORE` (22 bytes a box); before `HAILO_NMS`", (4, 21)),
    Claim("accelerator_type", "`Device.scan` needs `accelerator_type` in sysfs", (4, 23)),
    Claim("raw_is_subclass", "the raw exception is a `HailoRTException`", (5, 2)),
)
_SINCE = {claim.key: claim.since for claim in CLAIMS}


def holds(key: str, release: Release) -> bool:
    """Whether a release behaves as the claim says."""
    return release >= _SINCE[key]
