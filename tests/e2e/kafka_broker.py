# SPDX-License-Identifier: Apache-2.0
"""A real Kafka broker, from Maven Central, inside the server's namespace."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from collector_stack import LOOPBACK
from demo.processes import Process, running
from support.namespaces import Side
from support.waiting import DEADLINE_S

PARTITIONS = 6
PORT = 9092
_POM = Path(__file__).resolve().parent / "kafka/pom.xml"
_FETCH_S = 600.0
_CLUSTER_ID = "b3RlbGJwZi10ZXN0cw0KDQ"  # any 16 bytes

# One process that is broker and controller, as Kafka without ZooKeeper allows.
_PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:9093
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093
advertised.listeners=PLAINTEXT://127.0.0.1:9092
log.dirs={directory}/data
num.partitions={partitions}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
"""


@functools.cache
def jars() -> Path:
    """The directory of Kafka's jars; fetched once, into the cache.

    Raises:
        RuntimeError: Maven failed; with what it said.
    """
    version = ElementTree.parse(_POM).getroot().findtext("{*}version")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / f"otelbpf/kafka-{version}"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        whole, part = directory / "jars", directory / "part"
        if whole.exists():
            return whole
        shutil.rmtree(part, ignore_errors=True)
        command: list[str | Path] = [
            "mvn",
            "--batch-mode",
            "--quiet",
            "--file",
            _POM,
            "dependency:copy-dependencies",
            f"-DoutputDirectory={part}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_S)
        if done.returncode:
            raise RuntimeError(f"Maven cannot fetch Kafka {version}: {done.stdout[-4000:]}")
        # Half of a broker never has the name.
        part.rename(whole)
        return whole


@dataclass(frozen=True)
class Broker:
    """A running one.

    Attributes:
        data: where it keeps its messages.
    """

    process: Process
    address: str
    data: Path


@contextlib.contextmanager
def kafka(side: Side, directory: Path) -> Iterator[Broker]:
    """Runs a broker that makes topics when they are first written to."""
    files = directory / "kafka"
    files.mkdir()
    properties = files / "server.properties"
    properties.write_text(_PROPERTIES.format(directory=files, partitions=PARTITIONS))
    java = [
        "java",
        "-Xmx512m",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        f"-Djava.io.tmpdir={files}",
        "-cp",
        f"{jars()}/*",
    ]
    with running(
        "kafka-format",
        [*java, "kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", properties],
        files,
    ) as formatting:
        formatting.finish(DEADLINE_S)
    with running("kafka", [*side.enter(), *java, "kafka.Kafka", properties], files) as process:

        def listens(_: object) -> bool:
            with contextlib.suppress(OSError):
                side.connect(LOOPBACK, PORT).close()
                return True
            return False

        process.wait_until(listens, DEADLINE_S)
        yield Broker(process, f"{LOOPBACK}:{PORT}", files / "data")
