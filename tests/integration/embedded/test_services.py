"""Valkey and the broker as `up` runs them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from redis.asyncio import Redis

from primespark.embedded.broker import broker_service
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
