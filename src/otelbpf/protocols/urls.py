# SPDX-License-Identifier: Apache-2.0
"""What a request line and a Host header say: what is asked for, and of which server.

The kernel's series tell clients' requests apart by all that this depends on (bpf/ledger/route.h).

Source:
    RFC 9112, section 3.2: a host in the request line goes before the Host header.
    RFC 3986, section 3.2: what a host and a port look like. What is neither may be anything, a path
    or a password, and is told as none.
"""

from __future__ import annotations

import functools
import re
import socket
from typing import NamedTuple

_DEFAULT_PORTS = {"http": 80, "https": 443}
#: Of URLs that name a host, and what is spoken there.
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_HOST = re.compile(
    r"(?P<name>(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])"
    r"(?::(?P<port>[0-9]{0,5}))?"
)
_PORT_MAX = 65_535
_SERVERS_KEPT = 4_096


class RequestLine(NamedTuple):
    """A request line in its parts, each as it was sent.

    Attributes:
        scheme: `http` or `https`.
        authority: the host, and its port, that the line itself names; empty: it names none.
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
    authority, spoken = "", "http"
    if separator and scheme and "/" not in scheme:
        authority, slash, path = remote.partition("/")
        path = f"/{path}"
        spoken = _SCHEMES.get(scheme.lower(), "")
        if not spoken or (path_cut and not slash):  # a part of a host is another one
            authority = ""
    elif method == "CONNECT" and not path_cut:
        authority = path
    # Who asks there is nobody's business, nor is their password.
    authority = authority.rpartition("@")[2]
    found = _HOST.fullmatch(authority)
    if not found or (method == "CONNECT" and not found["port"]):
        authority = ""
    return RequestLine(method, spoken or "http", authority, path, query, path_cut)


@functools.lru_cache(_SERVERS_KEPT)
def server_asked(scheme: str, authority: str, host: str, address: str, port: int) -> Server:
    """Which server a request is for.

    Args:
        scheme, authority: of its request line.
        host: its Host header.
        address, port: of the server's side of the connection, for what these two leave open.
    """
    # Host names no scheme, so no default port either; a proxy may hand on its client's.
    for named, default_port in ((authority, _DEFAULT_PORTS[scheme]), (host, port)):
        if server := _named(named, default_port):
            return server
    return Server(authority_of(address, port), address, port)


def authority_of(host: str, port: int) -> str:
    """Host and port in one word: an IPv6 address is in brackets there."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _named(authority: str, default_port: int) -> Server | None:
    """The server of a host, IPv6 in brackets, and perhaps a port; None: it is no such thing."""
    found = _HOST.fullmatch(authority)
    if not found or int(found["port"] or 0) > _PORT_MAX:
        return None
    address = found["name"]
    if found["ipv6"]:
        address = found["ipv6"]
        try:
            socket.inet_pton(socket.AF_INET6, address)
        except OSError:
            return None
    return Server(authority, address, int(found["port"] or default_port))
