# SPDX-License-Identifier: Apache-2.0
"""How the demo's report looks: units, owners, and bars to scale."""

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from demo.look import (
    APPLICATION,
    ASCII,
    OTHER,
    OWNERS,
    PEER,
    RECEIVE,
    SEND,
    UNICODE,
    WAITING,
    Bar,
    Owner,
    counted,
    duration,
    half_cells,
    owner_of,
    percent,
    stage_label,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1_000, "1.00 µs"),
        (9_994, "9.99 µs"),
        (9_995, "10.0 µs"),
        (99_949, "99.9 µs"),
        (99_950, "100 µs"),
        (999_499, "999 µs"),
        (999_500, "1.00 ms"),
        (12_345_678, "12.3 ms"),
        (999_499_999, "999 ms"),
        (999_500_000, "1.00 s "),
        (75_000_000_000, "75.0 s "),
        (7_500_000_000_000, "7500 s "),
        (-1_234, "-1.23 µs"),
    ],
)
def test_durations_have_three_digits_and_a_unit(ns: int, text: str) -> None:
    assert duration(ns) == text
    assert duration(ns, ASCII) == text.replace("µ", "u")


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 100, "0.0%"),
        (1, 10_000, "<0.1%"),
        (10, 10_000, "0.1%"),
        (991, 1_000, "99.1%"),
        (1, 1, "100%"),
        (1, 0, ""),
    ],
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
    ("stage", "owner"),
    [
        ("nic_to_tc", RECEIVE),
        ("tc_to_tcp", RECEIVE),
        ("tcp_to_queued", RECEIVE),
        ("running_to_nic_last", RECEIVE),
        ("queued_to_woken", WAITING),
        ("queued_to_read", WAITING),
        ("woken_to_running", WAITING),
        ("running_to_read", WAITING),
        ("read_to_read_last", WAITING),
        ("read_last_to_handler_start", APPLICATION),
        ("read_to_write", APPLICATION),
        ("tc_out_to_write_last", APPLICATION),
        ("write_to_tc_out", SEND),
        ("write_last_to_tc_out_last", SEND),
        ("tc_out_to_acked", PEER),
        ("tc_out_last_to_acked", PEER),
        ("something_else", OTHER),
    ],
)
def test_a_stage_belongs_to_whoever_brings_its_end_about(stage: str, owner: Owner) -> None:
    assert owner_of(stage) is owner


def test_stages_are_labelled_by_their_stamps() -> None:
    name = "write_last_to_tc_out_last"
    assert stage_label(name, UNICODE) == "write_last → tc_out_last"
    assert stage_label(name, ASCII) == "write_last -> tc_out_last"
    assert stage_label("odd", ASCII) == "odd"


@pytest.mark.parametrize(
    ("begin", "end", "cells"),
    [
        (0, 100, (0, 20)),
        (0, 50, (0, 10)),
        (25, 30, (5, 6)),
        (0, 0, (0, 1)),
        (100, 100, (19, 20)),
        (99, 100, (19, 20)),
        (50, 51, (10, 11)),
        (90, 120, (18, 20)),
    ],
)
def test_bars_are_drawn_to_half_a_cell(begin: int, end: int, cells: tuple[int, int]) -> None:
    assert half_cells(100, begin, end, 10) == cells


@pytest.mark.parametrize(
    ("begin", "end", "text"),
    [(50, 101, "     ━━━━›"), (200, 300, "         ›"), (0, 300, "━━━━━━━━━›")],  # noqa: RUF001
)
def test_a_bar_beyond_the_scale_is_cut_off(begin: int, end: int, text: str) -> None:
    console = Console(file=io.StringIO(), width=10)
    with console.capture() as capture:
        console.print(Bar(100, begin, end, "blue", UNICODE), end="")
    assert capture.get() == text


def test_a_bar_of_a_scale_of_nothing() -> None:
    assert half_cells(0, 0, 0, 10) == (0, 1)


@pytest.mark.parametrize(
    ("begin", "end", "text"),
    [
        (0, 100, "━━━━━━━━━━"),
        (15, 45, " ╺━━╸     "),
        (20, 40, "  ━━      "),
        (15, 20, " ╺        "),
        (10, 15, " ╸        "),
        (100, 100, "         ╺"),
    ],
)
def test_bars_look_like_this(begin: int, end: int, text: str) -> None:
    console = Console(file=io.StringIO(), width=10)
    with console.capture() as capture:
        console.print(Bar(100, begin, end, "blue", UNICODE), end="")
    assert capture.get() == text


def test_the_bars_of_a_request_follow_one_another() -> None:
    """No half cell between two neighbours' bars, where both are long enough to be seen."""
    for width in range(10, 90):
        tiles = ((0, 300), (300, 800), (800, 1000))
        edges = [half_cells(1000, begin, end, width) for begin, end in tiles]
        assert edges[0][0] == 0
        assert edges[-1][1] == 2 * width
        assert [end for _, end in edges[:-1]] == [begin for begin, _ in edges[1:]]


def test_every_owner_has_a_colour_of_its_own() -> None:
    assert len({owner.style for owner in OWNERS}) == len(OWNERS) == 5
