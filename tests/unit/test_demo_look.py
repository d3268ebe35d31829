# SPDX-License-Identifier: Apache-2.0
"""How the demo's report looks: glyphs, and bars to scale. Units are those of `otelbpf top`."""

import io

import pytest
from demo.look import ASCII, Axis, Bar, Look, Rule, Stroke, counted, look_of, percent
from rich.console import Console, RenderableType

from otelbpf.ledger.stamps import Owner
from otelbpf.top.look import duration, stage_label


def console(*, terminal: bool = False, colours: bool = True, width: int = 10) -> Console:
    return Console(
        file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), width=width,
        force_terminal=terminal, color_system="truecolor" if terminal and colours else None,
        _environ={},
    )  # fmt: skip


def drawn(what: RenderableType, width: int = 10) -> str:
    at = console(width=width)
    text = "".join(segment.text for segment in at.render(what, at.options))
    assert text.endswith("\n") or len(text) == width
    return text.rstrip("\n")


def test_on_paper_it_is_plain_and_on_a_terminal_it_is_tops() -> None:
    assert look_of(console()) is ASCII
    shown = look_of(console(terminal=True))
    assert (shown.coloured, shown.arrow, shown.micro, shown.branch) == (True, "→", "µ", "├ ")
    assert not look_of(console(terminal=True, colours=False)).coloured
    for look in (ASCII, shown):
        assert len(look.branch) == len(look.last) == len(look.trunk) == 2
        assert len(look.beyond) == len(look.rule) == 1
    assert all(glyph.isascii() for glyph in vars_of(ASCII))


def vars_of(look: Look) -> list[str]:
    return [
        value for name in look.__dataclass_fields__ if isinstance(value := getattr(look, name), str)
    ]


def test_stages_and_times_in_ascii() -> None:
    assert stage_label("write_last_to_tc_out_last", ASCII) == "write_last>tc_out_last"
    assert duration(12_345, ASCII) == "12.3us"


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 100, "0%"), (1, 10_000, "<0.1%"), (991, 1_000, "99%"), (1, 1, "100%"), (1, 0, "")],
)
def test_shares_in_percent(part: int, whole: int, text: str) -> None:
    assert percent(part, whole) == text


def test_one_and_more() -> None:
    assert [counted(number, "span") for number in (0, 1, 2_420)] == [
        "0 spans",
        "1 span",
        "2,420 spans",
    ]


@pytest.mark.parametrize(
    ("begin", "parts", "text"),
    [
        (0, [(Owner.RECEIVE, 100)], "rrrrrrrrrr"),
        (0, [(Owner.RECEIVE, 30), (Owner.APPLICATION, 70)], "rrraaaaaaa"),
        (20, [(Owner.PEER, 40)], "  pppp    "),
        (20, [(Owner.PEER, 40), (Owner.SEND, 40)], "  ppppssss"),
        # What took any time at all is seen, and what took none is not.
        (50, [(Owner.SEND, 1)], "     s    "),
        (0, [], "          "),
        # What lies beyond the scale is cut off, with a mark.
        (50, [(Owner.SEND, 51)], "     ssss>"),
        (200, [(Owner.SEND, 100)], "         >"),
        (0, [(Owner.RECEIVE, 50), (Owner.SEND, 250)], "rrrrrssss>"),
    ],
)
def test_bars_are_to_scale(begin: int, parts: list[tuple[Owner, int]], text: str) -> None:
    assert drawn(Bar(100, begin, parts, ASCII)) == text


@pytest.mark.parametrize("width", range(2, 60))
def test_bars_are_as_wide_as_they_may_be(width: int) -> None:
    for size, begin in ((0, 0), (100, 30), (100, 99), (100, 400)):
        assert len(drawn(Bar(size, begin, [(Owner.SEND, 20)], ASCII), width)) == width
        assert len(drawn(Stroke(size, begin, begin + 20, ASCII), width)) == width


@pytest.mark.parametrize(
    ("begin", "end", "text"),
    [
        (0, 100, "----------"),
        (20, 40, "  --      "),
        (50, 51, "     -    "),
        (100, 100, "         -"),
        (90, 300, "         -"),
    ],
)
def test_strokes_are_to_scale_and_never_nothing(begin: int, end: int, text: str) -> None:
    assert drawn(Stroke(100, begin, end, ASCII)) == text


def test_axes_and_rules() -> None:
    assert drawn(Axis("450us")) == "0    450us"
    assert drawn(Rule(ASCII)) == "----------"
