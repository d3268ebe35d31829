# SPDX-License-Identifier: Apache-2.0
"""The machine, and how still it keeps: what no measurement on it can be better than."""

from __future__ import annotations

import os
import platform
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from delays.actor import PRIORITY, become_real_time

_HELD_UP_NS = 50_000
# The kernel leaves real-time 0.95 s of each second.
_LOOK_S, _REST_S, _LOOKS = 0.4, 0.2, 5


@dataclass(frozen=True)
class Stillness:
    """What became of a loop that did nothing but read the clock, with real-time priority.

    Attributes:
        held_up_per_s: how often it was for more than 50 µs.
        longest_ns: that it was; 0: never for so long.
    """

    held_up_per_s: float
    longest_ns: int


def name() -> str:
    """Kernel and processors."""
    info = Path("/proc/cpuinfo").read_text()
    model = info.partition("model name\t: ")[2].partition("\n")[0]
    of = "of a virtual machine" if " hypervisor" in info else "of a real machine"
    return f"Linux {platform.release()}, {os.cpu_count()} processors {of} ({model})"


def stillness() -> Stillness:
    """Looks at both processors that the ends run on, for some seconds."""
    gaps: list[int] = []
    for processor in processors():
        thread = threading.Thread(target=_look, args=(processor, gaps))
        thread.start()
        thread.join()
    seconds = len(processors()) * _LOOKS * _LOOK_S
    return Stillness(len(gaps) / seconds, max(gaps, default=0))


def _look(processor: int, gaps: list[int]) -> None:
    become_real_time(processor, PRIORITY)
    for _ in range(_LOOKS):
        before = time.monotonic_ns()
        end = before + _LOOK_S * 1e9
        while before < end:
            now = time.monotonic_ns()
            if now - before > _HELD_UP_NS:
                gaps.append(now - before)
            before = now
        time.sleep(_REST_S)


def processors() -> tuple[int, int]:
    """That of the measured process, and that of the other end.

    Raises:
        RuntimeError: there are not two.
    """
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise RuntimeError("the two ends need a processor each, and there is only one")
    return usable[0], usable[1]
