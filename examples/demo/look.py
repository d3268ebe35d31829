# SPDX-License-Identifier: Apache-2.0
"""How the report looks: glyphs, colours, units, and bars drawn to scale."""

from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.text import Text


@dataclass(frozen=True)
class Look:
    """The glyphs of one kind of terminal."""

    bar: str  # one whole cell
    bar_right: str  # the right half of a cell
    bar_left: str  # the left half
    beyond: str  # the bar goes on
    block: str  # a patch of colour
    rule: str
    arrow: str
    times: str
    micro: str
    yes: str
    no: str
    ellipsis: str
    branch: str  # to one of a tree's children
    last: str  # to the last of them
    trunk: str  # past what is below one of them, to the next


UNICODE = Look(
    *("━", "╺", "╸", "›", "■ ", "─", "→", "×", "µ", "✓", "✗", "…", "├ ", "└ ", "│ ")  # noqa: RUF001
)
ASCII = Look(*("#", "#", "#", ">", "", "-", "->", "x", "u", "ok", "!!", "...", "|-", "`-", "| "))


def look_of(console: Console) -> Look:
    """Glyphs that this console can show: plain ASCII when it is no terminal."""
    return UNICODE if console.is_terminal and console.encoding.startswith("utf") else ASCII


@dataclass(frozen=True)
class Owner:
    """Who had the request during a stage: a short name, until which stamp, a colour."""

    name: str
    until: str
    style: str


RECEIVE = Owner("receive", "until queued", "blue")
WAITING = Owner("waiting", "until read", "yellow")
APPLICATION = Owner("app", "until write", "green")
SEND = Owner("send", "until tc_out", "magenta")
PEER = Owner("peer", "until acked; of a call, until nic", "cyan")
OTHER = Owner("other", "a stamp that is not known here", "white")
OWNERS = (RECEIVE, WAITING, APPLICATION, SEND, PEER)

# A stage is the time until its second stamp: it belongs to whoever had to bring that about.
_OWNER_BY_STAMP = {
    **dict.fromkeys(
        ("hw", "nic", "nic_last", "tc", "tc_last", "tcp", "queued", "queued_last"), RECEIVE
    ),
    **dict.fromkeys(("woken", "running", "read", "read_last"), WAITING),
    **dict.fromkeys(("handler_start", "handler_end", "write", "write_last"), APPLICATION),
    **dict.fromkeys(("tc_out", "tc_out_last"), SEND),
    "acked": PEER,
}
# What was asked of others comes when they have it.
_OWNER_BY_STAMP_OF_A_CALL = {**_OWNER_BY_STAMP, **dict.fromkeys(("nic", "nic_last"), PEER)}


def owner_of(stage: str, call: bool = False) -> Owner:
    """Who had the request during a stage, by the name of its second stamp.

    Args:
        call: it is one that was asked of others, so that it arrives with the answer.
    """
    owners = _OWNER_BY_STAMP_OF_A_CALL if call else _OWNER_BY_STAMP
    return owners.get(stage.partition("_to_")[2], OTHER)


def stage_label(stage: str, look: Look) -> str:
    """``nic_to_tc`` as ``nic → tc``."""
    first, _, second = printable(stage, look).partition("_to_")
    return f"{first} {look.arrow} {second}" if second else first


def duration(ns: int, look: Look = UNICODE) -> str:
    """A duration with three digits and its unit, two wide so that columns line up."""
    if abs(ns) < 1000:
        return f"{ns} ns"
    number, unit = ns / 1000, f"{look.micro}s"
    for larger in ("ms", "s "):
        # From 999.5 on, a number without decimals would show as 1000.
        if abs(number) >= 999.5:
            number, unit = number / 1000, larger
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{digits}f} {unit}"


def printable(text: str, look: Look) -> str:
    """Text that came over the network, without what would steer a terminal."""
    plain = look is ASCII
    return "".join(c if c.isprintable() and (c.isascii() or not plain) else "?" for c in text)


def shortened(text: str, width: int, look: Look) -> str:
    """The text, or as much of its beginning as ``width`` cells hold."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - len(look.ellipsis)) + look.ellipsis


def counted(count: int, noun: str) -> str:
    """``1 span``, ``2,420 spans``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def percent(part: int, whole: int) -> str:
    """A share in percent; a small one that is not none is ``<0.1%``."""
    if whole == 0:
        return ""
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "<0.1%"
    return f"{share:.0f}%" if share >= 99.95 else f"{share:.1f}%"


@dataclass(frozen=True)
class Bar:
    """From ``begin`` to ``end`` of a scale of ``size``, over the width that there is.

    It is drawn to half a cell, and never as nothing. What lies beyond the scale is cut off,
    with a mark at the edge.
    """

    size: int
    begin: int
    end: int
    style: str
    look: Look

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(10, options.max_width), options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        first, last = half_cells(self.size, self.begin, self.end, width)
        text = " " * (first // 2)
        text += self.look.bar_right * (first % 2)
        text += self.look.bar * (last // 2 - (first + 1) // 2)
        text += self.look.bar_left * (last % 2)
        if self.end > self.size:
            text = text.ljust(width)[: width - 1] + self.look.beyond
        yield Segment(text.ljust(width), Style.parse(self.style))


def half_cells(size: int, begin: int, end: int, width: int) -> tuple[int, int]:
    """Where a bar begins and ends on a row of ``width`` cells, counted in half cells.

    It is inside the row and at least one half cell long.
    """
    if size <= 0:
        return 0, 1
    halves = 2 * width
    first = min(round(halves * begin / size), halves - 1)
    last = min(max(round(halves * end / size), first + 1), halves)
    return first, last


@dataclass(frozen=True)
class Axis:
    """The head of a column of bars: 0 on the left, the end of the scale on the right."""

    end: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(10, options.max_width), options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("0" + self.end.rjust(options.max_width - 1), style="dim", no_wrap=True)


@dataclass(frozen=True)
class Rule:
    """A thin line over the width that there is."""

    look: Look

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment(self.look.rule * options.max_width, Style.parse("dim"))
