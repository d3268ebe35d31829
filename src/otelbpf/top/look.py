# SPDX-License-Identifier: Apache-2.0
"""How `otelbpf top` looks: glyphs, colours, units, and bars drawn to scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from otelbpf.ledger.stamps import Owner, ends_of

COLOURS = {
    Owner.RECEIVE: "#3b97d6",
    Owner.WAITING: "#eeb033",
    Owner.APPLICATION: "#1fb58a",
    Owner.SEND: "#d988b6",
    Owner.PEER: "#8fd0f6",
    Owner.UNKNOWN: "#8b929a",
}
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))
# By how many eighths of the cell they fill, from the left.
_BLOCKS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Look:
    """What a terminal can show.

    Attributes:
        coloured: bars are blocks of colour; else of letters, each its owner's first one.
    """

    coloured: bool
    arrow: str
    micro: str
    ellipsis: str
    none: str
    up_down: str

    def cell(self, owner: Owner) -> tuple[str, str]:
        """What a whole cell that is an owner's has in it, and in which style."""
        # Not a block: fonts leave gaps between them.
        return (" ", f"on {COLOURS[owner]}") if self.coloured else (owner[0], "")


def look_of(console: Console) -> Look:
    """What this console can show."""
    coloured = console.is_terminal and console.color_system is not None and not console.no_color
    if console.encoding.lower().startswith("utf"):
        return Look(coloured, "→", "µ", "…", "–", "↑↓")  # noqa: RUF001
    return Look(False, ">", "u", "~", "-", "Up Down")


def visible(text: str) -> str:
    """The text in printable ASCII; all else as a URL would have it, in `%` and hexadecimal."""
    return quote(text, safe=_PRINTABLE, errors="backslashreplace")


def shortened(text: str, width: int, look: Look) -> str:
    """An ASCII text that fits the width: of a longer one the middle is left out."""
    if len(text) <= width:
        return text
    tail = max(0, width - 1) // 2
    head = max(0, width - 1 - tail)
    return text[:head] + look.ellipsis + text[len(text) - tail :]


def duration(ns: float, look: Look) -> str:
    """A duration with three digits and its unit; nothing took no time at all."""
    if not ns:
        return look.none
    number, unit = ns, "ns"
    for larger in (f"{look.micro}s", "ms", "s"):
        # From 999.5 on, a number without decimals would show as 1000.
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    digits = 0 if unit == "ns" or number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{digits}f}{unit}"


def per_second(rate: float) -> str:
    """A rate in five characters or so."""
    if 0 < rate < 0.995:
        return f"{rate:.2f}"
    for number, unit in ((rate, ""), (rate / 1e3, "k")):
        if number < 99.95:
            return f"{number:.1f}{unit}"
        if number < 999.5:
            return f"{number:.0f}{unit}"
    return f"{rate / 1e6:.1f}M"


def percent(share: float) -> str:
    """A share in percent; a small one that is not none says so."""
    if not share:
        return "0%"
    if share < 0.001:
        return "<0.1%"
    return f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"


def stage_label(name: str, look: Look) -> str:
    """`nic_to_tc` as `nic→tc`."""
    first, second = ends_of(name)
    return f"{first}{look.arrow}{second}" if second != first else first


@dataclass(frozen=True)
class Cut:
    """A text that is cut in its middle where the column is narrower, its beginning in a style."""

    text: str
    look: Look
    begins: int = 0
    style: str = ""
    least: int = 8

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = min(len(self.text), options.max_width)
        return Measurement(min(self.least, width), width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = Text(shortened(self.text, options.max_width, self.look), no_wrap=True, end="")
        text.stylize(self.style, 0, self.begins)
        yield text


@dataclass(frozen=True)
class Bar:
    """Shares of a whole, side by side over the width that there is.

    Attributes:
        parts: owner and share; None: a gap. Drawn to an eighth of a cell.
    """

    parts: Sequence[tuple[Owner | None, float]]
    look: Look

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(6, options.max_width), options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        steps = 8 if self.look.coloured else 1
        size = width * steps
        owners: list[Owner | None] = []
        until = 0.0
        for owner, share in self.parts:
            until += share
            # What took any time at all is not drawn as nothing.
            end = max(round(until * size), len(owners) + (owner is not None))
            owners += [owner] * (min(end, size) - len(owners))
        owners += [None] * (size - len(owners))
        cells = (self._cell(owners[at : at + steps]) for at in range(0, size, steps))
        yield from Segment.simplify(cells)

    def _cell(self, owners: list[Owner | None]) -> Segment:
        """One cell: what it begins with, and what most of the rest is."""
        left = owners[0]
        rest = [owner for owner in owners if owner is not left]
        if not rest:
            text, style = self.look.cell(left) if left else (" ", "")
            return Segment(text, Style.parse(style))
        right = max(rest, key=rest.count)
        colour = None if right is None else COLOURS[right]
        block = _BLOCKS[owners.index(rest[0])]
        if left is None and owners[-1] is None:
            return Segment(_BLOCKS[owners.count(right)], Style(color=colour))
        if left is None:
            # Blocks grow from the left only, so this one is the gap.
            return Segment(block, Style(color=colour, reverse=True))
        return Segment(block, Style(color=COLOURS[left], bgcolor=colour))
