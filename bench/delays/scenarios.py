# SPDX-License-Identifier: Apache-2.0
"""What is injected, where, and what must come of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from delays.actor import Step
from otelbpf.ledger.request import Kind
from otelbpf.ledger.stamps import Owner

_MESSAGE_BYTES = 400
#: By which a window is soon closed, and what does not fit into it, nor into two such buffers.
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
        stages: the one of these that a request has must have it; as they are called where XDP
            stamps, too. None: it comes after the request, in otelbpf.tcp.ack.duration_ns.
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
    stages: tuple[str, ...]
    owner: Owner | None
    request_bytes: int = _MESSAGE_BYTES
    response_bytes: int = _MESSAGE_BYTES
    peer_receive_buffer: int = 0
    subject_send_buffer: int = 0
    most_ns: int = 0

    def stages_with(self, *, xdp: bool) -> tuple[str, ...]:
        """`stages`; without XDP the first that is seen of a packet is traffic control."""
        return tuple(each if xdp else each.replace("nic", "tc") for each in self.stages)

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


# The last write is no other one than the first where the kernel has taken all in one go.
_REST_LEAVES = ("tc_out_to_tc_out_last", "write_last_to_tc_out_last")

_S, _P = End.SUBJECT, End.PEER

SCENARIOS = (
    Scenario(
        "late-read", "the server is busy: it does not read what waits on its socket", Kind.SERVER,
        subject=(Step.AWAIT_WHOLE, Step.SLEEP, Step.READ, Step.WRITE),
        peer=(Step.WRITE, Step.READ),
        begins=_after(_P, Step.WRITE), ends=_before(_S, Step.READ),
        stages=("queued_to_read",), owner=Owner.WAITING,
    ),
    Scenario(
        "woken-late-read", "the server's event loop is woken, and does something else first",
        Kind.SERVER,
        subject=(Step.POLL, Step.SLEEP, Step.READ, Step.WRITE),
        peer=(Step.UNTIL_IT_WAITS, Step.WRITE, Step.READ),
        begins=_after(_S, Step.POLL), ends=_before(_S, Step.READ),
        stages=("running_to_read",), owner=Owner.WAITING,
    ),
    Scenario(
        "hog", "a hog has the server's processor when it is woken", Kind.SERVER,
        subject=(Step.READ, Step.WRITE),
        peer=(Step.UNTIL_IT_WAITS, Step.HOG, Step.WRITE, Step.SLEEP, Step.RELEASE, Step.READ),
        begins=_after(_P, Step.WRITE), ends=_after(_P, Step.RELEASE),
        stages=("woken_to_running",), owner=Owner.WAITING,
    ),
    Scenario(
        "stopped", "the server is stopped by SIGSTOP", Kind.SERVER,
        subject=(Step.READ, Step.WRITE),
        peer=(Step.UNTIL_IT_WAITS, Step.STOP, Step.WRITE, Step.SLEEP, Step.CONTINUE, Step.READ),
        begins=_after(_P, Step.WRITE), ends=_after(_S, Step.READ),
        stages=("queued_to_read",), owner=Owner.WAITING,
    ),
    Scenario(
        "handler", "the handler sleeps", Kind.SERVER,
        subject=(Step.READ, Step.SLEEP, Step.WRITE),
        peer=(Step.WRITE, Step.READ),
        begins=_after(_S, Step.READ), ends=_before(_S, Step.WRITE),
        stages=("read_to_write",), owner=Owner.APPLICATION,
    ),
    Scenario(
        "before-handler", "the server sleeps between its read and the handler", Kind.SERVER,
        subject=(Step.READ, Step.SLEEP, Step.HANDLER_STARTS, Step.HANDLER_ENDS, Step.WRITE),
        peer=(Step.WRITE, Step.READ),
        begins=_after(_S, Step.READ), ends=_before(_S, Step.HANDLER_STARTS),
        stages=("read_to_handler_start",), owner=Owner.APPLICATION,
    ),
    Scenario(
        "in-handler", "the handler sleeps, and the application tells when it starts and ends",
        Kind.SERVER,
        subject=(Step.READ, Step.HANDLER_STARTS, Step.SLEEP, Step.HANDLER_ENDS, Step.WRITE),
        peer=(Step.WRITE, Step.READ),
        begins=_after(_S, Step.HANDLER_STARTS), ends=_before(_S, Step.HANDLER_ENDS),
        stages=("handler_start_to_handler_end",), owner=Owner.APPLICATION,
    ),
    Scenario(
        "after-handler", "the server sleeps between the handler and its write", Kind.SERVER,
        subject=(Step.READ, Step.HANDLER_STARTS, Step.HANDLER_ENDS, Step.SLEEP, Step.WRITE),
        peer=(Step.WRITE, Step.READ),
        begins=_after(_S, Step.HANDLER_ENDS), ends=_before(_S, Step.WRITE),
        stages=("handler_end_to_write",), owner=Owner.APPLICATION,
    ),
    Scenario(
        "cork", "the server's socket holds the response back (TCP_CORK)", Kind.SERVER,
        subject=(Step.READ, Step.CORK, Step.WRITE, Step.SLEEP, Step.UNCORK),
        peer=(Step.WRITE, Step.READ),
        begins=_before(_S, Step.WRITE), ends=_before(_S, Step.UNCORK),
        stages=("write_to_tc_out",), owner=Owner.SEND,
    ),
    Scenario(
        "slow-writer", "the server pauses within its response", Kind.SERVER,
        subject=(Step.READ, Step.WRITE_HALF, Step.SLEEP, Step.WRITE_REST),
        peer=(Step.WRITE, Step.READ),
        begins=_before(_S, Step.WRITE_HALF), ends=_before(_S, Step.WRITE_REST),
        stages=("tc_out_to_write_last",), owner=Owner.APPLICATION,
    ),
    Scenario(
        "closed-window", "the client does not read: its window closes", Kind.SERVER,
        subject=(Step.READ, Step.WRITE),
        peer=(Step.WRITE, Step.SLEEP, Step.READ_SOME, Step.READ),
        begins=_after(_S, Step.WRITE), ends=_after(_P, Step.READ_SOME),
        stages=_REST_LEAVES, owner=Owner.PEER,
        response_bytes=_LARGE_BYTES, peer_receive_buffer=_SMALL_BUFFER,
    ),
    Scenario(
        "full-buffer", "the client does not read: its window closes, and the server's buffer fills",
        Kind.SERVER,
        subject=(Step.READ, Step.WRITE),
        peer=(Step.WRITE, Step.SLEEP, Step.READ_SOME, Step.READ),
        begins=_before(_S, Step.WRITE), ends=_after(_P, Step.READ_SOME),
        stages=("tc_out_to_tc_out_last",), owner=Owner.PEER,
        response_bytes=_LARGE_BYTES, peer_receive_buffer=_SMALL_BUFFER,
        subject_send_buffer=_SMALL_BUFFER,
    ),
    Scenario(
        "late-rest", "the client pauses within its request", Kind.SERVER,
        subject=(Step.READ_SOME, Step.READ, Step.WRITE),
        peer=(Step.WRITE_HALF, Step.SLEEP, Step.WRITE_REST, Step.READ),
        begins=_after(_S, Step.READ_SOME), ends=_before(_P, Step.WRITE_REST),
        stages=("read_to_nic_last",), owner=Owner.PEER,
    ),
    Scenario(
        "late-ack", "the client delays its acknowledgement", Kind.SERVER,
        subject=(Step.READ, Step.WRITE),
        peer=(Step.DELAY_ACKS, Step.WRITE, Step.READ, Step.SLEEP, Step.ACK),
        begins=_before(_S, Step.WRITE), ends=_before(_P, Step.ACK),
        stages=(), owner=None,
        # Later, TCP acknowledges by itself.
        most_ns=30_000_000,
    ),
    Scenario(
        "slow-upstream", "the upstream sleeps before it answers", Kind.CLIENT,
        subject=(Step.WRITE, Step.READ),
        peer=(Step.READ, Step.SLEEP, Step.WRITE),
        begins=_before(_S, Step.WRITE), ends=_before(_P, Step.WRITE),
        stages=("tc_out_to_nic",), owner=Owner.PEER,
    ),
    Scenario(
        "upstream-late-rest", "the upstream pauses within its response", Kind.CLIENT,
        subject=(Step.WRITE, Step.READ_SOME, Step.READ),
        peer=(Step.READ, Step.WRITE_HALF, Step.SLEEP, Step.WRITE_REST),
        begins=_after(_S, Step.READ_SOME), ends=_before(_P, Step.WRITE_REST),
        stages=("read_to_nic_last",), owner=Owner.PEER,
    ),
    Scenario(
        "client-late-read", "the client is busy: it does not read what waits on its socket",
        Kind.CLIENT,
        subject=(Step.WRITE, Step.AWAIT_WHOLE, Step.SLEEP, Step.READ),
        peer=(Step.READ, Step.WRITE),
        begins=_after(_P, Step.WRITE), ends=_before(_S, Step.READ),
        stages=("queued_to_read",), owner=Owner.WAITING,
    ),
    Scenario(
        "client-woken-late-read", "the client's event loop is woken, and does something else first",
        Kind.CLIENT,
        subject=(Step.WRITE, Step.POLL, Step.SLEEP, Step.READ),
        peer=(Step.READ, Step.UNTIL_IT_WAITS, Step.WRITE),
        begins=_after(_S, Step.POLL), ends=_before(_S, Step.READ),
        stages=("running_to_read",), owner=Owner.WAITING,
    ),
    Scenario(
        "client-cork", "the client's socket holds the request back (TCP_CORK)", Kind.CLIENT,
        subject=(Step.CORK, Step.WRITE, Step.SLEEP, Step.UNCORK, Step.READ),
        peer=(Step.READ, Step.WRITE),
        begins=_before(_S, Step.WRITE), ends=_before(_S, Step.UNCORK),
        stages=("write_to_tc_out",), owner=Owner.SEND,
    ),
    Scenario(
        "client-slow-writer", "the client pauses within its request", Kind.CLIENT,
        subject=(Step.WRITE_HALF, Step.SLEEP, Step.WRITE_REST, Step.READ),
        peer=(Step.READ, Step.WRITE),
        begins=_before(_S, Step.WRITE_HALF), ends=_before(_S, Step.WRITE_REST),
        stages=("tc_out_to_write_last",), owner=Owner.APPLICATION,
    ),
    Scenario(
        "upstream-closed-window", "the upstream does not read: its window closes", Kind.CLIENT,
        subject=(Step.WRITE, Step.READ),
        peer=(Step.AWAIT_FIRST, Step.SLEEP, Step.READ_SOME, Step.READ, Step.WRITE),
        begins=_after(_S, Step.WRITE), ends=_after(_P, Step.READ_SOME),
        stages=_REST_LEAVES, owner=Owner.PEER,
        request_bytes=_LARGE_BYTES, peer_receive_buffer=_SMALL_BUFFER,
    ),
    Scenario(
        "client-hog", "a hog has the client's processor when it is woken", Kind.CLIENT,
        subject=(Step.WRITE, Step.READ),
        peer=(Step.READ, Step.UNTIL_IT_WAITS, Step.HOG, Step.WRITE, Step.SLEEP, Step.RELEASE),
        begins=_after(_P, Step.WRITE), ends=_after(_P, Step.RELEASE),
        stages=("woken_to_running",), owner=Owner.WAITING,
    ),
    Scenario(
        "client-stopped", "the client is stopped by SIGSTOP", Kind.CLIENT,
        subject=(Step.WRITE, Step.READ),
        peer=(Step.READ, Step.UNTIL_IT_WAITS, Step.STOP, Step.WRITE, Step.SLEEP, Step.CONTINUE),
        begins=_after(_P, Step.WRITE), ends=_after(_S, Step.READ),
        stages=("queued_to_read",), owner=Owner.WAITING,
    ),
)  # fmt: skip
