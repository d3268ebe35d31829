# SPDX-License-Identifier: Apache-2.0
"""rows -> what `otelbpf top` shows: one frame, which fits the terminal it is for.

Whatever clients have a say in is shown in printable ASCII, as a text that is never read as
markup: nothing that they send steers a terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table as Columns
from rich.text import Text

from otelbpf.kernel.records import Stamp
from otelbpf.ledger.stamps import Owner
from otelbpf.metrics.snapshot import Histogram
from otelbpf.top.look import (
    COLOURS,
    Bar,
    Cut,
    Look,
    duration,
    per_second,
    percent,
    shortened,
    stage_label,
    visible,
)
from otelbpf.top.rows import RouteKey, Row, Sort, Stage, Table

#: From this width on there is room for all columns; below the other for figures only.
WIDE = 120
NARROW = 72
_NAME = "otelbpf top"
_HEAD = "bold"
_QUIET = "dim"
_BAD = "bold red"
_SELECTED = "on #303a46"
# However many lines the stages of one could take.
_FEWEST_ROWS = 5
_ACKED = Stamp.ACKED.name.lower()
_AFTER_THE_END = "after the request's end"
# A gap, whose stages they are, and the columns' heads.
_STAGES_HEAD = 3


@dataclass(frozen=True)
class View:
    """What is to be shown, beside the table.

    Attributes:
        title: what is measured.
        over: which requests the table is of.
        selected: the row whose stages are shown; None: none.
        notes: lines about the agent, and whether they are bad news.
        keys: those that can be pressed are told.
    """

    title: str
    over: str
    sort: Sort
    selected: RouteKey | None = None
    notes: tuple[tuple[str, bool], ...] = ()
    keys: bool = False


def frame(table: Table, view: View, width: int, height: int | None, look: Look) -> Group:
    """Everything, in no more columns and lines than there are.

    Args:
        height: None: as many lines as it takes.
    """
    rows = table.sorted(view.sort)
    selected = next((i for i, row in enumerate(rows) if row.key == view.selected), None)
    head = [_title(view, width, look), _legend(width, look)]
    notes = [*_notes(table), *view.notes]
    keys = [_keys(view, width, look)] if view.keys else []
    stages = 0 if selected is None else _lines_of_stages(rows[selected])
    blank = 1
    if height is not None:
        # The columns' heads are a line, too, and there is one between the table and the foot.
        room = height - len(head) - 1 - len(table.totals) - 1 - len(keys)
        fewest = min(len(rows), _FEWEST_ROWS, room)
        notes = notes[: max(0, room - fewest)]
        room -= len(notes)
        stages = max(0, min(stages, room - fewest - _STAGES_HEAD))
        details = stages + _STAGES_HEAD if stages else 0
        rows, selected = _window(rows, selected, max(fewest, room - details))
        blank = 1 + max(0, room - details - len(rows))
    body: list[Text | Columns] = [_routes(table, rows, selected, width, look)]
    if selected is not None and stages:
        body += _stages(rows[selected], stages, width, look)
    foot = [_line(text, width, look, _BAD if bad else _QUIET) for text, bad in notes]
    return Group(*head, *body, *[Text("")] * blank, *foot, *keys)


def _window(
    rows: tuple[Row, ...], selected: int | None, most: int
) -> tuple[tuple[Row, ...], int | None]:
    """As many rows as fit, the selected one among them, and where that is."""
    if selected is None:
        return rows[:most], None
    first = max(0, min(selected - most // 2, len(rows) - most))
    return rows[first : first + most], selected - first


def _notes(table: Table) -> list[tuple[str, bool]]:
    """What became of all requests, and what the rows do not tell."""
    notes = [(str(table.sums), any(table.sums.lost.values()))]
    others = sum(row.ever for row in table.rows if row.key.overflow)
    if others:
        notes.append(
            (
                f"{others:,} requests so far are among others: `--series` is how many "
                "routes can be told apart, `--route` folds many into one",
                True,
            )
        )
    if not table.rows:
        notes.append(("no requests yet", False))
    return notes


def _line(text: str, width: int, look: Look, style: str = "") -> Text:
    """One line; what does not fit is cut off its end."""
    text = visible(text)
    return Text(
        text if len(text) <= width else text[: width - 1] + look.ellipsis, style, no_wrap=True
    )


def _title(view: View, width: int, look: Look) -> Text:
    line = _line(f"{_NAME}  {view.title}; {view.over}, by {view.sort}", width, look)
    line.stylize(_HEAD, 0, len(_NAME))
    return line


def _keys(view: View, width: int, look: Look) -> Text:
    line = Text(no_wrap=True)
    for key, meaning in (
        ("q", "quit"), ("s", f"sort, by {view.sort.next}"), ("a", "all so far, or the last"),
        (look.up_down, "stages of a route"), ("Esc", "no stages"),
    ):  # fmt: skip
        line.append(f" {key} ", "reverse").append(f" {meaning}  ")
    line.truncate(width)
    return line


def _legend(width: int, look: Look) -> Text:
    """Whose time has which colour, in as many words as there is room for."""
    long = [(owner, f"{owner.label}: {owner.about}") for owner in Owner]
    short = [(owner, owner.label) for owner in Owner]
    wide = sum(len(text) + 4 for _, text in long) <= width
    line = Text(no_wrap=True)
    for owner, text in long if wide else short:
        line.append(*look.cell(owner)).append(f" {text}  ", _QUIET)
    line.truncate(width)
    return line


# ---- the routes ----


def _quantile(q: float) -> Callable[[Row, Look], Text]:
    return lambda row, look: Text(duration(row.durations.quantile_ns(q), look))


def _errors(row: Row, look: Look) -> Text:
    if row.errors is None or not row.count:
        return Text(look.none)
    return Text(percent(row.error_share), _BAD if row.errors else "")


_FIGURES: dict[str, Callable[[Row, Look], Text]] = {
    "req/s": lambda row, look: Text(per_second(row.rate) if row.count else look.none),
    "err": _errors,
    "p50": _quantile(0.5),
    "p90": _quantile(0.9),
    "p99": _quantile(0.99),
    "max": _quantile(1.0),
}


def _columns(width: int) -> Columns:
    return Columns(
        box=None, padding=(0, 2 if width >= WIDE else 1, 0, 0), pad_edge=False, expand=True,
        header_style=_QUIET, width=width,
    )  # fmt: skip


def _routes(
    table: Table, rows: tuple[Row, ...], selected: int | None, width: int, look: Look
) -> Columns:
    wide, narrow = width >= WIDE, width < NARROW
    # What all have in common needs no column.
    services = len({(row.key.service, row.key.upstream) for row in table.rows}) > 1 and not narrow
    figures = [
        name for name in _FIGURES
        if wide or name in ("req/s", "err", "p99") or (name == "p50" and not services)
    ]  # fmt: skip
    longest = 28 if wide else 20
    columns = _columns(width)
    some = f" ({len(rows)} of {len(table.rows)})" if len(rows) < len(table.rows) else ""
    columns.add_column(f"route{some}", ratio=3, no_wrap=True)
    if services:
        columns.add_column("service", max_width=28 if wide else 10, no_wrap=True)
    for name in figures:
        columns.add_column(name, justify="right", min_width=5, no_wrap=True)
    if not narrow:
        columns.add_column(
            "whose the time is" if wide else "time",
            ratio=2 if wide else None,
            min_width=20 if wide else 10,
            max_width=None if wide else 10,
            no_wrap=True,
        )
        columns.add_column(
            "most of it in, mean" if wide else "most in, mean", width=longest, no_wrap=True
        )

    def add(row: Row, route: Cut | Text, style: str) -> None:
        service = [Cut(_service(row.key, wide, look), look)] if services else []
        cells = [_FIGURES[name](row, look) for name in figures]
        shares = Bar(tuple(row.shares().items()), look)
        time: list[Bar | Text] = [] if narrow else [shares, _longest(row, longest, look)]
        columns.add_row(route, *service, *cells, *time, style=style)

    for at, row in enumerate(rows):
        is_selected = at == selected
        style = _SELECTED if is_selected else "" if row.count else _QUIET
        add(row, _route(row.key, look, is_selected), style)
    for total in table.totals:
        which = f"all of {total.key.kind}s" if len(table.totals) > 1 else "all"
        add(total, Text(which), _HEAD)
    return columns


def _route(key: RouteKey, look: Look, is_selected: bool = False) -> Cut:
    # A terminal without colours may not show which row is.
    pointer = "> " if is_selected and not look.coloured else ""
    method, route = _method_and_route(key)
    return Cut(f"{pointer}{method} {route}", look, len(pointer) + len(method), _HEAD)


def _method_and_route(key: RouteKey) -> tuple[str, str]:
    if key.overflow:
        return "others,", f"of {key.kind}s"
    return visible(key.method), visible(key.route)


def _service(key: RouteKey, wide: bool, look: Look) -> str:
    service, upstream = visible(key.service), visible(key.upstream)
    if not upstream:
        return service
    return f"{service} {look.arrow} {upstream}" if wide else f"{look.arrow}{upstream}"


def _longest(row: Row, width: int, look: Look) -> Text:
    stage = row.longest
    if stage is None:
        return Text("")
    mean = duration(stage.durations.mean_ns, look)
    label = shortened(stage_label(stage.name, look), width - len(mean) - 1, look)
    return Text.assemble((label, COLOURS[stage.owner]), f" {mean}")


# ---- the stages of one of them ----


def _lines_of_stages(row: Row) -> int:
    """How many there are to show; the last one may be what comes after the requests' end."""
    return len(row.stages) + (row.acked.count > 0)


def _stages(row: Row, most: int, width: int, look: Look) -> list[Text | Columns]:
    """The way of a route's requests, as a waterfall of the shares of its stages."""
    is_acked = row.acked.count > 0 and most > 1
    shown = _largest(row.stages, most - is_acked)
    some = f", {len(shown)} of {len(row.stages)} stages" if len(shown) < len(row.stages) else ""
    name = " ".join(_method_and_route(row.key))
    of = f", {row.key.kind} {_service(row.key, True, look)}, {row.ever:,} requests so far{some}"
    title = Text(shortened(name, max(12, width - len(of)), look), _HEAD, no_wrap=True)
    title.append(of, _QUIET).truncate(width)

    columns = _columns(width)
    columns.add_column("stage", no_wrap=True)
    for head in ("req/s", "mean", "p99", "share"):
        columns.add_column(head, justify="right", min_width=6, no_wrap=True)
    columns.add_column("", ratio=1, no_wrap=True)

    def add(label: str, style: str, durations: Histogram, *share: str | Bar | Text) -> None:
        columns.add_row(
            Text(label, style),
            per_second(row.rate_of(durations)),
            duration(durations.mean_ns, look),
            duration(durations.quantile_ns(0.99), look),
            *share,
        )

    before = 0.0
    for stage in row.stages:
        if stage in shown:
            bar = Bar(((None, before), (stage.owner, stage.share)), look)
            label = stage_label(stage.name, look)
            add(label, COLOURS[stage.owner], stage.durations, percent(stage.share), bar)
        before += stage.share
    if is_acked:
        label = f"end{look.arrow}{_ACKED}"
        add(label, COLOURS[Owner.PEER], row.acked, look.none, Text(_AFTER_THE_END, _QUIET))
    return [Text(""), title, columns]


def _largest(stages: tuple[Stage, ...], most: int) -> tuple[Stage, ...]:
    by_share = sorted(stages, key=lambda stage: stage.share, reverse=True)[:most]
    return tuple(stage for stage in stages if stage in by_share)
