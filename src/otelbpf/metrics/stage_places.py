# SPDX-License-Identifier: Apache-2.0
"""Where the stages of requests are added up, in the kernel as here: places of struct series.

The kernel is shown each order of stamps that is new, and told where its stages are
(bpf/ledger/series.h).
"""

from __future__ import annotations

import numpy as np

from otelbpf.kernel.loader import Programs
from otelbpf.kernel.mapped import MappedArray
from otelbpf.kernel.records import SERIES, STAGE_ORDER, STAMP_ORDER, FixedLength, Stamp
from otelbpf.kernel.rows import octets_of
from otelbpf.ledger.batch import numbers_of
from otelbpf.ledger.request import stage_name
from otelbpf.metrics.series_sets import PLACE_FACTOR, index_of

_STAMPS = len(Stamp)
_PLACES = SERIES["stages"].shape[0]
#: Where the stages are for which there was no place left.
_OTHER_STAGES = 0
OTHER_STAGES = "other"
_NO_ORDER = [0] * STAMP_ORDER["words"].shape[0]


class StagePlaces:
    """The places that stages have been given. Close it to unmap what the kernel is told by.

    Attributes:
        names: of the stages, by place.
    """

    def __init__(self, programs: Programs) -> None:
        self.names = [OTHER_STAGES]
        #: 1 + the place of a stage, by its first stamp and its second; 0: it has none yet.
        self._places = np.zeros(_STAMPS * _STAMPS, np.int64)
        self._mapped = MappedArray(
            programs.map_fd("stage_orders"), STAGE_ORDER, FixedLength.STAGE_ORDERS, writable=True
        )
        self._orders = self._mapped.values

    def of(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(n,) the places of the stages between these stamps; new ones get one."""
        pairs = first * _STAMPS + second
        for pair in np.unique(pairs[self._places[pairs] == 0]):
            place = _OTHER_STAGES
            if len(self.names) < _PLACES:
                place = len(self.names)
                self.names.append(stage_name(*divmod(int(pair), _STAMPS)))
            self._places[pair] = 1 + place
        places: np.ndarray = self._places[pairs] - 1
        return places

    def tell_orders(self, stamps: np.ndarray) -> None:
        """Tells the kernel where the stages of these orders are, as long as there is room.

        Args:
            stamps: as sorted_stamps() gives them.
        """
        for order in _orders_of(stamps):
            words = np.frombuffer(order, np.uint64).tolist()
            at = _index_of_order(words)
            known = self._orders["order"]["words"][[at, at ^ 1]].tolist()
            if words not in known and _NO_ORDER in known:
                told = self._orders[at ^ known.index(_NO_ORDER)]
                numbers = np.frombuffer(order.rstrip(b"\0"), np.uint8).astype(np.int64) - 1
                told["places"][: len(numbers) - 1] = self.of(numbers[:-1], numbers[1:])
                # The first word last: no order is without it, so the kernel finds all or nothing.
                for i, word in reversed(list(enumerate(words))):
                    told["order"]["words"][i] = word

    def close(self) -> None:
        """Unmaps it."""
        del self._orders
        self._mapped.close()


def _index_of_order(words: list[int]) -> int:
    """Where the kernel looks first for an order of stamps."""
    word = 0
    for each in words:
        word = (word * PLACE_FACTOR ^ each) % 2**64
    return index_of(word, FixedLength.STAGE_ORDERS)


def _orders_of(stamps: np.ndarray) -> list[bytes]:
    """The orders of these stamps, each once: struct stamp_order."""
    numbers = np.where(stamps != 0, numbers_of(stamps) + 1, 0).astype(np.uint8)
    # The absent ones come first here, and last there.
    return [
        octets.lstrip(b"\0").ljust(STAMP_ORDER.itemsize, b"\0")
        for octets in dict.fromkeys(octets_of(numbers))
    ]
