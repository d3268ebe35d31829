# SPDX-License-Identifier: Apache-2.0
"""TCP connections between two network namespaces.

The sockets are this process's own, whichever namespace they live in, so a test
decides byte by byte and segment by segment what both sides do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from support.commands import run
from support.namespaces import Network, network
from support.waiting import DEADLINE_S, wait_until

from otelbpf.host.netns import Netns, find_netns

SERVER_IPV4 = "198.18.0.1"
CLIENT_IPV4 = "198.18.0.2"
SERVER_IPV6 = "fd00:6f74::1"
CLIENT_IPV6 = "fd00:6f74::2"
PORT = 8080
#: Measured too, for a server that must not share a port with the listeners.
SPARE_PORT = 8082
INTERFACE = "server0"
CLIENT_INTERFACE = "client0"

# A veth drops what does not fit into its queue of 256 packets: what a peer may have on its way
# fits, so nothing is lost that a test did not lose, however late the other side gets a processor.
_WINDOW_BYTES = 128 << 10
# On x86-64.
_SYSTEM_CALLS = {"recv": 45, "epoll_wait": 232, "poll": 7, "pselect6": 270}


@dataclass(frozen=True)
class Pair:
    """Both ends of one connection."""

    client: socket.socket
    server: socket.socket

    @property
    def peer_port(self) -> int:
        return self.client.getsockname()[1]

    def close(self) -> None:
        self.client.close()
        self.server.close()

    def send_segment(self, data: bytes) -> None:
        """Sends and waits until the server's socket has it, so that it is a segment of its own.

        Without sleeping: whom a timer wakes while the segment is being queued, and who then reads
        it, is taken for one whom the segment has woken.
        """
        before = unread_bytes(self.server)
        self.client.sendall(data)
        wait_until(
            lambda: unread_bytes(self.server) == before + len(data),
            "a segment arrived",
            pause=os.sched_yield,
        )

    def ask(self, data: bytes) -> None:
        """The client sends, the server reads."""
        self.client.sendall(data)
        assert receive(self.server, len(data)) == data

    def answer(self, data: bytes) -> None:
        """The server sends, the client reads."""
        self.server.sendall(data)
        assert receive(self.client, len(data)) == data

    def exchange(self, request: bytes, response: bytes) -> None:
        """One whole request and its response."""
        self.ask(request)
        self.answer(response)


def unread_bytes(sock: socket.socket) -> int:
    """How many bytes wait on the socket's receive queue."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0]


def receive(sock: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes, acknowledged at once: a delayed one would cost up to 40 ms."""
    data = bytearray()
    while len(data) < count:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        piece = sock.recv(min(count - len(data), 1 << 20))
        if not piece:
            raise AssertionError(f"the connection ended after {len(data)} of {count} bytes")
        data += piece
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    return bytes(data)


def reset(sock: socket.socket) -> None:
    """Closes with a RST instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def prepare(sock: socket.socket) -> socket.socket:
    """No Nagle, a window that no queue is too small for, and a time-out that leaves it blocking."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, _WINDOW_BYTES)
    timeout = struct.pack("ll", int(DEADLINE_S), 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
    return sock


class Worker:
    """A thread that plays one side. Leaving the context joins it and raises what it raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._call, daemon=True)

    def _call(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self._error = error

    @property
    def tid(self) -> int:
        return self._thread.native_id

    def is_blocked_in(self, *calls: str) -> bool:
        """Does it sleep inside one of these system calls?"""
        task = Path(f"/proc/self/task/{self.tid}")
        number = (task / "syscall").read_text().split()[0]
        asleep = (task / "stat").read_text().rpartition(")")[2].split()[0] == "S"
        return asleep and number in {str(_SYSTEM_CALLS[call]) for call in calls}

    def wait_until_blocked_in(self, *calls: str) -> None:
        """Until only what it waits for can wake it."""
        wait_until(
            lambda: self._error or self.is_blocked_in(*calls),
            f"the thread slept inside {' or '.join(calls)}",
        )

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._thread.join(2 * DEADLINE_S)
        if kind is None:
            if self._error is not None:
                raise self._error
            assert not self._thread.is_alive(), "the other side's thread never ended"


@contextlib.contextmanager
def on_processor(number: int) -> Iterator[None]:
    """What this thread does within the block it does on one processor."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


class Lab:
    """A network, and the connections that are made in it."""

    def __init__(self, net: Network) -> None:
        self._net = net
        self._listeners: dict[tuple[str, int], socket.socket] = {}
        self._pairs: list[Pair] = []
        self._routes: set[tuple[str, str]] = set()
        self.server_netns: Netns = find_netns(net.server.netns)
        self.client_netns: Netns = find_netns(net.client.netns)

    def close(self) -> None:
        self.close_connections()
        for listener in self._listeners.values():
            listener.close()

    def close_connections(self) -> None:
        """Closes every connection that connect() made and that is still open."""
        while self._pairs:
            self._pairs.pop().close()

    def keep(self, pair: Pair) -> Pair:
        """Has close_connections() close this pair too."""
        self._pairs.append(pair)
        return pair

    def socket(self, side: str, family: socket.AddressFamily) -> socket.socket:
        """A TCP socket in the namespace of one side, "server" or "client"."""
        netns = self.server_netns if side == "server" else self.client_netns
        return prepare(netns.run(lambda: socket.socket(family, socket.SOCK_STREAM)))

    def route(self, side: str, network: str) -> None:
        """One side's packets for a network go to the other one."""
        if (side, network) in self._routes:
            return
        netns = self.server_netns if side == "server" else self.client_netns
        interface = INTERFACE if side == "server" else CLIENT_INTERFACE
        run("ip", "-n", netns.name, "route", "replace", network, "dev", interface)
        self._routes.add((side, network))

    def listener(self, host: str, port: int = PORT) -> socket.socket:
        """The listening socket for `host` and a port; made once."""
        if (host, port) not in self._listeners:
            listener = self.socket("server", _family(host))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen()
            self._listeners[host, port] = listener
        return self._listeners[host, port]

    def connect(
        self,
        host: str = SERVER_IPV4,
        *,
        port: int = PORT,
        from_port: int = 0,
        client_side: str = "client",
    ) -> Pair:
        """A new connection to `host`, both ends established."""
        listener = self.listener(host, port)
        client = self.socket(client_side, _family(host))
        if from_port:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind((CLIENT_IPV4, from_port))
        client.connect((host, port))
        server, _ = listener.accept()
        return self.keep(Pair(client, prepare(server)))

    def popen(self, side: str, *command: str, **options: object) -> subprocess.Popen:
        """Starts a program in the namespace of one side."""
        enter = (self._net.server if side == "server" else self._net.client).enter()
        return subprocess.Popen([*enter, *command], **options)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextlib.contextmanager
def setting(lab: Lab, name: str, value: str) -> Iterator[None]:
    """A sysctl of the server's namespace."""
    enter = ("nsenter", f"--net=/run/netns/{lab.server_netns.name}", "sysctl", "-q")
    before = run(*enter, "-n", name).strip()
    run(*enter, f"{name}={value}")
    try:
        yield
    finally:
        run(*enter, f"{name}={before}")


@contextlib.contextmanager
def laboratory() -> Iterator[Lab]:
    """A Lab for the length of a `with` block."""
    with network() as net, contextlib.closing(Lab(net)) as lab:
        yield lab
