# SPDX-License-Identifier: Apache-2.0
"""The dashboard's expressions, asked of a real Prometheus that scraped a real agent."""

from __future__ import annotations

import contextlib
import json
import math
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from client import Client
from collectors import HOST
from prometheus import Prometheus, prometheus
from servers import python_server
from stack import agent, otelbpf
from support.commands import run
from support.namespaces import Network
from support.ports import unused_port
from support.waiting import DEADLINE_S, wait_until

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from dashboard import Query, load, queries

pytestmark = pytest.mark.heavy

PORT, UPSTREAM, DESERTED = 8080, 9090, 8081
#: What Grafana would put in: all services and routes, and a few scrapes.
VALUES = {"service": ".*", "route": ".*", "__rate_interval": "10s", "__range": "1m"}
#: What there may be none of: it is 0 then, not absent.
MAY_BE_ZERO = {"Out of order", "Calls that hooks missed", "Joins", "In flight"}
_QUERIES_THAT_MAY_BE_ZERO = {
    "What cannot be told B",
    "Whose the time is F",
    "Whose the time of requests to upstreams is F",
}
#: The panel that is empty where the kernel has no hook for accept().
OF_ACCEPT = "Accept queue"
_RATE = re.compile(r"\brate\(([^][]*)\[[^][]*\]\)")


def no_answer_before_the_end(net: Network, port: int, sent: bytes, *, reset: bool) -> None:
    """Sends this, and closes the connection at once."""
    with net.client.connect(net.server.ipv4, port) as sock:
        sock.sendall(sent)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def a_body_that_comes_later(net: Network) -> None:
    """In another segment than its head."""
    request = b"GET /body HTTP/1.1\r\nHost: shop\r\nContent-Length: 6\r\nConnection: close\r\n\r\n"
    with net.client.connect(net.server.ipv4, PORT) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(request)
        sock.sendall(b"a body")
        while sock.recv(1 << 16):
            pass


def has_repeated(net: Network, port: int) -> bool:
    """Did the server send something twice to this port of the client's?"""
    sockets = run("ss", "-N", net.server.netns, "-Htin", "dport", "=", f":{port}")
    return re.search(r"\bretrans:\d+/[1-9]", sockets) is not None


def answer_that_is_repeated(net: Network) -> None:
    """The response is lost: from before it is sent until it was sent again nobody is its receiver.

    With the link down, the server would keep it until it had asked for the client's MAC address.
    """
    address = (f"{net.client.ipv4}/24", "dev", net.client.interface)
    with Client.of(net, PORT) as client, Client.local(net, PORT) as beside:
        asking = threading.Thread(target=client.ask, args=("/held",))
        asking.start()
        beside.ask("/meet")
        run("ip", "-n", net.client.netns, "addr", "del", *address)
        beside.ask("/meet")
        wait_until(lambda: has_repeated(net, client.port), "the response is sent again")
        run("ip", "-n", net.client.netns, "addr", "add", *address)
        asking.join(DEADLINE_S)
        assert not asking.is_alive()


def a_round(net: Network) -> None:
    """Something for every panel."""
    answer_that_is_repeated(net)
    a_body_that_comes_later(net)
    with Client.of(net, PORT) as client:
        for number in range(5):
            client.ask(f"/items/{number}")
            client.ask("/slow/5")
            client.ask("/ask")
        client.ask("/fail")
    # More routes than there are series for.
    with Client.of(net, PORT) as client:
        for letter in "abcdefghijklmnop":
            client.ask(f"/{letter}")
    request = b"GET /slow/200 HTTP/1.1\r\nHost: shop\r\n\r\n"
    no_answer_before_the_end(net, PORT, request, reset=False)
    no_answer_before_the_end(net, PORT, request, reset=True)
    no_answer_before_the_end(net, PORT, request[:20], reset=False)
    with contextlib.suppress(ConnectionRefusedError):
        net.client.connect(net.server.ipv4, DESERTED)


@contextlib.contextmanager
def traffic(net: Network) -> Iterator[None]:
    """Rounds, until the end of the block."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def go_on() -> None:
        try:
            while not stop.is_set():
                a_round(net)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


@pytest.fixture(scope="module")
def asked(net: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that goes on scraping an agent which goes on measuring."""
    directory, port = tmp_path_factory.mktemp("dashboard"), unused_port()
    environment = {
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_HOST": HOST,
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
    }
    options = (
        "--netns",
        net.server.netns,
        "--interface",
        net.server.interface,
        "--interface",
        "lo",
        "--port",
        PORT,
        "--port",
        DESERTED,
        "--upstream",
        f"127.0.0.1:{UPSTREAM}",
        "--service-name",
        "shop",
        "--sample",
        "1/2",
        "--series",
        16,
    )
    (behind_directory := directory / "behind").mkdir()
    with (
        python_server(net, behind_directory, "routes_server", UPSTREAM),
        python_server(net, directory, "routes_server", PORT, str(UPSTREAM)),
        agent(directory, *options, environment=environment) as running,
    ):
        running.wait_ready()
        with prometheus(directory, {"endpoint": port}, interval_ms=1_000) as made, traffic(net):
            # Which comes last in a round, of what the tests ask for.
            made.wait_for('count(http_server_request_duration_seconds_count{error_type="500"})', 1)
            yield made
        running.stop()


def is_shown(asked: Prometheus, query: Query) -> bool:
    """Is there a line, and does it rise above 0 where it has to?"""
    values = [sample.value for sample in asked.query(query.with_values(VALUES))]
    known = [value for value in values if not math.isnan(value)]
    may_be_zero = query.panel in MAY_BE_ZERO or str(query) in _QUERIES_THAT_MAY_BE_ZERO
    return any(value > 0 or may_be_zero for value in known)


def test_no_panel_is_empty(asked: Prometheus, tmp_path: Path) -> None:
    """Losses and errors included, which the traffic causes."""
    hooks = json.loads(otelbpf(tmp_path, "check", "--json").stdout)["hooks"]
    (accept,) = (hook for hook in hooks if hook["name"] == "accept")
    missing = [query for query in queries() if accept["chosen"] or query.panel != OF_ACCEPT]
    assert missing

    def all_shown() -> bool:
        missing[:] = [query for query in missing if not is_shown(asked, query)]
        return not missing

    wait_until(
        all_shown,
        "every panel shows something",
        state=lambda: [*map(str, missing)],
        deadline_s=2 * DEADLINE_S,
    )


def test_the_stages_stacked_are_the_mean_request(asked: Prometheus) -> None:
    """Which is what the panel claims, to the nanosecond that is lost in floats.

    Since the start: rate() leaves out how a series begins, and under load there is always a stage
    that was never seen before.
    """
    (stacked,) = (q for q in queries() if q.panel == "Mean request, by stage")
    since_the_start, rates = _RATE.subn(r"\1", stacked.with_values(VALUES))
    assert rates == 2
    mean = (
        'sum(http_server_request_duration_seconds_sum{job="shop"}) / '
        'sum(http_server_request_duration_seconds_count{job="shop"})'
    )
    asked.wait_for(f"abs(sum({since_the_start}) / ({mean}) - 1) < bool 1e-9", 1)


def test_services_and_routes_can_be_chosen(asked: Prometheus) -> None:
    """The variables' lists hold what they are to hold."""
    _, service, route = load()["templating"]["list"]
    lists = {}
    for variable in (service, route):
        metric, _, label = variable["definition"].removeprefix("label_values(").rpartition(", ")
        metric = metric.replace("$service", ".*")
        lists[label.rstrip(")")] = {
            sample.labels[label.rstrip(")")]
            for sample in asked.query(f"group by ({label} ({metric})")
            if sample.labels
        }
    assert lists["job"] == {"shop"}
    assert lists["http_route"] >= {"/items/{id}", "/slow/{id}", "/ask", "/fail"}
