# SPDX-License-Identifier: Apache-2.0
"""What is nobody else's business, planted in requests, and looked for in all that leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from demo.receiver import Receiver
from servers import nginx, python_server
from stack import agent, to
from support.namespaces import Network

PORT, BEHIND = 8080, 9090
COUNT = 4
PATH, QUERY, AGENT, CLIENT = "alice-in-the-path", "bob-in-the-query", "carol/1.0", "203.0.113.77"
HEAD = (
    f"GET /users/{PATH}?q={QUERY} HTTP/1.1\r\nHost: h\r\nUser-Agent: {AGENT}\r\n"
    f"X-Forwarded-For: {CLIENT}\r\nConnection: close\r\n\r\n"
)


def ask(net: Network) -> list[str]:
    """Asks nginx, which asks the server behind it; the client's addresses."""
    found = []
    for host in (net.server.ipv4, net.server.ipv6) * (COUNT // 2):
        with net.client.connect(host, PORT) as connection:
            found.append(connection.getsockname()[0])
            connection.sendall(HEAD.encode())
            while connection.recv(65_536):
                pass
    return found


def spoken(receiver: Receiver) -> Iterator[str]:
    """Every message, as text: attributes, names, links, exemplars."""
    yield from map(str, receiver.exports())
    yield from map(str, receiver.metrics())


@pytest.mark.parametrize("stages", ["spans", "attributes"])
@pytest.mark.parametrize("is_private", [True, False])
def test_nothing_of_it_leaves(
    net: Network, receiver: Receiver, tmp_path: Path, stages: str, is_private: bool
) -> None:
    """But the route that was named; where nothing is asked for all but the query does."""
    asked = ["--no-path", "--no-user-agent", "--client-address", "none"]
    environment = to(receiver) | {"OTEL_METRICS_EXPORTER": "otlp"}
    with (
        python_server(net, tmp_path, "threading_server", BEHIND),
        nginx(net, tmp_path, PORT, upstream=BEHIND),
        agent(
            tmp_path, "--interface", net.server.interface, "--interface", "lo", "--port", PORT,
            "--upstream", f"127.0.0.1:{BEHIND}", "--netns", net.server.netns,
            "--forwarded-by", net.client.ipv4, "--forwarded-by", net.client.ipv6,
            "--route", "/users/{name}", "--stages", stages,
            *(asked if is_private else []), environment=environment,
        ) as running,
    ):  # fmt: skip
        running.wait_ready()
        peers = ask(net)
        ended = running.stop()
    ended.assert_clean(seen=2 * COUNT)
    told = "\n".join([*spoken(receiver), ended.stderr, str(ended.sums)])
    assert "/users/{name}" in told
    assert receiver.metrics()
    leaked = {secret for secret in (PATH, QUERY, AGENT, CLIENT, *peers) if secret in told}
    assert leaked == (set() if is_private else {PATH, AGENT, CLIENT, *peers})
    servers = [each.attributes for each in receiver.spans() if "url.scheme" in each.attributes]
    assert len(servers) == 2 * COUNT
    ports = {each["server.port"] for each in servers if "network.peer.port" in each}
    # An upstream's is nobody's who asks.
    assert ports == ({BEHIND} if is_private else {PORT, BEHIND})
