# SPDX-License-Identifier: Apache-2.0
"""Tells the kernel of requests: by a setsockopt() that only otelbpf's program answers.

Source:
    bpf/abi/mark.h.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

LEVEL = 0x6F74
START, END, ASK = 1, 2, 3

#: struct otelbpf_mark: trace id, new span id, caller's span id, peer and local address, peer and
#: local port, trace flags.
MARK = struct.Struct("=16s8s8s16s16sHHI")

#: Answers to START. Others say that something is wrong with the socket.
JOINED = 0
UNKNOWN_REQUEST = errno.EPERM
#: The latter is that of sockets that are not TCP's.
NOT_MEASURED = (errno.ENOPROTOOPT, errno.EOPNOTSUPP)

#: To ask whether somebody measures anything in the network namespace.
ANY_PORT = 0

# Not socket.setsockopt(): some servers have a descriptor and no socket object, and making one of it
# may change how it blocks.
_libc = ctypes.CDLL(None, use_errno=True)
_SOCKADDR_STORAGE_SIZE = 128
_INET = (socket.AF_INET, socket.AF_INET6)
_sockets: dict[str, socket.socket] = {}


def ask(fd: int, port: int) -> bool:
    """Is a local port measured, in the network namespace of this socket?"""
    mark = MARK.pack(bytes(16), bytes(8), bytes(8), bytes(16), bytes(16), 0, port, 0)
    return tell(fd, ASK, mark) == 0


def knows(peer: bytes, local: bytes, peer_port: int, local_port: int) -> bool:
    """Is there a connection with these ends, among those that are measured?"""
    mark = MARK.pack(bytes(16), bytes(8), bytes(8), peer, local, peer_port, local_port, 0)
    return tell(any_socket(), ASK, mark) == 0


def tell(fd: int, option: int, mark: bytes) -> int:
    """One setsockopt().

    Args:
        fd: of the request's connection, or any_socket() if the mark has addresses.
        option: START or END of the application's span, or ASK.
    Returns:
        0 or the error's number.
    """
    if _libc.setsockopt(fd, LEVEL, option, mark, len(mark)) == 0:
        return 0
    return ctypes.get_errno()


def any_socket() -> int:
    """One of this network namespace; nothing is ever sent through it."""
    kept = _sockets.get("any")
    # One step: of two threads that come here first, the second one's own is closed, unused.
    kept = kept or _sockets.setdefault("any", socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    return kept.fileno()


def local_port(fd: int) -> int:
    """The port of a TCP socket, even of one whose client has gone; 0: it is no such socket."""
    size = ctypes.c_uint(_SOCKADDR_STORAGE_SIZE)
    address = ctypes.create_string_buffer(_SOCKADDR_STORAGE_SIZE)
    if _libc.getsockname(fd, address, ctypes.byref(size)) != 0:
        return 0
    (family,) = struct.unpack_from("=H", address)
    return struct.unpack_from("!H", address, 2)[0] if family in _INET else 0
