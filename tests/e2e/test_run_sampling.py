# SPDX-License-Identifier: Apache-2.0
"""Which requests become spans: one in N, what callers sampled, what failed, and what was slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from client import Client
from demo.receiver import Receiver
from servers import Server, python_server
from stack import agent, measured, to
from support.namespaces import Network

SAMPLED, UNSAMPLED = (f"00-{7:032x}-{9:016x}-{flags}" for flags in ("01", "00"))
# One in a billion: of some hundred requests, none but by a chance that nobody will live to see.
NONE = "1/1000000000"


@pytest.fixture(scope="module")
def server(net: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that is late, or fails, where it is asked to."""
    with python_server(net, tmp_path_factory.mktemp("server"), "threading_server", 8080) as running:
        yield running


def options(net: Network, server: Server) -> tuple[str | int, ...]:
    return (
        "--netns", net.server.netns, "--interface", net.server.interface, "--port", server.port
    )  # fmt: skip


def test_errors_and_what_was_slow_for_its_route_are_kept(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """Three rounds, since in the first one the agent gets to know the routes."""
    with agent(
        tmp_path,
        *options(net, server),
        "--sample",
        NONE,
        "--slow",
        "10s",
        "--slow",
        "/shop/{name}/late=200ms",
        environment=to(receiver),
    ) as running:
        running.wait_ready()
        with Client.of(net, server.port) as client:
            for _ in range(3):
                for target in ("/", "/late", "/shop/a/late", "/missing", "/broken", "/users/12"):
                    client.ask(target)
                client.ask("/called", headers={"traceparent": SAMPLED})
                client.ask("/uncalled", headers={"traceparent": UNSAMPLED})
                client.ask("/broken", headers={"traceparent": UNSAMPLED})
        ended = running.stop()
    ended.assert_clean(seen=27, sampled_out=15)
    requests = measured(receiver.spans())
    assert Counter(request["url.path"] for request in requests) == {
        "/shop/a/late": 3, "/broken": 6, "/called": 3
    }  # fmt: skip
    for request in requests:
        request.assert_tiled()
        request.assert_complete()


def test_slow_ones_beside_what_the_standard_variables_keep(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    environment = {**to(receiver), "OTEL_TRACES_SAMPLER": "always_off"}
    with agent(
        tmp_path, *options(net, server), "--slow", "200ms", environment=environment
    ) as running:
        running.wait_ready()
        with Client.of(net, server.port) as client:
            for target in ("/", "/late", "/broken", "/late"):
                client.ask(target, headers={"traceparent": SAMPLED})
        ended = running.stop()
    ended.assert_clean(seen=4, sampled_out=1)
    paths = sorted(request["url.path"] for request in measured(receiver.spans()))
    assert paths == ["/broken", "/late", "/late"]


def test_the_standard_variables_alone_mean_what_they_say(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """Nothing at all, be it an error."""
    environment = {**to(receiver), "OTEL_TRACES_SAMPLER": "always_off"}
    with agent(tmp_path, *options(net, server), environment=environment) as running:
        running.wait_ready()
        with Client.of(net, server.port) as client:
            client.ask("/broken")
        running.stop().assert_clean(seen=1, sampled_out=1)
    assert receiver.spans() == []


def test_one_in_two(net: Network, server: Server, receiver: Receiver, tmp_path: Path) -> None:
    with agent(
        tmp_path, *options(net, server), "--sample", "1/2", environment=to(receiver)
    ) as running:
        running.wait_ready()
        with Client.of(net, server.port) as client:
            for _ in range(60):
                client.ask()
        ended = running.stop()
    kept = len(measured(receiver.spans()))
    # All or none of 60 would be one run in 10**18.
    assert 0 < kept < 60
    ended.assert_clean(seen=60, sampled_out=60 - kept)
