# SPDX-License-Identifier: Apache-2.0
"""Two network namespaces joined by veths, and what to do inside them.

::

    otelbpf-test-PID-N-client                    otelbpf-test-PID-N-server
        client0  198.18.0.2  ─────── veth ───────  server0  198.18.0.1
                 fd00:6f74::2                               fd00:6f74::1
        client1  198.18.1.2  ─────── veth ───────  server1  198.18.1.1
                 fd00:6f74:1::2                             fd00:6f74:1::1

Both ends of a veth are made inside: nothing shows in the host's own network.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from otelbpf.host.netns import find_netns
from support.commands import run
from support.waiting import DEADLINE_S

_NAMES = re.compile(r"otelbpf-test-(\d+)-\d+-[a-z]+")
_numbers = itertools.count()
_HOSTS = {"server": 1, "client": 2}
# Set aside for tests between hosts (RFC 2544), and for private networks.
_IPV4 = ("198.18.0.{}", "198.18.1.{}")
_IPV6 = ("fd00:6f74::{}", "fd00:6f74:1::{}")

T = TypeVar("T")


@dataclass(frozen=True)
class Side:
    """One namespace, and its end of a veth."""

    netns: str
    interface: str
    ipv4: str
    ipv6: str

    @property
    def path(self) -> Path:
        """The file that stands for the namespace."""
        return Path("/run/netns") / self.netns

    def enter(self) -> list[str]:
        """The start of a command line that runs the rest inside this namespace."""
        return ["nsenter", f"--net={self.path}"]

    def call(self, function: Callable[[], T]) -> T:
        """Calls `function` inside this namespace: sockets made there stay there."""
        return find_netns(self.netns).run(function)

    def connect(self, host: str, port: int) -> socket.socket:
        """A connection from here."""
        return self.call(lambda: socket.create_connection((host, port), DEADLINE_S))

    def xdp_program(self, interface: str | None = None) -> int | None:
        """The id of the XDP program on an interface, as iproute2 tells it."""
        answer = json.loads(
            run("ip", "-n", self.netns, "-j", "link", "show", "dev", interface or self.interface)
        )[0]
        return answer["xdp"]["prog"]["id"] if "xdp" in answer else None

    def qdiscs(self) -> list[str]:
        """The kinds of the queueing disciplines on the interface."""
        lines = run("tc", "-n", self.netns, "-j", "qdisc", "show", "dev", self.interface)
        return [qdisc["kind"] for qdisc in json.loads(lines)]


@dataclass(frozen=True)
class Network:
    """Both sides; a packet from one reaches the other over a veth.

    Attributes:
        server, client: with their ends of the first veth.
        second: the server's side with its end of the second one, where two were asked for.
    """

    server: Side
    client: Side
    second: Side


@contextlib.contextmanager
def namespaces(*roles: str) -> Iterator[tuple[str, ...]]:
    """Makes namespaces whose loopback is up, and gives their names; removes them after the block.

    Raises:
        RuntimeError: `ip` said no.
    """
    _remove_those_of_the_dead()
    stem = f"otelbpf-test-{os.getpid()}-{next(_numbers)}"
    names = tuple(f"{stem}-{role}" for role in roles)
    try:
        for name in names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            _remove(name)


@contextlib.contextmanager
def network(veths: int = 1) -> Iterator[Network]:
    """Makes both namespaces and one veth, or two; removes them after the block."""
    with namespaces("server", "client") as names:
        ends = [
            tuple(_end(name, role, number) for name, role in zip(names, _HOSTS, strict=True))
            for number in (0, 1)
        ]
        for server, client in ends[:veths]:
            join(server, client)
        yield Network(*ends[0], second=ends[1][0])


def _end(netns: str, role: str, number: int) -> Side:
    host = _HOSTS[role]
    return Side(netns, f"{role}{number}", _IPV4[number].format(host), _IPV6[number].format(host))


def join(server: Side, client: Side) -> None:
    """Makes the veth whose ends these are."""
    run("ip", "link", "add", server.interface, "netns", server.netns, "type", "veth",
        "peer", "name", client.interface, "netns", client.netns)  # fmt: skip
    for side in (server, client):
        device = ("dev", side.interface)
        run("ip", "-n", side.netns, "addr", "add", f"{side.ipv4}/24", *device)
        # nodad: without it the address is not usable for the first second or two.
        run("ip", "-n", side.netns, "addr", "add", f"{side.ipv6}/64", *device, "nodad")
        run("ip", "-n", side.netns, "link", "set", *device, "up")


def _remove_those_of_the_dead() -> None:
    """A killed run cannot tidy up; the next one does it."""
    for match in _NAMES.finditer(run("ip", "netns", "list")):
        if not Path(f"/proc/{match[1]}").exists():
            _remove(match[0])


def _remove(name: str) -> None:
    # It may be gone: a test removed it, another run tidied up, or it was never made.
    with contextlib.suppress(RuntimeError):
        run("ip", "netns", "del", name)
