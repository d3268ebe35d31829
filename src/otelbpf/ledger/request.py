# SPDX-License-Identifier: Apache-2.0
"""reader -> request: what a record says, in words; and the stages of its ledger."""

from __future__ import annotations

import functools
import ipaddress
import socket
from enum import StrEnum

import numpy as np

from otelbpf.host.processes import NOBODY, Process
from otelbpf.kernel.records import (
    HTTP1,
    RequestFlag,
    RequestRecordRow,
    Stamp,
)
from otelbpf.protocols.urls import RequestLine, Server, server_asked, split_request_line

_LINE_MAX, _HOST_MAX = HTTP1["request_line"].itemsize, HTTP1["host"].itemsize
_ADDRESSES_KEPT = 4_096
# Before an IPv4 address that is written as an IPv6 one.
_MAPPED = bytes(10) + b"\xff\xff"

#: Without one of these a ledger is not complete. `woken` and `running` are absent
#: whenever the reader was running already, and last stamps whenever the first byte
#: was the last one too.
_EXPECTED_OF_EITHER = (
    Stamp.NIC,
    Stamp.TC,
    Stamp.TCP,
    Stamp.QUEUED,
    Stamp.READ,
    Stamp.WRITE,
    Stamp.TC_OUT,
)
_MAY_BE_ABSENT = (Stamp.WOKEN, Stamp.RUNNING)


class Kind(StrEnum):
    """What this side is to a request."""

    SERVER = "server"
    CLIENT = "client"


#: By is_client, as the kernel numbers them.
KINDS = tuple(Kind)

_EXPECTED = {
    Kind.SERVER: (*_EXPECTED_OF_EITHER, Stamp.ACKED),
    Kind.CLIENT: _EXPECTED_OF_EITHER,
}
_PEER = {Kind.SERVER: Kind.CLIENT, Kind.CLIENT: Kind.SERVER}


def bounds_of(records: np.ndarray) -> np.ndarray:
    """The stamps that bound stages: none that came after the request's end.

    A server's request ends when the response's last byte has left, which its handler may outlive,
    and the rest of a body that came too late for an early answer; one that was cut short ends when
    no whole response could come any more. bpf/ledger/series.h leaves out the same.

    Args:
        records: (n,) REQUEST_RECORD.
    Returns:
        (n, Stamp.ACKED) uint64 by enum stamp, CLOCK_MONOTONIC ns; 0 is absent.
    """
    bounds = records["stamp_ktime_ns"][:, : Stamp.ACKED].copy()
    last, first = bounds[:, Stamp.TC_OUT_LAST], bounds[:, Stamp.TC_OUT]
    left = np.where(last != 0, last, first)
    whole = records["flags"] & np.uint32(RequestFlag.REQUEST_ANSWERED | RequestFlag.CLIENT)
    ends = bounds[:, Stamp.ENDED]
    ends = np.where((ends == 0) & (whole == RequestFlag.REQUEST_ANSWERED), left, ends)
    bounds[(ends != 0)[:, np.newaxis] & (bounds > ends[:, np.newaxis])] = 0
    return bounds


def stage_name(first: int, second: int) -> str:
    """What the stage between two stamps is called."""
    return _STAGE_NAMES[first, second]


_STAGE_NAMES: dict[tuple[int, int], str] = {
    (first, second): f"{first.name}_to_{second.name}".lower() for first in Stamp for second in Stamp
}


def line_of(line: bytes, length: int) -> RequestLine:
    """A record's request line, in its parts."""
    return split_request_line(text_of(line, length), is_cut=length > _LINE_MAX)


def server_of(
    line: RequestLine, host: bytes, host_length: int, address: bytes, port: int
) -> Server:
    """Which server a record's request is for.

    Args:
        address, port: of the server's side of the connection.
    """
    # A part of a name would be another one.
    whole_host = text_of(host, host_length) if host_length <= _HOST_MAX else ""
    return server_asked(line.scheme, line.authority, whole_host, address_of(address), port)


def process_of(record: RequestRecordRow) -> Process:
    """Whose a record is."""
    if not record.pid:
        return NOBODY
    told = record.process
    return Process(record.pid, told.start_boottime_ns, told.cgroup_id, told.stack, told.comm)


@functools.lru_cache(_ADDRESSES_KEPT)
def address_of(raw: bytes) -> str:
    """A record's address in words; IPv4-mapped ones as IPv4.

    Args:
        raw: 16 bytes.
    """
    if raw.startswith(_MAPPED):
        return socket.inet_ntoa(raw[len(_MAPPED) :])
    return str(ipaddress.IPv6Address(raw))


def text_of(raw: bytes, length: int) -> str:
    """What the client sent, which ought to be ASCII and may be UTF-8 or anything."""
    return raw[:length].decode("utf-8", "backslashreplace")


@functools.cache
def absent_of(present: int, kind: Kind) -> tuple[tuple[str, ...], bool]:
    """What is absent where the stamps of these bits were made; and is the ledger complete?"""
    missing, not_needed = (
        tuple(stamp.name.lower() for stamp in stamps if not present & 1 << stamp)
        for stamps in (_EXPECTED[kind], _MAY_BE_ABSENT)
    )
    return missing + not_needed, not missing


#: How an exchange may be cut short.
ENDINGS = (
    RequestFlag.PEER_RESET
    | RequestFlag.PEER_CLOSED
    | RequestFlag.LOCAL_RESET
    | RequestFlag.LOCAL_CLOSED
    | RequestFlag.IDLE_TIMEOUT
)


@functools.cache
def ended_by(flags: RequestFlag, kind: Kind) -> str:
    """How an exchange that was cut short ended; empty: it was not cut short.

    Whose FIN or RST came first; `idle_timeout` where there was neither, and no socket known to be
    open; `connection_lost` where TCP gave up.
    """
    if flags & RequestFlag.REQUEST_ANSWERED:
        return ""
    for flag, name in (
        (RequestFlag.PEER_RESET, f"{_PEER[kind]}_reset"),
        (RequestFlag.PEER_CLOSED, f"{_PEER[kind]}_closed"),
        (RequestFlag.LOCAL_RESET, f"{kind}_reset"),
        (RequestFlag.LOCAL_CLOSED, f"{kind}_closed"),
        (RequestFlag.IDLE_TIMEOUT, "idle_timeout"),
    ):
        if flags & flag:
            return name
    return "connection_lost"
