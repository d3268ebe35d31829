# SPDX-License-Identifier: Apache-2.0
"""Which measured processes say, thread by thread, what span they work on; and where they say it.

OpenTelemetry's thread context is a thread-local pointer. The kernel's side
(bpf/ledger/thread_context.h) follows it for processes of which it has been told where that is. Here
they are found, and looked at again: a library with the pointer may be loaded at any time.

Source:
    OTEP 4947, open-telemetry/opentelemetry-specification, oteps/profiles/4947-thread-ctx.md.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from otelbpf.host.processes import executable_name, start_time

if TYPE_CHECKING:
    from otelbpf.userspace.thread_locals import KnownFiles, ThreadLocal

#: The pointer's name.
VARIABLE = "otel_thread_ctx_v1"

# Libraries are loaded when a process starts, mostly: looks at it become rarer.
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 64.0
# How often a process without the pointer is asked whether it is another one by now. One with it is
# asked each time: its threads would be read where another has something else.
_ASK_S = 5.0
# Their names in a container's or a server's whole life; beyond, all are looked into again.
_FILES_MOST = 10_000

_GONE = (0, "")

_log = logging.getLogger(__name__)


class Table(Protocol):
    """Where the kernel's side looks up processes; otelbpf.loader.Programs is one."""

    def set_thread_local(self, pid: int, where: bytes) -> bool:
        """Adds or changes a process; is there room for it?"""

    def forget_thread_local(self, pid: int) -> None:
        """Takes it away."""


@dataclass
class _Process:
    """A process that was looked at.

    Attributes:
        identity: what it was; another program under the same number has another one.
        found: where its threads have the pointer; None: nowhere that is known.
        ask_s: when it is to be asked whether it is still the same.
        wait_s: until the look after the next one.
    """

    identity: tuple[int, str]
    ask_s: float
    next_look_s: float
    wait_s: float
    found: ThreadLocal | None = None


class ThreadContexts:
    """Keeps a table of the processes that publish thread contexts.

    Args:
        table: to keep.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._processes: dict[int, _Process] = {}
        self._known: KnownFiles = {}
        self._said: set[str] = set()

    def saw(self, pids: Iterable[int], now_s: float) -> None:
        """Looks at processes that were not known yet. 0 is none."""
        for pid in pids:
            if pid and pid not in self._processes:
                wait_s = _FIRST_WAIT_S
                process = _Process(_identity(pid), now_s + _ASK_S, now_s + wait_s, 2 * wait_s)
                self._processes[pid] = process
                self._look(pid, process, is_first=True)

    def refresh(self, now_s: float) -> None:
        """Looks at known processes again whose time has come, and forgets those that are gone.

        Args:
            now_s: time.monotonic().
        """
        for pid, process in list(self._processes.items()):
            if process.found is None and now_s < min(process.ask_s, process.next_look_s):
                continue
            process.ask_s = now_s + _ASK_S
            identity = _identity(pid)
            if identity != process.identity or identity == _GONE:
                del self._processes[pid]
                if process.found is not None:
                    self._table.forget_thread_local(pid)
            elif now_s >= process.next_look_s:
                process.next_look_s = now_s + process.wait_s
                process.wait_s = min(2 * process.wait_s, _LONGEST_WAIT_S)
                self._look(pid, process)

    def _look(self, pid: int, process: _Process, *, is_first: bool = False) -> None:
        # Only here: it brings what reads ELF files, for which nobody need wait before it is ready.
        from otelbpf.userspace.thread_locals import UnresolvedError, find_thread_local

        if len(self._known) > _FILES_MOST:
            self._known.clear()
        try:
            found = find_thread_local(pid, VARIABLE, self._known)
        except OSError:  # it has just ended
            return
        except UnresolvedError as error:
            # Until the next look the loader will have done its work.
            if not is_first:
                self._say_once(
                    f"{executable_name(pid)} has {VARIABLE}, but {error}; its requests are not "
                    "linked to its own spans"
                )
            found = None
        if found == process.found:
            return
        process.found = found
        if found is None:
            self._table.forget_thread_local(pid)
        elif not self._table.set_thread_local(pid, found.packed()):
            process.found = None
            self._say_once(
                "more processes have spans to link to than otelbpf can remember; the requests of "
                "the others are not linked"
            )

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            _log.warning("%s", message)


def _identity(pid: int) -> tuple[int, str]:
    """Another one after an exec() too, which leaves the time of its start as it was."""
    try:
        return start_time(pid), os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return _GONE
