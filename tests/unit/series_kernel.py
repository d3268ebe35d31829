# SPDX-License-Identifier: Apache-2.0
"""The kernel's part of the sums, made up: its maps, and what bpf/ledger/series.h does with them."""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Callable

import numpy as np
from samples import SMALL, record

from otelbpf.host.processes import Process, look_at
from otelbpf.kernel.limits import Limits
from otelbpf.kernel.records import SERIES, SERIES_PLACE, SERIES_SET, STAGE_ORDER, RequestFlag, Stamp
from otelbpf.kernel.series_rows import SeriesRows
from otelbpf.metrics.series_sets import index_of, keys_of
from otelbpf.metrics.snapshot import buckets_of

MOST = 8
WHOLE = RequestFlag.REQUEST_RECEIVED | RequestFlag.REQUEST_ANSWERED
_SETS = 8192


def this_process() -> Process:
    running = look_at(os.getpid(), ())
    assert running is not None
    started_ns = running.start_ticks * 10_000_000
    return Process(os.getpid(), started_ns, 1, running.stack, running.comm)


THIS = this_process()


def one(
    path: str, route_hash: int, process: Process = THIS, times: dict[Stamp, int] = SMALL,
    **fields: object,
) -> np.ndarray:  # fmt: skip
    """A request that was read by a process, which is this one if nothing else is said."""
    pid, *others = process
    fields = {
        "status": 200, "flags": WHOLE, "local_port": 80, "pid": pid, "process": tuple(others),
        "request_line": f"GET {path} HTTP/1.1".encode(), **fields,
    }  # fmt: skip
    return record(times, route_hash=route_hash, **fields)


class Kernel:
    """The maps of otelbpf.loader.Programs, and what was put into them.

    Each request ends on another processor, and some of the series have several rows.

    Attributes:
        overflow: what it was told of those, by is_client.
        running: programs that run, and have yet to add what they have found a place for.
    """

    limits = Limits(series=MOST)
    series_rows = SeriesRows(MOST, spread=5, each=4)

    def __init__(self) -> None:
        sizes = {
            "series": self.series_rows.count * SERIES.itemsize,
            "stage_orders": 256 * STAGE_ORDER.itemsize,
            "series_sets": _SETS * SERIES_SET.itemsize,
        }
        self.files = {name: os.memfd_create(name) for name in sizes}
        for name, size in sizes.items():
            os.ftruncate(self.files[name], size)
        self._mapped = {name: mmap.mmap(self.files[name], size) for name, size in sizes.items()}
        self.overflow: dict[int, np.void] = {}
        self.running: list[Callable[[], None]] = []
        self._processors = itertools.cycle(range(16))

    def map_fd(self, name: str) -> int:
        return self.files[name]

    # ---- what it was told ----

    @property
    def sets(self) -> np.ndarray:
        data = os.pread(self.files["series_sets"], _SETS * SERIES_SET.itemsize, 0)
        return np.frombuffer(data, SERIES_SET).copy()

    @property
    def told(self) -> list[tuple[np.void, np.void]]:
        """The keys that it would find, and their places."""
        sets = self.sets
        used = sets["keys"]["port"] != 0
        return list(zip(sets["keys"][used], sets["places"][used], strict=True))

    def forget(self) -> None:
        os.pwrite(self.files["series_sets"], bytes(_SETS * SERIES_SET.itemsize), 0)

    def set_overflow_place(self, is_client: int, place: bytes) -> None:
        self.overflow[is_client] = np.frombuffer(place, SERIES_PLACE)[0]

    def wait_for_running(self) -> None:
        while self.running:
            self.running.pop(0)()

    # ---- what it adds ----

    def adds(self, place: np.void, name: str, count: int) -> None:
        """Something of its own."""
        self._series(self._row(place))[name] += np.uint64(count)

    def adds_to_stage(self, place: np.void, stage: int, ns: int) -> None:
        """So much to the sum of a stage, which lies where it was told."""
        self._series(self._row(place))["stages"]["sum_ns"][stage] += np.uint64(ns)

    def request(self, record: np.ndarray, *, runs_on: bool = False) -> bool:
        """A request ends; False: it has no place for it, and shows it.

        Args:
            runs_on: it has found the place, and adds it when it is waited for.
        """
        place = self._find(record)
        if place is None:
            return False
        row = self._row(place)
        if runs_on:
            self.running.append(lambda: self._add(row, record))
        else:
            self._add(row, record)
        return True

    def _row(self, place: np.void) -> int:
        return int(place["row"]) + (next(self._processors) & int(place["cpu_mask"]))

    def _find(self, record: np.ndarray) -> np.void | None:
        (key,) = keys_of(record)
        first, second = np.frombuffer(key.tobytes(), np.uint64).tolist()
        told = np.frombuffer(self._mapped["series_sets"], SERIES_SET)[
            index_of(first ^ second, _SETS)
        ]
        for known, at in zip(told["keys"], told["places"], strict=True):
            if known == key:
                return at
        overflow = self.overflow.get(int(key["is_client"]))
        return overflow if overflow is not None and overflow["in_use"] else None

    def _add(self, row: int, record: np.ndarray) -> None:
        """Its bytes and its length, all of which it has been in its first stage."""
        series = self._series(row)
        series["request_bytes"] += record["request_bytes"][0]
        times = record["stamp_ktime_ns"][0]
        length = times[: Stamp.ACKED].max() - times[times != 0].min()
        for histogram in (series["duration"], series["stages"][1]):
            histogram["sum_ns"] += length
            histogram["counts"][buckets_of(length)] += np.uint64(1)

    def _series(self, row: int) -> np.void:
        return np.frombuffer(self._mapped["series"], SERIES)[row]

    def close(self) -> None:
        for mapped in self._mapped.values():
            mapped.close()
        for fd in self.files.values():
            os.close(fd)
