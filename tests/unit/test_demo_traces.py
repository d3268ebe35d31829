# SPDX-License-Identifier: Apache-2.0
"""From spans to whole traces: trees, the links that must hold, and how a tree is drawn."""

import io
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from demo.check import Sums, problems
from demo.findings import Export, Findings, as_json
from demo.ledgers import SCOPE, decode
from demo.links import broken_links
from demo.load import Summary
from demo.look import ASCII, look_of
from demo.otlp import Kind, Span
from demo.plan import CHAT, EMBEDDINGS, HEALTH
from demo.report import render
from demo.topology import GATEWAY_PORT, MODEL_PORTS
from demo.traces import Part, Trace, example, traces
from demo.tree import lines
from rich.console import Console

from otelbpf.ledger.stamps import Owner

START = 1_790_000_000_000_000_000
MS = 1_000_000
UNICODE = look_of(
    Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), force_terminal=True)
)
CALLER = "00000000000000ca"
NAMES = {1: "gateway", 2: "model"}
GATEWAY, SERVER, CLIENT, CALL, MODEL = (f"000000000000000{number}" for number in range(1, 6))


def trace_id(number: int) -> str:
    return f"{number:032x}"


def kernel_span(
    number: int, span_id: str, parent: str, at: tuple[int, int], kind: Kind, port: int, path: str
) -> Span:
    client = kind is Kind.CLIENT
    where = {"network.peer.port": port} if client else {"network.local.port": port}
    what = {"url.full": f"http://127.0.0.1:{port}{path}"} if client else {"url.path": path}
    return Span(
        trace_id=trace_id(number),
        span_id=span_id,
        parent_span_id=parent,
        name="POST",
        kind=kind,
        start_unix_ns=START + at[0] * MS,
        end_unix_ns=START + at[1] * MS,
        attributes={
            "http.request.method": "POST",
            "http.response.status_code": 200,
            **what,
            **where,
        },
        scope=SCOPE,
        resource={
            "service.name": "python3",
            "process.pid": 2 if port in MODEL_PORTS and not client else 1,
        },
    )


def stage(of: Span, name: str, at: tuple[int, int]) -> Span:
    return replace(
        of,
        span_id=f"{name.encode().hex()[:8]}{of.span_id[8:]}",
        parent_span_id=of.span_id,
        name=name,
        kind=Kind.INTERNAL,
        start_unix_ns=START + at[0] * MS,
        end_unix_ns=START + at[1] * MS,
        attributes={},
    )


def application_span(
    number: int, span_id: str, parent: str, at: tuple[int, int], kind: Kind, name: str = "POST"
) -> Span:
    return Span(
        trace_id=trace_id(number),
        span_id=span_id,
        parent_span_id=parent,
        name=name,
        kind=kind,
        start_unix_ns=START + at[0] * MS,
        end_unix_ns=START + at[1] * MS,
        attributes={},
        scope="opentelemetry.instrumentation.aiohttp",
        resource={"service.name": "gateway"},
    )


def whole(
    number: int = 1, path: str = CHAT, caller: str = CALLER, ends: int = 100
) -> dict[str, Span]:
    """The spans of a request that reached a model, by their names here; without stages."""
    port = MODEL_PORTS[path == CHAT]
    return {
        "gateway": kernel_span(number, GATEWAY, caller, (0, ends), Kind.SERVER, GATEWAY_PORT, path),
        "server": application_span(number, SERVER, GATEWAY, (10, 90), Kind.SERVER, f"POST {path}"),
        "client": application_span(number, CLIENT, SERVER, (20, 30), Kind.CLIENT),
        "call": kernel_span(number, CALL, CLIENT, (21, 80), Kind.CLIENT, port, path),
        "model": kernel_span(number, MODEL, CLIENT, (22, 79), Kind.SERVER, port, path),
    }


def stages_of(spans: dict[str, Span]) -> list[Span]:
    return [
        stage(spans["gateway"], "nic_to_read", (0, 10)),
        stage(spans["gateway"], "read_to_tc_out", (10, 100)),
        stage(spans["call"], "write_to_tc_out", (21, 22)),
        stage(spans["call"], "tc_out_to_nic", (22, 79)),
        stage(spans["call"], "nic_to_read", (79, 80)),
        stage(spans["model"], "nic_to_tc_out", (22, 79)),
    ]


def traces_of(spans: Sequence[Span]) -> tuple[Trace, ...]:
    return traces(spans, decode(spans).requests, NAMES)


def one(spans: dict[str, Span]) -> Trace:
    (trace,) = traces_of(list(spans.values()))
    return trace


def test_a_trace_is_a_tree_in_whatever_order_its_spans_arrive() -> None:
    spans = whole()
    mixed = [*spans.values(), *stages_of(spans)]
    random.Random(23).shuffle(mixed)
    (trace,) = traces_of(mixed)

    (root,) = trace.roots
    assert [node.part for node in trace.all()] == list(Part)
    assert [node.span for node in trace.all()] == list(spans.values())
    (server,) = root.children
    (client,) = server.children
    assert [node.part for node in client.children] == [Part.CALL, Part.MODEL]
    assert [each.name for each in root.stages] == ["nic_to_read", "read_to_tc_out"]
    assert server.stages == ()
    assert [node.service for node in trace.all()] == [*["gateway"] * 4, "model"]
    assert (trace.start_unix_ns, trace.total_ns) == (START, 100 * MS)


def test_a_span_whose_parent_is_not_there_is_a_root() -> None:
    spans = whole()
    del spans["client"]
    assert [root.part for root in one(spans).roots] == [Part.GATEWAY, Part.CALL, Part.MODEL]


def test_traces_are_kept_apart() -> None:
    found = traces_of([*whole(1).values(), *whole(2).values()])
    assert [trace.trace_id for trace in found] == [trace_id(1), trace_id(2)]
    assert all(len(list(trace.all())) == len(Part) for trace in found)


def test_a_span_that_is_its_own_parent_is_no_trace() -> None:
    assert traces_of([application_span(1, SERVER, SERVER, (0, 1), Kind.SERVER)]) == ()


# The links.


def broken(spans: dict[str, Span], callers: frozenset[tuple[str, str]] | None = None) -> list[str]:
    sent = frozenset({(trace_id(1), CALLER)}) if callers is None else callers
    return list(broken_links(one(spans), sent))


@pytest.mark.parametrize("caller", [CALLER, ""])
@pytest.mark.parametrize("path", [CHAT, EMBEDDINGS])
def test_a_whole_trace_has_no_fault(path: str, caller: str) -> None:
    assert broken(whole(path=path, caller=caller)) == []


def test_what_the_gateway_answers_itself_reaches_no_model() -> None:
    spans = {
        name: span for name, span in whole(path=HEALTH).items() if name in ("gateway", "server")
    }
    assert broken(spans) == []
    refused = whole()
    refused["gateway"] = replace(
        refused["gateway"],
        attributes={**refused["gateway"].attributes, "http.response.status_code": 401},
    )
    assert broken(refused) == [
        f"{part.value} is one too many" for part in (Part.CLIENT, Part.CALL, Part.MODEL)
    ]


@pytest.mark.parametrize(
    ("which", "wrong", "part", "right"),
    [
        ("server", CALLER, Part.SERVER, Part.GATEWAY),
        ("server", "", Part.SERVER, Part.GATEWAY),
        ("client", GATEWAY, Part.CLIENT, Part.SERVER),
        ("client", "", Part.CLIENT, Part.SERVER),
        ("call", SERVER, Part.CALL, Part.CLIENT),
        ("call", GATEWAY, Part.CALL, Part.CLIENT),
        ("call", CALLER, Part.CALL, Part.CLIENT),
        ("model", CALL, Part.MODEL, Part.CLIENT),
        ("model", GATEWAY, Part.MODEL, Part.CLIENT),
        ("model", "", Part.MODEL, Part.CLIENT),
    ],
)
@pytest.mark.parametrize("caller", [CALLER, ""])
def test_each_wrong_parent_is_named(
    which: str, wrong: str, part: Part, right: Part, caller: str
) -> None:
    spans = whole(caller=caller)
    spans[which] = replace(spans[which], parent_span_id=wrong)
    assert broken(spans) == [f"{part.value} is not the child of {right.value}"]


def test_a_parent_that_no_caller_sent_is_named() -> None:
    said = "the kernel's span of the gateway's request is the child of a span that is no caller's"
    assert broken(whole(caller="00000000000000ff")) == [said]


@pytest.mark.parametrize("which", ["server", "client", "call", "model"])
def test_each_missing_span_is_named(which: str) -> None:
    spans = whole()
    (missing,) = [node.part for node in one(spans).all() if node.span is spans[which]]
    assert missing is not None
    del spans[which]
    assert broken(spans) == [f"{missing.value} is missing"]


@pytest.mark.parametrize("which", list(whole()))
def test_a_span_that_is_there_twice_is_named(which: str) -> None:
    spans = whole()
    spans["again"] = replace(spans[which], span_id="00000000000000dd")
    assert [each.rpartition(" is ")[2] for each in broken(spans)] == ["one too many"]


def test_a_span_in_a_trace_of_its_own_is_named() -> None:
    """As without the plugin: the application's trace is another one."""
    found = traces_of([application_span(2, SERVER, "", (10, 90), Kind.SERVER)])
    assert [list(broken_links(trace, ())) for trace in found] == [
        ["the kernel's span of the gateway's request is missing"]
    ]


def test_a_caller_that_another_trace_has_is_none() -> None:
    assert len(broken(whole(), frozenset({(trace_id(2), CALLER)}))) == 1


def test_the_client_span_may_be_below_what_the_application_tells_of_itself() -> None:
    spans = whole()
    spans["own"] = application_span(1, "00000000000000ee", SERVER, (11, 89), Kind.INTERNAL)
    spans["client"] = replace(spans["client"], parent_span_id="00000000000000ee")
    assert broken(spans) == []
    # But nothing may come between the client span and the kernel's.
    spans["own"] = replace(spans["own"], parent_span_id=CLIENT)
    spans["client"] = replace(spans["client"], parent_span_id=SERVER)
    spans["call"] = replace(spans["call"], parent_span_id="00000000000000ee")
    assert len(broken(spans)) == 1


def findings(*each: dict[str, Span]) -> Findings:
    """What the demo finds when these are all the requests."""
    kernel = [span for spans in each for span in (*spans.values(), *stages_of(spans))]
    outcomes = Counter({("POST", CHAT, 200): len(each)})
    callers = {(spans["gateway"].trace_id, CALLER) for spans in each}
    load = Summary(
        sent=len(each),
        completed=len(each),
        outcomes=outcomes,
        owed=outcomes,
        traceparents=frozenset(callers),
        connections=1,
        over_ipv6=0,
        seconds=0.1,
        errors=(),
    )
    sums = Sums(3 * len(each), 3 * len(each), 0, {})
    decoded, found = decode(kernel), traces_of(kernel)
    return Findings(
        decoded=decoded,
        traces=found,
        sums=sums,
        export=Export("http://127.0.0.1:4317", "grpc", 1, len(kernel), 2 * len(each), "gateway"),
        load=load,
        problems=tuple(problems(load, decoded, found, sums)),
    )


def test_faults_are_counted_over_all_traces() -> None:
    each = [whole(number) for number in (1, 2, 3)]
    assert findings(*each).problems == ()
    for spans in each[1:]:
        spans["server"] = replace(spans["server"], parent_span_id=CALLER)
    assert findings(*each).problems == (
        "in 2 traces the application's server span is not the child of the kernel's span of the "
        "gateway's request",
    )


# The one that is shown.


def test_the_example_is_the_stream_in_the_middle() -> None:
    each = [whole(number, ends=100 * number) for number in (3, 1, 2)]
    each += [whole(4, path=EMBEDDINGS, ends=5_000), whole(5, caller="", ends=201)]
    lacks = whole(6, ends=202)
    del lacks["model"]
    found = traces_of([span for spans in (*each, lacks) for span in spans.values()])
    shown = example(found)
    assert shown is not None
    assert shown.trace_id == trace_id(2)


def test_without_a_stream_the_example_is_the_slowest() -> None:
    each = [whole(number, path=EMBEDDINGS, ends=100 * number) for number in (1, 3, 2)]
    shown = example(traces_of([span for spans in each for span in spans.values()]))
    assert shown is not None
    assert shown.trace_id == trace_id(3)
    assert example(()) is None
    alone = traces_of([application_span(1, SERVER, "", (0, 1), Kind.SERVER)])
    assert example(alone) is None


# How it is drawn.


def test_the_tree_has_a_line_for_each_span_and_each_stage() -> None:
    spans = whole()
    (trace,) = traces_of([*spans.values(), *stages_of(spans)])
    shown = list(lines(trace, UNICODE))
    assert [line.guide + line.label for line in shown] == [
        f"caller: {CALLER}",
        "└ gateway, kernel: SERVER POST",
        "  │ nic→read",
        "  │ read→tc_out",
        f"  └ gateway, application: SERVER POST {CHAT}",
        "    └ gateway, application: CLIENT POST",
        "      ├ gateway, kernel: CLIENT POST",
        "      │   write→tc_out",
        "      │   tc_out→nic",
        "      │   nic→read",
        "      └ model, kernel: SERVER POST",
        "          nic→tc_out",
    ]
    assert [line.is_span for line in shown].count(True) == 6
    # The call's stage until the answer comes is its model's time.
    by_label = {line.label: line for line in shown}
    answer = by_label["tc_out→nic"]
    assert answer.parts == ((Owner.PEER, 57 * MS),)
    assert (answer.begin_ns, answer.end_ns) == (22 * MS, 79 * MS)
    assert by_label["gateway, kernel: CLIENT POST"].parts == (
        (Owner.SEND, 1 * MS),
        (Owner.PEER, 57 * MS),
        (Owner.WAITING, 1 * MS),
    )
    assert by_label[f"gateway, application: SERVER POST {CHAT}"].parts == ()


def test_without_a_caller_the_kernels_span_is_the_root() -> None:
    first = next(iter(lines(one(whole(caller="")), ASCII)))
    assert (first.guide, first.label) == ("", "gateway, kernel: SERVER POST")


def on_paper(found: Findings, width: int) -> list[str]:
    file = io.StringIO()
    render(Console(file=file, width=width, force_terminal=False), found)
    text = file.getvalue().splitlines()
    first = next(i for i, line in enumerate(text) if line.startswith(" One request's whole trace"))
    last = next(i for i, line in enumerate(text) if line.startswith(" Ledger"))
    return text[first:last]


@pytest.mark.parametrize("width", [80, 100])
def test_the_report_shows_the_trace_to_scale(width: int) -> None:
    found = on_paper(findings(whole()), width)
    assert all(line.isascii() and len(line) <= width for line in found)
    assert f" request      POST {CHAT}, status 200" in [line.rstrip() for line in found]
    assert f" trace        {trace_id(1)}" in [line.rstrip() for line in found]
    header = next(line.rstrip() for line in found if line.startswith(" span"))
    assert header.endswith(" 100ms")
    scale = header.index("  0 ") + 2
    cells = len(header) - scale
    bar = next(line for line in found if "`-model, kernel: SERVER POST" in line)
    assert bar.split()[-2] == "57.0ms"
    assert bar.index("aaa") - scale == pytest.approx(cells * 0.22, abs=1)
    assert bar.rindex("a") + 1 - scale == pytest.approx(cells * 0.79, abs=1)
    stroke = next(line for line in found if "application: CLIENT POST" in line)
    assert stroke.index("--") - scale == pytest.approx(cells * 0.2, abs=1)


def test_the_report_says_how_many_traces_are_whole() -> None:
    file = io.StringIO()
    lost = whole(2)
    lost["server"] = replace(lost["server"], parent_span_id=CALLER)
    render(Console(file=file, width=100), findings(whole(1), lost))
    text = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert "requests 2 to the gateway; 2 from it to its models, where 2 arrived" in text
    assert "callers 2 of 2 requests with a traceparent joined it ok" in text
    assert "traces 1 of 2 are whole, each span below the right one !!" in text
    assert any(line.startswith("!! in 1 trace the application's server span") for line in text)


def test_names_from_the_network_do_not_break_the_tree() -> None:
    spans = whole()
    spans["server"] = replace(spans["server"], name="POST /\x1b[31m" + "a" * 200)
    found = on_paper(findings(spans), 80)
    assert any(re.search(r"SE[^ ]*~a+ +80\.0ms", line) for line in found)
    assert all(len(line) <= 80 and "\x1b" not in line for line in found)


def test_as_json_has_the_trees() -> None:
    told = json.loads(json.dumps(as_json(findings(whole(1), whole(2)))))
    assert told["example_trace_id"] == trace_id(2)
    assert [trace["trace_id"] for trace in told["traces"]] == [trace_id(1), trace_id(2)]
    (root,) = told["traces"][0]["spans"]
    assert (root["part"], root["service"], root["kind"]) == ("gateway", "gateway", "SERVER")
    assert (root["parent_span_id"], root["total_ns"]) == (CALLER, 100 * MS)
    assert [each["name"] for each in root["stages"]] == ["nic_to_read", "read_to_tc_out"]
    (server,) = root["children"]
    (client,) = server["children"]
    assert [each["part"] for each in client["children"]] == ["call", "model"]
    assert told["otlp"]["application_spans"] == 4
