"""The model pointers in the devices' twins: which version is desired, and which twins do not say so yet.

What is promoted is read from the pipeline's last stage, at once, and from the registry's alias, which may be moved by
hand: now and then, and only after somebody else wrote to the registry, since asking it costs the import of its client,
two seconds of processor time and 120 MB.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from primespark.errors import PermanentError
from resources import Later, RegistryResource, StoreResource

if TYPE_CHECKING:
    import logging

    from sqlalchemy import Connection

TWIN = "twin"
_ALIAS_INTERVAL_S = 30.0
_CURSOR_VERSION = 1


@dataclass(frozen=True, slots=True)
class Pointer:
    """A version and the blobs a device needs for it."""

    version: int
    manifest: str
    artifact: str

    def desired(self) -> dict[str, Any]:
        """As it stands in a twin."""
        return {"version": self.version, "manifest": self.manifest, "artifacts": [self.artifact]}


@dataclass(frozen=True, slots=True)
class Work:
    """What is desired, and the devices whose twins say otherwise."""

    target: Pointer
    deployed: Pointer | None
    registry_mark: int | None
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SensorState:
    """What the sensor remembers between ticks.

    Attributes:
        target: What is desired.
        deployed: The outcome of the pipeline that was last taken up.
        registry_mark: The registry's mark when its alias was known to name the target.
        alias_read_at: When that was last looked at, in seconds since the epoch.
    """

    target: Pointer | None = None
    deployed: Pointer | None = None
    registry_mark: int | None = None
    alias_read_at: float = 0.0

    @classmethod
    def parse(cls, cursor: str | None) -> SensorState:
        """The state in a cursor; without one, the next interval's alias is the first that is read."""
        if not cursor:
            return cls(alias_read_at=time.time())
        stored = json.loads(cursor)
        pointers = {name: Pointer(**stored[name]) if stored[name] else None for name in ("target", "deployed")}
        return cls(**pointers, registry_mark=stored["registry_mark"], alias_read_at=stored["alias_read_at"])

    def to_cursor(self) -> str:
        """The state as a cursor."""
        return json.dumps({"v": _CURSOR_VERSION, **asdict(self)})

    def after(self, work: Work) -> SensorState:
        """The state once the twins were written."""
        return replace(self, target=work.target, deployed=work.deployed, registry_mark=work.registry_mark)

    def look_at_alias(self, registry: RegistryResource) -> SensorState:
        """The state with the version the alias names, if it is time to ask."""
        now = time.time()
        if self.target is None or now - self.alias_read_at < _ALIAS_INTERVAL_S:
            return self
        versions = registry.registry()
        mark = versions.mark()
        state = replace(self, registry_mark=mark, alias_read_at=now)
        if mark is not None and mark == self.registry_mark:
            return state
        champion = versions.champion()
        if champion is None or not champion.manifest:
            return state
        return replace(state, target=Pointer(champion.version, champion.manifest, champion.artifact))


def find_work(connection: Connection, state: SensorState) -> Work | Later:
    """The twins to write, level-triggered: from what is desired and what the twins say."""
    from primespark.ml.digits_model import MODEL
    from primespark.store import devices, documents, pipeline

    stored = pipeline.latest(connection, "deployment")
    deployed = Pointer(stored["version"], stored["manifest"], stored["artifact"]) if stored else None
    is_new = stored is not None and deployed != state.deployed
    target, mark = (deployed, stored.get("registry_mark")) if stored and is_new else (state.target, state.registry_mark)
    if target is None:
        return Later("no model has been promoted")
    lacking = []
    for device in devices.list_devices(connection):
        twin = documents.read(connection, device.device_id, TWIN)
        models = ((twin.value if twin else {}).get("desired") or {}).get("models") or {}
        if models.get(MODEL) != target.desired():
            lacking.append(device.device_id)
    if not lacking and not is_new:
        return Later(f"version {target.version} is desired of every device")
    return Work(target, deployed, mark, tuple(lacking))


def point_devices(store: StoreResource, work: Work, log: logging.Logger) -> int:
    """Write the pointer into the twins, each in a transaction of its own; how many were written."""
    from primespark.ml.digits_model import MODEL
    from primespark.store import documents

    patch = {"desired": {"models": {MODEL: work.target.desired()}}}
    pointed = 0
    for device_id in work.devices:
        try:
            with store.transaction() as connection:
                documents.write_cloud(connection, device_id, TWIN, patch)
        except PermanentError as error:
            # One twin that cannot be written must not keep the model from the other devices.
            log.warning("the twin of %s was not written: %s", device_id, error)
            continue
        pointed += 1
    return pointed
