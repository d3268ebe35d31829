# SPDX-License-Identifier: Apache-2.0
"""The programs, loaded and attached, and what a test may ask of them."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from lab import (
    CLIENT_INTERFACE,
    INTERFACE,
    PORT,
    SERVER_IPV4,
    SERVER_IPV6,
    SPARE_PORT,
    Lab,
    Pair,
    laboratory,
)
from messages import OK, request
from support.stages import Stage, stages_of
from support.waiting import DEADLINE_S, wait_until

from otelbpf.agent.settings import settings
from otelbpf.host.interfaces import find_interfaces
from otelbpf.kernel import libbpf
from otelbpf.kernel.attach import Attachments, attached
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.hooks import Choice, choose
from otelbpf.kernel.limits import Limits
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.mapped import MappedArray
from otelbpf.kernel.records import (
    EXCHANGE,
    REQUEST_RECORD,
    Counter,
    ExchangeState,
    RequestFlag,
    Stamp,
)
from otelbpf.kernel.settings import Part
from otelbpf.ledger.ids import Ids
from otelbpf.ledger.reader import RingReader
from otelbpf.ledger.request import bounds_of
from otelbpf.ledger.sweeper import ACK_WAIT_NS, Sweeper
from otelbpf.policy.proxies import Forwarding, Network
from otelbpf.policy.sampler import Sampler
from otelbpf.policy.upstreams import Upstreams
from otelbpf.userspace.handler import Handler
from otelbpf.userspace.uprobes import attached_to_handlers

#: Of a request that went as it should.
WHOLE = RequestFlag.REQUEST_RECEIVED | RequestFlag.REQUEST_ANSWERED
#: Of a request to an upstream that went as it should.
OUTGOING = WHOLE | RequestFlag.CLIENT
#: What the lab's client listens on as a gateway, and an upstream's port at whatever address.
GATEWAY_PORT = 8090
FREE_PORT = 8091
#: What is decided about a record, and not what happened.
FATE = RequestFlag.KEPT | RequestFlag.IN_SERIES
LOSSES = tuple(counter for counter in Counter if counter.name.startswith("LOST_"))
#: Exchanges on a connection whose framing is not known, before one is told: bpf/stream/begin.h.
UNKNOWN = 2
# Enough for every test, and quick to look through.
SMALL = Limits(connections=4096, ring=4096)
KEEP_ALL = Sampler()
NO_FORWARDING = Forwarding()

_RUN_LEARN_AGENT = (
    "import sys; from otelbpf.kernel import libbpf; "
    "libbpf.run_once(int(sys.argv[1]), context=bytes(8))"
)


class Meter:
    """What the programs saw, from the moment that begin() was called.

    Args:
        side: of the lab, the one that is measured.
    """

    def __init__(
        self,
        lab: Lab,
        choices: tuple[Choice, ...],
        programs: Programs,
        side: str = "server",
        forwarding: Forwarding = NO_FORWARDING,
    ) -> None:
        self.lab = lab
        self.netns = lab.server_netns if side == "server" else lab.client_netns
        self.interface = INTERFACE if side == "server" else CLIENT_INTERFACE
        self.programs = programs
        self.choices = choices
        self.reader = RingReader(programs, forwarding)
        self.sweeper = Sweeper(programs, idle_ns=0)
        self._exchanges = MappedArray(
            programs.map_fd("exchanges"), EXCHANGE, programs.limits.exchanges
        )
        self._baseline = programs.counts()
        self._untaken = np.empty(0, REQUEST_RECORD)
        self._attachments = Attachments()
        self._missed_before: dict[str, int] = {}
        #: How many connections of the test are to have bytes that no program sees.
        self.unseen = 0

    def close(self) -> None:
        self._exchanges.close()
        self.reader.close()
        self.programs.close()

    def let_another_process_be_the_agent(self) -> None:
        """The agent's own connections are not measured, and a test's are all this process's."""
        fd = self.programs.fd("learn_agent")
        subprocess.run([sys.executable, "-c", _RUN_LEARN_AGENT, str(fd)], pass_fds=[fd], check=True)

    def let_this_process_be_the_agent(self) -> None:
        libbpf.run_once(self.programs.fd("learn_agent"), context=bytes(8))

    @contextlib.contextmanager
    def attached(self, *names: str, handlers: tuple[Handler, ...] = ()) -> Iterator[list[str]]:
        """All programs attached, to the interfaces called so; gives what was attached where."""
        interfaces = find_interfaces(names or (self.interface,), self.netns)
        with (
            attached_to_handlers(self.programs, handlers) as on_handlers,
            attached(self.programs, self.choices, interfaces, self.netns) as attachments,
        ):
            self._attachments = attachments
            self._missed_before = attachments.missed()
            self.programs.set_complete(True)
            try:
                yield [*attachments.description, *on_handlers]
            finally:
                self.programs.set_complete(False)
                self._attachments = Attachments()

    def begin(self) -> None:
        """Forgets what was counted before, and what a failed test left."""
        self._drain()
        self._untaken = np.empty(0, REQUEST_RECORD)
        self._baseline = self.programs.counts()
        self._missed_before = self._attachments.missed()
        self.unseen = 0

    def end(self) -> None:
        """Closes the connections and checks the promise that every test must leave intact.

        Raises:
            AssertionError: a request was seen and is in none of the sums, or a
                record came that the test did not ask for.
        """
        self.lab.close_connections()
        wait_until(
            lambda: self.in_flight() == 0,
            "every request seen was accounted for",
            state=self.counted_all,
        )
        self._drain()
        assert not len(self._untaken), f"records that nobody asked for: {describe(self._untaken)}"
        assert self.in_flight() == 0
        assert self.slots_in_use() == 0, "a slot was never freed"
        assert self.counted(Counter.CONNECTIONS_UNSEEN) == self.unseen

    def counted(self, counter: Counter) -> int:
        """By how much a counter has grown since begin()."""
        return self.programs.counts()[counter] - self._baseline[counter]

    def counted_all(self) -> dict[str, int]:
        """Every counter that has grown since begin()."""
        now = self.programs.counts()
        return {c.name: now[c] - self._baseline[c] for c in Counter if now[c] != self._baseline[c]}

    def losses(self) -> dict[Counter, int]:
        """Every loss since begin()."""
        now = self.programs.counts()
        return {c: now[c] - self._baseline[c] for c in LOSSES if now[c] != self._baseline[c]}

    def missed(self, stamp: Stamp) -> int:
        """How often since begin() the kernel came by where a stamp is taken, and took it not.

        It does not run a program that it is running already, on that processor.
        """
        now, before = self._attachments.missed(), self._missed_before
        return sum(
            now[way] - before[way]
            for choice in self.choices
            if stamp.name.lower() in choice.hook.stamps and (way := str(choice.chosen)) in now
        )

    def assert_stamped(self, records: np.ndarray, expected: Iterable[Stamp]) -> None:
        """All records have these stamps, but for as many as were missed."""
        for stamp in expected:
            without = records[records["stamp_ktime_ns"][:, stamp] == 0]
            assert len(without) <= self.missed(stamp), (stamp, describe(without))

    def in_flight(self) -> int:
        """How many requests were seen and are neither submitted nor lost yet."""
        now = self.programs.counts()
        grown = {counter: now[counter] - self._baseline[counter] for counter in Counter}
        ended = (Counter.SUBMITTED, Counter.SAMPLED_OUT, *LOSSES)
        return grown[Counter.SEEN] - sum(grown[counter] for counter in ended)

    def slots_in_use(self) -> int:
        """How many slots of the table of requests in flight are taken."""
        return int((self._exchanges.values["state"] != ExchangeState.FREE).sum())

    def wait_for(self, counter: Counter, value: int) -> None:
        """Waits until a counter has grown by exactly `value`."""
        wait_until(
            lambda: self.counted(counter) >= value,
            f"{counter.name} was {value}",
            state=self.counted_all,
        )
        assert self.counted(counter) == value

    def _drain(self) -> int:
        self._untaken = np.concatenate([self._untaken, self.reader.read()])
        return len(self._untaken)

    def records(
        self, count: int, *, deadline_s: float = DEADLINE_S, others_in_flight: int = 0
    ) -> np.ndarray:
        """Exactly `count` records, and none beyond them.

        Args:
            others_in_flight: requests that are meant to be unfinished still.
        Returns:
            (count,) REQUEST_RECORD, in the order in which they finished.
        Raises:
            AssertionError: fewer came, or more.
        """
        with contextlib.suppress(AssertionError):
            wait_until(
                lambda: self._drain() >= count and self.in_flight() == others_in_flight,
                "the records came",
                deadline_s=deadline_s,
            )
        self._drain()
        taken, self._untaken = self._untaken, np.empty(0, REQUEST_RECORD)
        assert len(taken) == count, (
            f"{len(taken)} records, not {count}; {self.counted_all()}; {describe(taken)}"
        )
        assert self.in_flight() == others_in_flight, self.counted_all()
        return taken

    def record(self, *, others_in_flight: int = 0) -> np.void:
        """The one record."""
        return self.records(1, others_in_flight=others_in_flight)[0]

    def assert_next_is_right(self, pair: Pair, ordinal: int) -> None:
        """What came before ended where it ended: the connection's next request is a record too."""
        pair.exchange(request(target="/next"), OK)
        record = self.record()
        assert record["ordinal"] == ordinal
        assert record["http1"]["request_line"] == b"GET /next HTTP/1.1"
        assert record["status"] == 200
        assert flags(record) == WHOLE
        assert self.losses() == {}

    def sweep(self) -> None:
        """What the agent does with requests that have been silent for too long: ends them all."""
        self.sweeper.sweep(time.monotonic_ns() + ACK_WAIT_NS)


def load(
    lab: Lab,
    limits: Limits = SMALL,
    parts: frozenset[Part] = frozenset(),
    sampler: Sampler = KEEP_ALL,
    ids: Ids | None = None,
    proxies: tuple[Network, ...] = (),
    forwarding: Forwarding = NO_FORWARDING,
) -> Meter:
    """Compiles and loads everything for one lab. Takes about two seconds."""
    with Btf.of_kernel() as btf:
        choices = choose(btf, metrics=bool(limits.series))
        programs = Programs(btf, choices, limits, settings(
            lab.server_netns.cookie, (PORT, SPARE_PORT), sampler=sampler, ids=ids, parts=parts,
            proxies=proxies, forwarding=forwarding,
        ))  # fmt: skip
    meter = Meter(lab, choices, programs, forwarding=forwarding)
    meter.let_another_process_be_the_agent()
    return meter


@contextlib.contextmanager
def attached_meter(**settings: Any) -> Iterator[Meter]:
    """Programs that are loaded so, as load() has it, and attached, in a lab of their own."""
    with laboratory() as lab, contextlib.closing(load(lab, **settings)) as meter, meter.attached():
        yield meter


def load_gateway(lab: Lab, *, tcx: bool = True, limits: Limits = SMALL) -> Meter:
    """The same for the lab's client: what it asks of the server, and what it is asked itself.

    Args:
        tcx: False: as on a kernel that has no such links.
    """
    endpoints = (
        *((address(host), PORT) for host in (SERVER_IPV4, SERVER_IPV6)),
        (address("127.0.0.1"), GATEWAY_PORT),
    )
    with Btf.of_kernel() as btf:
        choices = tuple(
            choice.without(candidate, "not in this test")
            if (candidate := choice.hook.candidates[0]).target == "tcx" and not tcx
            else choice
            for choice in choose(btf, metrics=bool(limits.series))
        )
        programs = Programs(btf, choices, limits, settings(
            lab.client_netns.cookie, (GATEWAY_PORT,), upstreams=Upstreams(endpoints, (FREE_PORT,))
        ))  # fmt: skip
    meter = Meter(lab, choices, programs, "client")
    meter.let_another_process_be_the_agent()
    return meter


def address(text: str) -> bytes:
    """As a record has it: 16 bytes, IPv4 as IPv4-mapped IPv6."""
    parsed = ipaddress.ip_address(text)
    return parsed.packed if parsed.version == 6 else bytes(10) + b"\xff\xff" + parsed.packed


def stamps(record: np.void) -> dict[Stamp, int]:
    """The stamps that are present, in the order of enum stamp."""
    return {Stamp(i): int(at) for i, at in enumerate(record["stamp_ktime_ns"]) if at}


def stages(record: np.void) -> dict[tuple[Stamp, Stamp], int]:
    """Every stage's length in ns: the time between two neighbouring stamps, in order of time."""
    present = sorted(stamps(record).items(), key=lambda item: (item[1], item[0]))
    return {
        (first, last): end - start for (first, start), (last, end) in itertools.pairwise(present)
    }


def told_stages(record: np.void) -> tuple[Stage, ...]:
    """The stages that the agent tells of it."""
    return stages_of(bounds_of(np.array([record], REQUEST_RECORD))[0].tolist())


def flags(record: np.void) -> RequestFlag:
    """What happened to the request; what became of its record is left out."""
    return RequestFlag(int(record["flags"])) & ~FATE


def describe(records: np.ndarray) -> list[str]:
    """Records, for an assertion's message."""
    return [
        f"#{r['ordinal']} {bytes(r['http1']['request_line'])!r} -> {r['status']} "
        f"{flags(r)!r} port {r['peer_port']}"
        for r in records
    ]
