# SPDX-License-Identifier: Apache-2.0
"""Connections as the programs see them: what each side says, in segments that come as they come."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from host_programs import Event, Passing, SocketState, StateChange
from support.frames import ACK, FIN, Frame, packed

UPSTREAM_PORT = 9090
_HEADERS = 14 + 20 + 20


@dataclass(frozen=True)
class Turn:
    """What one side says before the other one goes on.

    Attributes:
        segments: ranges of its bytes, each that of a segment, in the order in which this machine
            sees them; empty: it is one segment.
    """

    by_client: bool
    data: bytes
    segments: tuple[tuple[int, int], ...] = ()

    def parts(self) -> tuple[tuple[int, int], ...]:
        return self.segments or ((0, len(self.data)),)

    @property
    def in_order(self) -> bool:
        """Does each byte come once, and after those before it?"""
        ends = itertools.pairwise([(0, 0), *self.parts()])
        return all(before[1] == part[0] for before, part in ends)


@dataclass(frozen=True)
class Conversation:
    """A connection, from its beginning.

    Attributes:
        of_client: this machine is the client, not the server.
        closed: the server ends it after the last turn.
        client_seq, server_seq: sequence numbers of either side's first byte.
        linear: of each frame only its headers can be looked at without a copy.
    """

    turns: tuple[Turn, ...]
    client: str = "192.0.2.1"
    of_client: bool = False
    closed: bool = False
    client_seq: int = 1000
    server_seq: int = 5000
    linear: bool = True

    def said(self, *, by_client: bool) -> bytes:
        """All that one side says."""
        return b"".join(turn.data for turn in self.turns if turn.by_client == by_client)

    @property
    def in_order(self) -> bool:
        return all(turn.in_order for turn in self.turns)

    def whole(self) -> Conversation:
        """The same, each turn in one segment."""
        return replace(self, turns=tuple(replace(turn, segments=()) for turn in self.turns))

    def byte_by_byte(self) -> Conversation:
        """The same, each byte in a segment of its own."""
        turns = (
            replace(turn, segments=tuple((at, at + 1) for at in range(len(turn.data))))
            for turn in self.turns
        )
        return replace(self, turns=tuple(turns))

    def cut_at(self, place: int, *, by_client: bool) -> Conversation:
        """The same, one side's first turn cut in two behind so many bytes."""
        for index, turn in enumerate(self.turns):
            if turn.by_client == by_client:
                cut = replace(turn, segments=((0, place), (place, len(turn.data))))
                return replace(self, turns=(*self.turns[:index], cut, *self.turns[index + 1 :]))
        raise ValueError("it says nothing")

    def __iter__(self) -> Iterator[Passing | StateChange]:
        """What happens on this machine."""
        said = {True: 0, False: 0}
        yield self._changes(SocketState.CLOSE, SocketState.ESTABLISHED, said)
        for turn in self.turns:
            mine, others = said[turn.by_client], said[not turn.by_client]
            for start, end in turn.parts():
                yield self._segment(turn.by_client, mine + start, turn.data[start:end], others)
            said[turn.by_client] += len(turn.data)
            if not turn.by_client:
                yield self._segment(True, said[True], b"", said[False])
        if self.closed:
            # Each has a number of its own.
            yield self._segment(False, said[False], b"", said[True], FIN)
            said[False] += 1
            yield self._segment(True, said[True], b"", said[False], FIN)
            said[True] += 1
            yield self._changes(SocketState.CLOSE_WAIT, SocketState.CLOSE, said)

    @property
    def _frame(self) -> Frame:
        frame = Frame(client=self.client)
        return replace(frame, server_port=UPSTREAM_PORT) if self.of_client else frame

    def _segment(
        self, by_client: bool, at: int, data: bytes, acknowledged: int, flags: int = 0
    ) -> Passing:
        mine, others = self.client_seq, self.server_seq
        if not by_client:
            mine, others = others, mine
        octets = bytes(
            replace(
                self._frame, payload=data, seq=mine + at, ack_seq=others + acknowledged,
                flags=ACK | flags, outbound=not by_client,
            )
        )  # fmt: skip
        if self.of_client:
            event = Event.TO_UPSTREAM if by_client else Event.FROM_UPSTREAM
        else:
            event = Event.TO_SERVER if by_client else Event.FROM_SERVER
        return Passing(event, octets, len(octets) if self.linear else _HEADERS)

    def _changes(
        self, earlier: SocketState, state: SocketState, said: dict[bool, int]
    ) -> StateChange:
        """Args: said: how many bytes by each side, by whether it is the client."""
        frame = self._frame
        client = packed(frame.client), frame.client_port
        server = packed(frame.server), frame.server_port
        by_client, by_server = self.client_seq + said[True], self.server_seq + said[False]
        if self.of_client:
            return StateChange(earlier, state, client, server, by_server, by_client)
        return StateChange(earlier, state, server, client, by_client, by_server)
