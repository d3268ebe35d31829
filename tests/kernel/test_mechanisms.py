# SPDX-License-Identifier: Apache-2.0
"""The same 23 requests give the same ledgers, however the programs are attached."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from lab import (
    INTERFACE,
    PORT,
    SERVER_IPV4,
    SERVER_IPV6,
    SPARE_PORT,
    Lab,
    Pair,
    Worker,
    laboratory,
    receive,
)
from messages import CHUNKED, OK, chunk, request, response
from meter import SMALL, Meter, stamps, told_stages

from otelbpf.agent.settings import settings
from otelbpf.host.interfaces import find_interfaces
from otelbpf.kernel import libbpf
from otelbpf.kernel.attach import Attachments, attached
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.hooks import FORCEABLE, Candidate, Choice, Mechanism, Verdict, choose
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.loaders import Loader
from otelbpf.kernel.records import Stamp

pytestmark = pytest.mark.guest

ASKED = request("POST", "/mechanism", body=b"0123456789")

AWAKE = (
    Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.QUEUED, Stamp.READ,
    Stamp.WRITE, Stamp.TC_OUT, Stamp.ACKED,
)  # fmt: skip
WOKEN = (*AWAKE[:4], Stamp.WOKEN, Stamp.RUNNING, *AWAKE[4:])
READ_IN_PIECES = (*AWAKE[:5], Stamp.NIC_LAST, Stamp.TC_LAST, Stamp.READ_LAST, *AWAKE[5:])
WRITTEN_IN_PIECES = (*AWAKE[:-1], Stamp.WRITE_LAST, Stamp.TC_OUT_LAST, Stamp.ACKED)
# What differs from one time to the next, whatever is attached.
VARYING = {
    "stamp_ktime_ns", "connection_id", "peer_port", "tid",
    "request_retransmits", "response_retransmits",
}  # fmt: skip


def sleeping_reader(lab: Lab, host: str, count: int) -> None:
    pair = lab.connect(host)

    def serve() -> None:
        for _ in range(count):
            assert receive(pair.server, len(ASKED)) == ASKED
            pair.server.sendall(OK)

    with Worker(serve) as worker:
        for _ in range(count):
            worker.wait_until_blocked_in("recv")
            pair.client.sendall(ASKED)
            assert receive(pair.client, len(OK)) == OK


def asleep(lab: Lab) -> None:
    sleeping_reader(lab, SERVER_IPV4, 4)


def asleep_on_ipv6(lab: Lab) -> None:
    sleeping_reader(lab, SERVER_IPV6, 2)


def ask_awake(pair: Pair, *segments: bytes) -> None:
    """The reader takes each segment when it is queued already."""
    for segment in segments:
        pair.send_segment(segment)
        assert receive(pair.server, len(segment)) == segment


def awake(lab: Lab) -> None:
    pair = lab.connect()
    for _ in range(3):
        ask_awake(pair, ASKED)
        pair.answer(OK)


def body_in_segments(lab: Lab) -> None:
    pair = lab.connect()
    for _ in range(2):
        ask_awake(pair, ASKED[:-6], ASKED[-6:-2], ASKED[-2:])
        pair.answer(OK)


def pipelined(lab: Lab) -> None:
    pair = lab.connect()
    ask_awake(pair, 2 * ASKED)
    pair.answer(2 * OK)


def chunked(lab: Lab) -> None:
    pair = lab.connect()
    for _ in range(2):
        ask_awake(pair, ASKED)
        pair.answer(response(headers=CHUNKED) + chunk(b"one"))
        pair.answer(chunk(b"two"))
        pair.answer(b"0\r\n\r\n")


def sendfile(lab: Lab) -> None:
    """The whole response, and then the content of another one.

    Less than a page: before 6.5 each page is a write of its own.
    """
    pair = lab.connect()
    whole = response(body=bytes(1000))
    for before in (0, len(whole) - 1000):
        ask_awake(pair, ASKED)
        if before:
            pair.answer(whole[:before])
        with tempfile.TemporaryFile() as file:
            file.write(whole)
            file.flush()
            left = len(whole) - before
            assert os.sendfile(pair.server.fileno(), file.fileno(), before, left) == left
        assert receive(pair.client, left) == whole[before:]


def splice(sock: int, size: int) -> None:
    reading, writing = os.pipe()
    try:
        assert os.splice(sock, writing, size) == size
    finally:
        os.close(reading)
        os.close(writing)


def other_reads(lab: Lab) -> None:
    pair = lab.connect()
    sock = pair.server
    for read in (
        lambda: splice(sock.fileno(), len(ASKED)),
        lambda: sock.recvmsg(len(ASKED)),
        lambda: os.readv(sock.fileno(), [bytearray(20), bytearray(len(ASKED))]),
    ):
        pair.send_segment(ASKED)
        read()
        pair.answer(OK)


def head(lab: Lab) -> None:
    asked = request("HEAD", "/mechanism")
    pair = lab.connect()
    ask_awake(pair, asked)
    pair.answer(response(headers={"Content-Length": "1000"}))


def until_close(lab: Lab) -> None:
    pair = lab.connect()
    ask_awake(pair, ASKED)
    pair.answer(response(headers={"Connection": "close"}) + b"until the end")
    pair.server.close()
    assert pair.client.recv(1) == b""


def connection_close(lab: Lab) -> None:
    asked = request(headers={"Connection": "close"})
    pair = lab.connect()
    ask_awake(pair, asked)
    pair.answer(OK)
    pair.server.close()
    assert pair.client.recv(1) == b""


#: What is played, and the ledgers that it leaves, in the order in which the requests end.
SCENES: dict[Callable[[Lab], None], tuple[tuple[Stamp, ...], ...]] = {
    asleep: 4 * (WOKEN,),
    asleep_on_ipv6: 2 * (WOKEN,),
    awake: 3 * (AWAKE,),
    body_in_segments: 2 * (READ_IN_PIECES,),
    pipelined: 2 * (AWAKE,),
    chunked: 2 * (WRITTEN_IN_PIECES,),
    sendfile: (AWAKE, WRITTEN_IN_PIECES),
    other_reads: 3 * (AWAKE,),
    head: (AWAKE,),
    # The FIN is such a response's last byte.
    until_close: (WRITTEN_IN_PIECES,),
    connection_close: (AWAKE,),
}
LEDGERS = tuple((play.__name__, ledger) for play, all_ in SCENES.items() for ledger in all_)
assert len(LEDGERS) == 23


# A candidate that looks good and is none: what it is put before, and how that comes out.
REFUSED = Candidate(Mechanism.TRACEPOINT, "softirq_raise", "traced_tcp")
SILENT = Candidate(Mechanism.TRACEPOINT, "tcp_retransmit_synack", "traced_queued")
UNATTACHABLE = Candidate(Mechanism.KPROBE, "otelbpf_has_no_such_function", "probed_write")


def absent(choices: tuple[Choice, ...]) -> set[Stamp]:
    """The stamps that no chosen candidate gives."""
    given = {stamp for choice in choices if choice.chosen for stamp in choice.hook.stamps}
    missing = {stamp for stamp in Stamp if stamp.name.lower() not in given}
    # A wake-up is stamped where it is known for which bytes it was: at their queueing.
    return missing | ({Stamp.WOKEN, Stamp.RUNNING} if Stamp.QUEUED in missing else set())


def names(ledger: Iterable[Stamp]) -> str:
    return " ".join(stamp.name.lower() for stamp in ledger)


@dataclass(frozen=True)
class Played:
    """The 23 requests, as one mechanism saw them.

    Attributes:
        mechanism: None: the best for each hook.
        attached: what was attached where.
        told_absent: which stamps were said to be absent, and why.
    """

    mechanism: Mechanism | None
    choices: tuple[Choice, ...]
    attached: list[str]
    told_absent: list[str]
    records: np.ndarray


class Theatre:
    """Programs loaded once, and what was played with them."""

    def __init__(self, lab: Lab, loader: Loader) -> None:
        with Btf.of_kernel() as btf:
            self.choices = choose(btf)
            look_good = tuple(
                Choice(self.choices[0].hook, (Verdict(candidate, True, ""),))
                for candidate in (REFUSED, SILENT)
            )
            programs = Programs(
                btf, self.choices + look_good, SMALL,
                settings(lab.server_netns.cookie, (PORT, SPARE_PORT)), loader,
            )  # fmt: skip
        self.meter = Meter(lab, self.choices, programs)
        self.meter.let_another_process_be_the_agent()
        self._played: dict[Mechanism | None, Played] = {}

    def played(self, mechanism: Mechanism | None) -> Played:
        """The 23 requests by one mechanism; played when first asked for."""
        if mechanism not in self._played:
            self._played[mechanism] = self._play(mechanism)
        return self._played[mechanism]

    def _play(self, mechanism: Mechanism | None) -> Played:
        choices = self.choices
        if mechanism is not None:
            choices = tuple(choice.only(mechanism) for choice in choices)
        records = []
        with self.attached(choices) as attachments:
            for play, ledgers in SCENES.items():
                play(self.meter.lab)
                records.append(self.meter.records(len(ledgers)))
                self.meter.lab.close_connections()
            assert self.meter.losses() == {}
            assert not any(attachments.missed().values())
            return Played(
                mechanism,
                choices,
                attachments.description,
                attachments.absent,
                np.concatenate(records),
            )

    @contextlib.contextmanager
    def attached(self, choices: tuple[Choice, ...]) -> Iterator[Attachments]:
        meter = self.meter
        netns = meter.lab.server_netns
        interfaces = find_interfaces((INTERFACE,), netns)
        with attached(meter.programs, choices, interfaces, netns) as attachments:
            meter.begin()
            yield attachments
            meter.end()


@pytest.fixture(scope="module", params=(Loader.OBJECT, Loader.BCC))
def theatre(request: pytest.FixtureRequest) -> Iterator[Theatre]:
    with laboratory() as lab:
        theatre = Theatre(lab, request.param)
        try:
            yield theatre
        finally:
            theatre.meter.close()


@pytest.fixture(scope="module", params=(None, *FORCEABLE), ids=lambda it: it or "auto")
def played(request: pytest.FixtureRequest, theatre: Theatre) -> Played:
    return theatre.played(request.param)


def test_each_request_has_its_stamps_in_their_order(played: Played) -> None:
    missing = absent(played.choices)
    for record, (scene, ledger) in zip(played.records, LEDGERS, strict=True):
        at = stamps(record)
        in_order = sorted(at, key=lambda stamp: (at[stamp], stamp))
        expected = [stamp for stamp in ledger if stamp not in missing]
        assert names(in_order) == names(expected), scene


def test_the_stages_tile_each_request_to_the_nanosecond(played: Played) -> None:
    for record, (_, ledger) in zip(played.records, LEDGERS, strict=True):
        at = stamps(record)
        # The acknowledgement comes after the request's end.
        order = [stamp for stamp in ledger if stamp in at and stamp is not Stamp.ACKED]
        stages = told_stages(record)
        assert [stage.name for stage in stages] == [
            f"{one.name}_to_{other.name}".lower() for one, other in itertools.pairwise(order)
        ]
        lengths = [stage.end_ktime_ns - stage.start_ktime_ns for stage in stages]
        assert min(lengths) >= 0
        assert sum(lengths) == at[order[-1]] - at[order[0]]


def test_all_else_in_a_record_is_the_same_by_every_mechanism(
    theatre: Theatre, played: Played
) -> None:
    best = theatre.played(None).records
    nobody_seen_reading = {"pid", "process"} if Stamp.READ in absent(played.choices) else set()
    for name in set(best.dtype.names) - VARYING - nobody_seen_reading:
        assert played.records[name].tolist() == best[name].tolist(), name


def test_what_is_left_to_itself_leaves_no_stamp_out(theatre: Theatre) -> None:
    assert absent(theatre.played(None).choices) == set()


@pytest.mark.parametrize("played", FORCEABLE, indirect=True)
def test_what_is_forced_is_attached_wherever_it_is_there(played: Played) -> None:
    for choice in played.choices:
        if not choice.hook.can_be_forced:
            continue
        own = [v for v in choice.verdicts if v.candidate.mechanism is played.mechanism]
        there = [v.candidate for v in own if v.available]
        assert choice.chosen == (there[0] if there else None)
        used = {str(v.candidate) for v in choice.verdicts} & set(played.attached)
        assert used == {str(candidate) for candidate in there}
        for verdict in choice.verdicts:
            if not verdict.available:
                assert verdict.reason
                forced = f"only {played.mechanism} was asked for"
                assert verdict.reason != forced or verdict not in own


def test_what_is_absent_is_told_with_every_reason(played: Played) -> None:
    nothing_for = [
        choice
        for choice in played.choices
        if choice.chosen is None and not choice.hook.not_everywhere
    ]
    for choice, told in zip(nothing_for, played.told_absent, strict=True):
        assert told == f"{', '.join(choice.hook.stamps)}: " + "; ".join(
            f"{verdict.candidate}: {verdict.reason}" for verdict in choice.verdicts
        )


def put_first(choices: tuple[Choice, ...], hook: str, candidate: Candidate) -> tuple[Choice, ...]:
    ahead = Verdict(candidate, True, "it looks good")
    return tuple(
        replace(choice, verdicts=(ahead, *choice.verdicts)) if choice.hook.name == hook else choice
        for choice in choices
    )


@pytest.mark.parametrize(
    ("hook", "candidate", "reason"),
    [
        ("tcp", REFUSED, "the kernel refused program traced_tcp for softirq_raise"),
        ("queued", SILENT, "it was attached, but an exchange over TCP did not pass it"),
        ("write", UNATTACHABLE, "the kernel would not attach it"),
    ],
    ids=["refused", "silent", "unattachable"],
)
def test_where_a_candidate_fails_the_next_one_is_used(
    theatre: Theatre,
    hook: str,
    candidate: Candidate,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if candidate.mechanism is Mechanism.KPROBE and not libbpf.KPROBE_EVENTS.exists():
        pytest.skip("this kernel has no kprobes (CONFIG_KPROBE_EVENTS)")
    # Where the verifier's log goes.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    choices = put_first(theatre.choices, hook, candidate)
    (next_best,) = (choice.chosen for choice in theatre.choices if choice.hook.name == hook)
    with theatre.attached(choices) as attachments:
        (fallback,) = attachments.fallbacks
        assert fallback.startswith(f"{hook}: {candidate}: {reason}")
        assert str(candidate) not in attachments.description
        assert str(next_best) in attachments.description
        asleep(theatre.meter.lab)
        for record in theatre.meter.records(4):
            assert tuple(stamps(record)) == WOKEN


def test_where_every_candidate_fails_the_stamp_is_absent(theatre: Theatre) -> None:
    choices = tuple(
        replace(choice, verdicts=(Verdict(SILENT, True, "it looks good"),))
        if choice.hook.name == "queued"
        else choice
        for choice in theatre.choices
    )
    with theatre.attached(choices) as attachments:
        assert attachments.absent == [
            f"queued: {SILENT}: it was attached, but an exchange over TCP did not pass it"
        ]
        assert str(SILENT) not in attachments.description
        asleep(theatre.meter.lab)
        for record in theatre.meter.records(4):
            missing = {Stamp.QUEUED, Stamp.WOKEN, Stamp.RUNNING}
            assert tuple(stamps(record)) == tuple(s for s in WOKEN if s not in missing)
