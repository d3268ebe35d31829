# SPDX-License-Identifier: Apache-2.0
"""API keys and how many requests each may make."""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Plan:
    """What a key buys: ``requests`` in every ``seconds``."""

    key: str
    requests: int
    seconds: float


def parse_plan(text: str) -> Plan:
    """Read ``KEY=REQUESTS/SECONDS``, as in ``alice=100/60``.

    Raises:
        argparse.ArgumentTypeError: it is not of that form.
    """
    try:
        key, limit = text.split("=")
        requests, seconds = limit.split("/")
        plan = Plan(key, int(requests), float(seconds))
        if not (plan.key and plan.requests > 0 and 0 < plan.seconds < math.inf):
            raise ValueError("out of range")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=REQUESTS/SECONDS") from error
    return plan


@dataclass
class Bucket:
    """A token bucket: it starts full, a request takes one token, time refills it."""

    plan: Plan
    clock: Callable[[], float] = time.monotonic
    tokens: float = field(init=False)
    filled_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = float(self.plan.requests)
        self.filled_at = self.clock()

    def take(self) -> float:
        """Take one token.

        Returns:
            0.0 when there was one, else the seconds until there will be.
        """
        now = self.clock()
        rate = self.plan.requests / self.plan.seconds
        self.tokens = min(self.plan.requests, self.tokens + (now - self.filled_at) * rate)
        self.filled_at = now
        if self.tokens < 1:
            return (1 - self.tokens) / rate
        self.tokens -= 1
        return 0.0
