# SPDX-License-Identifier: Apache-2.0
"""Two network namespaces joined by two veths, and what to do inside them.

::

    otelbpf-e2e-PID-N-client                     otelbpf-e2e-PID-N-server
        client0  198.18.0.2  ─────── veth ───────  server0  198.18.0.1
        client1  198.18.1.2  ─────── veth ───────  server1  198.18.1.1
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from otelbpf.host.netns import find_netns

# Long enough that only a broken test waits for it.
DEADLINE_S = 30.0
# The compiler and the verifier take long on a busy machine, and so may the last exports.
LONG_S = 90.0

_NAMES = re.compile(r"otelbpf-e2e-(\d+)-\d+-(server|client)")
_numbers = itertools.count()
_IPV6 = ("fd00:6f74::", "fd00:6f74:1::")

T = TypeVar("T")


def wait_until(
    condition: Callable[[], object],
    what: str,
    *,
    state: Callable[[], object] = lambda: "",
    deadline_s: float = DEADLINE_S,
) -> None:
    """Waits for a condition, never for a time.

    Args:
        what: what is waited for, for the error.
        state: what to show if it does not come.
    Raises:
        AssertionError: it did not come.
    """
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline_s} s in vain until {what} {state()}")
        time.sleep(0.005)


def run(*command: str) -> str:
    """Runs a command; its output is in the error if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


@dataclass(frozen=True)
class Side:
    """One namespace, and its end of the first veth."""

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
        answer = json.loads(run("ip", "-n", self.netns, "-j", "link", "show", "dev",
                                interface or self.interface))[0]
        return answer["xdp"]["prog"]["id"] if "xdp" in answer else None

    def qdiscs(self) -> list[str]:
        """The kinds of the queueing disciplines on the first interface."""
        lines = run("tc", "-n", self.netns, "-j", "qdisc", "show", "dev", self.interface)
        return [qdisc["kind"] for qdisc in json.loads(lines)]


@dataclass(frozen=True)
class Network:
    """Both sides; a packet from one reaches the other over a veth."""

    server: Side
    client: Side

    #: The second veth's ends.
    second_interface: str = "server1"
    second_ipv4: str = "198.18.1.1"


def _delete_namespaces_of_the_dead() -> None:
    """A killed run cannot tidy up; the next one does it."""
    for match in _NAMES.finditer(run("ip", "netns", "list")):
        if not Path(f"/proc/{match[1]}").exists():
            with contextlib.suppress(RuntimeError):
                run("ip", "netns", "del", match[0])


def _build(server: Side, client: Side) -> None:
    for side in (server, client):
        run("ip", "netns", "add", side.netns)
        run("ip", "-n", side.netns, "link", "set", "lo", "up")
    for number in (0, 1):
        run("ip", "link", "add", f"server{number}", "netns", server.netns, "type", "veth",
            "peer", "name", f"client{number}", "netns", client.netns)
        for side, role, host in ((server, "server", 1), (client, "client", 2)):
            device = ("dev", f"{role}{number}")
            run("ip", "-n", side.netns, "addr", "add", f"198.18.{number}.{host}/24", *device)
            # nodad: without it the address is not usable for the first second or two.
            run("ip", "-n", side.netns, "addr", "add", f"{_IPV6[number]}{host}/64", *device,
                "nodad")
            run("ip", "-n", side.netns, "link", "set", *device, "up")


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Makes the namespaces; removes them on the way out."""
    _delete_namespaces_of_the_dead()
    stem = f"otelbpf-e2e-{os.getpid()}-{next(_numbers)}"
    server, client = (
        Side(f"{stem}-{role}", f"{role}0", f"198.18.0.{host}", f"fd00:6f74::{host}")
        for role, host in (("server", 1), ("client", 2))
    )
    try:
        _build(server, client)
        yield Network(server, client)
    finally:
        for side in (server, client):
            with contextlib.suppress(RuntimeError):
                run("ip", "netns", "del", side.netns)
