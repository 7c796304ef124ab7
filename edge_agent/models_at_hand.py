"""The models a caller may ask: those in service, else the bundled ones."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from edge_agent.bundled_models import BundledModels
from edge_agent.slots.in_service import Slots
from primespark.core.clock import to_rfc3339
from primespark.errors import InvalidInputError, NotFoundError
from primespark.inference import catalog
from primespark.inference.models import Model


class ModelsAtHand:
    """Finds models by name and type.

    Args:
        slots: Models in service.
        bundled: Loaded when they are first asked for.
    """

    def __init__(self, slots: Slots, bundled: BundledModels) -> None:
        self._slots = slots
        self._bundled = bundled

    async def get(self, name: str | None, model_type: str | None) -> Model:
        """The model of this name, which must be of this type if one is given; without a name the first of the type.

        Raises:
            NotFoundError: Code `unknown_model`.
            InvalidInputError: Code `wrong_model_type`.
            IntegrityError: A bundled model's file is not the pinned one.
        """
        model = self._slots.find(name, model_type)
        if model is None:
            bundled = self._bundled.find(name, model_type)
            if bundled is None:
                raise self._unknown(name, model_type)
            model = await self._bundled.get(bundled)
        if model_type is not None and model.model_type != model_type:
            raise InvalidInputError(
                f"{model.name} is of type {model.model_type}",
                remedy="leave out one of the two",
                code="wrong_model_type",
            )
        return model

    def describe(self) -> dict[str, dict[str, Any]]:
        """Those in memory, by name."""
        return {
            **{model.name: _describe(model, None) for model in self._bundled.loaded()},
            **{name: _describe(slot.model, slot.since) for name, slot in self._slots.items()},
        }

    def _unknown(self, name: str | None, model_type: str | None) -> NotFoundError:
        names = sorted({slot for slot, _ in self._slots.items()} | {model.name for model in catalog.BUNDLED})
        remedy = f"there is {', '.join(names)}"
        if name is not None:
            return NotFoundError(f"no model {name[:64]!r} is in service", remedy=remedy, code="unknown_model")
        if model_type == catalog.ModelType.LLM:
            remedy = "ask POST /v1/chat/completions"
        elif model_type not in list(catalog.ModelType):
            remedy = f"the types are {', '.join(catalog.ModelType)}"
        what = f"no model of type {str(model_type)[:64]!r} is in service"
        return NotFoundError(what, remedy=remedy, code="unknown_model")


def _describe(model: Model, since: datetime | None) -> dict[str, Any]:
    current = model.current
    return {
        "version": current.version, "digest": current.digest, "since": to_rfc3339(since) if since else None,
        "model_type": model.model_type, "device": current.device, "fault": model.fault,
    }  # fmt: skip
