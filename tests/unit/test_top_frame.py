# SPDX-License-Identifier: Apache-2.0
"""What `otelbpf top` shows: all of it, in the columns and lines that there are, and steered by
nobody."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console
from snapshots import SHOP, key, series, snapshot, sums

from otelbpf.ledger.request import Kind
from otelbpf.ledger.stamps import Owner
from otelbpf.ledger.tally import Sums
from otelbpf.metrics.snapshot import UPPER_NS, Series, buckets_of, no_durations
from otelbpf.top.frame import View, frame
from otelbpf.top.look import (
    COLOURS,
    Bar,
    Look,
    duration,
    look_of,
    per_second,
    percent,
    shortened,
    stage_label,
    visible,
)
from otelbpf.top.rows import RouteKey, Sort, Table, table_of

MS = 1_000_000
PLAIN = Look(False, "→", "µ", "…", "–", "↑↓")  # noqa: RUF001
HOSTILE = (
    "/\x1b[2J\x1b]0;owned\x07", "/\x9b31m", "/\r\n\t\x00\x7f", "/[red]x[/red]", "/[link=http://x]y",
    "/:smile:", "/漢字漢字", "/e\u0301\u0301\u0301", "/\u202egnp.exe", "/\u200b\u2028\u2029",
    "/\ud800", "/" + "a" * 5_000, "/%1B[31m", "/\U0001f469\u200d\U0001f680",
)  # fmt: skip
WIDTHS = (80, 160)


def console_of(
    width: int, *, terminal: bool = False, encoding: str = "utf-8"
) -> tuple[Console, io.BytesIO]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    console = Console(
        file=file, width=width, force_terminal=terminal, highlight=False,
        color_system="truecolor" if terminal else None, _environ={},
    )  # fmt: skip
    return console, raw


def lines_of(
    table: Table, view: View, width: int, height: int | None = None, *, terminal: bool = False,
    encoding: str = "utf-8",
) -> list[str]:  # fmt: skip
    """The lines, without their colours."""
    console, raw = console_of(width, terminal=terminal, encoding=encoding)
    rendered = console.render_lines(
        frame(table, view, width, height, look_of(console)), console.options, pad=False
    )
    # As they are written, too: what the encoding does not have would fail.
    console.print(frame(table, view, width, height, look_of(console)))
    assert terminal or b"\x1b" not in raw.getvalue()
    return ["".join(segment.text for segment in line).rstrip() for line in rendered]


def view(selected: RouteKey | None = None, **changes: object) -> View:
    fields = {"title": "port 8080 on eth0", "over": "the last 1.0 s", "sort": Sort.RATE}
    return View(**{**fields, "selected": selected, **changes})


def table(*all_series: Series, counted: Sums | None = None) -> Table:
    taken = replace(snapshot(), series=all_series, sums=counted or sums())
    return table_of(taken, None, 2.0)


def upper(duration_ns: int) -> str:
    """The end of the bucket in which it is counted."""
    return duration(float(UPPER_NS[buckets_of(duration_ns)]), PLAIN)


def line_with(lines: Sequence[str], text: str) -> str:
    (line,) = (line for line in lines if text in line)
    return line


@pytest.mark.parametrize("width", WIDTHS)
def test_a_routes_line(width: int) -> None:
    lines = lines_of(
        table(series(durations_ns=[3 * MS] * 22), series(key(status=500), [3 * MS])),
        view(), width,
    )  # fmt: skip
    line = line_with(lines, "GET /items/{id}")
    words = line.split()
    quantiles = [upper(3 * MS)] * (2 if width == 80 else 4)
    assert words[2 : 4 + len(quantiles)] == ["11.5", "4.3%", *quantiles]
    # All but a thousandth after the read: the application's.
    assert "waaaa" in line
    assert line.endswith("read→tc_out 3.00ms")
    assert line_with(lines, "all").split()[1:] == words[2:]
    assert line_with(lines, "seen 10 = exported 4 + sampled out 3 + lost 2 (ring_full 2)")


def many(count: int) -> Table:
    """Of several services, and of long names."""
    other = SHOP.merge(type(SHOP)({"service.name": "a-service-with-a-long-name"}))
    routes = [
        series(key(
            Kind.CLIENT if i % 3 == 0 else Kind.SERVER, route=f"/route/{'x' * i}",
            resource=other if i % 2 else SHOP,
        ), [(i + 1) * MS] * (i + 1))
        for i in range(count)
    ]  # fmt: skip
    return table(*routes, series(key(overflow=True, method="", route=""), [MS] * 5))


@pytest.mark.parametrize("width", [40, *WIDTHS, 250])
@pytest.mark.parametrize("height", [10, 24, 50])
@pytest.mark.parametrize("is_selected", [False, True])
@pytest.mark.parametrize("terminal", [False, True])
def test_it_fits_and_the_foot_is_the_last(
    width: int, height: int, is_selected: bool, terminal: bool
) -> None:
    shown = many(60)
    selected = shown.sorted(Sort.RATE)[33].key if is_selected else None
    notes = (("attached: " + "tracepoint x, " * 50, False),)
    lines = lines_of(
        shown, view(selected, notes=notes, keys=True), width, height, terminal=terminal
    )
    assert len(lines) == height
    assert all(len(line) <= width for line in lines), lines
    assert lines[0].startswith("otelbpf top  port 8080 on eth0")
    assert lines[-1].startswith(" q  quit")
    if width >= 80:
        assert f"of {len(shown.rows)})" in line_with(lines, "route (")
    assert any(line.startswith("all of servers") for line in lines)
    if height > 10:
        assert lines[-2].startswith("attached: tracepoint x")
        assert lines[-2].endswith("…")


def test_the_selected_route_is_in_sight_and_has_its_stages_below() -> None:
    shown = many(60)
    for at in (0, 5, 33, 60):
        row = shown.sorted(Sort.RATE)[at]
        lines = lines_of(shown, view(row.key, keys=True), 160, 24)
        pointed = line_with(lines, "> ")
        name = "others, of servers" if row.key.overflow else f"GET {row.key.route}"
        assert shortened(name, 12, PLAIN).partition("…")[0] in pointed
        line_with(lines, f", {row.ever:,} requests so far")
        stage = line_with(lines[lines.index(pointed) + 1 :], "nic→read ")
        assert stage.split()[1] == per_second(row.rate)
        assert line_with(lines, "read→tc_out  ").rstrip().endswith("a")
        assert lines.index(line_with(lines, "end→acked  ")) > lines.index(stage)


def test_stages_are_a_waterfall() -> None:
    row = table(series()).rows[0]
    lines = lines_of(table(series()), view(row.key), 80)
    first, second = line_with(lines, "nic→read  "), line_with(lines, "read→tc_out   ")
    assert first.split()[1:] == ["1.0", "4.00µs", upper(5_000), "0.1%", "w"]
    assert second.split()[4] == "100%"
    assert first.index("w", 20) + 1 >= second.index("aaa")


def test_the_acknowledgement_is_a_line_of_its_own() -> None:
    """Below the stages, without a share of their time, and where there was none not at all."""
    row = table(series()).rows[0]
    lines = lines_of(table(series()), view(row.key), 160)
    acked = line_with(lines, "end→acked")
    assert lines[lines.index(line_with(lines, "read→tc_out  ")) + 1] == acked
    assert acked.split(maxsplit=5) == [
        "end→acked",
        "1.0",
        "7.00µs",
        upper(7_000),
        "–",  # noqa: RUF001
        "after the request's end",
    ]
    none = replace(series(), acked=no_durations())
    assert not any("acked" in line for line in lines_of(table(none), view(row.key), 160))


@pytest.mark.parametrize("height", range(10, 24))
def test_the_acknowledgement_has_its_place_where_lines_are_few(height: int) -> None:
    """It goes before the smaller stages, as it is no part of what they share."""
    row = table(series()).rows[0]
    lines = lines_of(table(series()), view(row.key, keys=True), 160, height)
    assert len(lines) == height
    shown = [line.split()[0] for line in lines if "→" in line.split(" ")[0]]
    assert shown in (
        [],
        ["read→tc_out"],
        ["read→tc_out", "end→acked"],
        ["nic→read", "read→tc_out", "end→acked"],
    )


@pytest.mark.parametrize(
    ("width", "text"), [(80, "peer + network"), (160, "peer + network: elsewhere")]
)
def test_the_legend_has_every_owner(width: int, text: str) -> None:
    legend = lines_of(table(series()), view(), width)[1]
    assert f"p {text}  " in legend
    assert [word for word in legend.split() if len(word) == 1 and word != "+"] == list("rwaspu")


def test_an_agent_without_requests() -> None:
    lines = lines_of(table(counted=Sums(0, 0, 0, {})), view(), 80)
    assert "seen 0 = exported 0 + sampled out 0 + lost 0" in lines
    assert "no requests yet" in lines


def test_a_route_without_requests_in_the_interval_stays() -> None:
    taken = snapshot(series())
    lines = lines_of(table_of(taken, taken, 1.0), view(), 80)
    assert line_with(lines, "GET /items/{id}").split() == ["GET", "/items/{id}", *"––––"]  # noqa: RUF001


def test_the_others_are_named_and_explained() -> None:
    others = series(key(overflow=True, method="", route=""), [MS] * 5)
    lines = lines_of(table(series(), others), view(), 160)
    assert line_with(lines, "others, of servers").split()[4] == "–"  # noqa: RUF001
    assert "`--series`" in line_with(lines, "5 requests so far are among others")
    assert not any("among others" in line for line in lines_of(table(series()), view(), 160))


def test_an_upstream_is_named() -> None:
    shown = table(series(), series(key(Kind.CLIENT), [MS]))
    assert "shop → models:9000" in line_with(lines_of(shown, view(), 160), "models")
    assert "→mode…9000" in line_with(lines_of(shown, view(), 80), "mode")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_nothing_that_clients_send_steers_the_terminal(hostile: str, width: int) -> None:
    of = key(route=hostile, resource=SHOP.merge(type(SHOP)({"service.name": hostile})))
    shown = table(series(of), series())
    chosen = view(next(row.key for row in shown.rows if row.key.route == hostile))
    harmless = [text.replace("GET", "GOT") for text in lines_of(shown, chosen, width, 24)]
    lines = lines_of(shown, chosen, width, 24)
    assert len(lines) == len(harmless) == 24
    own = set("→µ…–")  # noqa: RUF001
    assert all(c in own or " " <= c <= "~" for line in lines for c in line), lines
    assert all(len(line) <= width for line in lines)
    # And with colours: only sequences of our own, which are colours.
    console, raw = console_of(width, terminal=True)
    console.print(frame(shown, chosen, width, 24, look_of(console)))
    for sequence in raw.getvalue().split(b"\x1b")[1:]:
        body, m, _ = sequence.partition(b"m")
        assert m and not body.strip(b"[;0123456789"), sequence


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/items/{id}", "/items/{id}"),
        ("/caf\u00e9", "/caf%C3%A9"),
        ("/\x1b[31m", "/%1B[31m"),
        ("[red]", "[red]"),
        ("/\ud800", "/\\ud800"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("width", "text"),
    [(11, "GET /abcdef"), (10, "GET /…cdef"), (5, "GE…ef"), (2, "G…"), (1, "…")],
)
def test_long_texts_are_cut_in_the_middle(width: int, text: str) -> None:
    assert shortened("GET /abcdef", width, PLAIN) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "–"), (128, "128ns"), (999.4, "999ns"), (999.6, "1.00µs"), (9_994, "9.99µs"),  # noqa: RUF001
     (9_996, "10.0µs"), (99_960, "100µs"), (999_600, "1.00ms"), (2.5e9, "2.50s"),
     (8.6e12, "8600s")],
)  # fmt: skip
def test_durations_have_three_digits_and_a_unit(ns: float, text: str) -> None:
    assert duration(ns, PLAIN) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.034, "0.03"), (0.994, "0.99"), (0.996, "1.0"), (99.94, "99.9"), (99.96, "100"),
     (999.4, "999"), (999.6, "1.0k"), (34_000, "34.0k"), (999_600, "1.0M")],
)  # fmt: skip
def test_rates(rate: float, text: str) -> None:
    assert per_second(rate) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (1e-6, "<0.1%"), (0.001, "0.1%"), (0.0994, "9.9%"), (0.0996, "10%"), (1, "100%")],
)
def test_shares(share: float, text: str) -> None:
    assert percent(share) == text


def test_stages_are_told_by_their_stamps() -> None:
    assert stage_label("tc_out_to_write_last", PLAIN) == "tc_out→write_last"
    assert stage_label("other", PLAIN) == "other"


def bar(width: int, *parts: tuple[Owner | None, float], terminal: bool = False) -> str:
    console, _ = console_of(width, terminal=terminal)
    segments = console.render(Bar(parts, look_of(console)), console.options)
    return "".join(segment.text for segment in segments)


def test_bars_are_to_scale_and_nothing_is_left_out() -> None:
    half = (Owner.RECEIVE, 0.5), (Owner.SEND, 0.5)
    assert bar(8, *half) == "rrrrssss"
    assert bar(8, (Owner.RECEIVE, 0.001), (Owner.SEND, 0.999)) == "rsssssss"
    assert bar(8, (None, 0.5), (Owner.PEER, 0.25)) == "    pp  "
    assert bar(4, (None, 1.0), (Owner.PEER, 0.0)) == "    "
    assert bar(8) == " " * 8
    assert bar(3, *half, terminal=True) == " ▌ "
    # A block is a gap that reaches into a cell, or a part that ends within it.
    assert bar(2, (None, 0.3), (Owner.PEER, 0.2), terminal=True) == "▋ "
    assert bar(2, (None, 0.25), (Owner.PEER, 0.1), terminal=True) == "▎ "
    for width in range(1, 30):
        for terminal in (False, True):
            assert len(bar(width, *half, terminal=terminal)) == width


def test_bars_have_their_owners_colours() -> None:
    console, _ = console_of(4, terminal=True)
    parts = (Owner.RECEIVE, 0.375), (Owner.SEND, 0.625)
    segments = list(console.render(Bar(parts, look_of(console)), console.options))
    assert [(s.text, s.style and s.style.color and s.style.color.name,
             s.style and s.style.bgcolor and s.style.bgcolor.name) for s in segments] == [
        (" ", None, COLOURS[Owner.RECEIVE]),
        ("▌", COLOURS[Owner.RECEIVE], COLOURS[Owner.SEND]),
        ("  ", None, COLOURS[Owner.SEND]),
    ]  # fmt: skip


def test_a_terminal_that_knows_no_unicode() -> None:
    shown = many(3)
    chosen = view(shown.rows[0].key, keys=True)
    lines = lines_of(shown, chosen, 160, 24, terminal=True, encoding="ascii")
    assert all(line.isascii() for line in lines)
    assert line_with(lines, "nic>read  ")
    assert "Up Down" in lines[-1]
