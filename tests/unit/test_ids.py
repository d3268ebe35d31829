# SPDX-License-Identifier: Apache-2.0
"""Ids that follow from the request: the same each time, and foretold by nobody."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from otelbpf.ledger.ids import Ids, siphash

KEY = bytes(range(16))
# Connections begun within a few ns, and the first requests on them: as alike as they come.
CONNECTIONS, ORDINALS = (
    each.ravel().astype(np.uint64) for each in np.meshgrid(np.arange(256), np.arange(64))
)


def all_of(ids: Ids) -> np.ndarray:
    """(3, n): span ids and both halves of the trace ids."""
    return np.stack(ids.of(CONNECTIONS, ORDINALS))


def test_the_hash_is_the_one_that_python_has_for_bytes() -> None:
    if sys.hash_info.algorithm != "siphash13":
        pytest.skip(f"this Python hashes by {sys.hash_info.algorithm}")
    messages = np.arange(46, dtype=np.uint64).reshape(23, 2) * np.uint64(0x9E3779B97F4A7C15)
    by_python = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; [print(hash(bytes.fromhex(m))) for m in sys.argv[1:]]",
            *(message.tobytes().hex() for message in messages),
        ],
        env={**os.environ, "PYTHONHASHSEED": "0"},  # a key of zeros
        capture_output=True,
        text=True,
        check=True,
    )
    (found,) = siphash((0, 0), messages[:, 0], messages[:, 1], [0xFF])
    expected = [int(line) % (1 << 64) for line in by_python.stdout.split()]
    assert found.tolist() == expected


def test_the_same_request_has_the_same_ids() -> None:
    ids = Ids(KEY)
    assert (all_of(ids) == all_of(ids)).all()
    assert (all_of(ids) == all_of(Ids(KEY))).all()
    backwards = np.stack(ids.of(CONNECTIONS[::-1], ORDINALS[::-1]))
    assert (backwards[:, ::-1] == all_of(ids)).all()
    narrow = np.stack(ids.of(CONNECTIONS, ORDINALS.astype(np.uint32)))
    assert (narrow == all_of(ids)).all()


def test_different_requests_have_different_ids() -> None:
    assert len(np.unique(all_of(Ids(KEY)))) == 3 * len(CONNECTIONS)


def test_each_run_has_its_own() -> None:
    assert not np.isin(all_of(Ids()), all_of(Ids())).any()


def test_they_are_spread_evenly() -> None:
    """As a sampler by ratio needs it: each bit is set in half of them."""
    found = all_of(Ids(KEY))
    for bit in range(64):
        share = (found >> np.uint64(bit) & np.uint64(1)).mean(axis=1)
        assert (abs(share - 0.5) < 0.03).all(), (bit, share)


def test_none_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "otelbpf.ledger.ids.siphash",
        lambda _, first, __, ends: np.zeros((len(ends), len(first)), np.uint64),
    )
    assert (all_of(Ids(KEY)) == 1).all()


def test_a_key_has_16_bytes() -> None:
    with pytest.raises(ValueError, match="a key of 8 bytes: it has 16"):
        Ids(bytes(8))
