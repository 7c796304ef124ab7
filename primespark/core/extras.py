"""How a part that is not installed is added: a checkout is all there is, no package index has one."""

from __future__ import annotations


def how_to_add(extra: str) -> str:
    """The remedy for packages of an extra that are not here."""
    return f"make extra-{extra}, in the checkout"
