# SPDX-License-Identifier: Apache-2.0
"""Waiting for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

# Long enough that only a broken test waits for it.
DEADLINE_S = 30.0
# The compiler and the verifier take long on a busy machine, and so may the last exports.
LONG_S = 90.0


def wait_until(
    condition: Callable[[], object],
    what: str,
    *,
    state: Callable[[], object] = lambda: "",
    pause: Callable[[], object] = lambda: time.sleep(0.001),
    deadline_s: float = DEADLINE_S,
) -> None:
    """Waits until it holds.

    Args:
        what: what is waited for, for the error.
        state: what to show of it if it does not come.
        pause: what to do between two looks.
    Raises:
        AssertionError: it did not come.
    """
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline_s} s in vain until {what} {state()}")
        pause()
