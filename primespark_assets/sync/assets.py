"""What comes in, one external asset per data class; `sensors.py` records what came."""

from __future__ import annotations

import dagster as dg

EDGE = "edge"
_DESCRIPTIONS = {
    "telemetry": "Measurements of the devices themselves; their numeric fields become samples.",
    "inference_results": "What models saw in frames.",
    "labels": "What people say frames show; the pipeline learns from them.",
    "metrics": "Measurements of what is attached to devices.",
    "command_results": "What became of commands to devices.",
    "configurations": "Documents of devices and of the fleet, whoever changed them.",
}
EDGE_ASSETS = [
    dg.AssetSpec([EDGE, name], group_name=EDGE, kinds={"postgres"}, description=description)
    for name, description in _DESCRIPTIONS.items()
]
CLASSES = tuple(_DESCRIPTIONS)
