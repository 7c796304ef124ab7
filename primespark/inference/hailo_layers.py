"""What a network takes and gives, from the layers of a HEF at whose edge the host is.

They lie in the contexts of the network, which is there in one of four ways, by the age of the compiler and by the chip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from primespark.inference.protobuf import DamagedMessageError, Message, with_own_budget

Shape = tuple[int, int, int]

# Ways from a network to what has the contexts: its operation's, for a part of the chip and whole; its own, the same.
_OWNERS = ((8, 4, 7, 1), (8, 4), (7, 1), ())
_CONTEXTS, _METADATA, _LAYERS = 3, 3, 2
# Of a layer: 1 where it gives; its kind, the third being planes of colour; what it is connected to, 0 being the host.
_GIVES, _PLAIN, _JOINED, _CONNECTION, _CONNECTED_TO = 1, 3, 4, 5, 3
# Of a layer of joined outputs, which HailoRT takes apart: its parts, and what a part is.
_PARTS, _PLAIN_PART, _JOINED_PART = 5, 1, 2
_BASE, _HEIGHT, _WIDTH, _CHANNELS, _FINDS_LARGEST = 2, 1, 3, 5, 14
# Of suppression on the chip, how many classes.
_SUPPRESSION, _CLASSES = (11, 1), 2
_MAX_LAYERS = 64


@dataclass(frozen=True, slots=True)
class EdgeShapes:
    """Shapes [height, width, channels] of all that a network takes and gives on the chip."""

    takes: tuple[Shape, ...]
    gives: tuple[Shape, ...]


def edge_shapes(network: Message) -> EdgeShapes | None:
    """What the network takes and gives; None where that is more than the shapes, or the file does not tell it."""
    # Other fields of the file do not depend on these, which are the most.
    network = with_own_budget(network)
    try:
        return _edge_shapes(network)
    except DamagedMessageError:
        return None


def _edge_shapes(network: Message) -> EdgeShapes | None:
    takes: list[Shape] = []
    gives: list[Shape] = []
    for layer in _layers_at_the_host(network):
        shapes = _shapes(layer)
        if shapes is None or len(takes) + len(gives) + len(shapes) > _MAX_LAYERS:
            return None
        (gives if layer.integer(_GIVES) else takes).extend(shapes)
    return EdgeShapes(tuple(takes), tuple(gives)) if takes and gives else None


def _layers_at_the_host(network: Message) -> Iterator[Message]:
    owners = (network.message(*way) if way else network for way in _OWNERS)
    owner = next((one for one in owners if one is not None and one.message(_CONTEXTS) is not None), None)
    for context in owner.messages(_CONTEXTS) if owner is not None else ():
        metadata = context.message(_METADATA)
        for layer in metadata.messages(_LAYERS) if metadata is not None else ():
            connection = layer.message(_CONNECTION)
            if connection is None or not connection.integer(_CONNECTED_TO):
                yield layer


def _shapes(layer: Message) -> list[Shape] | None:
    """Of a layer, or of its parts; None where it is of planes or boxes, or the host looks for the largest value."""
    found: list[Shape] = []
    left = [(layer.message(_PLAIN), layer.message(_JOINED))]
    while left:
        plain, joined = left.pop()
        if len(left) + len(found) > _MAX_LAYERS:
            return None
        if joined is not None:
            left += [(part.message(_PLAIN_PART), part.message(_JOINED_PART)) for part in joined.messages(_PARTS)]
            continue
        base = plain.message(_BASE) if plain is not None else None
        if base is None or base.integer(_FINDS_LARGEST) or _has_boxes(base):
            return None
        found.append((base.integer(_HEIGHT), base.integer(_WIDTH), base.integer(_CHANNELS)))
    return found


def _has_boxes(base: Message) -> bool:
    suppression = base.message(*_SUPPRESSION)
    return suppression is not None and suppression.integer(_CLASSES) > 0
