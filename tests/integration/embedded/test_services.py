"""Valkey and the broker as `up` runs them."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from redis.asyncio import Redis

from primespark.core.settings import load_settings
from primespark.embedded.broker import broker_service
from primespark.embedded.stack import Stack
from primespark.embedded.supervisor import Supervisor
from primespark.embedded.valkey import valkey_service
from tests.helpers import wait_until
from tests.integration.embedded.programs import are_gone
from tests.kafka.brokers import free_port


async def test_valkey_and_the_broker_serve_and_stop_in_order(tmp_path: Path) -> None:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ps-") as sockets:
        socket_path = Path(sockets) / "valkey.sock"
        supervisor = Supervisor(tmp_path / "logs")
        await supervisor.start([valkey_service(tmp_path / "valkey", socket_path), broker_service(tmp_path / "b", port)])
        try:
            async with Redis(unix_socket_path=str(socket_path)) as valkey:
                await valkey.set("key", "value")
                assert await valkey.get("key") == b"value"
                limits = await valkey.config_get("maxmemory*")
            assert (limits["maxmemory"], limits["maxmemory-policy"]) == (str(64 * 1024 * 1024), "allkeys-lru")
            assert socket_path.stat().st_mode & 0o777 == 0o700
            admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{port}")
            await admin.start()
            assert isinstance(await admin.list_topics(), list)
            await admin.close()
        finally:
            running = list(supervisor.process_ids().values())
            await supervisor.stop()
    wait_until(lambda: are_gone(running), 2)


async def test_a_valkey_that_outlived_its_supervisor_is_ended_and_another_answers() -> None:
    with tempfile.TemporaryDirectory(prefix="ps-") as home:
        socket_path = Path(home) / "run" / "sockets" / "valkey.sock"
        socket_path.parent.mkdir(parents=True)
        service = valkey_service(Path(home) / "valkey", socket_path)
        orphan = await asyncio.create_subprocess_exec(*service.command, stdout=asyncio.subprocess.DEVNULL)
        try:
            async with asyncio.timeout(10):
                while not await service.is_ready():  # noqa: ASYNC110 (another process, which sets no event)
                    await asyncio.sleep(0.02)
            async with Redis(unix_socket_path=str(socket_path)) as valkey:
                await valkey.set("key", "of the orphan")
            stack = Stack(load_settings(), Path(home), only=("valkey",))
            await stack.start()
            try:
                assert await asyncio.wait_for(orphan.wait(), 10) == 0
                async with Redis(unix_socket_path=str(socket_path)) as valkey:
                    answering = (await valkey.info("server"))["process_id"]
                    assert answering == stack.supervisor.process_ids()["valkey"]
                    assert await valkey.get("key") is None
            finally:
                await stack.stop()
        finally:
            if orphan.returncode is None:
                orphan.kill()
                await orphan.wait()
