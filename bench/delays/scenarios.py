# SPDX-License-Identifier: Apache-2.0
"""What is injected, where, and what must come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from delays.actor import Step
from otelbpf.report.stamps import Owner, ends_of
from otelbpf.request import Kind

_MESSAGE_BYTES = 400
#: By which a window is soon closed, and what does not fit into it.
_SMALL_BUFFER = 16_384
_LARGE_BYTES = 60_000


class End(StrEnum):
    """Whose step it is: the measured process's, or that of the other end."""

    SUBJECT = "subject"
    PEER = "peer"


class Moment(NamedTuple):
    """When an end began a step, or was done with it."""

    end: End
    step: Step
    after: bool


@dataclass(frozen=True)
class Scenario:
    """A delay at one known place of a request's way.

    Attributes:
        name: of its requests' path.
        what: for the reader.
        kind: of the measured process: it serves the requests, or sends them.
        subject, peer: the steps of the measured process and of the other end.
        begins, ends: what the injected delay lies between, by those who inject it.
        stage: which has to have it, as it is called where XDP stamps, too; empty: it comes after the
            request, in otelbpf.tcp.ack.duration_ns.
        owner: whose it is; None: nobody's of the request's.
        most_ns: a longer delay would not be what was injected; 0: any may be.
    """

    name: str
    what: str
    kind: Kind
    subject: tuple[Step, ...]
    peer: tuple[Step, ...]
    begins: Moment
    ends: Moment
    stage: str
    owner: Owner | None
    request_bytes: int = _MESSAGE_BYTES
    response_bytes: int = _MESSAGE_BYTES
    peer_receive_buffer: int = 0
    most_ns: int = 0

    def stage_name(self, *, xdp: bool) -> str:
        """The stage's name; without XDP the first that is seen of a packet is traffic control."""
        return self.stage if xdp else self.stage.replace("nic", "tc")

    def bounds(self, *, xdp: bool) -> tuple[str, str]:
        """The names of the stage's two stamps."""
        return ends_of(self.stage_name(xdp=xdp))

    def injected_ns(
        self, taken: Mapping[End, Mapping[Step, list[tuple[int, int]]]], number: int
    ) -> int:
        """How long the delay of a request was, by what the two ends said of their steps."""
        begin, end = (taken[m.end][m.step][number][m.after] for m in (self.begins, self.ends))
        return end - begin


def _before(end: End, step: Step) -> Moment:
    return Moment(end, step, after=False)


def _after(end: End, step: Step) -> Moment:
    return Moment(end, step, after=True)


_S, _P = End.SUBJECT, End.PEER

SCENARIOS = (
    Scenario(
        "late-read", "the server is busy: it does not read what waits on its socket", Kind.SERVER,
        subject=(Step.AWAIT_WHOLE, Step.SLEEP, Step.READ, Step.WRITE),
        peer=(Step.WRITE, Step.READ),
        begins=_after(_P, Step.WRITE), ends=_before(_S, Step.READ),
        stage="queued_to_read", owner=Owner.WAITING,
    ),
    Scenario(
        "hog", "a hog has the server's processor when it is woken", Kind.SERVER,
        subject=(Step.READ, Step.WRITE),
        peer=(Step.UNTIL_IT_READS, Step.HOG, Step.WRITE, Step.SLEEP, Step.RELEASE, Step.READ),
        begins=_after(_P, Step.WRITE), ends=_after(_P, Step.RELEASE),
        stage="woken_to_running", owner=Owner.WAITING,
    ),
    Scenario(
        "stopped", "the server is stopped by SIGSTOP", Kind.SERVER,
        subject=(Step.READ, Step.WRITE),
        peer=(Step.UNTIL_IT_READS, Step.STOP, Step.WRITE, Step.SLEEP, Step.CONTINUE, Step.READ),
        begins=_after(_P, Step.WRITE), ends=_after(_S, Step.READ),
        stage="queued_to_read", owner=Owner.WAITING,
    ),
    Scenario(
        "handler", "the handler sleeps", Kind.SERVER,
        subject=(Step.READ, Step.SLEEP, Step.WRITE),
        peer=(Step.WRITE, Step.READ),
        begins=_after(_S, Step.READ), ends=_before(_S, Step.WRITE),
        stage="read_to_write", owner=Owner.APPLICATION,
    ),
    Scenario(
        "slow-writer", "the server pauses within its response", Kind.SERVER,
        subject=(Step.READ, Step.WRITE_HALF, Step.SLEEP, Step.WRITE_REST),
        peer=(Step.WRITE, Step.READ),
        begins=_after(_S, Step.WRITE_HALF), ends=_before(_S, Step.WRITE_REST),
        stage="tc_out_to_write_last", owner=Owner.APPLICATION,
    ),
    Scenario(
        "closed-window", "the client does not read: its window closes", Kind.SERVER,
        subject=(Step.READ, Step.WRITE),
        peer=(Step.WRITE, Step.SLEEP, Step.READ_SOME, Step.READ),
        begins=_before(_S, Step.WRITE), ends=_after(_P, Step.READ_SOME),
        stage="tc_out_to_tc_out_last", owner=Owner.PEER,
        response_bytes=_LARGE_BYTES, peer_receive_buffer=_SMALL_BUFFER,
    ),
    Scenario(
        "late-rest", "the client pauses within its request", Kind.SERVER,
        subject=(Step.READ_SOME, Step.READ, Step.WRITE),
        peer=(Step.WRITE_HALF, Step.SLEEP, Step.WRITE_REST, Step.READ),
        begins=_after(_S, Step.READ_SOME), ends=_before(_P, Step.WRITE_REST),
        stage="read_to_nic_last", owner=Owner.PEER,
    ),
    Scenario(
        "late-ack", "the client delays its acknowledgement", Kind.SERVER,
        subject=(Step.READ, Step.WRITE),
        peer=(Step.DELAY_ACKS, Step.WRITE, Step.READ, Step.SLEEP, Step.ACK),
        begins=_after(_S, Step.WRITE), ends=_before(_P, Step.ACK),
        stage="", owner=None,
        # Later, TCP acknowledges by itself.
        most_ns=30_000_000,
    ),
    Scenario(
        "slow-upstream", "the upstream sleeps before it answers", Kind.CLIENT,
        subject=(Step.WRITE, Step.READ),
        peer=(Step.READ, Step.SLEEP, Step.WRITE),
        begins=_after(_S, Step.WRITE), ends=_before(_P, Step.WRITE),
        stage="tc_out_to_nic", owner=Owner.PEER,
    ),
    Scenario(
        "upstream-late-rest", "the upstream pauses within its response", Kind.CLIENT,
        subject=(Step.WRITE, Step.READ_SOME, Step.READ),
        peer=(Step.READ, Step.WRITE_HALF, Step.SLEEP, Step.WRITE_REST),
        begins=_after(_S, Step.READ_SOME), ends=_before(_P, Step.WRITE_REST),
        stage="read_to_nic_last", owner=Owner.PEER,
    ),
    Scenario(
        "client-late-read", "the client is busy: it does not read what waits on its socket",
        Kind.CLIENT,
        subject=(Step.WRITE, Step.AWAIT_WHOLE, Step.SLEEP, Step.READ),
        peer=(Step.READ, Step.WRITE),
        begins=_after(_P, Step.WRITE), ends=_before(_S, Step.READ),
        stage="queued_to_read", owner=Owner.WAITING,
    ),
    Scenario(
        "client-slow-writer", "the client pauses within its request", Kind.CLIENT,
        subject=(Step.WRITE_HALF, Step.SLEEP, Step.WRITE_REST, Step.READ),
        peer=(Step.READ, Step.WRITE),
        begins=_after(_S, Step.WRITE_HALF), ends=_before(_S, Step.WRITE_REST),
        stage="tc_out_to_write_last", owner=Owner.APPLICATION,
    ),
    Scenario(
        "upstream-closed-window", "the upstream does not read: its window closes", Kind.CLIENT,
        subject=(Step.WRITE, Step.READ),
        peer=(Step.AWAIT_FIRST, Step.SLEEP, Step.READ_SOME, Step.READ, Step.WRITE),
        begins=_before(_S, Step.WRITE), ends=_after(_P, Step.READ_SOME),
        stage="tc_out_to_tc_out_last", owner=Owner.PEER,
        request_bytes=_LARGE_BYTES, peer_receive_buffer=_SMALL_BUFFER,
    ),
    Scenario(
        "client-hog", "a hog has the client's processor when it is woken", Kind.CLIENT,
        subject=(Step.WRITE, Step.READ),
        peer=(Step.READ, Step.UNTIL_IT_READS, Step.HOG, Step.WRITE, Step.SLEEP, Step.RELEASE),
        begins=_after(_P, Step.WRITE), ends=_after(_P, Step.RELEASE),
        stage="woken_to_running", owner=Owner.WAITING,
    ),
    Scenario(
        "client-stopped", "the client is stopped by SIGSTOP", Kind.CLIENT,
        subject=(Step.WRITE, Step.READ),
        peer=(Step.READ, Step.UNTIL_IT_READS, Step.STOP, Step.WRITE, Step.SLEEP, Step.CONTINUE),
        begins=_after(_P, Step.WRITE), ends=_after(_S, Step.READ),
        stage="queued_to_read", owner=Owner.WAITING,
    ),
)  # fmt: skip
