# SPDX-License-Identifier: Apache-2.0
"""kernel record -> reader: takes whole batches of records out of the ring buffer.

All records have one size, so a batch is one strided view of the ring's memory
and is copied out in one piece; BCC's own reader would call into Python for each
record.

Source:
    the ring's memory layout: kernel/bpf/ringbuf.c and libbpf's ringbuf.c.
"""

from __future__ import annotations

import mmap
import threading

import numpy as np

from otelbpf.records import REQUEST_RECORD

_HEADER_BYTES = 8
_BUSY = 1 << 31
_DISCARD = 1 << 30
_STRIDE = _HEADER_BYTES + (REQUEST_RECORD.itemsize + 7) // 8 * 8


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
        struct request_record, bpf/records.h.
    """
    if len(buffer) % REQUEST_RECORD.itemsize:
        raise RecordError(
            f"{len(buffer)} bytes are no whole number of records of {REQUEST_RECORD.itemsize} bytes"
        )
    return np.frombuffer(buffer, REQUEST_RECORD)


class RingReader:
    """Reads the ring buffer behind a map's file descriptor.

    Args:
        map_fd: of a BPF_MAP_TYPE_RINGBUF that holds REQUEST_RECORDs only.
        ring_bytes: its size.
    """

    def __init__(self, map_fd: int, ring_bytes: int) -> None:
        page = mmap.PAGESIZE
        self._ring_bytes = ring_bytes
        self._mask = ring_bytes - 1
        self._consumer_map = mmap.mmap(map_fd, page, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        # The data pages are mapped twice in a row, so no record is ever cut in two.
        self._producer_map = mmap.mmap(
            map_fd, page + 2 * ring_bytes, prot=mmap.PROT_READ, offset=page
        )
        self._consumer = np.frombuffer(self._consumer_map, np.uint64, 1)
        self._producer = np.frombuffer(self._producer_map, np.uint64, 1)
        self._data = np.frombuffer(self._producer_map, np.uint8, 2 * ring_bytes, page)
        self._fence = threading.Lock()

    def read(self, limit: int = 16_384) -> np.ndarray:
        """Takes up to `limit` finished records out of the ring. Never waits.

        Returns:
            (n,) REQUEST_RECORD, a copy; n may be 0.
        """
        position = int(self._consumer[0])
        available = (int(self._producer[0]) - position) // _STRIDE
        with self._fence:  # orders the reads before and after it on weakly ordered machines
            pass
        count = min(available, limit, self._ring_bytes // _STRIDE)
        if count <= 0:
            return np.empty(0, REQUEST_RECORD)
        start = position & self._mask
        rows = self._data[start : start + count * _STRIDE].reshape(count, _STRIDE)
        headers = np.ascontiguousarray(rows[:, :4]).view(np.uint32)[:, 0]
        busy = np.flatnonzero(headers & _BUSY)
        if busy.size:
            # A record that is being written: stop before it.
            count = int(busy[0])
            rows, headers = rows[:count], headers[:count]
        kept = rows[headers & _DISCARD == 0]
        records = np.ascontiguousarray(
            kept[:, _HEADER_BYTES : _HEADER_BYTES + REQUEST_RECORD.itemsize]
        ).view(REQUEST_RECORD)[:, 0]
        self._consumer[0] = position + count * _STRIDE
        return records

    @property
    def pending(self) -> int:
        """How many records have not been read yet, those being written included."""
        return (int(self._producer[0]) - int(self._consumer[0])) // _STRIDE

    def close(self) -> None:
        """Unmaps the ring."""
        del self._consumer, self._producer, self._data
        self._consumer_map.close()
        self._producer_map.close()
