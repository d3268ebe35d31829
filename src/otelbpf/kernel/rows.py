# SPDX-License-Identifier: Apache-2.0
"""Rows of arrays as Python's own values."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import get_type_hints

import numpy as np


def octets_of(rows: np.ndarray) -> list[bytes]:
    """The bytes of each row: to tell rows apart by a dict of these takes less than to sort them.

    Args:
        rows: (n,) of a structure, or (n, bytes) uint8; contiguous.
    """
    width = rows.itemsize * (rows.shape[1] if rows.ndim == 2 else 1)
    octets: list[bytes] = rows.view(f"V{width}").reshape(len(rows)).tolist()
    return octets


class Row(tuple[object, ...]):
    """A structure's fields as Python's own values, all at once: one by one they are dear to get.

    A subclass is annotated with all fields, in order. It is made of what tolist() or item() gives,
    where a structure within it is a plain tuple; that becomes a row, too, when it is asked for.
    """

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        for place, (name, kind) in enumerate(get_type_hints(cls).items()):
            is_row = isinstance(kind, type) and issubclass(kind, Row)
            setattr(cls, name, property(_row_at(place, kind) if is_row else itemgetter(place)))


def _row_at(place: int, kind: type[Row]) -> Callable[[Row], Row]:
    get = itemgetter(place)
    return lambda row: kind(get(row))
