# SPDX-License-Identifier: Apache-2.0
"""What `otelbpf top` shows at the moment: which requests, in what order, and whose stages."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import replace

from rich.console import Console, Group

from otelbpf.agent.run import Running
from otelbpf.metrics.snapshot import Snapshot
from otelbpf.top.frame import View, frame
from otelbpf.top.look import look_of
from otelbpf.top.rows import Sort, Table, table_of

# A terminal's word for a key that has no character; a character; Escape.
_KEYS = re.compile(rb"\x1b[\[O]([0-9;]*[A-Za-z~])|([^\x1b])|\x1b")
_ARROWS = {b"A": -1, b"B": 1}


class State:
    """The view of a running agent.

    Args:
        title: what is measured, for people.
        interval_s: between two snapshots.
        keys: it is told which ones can be pressed.

    Attributes:
        began_s: when the first snapshot was taken, on the monotonic clock.
    """

    def __init__(
        self, running: Running, title: str, interval_s: float, sort: Sort, *, keys: bool
    ) -> None:
        self._running = running
        self._interval_s = interval_s
        self._all = False
        attachments = running.attachments
        notes = [(f"absent from requests: {each}", False) for each in attachments.absent]
        everything = [*attachments.description, *running.on_handlers]
        notes.append((f"attached: {', '.join(everything)}", False))
        # Without keys there is no screen to leave, and all that was said is still there.
        self._view = View(title, "", sort, notes=tuple(notes) if keys else (), keys=keys)
        self.began_s = time.monotonic()
        self._before: tuple[Snapshot | None, float] = None, self.began_s
        self._now: tuple[Snapshot, float] = running.snapshot(), self.began_s

    @property
    def due_s(self) -> float:
        """When the next snapshot is to be taken, on the monotonic clock."""
        return self._now[1] + self._interval_s

    def take(self) -> None:
        """Takes the next snapshot."""
        self._before, self._now = self._now, (self._running.snapshot(), time.monotonic())

    def press(self, keys: bytes) -> bool:
        """Does as the keys say; is the view to go on?"""
        for special, character in (match.groups() for match in _KEYS.finditer(keys)):
            if character in (b"q", b"Q"):
                return False
            if character == b"s":
                self._view = replace(self._view, sort=self._view.sort.next)
            elif character == b"a":
                self._all = not self._all
            elif special in _ARROWS:
                self._select(_ARROWS[special])
            elif special is None and character is None:
                self._view = replace(self._view, selected=None)
        return True

    def _select(self, step: int) -> None:
        keys = [row.key for row in self._table().sorted(self._view.sort)]
        at = keys.index(self._view.selected) + step if self._view.selected in keys else 0
        selected = keys[max(0, min(at, len(keys) - 1))] if keys else None
        self._view = replace(self._view, selected=selected)

    def _table(self) -> Table:
        before, since_s = (None, self.began_s) if self._all else self._before
        return table_of(self._now[0], before, self._now[1] - since_s)

    def frame(
        self, console: Console, height: int | None, notes: Iterable[tuple[str, bool]] = ()
    ) -> Group:
        """What to show now.

        Args:
            height: lines; None: as many as it takes.
            notes: beside those on the agent itself.
        """
        table = self._table()
        which = "all" if self._all or self._before[0] is None else "the last"
        view = replace(
            self._view,
            over=f"{which} {table.seconds:.1f} s",
            notes=(*notes, *self._view.notes),
        )
        return frame(table, view, console.width, height, look_of(console))

    def of_all(self, console: Console) -> Group:
        """All requests until now, as the last thing to be shown."""
        self.take()
        self._all = True
        self._view = replace(self._view, selected=None, notes=(), keys=False)
        return self.frame(console, None)
