# SPDX-License-Identifier: Apache-2.0
"""What a span costs on its way through a fleet: processor time, bytes, memory.

    .venv/bin/python bench/fleet.py

As root. otelbpf measures some requests; their spans, with other ids each time, go through the
agents' collector, Kafka and a fleet's collector with its tail sampling, one of each, all on this
machine and in a network namespace. Processor time is counted for each process by the kernel, so it
does not matter much what else runs here; what is sent a second says what this machine can do, with
all of them on it, not what one of them can.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/e2e"))

from client import Client
from collector_stack import LOOPBACK, OTLP_HTTP_PORT, Collector, collector
from demo.receiver import Receiver
from kafka_broker import kafka
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from servers import python_server
from stack import agent, to, wait_for_requests
from support.namespaces import Network, network
from support.waiting import wait_until

ASKED = 230
REQUESTS = 20_000
SPANS_AN_EXPORT = 512  # otelbpf's own
SENDERS = 4
LONG_S = 300.0


def measured_once(net: Network, directory: Path) -> list[ExportTraceServiceRequest]:
    """What otelbpf exports of some requests to a server of Python."""
    with (
        python_server(net, directory, "asyncio_server", 8080) as server,
        Receiver() as receiver,
        agent(
            directory,
            "--interface",
            net.server.interface,
            "--port",
            server.port,
            "--netns",
            net.server.netns,
            environment=to(receiver),
        ) as running,
    ):
        running.wait_ready()
        with Client.of(net, server.port) as client:
            for number in range(ASKED):
                client.ask(f"/items/{number}")
        wait_for_requests(receiver, ASKED)
        running.stop().assert_clean(seen=ASKED)
        return receiver.exports()


def many(exports: list[ExportTraceServiceRequest]) -> Iterator[ExportTraceServiceRequest]:
    """Exports of REQUESTS requests, of otelbpf's usual size, whose traces are all different."""
    first = exports[0].resource_spans[0]
    of_traces: dict[bytes, list[Span]] = {}
    for export in exports:
        for resource in export.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    of_traces.setdefault(span.trace_id, []).append(span)
    traces = list(of_traces.values())
    made, scope = 0, None
    while made < REQUESTS:
        export = ExportTraceServiceRequest()
        resource = export.resource_spans.add()
        resource.resource.CopyFrom(first.resource)
        scope = resource.scope_spans.add()
        scope.scope.CopyFrom(first.scope_spans[0].scope)
        while made < REQUESTS and len(scope.spans) + len(traces[0]) <= SPANS_AN_EXPORT:
            trace = traces[made % len(traces)]
            trace_id = os.urandom(16)
            ids = {span.span_id: os.urandom(8) for span in trace}
            for span in trace:
                copy = scope.spans.add()
                copy.CopyFrom(span)
                copy.trace_id = trace_id
                copy.span_id = ids[span.span_id]
                copy.parent_span_id = ids.get(span.parent_span_id, b"")
            made += 1
        yield export


def processor_s(pid: int) -> float:
    """What a process has used, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def size(directory: Path) -> int:
    """On disk, of which files that are larger than what they hold take less."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def total(running: Collector, name: str) -> float:
    return sum(value for _, value in running.metrics().get(f"otelcol_{name}", []))


def send(net: Network, exports: list[bytes]) -> None:
    """All of them, over a few connections."""

    def one_of_them(number: int) -> None:
        connection = http.client.HTTPConnection(LOOPBACK, OTLP_HTTP_PORT, timeout=LONG_S)
        connection.sock = net.server.connect(LOOPBACK, OTLP_HTTP_PORT)
        with contextlib.closing(connection):
            for body in exports[number::SENDERS]:
                connection.request(
                    "POST", "/v1/traces", body, {"Content-Type": "application/x-protobuf"}
                )
                answer = connection.getresponse()
                said = answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"the collector answers {answer.status}: {said[:200]!r}")

    with ThreadPoolExecutor(SENDERS) as pool:
        list(pool.map(one_of_them, range(SENDERS)))


def say(what: str, value: float, unit: str) -> None:
    print(f"  {what:<44}{value:9.1f} {unit}", flush=True)


def main() -> None:
    with network() as net, tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        made = list(many(measured_once(net, directory)))
        spans = sum(len(export.resource_spans[0].scope_spans[0].spans) for export in made)
        bodies = [export.SerializeToString() for export in made]
        print(
            f"kernel {platform.release()}, {os.cpu_count()} processors; {REQUESTS} requests, "
            f"{spans} spans"
        )
        say("a request", spans / REQUESTS, "spans")
        say("a span as otelbpf sends it", sum(map(len, bodies)) / spans, "bytes")
        waiting(net, directory, bodies, spans)
        through_kafka(net, directory, bodies, spans)


def waiting(net: Network, directory: Path, bodies: list[bytes], spans: int) -> None:
    """The agents' queue on disk, with nobody behind it."""
    queue = directory / "waiting"
    with collector(net.server, directory, "agent", environment={"OTELBPF_QUEUE": str(queue)}):
        send(net, bodies)
        say("a span in the queue on disk", size(queue) / spans, "bytes")


def through_kafka(net: Network, directory: Path, bodies: list[bytes], spans: int) -> None:
    side = net.server
    with kafka(side, directory) as broker:
        environment = {"OTELBPF_KAFKA": broker.address, "OTELBPF_QUEUE": str(directory / "queue")}
        broker_pid = broker.process.popen.pid
        idle_s = processor_s(broker_pid)
        with collector(
            side,
            directory,
            "agent",
            "agent-kafka",
            environment=environment,
            settings=["service.telemetry.metrics.level=basic"],
            metrics_port=8888,
        ) as agents:
            pid = agents.process.popen.pid
            began, used_s = time.monotonic(), processor_s(pid)
            send(net, bodies)
            wait_until(
                lambda: total(agents, "exporter_sent_spans") >= spans,
                "all are in Kafka",
                deadline_s=LONG_S,
            )
            took_s = time.monotonic() - began
            say(
                "agents' collector, processor time",
                (processor_s(pid) - used_s) / spans * 1e6,
                "us a span",
            )
            say("agents' collector, resident", resident_mib(pid), "MiB")
            say("into Kafka, with all of them here", spans / took_s, "spans a second")
        say("a span in Kafka", size(broker.data) / spans, "bytes")
        settings = {
            "OTELBPF_KAFKA": broker.address,
            "OTELBPF_KEEP_PERCENT": "0",
            "OTELBPF_INSECURE": "true",
        }
        with collector(side, directory, "fleet", environment=settings, metrics_port=8888) as fleet:
            pid = fleet.process.popen.pid
            empty_mib = resident_mib(pid)
            began = time.monotonic()
            wait_until(
                lambda: total(fleet, "receiver_accepted_spans") >= spans,
                "all are read",
                deadline_s=LONG_S,
            )
            took_s = time.monotonic() - began
            held = total(fleet, "processor_tail_sampling_sampling_traces_on_memory")
            full_mib = resident_mib(pid)
            wait_until(
                lambda: total(fleet, "processor_tail_sampling_count_traces_sampled") >= REQUESTS,
                "all are decided on",
                deadline_s=LONG_S,
            )
            say("a fleet's collector, processor time", processor_s(pid) / spans * 1e6, "us a span")
            say("a fleet's collector, read", spans / took_s, "spans a second")
            say("a fleet's collector, traces that it held", held, "")
            say(
                "a fleet's collector, of each of them",
                (full_mib - empty_mib) * 1024 / held if held else 0.0,
                "KiB",
            )
        say("Kafka, processor time", (processor_s(broker_pid) - idle_s) / spans * 1e6, "us a span")


if __name__ == "__main__":
    main()
