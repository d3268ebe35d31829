# SPDX-License-Identifier: Apache-2.0
"""Bodies, with a length or chunked, in both directions: where they end, and how long they are."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from lab import SERVER_IPV4, SERVER_IPV6, Lab, Pair, Worker, receive
from messages import CHUNKED, OK, chunk, chunks, request, response
from meter import WHOLE, Meter, flags, stamps

from otelbpf.kernel.records import Counter, RequestFlag, Stamp

MIB = 1 << 20
SIZES = [0, 1, 2, 1447, 1448, 1449, 65_536, MIB]


def carry(pair: Pair, asked: bytes, answered: bytes) -> None:
    """One exchange of any size: the other side reads while this one writes."""
    with Worker(lambda: receive(pair.server, len(asked))):
        pair.client.sendall(asked)
    with Worker(lambda: receive(pair.client, len(answered))):
        pair.server.sendall(answered)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("host", [SERVER_IPV4, SERVER_IPV6])
def test_content_length_of_a_request(lab: Lab, meter: Meter, host: str, size: int) -> None:
    pair = lab.connect(host)
    asked = request("POST", headers={"Content-Length": str(size)}) + b"G" * size
    carry(pair, asked, OK)
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["request_body_bytes"] == size
    assert record["request_bytes"] == len(asked)
    meter.assert_next_is_right(pair, 1)


@pytest.mark.parametrize("size", [*SIZES, 5 * MIB])
@pytest.mark.parametrize("host", [SERVER_IPV4, SERVER_IPV6])
def test_content_length_of_a_response(lab: Lab, meter: Meter, host: str, size: int) -> None:
    pair = lab.connect(host)
    answered = response(body=b"H" * size)
    carry(pair, request(), answered)
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["response_body_bytes"] == size
    assert record["response_bytes"] == len(answered)
    meter.assert_next_is_right(pair, 1)


def test_an_upload_to_a_slow_reader(lab: Lab, meter: Meter) -> None:
    """The window closes and opens again and again; nothing of it shows but the time it took."""
    pair = lab.connect()
    asked = request("PUT", "/slow", body=b"u" * MIB)

    def read_slowly() -> None:
        remaining = len(asked)
        while remaining:
            piece = receive(pair.server, min(remaining, 65_536))
            remaining -= len(piece)
            time.sleep(0.01)
        pair.server.sendall(OK)

    with Worker(read_slowly):
        pair.client.sendall(asked)
        receive(pair.client, len(OK))
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["request_bytes"] == len(asked)
    assert record["request_body_bytes"] == MIB
    at = stamps(record)
    assert at[Stamp.READ_LAST] - at[Stamp.READ] > 100_000_000
    assert at[Stamp.READ] < at[Stamp.NIC_LAST] < at[Stamp.READ_LAST] < at[Stamp.WRITE]
    meter.assert_next_is_right(pair, 1)


def test_an_upload_in_parts_stamps_its_first_and_its_last_byte(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    asked = request("POST", body=b"first, then last")
    pair.send_segment(asked[:-4])
    receive(pair.server, len(asked) - 4)
    time.sleep(0.2)
    pair.send_segment(asked[-4:])
    time.sleep(0.1)
    receive(pair.server, 4)
    pair.server.sendall(OK)
    receive(pair.client, len(OK))
    at = stamps(meter.record())
    assert at[Stamp.READ] - at[Stamp.NIC] < 50_000_000
    assert at[Stamp.NIC_LAST] - at[Stamp.NIC] >= 200_000_000
    assert at[Stamp.READ_LAST] - at[Stamp.NIC_LAST] >= 100_000_000
    assert at[Stamp.READ_LAST] < at[Stamp.WRITE]


def test_a_streamed_response_stamps_its_first_and_its_last_byte(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.client.sendall(request())
    receive(pair.server, len(request()))
    answered = response(headers=CHUNKED) + chunks([b"event %d" % n for n in range(10)])
    pieces = [response(headers=CHUNKED), *(chunk(b"event %d" % n) for n in range(10)), b"0\r\n\r\n"]
    assert b"".join(pieces) == answered
    for piece in pieces:
        pair.server.sendall(piece)
        receive(pair.client, len(piece))
        time.sleep(0.02)
    record = meter.record()
    assert flags(record) == WHOLE | RequestFlag.RESPONSE_CHUNKED
    assert record["response_bytes"] == len(answered)
    assert record["response_body_bytes"] == 70
    at = stamps(record)
    assert at[Stamp.WRITE] < at[Stamp.TC_OUT] < at[Stamp.WRITE_LAST] < at[Stamp.TC_OUT_LAST]
    assert at[Stamp.TC_OUT_LAST] < at[Stamp.ACKED]
    assert at[Stamp.WRITE_LAST] - at[Stamp.WRITE] >= 11 * 20_000_000
    assert at[Stamp.TC_OUT] - at[Stamp.WRITE] < 50_000_000
    assert at[Stamp.TC_OUT_LAST] - at[Stamp.WRITE_LAST] < 50_000_000


# Chunked bodies: what they are made of, and how long their content is.
CHUNKED_BODIES: dict[str, tuple[bytes, int]] = {
    "empty": (chunks([]), 0),
    "one chunk": (chunks([b"x" * 1000]), 1000),
    "tiny chunks": (chunks([b"x"] * 40), 40),
    "chunks that look like requests": (chunks([b"GET / HTTP/1.1\r\n\r\n"] * 3), 54),
    "line ends as content": (chunks([b"\r\n\r\n", b"\n", b"\r"]), 6),
    "extensions": (
        chunk(b"abc", extension=";name=value") + chunk(b"de", extension=' ; q="1;2"')
        + b"0;last\r\n\r\n", 5,
    ),
    "trailers": (chunks([b"abc"], b"Digest: 0\r\nServer-Timing: db;dur=53\r\n"), 3),
    "a size of many digits": (b"0000000000a\r\n0123456789\r\n000\r\n\r\n", 10),
    "lower case": (chunk(b"x" * 0xABC) + chunk(b"y" * 0xDEF) + b"0\r\n\r\n", 0xABC + 0xDEF),
    "upper case": (
        chunk(b"x" * 0xABC, form="X") + chunk(b"y" * 0xDEF, form="X") + b"0\r\n\r\n",
        0xABC + 0xDEF,
    ),
    "upper case with an extension": (
        chunk(b"x" * 0xABC, form="X", extension=";e") + b"0\r\n\r\n", 0xABC,
    ),
    "line feeds only": (b"3\nabc\r\n0\n\n", 3),
    "a chunk of 300 KiB": (chunks([b"z" * (300 << 10)]), 300 << 10),
}  # fmt: skip
chunked_body = pytest.mark.parametrize(
    ("body", "length"), CHUNKED_BODIES.values(), ids=CHUNKED_BODIES.keys()
)


@chunked_body
def test_a_chunked_request(lab: Lab, meter: Meter, body: bytes, length: int) -> None:
    pair = lab.connect()
    asked = request("POST", headers=CHUNKED) + body
    carry(pair, asked, OK)
    record = meter.record()
    assert flags(record) == WHOLE | RequestFlag.REQUEST_CHUNKED
    assert record["request_bytes"] == len(asked)
    assert record["request_body_bytes"] == length
    meter.assert_next_is_right(pair, 1)


@chunked_body
def test_a_chunked_response(lab: Lab, meter: Meter, body: bytes, length: int) -> None:
    pair = lab.connect()
    answered = response(headers=CHUNKED) + body
    carry(pair, request(), answered)
    record = meter.record()
    assert flags(record) == WHOLE | RequestFlag.RESPONSE_CHUNKED
    assert record["response_bytes"] == len(answered)
    assert record["response_body_bytes"] == length
    meter.assert_next_is_right(pair, 1)


SPLIT_BODY = chunk(b"0123456789abcdef") + chunk(b"x", extension=";e=1") + b"0\r\nTrailer: 1\r\n\r\n"


def send_request_in_two(pair: Pair, asked: bytes, cut: int) -> None:
    pair.send_segment(asked[:cut])
    pair.send_segment(asked[cut:])
    receive(pair.server, len(asked))
    pair.server.sendall(OK)
    receive(pair.client, len(OK))


def send_response_in_two(pair: Pair, answered: bytes, cut: int) -> None:
    pair.client.sendall(request())
    receive(pair.server, len(request()))
    for piece in (answered[:cut], answered[cut:]):
        pair.server.sendall(piece)
        receive(pair.client, len(piece))


@pytest.mark.parametrize(
    ("head", "send", "field"),
    [
        (request("POST", headers=CHUNKED), send_request_in_two, "request_body_bytes"),
        (response(headers=CHUNKED), send_response_in_two, "response_body_bytes"),
    ],
    ids=["request", "response"],
)
def test_a_chunked_message_cut_anywhere(
    lab: Lab, meter: Meter, head: bytes, send: Callable[[Pair, bytes, int], None], field: str
) -> None:
    pair = lab.connect()
    message = head + SPLIT_BODY
    for ordinal, cut in enumerate(range(len(head) - 2, len(message))):
        send(pair, message, cut)
        record = meter.record()
        assert record["ordinal"] == ordinal
        assert record[field] == 17, cut
        assert RequestFlag.REQUEST_ANSWERED in flags(record)
    assert meter.losses() == {}


@pytest.mark.parametrize("size", [16, 64, 128, 1024])
def test_64_kib_of_chunks_in_one_write(lab: Lab, meter: Meter, size: int) -> None:
    """On a connection that is warm enough to send it all as one packet."""
    pair = lab.connect()
    carry(pair, request(), response(body=bytes(5 * MIB)))
    meter.record()
    count = 65_000 // (size + len(f"{size:x}") + 4)
    answered = response(headers=CHUNKED) + chunks([b"e" * size] * count)
    carry(pair, request(), answered)
    record = meter.record()
    assert record["response_bytes"] == len(answered)
    assert record["response_body_bytes"] == size * count
    meter.assert_next_is_right(pair, 2)


def test_more_chunks_than_can_be_followed_are_counted_as_lost(lab: Lab, meter: Meter) -> None:
    """One-byte chunks, ten thousand in one packet: given up, and taken up two exchanges later."""
    pair = lab.connect()
    carry(pair, request(), response(body=bytes(5 * MIB)))
    meter.record()
    carry(pair, request(), response(headers=CHUNKED) + chunks([b"x"] * 40_000))
    meter.wait_for(Counter.LOST_PARSER, 1)
    assert meter.records(0).size == 0
    for _ in range(2):
        pair.exchange(request(target="/untold"), OK)
    pair.exchange(request(target="/next"), OK)
    assert meter.record()["http1"]["request_line"] == b"GET /next HTTP/1.1"
