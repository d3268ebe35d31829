# SPDX-License-Identifier: Apache-2.0
"""The kernel keeps what the SDK's own samplers would."""

from __future__ import annotations

import random

import numpy as np
import pytest
from lab import laboratory
from messages import OK, request
from meter import KEEP_ALL, Meter, load
from opentelemetry.sdk.trace import sampling
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from support.waiting import wait_until
from test_marks import JOINED, Mark

from otelbpf.kernel.records import Counter, RequestFlag
from otelbpf.ledger.ids import Ids
from otelbpf.policy.sampler import Sampler

HALF = 1 << 63
RANDOM = random.Random(4711)


def traceparent(low: int, flags: int = 0, version: str = "00") -> str:
    return f"{version}-{RANDOM.getrandbits(64):016x}{low:016x}-{RANDOM.getrandbits(63) + 1:016x}-{flags:02x}"  # noqa: E501


def valid_headers() -> list[str]:
    """Around the border of one in two, and anywhere."""
    lows = [0, 1, HALF - 1, HALF, (1 << 64) - 1, *(RANDOM.getrandbits(64) for _ in range(60))]
    return [
        *(traceparent(low, flags) for low in lows for flags in (0, 1)),
        *(traceparent(low, flags) for low in lows[:4] for flags in (2, 3, 0xFE, 0xFF)),
        *(traceparent(low, 1, "cc") for low in lows[:4]),
        *(traceparent(low, 0, "01") + "-later" for low in lows[:4]),
    ]


def invalid_headers() -> list[str]:
    """One character at a time that no digit is, or no dash; and what is not allowed as a whole."""
    whole = traceparent(5, 1)
    spoilt = [whole[:at] + c + whole[at + 1 :] for at in range(55) for c in "gG/:`@A\x7f"]
    return [
        *spoilt,
        whole[:-1], whole + "-later", whole + "0", traceparent(5, 1, "01") + "x",
        traceparent(5, 1, "ff"), f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'1' * 32}-{'0' * 16}-01",
    ]  # fmt: skip


def sdks_word(sampler: sampling.Sampler, header: str) -> bool:
    _, trace_id, span_id, flags = header.split("-")[:4]
    parent = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))
    around = set_span_in_context(NonRecordingSpan(parent))
    return sampler.should_sample(around, int(trace_id, 16), "GET").decision.is_sampled()


# Each is a load of its own, which takes long in a guest: there the one with most to look at.
SAMPLERS = [
    pytest.param(
        Sampler(HALF, parent_based=False), sampling.TraceIdRatioBased(0.5), id="traceidratio"
    ),
    pytest.param(
        Sampler(HALF, parent_based=True),
        sampling.ParentBasedTraceIdRatio(0.5),
        id="parentbased_traceidratio",
        marks=pytest.mark.guest,
    ),
    pytest.param(Sampler(0, parent_based=True), sampling.DEFAULT_OFF, id="parentbased_always_off"),
    pytest.param(KEEP_ALL, sampling.DEFAULT_ON, id="parentbased_always_on"),
]


def ask(meter: Meter, headers: list[str]) -> np.ndarray:
    """Asks with each header in turn, on one connection; gives the records of what was kept."""
    pair = meter.lab.connect()
    for header in headers:
        pair.exchange(request(headers={"traceparent": header} if header else {}), OK)
    wait_until(lambda: not meter.in_flight(), "every request had ended")
    records = meter.reader.read()
    assert meter.counted(Counter.SUBMITTED) == len(records)
    assert meter.counted(Counter.SAMPLED_OUT) == len(headers) - len(records)
    assert (records["flags"] & np.uint32(RequestFlag.KEPT) != 0).all()
    assert (records["sampled"] == 1).all()
    return records


@pytest.mark.parametrize(("ours", "theirs"), SAMPLERS)
def test_the_kernel_decides_as_the_sdk(ours: Sampler, theirs: sampling.Sampler) -> None:
    ids = Ids(bytes(range(16)))
    with laboratory() as lab:
        meter = load(lab, sampler=ours, ids=ids)
        try:
            with meter.attached():
                valid = valid_headers()
                meter.begin()
                expected = {i for i, header in enumerate(valid) if sdks_word(theirs, header)}
                assert set(ask(meter, valid)["ordinal"].tolist()) == expected
                meter.begin()
                # Nobody has decided about these: the trace's own id does, if anything.
                new = [*invalid_headers(), *[""] * 100]
                records = ask(meter, new)
                kept = set(records["ordinal"].tolist())
                if 0 < ours.bound < 1 << 64:
                    connection = np.full(len(new), records["connection_id"][0])
                    lows = ids.of(connection, np.arange(len(new))).trace_low
                    assert kept == set(np.flatnonzero(lows < np.uint64(ours.bound)).tolist())
                else:
                    assert kept == (set(range(len(new))) if ours.bound else set())
                meter.end()
        finally:
            meter.close()


@pytest.mark.guest
def test_an_applications_word_stands_against_the_samplers_and_the_callers(meter: Meter) -> None:
    pair = meter.lab.connect()
    for flags, header in ((0, traceparent(1, 1)), (0, ""), (1, traceparent(2, 0)), (1, "")):
        pair.ask(request(target=f"/{flags}", headers={"traceparent": header} if header else {}))
        assert Mark(trace_flags=flags).tell(pair.server) == JOINED
        pair.answer(OK)
    records = meter.records(2)
    assert records["http1"]["request_line"].tolist() == [b"GET /1 HTTP/1.1"] * 2
    assert meter.counted(Counter.SAMPLED_OUT) == 2
