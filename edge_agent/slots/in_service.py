"""Which models are in service, by name."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from primespark.core.clock import utc_now
from primespark.inference.models import Model


@dataclass(frozen=True, slots=True)
class Slot:
    """A model in service."""

    model: Model
    since: datetime


class Slots:
    """Models in service by name; an exchange is one assignment, and who has taken a model keeps it to the end."""

    def __init__(self) -> None:
        self._by_name: dict[str, Slot] = {}

    def put(self, model: Model, since: datetime | None = None) -> Slot:
        """Serve `model` under its name from now on; `since` is told of one that served before in another form."""
        slot = Slot(model, since or utc_now())
        self._by_name = {**self._by_name, model.name: slot}
        return slot

    def remove(self, name: str) -> None:
        """Serve nothing under this name."""
        self._by_name = {key: slot for key, slot in self._by_name.items() if key != name}

    def get(self, name: str) -> Slot | None:
        """The model in service under this name."""
        return self._by_name.get(name)

    def items(self) -> list[tuple[str, Slot]]:
        """All, by name."""
        return sorted(self._by_name.items())

    def find(self, name: str | None, model_type: str | None) -> Model | None:
        """The model of this name, else the live one of this type."""
        if name is not None:
            slot = self._by_name.get(name)
            return slot.model if slot is not None else None
        return next((slot.model for slot in self._by_name.values() if slot.model.model_type == model_type), None)

    def close(self) -> None:
        """Release all models, once nobody asks them any more."""
        for slot in self._by_name.values():
            slot.model.close()
