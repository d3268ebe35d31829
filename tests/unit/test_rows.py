# SPDX-License-Identifier: Apache-2.0
"""A record as a row: what each field's annotation says is what is there."""

from __future__ import annotations

from typing import get_type_hints

import numpy as np
import pytest

from otelbpf.kernel.records import (
    HTTP1,
    JOIN,
    PROCESS,
    REQUEST_RECORD,
    Http1Row,
    JoinRow,
    ProcessRow,
    RequestRecordRow,
)
from otelbpf.kernel.rows import Row


def of_noise(dtype: np.dtype) -> np.ndarray:
    """One structure, no field of which is like another."""
    return np.random.default_rng(1).integers(1, 256, dtype.itemsize, np.uint8).view(dtype)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(ProcessRow, PROCESS), (JoinRow, JOIN), (Http1Row, HTTP1), (RequestRecordRow, REQUEST_RECORD)],
)
def test_a_row_has_all_fields_as_they_are_annotated(kind: type[Row], dtype: np.dtype) -> None:
    (told,) = of_noise(dtype).tolist()
    row, hints = kind(told), get_type_hints(kind)
    assert tuple(hints) == dtype.names
    for name, value in zip(dtype.names, told, strict=True):
        got = getattr(row, name)
        assert type(got) is hints[name], name
        assert got is value or (isinstance(got, Row) and got == value), name


def test_a_structure_within_a_row_is_a_row() -> None:
    records = of_noise(REQUEST_RECORD)
    row = RequestRecordRow(records[0].item())
    assert row.process == ProcessRow(records["process"][0].item())
    assert row.process.comm == records["process"]["comm"][0]
    assert row.process.cgroup_id == records["process"]["cgroup_id"][0]
