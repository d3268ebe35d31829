# SPDX-License-Identifier: Apache-2.0
"""From bytes that no program sees to what is said of them, and to the ready file."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import INTERFACE, PORT, SERVER_IPV4, Pair, laboratory, prepare
from messages import OK, request
from meter import WHOLE, Meter, flags, load
from strangers import Strangers
from test_neighbours import HAS_TCX, needs_tcx
from test_unseen import hello, redirected
from test_watch import delete, make

from otelbpf.agent.config import Config
from otelbpf.agent.hints import nobody_listens
from otelbpf.agent.lookout import Lookout
from otelbpf.host.interfaces import Xdp, find_interfaces
from otelbpf.kernel import libbpf
from otelbpf.kernel.attach import attached
from otelbpf.kernel.records import Counter
from otelbpf.ledger.tally import Gap

TO_PORT = f"to port {PORT}"


@dataclass
class Looking:
    """A lookout that looks when a test wants it to."""

    meter: Meter
    lookout: Lookout
    ready_file: Path
    caplog: pytest.LogCaptureFixture
    now_s: float
    has_ended: bool = False

    def look(self) -> list[str]:
        """Once, and again when all that belongs together has been gathered; what it said."""
        self.caplog.clear()
        for _ in range(2):
            self.coverage = self.lookout.look(self.now_s)
            self.now_s += 1.0
        return list(self.caplog.messages)

    def end(self) -> list[str]:
        """Closes it, once; what it said then."""
        self.caplog.clear()
        if not self.has_ended:
            self.has_ended = True
            self.lookout.close()
        return list(self.caplog.messages)

    def ask(self, count: int = 3, *, client_side: str = "client") -> None:
        """So many connections, with a request each."""
        for _ in range(count):
            self.meter.lab.connect(client_side=client_side).exchange(request(), OK)
        self.meter.lab.close_connections()


@pytest.fixture(scope="module")
def _meter() -> Iterator[Meter]:
    with laboratory() as lab, contextlib.closing(load(lab)) as meter:
        lab.listener(SERVER_IPV4)
        yield meter


@pytest.fixture
def looking(_meter: Meter, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Looking]:
    names, ready_file = (INTERFACE,), tmp_path / "ready"
    config = Config(names, (PORT,), ready_file=ready_file)
    interfaces = find_interfaces(names, _meter.netns)
    _meter.begin()
    with attached(
        _meter.programs, _meter.choices, interfaces, _meter.netns, xdp=Xdp.AUTO
    ) as attachments:
        lookout = Lookout(
            _meter.programs, attachments, _meter.netns, _meter.netns.cookie, config, 1_000.0
        )
        lookout._notices.read()  # those of earlier tests: an agent has programs of its own
        looking = Looking(_meter, lookout, ready_file, caplog, 1_000.0)
        try:
            assert looking.look() == []
            yield looking
        finally:
            looking.end()
        assert not ready_file.exists()
    _meter.end()


def test_all_is_well(looking: Looking) -> None:
    looking.ask()
    assert looking.look() == []
    assert looking.ready_file.exists()
    assert [flags(record) for record in looking.meter.records(3)] == [WHOLE] * 3


def test_an_interface_that_is_not_measured(looking: Looking) -> None:
    looking.ask(client_side="server")
    looking.meter.unseen = 3
    assert looking.look() == [
        f"3 connections {TO_PORT} come in on lo, which is not measured: add --interface lo"
    ]
    assert looking.ready_file.exists()
    looking.ask(client_side="server")
    looking.meter.unseen = 6
    assert looking.look() == []


def test_a_port_that_is_redirected(looking: Looking) -> None:
    """Each connection is told by the port for which it came."""
    lab = looking.meter.lab
    with redirected(lab, 80), redirected(lab, 81):
        for port in (80, 80, 81):
            client = lab.socket("client", socket.AF_INET)
            client.connect((SERVER_IPV4, port))
            server = prepare(lab.listener(SERVER_IPV4).accept()[0])
            lab.keep(Pair(client, server)).exchange(request(), OK)
        looking.meter.unseen = 3
        two, one = looking.look()
    assert two.startswith(f"2 connections {TO_PORT} come in on {INTERFACE} to port 80, and ")
    assert one.startswith(f"1 connection {TO_PORT} comes in on {INTERFACE} to port 81, and ")


def test_what_comes_while_an_interface_is_made_again_is_told_of_that_only(
    looking: Looking,
) -> None:
    """Its connections come in unseen by an interface that is measured by the time of the look."""
    delete(looking.meter.lab)
    make(looking.meter.lab)
    looking.ask()
    looking.meter.unseen = 3
    (said,) = looking.look()
    assert said.startswith(f"interface {INTERFACE} is there again, and is measured")
    looking.ask()
    looking.meter.records(3)
    assert looking.look() == []


def test_the_ready_file_is_gone_while_an_interface_is(looking: Looking) -> None:
    delete(looking.meter.lab)
    looking.look()
    assert not looking.ready_file.exists()
    assert looking.coverage[INTERFACE].gap is Gap.GONE
    make(looking.meter.lab)
    looking.look()
    assert looking.ready_file.exists()


@needs_tcx
def test_who_comes_before_it_is_found_at_once_and_gets_no_hint(
    looking: Looking, stranger: Strangers
) -> None:
    """Not only when the lines are looked at anyway: connections tell."""
    looking.now_s -= 0.95
    with stranger.attached(
        looking.meter.lab, "settle", "server", libbpf.BPF_TCX_INGRESS, first=True
    ):
        looking.ask()
        looking.meter.unseen = 3
        (said,) = looking.look()
        assert "which is first again" in said
        assert looking.ready_file.exists()
        looking.ask()
        looking.meter.records(3)


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_who_stays_before_it_is_blamed_once_that_is_certain(
    looking: Looking, stranger: Strangers, direction: str
) -> None:
    """The interface is not measured then, and is again when they are gone."""
    lab, kind = looking.meter.lab, getattr(libbpf, f"BPF_TCX_{direction.upper()}")
    name = "filter stranger (preference 1)"
    if HAS_TCX:
        name = f"program settle (id {stranger.id('settle')})"
        with stranger.attached(lab, "settle", "server", kind, first=True):
            looking.look()  # and goes before it, which it does once
    with stranger.attached(lab, "settle", "server", kind, first=True):
        assert looking.look() == [
            f"{name} is before otelbpf at TC {direction} of {INTERFACE}: what it keeps is missed"
        ]
        assert looking.ready_file.exists()
        looking.ask()
        looking.meter.wait_for(Counter.CONNECTIONS_UNSEEN, 3)
        looking.meter.unseen = 3
        (said,) = looking.look()
        assert said.endswith(f"where {name} is before otelbpf, and may keep their packets from it")
        assert looking.coverage[INTERFACE].gap is Gap.BEHIND
        assert not looking.ready_file.exists()
    assert looking.look() == [f"interface {INTERFACE} is measured again"]
    assert looking.ready_file.exists()
    looking.ask()
    looking.meter.records(3)


def test_at_the_end_nothing_is_left_unsaid(looking: Looking) -> None:
    lab = looking.meter.lab
    with redirected(lab, 80):
        looking.lookout.look(looking.now_s)
        looking.ask(client_side="server")
        client = lab.socket("client", socket.AF_INET)
        client.connect((SERVER_IPV4, 80))
        server = prepare(lab.listener(SERVER_IPV4).accept()[0])
        lab.keep(Pair(client, server)).exchange(request(), OK)
        looking.meter.unseen = 4
        near, far = sorted(looking.end(), reverse=True)
    assert "add --interface lo" in near
    assert "to port 80, and REDIRECT" in far


def test_tls(looking: Looking) -> None:
    for _ in range(3):
        looking.meter.lab.connect().ask(hello())
    assert looking.look() == [
        f"3 connections {TO_PORT} are TLS, which is not read: measure what ends it, behind it"
    ]


def test_a_port_that_nobody_listens_on(
    _meter: Meter,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two seconds after the start, if nobody does by then, and no request to it can have come."""
    lab, names = _meter.lab, (INTERFACE,)
    interfaces = find_interfaces(names, _meter.netns)
    seen = 0
    monkeypatch.setattr(_meter.programs, "counts", lambda: {Counter.SEEN: seen})

    def said(*ports: int) -> list[str]:
        caplog.clear()
        with attached(
            _meter.programs, _meter.choices, interfaces, _meter.netns, xdp=Xdp.AUTO
        ) as attachments:
            lookout = Lookout(
                _meter.programs, attachments, _meter.netns, _meter.netns.cookie,
                Config(names, ports), 1_000.0,
            )  # fmt: skip
            with contextlib.closing(lookout):
                lookout._notices.read()
                lookout.look(1_001.9)
                assert caplog.messages == []
                for now_s in (1_002.0, 1_009.0):
                    lookout.look(now_s)
        return list(caplog.messages)

    with lab.socket("server", socket.AF_INET) as listener:
        listener.bind(("127.0.0.1", 10))
        listener.listen()
        assert said(PORT, 10) == []
        # Of this process itself, which is the agent here, it is not told that it listens elsewhere.
        assert said(9, 10) == [nobody_listens(9, {}, _meter.netns.name)]
        # Requests that were seen may be redirected to another port; of several ports, nobody knows.
        seen = 1
        assert said(9) == []
        assert said(9, 10) == [nobody_listens(9, {}, _meter.netns.name)]


def test_nobody_listens_is_not_said_of_a_port_that_is_redirected(
    _meter: Meter, caplog: pytest.LogCaptureFixture
) -> None:
    """Connection tracking knows of it by a connection that came before the agent did."""
    lab, names = _meter.lab, (INTERFACE,)
    with (
        redirected(lab, 80),
        attached(
            _meter.programs,
            _meter.choices,
            find_interfaces(names, _meter.netns),
            _meter.netns,
            xdp=Xdp.AUTO,
        ) as attachments,
    ):
        with lab.socket("client", socket.AF_INET) as client:
            client.connect((SERVER_IPV4, 80))
            lab.listener(SERVER_IPV4).accept()[0].close()
        for ports in ((80,), (80, PORT), (9, 80)):
            lookout = Lookout(
                _meter.programs, attachments, _meter.netns, _meter.netns.cookie,
                Config(names, ports), 1_000.0,
            )  # fmt: skip
            with contextlib.closing(lookout):
                lookout._notices.read()
                lookout.look(1_002.0)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("nobody listens on port 9 ")
