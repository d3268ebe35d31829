# SPDX-License-Identifier: Apache-2.0
"""Where the lines of a head end: at every border, cut anywhere, among bytes that look so."""

from __future__ import annotations

import numpy as np
import pytest
from lab import Lab, Pair, receive
from messages import OK
from meter import WHOLE, Meter, flags

TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BODY = b"0123456789"
# bpf/state/scratch.h
CARRY_MAX, WINDOW_MAX = 256, 1024
ODD = {
    "tabs": b"\t",
    "control characters": bytes(set(range(1, 32)) - set(b"\r\n")),
    "carriage returns": b"\r",
    "UTF-8": "žluťoučký kůň ".encode(),
    "0x9f to 0xa1": b"\x9f\xa0\xa1",
    "0x7f and 0xff": b"\x7f\xff",
    "0xff and 0x1f": b"\xff\x1f",
    "NULs": b"\0",
}


def asked(before: bytes, end: bytes = b"\r\n") -> bytes:
    """A POST whose telling lines come after `before`."""
    lines = [b"POST /lines HTTP/1.1", before, b"traceparent: " + TRACEPARENT,
             b"Content-Length: %d" % len(BODY), b""]  # fmt: skip
    return b"".join(line + end for line in lines) + BODY


def answered(before: bytes, end: bytes = b"\r\n") -> bytes:
    """A response whose telling line comes after `before`."""
    lines = [b"HTTP/1.1 201 Created", before, b"Content-Length: %d" % len(BODY), b"Server: x", b""]
    return b"".join(line + end for line in lines) + BODY


def assert_all_are_right(records: np.ndarray, befores: list[bytes], end: bytes = b"\r\n") -> None:
    assert records["http1"]["request_line"].tolist() == [b"POST /lines HTTP/1.1"] * len(befores)
    assert records["join"]["traceparent"].tolist() == [TRACEPARENT] * len(befores)
    assert records["request_bytes"].tolist() == [len(asked(before, end)) for before in befores]
    assert records["request_body_bytes"].tolist() == [len(BODY)] * len(befores)
    assert records["response_bytes"].tolist() == [len(answered(before, end)) for before in befores]
    assert records["response_body_bytes"].tolist() == [len(BODY)] * len(befores)
    assert records["status"].tolist() == [201] * len(befores)
    assert list(map(flags, records)) == [WHOLE] * len(befores)


def exchange_all(lab: Lab, meter: Meter, befores: list[bytes], end: bytes = b"\r\n") -> None:
    """On one connection, one after another."""
    pair = lab.connect()
    for before in befores:
        pair.exchange(asked(before, end), answered(before, end))
    assert_all_are_right(meter.records(len(befores)), befores, end)
    meter.assert_next_is_right(pair, len(befores))


@pytest.mark.parametrize("end", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
@pytest.mark.parametrize(
    "lengths",
    [range(2, 100), range(CARRY_MAX - 20, CARRY_MAX + 20),
     range(WINDOW_MAX - 180, WINDOW_MAX + 20), range(2 * WINDOW_MAX - 180, 2 * WINDOW_MAX + 20)],
    ids=["short", "carry", "window", "second window"],
)  # fmt: skip
def test_lines_that_end_anywhere(lab: Lab, meter: Meter, lengths: range, end: bytes) -> None:
    exchange_all(lab, meter, [b"X: " + b"x" * (length - 3) for length in lengths], end)


@pytest.mark.parametrize("end", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_bytes_that_look_like_the_end_of_a_line(
    lab: Lab, meter: Meter, odd: bytes, end: bytes
) -> None:
    befores = [
        b"X:" + b" " * spaces + odd * repeated
        for spaces in range(33)
        for repeated in (1, 2, 9, 200 // len(odd))
    ]
    if end == b"\n":
        befores = [before + b"." for before in befores]  # else a CR would belong to the end
    exchange_all(lab, meter, befores, end)


@pytest.mark.parametrize("length", [240, 255, 256, 257, 300, 1000, 1024, 3000])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_long_lines_of_bytes_that_look_like_an_end(
    lab: Lab, meter: Meter, odd: bytes, length: int
) -> None:
    value = (odd * length)[:length]
    befores = [b"X: " + value, value + b": x", b"A: b\r\nX: " + value + b".\r\nY: " + value]
    exchange_all(lab, meter, befores)


def send_response_in_two(pair: Pair, data: bytes, cut: int) -> None:
    for piece in (data[:cut], data[cut:]):
        pair.server.sendall(piece)
        assert receive(pair.client, len(piece)) == piece


@pytest.mark.parametrize("end", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
@pytest.mark.parametrize("before", [b"X: short", b"X: " + b"long" * 70], ids=["short", "long"])
def test_heads_cut_anywhere(lab: Lab, meter: Meter, before: bytes, end: bytes) -> None:
    pair = lab.connect()
    question, answer = asked(before, end), answered(before, end)
    for cut in range(1, len(question)):
        pair.send_segment(question[:cut])
        pair.send_segment(question[cut:])
        assert receive(pair.server, len(question)) == question
        send_response_in_two(pair, answer, min(cut, len(answer) - 1))
    assert_all_are_right(meter.records(len(question) - 1), [before] * (len(question) - 1), end)
    meter.assert_next_is_right(pair, len(question) - 1)


def test_a_head_that_comes_byte_by_byte(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    before = b"X: \t\xff\xa0."
    for byte in asked(before):
        pair.send_segment(bytes([byte]))
    assert receive(pair.server, len(asked(before))) == asked(before)
    for byte in answered(before):
        pair.answer(bytes([byte]))
    assert_all_are_right(meter.records(1), [before])


def test_empty_values_and_lines_of_one_byte(lab: Lab, meter: Meter) -> None:
    exchange_all(lab, meter, [b"X:", b":", b"x", b"X:\r\nY:", b"x\r\ny\r\nz", b"\r.", b"x\r"])


def test_an_empty_line_after_a_carriage_return_is_no_end(lab: Lab, meter: Meter) -> None:
    """Only CRLF or LF at the start of a line ends a head; a CR before that makes it a line."""
    pair = lab.connect()
    pair.exchange(asked(b"\r"), OK)
    assert meter.record()["request_bytes"] == len(asked(b"\r"))
    meter.assert_next_is_right(pair, 1)
