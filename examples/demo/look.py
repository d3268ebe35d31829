# SPDX-License-Identifier: Apache-2.0
"""How the report looks: as ``otelbpf top`` does, with what a report on paper needs besides."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style

from otelbpf.ledger.stamps import Owner
from otelbpf.top import look as tops


@dataclass(frozen=True)
class Look(tops.Look):
    """The glyphs of one kind of terminal."""

    beyond: str  # the bar goes on
    rule: str
    times: str
    yes: str
    no: str
    branch: str  # to one of a tree's children
    last: str  # to the last of them
    trunk: str  # past what is below one of them, to the next


ASCII = Look(False, ">", "u", "~", "-", "", ">", "-", "x", "ok", "!!", "|-", "`-", "| ")


def look_of(console: Console) -> Look:
    """Glyphs that this console can show: plain ASCII when it is no terminal."""
    if not (console.is_terminal and console.encoding.startswith("utf")):
        return ASCII
    top = tops.look_of(console)
    return Look(
        *(top.coloured, top.arrow, top.micro, top.ellipsis, top.none, top.up_down),
        *("›", "─", "×", "✓", "✗", "├ ", "└ ", "│ "),  # noqa: RUF001
    )


def counted(count: int, noun: str) -> str:
    """``1 span``, ``2,420 spans``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def percent(part: int, whole: int) -> str:
    """A share of a whole in percent; empty where there is nothing to share."""
    return tops.percent(part / whole) if whole else ""


@dataclass(frozen=True)
class Bar:
    """Times one after the other, from ``begin`` on, each in its owner's colour.

    What lies beyond the scale, which is ``size`` long, is cut off with a mark at the edge.
    """

    size: int
    begin: int
    parts: Sequence[tuple[Owner, int]]
    look: Look

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(10, options.max_width), options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        beyond = self.look.beyond
        if self.begin + sum(ns for _, ns in self.parts) <= self.size:
            beyond = ""
        within = width - len(beyond)
        # A share of all the cells, of which the mark takes one.
        scale = width / within / max(1, self.size)
        parts = [(None, self.begin * scale), *((owner, ns * scale) for owner, ns in self.parts)]
        yield from console.render(tops.Bar(parts, self.look), options.update(width=within))
        yield Segment(beyond)


@dataclass(frozen=True)
class Stroke:
    """What is nobody's in particular, from ``begin`` to ``end`` of a scale of ``size``."""

    size: int
    begin: int
    end: int
    look: Look

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(10, options.max_width), options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        scale = width / max(1, self.size)
        first = min(round(self.begin * scale), width - 1)
        last = min(max(round(self.end * scale), first + 1), width)
        yield Segment((" " * first + self.look.rule * (last - first)).ljust(width))


@dataclass(frozen=True)
class Axis:
    """The head of a column of bars: 0 on the left, the end of the scale on the right."""

    end: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(10, options.max_width), options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment("0" + self.end.rjust(options.max_width - 1), Style(dim=True))


@dataclass(frozen=True)
class Rule:
    """A thin line over the width that there is."""

    look: Look

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment(self.look.rule * options.max_width, Style.parse("dim"))
