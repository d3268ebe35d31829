# SPDX-License-Identifier: Apache-2.0
"""What the page says of stamps and stages: meaning, order, and who had the request meanwhile."""

from __future__ import annotations

from enum import StrEnum

from otelbpf.records import Stamp
from otelbpf.request import Kind

_RECEIVED = (
    Stamp.NIC,
    Stamp.TC,
    Stamp.TCP,
    Stamp.QUEUED,
    Stamp.WOKEN,
    Stamp.RUNNING,
    Stamp.READ,
    Stamp.NIC_LAST,
    Stamp.READ_LAST,
)
_SENT = (Stamp.WRITE, Stamp.TC_OUT, Stamp.WRITE_LAST, Stamp.TC_OUT_LAST)
#: The stamps of each kind in the order of its way. They may be made in another one: a response's
#: last write comes before or after its first byte leaves.
WAY = {
    Kind.SERVER: tuple(Stamp),
    Kind.CLIENT: (*_SENT, *_RECEIVED),
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
    Stamp.READ_LAST: "the application has the last byte",
    Stamp.HANDLER_START: "the handler starts",
    Stamp.HANDLER_END: "the handler has ended",
    Stamp.WRITE: "the application hands over the first byte to send",
    Stamp.TC_OUT: "that byte leaves through traffic control",
    Stamp.WRITE_LAST: "the application hands over the last byte to send",
    Stamp.TC_OUT_LAST: "the last byte leaves through traffic control",
    Stamp.ACKED: "the client\u2019s TCP has acknowledged the last byte",
}


class Owner(StrEnum):
    """Who had to bring a stage's second stamp about; in the order of a server's way."""

    RECEIVE = "receive"
    WAITING = "waiting"
    APPLICATION = "application"
    SEND = "send"
    PEER = "peer"
    OTHER = "other"


_TURNS = {
    Kind.SERVER: tuple(Owner),
    Kind.CLIENT: (Owner.APPLICATION, Owner.SEND, Owner.PEER, Owner.RECEIVE, Owner.WAITING,
                  Owner.OTHER),
}  # fmt: skip
_OWNERS = {
    **dict.fromkeys((Stamp.NIC, Stamp.NIC_LAST, Stamp.TC, Stamp.TCP, Stamp.QUEUED), Owner.RECEIVE),
    **dict.fromkeys((Stamp.WOKEN, Stamp.RUNNING, Stamp.READ, Stamp.READ_LAST), Owner.WAITING),
    **dict.fromkeys(
        (Stamp.HANDLER_START, Stamp.HANDLER_END, Stamp.WRITE, Stamp.WRITE_LAST), Owner.APPLICATION
    ),
    **dict.fromkeys((Stamp.TC_OUT, Stamp.TC_OUT_LAST), Owner.SEND),
    Stamp.ACKED: Owner.PEER,
}
#: Neighbours of one owner differ in shade, and a stamp has the same one wherever it is.
_SHADES = {
    Stamp.TCP: 1, Stamp.QUEUED: 2, Stamp.RUNNING: 1, Stamp.READ: 2, Stamp.NIC_LAST: 1,
    Stamp.READ_LAST: 0, Stamp.HANDLER_START: 2, Stamp.HANDLER_END: 1, Stamp.WRITE_LAST: 1,
    Stamp.TC_OUT_LAST: 1,
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


def owner_of(stage: str, kind: Kind) -> Owner:
    """Who had the request during a stage, by its second stamp."""
    stamp = _BY_NAME.get(ends_of(stage)[1])
    if stamp is None:
        return Owner.OTHER
    # What was asked of others comes when they have it.
    if kind is Kind.CLIENT and stamp in (Stamp.NIC, Stamp.NIC_LAST):
        return Owner.PEER
    return _OWNERS[stamp]


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
    """Sorts the stages of many requests: by who had them, in the order of the way.

    Requests differ in their order: of those in two packets the last one may be there before
    traffic control takes the first, or long after the reader has that.
    """
    first, second = (place_of_stamp(stamp, kind)[0] for stamp in ends_of(stage))
    return _TURNS[kind].index(owner_of(stage, kind)), first + second, stage
