# SPDX-License-Identifier: Apache-2.0
"""What the kernel's connection tracking remembers of connections whose packets are rewritten."""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from otelbpf.errors import KernelError
from otelbpf.host.netns import Netns

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


def led_elsewhere(ports: Collection[int], netns: Netns) -> set[int]:
    """Which of these ports connections came for that go to another port or address.

    Returns:
        Only those of which that is known.
    """
    try:
        return netns.run(lambda: _find_led_elsewhere(ports))
    except (OSError, KernelError):
        return set()


def _find_led_elsewhere(ports: Collection[int]) -> set[int]:
    with _TABLE.open() as table:
        return find_led_elsewhere(table, ports)


def find(lines: Iterable[str], connections: Collection[Ends]) -> dict[Ends, Endpoint]:
    """The same, of the table's lines: each has what came, and what the answers to it are."""
    wanted = set(connections)
    ports = {(str(local[1]), str(peer[1])) for peer, local in wanted}
    found = {}
    for came, answer in _tuples(lines):
        # Addresses take long to compare.
        if (answer.get("sport"), answer.get("dport")) not in ports:
            continue
        local, peer = _ends(answer)
        _, wire = _ends(came)
        if (peer, local) in wanted and wire != local:
            found[peer, local] = wire
    return found


def find_led_elsewhere(lines: Iterable[str], ports: Collection[int]) -> set[int]:
    """The same, of the table's lines."""
    wanted = {str(port) for port in ports}
    found = set()
    for came, answer in _tuples(lines):
        if came.get("dport") in wanted:
            _, wire = _ends(came)
            local, _ = _ends(answer)
            if wire != local:
                found.add(wire[1])
    return found


def _tuples(lines: Iterable[str]) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """What came, and what the answers to it are; without ports where it is of no such protocol."""
    for line in itertools.islice(lines, _MOST_LINES):
        words = _WORDS.findall(line)
        yield dict(words[:_TUPLE]), dict(words[_TUPLE : 2 * _TUPLE])


def _ends(words: dict[str, str]) -> tuple[Endpoint, Endpoint]:
    """Source and destination."""
    return (_plain(words["src"]), int(words["sport"])), (_plain(words["dst"]), int(words["dport"]))


def _plain(address: str) -> str:
    return str(ipaddress.ip_address(address))
