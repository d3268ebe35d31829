# SPDX-License-Identifier: Apache-2.0
"""What there is to say of stamps and stages: meaning, order, and whose a stage's time is.

The one table of owners, which `otelbpf top`, the report, the demo and the dashboard go by. Both of
a stage's stamps decide: what happened last, and what was waited for. docs/stages.md says it in
words.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from enum import StrEnum

from otelbpf.kernel.records import Stamp
from otelbpf.ledger.request import Kind

_SENT = (Stamp.WRITE, Stamp.TC_OUT, Stamp.WRITE_LAST, Stamp.TC_OUT_LAST)
#: The stamps of each kind in the order of its way. They may be made in another one: a response's
#: last write comes before or after its first byte leaves.
WAY = {
    Kind.SERVER: tuple(Stamp),
    Kind.CLIENT: (
        *_SENT,
        *(stamp for stamp in Stamp if stamp <= Stamp.READ_LAST),
        Stamp.ENDED,
    ),
}
_MEANING = {
    Stamp.NIC: "the driver handed over the packet with the first byte",
    Stamp.TC: "traffic control took it",
    Stamp.TCP: "TCP took the segment",
    Stamp.QUEUED: "its bytes are on the socket\u2019s receive queue, in order",
    Stamp.WOKEN: "the reader was woken for them",
    Stamp.RUNNING: "the reader got a CPU",
    Stamp.READ: "the application has the bytes",
    Stamp.NIC_LAST: "the driver handed over the last byte",
    Stamp.TC_LAST: "traffic control took the last byte",
    Stamp.READ_LAST: "the application has the last byte",
    Stamp.HANDLER_START: "the handler starts",
    Stamp.HANDLER_END: "the handler has ended",
    Stamp.WRITE: "the application hands over the first byte to send",
    Stamp.TC_OUT: "that byte leaves through traffic control",
    Stamp.WRITE_LAST: "the application hands over the last byte to send",
    Stamp.TC_OUT_LAST: "the last byte leaves through traffic control",
    Stamp.ENDED: "no whole response can come any more: the request was cut short",
    Stamp.ACKED: "the client\u2019s TCP has acknowledged the last byte, after the end",
}


class Owner(StrEnum):
    """Whose a stage's time is; in the order of a server's way."""

    RECEIVE = "receive"
    WAITING = "waiting"
    APPLICATION = "application"
    SEND = "send"
    PEER = "peer"
    UNKNOWN = "unknown"

    @property
    def label(self) -> str:
        """What people are shown: a peer's time is never the network's alone, nor its own."""
        return "peer + network" if self is Owner.PEER else str(self)

    @property
    def about(self) -> str:
        """What its time is, in a few words."""
        return _ABOUT[self]


_ABOUT = {
    Owner.RECEIVE: "until queued",
    Owner.WAITING: "until read",
    Owner.APPLICATION: "at work",
    Owner.SEND: "until it leaves",
    Owner.PEER: "elsewhere",
    Owner.UNKNOWN: "no stamp tells",
}
_TURNS = {
    Kind.SERVER: tuple(Owner),
    Kind.CLIENT: (Owner.APPLICATION, Owner.SEND, Owner.PEER, Owner.RECEIVE, Owner.WAITING,
                  Owner.UNKNOWN),
}  # fmt: skip

# ---- the table ----

_AT_THE_CARD = (Stamp.NIC, Stamp.NIC_LAST)
_ROUSED = (Stamp.WOKEN, Stamp.RUNNING)
_HANDLED = (Stamp.HANDLER_START, Stamp.HANDLER_END)
_READ = (Stamp.READ, Stamp.READ_LAST)
_UNREAD = (
    Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.QUEUED, *_ROUSED, Stamp.NIC_LAST, Stamp.TC_LAST,
)  # fmt: skip

# By the second stamp, what it may have been that was waited for: an owner, and after which first
# stamps the time is that one's; () is all the others.
_Waits = tuple[tuple[Owner, Collection[Stamp]], ...]

# The first byte, or the last one, is to come. Without XDP (loopback, each veth, so each container)
# traffic control is the first to see it.
_TO_COME: _Waits = ((Owner.PEER, ()),)
_TO_COME_BY_TC: _Waits = ((Owner.RECEIVE, _AT_THE_CARD), (Owner.PEER, ()))
_LAST_TO_COME_BY_TC: _Waits = ((Owner.RECEIVE, (Stamp.NIC_LAST,)), (Owner.PEER, ()))
# TCP may have an answer in its hands before traffic control knows it for one: what came early
# is read there once the bytes before it have come.
_TO_BE_QUEUED: _Waits = ((Owner.PEER, _SENT), (Owner.RECEIVE, ()))
_TO_BE_READ: _Waits = ((Owner.WAITING, ()),)
# After its first read with no later arrival in between: the rest was there, and whose it is to take
# it is awake.
_REST_TO_BE_READ: _Waits = ((Owner.WAITING, _UNREAD), (Owner.APPLICATION, ()))
_TO_BE_WRITTEN: _Waits = ((Owner.APPLICATION, ()),)
# Where the write was not seen, the application's work is all but a trifle of it.
_TO_LEAVE: _Waits = ((Owner.SEND, (Stamp.WRITE, Stamp.WRITE_LAST)), (Owner.APPLICATION, ()))
# When the rest may leave is what the peer's window, its acknowledgements and congestion allow:
# traffic control comes after all of these, and before the card's own queue.
_REST_TO_LEAVE: _Waits = ((Owner.PEER, ()),)
# Who had it when it was cut short. A response that has begun is the application's until that has
# written all of it, and then the peer's: of one that was cut short nobody knows which it was.
_CUT_SHORT: dict[Kind, _Waits] = {
    Kind.SERVER: (
        (Owner.RECEIVE, (Stamp.NIC, Stamp.TC, Stamp.TCP)),
        (Owner.WAITING, (Stamp.QUEUED, *_ROUSED, Stamp.NIC_LAST, Stamp.TC_LAST)),
        (Owner.APPLICATION, (*_READ, *_HANDLED)),
        (Owner.SEND, (Stamp.WRITE,)),
        (Owner.UNKNOWN, (Stamp.TC_OUT,)),
        (Owner.PEER, (Stamp.WRITE_LAST, Stamp.TC_OUT_LAST)),
    ),
    # It was never answered, or the rest never came.
    Kind.CLIENT: ((Owner.SEND, (Stamp.WRITE,)), (Owner.PEER, ())),
}


def _waits(kind: Kind) -> dict[Stamp, _Waits]:
    return {
        Stamp.NIC: _TO_COME,
        Stamp.TC: _TO_COME_BY_TC,
        Stamp.TCP: _TO_BE_QUEUED,
        Stamp.QUEUED: _TO_BE_QUEUED,
        Stamp.WOKEN: _TO_BE_READ,
        Stamp.RUNNING: _TO_BE_READ,
        Stamp.READ: _TO_BE_READ,
        Stamp.NIC_LAST: _TO_COME,
        Stamp.TC_LAST: _LAST_TO_COME_BY_TC,
        Stamp.READ_LAST: _REST_TO_BE_READ,
        Stamp.HANDLER_START: _TO_BE_WRITTEN,
        Stamp.HANDLER_END: _TO_BE_WRITTEN,
        Stamp.WRITE: _TO_BE_WRITTEN,
        Stamp.TC_OUT: _TO_LEAVE,
        Stamp.WRITE_LAST: _TO_BE_WRITTEN,
        Stamp.TC_OUT_LAST: _REST_TO_LEAVE,
        Stamp.ENDED: _CUT_SHORT[kind],
        # It bounds no stage, but did in earlier versions, whose files can be read.
        Stamp.ACKED: _TO_COME,
    }


_WAITS = {kind: _waits(kind) for kind in Kind}

# Neighbours of one owner differ in shade, and a stamp has the same one wherever it is.
_SHADES = {
    Stamp.TCP: 1, Stamp.QUEUED: 2, Stamp.RUNNING: 1, Stamp.READ: 2, Stamp.NIC_LAST: 1,
    Stamp.TC_LAST: 2, Stamp.READ_LAST: 1, Stamp.HANDLER_START: 2, Stamp.HANDLER_END: 1,
    Stamp.WRITE_LAST: 1, Stamp.TC_OUT_LAST: 1,
}  # fmt: skip
_BY_NAME = {stamp.name.lower(): stamp for stamp in Stamp}
_SEPARATOR = "_to_"


def ends_of(stage: str) -> tuple[str, str]:
    """The names of a stage's two stamps; a ledger of one stamp is one stage with that name."""
    first, _, second = stage.partition(_SEPARATOR)
    return first, second or first


def meaning_of(stamp: str) -> str:
    """When the stamp is made; empty for one that this version does not know."""
    return _MEANING.get(_BY_NAME[stamp], "") if stamp in _BY_NAME else ""


@functools.cache
def owner_of(stage: str, kind: Kind) -> Owner:
    """Whose a stage's time is; unknown where one of its stamps is not known here."""
    first, second = (_BY_NAME.get(end) for end in ends_of(stage))
    # A ledger of one stamp has taken no time, and after a request's end none is anybody's.
    if first is None or second is None or first in (second, Stamp.ENDED):
        return Owner.UNKNOWN
    owners = (owner for owner, after in _WAITS[kind][second] if not after or first in after)
    return next(owners, Owner.UNKNOWN)


def shade_of(stage: str) -> int:
    """From 0, its owner's own colour, to 2, the lightest: by its second stamp."""
    stamp = _BY_NAME.get(ends_of(stage)[1])
    return 0 if stamp is None else _SHADES.get(stamp, 0)


def place_of_stamp(stamp: str, kind: Kind) -> tuple[int, str]:
    """Sorts stamps along the way; those not known come last."""
    known = _BY_NAME.get(stamp)
    way = WAY[kind]
    return (way.index(known) if known in way else len(way)), stamp


def place_of_stage(stage: str, kind: Kind) -> tuple[int, int, str]:
    """Sorts the stages of many requests: by whose they are, in the order of the way.

    Requests differ in their order: of those in two packets the last one may be there before
    traffic control takes the first, or long after the reader has that.
    """
    first, second = (place_of_stamp(stamp, kind)[0] for stamp in ends_of(stage))
    return _TURNS[kind].index(owner_of(stage, kind)), first + second, stage
