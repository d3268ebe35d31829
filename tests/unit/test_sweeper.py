# SPDX-License-Identifier: Apache-2.0
"""When the kernel is to look for what is silent, and for how long that has to be."""

from __future__ import annotations

import pytest

from otelbpf.ledger.sweeper import ACK_WAIT_NS, Sweeper

NOW = 10_000_000_000_000
SECOND_NS = 1_000_000_000
IDLE_NS = 120_000_000_000


class Kernel:
    """The orders to end requests in flight."""

    def __init__(self) -> None:
        self.orders: list[tuple[int, int, bool]] = []
        self.has_any_in_flight = True
        self.ends = 0
        self.looks = 0

    def in_flight(self) -> int:
        self.looks += 1
        return int(self.has_any_in_flight)

    def sweep(self, waited_ktime_ns: int, idle_ktime_ns: int, *, stopped: bool = False) -> int:
        self.orders.append((waited_ktime_ns, idle_ktime_ns, stopped))
        return self.ends


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def sweeper(kernel: Kernel) -> Sweeper:
    return Sweeper(kernel, IDLE_NS)  # type: ignore[arg-type]


def test_what_is_ended_has_waited_or_was_idle(kernel: Kernel, sweeper: Sweeper) -> None:
    kernel.ends = 3
    assert sweeper.sweep(NOW) == 3
    assert kernel.orders == [(NOW - ACK_WAIT_NS, NOW - IDLE_NS, False)]


def test_the_end_ends_all(kernel: Kernel, sweeper: Sweeper) -> None:
    sweeper.finish(NOW)
    assert kernel.orders == [(NOW, NOW, True)]


def test_the_table_is_not_looked_through_where_nothing_is_in_flight(
    kernel: Kernel, sweeper: Sweeper
) -> None:
    kernel.has_any_in_flight = False
    assert sweeper.sweep(NOW) == 0
    sweeper.finish(NOW)
    assert kernel.orders == []


@pytest.mark.parametrize(
    ("ended", "at_s"), [(1, [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50]), (0, [0, 5, 15, 35])]
)
def test_it_sweeps_every_five_seconds_and_less_where_there_is_nothing_to_end(
    kernel: Kernel, sweeper: Sweeper, ended: int, at_s: list[int]
) -> None:
    kernel.ends = ended
    for second in range(54):
        sweeper.look(NOW + second * SECOND_NS)
    swept_ns = [waited + ACK_WAIT_NS for waited, _, _ in kernel.orders]
    assert swept_ns == [NOW + second * SECOND_NS for second in at_s]


def test_it_looks_at_nothing_while_no_sweep_is_near(kernel: Kernel, sweeper: Sweeper) -> None:
    sweeper.look(NOW)
    kernel.looks = 0
    for tenth in range(30):
        sweeper.look(NOW + tenth * SECOND_NS // 10)
    assert kernel.looks == 0


@pytest.mark.parametrize(
    ("idle_ns", "after_ns"), [(IDLE_NS, ACK_WAIT_NS), (SECOND_NS // 2, SECOND_NS // 2)]
)
def test_it_does_not_sweep_where_nothing_can_have_been_silent_for_so_long(
    kernel: Kernel, idle_ns: int, after_ns: int
) -> None:
    """A moment ago none was in flight, so none of those that are now is older."""
    sweeper = Sweeper(kernel, idle_ns)  # type: ignore[arg-type]
    kernel.has_any_in_flight = False
    sweeper.look(NOW)
    kernel.has_any_in_flight = True
    sweeper.look(NOW + after_ns - 1)
    assert kernel.orders == []
    sweeper.look(NOW + after_ns)
    assert len(kernel.orders) == 1


def test_an_idle_time_that_is_shorter_than_the_wait_for_an_acknowledgement(
    kernel: Kernel,
) -> None:
    """As --idle-timeout 0.5 asks for."""
    Sweeper(kernel, ACK_WAIT_NS // 4).sweep(NOW)  # type: ignore[arg-type]
    assert kernel.orders == [(NOW - ACK_WAIT_NS, NOW - ACK_WAIT_NS // 4, False)]


def test_an_idle_time_longer_than_the_machine_has_been_up(kernel: Kernel) -> None:
    Sweeper(kernel, 10**18).sweep(NOW)  # type: ignore[arg-type]
    assert kernel.orders == [(NOW - ACK_WAIT_NS, 0, False)]


def test_another_idle_time_holds_at_once(kernel: Kernel, sweeper: Sweeper) -> None:
    sweeper.look(NOW)
    sweeper.become(ACK_WAIT_NS // 4)
    sweeper.look(NOW + 1)
    assert [idle for _, idle, _ in kernel.orders] == [NOW - IDLE_NS, NOW + 1 - ACK_WAIT_NS // 4]
