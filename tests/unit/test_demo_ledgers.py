# SPDX-License-Identifier: Apache-2.0
"""From spans to requests and routes, and whether all is accounted for."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from demo.check import Sums, problems
from demo.ledgers import Decoded, Figures, Request, Stage, decode, figures, quantile, routes
from demo.load import Summary
from demo.otlp import Kind, Span
from demo.plan import EMBEDDINGS
from demo.topology import GATEWAY_PORT, MODEL_PORTS

START = 1_790_000_000_000_000_000
STAGES = (("nic_to_tc", 900), ("tc_to_read", 20_100), ("read_to_tc_out", 2_000_003))
STAGES_OF_A_CALL = (("write_to_tc_out", 900), ("tc_out_to_tc", 2_000_003), ("tc_to_read", 20_100))
TOTAL = 2_021_003


def server_span(number: int, path: str = "/healthz", status: int | None = 200) -> Span:
    attributes: dict[str, object] = {
        "http.request.method": "GET",
        "url.path": path,
        "otelbpf.ledger.complete": True,
        "network.local.port": GATEWAY_PORT,
    }
    if status is not None:
        attributes["http.response.status_code"] = status
    return Span(
        trace_id=f"{number:032x}",
        span_id=f"{number:016x}",
        parent_span_id="",
        name="GET",
        kind=Kind.SERVER,
        start_unix_ns=START + number,
        end_unix_ns=START + number + TOTAL,
        attributes=attributes,  # type: ignore[arg-type]
        scope="otelbpf",
        resource={},
    )


def stage_spans(parent: Span, stages: Sequence[tuple[str, int]] | None = None) -> list[Span]:
    spans, start = [], parent.start_unix_ns
    if stages is None:
        stages = STAGES_OF_A_CALL if parent.kind is Kind.CLIENT else STAGES
    for number, (name, duration_ns) in enumerate(stages):
        spans.append(
            replace(
                parent,
                span_id=f"{number + 1:08x}{parent.span_id[:8]}",
                parent_span_id=parent.span_id,
                name=name,
                kind=Kind.INTERNAL,
                start_unix_ns=start,
                end_unix_ns=start + duration_ns,
                attributes={},
            )
        )
        start += duration_ns
    return spans


def decoded(count: int) -> Decoded:
    servers = [server_span(number) for number in range(1, count + 1)]
    return decode([span for server in servers for span in (server, *stage_spans(server))])


def test_stages_come_under_their_request_in_whatever_order_they_arrive() -> None:
    servers = [server_span(number) for number in range(1, 24)]
    spans = [span for server in servers for span in (server, *stage_spans(server))]
    random.Random(23).shuffle(spans)

    found = decode(spans)
    assert found.orphans == ()
    assert [request.span_id for request in found.requests] == [span.span_id for span in servers]
    for request in found.requests:
        assert request.stages == (
            Stage("nic_to_tc", 0, 900),
            Stage("tc_to_read", 900, 20_100),
            Stage("read_to_tc_out", 21_000, 2_000_003),
        )
        assert request.tiled
        assert request.stages_sum_ns == request.total_ns == TOTAL


def test_a_request_says_what_its_span_says() -> None:
    span = server_span(5, "/v1/embeddings", 503)
    told = {
        **span.attributes,
        "otelbpf.ledger.complete": False,
        "otelbpf.ledger.absent": ["woken"],
        "otelbpf.tcp.ack.duration_ns": 40_000,
    }
    span = replace(span, parent_span_id="00000000000000aa", attributes=told)

    assert decode([span]).requests == (
        Request(
            kind=Kind.SERVER,
            port=GATEWAY_PORT,
            method="GET",
            path="/v1/embeddings",
            status=503,
            trace_id=f"{5:032x}",
            span_id=f"{5:016x}",
            parent_span_id="00000000000000aa",
            start_unix_ns=START + 5,
            total_ns=TOTAL,
            acked_ns=40_000,
            stages=(),
            complete=False,
            absent=("woken",),
            attributes=told,
        ),
    )


def test_other_instrumentations_are_left_alone() -> None:
    other = replace(server_span(1), scope="opentelemetry.instrumentation.aiohttp_server")
    assert decode([other, *stage_spans(other)]) == Decoded((), ())


def test_a_stage_without_its_request_is_an_orphan() -> None:
    lost, kept = server_span(1), server_span(2)
    found = decode([*stage_spans(lost), kept, *stage_spans(kept)])
    assert [request.span_id for request in found.requests] == [kept.span_id]
    assert [span.parent_span_id for span in found.orphans] == [lost.span_id] * 3


@pytest.mark.parametrize(
    "stages",
    [
        (),
        (Stage("a_to_b", 0, 99),),
        (Stage("a_to_b", 1, 99),),
        (Stage("a_to_b", 0, 101),),
        (Stage("a_to_b", 0, 40), Stage("b_to_c", 41, 59)),
        (Stage("a_to_b", 0, 41), Stage("b_to_c", 40, 60)),
        (Stage("a_to_b", 0, 40), Stage("b_to_c", 41, 60)),
        (Stage("a_to_b", 0, 140), Stage("b_to_c", 140, -40)),
    ],
    ids=["none", "short", "late", "long", "gap", "overlap", "gap that adds up", "negative"],
)
def test_what_does_not_tile_is_seen(stages: tuple[Stage, ...]) -> None:
    request = replace(decoded(1).requests[0], total_ns=100)
    assert not replace(request, stages=stages).tiled
    halves = (Stage("a_to_b", 0, 40), Stage("b_to_c", 40, 0), Stage("c_to_d", 40, 60))
    assert replace(request, stages=halves).tiled


@pytest.mark.parametrize(
    ("count", "median", "p99"),
    [(1, 1, 1), (2, 1, 2), (3, 2, 3), (99, 50, 99), (100, 50, 99), (101, 51, 100), (230, 115, 228)],
)
def test_quantiles_are_values_that_were_measured(count: int, median: int, p99: int) -> None:
    values = list(range(1, count + 1))
    random.Random(count).shuffle(values)
    assert figures(values) == Figures(count, median, p99)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1], 0), ([1], 101)])
def test_there_is_no_such_quantile(values: list[int], percent: int) -> None:
    with pytest.raises(ValueError, match="quantile"):
        quantile(values, percent)


def test_routes_keep_stages_in_the_order_of_the_way() -> None:
    whole = (("nic_to_tc", 10), ("tc_to_tcp", 0), ("tcp_to_queued", 0), ("queued_to_woken", 5))
    whole += (("woken_to_running", 7), ("running_to_read", 3), ("read_to_write", 100))
    hole = (("nic_to_tc", 1), ("tc_to_tcp", 1), ("tcp_to_queued", 1), ("queued_to_read", 1))
    hole += (("read_to_write", 1),)
    spans = []
    for number, stages in enumerate((hole, whole, whole), start=1):
        span = server_span(number)
        total = sum(duration_ns for _, duration_ns in stages)
        span = replace(span, end_unix_ns=span.start_unix_ns + total)
        spans += [span, *stage_spans(span, stages)]

    (route,) = routes(decode(spans).requests)
    assert [(stage.name, stage.offset_ns, stage.figures) for stage in route.stages] == [
        ("nic_to_tc", 0, Figures(3, 10, 10)),
        ("tc_to_tcp", 10, Figures(3, 0, 1)),
        ("tcp_to_queued", 10, Figures(3, 0, 1)),
        ("queued_to_woken", 10, Figures(2, 5, 5)),
        ("queued_to_read", 3, Figures(1, 1, 1)),
        ("woken_to_running", 15, Figures(2, 7, 7)),
        ("running_to_read", 22, Figures(2, 3, 3)),
        ("read_to_write", 25, Figures(3, 100, 100)),
    ]
    assert route.total == Figures(3, 125, 125)


@pytest.mark.parametrize(
    ("stages", "rare"),
    [
        (("nic_to_nic_last", "nic_last_to_tc", "tc_to_read", "read_to_tc_out"), "read_to_nic_last"),
        (("read_to_nic_last", "nic_last_to_tc_last", "tc_last_to_read_last"), ""),
        (("queued_to_read", "read_to_tc_last", "tc_last_to_read_last", "read_last_to_write"), ""),
        (("nic_to_read", "read_to_nic_last", "nic_last_to_read_last", "read_last_to_write"), ""),
        (("write_to_write_last", "write_last_to_tc_out", "tc_out_to_tc_out_last"), ""),
        (("write_to_tc_out", "tc_out_to_write_last", "write_last_to_tc_out_last"), "x_to_y"),
        (("queued_to_read", "read_to_ended"), ""),
        (("read_to_handler_start", "handler_start_to_handler_end", "handler_end_to_write"), ""),
        (("write_to_tc_out", "tc_out_to_handler_end", "handler_end_to_tc_out_last"), ""),
        (("write_to_tc_out", "tc_out_to_handler_end"), "handler_start_to_handler_end"),
    ],
)
def test_the_last_byte_has_its_place_where_most_requests_have_it(
    stages: tuple[str, ...], rare: str
) -> None:
    spans = []
    for number in range(1, 4):
        span = server_span(number)
        spans += [span, *stage_spans(span, [(name, 1) for name in stages])]
    span = server_span(9)
    spans += [span, *(stage_spans(span, [(rare, 1)]) if rare else ())]

    (route,) = routes(decode(spans).requests)
    assert [stage.name for stage in route.stages if stage.name != rare] == list(stages)


def test_routes_are_by_method_and_path_the_most_frequent_first() -> None:
    spans = [server_span(number, "/rare", 200) for number in range(1, 3)]
    spans += [
        server_span(number, "/often", status) for number, status in enumerate((503, 200, 200), 3)
    ]
    spans.append(server_span(9, "/often", None))

    often, rare = routes(decode(spans).requests)
    assert (often.path, dict(often.statuses)) == ("/often", {200: 2, 503: 1, None: 1})
    assert list(often.statuses) == [200, 503, None]
    assert (rare.path, rare.total.count, rare.stages) == ("/rare", 2, ())


# What is missing.

LOAD = Summary(
    sent=23,
    completed=23,
    outcomes=Counter({("GET", "/healthz", 200): 23}),
    owed=Counter({("GET", "/healthz", 200): 23}),
    traceparents=frozenset(),
    connections=6,
    over_ipv6=8,
    seconds=0.1,
    errors=(),
)
SUMS = Sums(seen=23, exported=23, sampled_out=0, lost={"ring_full": 0})


def test_nothing_is_missing() -> None:
    assert problems(LOAD, decoded(23), (), SUMS) == []


def test_a_missing_span_is_named() -> None:
    assert problems(LOAD, decoded(22), (), SUMS) == [
        "no span for 1 request GET /healthz 200",
        "the agent exported 23 requests but 22 arrived",
    ]


def test_a_span_too_many_is_named() -> None:
    assert problems(LOAD, decoded(24), (), SUMS) == [
        "no request for 1 span GET /healthz 200",
        "the agent exported 23 requests but 24 arrived",
    ]


def calls(count: int) -> tuple[Summary, Decoded]:
    """That many requests which the gateway handed on to a model, with all that tells of them."""
    outcome = ("POST", EMBEDDINGS, 200)
    load = replace(LOAD, completed=count, outcomes=Counter({outcome: count}))
    load = replace(load, sent=count, owed=load.outcomes)
    spans = []
    for number in range(1, count + 1):
        at_gateway = server_span(number, EMBEDDINGS)
        told = {**at_gateway.attributes, "http.request.method": "POST"}
        at_gateway = replace(at_gateway, attributes=told)
        url = {"url.full": f"http://127.0.0.1:9001{EMBEDDINGS}?x", "network.peer.port": 9001}
        there = {**told, "network.local.port": MODEL_PORTS[0]}
        call = replace(at_gateway, span_id=f"{number:015x}a", kind=Kind.CLIENT)
        call = replace(call, attributes={**told, **url, "url.path": None})
        at_model = replace(at_gateway, span_id=f"{number:015x}b", attributes=there)
        spans += [at_gateway, call, at_model]
    return load, decode([span for each in spans for span in (each, *stage_spans(each))])


def test_requests_that_reach_a_model_are_seen_three_times() -> None:
    load, found = calls(23)
    assert [len(each) for each in (found.at_gateway, found.calls, found.at_models)] == [23] * 3
    assert {(each.port, each.path) for each in found.calls} == {(MODEL_PORTS[0], EMBEDDINGS)}
    assert problems(load, found, (), Sums(69, 69, 0, {})) == []


def test_what_is_missing_of_a_call_is_named() -> None:
    load, found = calls(23)
    lost = replace(found, requests=tuple(r for r in found.requests if r not in found.calls[:2]))
    assert problems(load, lost, (), Sums(67, 67, 0, {})) == [
        "no span for 2 requests POST /v1/embeddings 200 of the gateway to a model",
        "the agent saw 67 of 69 requests",
    ]
    lost = replace(found, requests=tuple(r for r in found.requests if r not in found.at_models[:1]))
    assert problems(load, lost, (), Sums(68, 68, 0, {})) == [
        "no span for 1 request POST /v1/embeddings 200 at a model",
        "the agent saw 68 of 69 requests",
    ]
    refused = replace(load, outcomes=Counter({("POST", EMBEDDINGS, 429): 23}))
    assert any(
        "no request for 23 spans" in each and "at a model" in each
        for each in problems(refused, found, (), Sums(69, 69, 0, {}))
    )


def test_a_wrong_status_is_named() -> None:
    found = decoded(23)
    wrong = replace(found.requests[0], status=None)
    assert problems(LOAD, replace(found, requests=(wrong, *found.requests[1:])), (), SUMS) == [
        "no span for 1 request GET /healthz 200",
        "no request for 1 span GET /healthz without a status",
    ]


def test_a_load_that_was_not_answered_is_named() -> None:
    load = replace(LOAD, completed=22, outcomes=Counter({("GET", "/healthz", 200): 22}))
    load = replace(load, errors=("the load was not done after 60 s",))
    assert problems(load, decoded(22), (), Sums(22, 22, 0, {})) == [
        "the load completed 22 of 23 requests (the load was not done after 60 s)"
    ]


def test_an_answer_that_is_not_owed_is_named() -> None:
    load = replace(LOAD, owed=Counter({("GET", "/healthz", 200): 22, ("GET", "/healthz", 503): 1}))
    assert problems(load, decoded(23), (), SUMS) == [
        "the gateway answered GET /healthz with 200 1 more times than it should"
    ]


def test_a_caller_whose_trace_was_not_joined_is_named() -> None:
    joined = (f"{1:032x}", "00000000000000aa")
    apart = (f"{2:032x}", "00000000000000bb")
    load = replace(LOAD, traceparents=frozenset((joined, apart)))
    found = decoded(23)
    first = replace(found.requests[0], parent_span_id=joined[1])
    assert problems(load, replace(found, requests=(first, *found.requests[1:])), (), SUMS) == [
        "1 of 2 requests did not join their caller's trace"
    ]


def test_stages_that_do_not_add_up_are_named() -> None:
    found = decoded(23)
    first = replace(found.requests[0], total_ns=TOTAL + 1)
    assert problems(LOAD, replace(found, requests=(first, *found.requests[1:])), (), SUMS) == [
        "the stages of 1 request do not add up to the whole"
    ]


def test_a_request_that_ends_with_something_else_is_named() -> None:
    """Not with its response's last byte leaving, or a call not with that being read."""
    load, found = calls(2)
    late = {found.at_gateway[0].span_id: "read_to_acked", found.calls[1].span_id: "tc_to_tc_last"}
    requests = tuple(
        replace(each, stages=(*each.stages[:-1], replace(each.stages[-1], name=late[each.span_id])))
        if each.span_id in late
        else each
        for each in found.requests
    )
    assert problems(load, replace(found, requests=requests), (), Sums(6, 6, 0, {})) == [
        "1 request did not end with tc_out or tc_out_last",
        "1 request did not end with read or read_last",
    ]


def test_acknowledgements_are_of_those_that_were_seen() -> None:
    spans = [server_span(number) for number in range(1, 4)]
    told = [
        replace(span, attributes={**span.attributes, "otelbpf.tcp.ack.duration_ns": number * 1_000})
        for number, span in enumerate(spans[:2], start=1)
    ]
    (route,) = routes(decode([*told, spans[2]]).requests)
    assert (route.total.count, route.acked) == (3, Figures(2, 1_000, 2_000))
    (route,) = routes(decode(spans).requests)
    assert route.acked is None


def test_stages_without_a_request_are_named() -> None:
    found = replace(decoded(23), orphans=tuple(stage_spans(server_span(99))))
    assert problems(LOAD, found, (), SUMS) == ["no request for 3 stages"]


@pytest.mark.parametrize(
    ("sums", "found"),
    [
        (Sums(24, 23, 1, {}), ["the agent saw 24 of 23 requests"]),
        (Sums(23, 23, 1, {}), ["the agent saw 23 requests but accounts for 24"]),
        (Sums(23, 22, 1, {}), ["the agent exported 22 requests but 23 arrived"]),
        (
            Sums(26, 23, 0, {"ring_full": 2, "parser": 1}),
            ["the agent saw 26 of 23 requests", "the agent lost 2 ring_full, 1 parser"],
        ),
    ],
)
def test_sums_that_do_not_agree_are_named(sums: Sums, found: list[str]) -> None:
    assert problems(LOAD, decoded(23), (), sums) == found


def test_sums_are_read_from_the_agents_file() -> None:
    text = '{"seen": 9, "exported": 4, "sampled_out": 3, "lost": {"ring_full": 2}}'
    sums = Sums.from_json(text)
    assert sums == Sums(9, 4, 3, {"ring_full": 2})
    assert sums.accounted == 9
    assert sums.as_json() == {
        "seen": 9,
        "exported": 4,
        "sampled_out": 3,
        "lost": {"ring_full": 2},
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"seen": 1}',
        '{"seen": 1, "exported": 1, "sampled_out": 0, "lost": 0}',
        '{"seen": -1, "exported": 1, "sampled_out": 0, "lost": {}}',
        '{"seen": 1, "exported": 1.5, "sampled_out": 0, "lost": {}}',
        '{"seen": 1, "exported": 1, "sampled_out": 0, "lost": {"ring_full": "none"}}',
    ],
)
def test_what_is_no_sums_file_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Sums.from_json(text)


def test_the_loads_summary_survives_json() -> None:
    load = replace(LOAD, traceparents=frozenset([("ab" * 16, "cd" * 8)]), errors=("one",))
    assert Summary.from_json(json.dumps(load.as_json())) == load
    with pytest.raises(ValueError, match="summary"):
        Summary.from_json('{"sent": 1}')
