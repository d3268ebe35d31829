# SPDX-License-Identifier: Apache-2.0
"""What is written by hand is what protobuf itself writes, or at least what it reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from google.protobuf.internal.decoder import _DecodeVarint
from google.protobuf.internal.encoder import _VarintBytes
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otelbpf.traces.description import Value
from otelbpf.traces.wire import (
    any_value,
    attributes,
    before_number,
    block,
    head,
    integer,
    padded_varints,
    text,
    varint,
    width_of,
)

ATTRIBUTES = Span.ATTRIBUTES_FIELD_NUMBER
# Where a varint becomes longer, and the ends.
EDGES = sorted(
    {0, 1, 127, 128, 2**31 - 1, 2**31, 2**32, 2**63 - 1}
    | {2 ** (7 * width) + off for width in range(1, 9) for off in (-1, 0)}
)
#: Bytes of a text whose length is as long as can be in one byte, and so on.
LENGTHS = (0, 1, 127, 128, 16_383, 16_384, 20_000)
VALUES: dict[str, tuple[Value, AnyValue]] = {
    "text": ("GET", AnyValue(string_value="GET")),
    "no ASCII": ("grüße ☃ 𝄞", AnyValue(string_value="grüße ☃ 𝄞")),
    "zero byte": ("a\0b", AnyValue(string_value="a\0b")),
    "empty text": ("", AnyValue(string_value="")),
    "true": (True, AnyValue(bool_value=True)),
    "false": (False, AnyValue(bool_value=False)),
    "zero": (0, AnyValue(int_value=0)),
    "least": (-(2**63), AnyValue(int_value=-(2**63))),
    "float": (0.1, AnyValue(double_value=0.1)),
    "zero float": (0.0, AnyValue(double_value=0.0)),
    "infinite": (-math.inf, AnyValue(double_value=-math.inf)),
    "texts": (
        ("woken", "", "running"),
        AnyValue(array_value=ArrayValue(values=[
            AnyValue(string_value=each) for each in ("woken", "", "running")
        ])),
    ),
    "list": (["a"], AnyValue(array_value=ArrayValue(values=[AnyValue(string_value="a")]))),
    "no texts": ((), AnyValue(array_value=ArrayValue())),
    # The SDK's resources may have them.
    "numbers": (
        (1, 2.5, True),  # type: ignore[dict-item]
        AnyValue(array_value=ArrayValue(values=[
            AnyValue(int_value=1), AnyValue(double_value=2.5), AnyValue(bool_value=True)
        ])),
    ),
}  # fmt: skip


@pytest.mark.parametrize("number", [*EDGES, 2**64 - 1])
def test_a_varint(number: int) -> None:
    assert varint(number) == _VarintBytes(number)


@pytest.mark.parametrize("number", [-1, -127, -128, -(2**31), -(2**63)])
def test_a_negative_varint(number: int) -> None:
    # Behind the tag.
    assert varint(number) == AnyValue(int_value=number).SerializeToString()[1:]


@pytest.mark.parametrize("number", EDGES)
def test_a_number_and_a_negative_one(number: int) -> None:
    for each in (number, -number, -number - 1):
        assert integer(3, each) == AnyValue(int_value=each).SerializeToString()


@pytest.mark.parametrize("field", [1, 15, 16, 2_047, 2_048])
@pytest.mark.parametrize("length", LENGTHS)
def test_what_goes_before_a_message(field: int, length: int) -> None:
    expected = _VarintBytes(field << 3 | 2) + _VarintBytes(length)
    assert head(field, length) == expected
    assert block(field, b"x" * length) == expected + b"x" * length


@pytest.mark.parametrize("name", VALUES)
def test_a_value_of_each_type(name: str) -> None:
    value, expected = VALUES[name]
    assert any_value(value) == expected.SerializeToString()
    parsed = AnyValue.FromString(any_value(value))
    assert parsed == expected
    assert parsed.WhichOneof("value") == expected.WhichOneof("value")


def test_a_value_that_is_no_number() -> None:
    assert math.isnan(AnyValue.FromString(any_value(math.nan)).double_value)


@pytest.mark.parametrize("letter", ["x", "é"])
@pytest.mark.parametrize("of_value", LENGTHS)
@pytest.mark.parametrize("of_key", LENGTHS)
def test_keys_and_texts_of_any_length(of_key: int, of_value: int, letter: str) -> None:
    """A length is of bytes, not of characters."""
    key, value = letter * of_key, letter * of_value
    octets = attributes(ATTRIBUTES, {key: value})
    assert list(Span.FromString(octets).attributes) == [
        KeyValue(key=key, value=AnyValue(string_value=value))
    ]


def test_all_of_them_at_once_in_their_order() -> None:
    pairs = {name: value for name, (value, _) in VALUES.items()}
    expected = [KeyValue(key=name, value=value) for name, (_, value) in VALUES.items()]
    for field, message in ((ATTRIBUTES, Span), (1, Resource)):
        assert list(message.FromString(attributes(field, pairs)).attributes) == expected
    assert attributes(ATTRIBUTES, pairs) == Span(attributes=expected).SerializeToString()
    assert attributes(ATTRIBUTES, {}) == b""


def test_a_text() -> None:
    assert text(5, "grüße") == Span(name="grüße").SerializeToString()


# ---- columns ----


@pytest.mark.parametrize("number", EDGES)
def test_as_wide_as_it_must_be(number: int) -> None:
    assert width_of(number) == len(_VarintBytes(number))


def columns(*numbers: Sequence[int]) -> np.ndarray:
    return np.array(numbers, np.uint64)


@pytest.mark.parametrize("wider", [0, 1, 9])
@pytest.mark.parametrize("number", EDGES)
def test_a_padded_varint_is_read_as_the_number(number: int, wider: int) -> None:
    width = min(10, width_of(number) + wider)
    octets = padded_varints(columns([number]), [width])
    # What stands behind it is not a part of it.
    assert _DecodeVarint(octets.tobytes() + b"\xff", 0) == (number, width)


def test_columns_of_padded_varints() -> None:
    numbers = [[0, 127, 5], [2**63 - 1, 0, 128], [300, 2**14 - 1, 0]]
    widths = [1, 9, 2]
    octets = padded_varints(columns(*numbers), widths).T
    assert octets.dtype == np.uint8
    assert octets.shape == (3, sum(widths))
    for row, expected in zip(octets, zip(*numbers, strict=True), strict=True):
        found, at = [], 0
        for _ in widths:
            number, at = _DecodeVarint(row.tobytes(), at)
            found.append(number)
        assert tuple(found) == expected
        assert at == sum(widths)


@pytest.mark.parametrize("key", ["", "k", "k" * 127, "k" * 128, "k" * 20_000, "é"])
@pytest.mark.parametrize("number", EDGES)
def test_an_attribute_whose_number_is_put_in_later(number: int, key: str) -> None:
    for width in {width_of(number), 9, 10}:
        octets = padded_varints(columns([number]), [width])
        span = Span.FromString(before_number(ATTRIBUTES, key, width) + octets.tobytes())
        assert list(span.attributes) == [KeyValue(key=key, value=AnyValue(int_value=number))]
