# SPDX-License-Identifier: Apache-2.0
"""What becomes of the interfaces that were asked for: measured again, or said not to be."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from lab import CLIENT_INTERFACE, CLIENT_IPV4, INTERFACE, SERVER_IPV4, Lab, laboratory
from messages import OK, request
from meter import WHOLE, Meter, flags, load
from strangers import Strangers
from support.commands import run
from support.waiting import wait_until
from test_neighbours import HAS_TCX, needs_tcx

from otelbpf.agent.watch import Watcher
from otelbpf.host.interfaces import Xdp, find_interfaces
from otelbpf.host.netns import find_netns
from otelbpf.kernel import bpf_info, libbpf
from otelbpf.kernel.attach import Attachments, attached
from otelbpf.ledger.tally import Gap

GONE_S = 3.0
# Attaches to an interface as an agent does, and waits to be killed.
_OTHER_AGENT = """
import signal, sys
from otelbpf.agent.settings import settings
from otelbpf.kernel.attach import attached
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.hooks import choose
from otelbpf.host.interfaces import Xdp, find_interfaces
from otelbpf.kernel.limits import Limits
from otelbpf.kernel.loader import Programs
from otelbpf.host.netns import find_netns

netns = find_netns(sys.argv[1])
with Btf.of_kernel() as btf:
    choices = choose(btf)
    programs = Programs(btf, choices, Limits(64, 8192), settings(netns.cookie, (8080,)))
with attached(
    programs, choices, find_interfaces((sys.argv[2],), netns), netns, xdp=Xdp.AUTO
) as attachments:
    print("attached", flush=True)
    signal.pause()
"""


@dataclass
class Watched:
    """Attached programs, and who looks after them: at times of a test's choosing."""

    meter: Meter
    attachments: Attachments
    watcher: Watcher
    caplog: pytest.LogCaptureFixture
    now_s: float = 1_000.0

    def look(self, *, after_s: float = 1.0) -> list[str]:
        """Lets it look, and gives what it said."""
        self.now_s += after_s
        self.caplog.clear()
        self.watcher.look(self.now_s)
        return list(self.caplog.messages)

    def gap(self, name: str = INTERFACE) -> Gap | None:
        coverage = self.watcher.coverage(self.now_s)[name]
        assert self.watcher.is_whole == (coverage.gap is None)
        return coverage.gap

    def unmeasured_s(self, name: str = INTERFACE) -> dict[Gap, float]:
        return dict(self.watcher.coverage(self.now_s)[name].unmeasured_s)

    def assert_measured(self, count: int = 3) -> None:
        """All of the next requests, on a connection of their own."""
        pair = self.meter.lab.connect()
        for _ in range(count):
            pair.exchange(request(), OK)
        assert [flags(record) for record in self.meter.records(count)] == [WHOLE] * count
        self.meter.lab.close_connections()


@pytest.fixture(scope="module")
def _meter() -> Iterator[Meter]:
    with laboratory() as lab, contextlib.closing(load(lab)) as meter:
        yield meter


@contextlib.contextmanager
def watching(
    meter: Meter, caplog: pytest.LogCaptureFixture, *names: str, xdp: Xdp = Xdp.AUTO
) -> Iterator[Watched]:
    names = names or (INTERFACE,)
    interfaces = find_interfaces(names, meter.netns)
    meter.begin()
    with attached(meter.programs, meter.choices, interfaces, meter.netns, xdp=xdp) as attachments:
        watcher = Watcher(attachments, meter.netns, meter.netns.cookie, names)
        yield Watched(meter, attachments, watcher, caplog)


@pytest.fixture
def watched(_meter: Meter, caplog: pytest.LogCaptureFixture) -> Iterator[Watched]:
    """On the lab's interface, where all is well."""
    with watching(_meter, caplog) as watched:
        assert watched.look() == []
        yield watched
    _meter.end()


def ip(lab: Lab, *arguments: str, side: str = "server") -> None:
    netns = lab.server_netns if side == "server" else lab.client_netns
    run("ip", "-n", netns.name, *arguments)


def delete(lab: Lab) -> None:
    ip(lab, "link", "del", INTERFACE)


def make(lab: Lab, *more: str) -> None:
    """The veth, as the lab had it."""
    server, client = lab.server_netns.name, lab.client_netns.name
    run("ip", "link", "add", INTERFACE, "netns", server, *more, "type", "veth", "peer", "name",
        CLIENT_INTERFACE, "netns", client)  # fmt: skip
    ip(lab, "addr", "add", f"{SERVER_IPV4}/24", "dev", INTERFACE)
    ip(lab, "addr", "add", f"{CLIENT_IPV4}/24", "dev", CLIENT_INTERFACE, side="client")
    ip(lab, "link", "set", INTERFACE, "up")
    ip(lab, "link", "set", CLIENT_INTERFACE, "up", side="client")


def line_of(lab: Lab, name: str, attach_type: int, side: str = "server") -> list[int]:
    """The numbers of the programs in a line of tcx, in their order."""
    netns = lab.server_netns if side == "server" else lab.client_netns
    return netns.run(lambda: bpf_info.attached_programs(socket.if_nametoindex(name), attach_type))


def rename(lab: Lab, name: str, new_name: str) -> None:
    ip(lab, "link", "set", name, "down")
    ip(lab, "link", "set", name, "name", new_name)
    ip(lab, "link", "set", new_name, "up")


def index(lab: Lab) -> int:
    (found,) = find_interfaces((INTERFACE,), lab.server_netns).values()
    return found


def test_nothing_is_said_where_all_is_well(watched: Watched) -> None:
    for _ in range(3):
        assert watched.look() == []
    assert (watched.gap(), watched.unmeasured_s()) == (None, {})
    watched.assert_measured()


def test_an_interface_that_goes_and_comes_again(watched: Watched) -> None:
    lab = watched.meter.lab
    delete(lab)
    assert watched.look() == [
        f"interface {INTERFACE} is gone: nothing is measured on it until it comes again"
    ]
    assert watched.look(after_s=GONE_S) == []
    assert watched.gap() is Gap.GONE
    assert watched.unmeasured_s() == {Gap.GONE: GONE_S}
    make(lab)
    assert watched.look(after_s=0.5) == [
        f"interface {INTERFACE} is there again, and is measured; it was not for 3.5 s"
    ]
    assert (watched.gap(), watched.unmeasured_s()) == (None, {Gap.GONE: GONE_S + 0.5})
    assert watched.look() == []
    watched.assert_measured()
    (on,) = watched.watcher.measured().values()
    assert on.ifindex == index(lab)


def test_it_need_not_look_closely_to_see_that_one_is_gone(watched: Watched) -> None:
    """While nothing is gone it looks closely once a second only."""
    lab = watched.meter.lab
    delete(lab)
    assert "is gone" in "".join(watched.look(after_s=0.25))
    make(lab)
    assert "and is measured" in "".join(watched.look(after_s=0.25))
    delete(lab)
    make(lab)
    assert "and is measured" in "".join(watched.look(after_s=0.25))
    watched.assert_measured()


@pytest.mark.parametrize("same_index", [False, True])
def test_one_that_was_made_again_between_two_looks(watched: Watched, same_index: bool) -> None:
    lab = watched.meter.lab
    before = index(lab)
    delete(lab)
    make(lab, *(("index", str(before)) if same_index else ()))
    assert (index(lab) == before) is same_index
    (said,) = watched.look()
    assert said.startswith(f"interface {INTERFACE} ")
    assert "and is measured" in said
    assert watched.gap() is None
    assert watched.look() == []
    watched.assert_measured()


def test_xdp_comes_again_with_it(_meter: Meter, caplog: pytest.LogCaptureFixture) -> None:
    with watching(_meter, caplog, xdp=Xdp.ON) as watched:
        delete(_meter.lab)
        make(_meter.lab)
        (said,) = watched.look()
        assert "absent" not in said
        assert f"XDP native on {INTERFACE}" in watched.attachments.description
        watched.assert_measured()
    _meter.end()


def test_xdp_that_is_somebody_elses_by_then(
    _meter: Meter, stranger: Strangers, caplog: pytest.LogCaptureFixture
) -> None:
    """It was insisted upon, but to measure without it is better than not at all."""
    with watching(_meter, caplog, xdp=Xdp.ON) as watched:
        delete(_meter.lab)
        make(_meter.lab)
        with stranger.attached(_meter.lab, "pass_xdp", "server", libbpf.BPF_XDP):
            (said,) = watched.look()
            assert "it has an XDP program already" in said
            watched.assert_measured()
    _meter.end()


def test_one_that_is_renamed_stays_measured(watched: Watched) -> None:
    lab = watched.meter.lab
    rename(lab, INTERFACE, "other0")
    assert watched.look() == [f"interface {INTERFACE} is called other0 now, and measured"]
    assert watched.look() == []
    assert watched.gap() is None
    watched.assert_measured()
    rename(lab, "other0", INTERFACE)
    assert watched.look() == [f"interface other0 is called {INTERFACE} now, and measured"]


def test_one_that_takes_the_name_of_one_that_was_renamed(watched: Watched) -> None:
    """Both are measured: it is not known which of them was meant."""
    lab = watched.meter.lab
    rename(lab, INTERFACE, "other0")
    run("ip", "-n", lab.server_netns.name, "link", "add", INTERFACE, "type", "bridge")
    assert watched.look()[0] == f"interface {INTERFACE} is called other0 now, and measured"
    assert len(watched.watcher.measured()) == 2
    watched.assert_measured()
    delete(lab)
    assert watched.look() == []
    assert watched.gap() is None
    ip(lab, "link", "del", "other0")
    (said,) = watched.look()
    assert "is gone" in said
    make(lab)
    watched.look()
    watched.assert_measured()


def test_one_that_moves_to_another_namespace(watched: Watched) -> None:
    """There it is somebody else's, and not measured any more."""
    lab = watched.meter.lab
    ip(lab, "link", "set", INTERFACE, "netns", lab.client_netns.name)
    (said,) = watched.look()
    assert "is gone" in said
    assert watched.gap() is Gap.GONE
    if HAS_TCX:
        assert line_of(lab, INTERFACE, libbpf.BPF_TCX_INGRESS, "client") == []
    run("ip", "-n", lab.client_netns.name, "link", "del", INTERFACE)
    make(lab)
    watched.look()
    watched.assert_measured()


def test_one_without_ethernet_is_not_measured_and_that_is_said_once(watched: Watched) -> None:
    lab = watched.meter.lab
    delete(lab)
    ip(lab, "tuntap", "add", "dev", INTERFACE, "mode", "tun")
    (said,) = watched.look()
    assert said.startswith(f"interface {INTERFACE} is there again, and is not measured: ")
    assert "no Ethernet header" in said
    assert watched.look() == []
    assert watched.gap() is Gap.REFUSED
    delete(lab)
    (said,) = watched.look()
    assert "is gone" in said
    make(lab)
    watched.look()
    assert watched.gap() is None
    assert watched.unmeasured_s() == {Gap.REFUSED: 2.0, Gap.GONE: 1.0}
    watched.assert_measured()


def test_one_of_two(_meter: Meter, caplog: pytest.LogCaptureFixture) -> None:
    with watching(_meter, caplog, INTERFACE, "lo") as watched:
        delete(_meter.lab)
        watched.look()
        coverage = watched.watcher.coverage(watched.now_s)
        assert {name: each.gap for name, each in coverage.items()} == {
            INTERFACE: Gap.GONE, "lo": None,
        }  # fmt: skip
        assert not watched.watcher.is_whole
        make(_meter.lab)
        watched.look()
        assert watched.watcher.is_whole
    _meter.end()


@contextlib.contextmanager
def ending(caplog: pytest.LogCaptureFixture) -> Iterator[tuple[Lab, Watched]]:
    """One whose namespace may end."""
    with (
        laboratory() as lab,
        contextlib.closing(load(lab)) as meter,
        watching(meter, caplog) as watched,
    ):
        yield lab, watched


def wait_for_the_end(lab: Lab) -> None:
    """With a namespace's last interface the veth's other end goes."""
    links = ("ip", "-n", lab.client_netns.name, "-o", "link")
    wait_until(lambda: CLIENT_INTERFACE not in run(*links), "the namespace has ended")


def test_a_namespace_that_ends(caplog: pytest.LogCaptureFixture) -> None:
    """And nothing of otelbpf's keeps it alive."""
    with ending(caplog) as (lab, watched):
        run("ip", "netns", "del", lab.server_netns.name)
        wait_for_the_end(lab)
        (said,) = watched.look()
        assert "has ended" in said
        assert watched.look() == []
        assert watched.gap() is Gap.NAMESPACE_GONE


@needs_tcx
def test_a_namespace_that_loses_its_name(caplog: pytest.LogCaptureFixture) -> None:
    """As long as somebody is in there, all goes on."""
    with ending(caplog) as (lab, watched):
        pair = lab.connect()
        run("ip", "netns", "del", lab.server_netns.name)
        (said,) = watched.look()
        assert "has lost its name" in said
        assert watched.gap() is None
        pair.exchange(request(), OK)
        assert flags(watched.meter.record()) == WHOLE
        assert watched.look() == []
        pair.close()
        lab.listener(SERVER_IPV4).close()
        wait_for_the_end(lab)
        (said,) = watched.look()
        assert "has ended" in said
        assert watched.gap() is Gap.NAMESPACE_GONE


def test_another_namespace_of_the_same_name(caplog: pytest.LogCaptureFixture) -> None:
    """It is not the one that is measured."""
    with ending(caplog) as (lab, watched):
        name, cookie = lab.server_netns.name, lab.server_netns.cookie
        run("ip", "netns", "del", name)
        wait_for_the_end(lab)
        run("ip", "netns", "add", name)
        make(lab)
        assert find_netns(name).cookie != cookie
        (said,) = watched.look()
        assert "has ended" in said
        assert "start otelbpf again" in said
        assert watched.gap() is Gap.NAMESPACE_GONE


@needs_tcx
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_it_goes_before_who_comes_before_it(
    watched: Watched, stranger: Strangers, direction: str
) -> None:
    """Once for each program; nobody's program is touched."""
    lab = watched.meter.lab
    kind = getattr(libbpf, f"BPF_TCX_{direction.upper()}")
    ours = bpf_info.program_info(watched.meter.programs.fd(f"tc_{direction}")).id
    theirs = stranger.id("settle")
    name = f"program settle (id {theirs})"
    with stranger.attached(lab, "settle", "server", kind, first=True):
        assert watched.look() == [
            f"{name} came before otelbpf at TC {direction} of {INTERFACE}, which is first again"
        ]
        assert line_of(lab, INTERFACE, kind) == [ours, theirs]
        assert watched.look() == []
        watched.assert_measured()
    with stranger.attached(lab, "settle", "server", kind, first=True):
        assert watched.look() == [
            f"{name} is before otelbpf at TC {direction} of {INTERFACE}: what it keeps is missed"
        ]
        assert watched.look() == []
        assert line_of(lab, INTERFACE, kind) == [theirs, ours]
        (on,) = watched.watcher.measured().values()
        assert list(map(str, watched.watcher.strangers(on, direction))) == [name]
        watched.watcher.blame_strangers(on, watched.now_s)
        assert watched.gap() is Gap.BEHIND
    assert watched.look() == [f"interface {INTERFACE} is measured again"]
    assert (watched.gap(), watched.unmeasured_s()) == (None, {Gap.BEHIND: 1.0})
    watched.assert_measured()


@pytest.mark.skipif(HAS_TCX, reason="this kernel has tcx links, which come before all filters")
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_it_says_who_is_before_it(watched: Watched, stranger: Strangers, direction: str) -> None:
    kind = getattr(libbpf, f"BPF_TCX_{direction.upper()}")
    with stranger.attached(watched.meter.lab, "settle", "server", kind, first=True):
        assert watched.look() == [
            f"filter stranger (preference 1) is before otelbpf at TC {direction} of {INTERFACE}: "
            "what it keeps is missed"
        ]
        assert watched.look() == []
        (on,) = watched.watcher.measured().values()
        watched.watcher.blame_strangers(on, watched.now_s)
        assert watched.gap() is Gap.BEHIND
    assert watched.look() == [f"interface {INTERFACE} is measured again"]
    watched.assert_measured()


def test_whoever_comes_after_it_is_nobodys_business(watched: Watched, stranger: Strangers) -> None:
    kind = libbpf.BPF_TCX_INGRESS
    with stranger.attached(watched.meter.lab, "settle", "server", kind):
        assert watched.look() == []


@needs_tcx
def test_another_agent_is_left_where_it_is(watched: Watched) -> None:
    """Both hand on, so neither has to be the first: they would change places forever."""
    lab = watched.meter.lab
    kind = libbpf.BPF_TCX_INGRESS
    command = [sys.executable, "-c", _OTHER_AGENT, lab.server_netns.name, INTERFACE]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "attached\n"
        line = line_of(lab, INTERFACE, kind)
        assert len(line) == 2
        assert watched.look() == []
        assert line_of(lab, INTERFACE, kind) == line
        watched.assert_measured()
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()


@needs_tcx
def test_somebody_who_always_answers_has_the_last_word(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time a new program: it gives up, and says so."""
    monkeypatch.setattr("otelbpf.agent.watch._MOVES_MOST", 3)
    lab = watched.meter.lab
    said = []
    with contextlib.ExitStack() as stack:
        for number in range(5):
            fd = libbpf.load_program(
                f"again{number}", libbpf.RETURN_0, libbpf.BPF_PROG_TYPE_SCHED_CLS
            )
            stack.callback(lambda fd=fd: os.close(fd))
            link = lab.server_netns.run(
                lambda fd=fd: libbpf.link_create(
                    fd, index(lab), libbpf.BPF_TCX_INGRESS, libbpf.BPF_F_BEFORE
                )
            )
            stack.callback(lambda link=link: os.close(link))
            said += watched.look()
    assert ["first again" in each for each in said] == [True] * 3 + [False] * 2
    assert "what it keeps is missed" in said[-1]


@needs_tcx
def test_programs_that_are_taken_off_are_attached_again(watched: Watched) -> None:
    """By force, as `bpftool link detach` does it."""
    (on,) = watched.watcher.measured().values()
    (link,) = on.lines["ingress"]._links
    assert ctypes.CDLL("libbpf.so.1").bpf_link_detach(link) == 0
    (said,) = watched.look()
    assert said == f"interface {INTERFACE} had lost otelbpf's programs, and is measured"
    assert watched.gap() is None
    watched.assert_measured()


@pytest.mark.skipif(HAS_TCX, reason="this kernel has tcx links, and needs no filters")
def test_filters_that_are_taken_off_are_attached_again(watched: Watched) -> None:
    enter = ("nsenter", f"--net={watched.meter.netns.path}")
    run(*enter, "tc", "qdisc", "del", "dev", INTERFACE, "clsact")
    (said,) = watched.look()
    assert said == f"interface {INTERFACE} had lost otelbpf's programs, and is measured"
    watched.assert_measured()


@needs_tcx
def test_somebody_who_takes_them_off_time_and_again_has_the_last_word(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otelbpf.agent.watch._MOVES_MOST", 2)
    for times in range(3):
        (on,) = watched.watcher.measured().values()
        (link,) = on.lines["egress"]._links
        assert ctypes.CDLL("libbpf.so.1").bpf_link_detach(link) == 0
        (said,) = watched.look()
        assert ("and is measured" in said) is (times < 2)
    assert said == f"somebody takes otelbpf's programs off TC egress of {INTERFACE} time and again"
    assert watched.look() == []
    assert watched.gap() is Gap.REFUSED
    delete(watched.meter.lab)
    make(watched.meter.lab)
    (said,) = watched.look()
    assert "and is measured" in said
