"""What a device looks at, what it makes of it, and what it keeps."""

from edge_agent.capture.looking import Capture
from edge_agent.capture.witness import Witness

__all__ = ["Capture", "Witness"]
