# SPDX-License-Identifier: Apache-2.0
"""Which connection a request came on, found in what the server's instrumentation has of it.

All functions answer with the first 36 bytes of a mark (`struct otelbpf_mark`, bpf/mark.h): both
ends' addresses and ports. None: there is no such connection, or it cannot be known for sure.
"""

from __future__ import annotations

import functools
import socket
import struct
import sys
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import Any

from otelbpf_plugin import marker

#: Means in a mark: the request that this thread read last.
BY_THREAD = bytes(36)
#: Where an ASGI scope has its (client, server) as they were before a middleware believed a header.
ENDS_KEY = "otelbpf_plugin.ends"

_ADDRESSES = struct.Struct("=16s16sHH")
_MAPPED = bytes(10) + b"\xff\xff"
_WSGI_SOCKETS = ("werkzeug.socket", "gunicorn.socket")
_WAITRESS = "waitress.client_disconnected"
# Streams that wrap others: django's wraps wsgiref's, which is a socket's file.
_MOST_STREAMS = 4


def connection_of(carrier: object) -> bytes | None:
    """The connection of the request that a propagator's carrier stands for.

    Args:
        carrier: a WSGI environ, an ASGI scope or aiohttp's request; others stand for none: headers
            alone say nothing of the connection, and a message from a queue came on none.
    """
    if isinstance(carrier, dict):
        if "wsgi.version" in carrier:
            return _of_wsgi(carrier)
        if "asgi" in carrier and carrier.get("type") in ("http", "websocket"):
            return _of_asgi(carrier)
        return None
    aiohttp = sys.modules.get("aiohttp.web_request")
    if aiohttp is not None and isinstance(carrier, aiohttp.BaseRequest):
        transport = carrier.transport
        return None if transport is None else _of_fd(_fd(transport.get_extra_info("socket")))
    return None


def _of_asgi(scope: dict[str, Any]) -> bytes | None:
    client, server = scope.get(ENDS_KEY) or (scope.get("client"), scope.get("server"))
    # One HTTP/2 connection has many requests at a time, so it does not tell which.
    if not client or not server or not scope.get("http_version", "1.1").startswith("1"):
        return None
    return _of_names(client[0], client[1], server[0], server[1])


@functools.lru_cache(maxsize=1024)  # a connection is kept alive for more than one request
def _of_names(peer: str, peer_port: int, local: str, local_port: int) -> bytes | None:
    # A middleware that believes a header knows no port. In a mark, 0 has a meaning.
    if not peer_port or not local_port:
        return None
    try:
        return _ADDRESSES.pack(_packed(peer), _packed(local), peer_port, local_port)
    except OSError:  # this is no address, but a host name or a path
        return None


def _packed(address: str) -> bytes:
    if ":" not in address:
        return _MAPPED + socket.inet_pton(socket.AF_INET, address)
    return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])


def _of_wsgi(environ: dict[str, Any]) -> bytes | None:
    if not environ.get("SERVER_PROTOCOL", "HTTP/1.1").startswith("HTTP/1"):
        return None
    found_any = False
    for candidate in _wsgi_candidates(environ):
        # Asking this one for its descriptor would write it to a disk. It holds a body that
        # somebody else has read.
        if isinstance(candidate, SpooledTemporaryFile):
            return None
        fd = _fd(candidate)
        if fd is not None:
            found_any = True
            addresses = _of_fd(fd)
            if addresses is not None:
                return addresses
    if found_any or not _threads_read_their_sockets(environ):
        return None
    return BY_THREAD


def _wsgi_candidates(environ: dict[str, Any]) -> Iterator[object]:
    """What may be the connection's socket, or a file of it, best first."""
    for key in _WSGI_SOCKETS:
        if key in environ:
            yield environ[key]
    if _WAITRESS in environ:
        yield getattr(getattr(environ[_WAITRESS], "__self__", None), "socket", None)
        return  # its input is a buffer
    stream = environ.get("wsgi.input")
    for _ in range(_MOST_STREAMS):
        if stream is None:
            return
        yield stream
        inner = getattr(stream, "rfile", None)  # cheroot, eventlet, gevent
        stream = inner or getattr(getattr(stream, "_read", None), "__self__", None)  # django


def _threads_read_their_sockets(environ: dict[str, Any]) -> bool:
    """Does a thread of this server read its request itself, and no other before it is answered?"""
    if _WAITRESS in environ or "gevent" in sys.modules or "eventlet" in sys.modules:
        return False
    asyncio = sys.modules.get("asyncio")
    return asyncio is None or asyncio._get_running_loop() is None


def _fd(file: object) -> int | None:
    try:
        fd = file.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):  # no file, not one with a descriptor, closed
        return None
    return fd if isinstance(fd, int) else None


def _of_fd(fd: int | None) -> bytes | None:
    return None if fd is None else marker.addresses(fd)
