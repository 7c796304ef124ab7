"""One way to build an HTTP service: problem+json, bounded strict bodies, health, metrics, access by default deny."""

from primespark.core.web.access import Authenticator, Principal, Role, require
from primespark.core.web.application import create_app
from primespark.core.web.bodies import parse_json, read_body, read_json, read_model
from primespark.core.web.server import serve

__all__ = [
    "Authenticator",
    "Principal",
    "Role",
    "create_app",
    "parse_json",
    "read_body",
    "read_json",
    "read_model",
    "require",
    "serve",
]
