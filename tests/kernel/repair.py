# SPDX-License-Identifier: Apache-2.0
"""Connections whose sequence numbers a test chooses, by the kernel's TCP_REPAIR."""

from __future__ import annotations

import socket
import struct

from lab import (
    CLIENT_IPV4,
    CLIENT_IPV6,
    SERVER_IPV4,
    SPARE_PORT,
    Lab,
    Pair,
)

# uapi/linux/tcp.h
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ, _TCP_REPAIR_OPTIONS = 19, 20, 21, 22
_RECV_QUEUE, _SEND_QUEUE = 1, 2
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75
# What the handshake would have agreed on: (option, value) pairs.
_MSS, _WINDOW_SCALES, _SACK = (2, 1448), (3, 7 << 16 | 7), (4, 0)


def _set(sock: socket.socket, option: int, value: int) -> None:
    # Sequence numbers above 2**31 are the same 32 bits with a sign.
    sock.setsockopt(socket.IPPROTO_TCP, option, value - (value >> 31 << 32))


def _repaired(sock: socket.socket, sends: int, receives: int) -> None:
    for queue, seq in ((_SEND_QUEUE, sends), (_RECV_QUEUE, receives)):
        _set(sock, _TCP_REPAIR_QUEUE, queue)
        _set(sock, _TCP_QUEUE_SEQ, seq)


def one_end(
    lab: Lab, side: str, own: tuple[str, int], peer: tuple[str, int], sends: int, receives: int
) -> socket.socket:
    """A socket that has a connection with nobody, at whatever addresses: it never says a word.

    Args:
        side: of the lab, the one whose socket it is.
        sends, receives: the sequence numbers of the next byte either way.
    """
    family = socket.AF_INET6 if ":" in own[0] else socket.AF_INET
    network = peer[0].rpartition(":" if ":" in peer[0] else ".")[0]
    network += "::/64" if ":" in peer[0] else ".0/24"
    lab.route(side, network.replace(":::", "::"))
    sock = lab.socket(side, family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET:
        sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    _set(sock, _TCP_REPAIR, 1)
    sock.bind(own)
    _repaired(sock, sends, receives)
    sock.connect(peer)
    lab.keep(Pair(sock, sock))
    return sock


def connect(
    lab: Lab,
    *,
    host: str = SERVER_IPV4,
    request_seq: int,
    response_seq: int,
) -> Pair:
    """A connection whose first request byte has `request_seq`, its first response byte the other.

    No packet makes it: each end is told that it is established.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    client, server = lab.socket("client", family), lab.socket("server", family)
    pair = lab.keep(Pair(client, server))
    for sock in (client, server):
        _set(sock, _TCP_REPAIR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind((CLIENT_IPV6 if ":" in host else CLIENT_IPV4, 0))
    server.bind((host, SPARE_PORT))
    for sock, peer, sends, receives in (
        (client, server, request_seq, response_seq),
        (server, client, response_seq, request_seq),
    ):
        _repaired(sock, sends, receives)
        sock.connect(peer.getsockname()[:2])
        options = struct.pack("6I", *_MSS, *_WINDOW_SCALES, *_SACK)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_OPTIONS, options)
    for sock in (client, server):
        _set(sock, _TCP_REPAIR, 0)
    return pair
