# SPDX-License-Identifier: Apache-2.0
"""A clock for otelbpf.delivery that only waiting moves on: hours of tries take no time."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from otelbpf.export import delivery


class Hours:
    """The clock, and what was waited for.

    Attributes:
        stop_in: a pause of this length or longer is interrupted after it, by calling `stop`.
    """

    def __init__(self) -> None:
        self.now = 1_000.0
        self.waits: list[float] = []
        self.stop_in: float | None = None
        self.stop: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        if seconds:
            self.waits.append(round(seconds, 9))
        self.now += seconds

    def wait(self, event: threading.Event, seconds: float) -> bool:
        if event.is_set():
            return True
        if self.stop_in is not None and seconds >= self.stop_in:
            self.sleep(self.stop_in)
            self.stop_in = None
            self.stop()
            return True
        self.sleep(seconds)
        return False


def passing(monkeypatch: pytest.MonkeyPatch) -> Hours:
    """Lets hours pass in otelbpf.delivery, without chance in them."""
    hours, wait = Hours(), threading.Event.wait
    monkeypatch.setattr(delivery, "time", hours)
    monkeypatch.setattr(
        threading.Event, "wait", lambda event, seconds=None: wait(event) if seconds is None
        else hours.wait(event, seconds),
    )  # fmt: skip
    monkeypatch.setattr(random, "uniform", lambda first, last: (first + last) / 2)
    return hours
