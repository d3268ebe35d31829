# SPDX-License-Identifier: Apache-2.0
"""One end of a connection: takes its steps for each request, and says when it took them.

    actor.py PLAN

It is a process of its own, since what it injects (a stop, a hog) would hold its tester too. It
runs with real-time priority on a processor of its own: what it injects is then what it says, and
not also the wait for a processor that others use.

Output: as JSON, for each step the CLOCK_MONOTONIC times in ns before and after, one pair a request.
"""

from __future__ import annotations

import fcntl
import gc
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import termios
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from otelbpf_plugin.marker import END, MARK, START, tell

PRIORITY, _PRIORITY_OF_HOG = 10, 20
# Nobody waits longer than this: a peer that is gone must not leave a hog behind.
_STUCK_S = 20.0
_HOG_MOST_NS = 500_000_000
_SAMPLED = 1
_LOOK_S = 0.0002
_RETRY_S = 0.01
# Before each request, so that those with a delay and those without come to the same calm.
_PAUSE_S = 0.005
# Of the x86-64, and of what /proc/PID/stat calls it.
_RECVFROM, _POLL, _ASLEEP, _STOPPED = "45", "7", "S", "T"
_MOST = 1 << 20


class Step(StrEnum):
    """What an end does. Each is taken at most once for each request."""

    WRITE = "write"
    WRITE_HALF = "write_half"
    WRITE_REST = "write_rest"
    #: Up to the message's end.
    READ = "read"
    #: What one call gives.
    READ_SOME = "read_some"
    #: Without reading, or being woken for it: until the message's first byte is on the socket's
    #: receive queue, or all of them.
    AWAIT_FIRST = "await_first"
    AWAIT_WHOLE = "await_whole"
    #: As long as the request's delay.
    SLEEP = "sleep"
    #: Until the socket is readable: poll(), which sleeps, and is woken.
    POLL = "poll"
    #: Until the other end sleeps inside recv() or poll().
    UNTIL_IT_WAITS = "until_it_waits"
    #: SIGSTOP and SIGCONT to the other end.
    STOP = "stop"
    CONTINUE = "continue"
    #: The other end's processor is kept busy by what comes before it, until RELEASE ends.
    HOG = "hog"
    RELEASE = "release"
    #: What is written stays in the socket; leaves it.
    CORK = "cork"
    UNCORK = "uncork"
    #: The application says so, as one with the plugin does.
    HANDLER_STARTS = "handler_starts"
    HANDLER_ENDS = "handler_ends"
    #: What is received is acknowledged late; now.
    DELAY_ACKS = "delay_acks"
    ACK = "ack"


@dataclass(frozen=True)
class Plan:
    """What an actor is told.

    Attributes:
        asks: it connects and sends the requests; else it listens and answers.
        address, port: that it listens on or connects to.
        path: of the requests; followed by each one's number.
        request_bytes, response_bytes: of each message, head and body.
        receive_buffer, send_buffer: SO_RCVBUF and SO_SNDBUF; 0: as the kernel likes.
        delays_ns: one for each request.
        processor: that it runs on.
        other_pid, other_processor: of the other end; 0: not needed.
    """

    asks: bool
    address: str
    port: int
    steps: tuple[Step, ...]
    path: str
    request_bytes: int
    response_bytes: int
    receive_buffer: int
    send_buffer: int
    delays_ns: tuple[int, ...]
    processor: int
    other_pid: int = 0
    other_processor: int = 0

    def to_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """What to_json() made."""
        fields = json.loads(text)
        fields["steps"] = tuple(map(Step, fields["steps"]))
        return cls(**fields)


def request(path: str, number: int, size: int) -> bytes:
    """A request of so many bytes."""
    return _message(f"POST {path}/{number} HTTP/1.1\r\nHost: truth\r\n", size)


def response(size: int) -> bytes:
    """A response of so many bytes."""
    return _message("HTTP/1.1 200 OK\r\n", size)


def _message(head: str, size: int) -> bytes:
    length = size - len(f"{head}Content-Length: {0:07}\r\n\r\n")
    return f"{head}Content-Length: {length:07}\r\n\r\n".encode() + b"." * length


class Hog:
    """A process that keeps a processor busy when it is told to, and says when it let go."""

    def __init__(self, processor: int) -> None:
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)  # a byte: go on; and from 8 on when it let go
        mine, its = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            mine.close()
            become_real_time(processor, _PRIORITY_OF_HOG)
            self._serve(its)
            os._exit(0)
        its.close()
        self._socket = mine

    def _serve(self, its: socket.socket) -> None:
        shared = self._shared
        while its.recv(1):  # nothing: the other end is gone
            shared[0] = 1
            shared[8:16] = bytes(8)
            its.send(b".")
            end = time.monotonic_ns() + _HOG_MOST_NS
            while shared[0] and time.monotonic_ns() < end:
                pass
            shared[8:16] = struct.pack("q", time.monotonic_ns())

    def start(self) -> None:
        """Returns once it has the processor."""
        self._socket.send(b".")
        self._socket.recv(1)

    def stop(self) -> int:
        """Gives when it let go."""
        self._shared[0] = 0
        while not (at := struct.unpack("q", self._shared[8:16])[0]):
            pass
        return at

    def close(self) -> None:
        """Ends it."""
        self._socket.close()
        os.waitpid(self._pid, 0)


def become_real_time(processor: int, priority: int) -> None:
    """Of the calling thread.

    Raises:
        SystemExit: it may not.
    """
    os.sched_setaffinity(0, {processor})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError as error:
        raise SystemExit(
            "the actor gets no real-time priority: run this as root, and where control groups "
            "share out real-time (cpu.rt_runtime_us) in one that has some"
        ) from error


def _wait_until(pid: int, state: str, *calls: str) -> None:
    """Until the process is in this state of /proc/PID/stat, and inside one of these calls."""
    task = Path(f"/proc/{pid}")
    end = time.monotonic() + _STUCK_S
    while time.monotonic() < end:
        now = (task / "stat").read_text().rpartition(")")[2].split()[0]
        if now == state and (not calls or (task / "syscall").read_text().split()[0] in calls):
            return
        time.sleep(_LOOK_S)
    raise SystemExit(f"process {pid} was not in state {state} after {_STUCK_S:g} s")


class Actor:
    """Takes the steps of one plan on one connection."""

    def __init__(self, plan: Plan, sock: socket.socket) -> None:
        self._plan = plan
        self._socket = sock
        self._hog = Hog(plan.other_processor) if Step.HOG in plan.steps else None
        self._buffer = memoryview(bytearray(_MOST))
        self._message = response(plan.response_bytes)
        self._to_read = plan.response_bytes if plan.asks else plan.request_bytes
        self._left = 0
        self._mark = b""
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def play(self) -> dict[str, list[tuple[int, int]]]:
        """All requests; gives when each step of each was taken."""
        taken: dict[str, list[tuple[int, int]]] = {step: [] for step in self._plan.steps}
        for number, delay_ns in enumerate(self._plan.delays_ns):
            if self._plan.asks:
                self._message = request(self._plan.path, number, self._plan.request_bytes)
                time.sleep(_PAUSE_S)
            self._left = self._to_read
            self._mark = MARK.pack(os.urandom(16), os.urandom(8), bytes(8), bytes(16), bytes(16),
                                   0, 0, _SAMPLED)  # fmt: skip
            for step in self._plan.steps:
                taken[step].append(self._take(step, delay_ns))
        if self._hog:
            self._hog.close()
        return taken

    def _take(self, step: Step, delay_ns: int) -> tuple[int, int]:
        half = len(self._message) // 2
        match step:
            case Step.WRITE:
                return self._write(self._message)
            case Step.WRITE_HALF:
                return self._write(self._message[:half])
            case Step.WRITE_REST:
                return self._write(self._message[half:])
            case Step.READ:
                begin = end = time.monotonic_ns()
                while self._left:
                    end = self._read_once()[1]
                return begin, end
            case Step.READ_SOME:
                return self._read_once()
            case _:
                begin = time.monotonic_ns()
                end = self._other(step, delay_ns)
                return begin, end or time.monotonic_ns()

    def _other(self, step: Step, delay_ns: int) -> int | None:
        """What neither reads nor writes; gives when it was over if that is not now."""
        plan = self._plan
        match step:
            case Step.AWAIT_FIRST:
                self._await(1)
            case Step.AWAIT_WHOLE:
                self._await(self._to_read)
            case Step.SLEEP if delay_ns:
                time.sleep(delay_ns / 1e9)
            case Step.POLL:
                self._poll.poll(_STUCK_S * 1000)
            case Step.UNTIL_IT_WAITS:
                _wait_until(plan.other_pid, _ASLEEP, _RECVFROM, _POLL)
            case Step.STOP:
                os.kill(plan.other_pid, signal.SIGSTOP)
                _wait_until(plan.other_pid, _STOPPED)
            case Step.CONTINUE:
                os.kill(plan.other_pid, signal.SIGCONT)
            case Step.HOG:
                self._hog.start()
            case Step.RELEASE:
                return self._hog.stop()
            case Step.CORK | Step.UNCORK:
                self._set(socket.TCP_CORK, step is Step.CORK)
            case Step.DELAY_ACKS | Step.ACK:
                self._set(socket.TCP_QUICKACK, step is Step.ACK)
            case Step.HANDLER_STARTS:
                self._tell(START)
            case Step.HANDLER_ENDS:
                self._tell(END)
        return None

    def _set(self, option: int, value: bool) -> None:
        self._socket.setsockopt(socket.IPPROTO_TCP, option, value)

    def _tell(self, option: int) -> None:
        if number := tell(self._socket.fileno(), option, self._mark):
            raise SystemExit(f"the agent knows no such request: {os.strerror(number)}")

    def _write(self, data: bytes) -> tuple[int, int]:
        begin = time.monotonic_ns()
        self._socket.sendall(data)
        return begin, time.monotonic_ns()

    def _read_once(self) -> tuple[int, int]:
        begin = time.monotonic_ns()
        n = self._socket.recv_into(self._buffer)
        end = time.monotonic_ns()
        if not n:
            raise SystemExit("the other end closed the connection")
        self._left -= n
        return begin, end

    def _await(self, count: int) -> None:
        end = time.monotonic() + _STUCK_S
        while struct.unpack("i", fcntl.ioctl(self._socket, termios.FIONREAD, bytes(4)))[0] < count:
            if time.monotonic() > end:
                raise SystemExit(f"the other end sent nothing for {_STUCK_S:g} s")
            time.sleep(_LOOK_S)


def _connect(plan: Plan) -> socket.socket:
    """Tries until the other end listens."""
    end = time.monotonic() + _STUCK_S
    while True:
        sock = _socket(plan)
        try:
            sock.connect((plan.address, plan.port))
            return sock
        except ConnectionRefusedError:
            sock.close()
            if time.monotonic() > end:
                raise
        time.sleep(_RETRY_S)


def _accept(plan: Plan) -> socket.socket:
    with _socket(plan) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((plan.address, plan.port))
        listener.listen()
        return listener.accept()[0]  # it inherits what was set


def _socket(plan: Plan) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A time-out of Python's own would poll before each call, and be woken there.
    timeout = struct.pack("ll", int(_STUCK_S), 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
    if plan.receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, plan.receive_buffer)
    if plan.send_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, plan.send_buffer)
    return sock


def main() -> int:
    """Plays the plan on the command line."""
    plan = Plan.from_json(sys.argv[1])
    actor = Actor(plan, _connect(plan) if plan.asks else _accept(plan))
    become_real_time(plan.processor, PRIORITY)
    gc.disable()
    print(json.dumps(actor.play()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
