# SPDX-License-Identifier: Apache-2.0
"""Which connection a request came on, found in what the server's instrumentation has of it.

That is called a carrier: a WSGI environ, an ASGI scope or aiohttp's request. Others stand for no
connection: headers alone say nothing of it, and a message from a queue came on none.
"""

from __future__ import annotations

import functools
import socket
import sys
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any, Union

#: Where an ASGI scope has its client as it was before a middleware believed a header.
CLIENT_KEY = "otelbpf_plugin.client"

_MAPPED = bytes(10) + b"\xff\xff"
_WSGI_SOCKETS = ("werkzeug.socket", "gunicorn.socket")
_WAITRESS = "waitress.client_disconnected"
# Streams that wrap others: django's wraps wsgiref's, which is a socket's file.
_MOST_STREAMS = 4


@dataclass(frozen=True)
class OwnSocket:
    """A connection of which this process has the descriptor."""

    fd: int


@dataclass(frozen=True)
class Ends:
    """A connection of which only the addresses are known.

    Attributes:
        peer, local: 16 bytes; IPv4 as IPv4-mapped IPv6.
        peer_port, local_port: neither is 0.
    """

    peer: bytes
    local: bytes
    peer_port: int
    local_port: int


Connection = Union[OwnSocket, Ends]
#: The server's end of a connection: its socket, or the port alone; 0: that is not known.
ServerEnd = Union[OwnSocket, int]


def server_of(carrier: Any) -> Hashable:
    """What all requests to one server of this process have in common, cheaply. None: no idea."""
    if isinstance(carrier, dict):
        server = carrier.get("SERVER_PORT") or carrier.get("server")
        return server if type(server) is not list else tuple(server)
    return _sockname(carrier) if _is_aiohttp(carrier) else None


def is_asgi(carrier: Any) -> bool:
    """Is it an ASGI scope, in which a middleware may have put another client?"""
    return isinstance(carrier, dict) and "asgi" in carrier


def connection_of(carrier: Any) -> Connection | None:
    """The connection of a request. None: there is none, or it cannot be known for sure."""
    if isinstance(carrier, dict):
        if "wsgi.version" in carrier:
            return _of_wsgi(carrier)
        if is_asgi(carrier) and carrier.get("type") in ("http", "websocket"):
            return _of_asgi(carrier)
    elif _is_aiohttp(carrier) and carrier.transport is not None:
        return _of_ends(carrier.transport.get_extra_info("peername"), _sockname(carrier))
    return None


def end_of(connection: Connection) -> ServerEnd:
    """The server's end of a connection."""
    return connection if isinstance(connection, OwnSocket) else connection.local_port


def server_end_of(carrier: Any) -> ServerEnd:
    """The server's end of a request's connection.

    That is known even where a middleware has put another client in place of the peer.
    """
    if isinstance(carrier, dict):
        if "wsgi.version" in carrier:
            connection = _of_wsgi(carrier)
            return 0 if connection is None else end_of(connection)
        return _port(carrier.get("server")) if is_asgi(carrier) else 0
    return _port(_sockname(carrier)) if _is_aiohttp(carrier) else 0


def _port(name: Any) -> int:
    """Of (host, port, …); a UNIX socket's name is something else."""
    return (name[1] or 0) if isinstance(name, (tuple, list)) else 0


def _is_aiohttp(carrier: Any) -> bool:
    aiohttp = sys.modules.get("aiohttp.web_request")
    return aiohttp is not None and isinstance(carrier, aiohttp.BaseRequest)


def _sockname(request: Any) -> Any:
    return request.transport and request.transport.get_extra_info("sockname")


def _of_asgi(scope: dict[str, Any]) -> Connection | None:
    # One HTTP/2 connection has many requests at a time, so it does not tell which.
    if not scope.get("http_version", "1.1").startswith("1"):
        return None
    return _of_ends(scope.get(CLIENT_KEY) or scope.get("client"), scope.get("server"))


def _of_ends(peer: Any, local: Any) -> Connection | None:
    """Of (host, port, …) each; the ends of a UNIX socket are something else."""
    if not isinstance(peer, (tuple, list)) or not isinstance(local, (tuple, list)):
        return None
    return _of_names(peer[0], peer[1], local[0], local[1])


@functools.lru_cache(maxsize=1024)  # a connection is kept alive for more than one request
def _of_names(peer: str, peer_port: int, local: str, local_port: int) -> Connection | None:
    # A middleware that believes a header knows no port. In a mark, 0 has a meaning.
    if not peer_port or not local_port:
        return None
    try:
        return Ends(_packed(peer), _packed(local), peer_port, local_port)
    except OSError:  # this is no address, but a host name or a path
        return None


def _packed(address: str) -> bytes:
    if ":" not in address:
        return _MAPPED + socket.inet_pton(socket.AF_INET, address)
    return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])


def _of_wsgi(environ: dict[str, Any]) -> Connection | None:
    if not environ.get("SERVER_PROTOCOL", "HTTP/1.1").startswith("HTTP/1"):
        return None
    for candidate in _wsgi_candidates(environ):
        # Asking this one for its descriptor would write it to a disk. It holds a body that
        # somebody else has read.
        if isinstance(candidate, SpooledTemporaryFile):
            return None
        try:
            return OwnSocket(candidate.fileno())
        except (AttributeError, OSError, ValueError):  # no file, not one with a descriptor, closed
            continue
    return None


def _wsgi_candidates(environ: dict[str, Any]) -> Iterator[Any]:
    """What may be the connection's socket, or a file of it, best first."""
    for key in _WSGI_SOCKETS:
        if key in environ:
            yield environ[key]
            return
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
