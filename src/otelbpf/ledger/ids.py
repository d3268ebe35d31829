# SPDX-License-Identifier: Apache-2.0
"""The ids of requests: what a request is called follows from its connection and its number there.

So a request's span id is known to whoever knows the request, before its own record has come:
a request to an upstream can name its cause as its parent. Nobody outside can foretell an id,
since a key that is drawn anew at each start goes into it.

Source:
    SipHash-1-3 of Aumasson and Bernstein, for whole arrays.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_KEY_BYTES = 16
_INITIAL = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)


# What the hashes end with that become ids, in the order of RequestIds; the first is SipHash's own.
_ENDS = (0xFF, 0xEE, 0xDD)


class RequestIds(NamedTuple):
    """The ids that follow from n requests, none of them 0, which is no valid id.

    Attributes:
        span: (n,) uint64; their own.
        trace_high, trace_low: (n,) uint64; of the traces that they start.
    """

    span: np.ndarray
    trace_high: np.ndarray
    trace_low: np.ndarray


class Ids:
    """Names requests.

    Args:
        key: 16 bytes; None: drawn at random.
    Attributes:
        key: its two words, with which bpf/ledger/sampling.h makes low halves of trace ids, too.
    """

    def __init__(self, key: bytes | None = None) -> None:
        key = secrets.token_bytes(_KEY_BYTES) if key is None else key
        if len(key) != _KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes: it has {_KEY_BYTES}")
        self.key = (int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little"))

    def of(self, connection_ids: np.ndarray, ordinals: np.ndarray) -> RequestIds:
        """The ids of n requests.

        Args:
            connection_ids: (n,) uint64.
            ordinals: (n,) unsigned; of the request on its connection.
        """
        hashed = siphash(
            self.key, connection_ids.astype(np.uint64), ordinals.astype(np.uint64), _ENDS
        )
        hashed[hashed == 0] = 1
        return RequestIds(*hashed)


def siphash(
    key: tuple[int, int], first: np.ndarray, second: np.ndarray, ends: Sequence[int]
) -> np.ndarray:
    """SipHash-1-3 of n messages of two words, 16 bytes, each.

    Args:
        key: its two words.
        first, second: (n,) uint64; the messages' words.
        ends: what each hash of a message ends with: 0xff gives SipHash's own, another number
            another one.
    Returns:
        (ends, n) uint64.
    """
    state = [np.full(1, initial ^ key[i % 2], np.uint64) for i, initial in enumerate(_INITIAL)]
    # The last word tells the message's length, in its highest byte.
    for word in (first, second, np.uint64(16 << 56)):
        state[3] = state[3] ^ word
        _round(state)
        state[0] = state[0] ^ word
    state[2] = state[2] ^ np.array(ends, np.uint64)[:, np.newaxis]
    for _ in range(3):
        _round(state)
    hashed: np.ndarray = state[0] ^ state[1] ^ state[2] ^ state[3]
    return hashed


def _round(v: list[np.ndarray]) -> None:
    v[0] = v[0] + v[1]
    v[2] = v[2] + v[3]
    v[1] = _rotate(v[1], 13) ^ v[0]
    v[3] = _rotate(v[3], 16) ^ v[2]
    v[0] = _rotate(v[0], 32)
    v[2] = v[2] + v[1]
    v[0] = v[0] + v[3]
    v[1] = _rotate(v[1], 17) ^ v[2]
    v[3] = _rotate(v[3], 21) ^ v[0]
    v[2] = _rotate(v[2], 32)


def _rotate(words: np.ndarray, bits: int) -> np.ndarray:
    return words << np.uint64(bits) | words >> np.uint64(64 - bits)
