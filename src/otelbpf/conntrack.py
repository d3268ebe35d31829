# SPDX-License-Identifier: Apache-2.0
"""What the kernel's connection tracking remembers of a connection whose packets are rewritten."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path

from otelbpf.netns import Netns

# Of the calling thread's namespace; only kernels that track connections, and tell of it, have it.
_TABLE = Path("/proc/thread-self/net/nf_conntrack")
_WORDS = re.compile(r"\b(src|dst|sport|dport)=(\S+)")
_TUPLE = 4  # words: one for each end's address and port
_MOST_LINES = 200_000

#: An address and a port.
Endpoint = tuple[str, int]


def port_on_the_wire(peer: Endpoint, local: Endpoint, netns: Netns) -> int | None:
    """For which port the packets of a connection to a local socket came in.

    Args:
        peer: of the socket.
        local: its own end.
    Returns:
        None where it is the socket's own, or where that is not known.
    """
    try:
        return netns.run(lambda: _find(peer, local))
    except OSError:
        return None


def _find(peer: Endpoint, local: Endpoint) -> int | None:
    with _TABLE.open() as table:
        return find(table, peer, local)


def find(lines: Iterable[str], peer: Endpoint, local: Endpoint) -> int | None:
    """The same, of the table's lines: each has what came, and what the answers to it are."""
    mark = f"sport={local[1]} dport={peer[1]} "
    for number, line in enumerate(lines):
        if number >= _MOST_LINES:
            return None
        if mark not in line:
            continue
        words = _WORDS.findall(line)
        if len(words) < 2 * _TUPLE:
            continue
        came, answer = dict(words[:_TUPLE]), dict(words[_TUPLE : 2 * _TUPLE])
        if _ends(answer) == (local, peer):
            port = int(came["dport"])
            return port if port != local[1] else None
    return None


def _ends(words: dict[str, str]) -> tuple[Endpoint, Endpoint]:
    return (_plain(words["src"]), int(words["sport"])), (_plain(words["dst"]), int(words["dport"]))


def _plain(address: str) -> str:
    return str(ipaddress.ip_address(address))
