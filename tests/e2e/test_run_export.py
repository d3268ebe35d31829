# SPDX-License-Identifier: Apache-2.0
"""Where the spans go, as the standard variables say, and what they say of the server."""

from __future__ import annotations

import json
import os
import platform
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest
from client import Client
from collectors import grpc_collector, http_collector, spans_of_json_lines
from demo.otlp import Span
from servers import Server
from stack import COUNT, Ended, agent, measured
from support.namespaces import Network


def run(
    net: Network, port: int, directory: Path, *options: str | Path, environment: Mapping[str, str]
) -> Ended:
    """An agent that sees 23 requests."""
    with agent(
        directory,
        "--interface",
        net.server.interface,
        "--port",
        port,
        "--netns",
        net.server.netns,
        *options,
        environment=environment,
    ) as running:
        running.wait_ready()
        with Client.of(net, port) as client:
            for number in range(COUNT):
                client.ask(f"/{number}")
        ended = running.stop()
    ended.assert_clean(seen=COUNT)
    return ended


def assert_all_there(spans: list[Span]) -> None:
    requests = measured(spans)
    assert [request["url.path"] for request in requests] == [f"/{n}" for n in range(COUNT)]
    for request in requests:
        request.assert_tiled()
        request.assert_complete()
        assert request.span.scope == "otelbpf"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_otlp_with_headers_and_a_resource(
    net: Network, server: Server, tmp_path: Path, protocol: str
) -> None:
    collector = grpc_collector if protocol == "grpc" else http_collector
    with collector() as received:
        ended = run(
            net,
            server.port,
            tmp_path,
            environment={
                "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{received.port}",
                "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=s3cret,x-tenant=a%20b",
                "OTEL_SERVICE_NAME": "shop",
                "OTEL_RESOURCE_ATTRIBUTES": "service.name=ignored,deployment.environment.name=test",
            },
        )
    assert_all_there(received.spans)
    assert received.headers
    for headers in received.headers:
        assert (headers["x-api-key"], headers["x-tenant"]) == ("s3cret", "a b")
    assert f"spans go to http://127.0.0.1:{received.port} ({protocol})" in ended.stderr
    for span in received.spans:
        # The agent's own name is not that of whom it measures; all else that is said is.
        assert span.resource["service.name"] == server.service
        assert span.resource["deployment.environment.name"] == "test"


def test_otlp_json_to_a_file_says_who_served(net: Network, server: Server, tmp_path: Path) -> None:
    """Appended to what is there; the resource is that of the serving process."""
    output = tmp_path / "spans.jsonl"
    output.write_text('{"resourceSpans":[]}\n')
    ended = run(
        net,
        server.port,
        tmp_path,
        "--output",
        output,
        environment={"OTEL_TRACES_EXPORTER": "otlp_json_file"},
    )
    assert ended.stdout == ""
    assert "spans go to otlp_json_file" in ended.stderr
    text = output.read_text()
    assert text.startswith('{"resourceSpans":[]}\n')
    spans = spans_of_json_lines(text)
    assert_all_there(spans)
    for span in spans:
        assert {
            name: value
            for name, value in span.resource.items()
            if name.split(".")[0] in ("host", "os", "process", "otelbpf") or name == "service.name"
        } == {
            "host.name": socket.gethostname(),
            "host.arch": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
            "os.type": "linux",
            "os.version": os.uname().release,
            "os.description": os.uname().version,
            "otelbpf.kernel.release": os.uname().release,
            "process.pid": server.pid,
            "process.executable.name": server.executable,
            "service.name": server.service,
            "otelbpf.service.name.fallback": True,
        }


def test_otlp_json_to_standard_output(net: Network, server: Server, tmp_path: Path) -> None:
    """Nothing but spans is printed there."""
    ended = run(net, server.port, tmp_path, environment={"OTEL_TRACES_EXPORTER": "otlp_json_file"})
    assert_all_there(spans_of_json_lines(ended.stdout))


def test_console(net: Network, server: Server, tmp_path: Path) -> None:
    """One JSON object after the other on standard output, and nothing else.

    And --service-name is that of all.
    """
    ended = run(
        net,
        server.port,
        tmp_path,
        "--service-name",
        "till",
        environment={"OTEL_TRACES_EXPORTER": "console"},
    )
    decoder, text, spans = json.JSONDecoder(), ended.stdout.strip(), []
    while text:
        span, end = decoder.raw_decode(text)
        spans.append(span)
        text = text[end:].lstrip()
        assert span["resource"]["attributes"]["service.name"] == "till"
    paths = [span["attributes"]["url.path"] for span in spans if span["kind"] == "SpanKind.SERVER"]
    assert paths == [f"/{number}" for number in range(COUNT)]
