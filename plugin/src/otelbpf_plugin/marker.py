# SPDX-License-Identifier: Apache-2.0
"""Tells the kernel of requests: by a setsockopt() that only otelbpf's program answers.

Source:
    bpf/mark.h.
"""

from __future__ import annotations

import ctypes
import errno
import struct
import time
from collections.abc import Hashable

LEVEL = 0x6F74
START, END = 1, 2

#: struct otelbpf_mark: trace id, new span id, caller's span id, peer and local address, peer and
#: local port, trace flags.
MARK = struct.Struct("=16s8s8s16s16sHHI")

#: Answers to START. Others say that something is wrong with the socket.
JOINED = 0
UNKNOWN_REQUEST = errno.EPERM
# The latter is that of sockets that are not TCP's.
_NOT_MEASURED = (errno.ENOPROTOOPT, errno.EOPNOTSUPP)

#: Until when, by time.monotonic(), a server that was not measured is not asked about again.
quiet_until: dict[Hashable, float] = {}
#: How long that is.
QUIET_S = 1.0
_MOST_SERVERS = 256

# Not socket.setsockopt(): some servers have a descriptor and no socket object, and making one of it
# may change how it blocks.
_libc = ctypes.CDLL(None, use_errno=True)
_SOCKADDR_STORAGE_SIZE = 128


def start(server: Hashable, fd: int, mark: bytes) -> bool:
    """Says that the application's span of a request has started.

    Args:
        server: what quiet_until knows it by.
        fd: of the request's connection, or of any socket if the mark has addresses.
    Returns:
        Was the request found? Then it will have a span of the id that the mark says.
    """
    answer = tell(fd, START, mark)
    if answer in _NOT_MEASURED and _is_connected(fd, mark):
        if len(quiet_until) >= _MOST_SERVERS:  # these are no servers, but what clients say
            quiet_until.clear()
        quiet_until[server] = time.monotonic() + QUIET_S
    return answer == JOINED


def end(fd: int, mark: bytes) -> None:
    """Says that the span of a mark which was joined has ended."""
    tell(fd, END, mark)


def tell(fd: int, option: int, mark: bytes) -> int:
    """One setsockopt().

    Returns:
        0 or the error's number.
    """
    if _libc.setsockopt(fd, LEVEL, option, mark, len(mark)) == 0:
        return 0
    return ctypes.get_errno()


def forget() -> None:
    """Asks about all servers again."""
    quiet_until.clear()


def _is_connected(fd: int, mark: bytes) -> bool:
    """A socket whose client has gone has no port any more: that says nothing of the server."""
    *_, peer_port, _, _ = MARK.unpack(mark)
    if peer_port:
        return True
    size = ctypes.c_uint(_SOCKADDR_STORAGE_SIZE)
    address = ctypes.create_string_buffer(_SOCKADDR_STORAGE_SIZE)
    return bool(_libc.getpeername(fd, address, ctypes.byref(size)) == 0)
