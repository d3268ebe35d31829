# SPDX-License-Identifier: Apache-2.0
"""For whom proxies say that they have forwarded a request: X-Forwarded-For, and Forwarded.

Each proxy adds its client at the right-hand end. So they are read from there: what is further left
was written by whoever is further away, and cannot change what those said who came after.

Source:
    RFC 7239, sections 4 and 6. X-Forwarded-For has no standard: it is read as balancers write it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Before an IPv4 address that is written as an IPv6 one.
_MAPPED = bytes(10) + b"\xff\xff"
_BLANKS = " \t"
_PORT = re.compile(r"[0-9]{1,5}")
_OBFUSCATED_PORT = re.compile(r"_[A-Za-z0-9._-]+")
_LAST_PORT = 65_535
_QUOTED = r'"(?:[^"\\]|\\.)*"'
# A value that should be quoted is not always: it is as clear without.
_PAIR = rf"([!#$%&'*+.^_`|~0-9A-Za-z-]+)=({_QUOTED}|[^\s\",;\\]+)"
_PAIRS = re.compile(_PAIR)
_ELEMENT = re.compile(rf"(?:{_PAIR})?(?:[ \t]*;[ \t]*(?:{_PAIR})?)*")
_ESCAPED = re.compile(r"\\(.)")


class Node(NamedTuple):
    """Whom a proxy has had a request from.

    Attributes:
        address: 16 bytes, IPv4 as IPv4-mapped IPv6.
        port: 0: it is not told.
    """

    address: bytes
    port: int


def x_forwarded_for(text: str, *, is_cut: bool) -> Iterator[Node | None]:
    """Those that a value of X-Forwarded-For tells, the last one first.

    Args:
        text: of all its lines, joined by commas.
        is_cut: there was more before it.
    Yields:
        None, and then no more: who comes next is not told, or cannot be read.
    """
    return _nodes(text, _last_item, _node, is_cut=is_cut)


def forwarded(text: str, *, is_cut: bool) -> Iterator[Node | None]:
    """The same of Forwarded, RFC 7239."""
    return _nodes(text, _last_element, _node_of_element, is_cut=is_cut)


def _nodes(
    text: str,
    last: Callable[[str], tuple[str | None, str] | None],
    node_of: Callable[[str], Node | None],
    *,
    is_cut: bool,
) -> Iterator[Node | None]:
    rest: str | None = text
    while rest is not None:
        split = last(rest)
        if split is None:
            yield None
            return
        rest, item = split
        item = item.strip(_BLANKS)
        if rest is None and is_cut:
            yield None  # of this one the start may be missing, and all that was before it is
        elif item:
            node = node_of(item)
            yield node
            if node is None:
                return


def _last_item(text: str) -> tuple[str | None, str]:
    """What is before a list's last item, and that; None: there is nothing."""
    rest, comma, item = text.rpartition(",")
    return (rest if comma else None), item


def _last_element(text: str) -> tuple[str | None, str] | None:
    """The same where commas within quotes part nothing; None: a quote does not begin."""
    end = len(text)
    while True:
        comma, quote = text.rfind(",", 0, end), text.rfind('"', 0, end)
        if quote <= comma:
            return (text[:comma] if comma >= 0 else None), text[comma + 1 :]
        end = text.rfind('"', 0, quote)
        while end > 0 and text[end - 1] == "\\":  # before the first one there is a `=`
            end = text.rfind('"', 0, end)
        if end < 0:
            return None


def _node_of_element(element: str) -> Node | None:
    if not _ELEMENT.fullmatch(element):
        return None
    told = [value for name, value in _PAIRS.findall(element) if name.lower() == "for"]
    if len(told) != 1:
        return None
    value: str = told[0]
    if value.startswith('"'):
        value = _ESCAPED.sub(r"\1", value[1:-1])
    # An address of IPv6 is in brackets here: else its end may be a port.
    return None if value.count(":") > 1 and not value.startswith("[") else _node(value)


def _node(text: str) -> Node | None:
    """An address, with its port or without."""
    if text.startswith("["):
        host, bracket, after = text[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            return None
        return _made(socket.AF_INET6, host, after[1:] if after else None)
    if text.count(":") > 1:
        return _made(socket.AF_INET6, text, None)
    host, colon, port = text.partition(":")
    return _made(socket.AF_INET, host, port if colon else None)


def _made(family: int, host: str, port: str | None) -> Node | None:
    try:
        address = socket.inet_pton(family, host)
    except (OSError, ValueError):
        return None
    number = 0
    if port is not None and not _OBFUSCATED_PORT.fullmatch(port):
        number = int(port) if _PORT.fullmatch(port) else _LAST_PORT + 1
    if number > _LAST_PORT:
        return None
    return Node(address if family == socket.AF_INET6 else _MAPPED + address, number)
