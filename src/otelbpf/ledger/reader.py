# SPDX-License-Identifier: Apache-2.0
"""kernel record -> reader: takes finished requests out of the kernel's table, in whole batches.

Nothing is copied in the kernel: the programs say which slots of the table are to be read, and
get them back once that is done.
"""

from __future__ import annotations

import functools
import os
import threading

import numpy as np

from otelbpf.kernel.loader import Programs
from otelbpf.kernel.mapped import MappedArray
from otelbpf.kernel.mapped_parts import PartlyMappedArray
from otelbpf.kernel.records import (
    EXCHANGE,
    FORWARDED_TEXT,
    PROCESS,
    REQUEST_RECORD,
    RING_ENDS,
    ExchangeState,
)
from otelbpf.ledger.forwarded import Clients
from otelbpf.policy.proxies import Forwarding

_UNKNOWN = np.zeros((), PROCESS)
_NONE = np.empty(0, REQUEST_RECORD)
_NOWHERE = np.empty(0, np.uint64)
_NO_FORWARDING = Forwarding()
# MiB of the table that stay mapped: each processor goes through its own part of it.
_PARTS = 4 + (os.cpu_count() or 1)
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
        forwarding: by which the client is found of a request that proxies have forwarded.
    """

    def __init__(self, programs: Programs, forwarding: Forwarding = _NO_FORWARDING) -> None:
        limits = programs.limits
        self._table = PartlyMappedArray(
            programs.map_fd("exchanges"), EXCHANGE, limits.exchanges, most=_PARTS, writable=True
        )
        self._mapped = [
            MappedArray(programs.map_fd(name), dtype, count, writable=True)
            for name, dtype, count in (
                ("ring", np.uint64, limits.ring_slots),
                ("ring_ends", RING_ENDS, 1),
            )
        ]
        exchanges = self._table.values
        self._ring, ends = (mapped.values for mapped in self._mapped)
        # Copied at once: of a structure each field would be.
        octets = exchanges["record"][:, np.newaxis].view(np.uint8)
        self._records = octets.view(f"V{REQUEST_RECORD.itemsize}")[:, 0]
        self._states = exchanges["state"]
        self._heads = exchanges["head_bytes"]
        self._texts: PartlyMappedArray | None = None
        if forwarding:
            self._texts = PartlyMappedArray(
                programs.map_fd("forwarded_texts"), FORWARDED_TEXT, limits.exchanges, most=_PARTS
            )
            self._clients = Clients(forwarding)
        self._submitted, self._read = ends["submitted"], ends["read"]
        self._peeked = 0
        self._fence = threading.Lock()

    def read(self, limit: int = 16_384) -> np.ndarray:
        """Takes up to `limit` finished requests. Never waits.

        Returns:
            (n,) REQUEST_RECORD, a copy; n may be 0.
        """
        begin = int(self._read[0])
        places, slots = self._told(begin, limit)
        if not slots.size:
            return _NONE
        records: np.ndarray = self._records[slots].view(REQUEST_RECORD)
        # Of a process that is not known there is what was there before.
        records["process"][records["pid"] == 0] = _UNKNOWN
        _cut_texts(records)
        if self._texts is not None:
            self._texts.reach(slots)
            self._clients.tell(records, self._texts.values[slots], self._heads[slots] != 0)
        self._ring[places] = 0
        self._states[slots] = ExchangeState.FREE
        self._read[0] = begin + len(slots)
        return records

    def peek(self) -> np.ndarray:
        """What has finished since this was called last, and was not read since.

        Returns:
            (n,) REQUEST_RECORD, a copy, of which the texts mean nothing. They stay, to be read.
        """
        begin = max(self._peeked, int(self._read[0]))
        _, slots = self._told(begin, self.submitted)
        self._peeked = begin + len(slots)
        if not slots.size:
            return _NONE
        records: np.ndarray = self._records[slots].view(REQUEST_RECORD)
        return records

    def _told(self, begin: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Places in the ring from the `begin`th request on, and which slots these tell.

        Of the table these are the ones that may be touched, until this is called again.
        """
        count = min(int(self._submitted[0]) - begin, limit)
        if not count:
            return _NOWHERE, _NOWHERE
        places = (begin + np.arange(count)) % len(self._ring)
        told = self._ring[places]
        # One that is not told yet holds up those behind it.
        if not told.all():
            count = int(told.argmin())
            places, told = places[:count], told[:count]
        with self._fence:  # orders the reads before and after it on weakly ordered machines
            pass
        slots = told - np.uint64(1)
        self._table.reach(slots)
        return places, slots

    @property
    def submitted(self) -> int:
        """How many have finished so far, those that are being told included."""
        return int(self._submitted[0])

    @property
    def pending(self) -> int:
        """How many have not been read yet, those that are being told included."""
        return int(self._submitted[0]) - int(self._read[0])

    def close(self) -> None:
        """Unmaps what was mapped."""
        del self._records, self._states, self._heads, self._ring, self._submitted, self._read
        self._table.close()
        if self._texts is not None:
            self._texts.close()
        for mapped in self._mapped:
            mapped.close()


def _cut_texts(records: np.ndarray) -> None:
    for section, names in _TEXTS.items():
        told = records[section]
        for name in names:
            words = told[name][:, np.newaxis].view(np.uint64)
            words &= _kept(told[name].itemsize).take(told[f"{name}_length"], axis=0, mode="clip")


@functools.cache
def _kept(width: int) -> np.ndarray:
    """(width + 1, width / 8) uint64: ones in the octets that a text of each length has."""
    has = np.arange(width) < np.arange(width + 1)[:, np.newaxis]
    return np.where(has, np.uint8(0xFF), np.uint8(0)).view(np.uint64)
