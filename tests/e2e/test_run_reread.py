# SPDX-License-Identifier: Apache-2.0
"""SIGHUP: what the configuration file says then holds, and nothing is lost for it."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from pathlib import Path

import pytest
from client import Client
from demo.otlp import Kind, Span
from demo.receiver import Receiver
from servers import Server, python_server
from stack import COUNT, Agent, agent, measured, to, wait_for_requests
from support.namespaces import Network
from support.waiting import wait_until
from test_metrics_run import DURATION, told

# One in so many: none.
NONE = "sample: 1/1000000000"
SECRET = "hunter2"


class File:
    """A configuration of one server, and how often it was read again."""

    def __init__(self, directory: Path, net: Network, port: int) -> None:
        self.path = directory / "otelbpf.yaml"
        self._first = (
            f"netns: {net.server.netns}", f"interface: [{net.server.interface}]", f"port: [{port}]",
            "service-name: shop",
        )  # fmt: skip

    def write(self, *lines: str) -> None:
        # As editors do, and Kubernetes: it is there, whole, at each moment.
        part = self.path.with_suffix(".part")
        part.write_text("\n".join((*self._first, *lines)) + "\n")
        part.replace(self.path)

    def reread(self, running: Agent, *lines: str) -> str:
        """What the agent says of it."""
        self.write(*lines)
        before = len(running.stderr.splitlines())
        running.send(signal.SIGHUP)
        wait_until(lambda: len(running.stderr.splitlines()) > before, "it was read again")
        (said,) = running.stderr.splitlines()[before:]
        return said.replace(str(self.path), "FILE")


@pytest.fixture
def file(tmp_path: Path, net: Network, server: Server) -> File:
    return File(tmp_path, net, server.port)


def ask(net: Network, port: int, *paths: str, count: int = COUNT) -> None:
    with Client.of(net, port) as client:
        for number in range(count):
            for path in paths or (f"/{number}",):
                client.ask(path)


def servers(receiver: Receiver) -> list[Span]:
    """Requests' own spans, in the order in which they came."""
    return [span for span in receiver.spans() if span.kind is Kind.SERVER]


def now(what: str) -> str:
    return f"otelbpf: FILE was read again: what it says of {what} holds now"


def test_what_is_sampled(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path, file: File
) -> None:
    file.write(NONE)
    with agent(tmp_path, "--config", file.path, environment=to(receiver)) as running:
        running.wait_ready()
        ask(net, server.port)
        assert file.reread(running) == now("sample")
        ask(net, server.port, "/kept")
        wait_for_requests(receiver, COUNT)
        assert file.reread(running, NONE) == now("sample")
        ask(net, server.port)
        assert file.reread(running, NONE) == ("otelbpf: FILE was read again: nothing has changed")
        ended = running.stop()
    ended.assert_adds_up()
    assert ended.sums is not None
    assert {key: ended.sums[key] for key in ("seen", "exported", "sampled_out", "lost")} == {
        "seen": 3 * COUNT, "exported": COUNT, "sampled_out": 2 * COUNT, "lost": {}
    }  # fmt: skip
    assert {each["url.path"] for each in measured(receiver.spans())} == {"/kept"}


def test_what_is_slow_though_the_kernel_knows_the_route(
    net: Network, receiver: Receiver, tmp_path: Path
) -> None:
    """Of each route as of all: its requests were counted there before, by another time."""
    with python_server(net, tmp_path, "threading_server", 8083) as server:
        file = File(tmp_path, net, server.port)
        paths = "/a/late", "/b/late", "/c"
        file.write(NONE, "slow: [1000s]")
        environment = {**to(receiver), "OTEL_METRICS_EXPORTER": "otlp"}
        with agent(tmp_path, "--config", file.path, environment=environment) as running:
            running.wait_ready()
            ask(net, server.port, *paths, count=3)
            assert file.reread(running, NONE, "slow: [200ms]") == now("slow")
            ask(net, server.port, *paths, count=3)
            wait_for_requests(receiver, 6)
            slow = "slow: [1000s, /a/late=200ms]"
            assert file.reread(running, NONE, slow) == now("slow")
            ask(net, server.port, *paths, count=3)
            wait_for_requests(receiver, 9)
            assert file.reread(running, NONE) == now("slow")
            ask(net, server.port, *paths, count=3)
            ended = running.stop()
    ended.assert_adds_up()
    assert ended.sums is not None and (ended.sums["seen"], ended.sums["exported"]) == (36, 9)
    found = Counter(each["url.path"] for each in measured(receiver.spans()))
    assert found == {"/a/late": 6, "/b/late": 3}
    counts = Counter[str]()
    for attributes, point in told(receiver, DURATION):
        counts[attributes["http.route"]] += point.count
    assert counts == dict.fromkeys(paths, 12)


def test_what_is_private(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path, file: File
) -> None:
    file.write("capture-query: true", "route: /items/{name}")
    path = f"/items/{SECRET}?password={SECRET}"
    with agent(tmp_path, "--config", file.path, environment=to(receiver)) as running:
        running.wait_ready()
        ask(net, server.port, path)
        first = wait_for_requests(receiver, COUNT)
        assert {each["url.query"] for each in first} == {f"password={SECRET}"}
        private = (
            "no-path: true", "no-user-agent: true", "client-address: none", "route: /items/{n}"
        )  # fmt: skip
        assert file.reread(running, *private) == now(
            "capture-query, client-address, no-path, no-user-agent, route"
        )
        ask(net, server.port, path)
        # Those of the second half have no ports, by which others are put in order.
        wait_until(lambda: len(servers(receiver)) == 2 * COUNT, "all had come")
        running.stop().assert_clean(seen=2 * COUNT)
    second = servers(receiver)[COUNT:]
    assert {each.attributes["http.route"] for each in second} == {"/items/{n}"}
    texts = " ".join(map(str, second))
    assert SECRET not in texts
    assert net.client.ipv4 not in texts
    assert "client.address" not in texts


def test_what_is_ignored(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path, file: File
) -> None:
    """Each is counted once, and metrics have all of them."""
    file.write("ignore-route: [/healthz, /internal/*]")
    paths = "/healthz", "/internal/a/b", "/shop"
    environment = {**to(receiver), "OTEL_METRICS_EXPORTER": "otlp"}
    with agent(tmp_path, "--config", file.path, environment=environment) as running:
        running.wait_ready()
        ask(net, server.port, *paths)
        wait_for_requests(receiver, COUNT)
        assert file.reread(running, "ignore-route: /shop", "sample: 1/1") == now(
            "ignore-route, sample"
        )
        ask(net, server.port, *paths)
        ended = running.stop()
    ended.assert_adds_up()
    assert ended.sums is not None
    counted = [ended.sums[key] for key in ("seen", "exported", "sampled_out", "ignored")]
    assert counted == [6 * COUNT, 3 * COUNT, 3 * COUNT, 3 * COUNT]
    assert f"+ sampled out {3 * COUNT} ({3 * COUNT} by --ignore-route) + lost 0" in ended.stderr
    found = Counter(each["url.path"] for each in measured(receiver.spans()))
    assert found == dict.fromkeys(paths, COUNT)
    assert sum(point.count for _, point in told(receiver, DURATION)) == 6 * COUNT


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("prot: 81",), "FILE:5: there is no key 'prot': did you mean 'port'?"),
        (("sample: often",), "FILE:5: sample: 'often' is no share: one in a hundred is 1/100"),
        (("slow: [5ms",), "FILE:5: this is no YAML: "),
        (("keep-4xx: true",), "--keep-4xx says what --sample and --slow keep: "),
        (("no-path: true", "capture-query: true"), "--capture-query tells a path's query"),
    ],
)
def test_what_is_wrong_leaves_the_old_one_in_force(
    net: Network,
    server: Server,
    receiver: Receiver,
    tmp_path: Path,
    file: File,
    lines: tuple[str, ...],
    said: str,
) -> None:
    """Then what is right is taken, or the file may be gone."""
    file.write()
    with agent(tmp_path, "--config", file.path, environment=to(receiver)) as running:
        running.wait_ready()
        answer = file.reread(running, *lines)
        assert answer.startswith(f"otelbpf: {said}")
        assert answer.endswith("; what was in force stays so")
        ask(net, server.port)
        wait_for_requests(receiver, COUNT)
        assert file.reread(running, NONE) == now("sample")
        ask(net, server.port)
        ended = running.stop()
    assert ended.sums is not None
    assert (ended.sums["exported"], ended.sums["sampled_out"]) == (COUNT, COUNT)


def test_what_is_for_the_start_is_said_by_name(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path, file: File
) -> None:
    """The rest of the same file holds; what is another command's is nobody's business here."""
    file.write(NONE)
    with agent(tmp_path, "--config", file.path, environment=to(receiver)) as running:
        running.wait_ready()
        lines = "xdp: off", "connections: 128", "slow: [1us]", "sort: p99"
        later = "cannot change while otelbpf runs"
        assert file.reread(running, *lines) == (
            f"{now('sample')}; connections, slow {later} (there is no --slow and are no metrics "
            "yet): that takes another start"
        )
        # Said again as long as it is so; agent() says --xdp on, which holds.
        assert file.reread(running, "connections: 128") == (
            f"otelbpf: FILE was read again: connections {later}: that takes another start"
        )
        ask(net, server.port)
        wait_for_requests(receiver, COUNT)
        running.stop().assert_clean(seen=COUNT)


def test_nothing_is_lost_or_counted_twice_while_it_is_read_under_load(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path, file: File
) -> None:
    """Between routes, samplers and times, on kept connections."""
    configurations = [
        (NONE, "slow: [1000s]"),
        ("route: /{any}",),
        ("sample: 1/2", "slow: '/{some}=1us'", "routes: given"),
        ("no-path: true",),
    ]
    file.write()
    environment = {**to(receiver), "OTEL_METRICS_EXPORTER": "otlp"}
    rounds, clients = 20, 4
    asked = [0] * clients
    over = threading.Event()

    def load(mine: int) -> None:
        with Client.of(net, server.port) as client:
            while not over.is_set():
                client.ask(f"/{asked[mine]}")
                asked[mine] += 1

    with agent(tmp_path, "--config", file.path, environment=environment) as running:
        running.wait_ready()
        threads = [threading.Thread(target=load, args=(mine,)) for mine in range(clients)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(rounds):
                assert "holds now" in file.reread(running, *configurations[turn % 4])
        finally:
            over.set()
            for thread in threads:
                thread.join()
        ended = running.stop()
    assert ended.code == 0, ended.stderr
    ended.assert_adds_up()
    assert ended.sums is not None
    assert (ended.sums["seen"], ended.sums["lost"]) == (sum(asked), {})
    assert sum(point.count for _, point in told(receiver, DURATION)) == sum(asked)
    assert len(measured(receiver.spans())) == ended.sums["exported"]


def test_without_a_file_it_ends_the_agent_as_ever(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    options = "--netns", net.server.netns, "--interface", net.server.interface
    with agent(tmp_path, *options, "--port", server.port, environment=to(receiver)) as running:
        running.wait_ready()
        running.send(signal.SIGHUP)
        assert running.wait().code == -signal.SIGHUP
