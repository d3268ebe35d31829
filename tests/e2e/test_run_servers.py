# SPDX-License-Identifier: Apache-2.0
"""Servers that are not ours: every request becomes one span that says what the client saw."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from client import USER_AGENT, Client, Exchange
from demo.otlp import Kind
from demo.receiver import Receiver
from servers import Server, gateway, nginx, node_server, python_server
from stack import COUNT, agent, to, wait_for_requests
from support.namespaces import Network

from otelbpf.policy.routes import fold

PORT = 8080
BEHIND = 9090
SERVERS = ("nginx static", "nginx proxy", "python threading", "python asyncio", "aiohttp", "node")


@contextlib.contextmanager
def start(kind: str, network: Network, directory: Path) -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        if kind == "nginx static":
            (directory / "files").mkdir()
            for number in range(COUNT):
                (directory / "files" / f"item-{number}").write_bytes(b"x" * (number * 1000))
            yield stack.enter_context(nginx(network, directory, PORT))
        elif kind == "nginx proxy":
            stack.enter_context(python_server(network, directory, "threading_server", BEHIND))
            yield stack.enter_context(nginx(network, directory, PORT, upstream=BEHIND))
        elif kind == "aiohttp":
            yield stack.enter_context(gateway(network, directory, PORT))
        elif kind == "node":
            yield stack.enter_context(node_server(network, directory, PORT))
        else:
            name = kind.replace("python ", "") + "_server"
            yield stack.enter_context(python_server(network, directory, name, PORT))


def ask(client: Client, number: int, body_unit: int) -> Exchange:
    """The `number`th request: they differ in all that a span tells of."""
    body = b"y" * (number * body_unit)
    match number % 6:
        case 0:
            return client.ask(f"/item-{number}?secret={number}")
        case 1:
            return client.ask(f"/item-{number}", "HEAD")
        case 2:
            return client.ask(f"/in/{number}", "POST", {"Content-Type": "text/plain"}, body)
        case 3:
            return client.ask(f"/chunked/{number}")
        case 4:
            return client.ask(f"/in/{number}", "PUT", body=body, chunked=True)
        case _:
            return client.ask(f"/{number}/missing", "DELETE")


@pytest.mark.parametrize("kind", SERVERS)
def test_each_request_is_one_whole_span(
    net: Network, receiver: Receiver, tmp_path: Path, kind: str
) -> None:
    # nginx answers for a file that is not there before it has the body, and the span then ends
    # with that answer: bodies that fit into the request's first segment are there already.
    body_unit = 50 if kind == "nginx static" else 1500
    with (
        start(kind, net, tmp_path) as server,
        agent(
            tmp_path,
            "--interface",
            net.server.interface,
            "--port",
            PORT,
            "--netns",
            net.server.netns,
            environment=to(receiver),
        ) as running,
    ):
        running.wait_ready()
        exchanges: dict[tuple[str, int, int], Exchange] = {}
        hosts = {}
        for host, count in ((net.server.ipv4, 12), (net.server.ipv6, COUNT - 12)):
            with Client.of(net, PORT, host) as client:
                hosts[client.port] = host
                for ordinal in range(count):
                    exchange = ask(client, len(exchanges), body_unit)
                    exchanges[client.address, client.port, ordinal] = exchange
        requests = wait_for_requests(receiver, COUNT)
        running.stop().assert_clean(seen=COUNT)
        assert len(requests) == COUNT

        for request in requests:
            key = request["client.address"], request["client.port"]
            expected = exchanges.pop((*key, request["otelbpf.connection.request"]))
            says = f"{kind}: {expected.method} {expected.target}: {request.span}"
            route = fold(expected.target.partition("?")[0])
            assert request.span.name == f"{expected.method} {route}", says
            assert request["http.route"] == route, says
            assert request.span.kind is Kind.SERVER
            host = hosts[request["client.port"]]
            assert {
                name: request[name]
                for name in (
                    "http.request.method",
                    "url.path",
                    "url.query",
                    "url.scheme",
                    "http.response.status_code",
                    "network.protocol.version",
                    "http.request.size",
                    "http.request.body.size",
                    "http.response.size",
                    "http.response.body.size",
                    "user_agent.original",
                    "server.address",
                    "server.port",
                    "network.peer.address",
                    "network.local.address",
                    "network.local.port",
                )
            } == {
                "http.request.method": expected.method,
                "url.path": expected.target.partition("?")[0],
                "url.query": None,
                "url.scheme": "http",
                "http.response.status_code": expected.status,
                "network.protocol.version": "1.1",
                "http.request.size": expected.request_bytes,
                "http.request.body.size": expected.request_body_bytes,
                "http.response.size": expected.response_bytes,
                "http.response.body.size": len(expected.body),
                "user_agent.original": USER_AGENT,
                "server.address": host,
                "server.port": PORT,
                "network.peer.address": key[0],
                "network.local.address": host,
                "network.local.port": PORT,
            }, says
            request.assert_tiled()
            request.assert_complete()
            assert request.span.resource["process.executable.name"] == server.executable
            assert request.span.resource["service.name"] == server.service
            if server.executable != "nginx":  # whose worker is a child
                assert request.span.resource["process.pid"] == server.pid
        assert not exchanges
