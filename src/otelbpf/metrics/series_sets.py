# SPDX-License-Identifier: Apache-2.0
"""What the kernel is told of series: which keys' requests it adds up at which place."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from otelbpf.kernel.loader import Programs
from otelbpf.kernel.mapped import MappedArray
from otelbpf.kernel.records import SERIES_KEY, SERIES_PLACE, SERIES_SET, FixedLength, RequestFlag
from otelbpf.ledger.request import ENDINGS

#: As in bpf/abi/records.h.
PLACE_FACTOR = 0x9E3779B97F4A7C15
_WAYS = SERIES_SET["keys"].shape[0]


class SeriesSets:
    """The kernel's table of keys, struct series_set. Close it to unmap it."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._rows = programs.series_rows
        self._mapped = MappedArray(
            programs.map_fd("series_sets"), SERIES_SET, FixedLength.SERIES_SETS, writable=True
        )
        self._sets = self._mapped.values
        self._next_way = 0

    def tell(self, key: bytes, place: int, slow_ns: int) -> None:
        """Tells it a key's place, unless it knows, in a way that it can misread at no moment."""
        first, second = np.frombuffer(key, np.uint64).tolist()
        told = self._sets[index_of(first ^ second, FixedLength.SERIES_SETS)]
        words = told["keys"].view(np.uint64).reshape(_WAYS, 2)
        known = words.tolist()
        if [first, second] in known:
            return
        ways = [way for way, words_of_way in enumerate(known) if not words_of_way[1]]  # nobody's
        if not ways:
            ways = [self._next_way]
            self._next_way = (self._next_way + 1) % _WAYS
        words[ways[0], 1] = 0
        words[ways[0], 0] = first
        told["places"][ways[0]] = self._at(place, slow_ns)
        words[ways[0], 1] = second

    def forget(self, places: Collection[int]) -> None:
        """Takes back what it was told of these places: it adds nothing to them any more."""
        seconds = self._sets["keys"].view(np.uint64)[:, 1::2]
        rows = [self._rows.rows_of(place).start for place in places]
        seconds[np.isin(self._sets["places"]["row"], rows) & (seconds != 0)] = 0
        # Some programs may have found a place before.
        self._programs.wait_for_running()

    def set_slow(self, place: int, slow_ns: int) -> None:
        """Tells it from when on requests at a place are slow, whatever key they have."""
        row = self._rows.rows_of(place).start
        self._sets["places"]["slow_ns"][self._sets["places"]["row"] == row] = slow_ns

    def add_rest_at(self, place: int, slow_ns: int) -> None:
        """Has it add the requests of all other keys of a kind there: that kind's overflow."""
        self._set_rest(place, slow_ns, in_use=True)

    def show_rest_of(self, place: int) -> None:
        """Has it show these requests, as at first."""
        self._set_rest(place, 0, in_use=False)

    def _set_rest(self, place: int, slow_ns: int, *, in_use: bool) -> None:
        told = np.array(self._at(place, slow_ns, in_use=in_use), SERIES_PLACE).tobytes()
        self._programs.set_overflow_place(place, told)

    def _at(self, place: int, slow_ns: int, *, in_use: bool = True) -> tuple[int, int, int, bool]:
        """struct series_place, bpf/abi/records.h."""
        return slow_ns, self._rows.rows_of(place).start, self._rows.cpu_mask(place), in_use

    def close(self) -> None:
        """Unmaps it."""
        del self._sets
        self._mapped.close()


def index_of(word: int, count: int) -> int:
    """Where the kernel looks first for a word, in a table of `count` places."""
    return word * PLACE_FACTOR % 2**64 >> 32 & count - 1


def keys_of(records: np.ndarray) -> np.ndarray:
    """(n,) SERIES_KEY, as place_of() of bpf/ledger/series.h makes them.

    No status: it was cut short.
    """
    keys = np.zeros(len(records), SERIES_KEY)
    is_client = records["flags"] & np.uint32(RequestFlag.CLIENT) != 0
    answered = records["flags"] & np.uint32(RequestFlag.REQUEST_ANSWERED) != 0
    keys["hash"] = records["route_hash"] ^ _hash_processes(records)
    keys["port"] = np.where(is_client, records["peer_port"], records["local_port"])
    keys["status"] = np.where(answered, records["status"], 0)
    keys["ended_by"] = np.where(answered, 0, records["flags"] & np.uint32(ENDINGS))
    keys["is_client"] = is_client
    return keys


def _hash_processes(records: np.ndarray) -> np.ndarray:
    """(n,) uint64, as hash_process() of bpf/ledger/series.h finds them."""
    process = records["process"]
    comm = np.ascontiguousarray(process["comm"]).view(np.uint64).reshape(-1, 2)
    hashes = np.zeros(len(records), np.uint64)
    for word in (process["stack"], process["cgroup_id"], comm[:, 0], comm[:, 1]):
        hashes = (hashes ^ word) * np.uint64(PLACE_FACTOR)
    return np.where(records["pid"] != 0, hashes, np.uint64(0))
