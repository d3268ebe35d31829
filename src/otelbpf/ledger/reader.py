# SPDX-License-Identifier: Apache-2.0
"""kernel record -> reader: takes finished requests out of the kernel's table, in whole batches.

Nothing is copied in the kernel: the programs say which slots of the table are to be read, and
get them back once that is done.
"""

from __future__ import annotations

import threading

import numpy as np

from otelbpf.kernel.loader import Programs
from otelbpf.kernel.mapped import MappedArray
from otelbpf.kernel.records import EXCHANGE, PROCESS, REQUEST_RECORD, RING_ENDS, ExchangeState

_UNKNOWN = np.zeros((), PROCESS)
_NONE = np.empty(0, REQUEST_RECORD)
# Of what lies beyond its length, a text has whatever was there before.
_TEXTS = {"join": ("traceparent",), "http1": ("request_line", "host", "user_agent")}


class RecordError(ValueError):
    """Bytes that are no whole records."""


def decode(buffer: bytes) -> np.ndarray:
    """Views bytes as request records.

    Args:
        buffer: n whole records, native byte order.
    Returns:
        (n,) REQUEST_RECORD; times are CLOCK_MONOTONIC ns.
    Raises:
        RecordError: the length is no multiple of the record size.
    Source:
        struct request_record, bpf/abi/records.h.
    """
    if len(buffer) % REQUEST_RECORD.itemsize:
        raise RecordError(
            f"{len(buffer)} bytes are no whole number of records of {REQUEST_RECORD.itemsize} bytes"
        )
    return np.frombuffer(buffer, REQUEST_RECORD)


class RingReader:
    """Reads finished requests, in the order in which they ended.

    Args:
        programs: whose requests it reads. Nobody else may read them.
    """

    def __init__(self, programs: Programs) -> None:
        limits = programs.limits
        self._mapped = [
            MappedArray(programs.map_fd(name), dtype, count, writable=True)
            for name, dtype, count in (
                ("exchanges", EXCHANGE, limits.exchanges),
                ("ring", np.uint64, limits.ring_slots),
                ("ring_ends", RING_ENDS, 1),
            )
        ]
        self._exchanges, self._ring, self._ends = (mapped.values for mapped in self._mapped)
        self._fence = threading.Lock()

    def read(self, limit: int = 16_384) -> np.ndarray:
        """Takes up to `limit` finished requests. Never waits.

        Returns:
            (n,) REQUEST_RECORD, a copy; n may be 0.
        """
        if not self.pending:
            return _NONE
        begin = int(self._ends["read"][0])
        places = (begin + np.arange(min(self.pending, limit))) % len(self._ring)
        told = self._ring[places]
        # One that is not told yet holds up those behind it.
        missing = np.flatnonzero(told == 0)
        if missing.size:
            places, told = places[: missing[0]], told[: missing[0]]
        if not told.size:
            return _NONE
        with self._fence:  # orders the reads before and after it on weakly ordered machines
            pass
        slots = told - np.uint64(1)
        records = self._exchanges["record"][slots]
        _cut_texts(records)
        # Of a process that is not known there is what was there before.
        records["process"][records["pid"] == 0] = _UNKNOWN
        self._ring[places] = 0
        self._exchanges["state"][slots] = ExchangeState.FREE
        self._ends["read"][0] = begin + len(slots)
        return records

    @property
    def pending(self) -> int:
        """How many have not been read yet, those that are being told included."""
        return int(self._ends["submitted"][0] - self._ends["read"][0])

    def close(self) -> None:
        """Unmaps what was mapped."""
        del self._exchanges, self._ring, self._ends
        for mapped in self._mapped:
            mapped.close()


def _cut_texts(records: np.ndarray) -> None:
    for section, names in _TEXTS.items():
        told = records[section]
        for name in names:
            octets = told[name][:, np.newaxis].view(np.uint8)
            beyond = np.arange(octets.shape[1]) >= told[f"{name}_length"][:, np.newaxis]
            np.copyto(octets, 0, where=beyond)
