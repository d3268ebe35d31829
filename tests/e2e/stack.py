# SPDX-License-Identifier: Apache-2.0
"""The agent as a user runs it, and what came out of it."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.otlp import Kind, Span
from demo.processes import Process, running
from demo.receiver import Receiver
from support.waiting import DEADLINE_S, LONG_S, wait_until

from otelbpf.kernel.records import Stamp

COUNT = 23
# A line of what a program has missed.
_MISSED = re.compile(r" missed [0-9]+ calls?: another program was running")
#: How the line begins that says that it loads.
LOADING = "otelbpf: loading, to measure "
#: The command that installing otelbpf made, next to the interpreter of the tests.
OTELBPF = Path(sys.executable).parent / "otelbpf"

_numbers = itertools.count()
_REQUESTS = (Kind.SERVER, Kind.CLIENT)
_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_BPF_PROG_GET_FD_BY_ID = 13
_BPF_LINK_GET_FD_BY_ID = 30


@dataclass(frozen=True)
class Ended:
    """What an agent left behind.

    Attributes:
        sums: what it wrote to its --sums-file; None: nothing.
    """

    code: int
    stdout: str
    stderr: str
    sums: dict[str, Any] | None

    def assert_clean(self, seen: int, lost: Mapping[str, int] | None = None, **others: int) -> None:
        """It ended well, and everything it saw was exported but for `others` and what it lost."""
        assert self.code == 0, self.stderr
        assert self.sums is not None, self.stderr
        kept = {name: self.sums[name] for name in ("seen", "exported", "sampled_out", "lost")}
        lost = dict(lost or {})
        exported = seen - sum(others.values()) - sum(lost.values())
        expected = {"exported": exported, "sampled_out": 0, "lost": lost, **others}
        assert kept == {"seen": seen, **expected}, (self.sums, self.stderr)
        self.assert_adds_up()

    def assert_adds_up(self) -> None:
        """seen = exported + sampled out + lost, and the last line says the same.

        Only what programs have missed, under much load, comes after it.
        """
        sums = self.sums
        assert sums is not None, self.stderr
        lost = sum(sums["lost"].values())
        assert sums["in_flight"] == 0, sums
        assert sums["seen"] == sums["exported"] + sums["sampled_out"] + lost, sums
        lines = self.stderr.splitlines()
        last_line = [line for line in lines if not _MISSED.search(line)][-1]
        ignored = f" ({sums['ignored']} by --ignore-route)" if sums["ignored"] else ""
        assert last_line.startswith(
            f"otelbpf: seen {sums['seen']} = exported {sums['exported']} "
            f"+ sampled out {sums['sampled_out']}{ignored} + lost {lost}"
        ), self.stderr

    def assert_refused(self, *words: str) -> None:
        """It said one sentence with these words, and exited with status 2."""
        assert self.code == 2, (self.code, self.stderr)
        assert self.stderr.startswith("otelbpf: "), self.stderr
        said = [line for line in self.stderr.splitlines() if not line.startswith(LOADING)]
        assert len(said) == 1, self.stderr
        assert self.stdout == ""
        for word in words:
            assert word in self.stderr, self.stderr


@dataclass(frozen=True)
class KernelIds:
    """The BPF links and programs that a process holds."""

    links: frozenset[int]
    programs: frozenset[int]

    def left(self) -> KernelIds:
        """Those of them that the kernel still has."""
        return KernelIds(
            frozenset(i for i in self.links if _kernel_has(_BPF_LINK_GET_FD_BY_ID, i)),
            frozenset(i for i in self.programs if _kernel_has(_BPF_PROG_GET_FD_BY_ID, i)),
        )


def _kernel_has(command: int, number: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = number.to_bytes(4, sys.byteorder) + bytes(12)
    fd = libc.syscall(_BPF_SYSCALL, command, attributes, len(attributes))
    if fd < 0:
        assert ctypes.get_errno() == 2, os.strerror(ctypes.get_errno())  # ENOENT
        return False
    os.close(fd)
    return True


def kernel_ids(pid: int) -> KernelIds:
    """What the process `pid` holds, from its file descriptors."""
    links, programs = set(), set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            lines = path.read_text().splitlines()
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
            if "link_id" in fields:
                links.add(int(fields["link_id"]))
            if "prog_id" in fields:
                programs.add(int(fields["prog_id"]))
    return KernelIds(frozenset(links), frozenset(programs))


class Agent:
    """A running `otelbpf run`."""

    def __init__(self, process: Process, files: Path) -> None:
        self._process = process
        self._files = files

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.popen.pid

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._process.stderr.read_text(errors="replace")

    @property
    def ready_file(self) -> Path:
        """Is there while everything is attached."""
        return self._files / "ready"

    def wait_ready(self) -> Agent:
        """Waits until everything is attached."""
        self._process.wait_until(lambda _: self.ready_file.exists(), LONG_S)
        return self

    def is_running(self) -> bool:
        """Has it not ended?"""
        return self._process.popen.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self._process.popen.send_signal(number)

    def wait(self) -> Ended:
        """Waits until it ends by itself."""
        code = self._process.popen.wait(LONG_S)
        sums = self._files / "sums.json"
        return Ended(
            code,
            self._process.stdout.read_text(errors="replace"),
            self.stderr,
            json.loads(sums.read_text()) if sums.exists() else None,
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Ended:
        """Ends it with a signal."""
        self.send(number)
        return self.wait()


@contextlib.contextmanager
def agent(
    directory: Path,
    *arguments: str | int | Path,
    environment: Mapping[str, str] | None = None,
    under: Iterable[str] = (),
    program: Path = OTELBPF,
) -> Iterator[Agent]:
    """Starts `otelbpf run` with these arguments; ends it, if it has not, with the block.

    XDP is on unless they say otherwise: by itself a veth would be left alone.

    Args:
        directory: for its files.
        environment: its OTEL_* variables, beside short delays; without metrics if it says nothing
            of them.
        under: a command that starts it.
        program: another installation's command.
    """
    files = directory / f"agent-{next(_numbers)}"
    files.mkdir()
    command = [
        *under,
        program,
        "run",
        "--xdp",
        "on",
        *map(str, arguments),
        "--ready-file",
        files / "ready",
        "--sums-file",
        files / "sums.json",
    ]
    environment = {
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_METRICS_EXPORTER": "none",
        **(environment or {}),
    }
    with running("otelbpf", command, files, environment) as process:
        started = Agent(process, files)
        try:
            yield started
        except BaseException:
            # What it says at its end shows what became of the requests that somebody missed.
            with contextlib.suppress(subprocess.TimeoutExpired):
                ended = started.stop() if started.is_running() else started.wait()
                print(f"otelbpf ended with {ended.code}, {ended.sums}, and said:\n{ended.stderr}")
            raise


def wait_for_word(running: Agent, *words: str) -> str:
    """Waits until the agent has said something with these words in one line, and gives that."""

    def said() -> list[str]:
        lines = running.stderr.splitlines()
        return [line for line in lines if all(word in line for word in words)]

    wait_until(said, f"it said {words}", state=lambda: running.stderr)
    (line,) = said()
    return line


def otelbpf(
    directory: Path,
    *arguments: str | int | Path,
    environment: Mapping[str, str] | None = None,
    under: Iterable[str] = (),
) -> Ended:
    """Runs an `otelbpf` command that ends by itself."""
    files = directory / f"command-{next(_numbers)}"
    files.mkdir()
    command = [*under, OTELBPF, *map(str, arguments)]
    with running("otelbpf", command, files, environment) as process:
        code = process.popen.wait(LONG_S)
        return Ended(code, process.stdout.read_text(), process.stderr.read_text(), None)


def to(receiver: Receiver) -> dict[str, str]:
    """The variables that send spans to `receiver` over gRPC."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_endpoint}


@dataclass(frozen=True)
class Measured:
    """A request's span and its stages, in order."""

    span: Span
    stages: tuple[Span, ...]

    def __getitem__(self, attribute: str) -> Any:
        return self.span.attributes.get(attribute)

    @property
    def stage_names(self) -> list[str]:
        """The stages' names, in order."""
        return [stage.name for stage in self.stages]

    @property
    def clients_port(self) -> int:
        """That of the one who asked."""
        return self["network.peer.port" if self.span.kind is Kind.SERVER else "network.local.port"]

    def stage_ns(self, name: str) -> int:
        """How long the stage took; 0 if there is none of this name."""
        return sum(s.end_unix_ns - s.start_unix_ns for s in self.stages if s.name == name)

    def stamp_unix_ns(self, stamp: str) -> int:
        """When the stamp was made."""
        for stage in self.stages:
            first, second = stage.name.split("_to_")
            if first == stamp:
                return stage.start_unix_ns
            if second == stamp:
                return stage.end_unix_ns
        raise AssertionError(f"no stamp {stamp} in {self.stage_names}")

    def assert_tiled(self) -> None:
        """The stages are the span's time, to the nanosecond."""
        at = self.span.start_unix_ns
        stamp = self.stages[0].name.split("_to_")[0]
        for stage in self.stages:
            first, second = stage.name.split("_to_")
            assert (stage.start_unix_ns, first) == (at, stamp), self.stage_names
            assert stage.end_unix_ns >= stage.start_unix_ns, stage
            at, stamp = stage.end_unix_ns, second
        assert at == self.span.end_unix_ns, self.stage_names

    def assert_complete(self) -> None:
        """No stamp is absent but those of a reader that was awake already."""
        assert self["otelbpf.ledger.complete"] is True, self.span
        assert set(self["otelbpf.ledger.absent"]) <= {"woken", "running"}, self.span
        stamps = {stamp for name in self.stage_names for stamp in name.split("_to_")}
        assert stamps >= {"nic", "tc", "tcp", "queued", "read", "write", "tc_out"}
        if self.span.kind is Kind.SERVER:
            assert self["otelbpf.tcp.ack.duration_ns"] > 0, self.span


def _by_time(stage: Span) -> tuple[int, int, int]:
    """OTLP promises no order. Stamps of the same nanosecond keep the order of the way."""
    first = stage.name.partition("_to_")[0]
    return stage.start_unix_ns, stage.end_unix_ns, Stamp[first.upper()].value


def measured(spans: Iterable[Span]) -> list[Measured]:
    """The requests among these spans, by connection and their order on it."""
    spans = list(spans)
    stages: dict[str, list[Span]] = {}
    for span in spans:
        if span.kind is Kind.INTERNAL:
            stages.setdefault(span.parent_span_id, []).append(span)
    asked = [span for span in spans if span.kind in _REQUESTS]
    assert len(asked) + sum(map(len, stages.values())) == len(spans)
    ids = {span.span_id for span in asked}
    assert len(ids) == len(asked), "a request was exported twice"
    assert stages.keys() <= ids, "stages of an unknown request"
    requests = (
        Measured(span, tuple(sorted(stages.get(span.span_id, ()), key=_by_time))) for span in asked
    )
    return sorted(
        requests, key=lambda each: (each.clients_port, each["otelbpf.connection.request"])
    )


def wait_for_requests(receiver: Receiver, count: int) -> list[Measured]:
    """Waits until `count` requests' spans have come."""
    came = receiver.wait_for(count, DEADLINE_S, lambda span: span.kind in _REQUESTS)
    requests = measured(receiver.spans())
    assert came, f"{len(requests)} of {count} requests came"
    return requests


def assert_nothing_left(ids: KernelIds) -> None:
    """Waits until the kernel has let go of all these: it does so a moment after a process ends."""
    nothing = KernelIds(frozenset(), frozenset())
    wait_until(lambda: ids.left() == nothing, "links and programs are gone", state=ids.left)
