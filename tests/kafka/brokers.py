"""Start and stop brokers; each is a process of ours with a data folder of its own."""

from __future__ import annotations

import base64
import os
import random
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from primespark.embedded.broker import broker_service
from primespark.errors import MissingDependencyError
from tests.helpers import wait_until

KAFKA_VERSION = "3.9.1"
_POM = Path(__file__).with_name("pom.xml")
_ROOT = Path(__file__).resolve().parents[2]

_SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
log.dirs={folder}/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
"""


@dataclass(slots=True)
class Broker:
    """A broker, which runs."""

    command: list[str]
    folder: Path
    port: int
    embedded: bool
    process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def start(self, ready_timeout_s: float = 60) -> None:
        """Start it, the first time or again; it answers when this returns."""
        with (self.folder / "broker.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        process = self.process
        wait_until(lambda: _answers(process, self.port), ready_timeout_s)

    def kill(self) -> None:
        """End it without a word."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """Ask it to end."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()


class ToolMissingError(Exception):
    """Says which program is missing and how to get it."""


@contextmanager
def embedded_broker(folder: Path) -> Iterator[Broker]:
    """The small broker of the `noida-db` wheel."""
    port = free_port()
    try:
        command = broker_service(folder / "data", port).command
    except MissingDependencyError as error:
        raise ToolMissingError(error.message) from None
    with _running(Broker(list(command), folder, port, embedded=True)) as broker:
        yield broker


@contextmanager
def apache_kafka(folder: Path) -> Iterator[Broker]:
    """One node of Apache Kafka in KRaft mode."""
    libraries = kafka_libraries()
    port, controller_port = free_port(), free_port()
    properties = folder / "server.properties"
    properties.write_text(_SERVER_PROPERTIES.format(folder=folder, port=port, controller_port=controller_port))
    (folder / "log4j.properties").write_text(
        "log4j.rootLogger=WARN, stdout\n"
        "log4j.appender.stdout=org.apache.log4j.ConsoleAppender\n"
        "log4j.appender.stdout.layout=org.apache.log4j.PatternLayout\n"
        "log4j.appender.stdout.layout.ConversionPattern=%d %p %m (%c)%n\n"
    )
    java = ["java", "-Xmx512m", f"-Dlog4j.configuration=file:{folder}/log4j.properties", "-cp", f"{libraries}/*"]
    cluster = base64.urlsafe_b64encode(uuid.uuid5(uuid.NAMESPACE_OID, str(folder)).bytes).decode().rstrip("=")
    storage = [*java, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(properties)]
    subprocess.run(storage, check=True, capture_output=True, timeout=60)
    with _running(Broker([*java, "kafka.Kafka", str(properties)], folder, port, embedded=False)) as broker:
        yield broker


def kafka_libraries() -> Path:
    """The folder with Kafka's jars; fetched by Maven the first time.

    Raises:
        ToolMissingError: Java or Maven is not installed.
    """
    if shutil.which("java") is None:
        raise ToolMissingError("Apache Kafka needs Java 17 or later: install openjdk-17-jre-headless")
    folder = _cache() / f"kafka-libs-{KAFKA_VERSION}"
    if (folder / f"kafka_2.13-{KAFKA_VERSION}.jar").is_file():
        return folder
    if shutil.which("mvn") is None:
        raise ToolMissingError("Apache Kafka's jars are fetched by Maven: install maven")
    staging = folder.with_name(f"{folder.name}.{os.getpid()}")
    goal = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
    subprocess.run(
        ["mvn", "-q", "-B", "-f", str(_POM), goal, "-DincludeScope=runtime", f"-DoutputDirectory={staging}"],
        check=True,
        timeout=600,
    )
    try:
        staging.rename(folder)
    except OSError:
        # Another run was faster.
        shutil.rmtree(staging)
    return folder


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_ports(count: int) -> int:
    """The first of so many TCP ports in a row that were free a moment ago, below those that connections are given."""
    while True:
        first = random.randint(20_000, 32_000 - count)
        with ExitStack() as probes:
            try:
                for port in range(first, first + count):
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first


def _cache() -> Path:
    if os.access(_ROOT, os.W_OK):
        folder = _ROOT / ".tools"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "primespark"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _running(broker: Broker) -> Iterator[Broker]:
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the broker ended with status {process.returncode}; see its broker.log")
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
