# SPDX-License-Identifier: Apache-2.0
"""Who started a process of Python's multiprocessing, whose command line does not say what it runs.

Source:
    CPython, Lib/multiprocessing/spawn.py, forkserver.py: what both are started with.
"""

from __future__ import annotations

import re
from itertools import pairwise

from otelbpf.host.processes import Running, look_at, open_files

# With the number of a pipe's end that it shares with who started it: of the resource tracker's, and
# of the one that tells a fork server that somebody still needs it.
_SPAWNED = re.compile(
    r"from multiprocessing\.spawn import spawn_main; spawn_main\(tracker_fd=(\d+),"
)
_FORK_SERVER = re.compile(r"from multiprocessing\.forkserver import main; main\(\d+, (\d+),")
_DEEPEST = 8


def starter_of(running: Running) -> Running | None:
    """The process that `running` is a part of, if multiprocessing has started it.

    A parent is believed only if it runs the same executable, and is who started it: it has the
    other end of its pipe, or is what it was forked from. Whose parent is gone has another one.

    Returns:
        None: multiprocessing has not started it, or nobody knows any more who did.
    """
    for _ in range(_DEEPEST):
        pipe = _pipe_number(running)
        if pipe is None:
            return None
        parent = look_at(running.parent, ())
        if parent is None or parent.executable != running.executable:
            return None
        if not (_was_forked_from(running, parent) or _share_pipe(running, pipe, parent)):
            return None
        again = look_at(running.pid, ())
        if again is None or again.parent != parent.pid or again.stack != running.stack:
            return None
        if _pipe_number(parent) is None:
            return parent
        running = parent
    return None


def _pipe_number(running: Running) -> int | None:
    for option, code in pairwise(running.arguments):
        found = _SPAWNED.match(code) or _FORK_SERVER.match(code)
        if option == "-c" and found:
            return int(found[1])
    return None


def _was_forked_from(running: Running, parent: Running) -> bool:
    return bool(running.stack) and running.stack == parent.stack


def _share_pipe(running: Running, number: int, parent: Running) -> bool:
    pipe = next((file for each, file in open_files(running.pid) if each == number), "")
    return pipe.startswith("pipe:") and any(each == pipe for _, each in open_files(parent.pid))
