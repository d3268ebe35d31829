# SPDX-License-Identifier: Apache-2.0
"""Which rows of the kernel's table of sums a processor adds to, and what memory they take."""

from __future__ import annotations

import numpy as np
import pytest

from otelbpf.kernel import libbpf, memory
from otelbpf.kernel.limits import DEFAULT, MOST, Limits
from otelbpf.kernel.records import SERIES
from otelbpf.kernel.series_rows import EACH_MOST, SPREAD_MOST, SeriesRows

MIB = 1 << 20
CACHE_LINE = 64


def row(rows: SeriesRows, place: int, processor: int) -> int:
    """As add_to_series() of bpf/ledger/series.h finds it."""
    return rows.rows_of(place).start + (processor & rows.cpu_mask(place))


@pytest.mark.parametrize("processors", [1, 2, 3, 4, 6, 8, 16, 400])
@pytest.mark.parametrize("places", [8, 31, 256, 4096])
def test_each_row_is_one_series_and_of_as_few_processors_as_can_be(
    places: int, processors: int
) -> None:
    rows = SeriesRows.of(places, processors)
    users: dict[int, set[tuple[int, int]]] = {}
    for place in range(places):
        for processor in range(processors):
            users.setdefault(row(rows, place, processor), set()).add((place, processor))
    assert max(users) < rows.count
    for using in users.values():
        assert len({place for place, _ in using}) == 1
    if processors > 2:
        of_first = [using for using in users.values() if min(using)[0] < SPREAD_MOST]
        assert max(map(len, of_first)) == -(-processors // EACH_MOST)


@pytest.mark.parametrize("processors", [3, 4, 8, 16, 400])
def test_no_two_processors_rows_share_a_cache_line(processors: int) -> None:
    """The table begins with a page."""
    rows = SeriesRows.of(DEFAULT.series, processors)
    size = SERIES.itemsize
    lines = {
        number: {number * size // CACHE_LINE, ((number + 1) * size - 1) // CACHE_LINE}
        for number in (row(rows, 0, processor) for processor in range(processors))
    }
    assert len(set().union(*lines.values())) == 2 * len(lines) == 2 * min(processors, EACH_MOST)


@pytest.mark.parametrize("processors", [1, 2])
def test_few_processors_have_one_row_each(processors: int) -> None:
    assert SeriesRows.of(256, processors) == SeriesRows(256)


@pytest.mark.parametrize("limits", [Limits(series=8), DEFAULT, MOST])
def test_they_take_what_check_says_and_no_more_than_25_mib(
    monkeypatch: pytest.MonkeyPatch, limits: Limits
) -> None:
    def table_bytes(processors: int) -> int:
        monkeypatch.setattr(libbpf, "possible_cpus", lambda: processors)
        # Scratch memory is each processor's own.
        scratches = memory.sizes(limits)["scratches"]
        return memory.table_bytes(limits) - scratches

    few = table_bytes(2)
    for processors in (3, 4, 5, 8, 9, 16, 64, 8192):
        more = table_bytes(processors) - few
        rows = SeriesRows.of(limits.series, processors)
        assert more == (rows.count - limits.series) * SERIES.itemsize
        assert 0 < more <= 25 * MIB


def test_sums_are_those_of_each_ones_rows() -> None:
    rows = SeriesRows(7, spread=3, each=4)
    values = np.arange(1, rows.count + 1, dtype=np.uint64)
    assert rows.count == len(values) == 16
    for places in range(8):
        expected = [int(values[rows.rows_of(place)].sum()) for place in range(places)]
        assert rows.sums(values, places).tolist() == expected
    values[:] = 1 << 63
    assert rows.sums(values, 1).tolist() == [0]
