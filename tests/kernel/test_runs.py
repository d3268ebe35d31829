# SPDX-License-Identifier: Apache-2.0
"""What one segment may hold: no more than 33 times the kernel lets a program go on with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import CLIENT_IPV4, Lab
from messages import CONTINUE, OK, request
from meter import WHOLE, Meter, attached_meter, flags

from otelbpf.kernel.records import Counter
from otelbpf.policy.proxies import Forwarding, Header, network

RUNS = 34
MORE = pytest.mark.parametrize("more", [0, 1])


@pytest.fixture(scope="module")
def _behind_proxies() -> Iterator[Meter]:
    with attached_meter(
        forwarding=Forwarding((network(CLIENT_IPV4),), Header.X_FORWARDED_FOR)
    ) as meter:
        yield meter


@pytest.fixture
def behind_proxies(_behind_proxies: Meter) -> Iterator[Meter]:
    _behind_proxies.begin()
    yield _behind_proxies
    _behind_proxies.end()


def expect(meter: Meter, asked: bytes, answered: bytes, *, told: bool) -> None:
    pair = meter.lab.connect()
    pair.ask(asked)
    pair.answer(answered)
    if told:
        record = meter.record()
        assert flags(record) & WHOLE == WHOLE
        assert record["response_bytes"] == len(OK)
    else:
        meter.wait_for(Counter.LOST_PARSER, 1)
        assert meter.counted(Counter.SEEN) == 1


@MORE
def test_lines_of_a_length(lab: Lab, meter: Meter, more: int) -> None:
    lines = (RUNS + more) * b"Content-Length: 3\r\n"
    expect(meter, b"POST / HTTP/1.1\r\n" + lines + b"\r\nabc", OK, told=not more)


@MORE
def test_lines_of_codings(lab: Lab, meter: Meter, more: int) -> None:
    """The chunks behind them take one more run."""
    lines = (RUNS - 2 + more) * b"Transfer-Encoding: x\r\n" + b"Transfer-Encoding: chunked\r\n"
    expect(meter, b"POST / HTTP/1.1\r\n" + lines + b"\r\n0\r\n\r\n", OK, told=not more)


@MORE
def test_lines_of_whom_it_was_forwarded_for(behind_proxies: Meter, more: int) -> None:
    lines = (RUNS + more) * b"X-Forwarded-For: 10.0.0.1\r\n"
    expect(behind_proxies, b"GET / HTTP/1.1\r\n" + lines + b"\r\n", OK, told=not more)


@MORE
def test_interim_responses(lab: Lab, meter: Meter, more: int) -> None:
    expect(meter, request(), (RUNS - 1 + more) * CONTINUE + OK, told=not more)


def test_more_of_them_in_several_segments(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.ask(request())
    for _ in range(3):
        pair.answer((RUNS - 1) * CONTINUE)
    pair.answer(OK)
    assert meter.record()["response_bytes"] == len(OK)
