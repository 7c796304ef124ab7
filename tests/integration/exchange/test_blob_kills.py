"""Device and cloud are killed while a blob is on its way: it arrives whole, and a kill wastes a chunk at most."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine, text

from primespark.core.paths import private_directory
from primespark.embedded.ports import choose_port
from primespark.store import database, devices, documents
from primespark.store.blobs import BlobStore
from primespark.sync.chunks import MAX_CHUNK_BYTES, cut_bytes
from tests.helpers import rounds, wait_until
from tests.integration.edge_agent.test_process import running
from tests.integration.store.builders import enrol

KILLS = rounds(1, 5)
SIZE = 6_000_000
# What is read from a socket at once; it may be there when the piece before is not yet on the disk.
READ_BYTES = 64 * 1024


class CloudProcess:
    """`primespark cloud`, which can be killed and started again at its port."""

    def __init__(self, url: str, home: Path) -> None:
        self.port = choose_port(0, set())
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PRIMESPARK_")},
            "PRIMESPARK_HOME": str(home), "PRIMESPARK_CLOUD__STORE__URL": url,
            "PRIMESPARK_CLOUD__PORT": str(self.port), "PRIMESPARK_FEATURES__STREAMS": "false",
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "primespark.cli.main", "cloud"], env=self._environment, stderr=subprocess.DEVNULL
        )
        wait_until(self._is_ready, 60)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx2.HTTPError, OSError):
            return httpx2.get(f"{self.url}/readyz", timeout=2).status_code == 200
        return False


@pytest.fixture
def cloud(store_engine: Engine, tmp_path: Path) -> Iterator[CloudProcess]:
    database.migrate(store_engine)
    (tmp_path / "home").mkdir()
    process = CloudProcess(store_engine.url.render_as_string(hide_password=False), tmp_path / "home")
    process.start()
    yield process
    process.kill()


def edited(data: bytes, chance: random.Random) -> bytes:
    """Another version, of which most is new, in four places."""
    parts = [data[start : start + SIZE // 16] for start in range(0, SIZE, SIZE // 16)]
    return b"".join(chance.randbytes(len(part)) if index % 4 else part for index, part in enumerate(parts))


@pytest.mark.prove
def test_a_download_that_is_killed_goes_on(cloud: CloudProcess, store_engine: Engine, tmp_path: Path) -> None:
    chance = random.Random(11)
    old = chance.randbytes(SIZE)
    new = edited(old, chance)
    blobs = BlobStore(tmp_path / "home" / "blobs")
    sha256 = blobs.put(new)
    with store_engine.begin() as connection:
        key = enrol(connection)
        documents.write_cloud(connection, "edge-1", "twin", {"desired": {"models": {"m": {"artifacts": [sha256]}}}})
    folder, delivered = tmp_path / "models", tmp_path / "delivered"
    folder.mkdir()
    (folder / cut_bytes(old).sha256).write_bytes(old)
    part, whole = folder / f"{sha256}.part", folder / sha256
    command = [sys.executable, "-m", "tests.integration.exchange.downloader"]
    arguments = [cloud.url, key, str(folder), sha256, str(len(new)), str(delivered)]
    killed = 0
    device = subprocess.Popen([*command, *arguments])
    for number in range(1, KILLS + 1):
        aim = int(SIZE * (number - chance.random()) / (KILLS + 1))
        wait_until(lambda aim=aim: whole.exists() or (part.exists() and part.stat().st_size > aim), 60)  # type: ignore[misc]
        if whole.exists():
            break
        killed += 1
        if number % 2:
            device.kill()
            device.wait()
            device = subprocess.Popen([*command, *arguments])
        else:
            cloud.kill()
            cloud.start()
    assert device.wait(60) == 0
    assert whole.read_bytes() == new
    # The last may have come too late.
    assert killed >= KILLS // 2
    known = {chunk.sha256 for chunk in cut_bytes(old).chunks}
    missing = sum(chunk.size for chunk in cut_bytes(new).chunks if chunk.sha256 not in known)
    came = sum(map(int, delivered.read_text().split()))
    assert came <= missing + killed * (MAX_CHUNK_BYTES + READ_BYTES)


@pytest.mark.prove
def test_an_upload_whose_cloud_is_killed_goes_on(cloud: CloudProcess, store_engine: Engine) -> None:
    chance = random.Random(12)
    data = chance.randbytes(SIZE)
    cut = cut_bytes(data)
    pieces = {chunk.sha256: data[start : start + chunk.size] for chunk, start in cut.places()}
    with store_engine.begin() as connection:
        key = {"Authorization": f"Bearer {enrol(connection)}"}
    kept: set[str] = set()
    moments = {chance.randrange(len(pieces)) for _ in range(KILLS)}
    with httpx2.Client(base_url=cloud.url, headers=key, timeout=20) as client:

        def missing() -> list[str]:
            headers = {"Content-Type": "application/json"}
            answer = client.put(f"/sync/v1/blobs/{cut.sha256}/chunks", content=cut.to_json(), headers=headers)
            assert answer.status_code == 200, answer.text
            names: list[str] = answer.json()["missing"]
            return names

        while names := missing():
            # What was acknowledged is not asked for again, whatever was killed since.
            assert not kept & set(names)
            for sha256 in names:
                if len(kept) in moments:
                    moments.discard(len(kept))
                    cloud.kill()
                    with pytest.raises(httpx2.HTTPError):
                        client.put(f"/sync/v1/chunks/{sha256}", content=pieces[sha256])
                    cloud.start()
                    break
                assert client.put(f"/sync/v1/chunks/{sha256}", content=pieces[sha256]).status_code == 204
                kept.add(sha256)
        cloud.kill()
        cloud.start()
        assert missing() == []
        assert client.get(f"/sync/v1/blobs/{cut.sha256}").content == data
    assert not moments


@pytest.mark.prove
def test_an_upload_whose_device_is_killed_goes_on(cloud: CloudProcess, store_engine: Engine, tmp_path: Path) -> None:
    """The agent's own process: what was answered for with 201 arrives, its fact once, whatever was killed since."""
    data, home = random.Random(13).randbytes(SIZE), tmp_path / "device"
    settings = {
        "PRIMESPARK_NETWORK__CLOUD_URL": cloud.url,
        "PRIMESPARK_EDGE__TELEMETRY__INTERVAL_S": "3600",
        # Slow enough for a kill to find some of the chunks there and others not.
        "PRIMESPARK_SYNC__BANDWIDTH__BYTES_PER_S": "2000000",
        "PRIMESPARK_SYNC__RETRY_MAX_S": "0.5",
    }
    folder = private_directory(home / "edge" / "edge-1")
    with store_engine.begin() as connection:
        (folder / "enrolment.token").write_text(devices.create_token(connection, 1, timedelta(hours=1)))
    with running(home, **settings) as device:
        wait_until(lambda: _is_up(device.url), 60)
        key = {"Authorization": f"Bearer {(folder / 'local.key').read_text()}"}
        answer = httpx2.post(f"{device.url}/api/v1/uploads?stream=clips", content=data, headers=key, timeout=30)
        assert answer.status_code == 201, answer.text

    def sent() -> int:
        """Bytes of the chunks that the cloud has, of a blob that is not whole yet."""
        with store_engine.begin() as connection:
            if connection.execute(text("SELECT count(*) FROM sync.blob")).scalar_one():
                return SIZE
        return sum(path.stat().st_size for path in (tmp_path / "home" / "blobs").rglob("*") if path.is_file())

    killed = 0
    for number in range(1, KILLS + 1):
        with running(home, **settings):
            aim = SIZE * number // (KILLS + 2)
            wait_until(lambda aim=aim: sent() > aim, 60)  # type: ignore[misc]
            killed += sent() < SIZE
    stored = "SELECT blob, seq FROM sync.fact WHERE stream = 'clips'"
    with running(home, **settings):
        wait_until(lambda: _rows(store_engine, stored), 60)
    assert killed > 0
    assert _rows(store_engine, stored) == [(cut_bytes(data).sha256, 1)]
    assert BlobStore(tmp_path / "home" / "blobs").get(cut_bytes(data).sha256) == data


def _rows(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.begin() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def _is_up(url: str) -> bool:
    with contextlib.suppress(httpx2.HTTPError):
        return httpx2.get(f"{url}/livez", timeout=2).status_code == 200
    return False
