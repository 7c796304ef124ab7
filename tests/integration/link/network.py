"""Two network namespaces joined by WireGuard over a relay that delays, loses and cuts; needs root and `wireguard-go`.

The device's namespace reaches nothing but the relay, and through the tunnel the cloud's address.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import wait_until

CLOUD_ADDRESS, _DEVICE_ADDRESS = "10.91.0.2", "10.91.0.1"
_PORT = 51820
_PROGRAMS = ("ip", "nsenter", "wg", "wireguard-go")


class Network:
    """The namespaces `device` and `cloud`, and what lies between them.

    Args:
        names: Of the namespaces `device`, `between` and `cloud`.
        relay: What lies between.
    """

    def __init__(self, names: dict[str, str], relay: subprocess.Popen[str]) -> None:
        self._names, self._relay = names, relay

    def command(self, place: str, *command: str) -> list[str]:
        """A command that runs in a namespace."""
        return ["nsenter", f"--net=/run/netns/{self._names[place]}", *command]

    def change(self, **told: Any) -> None:
        """Change what lies between: `delay_s`, `loss`, `forth`, `back`; holds when this returns."""
        assert self._relay.stdin is not None
        assert self._relay.stdout is not None
        self._relay.stdin.write(json.dumps(told) + "\n")
        self._relay.stdin.flush()
        assert self._relay.stdout.readline() == "ready\n"


@contextlib.contextmanager
def joined(folder: Path) -> Iterator[Network]:
    """The network, until the end of the block; skips where it cannot be made."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing or os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        pytest.skip(f"needs root, /dev/net/tun and {', '.join(missing or _PROGRAMS)} (Debian: wireguard-go)")
    names = {place: f"ps-{os.getpid()}-{place}" for place in ("device", "between", "cloud")}
    with contextlib.ExitStack() as stack:
        for name in names.values():
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "delete", name)
            _in(name, "ip", "link", "set", "lo", "up")
        for number, place in enumerate(("device", "cloud"), start=1):
            near, far = f"psn{os.getpid()}{number}", f"psf{os.getpid()}{number}"
            _run(
                "ip", "link", "add", near, "netns", names[place], "type", "veth", "peer", far, "netns", names["between"]
            )
            for name, interface, address in ((names[place], near, 1), (names["between"], far, 2)):
                _in(name, "ip", "address", "add", f"10.90.{number}.{address}/24", "dev", interface)
                _in(name, "ip", "link", "set", interface, "up")
        command = [sys.executable, "-m", "tests.integration.link.relay", "10.90.1.2", str(_PORT), "10.90.2.1"]
        relay = stack.enter_context(_running([*_nsenter(names["between"]), *command]))
        assert relay.stdout is not None
        assert relay.stdout.readline() == "ready\n"
        _join(stack, folder, names)
        yield Network(names, relay)


def _join(stack: contextlib.ExitStack, folder: Path, names: dict[str, str]) -> None:
    keys = {place: _key_pair(folder, place) for place in ("device", "cloud")}
    endpoint = ["endpoint", f"10.90.1.2:{_PORT}", "persistent-keepalive", "1"]
    for place, own, other, other_address, known in (
        ("device", _DEVICE_ADDRESS, "cloud", CLOUD_ADDRESS, endpoint),
        ("cloud", CLOUD_ADDRESS, "device", _DEVICE_ADDRESS, []),
    ):
        # Sockets that control a tunnel lie in one folder of the machine, by the name of its interface.
        interface = f"ps{os.getpid()}{place[0]}"
        stack.enter_context(_running([*_nsenter(names[place]), "wireguard-go", "-f", interface]))
        wait_until(Path(f"/var/run/wireguard/{interface}.sock").exists)
        peer = ["peer", keys[other][1], "allowed-ips", f"{other_address}/32", *known]
        _in(names[place], "wg", "set", interface, "private-key", str(keys[place][0]), "listen-port", str(_PORT), *peer)
        _in(names[place], "ip", "address", "add", f"{own}/24", "dev", interface)
        _in(names[place], "ip", "link", "set", interface, "mtu", "1420", "up")


def _key_pair(folder: Path, place: str) -> tuple[Path, str]:
    private = subprocess.run(["wg", "genkey"], capture_output=True, text=True, check=True).stdout
    path = folder / f"{place}.key"
    path.touch(0o600)
    path.write_text(private)
    public = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, text=True, check=True).stdout
    return path, public.strip()


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _nsenter(name: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{name}"]


def _in(name: str, *command: str) -> None:
    _run(*_nsenter(name), *command)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=10)
