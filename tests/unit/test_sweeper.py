# SPDX-License-Identifier: Apache-2.0
"""Which requests in flight are ended, found in a table that the test lays out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from kernel_maps import KernelMaps

from otelbpf.kernel.limits import Limits
from otelbpf.kernel.records import EXCHANGE, ExchangeState, RequestFlag
from otelbpf.ledger import sweeper as sweeper_module
from otelbpf.ledger.sweeper import ACK_WAIT_NS, Sweeper

NOW = 10_000_000_000_000
SECOND_NS = 1_000_000_000
IDLE_NS = 120_000_000_000
SLOTS = 300
UNANSWERED = RequestFlag.REQUEST_RECEIVED
ANSWERED = UNANSWERED | RequestFlag.REQUEST_ANSWERED


class Kernel(KernelMaps):
    """The table of requests in flight, and the orders to end some of them."""

    limits = Limits(connections=SLOTS, ring=SLOTS // 2)

    def __init__(self) -> None:
        super().__init__()
        self.table = self.add("exchanges", EXCHANGE, SLOTS)
        self.orders: list[tuple[int, int, int, bool]] = []
        self.has_any_in_flight = True

    def in_flight(self) -> int:
        return int(self.has_any_in_flight)

    def sweep(
        self, slot: int, waited_ktime_ns: int, idle_ktime_ns: int, *, stopped: bool = False
    ) -> None:
        self.orders.append((slot, waited_ktime_ns, idle_ktime_ns, stopped))

    def put(
        self,
        slot: int,
        flags: RequestFlag,
        silent_ns: int,
        state: int = ExchangeState.IN_FLIGHT + 0xC0FFEE,
    ) -> None:
        self.table["state"][slot] = state
        self.table["activity_ktime_ns"][slot] = NOW - silent_ns
        self.table["record"]["flags"][slot] = flags

    def close(self) -> None:
        del self.table
        super().close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


@pytest.fixture
def sweeper(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Sweeper:
    """It looks through the table in several steps."""
    monkeypatch.setattr(sweeper_module, "_AT_ONCE", 128)
    return Sweeper(kernel, IDLE_NS)  # type: ignore[arg-type]


def test_an_empty_table(kernel: Kernel, sweeper: Sweeper) -> None:
    sweeper.sweep(NOW)
    sweeper.finish(NOW)
    assert kernel.orders == []


@pytest.mark.parametrize("slot", [0, 127, 128, SLOTS - 1])
@pytest.mark.parametrize("flags", [UNANSWERED, ANSWERED, RequestFlag(0)])
def test_the_kernel_is_asked_once_it_has_waited(
    kernel: Kernel, sweeper: Sweeper, slot: int, flags: RequestFlag
) -> None:
    """Whether it is over the kernel knows: its connection may have ended."""
    kernel.put(slot, flags, ACK_WAIT_NS - 1)
    sweeper.sweep(NOW)
    assert kernel.orders == []
    kernel.put(slot, flags, ACK_WAIT_NS)
    sweeper.sweep(NOW)
    assert kernel.orders == [(slot, NOW - ACK_WAIT_NS, NOW - IDLE_NS, False)]


def test_only_those_in_flight_are_asked_for(kernel: Kernel, sweeper: Sweeper) -> None:
    kernel.put(1, ANSWERED, 0)
    kernel.put(2, ANSWERED, 10 * IDLE_NS)
    kernel.put(3, UNANSWERED, 10 * IDLE_NS)
    kernel.put(5, ANSWERED, 10 * IDLE_NS, ExchangeState.FREE)
    kernel.put(6, UNANSWERED, 10 * IDLE_NS, ExchangeState.FINISHING)
    sweeper.sweep(NOW)
    assert sorted(order[0] for order in kernel.orders) == [2, 3]


def test_the_table_is_not_looked_through_where_nothing_is_in_flight(
    kernel: Kernel, sweeper: Sweeper
) -> None:
    kernel.put(3, UNANSWERED, 10 * IDLE_NS)
    kernel.has_any_in_flight = False
    sweeper.sweep(NOW)
    sweeper.finish(NOW)
    assert kernel.orders == []
    kernel.has_any_in_flight = True
    sweeper.sweep(NOW)
    assert [order[0] for order in kernel.orders] == [3]


@pytest.mark.parametrize(
    ("asked", "at_s"), [(1, [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50]), (0, [0, 5, 15, 35])]
)
def test_it_sweeps_every_five_seconds_and_less_where_there_is_nothing_to_end(
    sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch, asked: int, at_s: list[int]
) -> None:
    swept: list[int] = []

    def sweep(now_ktime_ns: int) -> int:
        swept.append((now_ktime_ns - NOW) // SECOND_NS)
        return asked

    monkeypatch.setattr(sweeper, "sweep", sweep)
    for second in range(54):
        sweeper.look(NOW + second * SECOND_NS)
    assert swept == at_s


@pytest.mark.parametrize(
    ("idle_ns", "after_ns"), [(IDLE_NS, ACK_WAIT_NS), (SECOND_NS // 2, SECOND_NS // 2)]
)
def test_it_does_not_look_where_nothing_can_have_been_silent_for_so_long(
    kernel: Kernel, idle_ns: int, after_ns: int
) -> None:
    """A moment ago none was in flight, so none of those that are now is older."""
    sweeper = Sweeper(kernel, idle_ns)  # type: ignore[arg-type]
    kernel.put(3, UNANSWERED, 10 * IDLE_NS)
    kernel.has_any_in_flight = False
    sweeper.look(NOW)
    kernel.has_any_in_flight = True
    sweeper.look(NOW + after_ns - 1)
    assert kernel.orders == []
    sweeper.look(NOW + after_ns)
    assert [order[0] for order in kernel.orders] == [3]


def test_those_that_wait_for_long_are_asked_for_more_rarely(
    kernel: Kernel, sweeper: Sweeper
) -> None:
    """Thousands of long polls must not cost a call each second each."""
    kernel.put(3, UNANSWERED, 0)
    for second in range(600):
        sweeper.sweep(NOW + second * SECOND_NS)
    assert 25 <= len(kernel.orders) <= 50
    asked = [order[1] + ACK_WAIT_NS for order in kernel.orders]
    assert max(later - earlier for earlier, later in itertools.pairwise(asked)) <= 16 * SECOND_NS
    # It is asked for again as soon as another request in its place has waited.
    kernel.orders.clear()
    later = NOW + 600 * SECOND_NS
    kernel.put(3, UNANSWERED, NOW - later)
    sweeper.sweep(later + ACK_WAIT_NS)
    assert [order[0] for order in kernel.orders] == [3]


def test_the_end_ends_all(kernel: Kernel, sweeper: Sweeper) -> None:
    kernel.put(1, ANSWERED, 0)
    kernel.put(3, UNANSWERED, 1)
    kernel.put(5, ANSWERED, IDLE_NS, ExchangeState.FREE)
    kernel.put(6, UNANSWERED, IDLE_NS, ExchangeState.FINISHING)
    sweeper.finish(NOW)
    assert kernel.orders == [(slot, NOW, NOW, True) for slot in (1, 3)]


def test_an_idle_time_that_is_shorter_than_the_wait_for_an_acknowledgement(
    kernel: Kernel,
) -> None:
    """As --idle-timeout 0.5 asks for."""
    sweeper = Sweeper(kernel, ACK_WAIT_NS // 4)  # type: ignore[arg-type]
    kernel.put(1, UNANSWERED, ACK_WAIT_NS // 4)
    sweeper.sweep(NOW)
    assert kernel.orders == [(1, NOW - ACK_WAIT_NS, NOW - ACK_WAIT_NS // 4, False)]


def test_an_idle_time_longer_than_the_machine_has_been_up(kernel: Kernel) -> None:
    sweeper = Sweeper(kernel, 10**18)  # type: ignore[arg-type]
    kernel.put(1, UNANSWERED, NOW)
    sweeper.sweep(NOW)
    assert kernel.orders == [(1, NOW - ACK_WAIT_NS, 0, False)]


def test_the_kernel_changes_the_table_meanwhile(kernel: Kernel, sweeper: Sweeper) -> None:
    sweeper.sweep(NOW)
    kernel.put(9, ANSWERED, ACK_WAIT_NS)
    sweeper.sweep(NOW)
    assert [order[0] for order in kernel.orders] == [9]
