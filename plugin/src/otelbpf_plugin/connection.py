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
#: Stands for whichever of the machine's addresses the client has reached.
ANY_ADDRESS = bytes(16)
#: What an IPv4-mapped IPv6 address begins with.
IPV4 = bytes(10) + b"\xff\xff"

_ANY_IPV4 = IPV4 + bytes(4)
_WSGI_SOCKETS = ("werkzeug.socket", "gunicorn.socket")
_WAITRESS = "waitress.client_disconnected"
_HIGHEST_PORT = 65_535
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
        peer, local: 16 bytes; IPv4 as IPv4-mapped IPv6. The latter is ANY_ADDRESS where the server
            only says that it listens on all (granian).
        peer_port, local_port: neither is 0.
    """

    peer: bytes
    local: bytes
    peer_port: int
    local_port: int


@dataclass(frozen=True)
class Unknown:
    """A connection over TCP that the server does not say enough of.

    Attributes:
        why: for people, and what to do; the same for all requests of this kind.
    """

    why: str


_NO_PEER = Unknown(
    "the client of the ASGI scope is not the address and the port of a connection; where a "
    "middleware has put another one there, put OpenTelemetry's around that middleware"
)
_NO_LOCAL = Unknown(
    "the server of the ASGI scope is not the address and the port of a connection; serve the "
    "application by uvicorn, hypercorn, daphne or granian"
)
_NO_SOCKET = Unknown(
    "the WSGI server leaves no socket of the connection in the environ; serve the application by "
    "one that does, such as gunicorn or waitress"
)

Connection = Union[OwnSocket, Ends]
#: The server's end of a connection: its socket, or the port alone; 0: that is not known.
ServerEnd = Union[OwnSocket, int]


def server_of(carrier: Any) -> Hashable:
    """What all requests to one server of this process have in common, cheaply. None: no idea."""
    if isinstance(carrier, dict):
        server = carrier.get("SERVER_PORT") or carrier.get("server")
        if isinstance(server, (str, int)):
            return server
        return _name(server)
    return _sockname(carrier) if _is_aiohttp(carrier) else None


def is_asgi(carrier: Any) -> bool:
    """Is it an ASGI scope, in which a middleware may have put another client?"""
    return isinstance(carrier, dict) and "asgi" in carrier


def connection_of(carrier: Any) -> Connection | Unknown | None:
    """The connection of a request. None: it came on none that carries one request at a time."""
    if isinstance(carrier, dict):
        if "wsgi.version" in carrier:
            return _of_wsgi(carrier)
        if is_asgi(carrier) and carrier.get("type") in ("http", "websocket"):
            return _of_asgi(carrier)
    elif _is_aiohttp(carrier) and carrier.transport is not None:
        ends = _of_ends(carrier.transport.get_extra_info("peername"), _sockname(carrier))
        return ends if isinstance(ends, Ends) else None  # else the client has gone
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
            if isinstance(connection, Unknown):
                return _port(carrier.get("SERVER_PORT"))
            return 0 if connection is None else end_of(connection)
        return _port(_name(carrier.get("server"))[1]) if is_asgi(carrier) else 0
    return _port(_name(_sockname(carrier))[1]) if _is_aiohttp(carrier) else 0


def _is_aiohttp(carrier: Any) -> bool:
    aiohttp = sys.modules.get("aiohttp.web_request")
    return aiohttp is not None and isinstance(carrier, aiohttp.BaseRequest)


def _sockname(request: Any) -> Any:
    return request.transport and request.transport.get_extra_info("sockname")


def _of_asgi(scope: dict[str, Any]) -> Ends | Unknown | None:
    # One HTTP/2 connection has many requests at a time, so it does not tell which.
    if not str(scope.get("http_version") or "1.1").startswith("1"):
        return None
    return _of_ends(scope.get(CLIENT_KEY) or scope.get("client"), scope.get("server"))


def _of_ends(client: Any, server: Any) -> Ends | Unknown | None:
    """Of two names, as _name() takes them."""
    return _of_names(*_name(client), *_name(server), server is not None)


def _name(end: Any) -> tuple[Any, Any]:
    """Host and port of (host, port, …), as far as they are texts and numbers.

    The name of a UNIX socket is something else, or has no port.
    """
    if not isinstance(end, (tuple, list)) or len(end) < 2:
        return None, None
    host, port = end[0], end[1]
    return (
        host if isinstance(host, str) else None,
        port if type(port) in (int, str) else None,  # True is none, though it equals one
    )


@functools.lru_cache(maxsize=1024)  # a connection is kept alive for more than one request
def _of_names(
    client: Any, client_port: Any, server: Any, server_port: Any, has_server: bool
) -> Ends | Unknown | None:
    # A middleware that believes a header knows no port. In a mark, 0 has a meaning.
    peer, peer_port = _packed(client), _port(client_port)
    local, local_port = _packed(server), _port(server_port)
    if peer and peer_port and local and local_port:
        return Ends(peer, ANY_ADDRESS if local == _ANY_IPV4 else local, peer_port, local_port)
    if local and local_port:
        return _NO_PEER
    if local or local_port or (peer and peer_port and not has_server):
        return _NO_LOCAL
    return None  # the server's name is a path, or both ends have none: this is a UNIX socket


def _packed(address: Any) -> bytes:
    """16 bytes; none, if it is no address but a host name or a path."""
    if not isinstance(address, str):
        return b""
    try:
        if ":" not in address:
            return IPV4 + socket.inet_pton(socket.AF_INET, address)
        return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except (OSError, ValueError):
        return b""


def _port(port: Any) -> int:
    """Of a number, or of the text of one, as granian has it; 0: that is no port."""
    if isinstance(port, str):
        port = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    return port if type(port) is int and 0 < port <= _HIGHEST_PORT else 0


def _of_wsgi(environ: dict[str, Any]) -> OwnSocket | Unknown | None:
    if not str(environ.get("SERVER_PROTOCOL") or "HTTP/1.1").startswith("HTTP/1"):
        return None
    for candidate in _wsgi_candidates(environ):
        # Asking this one for its descriptor would write it to a disk. It holds a body that
        # somebody else has read.
        if isinstance(candidate, SpooledTemporaryFile):
            break
        try:
            return OwnSocket(candidate.fileno())
        except (AttributeError, OSError, ValueError):  # no file, not one with a descriptor, closed
            continue
    # Of a server that does leave it there the client has gone, and a UNIX socket has no port.
    if any(key in environ for key in (*_WSGI_SOCKETS, _WAITRESS)):
        return None
    return _NO_SOCKET if _port(environ.get("SERVER_PORT")) else None


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
