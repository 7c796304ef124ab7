"""A device and its cloud over a real tunnel: late and lost datagrams, a way that is cut, both ways, and a kill."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from primespark.core.paths import private_directory
from primespark.store import devices
from tests.helpers import wait_until
from tests.integration.edge_agent.test_process import environment, told
from tests.integration.link.network import CLOUD_ADDRESS, Network, joined

PROBE_S = 1.0
# What brings the exchange back after an outage is a probe: its own pauses are longer than the test.
DEVICE = {
    "PRIMESPARK_NETWORK__CLOUD_URL": f"http://{CLOUD_ADDRESS}:8080",
    "PRIMESPARK_NETWORK__PROBE__INTERVAL_S": str(PROBE_S),
    "PRIMESPARK_NETWORK__PROBE__TIMEOUT_S": "1",
    "PRIMESPARK_EDGE__TELEMETRY__INTERVAL_S": "0.05",
    "PRIMESPARK_SYNC__BATCH_RECORDS": "20",
    "PRIMESPARK_SYNC__BATCH_WAIT_S": "0.1",
    "PRIMESPARK_SYNC__RETRY_BASE_S": "600",
    "PRIMESPARK_SYNC__RETRY_MAX_S": "600",
}


class Field:
    """What is seen of it from outside: the store, and the device's own log and answers."""

    def __init__(self, engine: Engine, network: Network, home: Path) -> None:
        self._engine, self.network, self._home = engine, network, home

    @contextlib.contextmanager
    def running(self, place: str, program: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
        command = self.network.command(place, sys.executable, "-m", "primespark.cli.main", program)
        with (self._home / f"{program}.log").open("ab") as log_file:
            process = subprocess.Popen(command, env=environment(self._home, 8000, **settings), stderr=log_file)
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    def stored(self) -> list[int]:
        """Numbers of the device's measurements that the store has, in order."""
        with self._engine.begin() as connection:
            statement = "SELECT seq FROM sync.fact WHERE stream IN ('telemetry', 'telemetry.live') ORDER BY stream, seq"
            return list(connection.execute(text(statement)).scalars())

    def grows(self, timeout_s: float = 30) -> None:
        before = len(self.stored())
        wait_until(lambda: len(self.stored()) > before, timeout_s)

    def status(self) -> Any:
        """What the device says of its queue, asked where it is, once it answers."""
        question = (
            "import sys, urllib.request as r; print(r.urlopen(r.Request('http://127.0.0.1:8000/api/v1/offline/status',"
            " headers={'Authorization': 'Bearer ' + open(sys.argv[1]).read()}), timeout=10).read().decode())"
        )
        key = str(self._home / "edge" / "edge-1" / "local.key")
        answers: list[str] = []

        def answered() -> bool:
            command = self.network.command("device", sys.executable, "-c", question, key)
            answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
            answers.append(answer.stdout)
            return answer.returncode == 0

        wait_until(answered, 30)
        return json.loads(answers[-1])

    def comes_to(self, *states: str) -> None:
        """Wait until the device says so of its link."""
        wait_until(lambda: told(self._home, "link")[-1]["state"] in states, 30)


@pytest.fixture
def field(store_engine: Engine, tmp_path: Path) -> Iterator[Field]:
    with joined(tmp_path) as network, store_engine.begin() as connection:
        folder = private_directory(tmp_path / "edge" / "edge-1")
        token = devices.create_token(connection, 1, timedelta(hours=1))
        (folder / "enrolment.token").write_text(token)
        connection.commit()
        yield Field(store_engine, network, tmp_path)


def store_url(engine: Engine) -> str:
    """By the server's unix socket, which reaches into every network namespace."""
    with engine.begin() as connection:
        sockets = connection.execute(text("SHOW unix_socket_directories")).scalar_one()
    return engine.url.set(host=None, query={"host": sockets}).render_as_string(hide_password=False)


def test_a_tunnel_that_fails_in_every_way_loses_and_doubles_nothing(field: Field, store_engine: Engine) -> None:
    cloud = {"PRIMESPARK_CLOUD__HOST": CLOUD_ADDRESS, "PRIMESPARK_CLOUD__STORE__URL": store_url(store_engine)}
    network = field.network
    network.change(delay_s=0.03, loss=0.02)
    with field.running("cloud", "cloud", **cloud):
        with field.running("device", "edge", **DEVICE):
            field.grows(60)

            # Replies are lost: what is sent arrives all the same, and the device keeps it.
            network.change(back=False)
            field.comes_to("no_answer", "not_connected")
            assert field.status()["pending"] > 0
            network.change(back=True)
            field.comes_to("up")
            field.grows()

            # Nothing goes through.
            network.change(forth=False, back=False)
            field.comes_to("not_connected")
            before = len(field.stored())
            assert field.status()["pending"] > 0
        # A kill without a link.
        with field.running("device", "edge", **DEVICE):
            field.comes_to("not_connected")
            waiting = field.status()["pending"]
            assert waiting > 0
            assert len(field.stored()) == before
            network.change(forth=True, back=True)
            # A probe, and the tunnel's own handshake, which it tries every five seconds.
            wait_until(lambda: len(field.stored()) >= before + waiting, PROBE_S + 5 + 20)
            field.comes_to("up")
    with store_engine.begin() as connection:
        statement = "SELECT stream, array_agg(seq ORDER BY seq) FROM sync.fact GROUP BY stream"
        rows = connection.execute(text(statement)).all()
        assert connection.execute(text("SELECT count(*) FROM sync.lost")).scalar_one() == 0
    for stream, seqs in rows:
        assert seqs == list(range(1, len(seqs) + 1)), stream
