# SPDX-License-Identifier: Apache-2.0
"""Wraps methods of others while the plugin is awake, and puts them back when it sleeps."""

from __future__ import annotations

import os
import threading
from typing import Any, Callable


class Patch:
    """A class's method that can be wrapped and put back, again and again.

    A wrapper that another one has put around ours is left there, and ours in it: it then finds
    nothing to do. Not wrapt's, which costs each call half a microsecond.
    """

    def __init__(self, owner: type, name: str, wrap: Callable[[Any], Any]) -> None:
        """
        Args:
            wrap: makes of a method the one to call in its place.
        """
        self._owner = owner
        self._name = name
        self._wrap = wrap
        self._before: Any = None
        self._ours: Any = None

    def put(self) -> None:
        """Wraps what is there now, be it another one's wrapper."""
        there = vars(self._owner)[self._name]
        if there is not self._ours:  # it is where somebody's wrapper was around it for a time
            self._before = there
            # Not `there`, which need not be what the class gives out.
            self._ours = self._wrap(getattr(self._owner, self._name))
            setattr(self._owner, self._name, self._ours)

    def take_back(self) -> None:
        """Puts back what was there, unless ours is inside another one's by now."""
        if vars(self._owner)[self._name] is self._ours:
            setattr(self._owner, self._name, self._before)


class Switch:
    """All patches, on or off together."""

    def __init__(self) -> None:
        self.is_on = False
        self._patches: list[Patch] = []
        self._is_closed = False
        self._lock = threading.Lock()
        # A process may be forked while another thread of it is at it.
        os.register_at_fork(after_in_child=self._renew_lock)

    def add(self, patch: Patch) -> None:
        """One more, at any time."""
        with self._lock:
            if not self._is_closed:
                self._patches.append(patch)
                if self.is_on:
                    patch.put()

    def on(self) -> None:
        """Wraps, unless it is on or closed."""
        with self._lock:
            if not self.is_on and not self._is_closed:
                for patch in self._patches:
                    patch.put()
                self.is_on = True

    def off(self) -> None:
        """Puts back."""
        with self._lock:
            self._put_back()

    def close(self) -> None:
        """Off, for good: a thread that is about to put it on comes too late."""
        with self._lock:
            self._is_closed = True
            self._put_back()

    def _put_back(self) -> None:
        self.is_on = False
        for patch in reversed(self._patches):
            patch.take_back()

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()
