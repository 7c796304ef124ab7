"""Who is calling and what they may do; a route without a policy does not start."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fastapi import FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from primespark.errors import AuthenticationError, AuthorizationError, ConfigurationError

POLICY = "primespark_policy"


class Role(StrEnum):
    """What a credential allows; people's roles include the ones before them, a device's stands apart."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"
    DEVICE = "device"


_INCLUDED = {
    Role.VIEWER: {Role.VIEWER},
    Role.OPERATOR: {Role.VIEWER, Role.OPERATOR},
    Role.ADMIN: {Role.VIEWER, Role.OPERATOR, Role.ADMIN},
    Role.DEVICE: {Role.DEVICE},
}


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller: a device by its id, a person by the name of their key."""

    name: str
    role: Role


Authenticator = Callable[[str], Awaitable[Principal]]
Dependency = Callable[[Request], Awaitable[Principal]]


def require(*roles: Role) -> Dependency:
    """A dependency that answers the caller if their role includes any of `roles`, else 401 or 403."""

    async def authorised(request: Request) -> Principal:
        principal = await _identify(request)
        if not _INCLUDED[principal.role] & set(roles):
            needed = " or ".join(roles)
            raise AuthorizationError(f"role {principal.role} may not do this", remedy=f"use a key of role {needed}")
        return principal

    setattr(authorised, POLICY, roles)
    return authorised


def require_viewer_unless_local(open_health: bool) -> Callable[[Request], Awaitable[None]]:
    """A dependency for health pages: open from loopback where settings say so, else for viewers."""
    viewer = require(Role.VIEWER)

    async def authorised(request: Request) -> None:
        if open_health and request.client is not None and _is_loopback(request.client.host):
            return
        await viewer(request)

    setattr(authorised, POLICY, (Role.VIEWER,))
    return authorised


async def allow_anyone() -> None:
    """The policy of `/livez` and `/readyz`, which tell nothing but a yes or no and names."""


setattr(allow_anyone, POLICY, ())


def check_policies(app: FastAPI) -> None:
    """Refuse to start with a route that states no policy.

    Raises:
        ConfigurationError: Names the routes.
    """
    bare = [route.path for route in _api_routes(app.routes) if not any(_has_policy(d) for d in _tree(route.dependant))]
    if bare:
        raise ConfigurationError(f"routes without an access policy: {', '.join(bare)}", remedy="add Depends(require())")


async def _identify(request: Request) -> Principal:
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    # Headers are Latin-1, so this takes a no-break space too: what is left is checked, not what was sent.
    token = rest.strip()
    if scheme.lower() != "bearer" or not token:
        raise AuthenticationError("no credential", remedy="send `Authorization: Bearer KEY`")
    authenticate: Authenticator = request.app.state.authenticate
    return await authenticate(token)


def _api_routes(routes: Iterable[Any]) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif inner := getattr(route, "original_router", None) or getattr(route, "routes", None):
            yield from _api_routes(getattr(inner, "routes", inner))


def _tree(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for child in dependant.dependencies:
        yield from _tree(child)


def _has_policy(dependant: Dependant) -> bool:
    return hasattr(dependant.call, POLICY)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
