# SPDX-License-Identifier: Apache-2.0
"""All connections in sums, as the kernel keeps them (bpf/links/handshakes.h)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from otelbpf.kernel.loader import Programs
from otelbpf.kernel.mapped import MappedArray
from otelbpf.kernel.records import CONNECTION_SUMS
from otelbpf.ledger.request import KINDS, Kind
from otelbpf.metrics.snapshot import Connections, Histogram

_COUNTS = tuple(name for name in CONNECTION_SUMS.names or () if not CONNECTION_SUMS[name].names)


class ConnectionSums:
    """The kernel's sums.

    Args:
        programs: whose limits have room for series.
        kinds: that are measured.
    """

    def __init__(self, programs: Programs, kinds: Sequence[Kind]) -> None:
        self._kinds = kinds
        self._mapped = MappedArray(programs.map_fd("connection_sums"), CONNECTION_SUMS, len(KINDS))
        self._kernels = self._mapped.values

    def snapshot(self) -> tuple[Connections, ...]:
        """Those of each kind that is measured; from any thread."""
        return tuple(_connections(kind, self._kernels[KINDS.index(kind)]) for kind in self._kinds)

    def close(self) -> None:
        """Unmaps what was mapped."""
        del self._kernels
        self._mapped.close()


def _connections(kind: Kind, sums: np.void) -> Connections:
    waits = _histogram(sums["accept_queue"])
    return Connections(
        kind,
        {name: int(sums[name]) for name in _COUNTS},
        handshake=_histogram(sums["handshake"]),
        # There are none where nothing tells of accept(), nor of a client's connections.
        accept_queue=waits if waits.count else None,
    )


def _histogram(kernels: np.void) -> Histogram:
    return Histogram(int(kernels["sum_ns"]), kernels["counts"].copy())
