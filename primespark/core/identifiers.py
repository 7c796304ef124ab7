"""Names of things: devices, boots, contents."""

from __future__ import annotations

import hashlib
import re
import uuid
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

_DEVICE_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
# Scopes and replicas of the protocol, so no device may bear them.
RESERVED_DEVICE_IDS = frozenset({"cloud", "fleet"})


def check_device_id(value: str) -> str:
    """`value` if it is a device id: lower-case letters, digits and hyphens, at most 63, not a reserved name."""
    if not _DEVICE_ID.fullmatch(value):
        raise ValueError("a device id is 1 to 63 of a-z, 0-9 and '-', not starting with '-'")
    if value in RESERVED_DEVICE_IDS:
        raise ValueError(f"{value!r} is reserved")
    return value


DeviceId = Annotated[str, AfterValidator(check_device_id)]
# A group of devices, as people name it; its documents are in the scope `group:NAME`.
GroupName = Annotated[str, StringConstraints(pattern=rf"^{_DEVICE_ID.pattern}$")]


def group_scope(group: str) -> str:
    """The scope of a group's documents."""
    return f"group:{group}"


def sha256_hex(data: bytes) -> str:
    """Content address of `data`: SHA-256 in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


@cache
def boot_id() -> str:
    """Identifier of this boot of the machine; of this process where the kernel gives none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(uuid.uuid4())
