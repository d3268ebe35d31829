# SPDX-License-Identifier: Apache-2.0
"""The demo's report: what it says on paper and on a terminal."""

import io
import json
import re
from collections import Counter
from dataclasses import replace

import pytest
from demo.check import Sums
from demo.findings import Export, Findings, as_json
from demo.ledgers import Decoded, Request, Stage
from demo.load import Summary
from demo.otlp import Kind
from demo.report import render
from demo.topology import GATEWAY_PORT
from rich.cells import cell_len
from rich.console import Console

QUICK = (
    ("nic_to_tc", 800),
    ("tc_to_tcp", 1_900),
    ("tcp_to_queued", 900),
    ("queued_to_woken", 700),
    ("woken_to_running", 12_000),
    ("running_to_read", 8_700),
    ("read_to_write", 375_000),
    ("write_to_tc_out", 12_000),
    ("tc_out_to_tc_out_last", 38_000),
)
STREAM = (
    ("nic_to_tc", 800),
    ("tc_to_tcp", 1_900),
    ("tcp_to_queued", 900),
    ("queued_to_read", 20_000),
    ("read_to_write", 2_000_000),
    ("write_to_tc_out", 10_000),
    ("tc_out_to_write_last", 74_000_001),
    ("write_last_to_tc_out_last", 9_000),
    ("tc_out_last_to_handler_end", 36_000),
)


def request(
    number: int, stages: tuple[tuple[str, int], ...], path: str, status: int | None = 200
) -> Request:
    tiles, offset = [], 0
    for name, duration_ns in stages:
        tiles.append(Stage(name, offset, duration_ns))
        offset += duration_ns
    complete = not any("queued_to_read" in name for name, _ in stages)
    return Request(
        kind=Kind.SERVER,
        port=GATEWAY_PORT,
        method="GET" if path == "/healthz" else "POST",
        path=path,
        status=status,
        trace_id=f"{number:032x}",
        span_id=f"{number:016x}",
        parent_span_id="00000000000000aa" if number == 1 else "",
        start_unix_ns=1_790_000_000_000_000_000 + number,
        total_ns=offset,
        acked_ns=number * 1_000,
        stages=tuple(tiles),
        complete=complete,
        absent=() if complete else ("woken", "running"),
        attributes={
            "client.address": "198.18.0.2",
            "client.port": 40000,
            "network.protocol.version": "1.1",
            "user_agent.original": "otelbpf-demo",
        },
    )


REQUESTS = (
    *(request(number, QUICK, "/healthz") for number in range(1, 23)),
    request(23, STREAM, "/v1/chat/completions", 503),
)
LOAD = Summary(
    sent=23,
    completed=23,
    outcomes=Counter(),
    owed=Counter(),
    traceparents=frozenset([(f"{1:032x}", "00000000000000aa")]),
    connections=6,
    over_ipv6=8,
    seconds=0.123,
    errors=(),
)
FINDINGS = Findings(
    decoded=Decoded(REQUESTS, ()),
    traces=(),
    sums=Sums(23, 23, 0, {"ring_full": 0}),
    export=Export("http://127.0.0.1:4317", "grpc", 2, 230, 23, "gateway"),
    load=LOAD,
)


def on_paper(findings: Findings, width: int = 80) -> str:
    file = io.StringIO()
    render(Console(file=file, width=width, force_terminal=False), findings)
    return file.getvalue()


def on_a_terminal(findings: Findings, width: int = 80) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    render(Console(file=file, width=width, force_terminal=True, color_system="standard"), findings)
    file.seek(0)
    return file.read()


def lines(text: str) -> list[str]:
    """The words of each line, one blank between columns."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_what_few_requests_had_does_not_stretch_the_scale() -> None:
    slow = request(30, (*QUICK[:-1], ("tc_out_to_tc_out_last", 90_000_000)), "/healthz")
    rare = replace(slow, stages=(*slow.stages[:-1], replace(slow.stages[-1], name="tc_out_to_x")))
    text = on_paper(replace(FINDINGS, decoded=Decoded((*REQUESTS[:22], rare), ())))
    row = next(line for line in text.splitlines() if line.startswith(" tc_out>x"))
    assert re.fullmatch(r"1 90\.0ms 90\.0ms u+>", " ".join(row.split()[1:]))
    header = next(line for line in text.splitlines() if line.startswith(" stage"))
    assert header.endswith(" 450us")


@pytest.mark.parametrize("width", [80, 100, 132, 200])
def test_on_paper_it_is_plain_ascii_within_its_width(width: int) -> None:
    text = on_paper(FINDINGS, width)
    assert text.isascii()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [80, 132])
def test_on_a_terminal_it_has_colours_and_stays_within_its_width(width: int) -> None:
    text = on_a_terminal(FINDINGS, width)
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "nic→tc" in plain
    assert "─" in plain
    assert max(map(len, plain.splitlines())) <= width


def test_it_has_everything_that_it_promises() -> None:
    found = lines(on_paper(FINDINGS))

    assert "23 requests in 0.12 s on 6 connections: 8 over IPv6, 1 with a traceparent" in found
    assert "GET /healthz 3.60us 21.4us 375us 12.0us 38.0us 450us" in found
    # The route's waterfall.
    assert any(line.startswith("GET /healthz ---") and line.endswith(" 200 x22") for line in found)
    assert "nic>tc 22 800ns 800ns r" in found
    assert any(line.startswith("read>write 22 375us 375us aaaa") for line in found)
    assert any(line.startswith("tc_out>tc_out_last 22 38.0us 38.0us pp") for line in found)
    assert any(line.startswith("the whole request 22 450us 450us ----") for line in found)
    assert "end>acked 22 11.0us 22.0us after the request's end" in found
    # The slowest request.
    assert any(line.startswith("The slowest request ---") and "76.1ms" in line for line in found)
    assert "request POST /v1/chat/completions, status 503" in found
    assert f"trace {23:032x}" in found
    assert f"span {23:016x}, the root of its trace" in found
    assert "client 198.18.0.2 port 40000, HTTP/1.1, otelbpf-demo" in found
    assert "ledger not complete, without woken, running" in found
    assert any(line.startswith("queued>read 3.60us 20.0us <0.1% w") for line in found)
    assert any(line.startswith("tc_out>write_last 2.03ms 74.0ms 97% aaa") for line in found)
    assert "end>acked 76.1ms 23.0us after the request's end" in found
    assert "9 stages: 76,078,601 ns = 76,078,601 ns in all ok" in found
    # The sums, and where the OTLP went.
    assert "sum 23 + 0 + 0 = 23 ok" in found
    assert "lost 0" in found
    assert "stages 23 of 23 requests add up to the nanosecond ok" in found
    assert "ledgers 22 of 23 complete; did not occur: woken 1, running 1" in found
    assert "callers 1 of 1 requests with a traceparent joined it ok" in found
    assert "endpoint http://127.0.0.1:4317" in found
    assert "received 230 spans in 2 exports: 23 requests, 184 stages, 23 of the" in found
    assert "application" in found
    assert "ok every request is accounted for: 23 of 23" in found


def test_bars_of_a_route_are_to_scale() -> None:
    """375 of 450 µs, from 25 µs on, over the 40 cells that 80 columns leave here."""
    text = on_paper(replace(FINDINGS, decoded=Decoded(REQUESTS[:22], ())))
    bar = next(line for line in text.splitlines() if line.startswith(" read>write"))
    header = next(line for line in text.splitlines() if line.startswith(" stage"))
    scale = header.index("0 ")
    width = len(header.rstrip()) - scale
    begin, end = bar.index("aa") - scale, bar.rindex("a") + 1 - scale
    assert begin == pytest.approx(width * 25 / 450, abs=1)
    assert end == pytest.approx(width * 400 / 450, abs=1)


def test_waterfalls_begin_at_one_column() -> None:
    text = on_paper(FINDINGS)
    headers = [line for line in text.splitlines() if re.match(r" stage +count", line)]
    assert len(headers) == 2
    assert len({header.index("  0 ") for header in headers}) == 1


def test_stages_that_do_not_add_up_are_shown_as_such() -> None:
    broken = replace(REQUESTS[22], total_ns=REQUESTS[22].total_ns + 1)
    found = lines(on_paper(replace(FINDINGS, decoded=Decoded((*REQUESTS[:22], broken), ()))))
    assert "9 stages: 76,078,601 ns is not 76,078,602 ns in all !!" in found
    assert "stages 22 of 23 requests add up to the nanosecond !!" in found


def test_what_is_missing_is_said() -> None:
    sums = Sums(25, 23, 0, {"ring_full": 1})
    findings = replace(FINDINGS, sums=sums, problems=("the agent saw 25", "the agent lost 1"))
    found = lines(on_paper(findings))
    assert "sum 23 + 0 + 1 = 24 !!" in found
    assert "lost 1 (ring_full 1)" in found
    assert "!! the agent saw 25; the agent lost 1" in found
    assert not any("every request is accounted for" in line for line in found)

    too_many = lines(on_paper(replace(findings, sums=Sums(22, 23, 0, {}))))
    assert "sum 23 + 0 + 0 = 23 !!" in too_many


def test_with_no_request_at_all_there_is_still_a_report() -> None:
    nothing = replace(
        FINDINGS, decoded=Decoded((), ()), sums=Sums(0, 0, 0, {}), load=None, problems=("none",)
    )
    found = lines(on_paper(nothing))
    assert "sum 0 + 0 + 0 = 0 ok" in found
    assert "!! none" in found


def test_long_and_odd_paths_do_not_break_the_page() -> None:
    odd = [
        request(1, QUICK, "/" + "a" * 300),
        request(2, QUICK, "/[red]x[/red]/\x1b[31m", None),
        request(3, STREAM, "/päth/日本語日本語日本語日本語日本語日本語"),
    ]
    odd += [request(number, QUICK, "/many", 200 + number) for number in range(10, 30)]
    findings = replace(
        FINDINGS, decoded=Decoded(tuple(odd), ()), problems=("no span for GET /\x1b]0;x\x07",)
    )
    for text in (on_paper(findings), on_a_terminal(findings)):
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
        assert max(map(cell_len, text.splitlines())) <= 80
        assert "POST /[red]x[/red]/%1B[31m" in text
        assert "no span for GET /%1B]0;x%07" in text
        assert not re.search(r"[^\n -\U0010ffff]", text)
        assert re.search("none .1", text)
    assert on_paper(findings).isascii()


def test_as_json_has_all_of_it_in_ns() -> None:
    found = json.loads(json.dumps(as_json(FINDINGS)))
    assert found["sums"] == {"seen": 23, "exported": 23, "sampled_out": 0, "lost": {"ring_full": 0}}
    assert found["load"]["completed"] == 23
    assert found["otlp"]["spans"] == 230
    assert len(found["requests"]) == 23
    for told in found["requests"]:
        assert sum(stage["duration_ns"] for stage in told["stages"]) == told["total_ns"]
    healthz = found["routes"][0]
    assert healthz["total"] == {"count": 22, "median_ns": 450_000, "p99_ns": 450_000}
    assert healthz["acked"] == {"count": 22, "median_ns": 11_000, "p99_ns": 22_000}
    assert found["requests"][22]["acked_ns"] == 23_000
    assert healthz["stages"][1] == {
        "name": "tc_to_tcp",
        "offset_ns": 800,
        "count": 22,
        "median_ns": 1_900,
        "p99_ns": 1_900,
    }
    assert found["problems"] == []
