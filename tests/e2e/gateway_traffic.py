# SPDX-License-Identifier: Apache-2.0
"""The demo's gateway with its models, and the demo's load, with the spans going to a collector."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from demo.check import calls_owed
from demo.load import Summary
from demo.otlp import Kind, Span
from demo.plan import KEY, SMALL_KEY, SMALL_LIMIT
from demo.processes import Process, running
from demo.topology import GATEWAY_PORT, MODEL_PORTS
from support.namespaces import Network
from support.waiting import DEADLINE_S

_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
_GATEWAY = _EXAMPLES / "gateway"
_numbers = itertools.count()

#: The application's service; the kernel's spans name the program that answers.
SERVICE = "gateway"


def measured_options(net: Network) -> list[str | int]:
    """otelbpf's options: the gateway, what it asks of its models, and what they are asked."""
    options: list[str | int] = [
        "--netns",
        net.server.netns,
        "--interface",
        net.server.interface,
        "--interface",
        "lo",
        "--port",
        GATEWAY_PORT,
    ]
    for port in MODEL_PORTS:
        options += ["--port", port, "--upstream", f"127.0.0.1:{port}"]
    return options


@contextlib.contextmanager
def gateway_with_models(net: Network, directory: Path, endpoint: str) -> Iterator[dict[int, str]]:
    """Runs the three, the gateway traced by OpenTelemetry's command with the plugin.

    Args:
        endpoint: where the gateway's own spans go, over gRPC.
    Yields:
        process id -> name.
    """
    tracing = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_SERVICE_NAME": SERVICE,
        "OTEL_PROPAGATORS": "tracecontext,baggage,otelbpf",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    instrument = Path(sys.executable).with_name("opentelemetry-instrument")
    json_port, stream_port = map(str, MODEL_PORTS)
    commands: list[tuple[str, list[str | Path], dict[str, str]]] = [
        ("upstream_json", [_GATEWAY / "upstream_json.py", "--port", json_port], {}),
        ("upstream_stream", [_GATEWAY / "upstream_stream.py", "--port", stream_port], {}),
        (
            "gateway",
            [
                _GATEWAY / "gateway.py",
                "--host",
                net.server.ipv4,
                "--host",
                net.server.ipv6,
                "--port",
                str(GATEWAY_PORT),
                "--key",
                f"{KEY}=1000000/1",
                "--key",
                f"{SMALL_KEY}={SMALL_LIMIT}/1000000",
            ],
            tracing,
        ),
    ]
    with contextlib.ExitStack() as stack:
        names = {}
        for name, script, environment in commands:
            command = [*net.server.enter(), sys.executable, *script]
            if environment:
                command.insert(len(net.server.enter()), instrument)
            process = stack.enter_context(running(name, command, directory, environment))
            process.wait_until(Process.printed_line, DEADLINE_S)
            names[process.popen.pid] = name
        yield names


def send(net: Network, directory: Path, count: int) -> Summary:
    """The first `count` requests of the demo's plan, and what became of them."""
    command = [
        *net.client.enter(),
        sys.executable,
        "-m",
        "demo.load",
        "--ipv4",
        f"http://{net.server.ipv4}:{GATEWAY_PORT}",
        "--ipv6",
        f"http://[{net.server.ipv6}]:{GATEWAY_PORT}",
        "--requests",
        str(count),
        "--timeout",
        str(DEADLINE_S),
    ]
    name = f"load-{next(_numbers)}"
    with running(name, command, directory, {"PYTHONPATH": str(_EXAMPLES)}) as load:
        return Summary.from_json(load.finish(DEADLINE_S + 5))


def owed_spans(load: Summary) -> int:
    """How many spans but for stages: two of each request; of a call to a model three more."""
    return 2 * load.completed + 3 * calls_owed(load).total()


def is_no_stage(span: Span) -> bool:
    """Is it a request's or a call's?"""
    return span.kind is not Kind.INTERNAL
