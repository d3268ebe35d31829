# SPDX-License-Identifier: Apache-2.0
"""Threads that outlive what has started them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def none_is_left(name: str) -> Iterator[None]:
    """Fails if a thread of this name is there that was not before: only who made it is blamed."""
    before = set(threading.enumerate())
    yield
    left = [each for each in threading.enumerate() if each.name == name and each not in before]
    assert not left, left
