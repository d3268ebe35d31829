# SPDX-License-Identifier: Apache-2.0
"""Two network namespaces joined by a veth: a network of the demo's own.

::

    otelbpf-demo-PID-client                    otelbpf-demo-PID-server
        client0  198.18.0.2  ────── veth ──────  server0  198.18.0.1
                 fd00:...::2                              fd00:...::1

Both ends of the veth are created inside the namespaces, so nothing shows in the host's own
network, and two demos at once do not meet.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from demo.names import leftovers, name_of
from otelbpf.host.netns import find_netns

# The gateway's, on the veth, and its models', on the server's loopback.
GATEWAY_PORT = 8080
MODEL_PORTS = (9001, 9002)

NETNS_DIRECTORY = Path("/run/netns")

# 198.18.0.0/15 is set aside for tests between hosts (RFC 2544), fd00::/8 for private networks.
_IPV4 = "198.18.0.{}"
_IPV6 = "fd00:6f74:656c::{}"


T = TypeVar("T")


class TopologyError(Exception):
    """The namespaces could not be made; the message gives the command and its answer."""


@dataclass(frozen=True)
class Side:
    """One namespace and its end of the veth."""

    netns: str
    interface: str
    ipv4: str
    ipv6: str

    def enter(self) -> list[str]:
        """The start of a command line that runs the rest inside this namespace."""
        return ["nsenter", f"--net={NETNS_DIRECTORY / self.netns}"]

    def call(self, function: Callable[[], T]) -> T:
        """Call this inside the namespace: a socket that is made there stays there."""
        return find_netns(self.netns).run(function)


@dataclass(frozen=True)
class Topology:
    """Both sides; a packet from one reaches the other over the veth."""

    server: Side
    client: Side


@contextmanager
def topology() -> Iterator[Topology]:
    """Make the two namespaces; remove them on the way out, whatever happened.

    Raises:
        TopologyError: ``ip`` said no: not root, or no veth in this kernel.
    """
    for path in leftovers(NETNS_DIRECTORY, "server", "client"):
        _remove(path.name)
    server, client = (
        Side(name_of(role), f"{role}0", _IPV4.format(host), _IPV6.format(host))
        for host, role in ((1, "server"), (2, "client"))
    )
    try:
        for side in (server, client):
            _ip("netns", "add", side.netns)
            _ip("-n", side.netns, "link", "set", "lo", "up")
        _ip("link", "add", server.interface, "netns", server.netns, "type", "veth",
            "peer", "name", client.interface, "netns", client.netns)  # fmt: skip
        for side in (server, client):
            device = ("dev", side.interface)
            _ip("-n", side.netns, "address", "add", f"{side.ipv4}/30", *device)
            # nodad: without it the IPv6 address is not usable for the first second or two.
            _ip("-n", side.netns, "address", "add", f"{side.ipv6}/64", *device, "nodad")
            _ip("-n", side.netns, "link", "set", *device, "up")
        yield Topology(server, client)
    finally:
        for side in (server, client):
            _remove(side.netns)


def _remove(netns: str) -> None:
    # Two demos may find the same leftover, and a half-made topology lacks one: a namespace
    # that is gone is what was wanted.
    if (NETNS_DIRECTORY / netns).exists():
        subprocess.run(["ip", "netns", "del", netns], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    command = ["ip", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise TopologyError(
            "cannot make the demo's network: the ip command (iproute2) is missing"
        ) from error
    if done.returncode:
        answer = done.stderr.strip() or f"exit code {done.returncode}"
        raise TopologyError(f"cannot make the demo's network: {' '.join(command)}: {answer}")
