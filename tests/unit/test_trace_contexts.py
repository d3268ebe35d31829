# SPDX-License-Identifier: Apache-2.0
"""traceparent, for whole batches: what is valid joins its trace, anything else starts one."""

from __future__ import annotations

import numpy as np
import pytest
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from samples import record

from otelbpf.kernel.records import JOIN, REQUEST_RECORD, RequestFlag, Said
from otelbpf.ledger.ids import Ids
from otelbpf.ledger.trace_contexts import Contexts, contexts_of

TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736
PARENT = 0x00F067AA0BA902B7
VALID = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ZEROS = b"0" * 32
IDS = Ids(bytes(range(16)))
CONNECTION = record()["connection_id"]
HELD = JOIN["traceparent"].itemsize


def contexts(*headers: bytes) -> Contexts:
    """Of requests on one connection that carry these."""
    return contexts_of(
        np.concatenate(
            [
                record(traceparent=header, traceparent_length=len(header), ordinal=ordinal)
                for ordinal, header in enumerate(headers)
            ]
        ),
        IDS,
    )


def started(ordinal: int) -> tuple[int, int, int]:
    """What a request has that starts a trace: row of record()'s connection."""
    _, high, low = IDS.of(CONNECTION, np.array([ordinal]))
    return int(high[0]) << 64 | int(low[0]), 0, 0


def rows(found: Contexts) -> list[tuple[int, int, int]]:
    """(trace id, parent span id, flags) of each."""
    return [
        (int(high) << 64 | int(low), int(parent), int(flags))
        for high, low, parent, flags in zip(
            found.trace_id_high, found.trace_id_low, found.parent_span_id, found.flags, strict=True
        )
    ]


def by_the_sdk(header: bytes) -> tuple[int, int, int] | None:
    """What OpenTelemetry's own propagator makes of it; None: nothing."""
    carrier = {"traceparent": header.decode("latin-1")}
    span = get_current_span(TraceContextTextMapPropagator().extract(carrier)).get_span_context()
    return (span.trace_id, span.span_id, int(span.trace_flags)) if span.is_valid else None


def test_a_valid_one_is_joined() -> None:
    assert rows(contexts(VALID)) == [(TRACE_ID, PARENT, 1)]
    assert by_the_sdk(VALID) == (TRACE_ID, PARENT, 1)


def test_all_flags_are_kept() -> None:
    found = contexts(*(VALID[:-2] + b"%02x" % flags for flags in range(256)))
    assert rows(found) == [(TRACE_ID, PARENT, flags) for flags in range(256)]


ACCEPTED = {
    "version 01": b"01" + VALID[2:],
    "version 01, more fields": b"01" + VALID[2:] + b"-what-the-future-will-be-like",
    "version 01, a bare dash": b"01" + VALID[2:] + b"-",
    "version fe": b"fe" + VALID[2:],
    "lowest ids": b"00-" + b"0" * 31 + b"1-" + b"0" * 15 + b"1-00",
    "only the high half of the trace id": b"00-1" + b"0" * 31 + VALID[35:],
    "highest ids": b"00-" + b"f" * 32 + b"-" + b"f" * 16 + b"-00",
}
REFUSED = {
    "none": b"",
    "version 00, more fields": VALID + b"-00",
    "version 00, a bare dash": VALID + b"-",
    "version ff": b"ff" + VALID[2:],
    "version ff, more fields": b"ff" + VALID[2:] + b"-00",
    "version 01, more without a dash": b"01" + VALID[2:] + b"0",
    "trace id of zeros": b"00-" + ZEROS + VALID[35:],
    "span id of zeros": VALID[:36] + ZEROS[:16] + VALID[52:],
    "upper case": VALID.upper(),
    "one short": VALID[:-1],
    "one short, version 01": b"01" + VALID[2:-1],
    "one long": VALID + b"0",
    "not in the first column": b" " + VALID,
    "only dashes": b"-" * 55,
    "NUL inside": VALID[:20] + b"\0" + VALID[21:],
}


@pytest.mark.parametrize("header", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(header: bytes) -> None:
    expected = (int(header[3:35], 16), int(header[36:52], 16), int(header[53:55], 16))
    assert rows(contexts(header)) == [expected]


@pytest.mark.parametrize("header", REFUSED.values(), ids=REFUSED)
def test_refused(header: bytes) -> None:
    assert rows(contexts(header)) == [started(0)]


def test_every_single_byte_corruption() -> None:
    """Each of the 55 bytes becomes each other byte: joined only as W3C Trace Context says."""
    headers = [
        VALID[:at] + bytes([byte]) + VALID[at + 1 :]
        for at in range(len(VALID))
        for byte in range(256)
        if byte != VALID[at]
    ]
    n = len(headers)
    assert n == 55 * 255
    digits = frozenset(b"0123456789abcdef")
    expected = []
    for i, header in enumerate(headers):
        at = next(k for k in range(55) if header[k] != VALID[k])
        if at in (2, 35, 52) or header[at] not in digits:
            expected.append(started(i))
        else:
            expected.append((int(header[3:35], 16), int(header[36:52], 16), int(header[53:], 16)))
    assert rows(contexts(*headers)) == expected


def test_the_sdk_agrees() -> None:
    """Differences are the SDK's leniency: it forgives white space around the header."""
    for name, header in {**ACCEPTED, **REFUSED, "valid": VALID}.items():
        if name == "not in the first column":
            continue
        (found,) = rows(contexts(header))
        assert (found if found[1] else None) == by_the_sdk(header), name


def test_a_length_beyond_what_the_record_holds() -> None:
    longer = b"01" + VALID[2:] + b"-" + b"x" * 500
    made = record(traceparent=longer[:HELD], traceparent_length=len(longer))
    assert rows(contexts_of(made, IDS)) == [(TRACE_ID, PARENT, 1)]


def test_bytes_left_behind_an_earlier_header_do_not_count() -> None:
    made = record(traceparent=VALID, traceparent_length=0)
    assert rows(contexts_of(made, IDS)) == [started(0)]


def test_a_batch_keeps_its_order() -> None:
    found = rows(contexts(VALID, b"", b"01" + VALID[2:], b"junk", VALID[:-2] + b"00"))
    assert [row[1:] for row in found] == [(PARENT, 1), (0, 0), (PARENT, 1), (0, 0), (PARENT, 0)]
    assert len({found[1][0], found[3][0], TRACE_ID}) == 3


def test_no_records_no_contexts() -> None:
    assert rows(contexts_of(np.empty(0, REQUEST_RECORD), IDS)) == []


def upstream(cause: np.ndarray, **fields: object) -> np.ndarray:
    """A request to an upstream that another one caused, whose trace context it therefore has."""
    return record(
        connection_id=8,
        ordinal=3,
        flags=RequestFlag.CLIENT | RequestFlag.CAUSED,
        cause_connection_id=cause["connection_id"][0],
        cause_ordinal=cause["ordinal"][0],
        traceparent=cause["join"]["traceparent"][0],
        **fields,
    )


def test_a_cause_that_the_application_spoke_of_is_called_as_it_said() -> None:
    trace_id, span_id = bytes(range(1, 17)), bytes(range(21, 29))
    cause = record(marked=1, trace_id=trace_id, span_id=span_id, trace_flags=1)
    child = upstream(cause, marked=1, trace_id=trace_id, parent_span_id=span_id, trace_flags=1)
    found = contexts_of(np.concatenate([cause, child]), IDS)
    whole = int.from_bytes(trace_id, "big")
    assert rows(found) == [(whole, 0, 1), (whole, int.from_bytes(span_id, "big"), 1)]
    assert found.span_id[0] == int.from_bytes(span_id, "big")
    assert found.span_id[1] == IDS.of(np.array([8]), np.array([3])).span[0]
    # Most often it ends before its cause, and is read without that.
    assert rows(contexts_of(child, IDS)) == rows(found)[1:]


PUBLISHED = {
    "marked": Said.BY_THREAD,
    "trace_id": bytes(range(1, 17)),
    "span_id": bytes(range(21, 29)),
    "trace_flags": 1,
}
PUBLISHED_TRACE = int.from_bytes(bytes(range(1, 17)), "big")
PUBLISHED_SPAN = int.from_bytes(bytes(range(21, 29)), "big")


def test_what_a_thread_published_is_the_trace_of_a_request_without_one() -> None:
    found = contexts_of(np.concatenate([record(ordinal=1), record(ordinal=2, **PUBLISHED)]), IDS)
    assert rows(found)[1] == (PUBLISHED_TRACE, 0, 0)
    assert rows(found)[0][0] != PUBLISHED_TRACE
    # Its own span is not the application's.
    assert found.span_id[1] == IDS.of(np.array([7]), np.array([2])).span[0]
    assert found.linked_span_id.tolist() == [0, PUBLISHED_SPAN]
    assert not found.elsewhere.any()


def test_what_a_thread_published_is_linked_only_within_the_caller_s_trace() -> None:
    other = {**PUBLISHED, "trace_id": TRACE_ID.to_bytes(16, "big")}
    found = contexts_of(
        np.concatenate(
            [record(traceparent=VALID, **PUBLISHED), record(traceparent=VALID, **other)]
        ),
        IDS,
    )
    assert rows(found) == [(TRACE_ID, PARENT, 1)] * 2
    assert found.linked_span_id.tolist() == [0, PUBLISHED_SPAN]
    assert found.elsewhere.tolist() == [True, False]


@pytest.mark.parametrize("header", [b"", VALID])
def test_what_a_thread_published_of_a_cause_is_the_trace_of_what_it_caused(header: bytes) -> None:
    cause = record(traceparent=header, **PUBLISHED)
    child = upstream(cause, **PUBLISHED)
    found = contexts_of(np.concatenate([cause, child]), IDS)
    assert rows(found)[0][0] == rows(found)[1][0] == (TRACE_ID if header else PUBLISHED_TRACE)
    assert found.parent_span_id[1] == found.span_id[0]
    assert found.linked_span_id[1] == 0 and not found.elsewhere[1]
    assert found.linked_span_id[0] == (0 if header else PUBLISHED_SPAN)


def test_a_request_to_an_upstream_that_carries_another_context_is_that_ones_child() -> None:
    found = contexts_of(record(flags=RequestFlag.CLIENT, traceparent=VALID), IDS)
    assert rows(found) == [(TRACE_ID, PARENT, 1)]
    assert not found.caused.any()
