# SPDX-License-Identifier: Apache-2.0
"""The one comparison of the two clocks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from otelbpf.host import clock
from otelbpf.host.clock import ClockReading, read_clock

UNIX_NS = 1_790_000_000_000_000_000


class Script:
    """Clocks that say what they are told to: (before, unix, after) for each bracket."""

    def __init__(self, *brackets: tuple[int, int, int]) -> None:
        self._answers: Iterator[tuple[int, int]] = iter(
            [
                answer
                for before, unix, after in brackets
                for answer in (
                    (time.CLOCK_MONOTONIC, before),
                    (time.CLOCK_REALTIME, unix),
                    (time.CLOCK_MONOTONIC, after),
                )
            ]
        )

    def __call__(self, asked: int) -> int:
        which, answer = next(self._answers)
        assert asked == which
        return answer

    def is_over(self) -> bool:
        return next(self._answers, None) is None


def read(monkeypatch: pytest.MonkeyPatch, *brackets: tuple[int, int, int]) -> ClockReading:
    script = Script(*brackets)
    monkeypatch.setattr(clock.time, "clock_gettime_ns", script)
    reading = read_clock(len(brackets))
    assert script.is_over()
    return reading


def test_the_middle_of_the_bracket(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, (1_000, UNIX_NS, 1_100)) == ClockReading(UNIX_NS - 1_050, 50)


@pytest.mark.parametrize("narrowest", range(4))
def test_the_narrowest_is_kept(monkeypatch: pytest.MonkeyPatch, narrowest: int) -> None:
    brackets = [(1_000 * i, UNIX_NS + 1_000 * i, 1_000 * i + 200 + i) for i in range(4)]
    before, unix, _ = brackets[narrowest]
    brackets[narrowest] = (before, unix, before + 60)
    assert read(monkeypatch, *brackets) == ClockReading(unix - before - 30, 30)


def test_the_first_of_equals_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = read(monkeypatch, (0, UNIX_NS, 40), (100, UNIX_NS + 107, 140))
    assert reading == ClockReading(UNIX_NS - 20, 20)


@pytest.mark.parametrize("width", range(6))
def test_the_truth_lies_within_the_uncertainty(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Wherever in the bracket the Unix clock was really read."""
    for read_at in range(width + 1):
        true_offset = UNIX_NS
        reading = read(monkeypatch, (500, true_offset + 500 + read_at, 500 + width))
        assert abs(reading.offset_ns - true_offset) <= reading.uncertainty_ns
        assert reading.uncertainty_ns == (width + 1) // 2


def test_conversion_is_exact() -> None:
    reading = ClockReading(UNIX_NS - 7, 3)
    assert reading.unix_ns(1_234_567_891) == UNIX_NS + 1_234_567_884
    assert reading.unix_ns(2) - reading.unix_ns(1) == 1


def test_the_real_clocks() -> None:
    """Converted, a moment lies between the Unix times before and after it."""
    reading = read_clock()
    before = time.time_ns()
    ktime = time.monotonic_ns()
    after = time.time_ns()
    unix = reading.unix_ns(ktime)
    assert before - reading.uncertainty_ns <= unix <= after + reading.uncertainty_ns
    assert 0 <= reading.uncertainty_ns < 1_000_000
