# SPDX-License-Identifier: Apache-2.0
"""Protobuf's wire format, as far as OTLP's spans need it: by value, and whole columns at a time.

Numbers in columns are varints of one width for the column, padded with continuation bits: parsers
take them, and all that follows them stays where it was, so that a row of bytes is filled column by
column.

Source:
    https://protobuf.dev/programming-guides/encoding; opentelemetry-proto's common.proto.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from otelbpf.traces.description import Value

_VARINT, _FIXED64, _LENGTH = 0, 1, 2
_PAYLOAD_BITS = 7
_GOES_ON = 1 << _PAYLOAD_BITS
_SHORT = tuple(bytes((number,)) for number in range(_GOES_ON))
# Fields of AnyValue and of KeyValue.
_STRING, _BOOL, _INT, _DOUBLE, _ARRAY = 1, 2, 3, 4, 5
_KEY, _VALUE = 1, 2
_HEADS_KEPT = 4_096
_WIDTHS_KEPT = 256


def varint(number: int) -> bytes:
    """A number as short as can be; a negative one by its two's complement in 64 bits."""
    if 0 <= number < _GOES_ON:
        return _SHORT[number]
    number &= (1 << 64) - 1
    octets = bytearray()
    while number >= _GOES_ON:
        octets.append(number & _GOES_ON - 1 | _GOES_ON)
        number >>= _PAYLOAD_BITS
    octets.append(number)
    return bytes(octets)


@functools.lru_cache(_HEADS_KEPT)
def head(field: int, length: int) -> bytes:
    """What goes before a message of this length."""
    return varint(field << 3 | _LENGTH) + varint(length)


def block(field: int, content: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return head(field, len(content)) + content


def text(field: int, content: str) -> bytes:
    """A field of text."""
    return block(field, content.encode())


def integer(field: int, number: int) -> bytes:
    """A field of a number."""
    return varint(field << 3 | _VARINT) + varint(number)


def any_value(value: Value) -> bytes:
    """AnyValue's content."""
    if isinstance(value, str):
        return text(_STRING, value)
    if isinstance(value, bool):
        return integer(_BOOL, value)
    if isinstance(value, int):
        return integer(_INT, value)
    if isinstance(value, float):
        return varint(_DOUBLE << 3 | _FIXED64) + struct.pack("<d", value)
    return block(_ARRAY, b"".join(block(1, any_value(each)) for each in value))


@functools.cache
def _key(key: str) -> bytes:
    return text(_KEY, key)


def attributes(field: int, pairs: Mapping[str, Value]) -> bytes:
    """Each a KeyValue, in a field that is repeated."""
    made = []
    for key, value in pairs.items():
        if isinstance(value, str):
            octets = value.encode()
            made.append(_before_text(field, key, len(octets)) + octets)
        else:
            made.append(block(field, _key(key) + block(_VALUE, any_value(value))))
    return b"".join(made)


@functools.lru_cache(_HEADS_KEPT)
def _before_text(field: int, key: str, length: int) -> bytes:
    """A KeyValue of a text, up to the `length` bytes of the text."""
    value = block(_STRING, bytes(length))
    whole = block(field, _key(key) + block(_VALUE, value))
    return whole[: len(whole) - length]


@functools.cache
def before_number(field: int, key: str, width: int) -> bytes:
    """A KeyValue of an integer, up to the `width` bytes of the number."""
    value = varint(_INT << 3 | _VARINT) + bytes(width)
    whole = block(field, _key(key) + block(_VALUE, value))
    return whole[: len(whole) - width]


def width_of(number: int) -> int:
    """How many bytes a varint for numbers up to this one has."""
    return max(1, -(-number.bit_length() // _PAYLOAD_BITS))


def padded_varints(numbers: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """Columns of numbers as columns of varints, each of its own width.

    Args:
        numbers: (q, n) uint64; each below 2**(7 * its column's width).
        widths: of the q columns, in bytes.
    Returns:
        (sum of widths, n) uint8: a column for each byte.
    """
    column, shift, goes_on = _places(tuple(widths))
    octets: np.ndarray = (numbers[column] >> shift).astype(np.uint8)
    octets &= np.uint8(_GOES_ON - 1)
    octets |= goes_on
    return octets


@functools.lru_cache(_WIDTHS_KEPT)
def _places(widths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each byte its column, and as (bytes, 1) by how much that is shifted and the bit to add."""
    column = np.repeat(np.arange(len(widths)), widths)
    place = np.concatenate([np.arange(width) for width in widths])
    goes_on = np.where(place < np.repeat(widths, widths) - 1, _GOES_ON, 0)
    shift = place * _PAYLOAD_BITS
    return column, shift.astype(np.uint64)[:, np.newaxis], goes_on.astype(np.uint8)[:, np.newaxis]
