# SPDX-License-Identifier: Apache-2.0
"""What the judges say of a whole connection, and whether the programs' records agree with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import judges
import numpy as np
import rfc9112
from conversations import Conversation
from host_programs import Outcome
from rfc9112 import Message, Unclear, Unfinished

from otelbpf.kernel.records import Counter, RequestFlag

#: Those that others wrote, and the letter.
OTHERS = (judges.H11, judges.Llhttp)
ALL = (*OTHERS, rfc9112)
_LINE_MAX = 192


@dataclass(frozen=True)
class Reading:
    """One judge's: the messages of a stream up to where it ends, or is no message.

    Attributes:
        stopped: why there is no more; None: nothing is left.
        at: where.
    """

    messages: tuple[Message, ...]
    stopped: type[Exception] | None
    at: int


def _read(next_message: Callable[[int, int], Message | None], data: bytes) -> Reading:
    messages: list[Message] = []
    at = 0
    try:
        while rfc9112.skip_empty_lines(data, at) < len(data):
            message = next_message(len(messages), at)
            if message is None:
                break
            messages.append(message)
            at = message.end
            if message.tunnel:
                break
    except (Unclear, Unfinished) as stopped:
        return Reading(tuple(messages), type(stopped), at)
    return Reading(tuple(messages), None, at)


def readings(judge: type[judges.H11], talk: Conversation) -> tuple[Reading, Reading]:
    """What it says of the requests, and of the responses to them."""
    asked, answered = talk.said(by_client=True), talk.said(by_client=False)
    requests = _read(lambda _, at: judge.request(asked, at), asked)

    def respond(ordinal: int, at: int) -> Message | None:
        if ordinal >= len(requests.messages):
            return None
        method = requests.messages[ordinal].method
        return judge.response(answered, at, method, closed=talk.closed)

    return requests, _read(respond, answered)


@dataclass(frozen=True)
class Expected:
    """What the programs may say of a connection's requests, by ordinal, and what they have to.

    Attributes:
        asked, answered: what the judges have read.
        certain: so many of the first ones are to be seen, whole.
        next_line: the line behind them, with what ends it.
    """

    asked: tuple[frozenset[Message], ...]
    answered: tuple[frozenset[Message], ...]
    certain: int
    next_line: bytes

    @classmethod
    def of(cls, talk: Conversation, judges_of: tuple[type, ...] = ALL) -> Expected:
        """Where all of the others agree, that is certain; else any judge may be right."""
        pairs = [readings(judge, talk) for judge in judges_of]
        of_others = [each.messages for pair in pairs if pair is not pairs[-1] for each in pair]
        of_others = of_others or [each.messages for each in pairs[0]]
        certain = min(map(len, of_others))
        most = max(len(requests.messages) for requests, _ in pairs)
        asked, answered = (
            tuple(
                frozenset(
                    replace(each.messages[ordinal], until_close=False)
                    for each in of
                    if ordinal < len(each.messages)
                )
                for ordinal in range(most)
            )
            for of in zip(*pairs, strict=True)
        )
        for ordinal in range(certain):
            assert len(asked[ordinal]) == len(answered[ordinal]) == 1, "the judges do not agree"
        last = max((requests for requests, _ in pairs), key=lambda each: each.at)
        said = talk.said(by_client=True)
        rest = said[rfc9112.skip_empty_lines(said, last.at) :]
        return cls(asked, answered, certain, rest[: rest.find(b"\n") + 1][:_LINE_MAX])

    @property
    def all_is_certain(self) -> bool:
        """Is everything, up to where another protocol begins?"""
        most = len(self.asked) if self.tunnel is None else self.tunnel + 1
        return self.certain >= most > 0

    @property
    def tunnel(self) -> int | None:
        """The request behind whose answer another protocol begins."""
        tunnels = [any(message.tunnel for message in each) for each in self.answered]
        return tunnels.index(True) if True in tunnels else None


def check(talk: Conversation, expected: Expected, outcome: Outcome) -> None:
    """The records bear what the judges say: those that are certain, whole, and of no other one more
    than one of the judges says.

    Raises:
        AssertionError: they do not.
    """
    seen = outcome.counts.get(Counter.SEEN, 0)
    assert seen == len(outcome.records) + outcome.lost
    by_ordinal = {int(record["ordinal"]): record for record in outcome.records}
    assert len(by_ordinal) == len(outcome.records)
    # Bytes between two responses: the programs begin again with the request after them.
    begins_again = Counter.SEGMENTS_UNASKED in outcome.counts
    for ordinal in range(len(expected.asked)):
        if ordinal >= expected.certain and begins_again:
            return
        record = by_ordinal.pop(ordinal, None)
        if record is not None:
            lines = {message.line[:_LINE_MAX] for message in expected.asked[ordinal]}
            if ordinal >= expected.certain and _line(record) not in lines:
                return  # they have begun again, behind what they did not take
            _check_request(talk, record, expected.asked[ordinal])
            _check_response(record, expected.answered[ordinal])
        if ordinal < expected.certain:
            assert record is not None, f"request {ordinal} has no record"
            flags = RequestFlag(int(record["flags"]))
            assert RequestFlag.REQUEST_RECEIVED in flags, f"request {ordinal} is not whole"
            assert RequestFlag.REQUEST_ANSWERED in flags, f"response {ordinal} is not whole"
        elif not expected.asked[ordinal] or not expected.answered[ordinal]:
            return
        if ordinal == expected.tunnel:
            assert not by_ordinal, "what is another protocol's is a request"
            return
    record = by_ordinal.get(len(expected.asked))
    # One that the programs have begun again with, behind what is none, is another.
    if (
        record is not None
        and expected.next_line
        and record["http1"]["request_line"].startswith(expected.next_line)
    ):
        assert not record["flags"] & RequestFlag.REQUEST_RECEIVED, "what is no request is one"


def _line(record: np.void) -> bytes:
    """The request line, as far as it is kept."""
    http1 = record["http1"]
    return http1["request_line"].tobytes()[: min(_LINE_MAX, int(http1["request_line_length"]))]


def _check_request(talk: Conversation, record: np.void, asked: frozenset[Message]) -> None:
    flags = RequestFlag(int(record["flags"]))
    http1 = record["http1"]
    if flags & RequestFlag.REQUEST_RECEIVED:
        told = (
            int(http1["request_line_length"]),
            int(http1["http_minor"]),
            int(record["request_bytes"]),
            int(record["request_body_bytes"]),
            bool(flags & RequestFlag.REQUEST_CHUNKED),
        )
        bear = {(len(m.line), m.minor, m.size, m.body, m.chunked) for m in asked}
        assert told in bear, f"request: {told} is not among {bear}"
        assert _line(record) in {m.line[:_LINE_MAX] for m in asked}
    if talk.in_order:
        assert record["request_retransmits"] == record["response_retransmits"] == 0
        assert record["out_of_order"] == 0


def _check_response(record: np.void, answered: frozenset[Message]) -> None:
    flags = RequestFlag(int(record["flags"]))
    if not flags & RequestFlag.REQUEST_ANSWERED:
        return
    told = (
        int(record["status"]),
        int(record["response_bytes"]),
        int(record["response_body_bytes"]),
        bool(flags & RequestFlag.RESPONSE_CHUNKED),
        bool(flags & RequestFlag.UPGRADED),
    )
    bear = {(m.status, m.size, m.body, m.chunked, m.tunnel) for m in answered}
    assert told in bear, f"response: {told} is not among {bear}"
