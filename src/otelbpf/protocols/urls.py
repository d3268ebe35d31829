# SPDX-License-Identifier: Apache-2.0
"""What a request line and a Host header say: what is asked for, and of which server.

The kernel's series tell clients' requests apart by all that this depends on (bpf/ledger/route.h).

Source:
    RFC 9112, section 3.2: a host in the request line goes before the Host header.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

_DEFAULT_PORTS = {"http": 80, "https": 443}
_PORT_MAX = 65_535
_SERVERS_KEPT = 4_096


class RequestLine(NamedTuple):
    """A request line in its parts, each as it was sent.

    Attributes:
        scheme: `http` or `https`.
        authority: the host, and its port, that the line itself names; empty: it does not.
        path: without the query; empty where this is no request line.
        path_cut: the path was longer than the kernel keeps.
    """

    method: str
    scheme: str
    authority: str
    path: str
    query: str
    path_cut: bool


class Server(NamedTuple):
    """Which server was asked.

    Attributes:
        authority: as it is written in a URL.
        address: the same without a port, and without the brackets of IPv6.
    """

    authority: str
    address: str
    port: int


def split_request_line(line: str, *, is_cut: bool) -> RequestLine:
    """Takes a request line apart.

    Args:
        is_cut: it was longer than the kernel keeps.
    """
    method, _, rest = line.partition(" ")
    target, space, version = rest.rpartition(" ")
    target_cut = is_cut and not (space and "HTTP/1.".startswith(version[:7]))
    path, mark, query = (rest if target_cut else target).partition("?")
    path_cut = target_cut and not mark
    # Nearly all of them; what CONNECT asks for is a server, whatever it begins with.
    if path.startswith("/") and method != "CONNECT":
        return RequestLine(method, "http", "", path, query, path_cut)
    scheme, separator, remote = path.partition("://")
    authority = ""
    if separator and scheme and "/" not in scheme:
        authority, slash, path = remote.partition("/")
        path = f"/{path}"
        if path_cut and not slash:  # a part of a host is another one
            authority = ""
    elif method == "CONNECT" and not path_cut:
        authority = path
    scheme = scheme.lower()
    return RequestLine(
        method,
        scheme if separator and scheme in _DEFAULT_PORTS else "http",
        # Who asks there is nobody's business, nor is their password.
        authority.rpartition("@")[2],
        path,
        query,
        path_cut,
    )


@functools.lru_cache(_SERVERS_KEPT)
def server_asked(scheme: str, authority: str, host: str, address: str, port: int) -> Server:
    """Which server a request is for.

    Args:
        scheme, authority: of its request line.
        host: its Host header.
        address, port: of the server's side of the connection, for what these two leave open.
    """
    if authority:
        return Server(authority, *_split_host(authority, _DEFAULT_PORTS[scheme]))
    if host:
        # It names no scheme, so no default port either; a proxy may hand on its client's.
        return Server(host, *_split_host(host, port))
    return Server(authority_of(address, port), address, port)


def authority_of(host: str, port: int) -> str:
    """Host and port in one word: an IPv6 address is in brackets there."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _split_host(host: str, default_port: int) -> tuple[str, int]:
    """A name and a port; IPv6 literals lose their brackets."""
    name, separator, port = host.rpartition(":")
    if not separator or (":" in name and not name.endswith("]")):
        return host.strip("[]"), default_port
    # The client wrote it: a number that is none, or too large for OTLP, must do no harm.
    is_port = port.isascii() and port.isdigit() and int(port) <= _PORT_MAX
    return name.strip("[]"), int(port) if is_port else default_port
