# SPDX-License-Identifier: Apache-2.0
"""What the kernel's connection tracking remembers of connections whose packets are rewritten."""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from otelbpf.errors import KernelError
from otelbpf.netns import Netns

# Of the calling thread's namespace; only kernels that track connections, and tell of it, have it.
_TABLE = Path("/proc/thread-self/net/nf_conntrack")
_WORDS = re.compile(r"\b(src|dst|sport|dport)=(\S+)")
_TUPLE = 4  # words: one for each end's address and port
_MOST_LINES = 200_000

#: An address and a port.
Endpoint = tuple[str, int]
#: The peer's end of a connection, and the local socket's own.
Ends = tuple[Endpoint, Endpoint]


def on_the_wire(connections: Collection[Ends], netns: Netns) -> dict[Ends, Endpoint]:
    """For whom the packets of connections to local sockets came in.

    Returns:
        Only where that is known, and not the socket's own end.
    """
    try:
        return netns.run(lambda: _find(connections))
    except (OSError, KernelError):
        return {}


def _find(connections: Collection[Ends]) -> dict[Ends, Endpoint]:
    with _TABLE.open() as table:
        return find(table, connections)


def find(lines: Iterable[str], connections: Collection[Ends]) -> dict[Ends, Endpoint]:
    """The same, of the table's lines: each has what came, and what the answers to it are."""
    wanted = set(connections)
    ports = {(str(local[1]), str(peer[1])) for peer, local in wanted}
    found = {}
    for line in itertools.islice(lines, _MOST_LINES):
        words = _WORDS.findall(line)
        came, answer = dict(words[:_TUPLE]), dict(words[_TUPLE : 2 * _TUPLE])
        # Addresses take long to compare.
        if (answer.get("sport"), answer.get("dport")) not in ports:
            continue
        local, peer = _ends(answer)
        _, wire = _ends(came)
        if (peer, local) in wanted and wire != local:
            found[peer, local] = wire
    return found


def _ends(words: dict[str, str]) -> tuple[Endpoint, Endpoint]:
    """Source and destination."""
    return (_plain(words["src"]), int(words["sport"])), (_plain(words["dst"]), int(words["dport"]))


def _plain(address: str) -> str:
    return str(ipaddress.ip_address(address))
