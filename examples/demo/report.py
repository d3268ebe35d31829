# SPDX-License-Identifier: Apache-2.0
"""The demo's report on a terminal: overview, waterfalls, one request's whole trace, sums."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from demo.check import Sums
from demo.findings import Export, Findings
from demo.ledgers import Figures, Request, Route, quantile, routes
from demo.links import broken_links
from demo.look import Axis, Bar, Look, Rule, Stroke, counted, look_of, percent
from demo.traces import Part, Trace, example
from demo.tree import Line, lines
from otelbpf.ledger.stamps import Owner
from otelbpf.top.look import COLOURS, duration, shortened, stage_label, visible

# What is left at 80 columns: beside the times, beside a few statuses, beside a time and a bar.
ROUTE_WIDTH = 25
HEADING_WIDTH = 40
TREE_WIDTH = 52
# None of the demo's requests is cut short, which some of the time may then be nobody's of.
OWNERS = tuple(owner for owner in Owner if owner is not Owner.UNKNOWN)
AFTER_THE_END = "after the request's end"

Fact = tuple[str, str | Text]  # its name and what it is


def render(console: Console, findings: Findings) -> None:
    """Print the report."""
    look = look_of(console)
    requests = findings.decoded.at_gateway
    names = {stage.name for request in requests for stage in request.stages}
    labels = [stage_label(visible(name), look) for name in names]
    writer = _Writer(look, max(map(len, labels), default=0))
    by_route = routes(requests)
    sections: list[RenderableType] = [writer.title(findings)]
    if by_route:
        sections.append(writer.overview(by_route, requests))
        sections.extend(writer.route(route) for route in by_route)
        sections.append(writer.slowest(max(requests, key=lambda request: request.total_ns)))
    shown = example(findings.traces)
    if shown is not None:
        sections.append(writer.trace(shown))
    sections.append(writer.accounts(findings))
    sections.append(writer.verdict(findings))
    for section in sections:
        console.print(Padding(section, (0, 0, 1, 1)))


@dataclass(frozen=True)
class _Writer:
    look: Look
    stage_width: int  # of the longest stage's name: all waterfalls begin at one column

    def title(self, findings: Findings) -> RenderableType:
        name = Text("otelbpf demo", style="bold")
        load = findings.load
        if load is None:
            return name
        facts = (
            f"{counted(load.completed, 'request')} in {load.seconds:.2f} s"
            f" on {counted(load.connections, 'connection')}: {load.over_ipv6:,} over IPv6,"
            f" {len(load.traceparents):,} with a traceparent"
        )
        return Group(name, Text(facts, style="dim"))

    def overview(self, by_route: Sequence[Route], requests: Sequence[Request]) -> RenderableType:
        """One line a route: whose time it was."""
        table = self._table("route")
        table.padding = (0, 1, 0, 0)
        for owner in OWNERS:
            # not dim: the header of the others is, and would dim the colour
            table.add_column(
                Text(owner, style=f"not dim {COLOURS[owner]}"), justify="right", no_wrap=True
            )
        table.add_column("total", justify="right", no_wrap=True)
        for route in by_route:
            spent: list[Counter[Owner]] = []
            for request in requests:
                if (request.method, request.path) == (route.method, route.path):
                    spent.append(Counter())
                    for owner, ns in request.tiles:
                        spent[-1][owner] += ns
            table.add_row(
                Text(self._name(route, ROUTE_WIDTH)),
                *(self._time(quantile([one[owner] for one in spent], 50)) for owner in OWNERS),
                self._time(route.total.median_ns, "bold"),
            )
        heading = self._heading("Whose time it was, by medians")
        return Group(heading, table, Text(), *self._legend())

    def route(self, route: Route) -> RenderableType:
        """The route's waterfall, by medians."""
        # A stage that few requests had, slow ones often, does not stretch the scale of all.
        usual = [stage for stage in route.stages if 2 * stage.figures.count >= route.total.count]
        ends = [stage.offset_ns + stage.figures.median_ns for stage in usual]
        size = max([route.total.median_ns, *ends])
        table = self._table("stage", "count", "median", "p99")
        self._add_bars(table, size)
        for stage in route.stages:
            tile = (stage.owner, stage.figures.median_ns)
            bar = Bar(size, stage.offset_ns, [tile], self.look)
            table.add_row(self._stage(stage.name), *self._figures(stage.figures), bar)
        table.add_row(
            Text("the whole request", style="bold"),
            *self._figures(route.total, "bold"),
            Stroke(size, 0, route.total.median_ns, self.look),
        )
        if route.acked is not None:
            table.add_row(
                self._stage("end_to_acked"),
                *self._figures(route.acked),
                Text(AFTER_THE_END, "dim", no_wrap=True),
            )
        heading = self._heading(self._name(route, HEADING_WIDTH), self._statuses(route))
        return Group(heading, table)

    def slowest(self, request: Request) -> RenderableType:
        """The slowest request's own waterfall, and whether its stages add up."""
        facts = self._facts(
            ("request", self._asked(request)),
            ("trace", request.trace_id),
            ("span", f"{request.span_id}, {self._parent(request)}"),
            ("client", self._client(request)),
            ("ledger", self._ledger(request)),
        )
        table = self._table("stage", "starts at", "takes", "share")
        self._add_bars(table, request.total_ns)
        for stage, tile in zip(request.stages, request.tiles, strict=True):
            table.add_row(
                self._stage(stage.name),
                self._time(stage.offset_ns, "dim"),
                self._time(stage.duration_ns),
                Text(percent(stage.duration_ns, request.total_ns), style="dim"),
                Bar(request.total_ns, stage.offset_ns, [tile], self.look),
            )
        if request.acked_ns:
            table.add_row(
                self._stage("end_to_acked"),
                self._time(request.total_ns, "dim"),
                self._time(request.acked_ns),
                "",
                Text(AFTER_THE_END, "dim", no_wrap=True),
            )
        return Group(
            self._heading("The slowest request", self._time(request.total_ns)),
            facts,
            Text(),
            table,
            Text(),
            self._sum(request),
        )

    def trace(self, trace: Trace) -> RenderableType:
        """One request's whole trace as a tree: the kernel's spans and the application's."""
        asked = [
            ("request", self._asked(node.request))
            for node in trace.of(Part.GATEWAY)
            if node.request is not None
        ]
        table = self._table("span", "takes")
        self._add_bars(table, trace.total_ns)
        for line in lines(trace, self.look):
            table.add_row(*self._branch(line, trace.total_ns))
        return Group(
            self._heading("One request's whole trace", self._time(trace.total_ns)),
            self._facts(*asked, ("trace", trace.trace_id)),
            Text(),
            table,
            Text(),
            *self._legend(),
        )

    def _branch(self, line: Line, size: int) -> Iterator[RenderableType]:
        style = "bold" if line.is_span else ""
        label = shortened(line.label, TREE_WIDTH - len(line.guide), self.look)
        yield Text.assemble((line.guide, "dim"), (label, style))
        if line.begin_ns is not None and line.end_ns is not None:
            yield self._time(line.end_ns - line.begin_ns, style)
            if line.parts:
                yield Bar(size, line.begin_ns, line.parts, self.look)
            else:
                yield Stroke(size, line.begin_ns, line.end_ns, self.look)

    def accounts(self, findings: Findings) -> RenderableType:
        """The ledger's sums, and where the OTLP went."""
        return Group(
            self._heading("Ledger"),
            self._facts(*self._sums(findings.sums), *self._ledgers(findings)),
            Text(),
            self._heading("OTLP"),
            self._facts(*self._export(findings.export, len(findings.decoded.requests))),
        )

    def _sums(self, sums: Sums) -> Iterator[Fact]:
        lost = sum(sums.lost.values())
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sums.lost.items() if count)
        total = f"{sums.exported:,} + {sums.sampled_out:,} + {lost:,} = {sums.accounted:,}"
        yield "seen", f"{sums.seen:,}"
        yield "exported", f"{sums.exported:,}"
        yield "sampled out", f"{sums.sampled_out:,}"
        yield "lost", f"{lost:,} ({reasons})" if reasons else f"{lost:,}"
        yield "sum", self._check(total, sums.accounted == sums.seen)

    def _ledgers(self, findings: Findings) -> Iterator[Fact]:
        decoded = findings.decoded
        requests = decoded.requests
        at_gateway, calls, at_models = map(
            len, (decoded.at_gateway, decoded.calls, decoded.at_models)
        )
        yield (
            "requests",
            f"{at_gateway:,} to the gateway; {calls:,} from it to its models, "
            f"where {at_models:,} arrived",
        )
        tiled = sum(request.tiled for request in requests)
        text = f"{tiled:,} of {len(requests):,} requests add up to the nanosecond"
        yield "stages", self._check(text, tiled == len(requests))

        complete = sum(request.complete for request in requests)
        absent = Counter(name for request in requests for name in request.absent).most_common()
        names = ", ".join(f"{name} {count:,}" for name, count in absent)
        text = f"{complete:,} of {len(requests):,} complete"
        yield "ledgers", f"{text}; did not occur: {names}" if names else text

        sent = findings.load.traceparents if findings.load is not None else frozenset()
        if sent:
            joined = len(
                sent & {(each.trace_id, each.parent_span_id) for each in decoded.at_gateway}
            )
            text = f"{joined:,} of {len(sent):,} requests with a traceparent joined it"
            yield "callers", self._check(text, joined == len(sent))

        whole = sum(not any(broken_links(trace, sent)) for trace in findings.traces)
        text = f"{whole:,} of {len(findings.traces):,} are whole, each span below the right one"
        yield "traces", self._check(text, whole == len(findings.traces))

    def _export(self, export: Export, requests: int) -> Iterator[Fact]:
        stages = export.spans - export.application - requests
        yield "endpoint", export.endpoint
        yield "protocol", export.protocol
        yield "service", export.service
        yield (
            "received",
            f"{counted(export.spans, 'span')} in {counted(export.exports, 'export')}: "
            f"{counted(requests, 'request')}, {counted(stages, 'stage')}, "
            f"{export.application:,} of the application",
        )

    def verdict(self, findings: Findings) -> RenderableType:
        if findings.problems:
            mark, style = self.look.no, "bold red"
            text = visible("; ".join(findings.problems))
        else:
            mark, style = self.look.yes, "bold green"
            text = (
                f"every request is accounted for: {findings.sums.seen:,} of {findings.sums.seen:,}"
            )
        return Text.assemble((f"{mark} {text}", style))

    # Parts.

    def _heading(self, left: str, right: Text | None = None) -> RenderableType:
        grid = Table.grid(expand=True, padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        cells: list[RenderableType] = [Text(left, style="bold"), Rule(self.look)]
        if right is not None:
            grid.add_column(justify="right")
            cells.append(right)
        grid.add_row(*cells)
        return grid

    def _table(self, first: str, *numbers: str) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column(
            first, no_wrap=True, min_width=self.stage_width if first == "stage" else None
        )
        for number in numbers:
            table.add_column(number, justify="right", no_wrap=True)
        return table

    def _add_bars(self, table: Table, size: int) -> None:
        table.expand = True
        table.add_column(Axis(duration(size, self.look)), ratio=1)

    def _legend(self) -> Iterator[Text]:
        for owners in (OWNERS[:3], OWNERS[3:]):
            yield Text("   ").join(
                Text.assemble(self.look.cell(owner), (f" {owner.label}: {owner.about}", "dim"))
                for owner in owners
            )

    def _facts(self, *facts: Fact) -> Table:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True, min_width=11)
        table.add_column(overflow="fold")
        for name, fact in facts:
            table.add_row(name, Text(visible(fact)) if isinstance(fact, str) else fact)
        return table

    def _check(self, text: str, holds: bool) -> Text:
        mark = (self.look.yes, "green") if holds else (self.look.no, "bold red")
        return Text.assemble(text, " ", mark)

    def _time(self, ns: int, style: str = "") -> Text:
        return Text(duration(ns, self.look), style=style)

    def _figures(self, figures: Figures, style: str = "") -> tuple[str, Text, Text]:
        return (
            f"{figures.count:,}",
            self._time(figures.median_ns, style),
            self._time(figures.p99_ns, "dim"),
        )

    def _stage(self, name: str) -> str:
        return stage_label(visible(name), self.look)

    def _name(self, of: Route | Request, width: int) -> str:
        return shortened(visible(f"{of.method} {of.path}"), width, self.look)

    def _statuses(self, route: Route) -> Text:
        return Text("  ").join(
            Text.assemble(
                (str(status or "none"), _status_style(status)),
                (f" {self.look.times}{count:,}", "dim"),
            )
            for status, count in route.statuses.items()
        )

    def _asked(self, request: Request) -> str:
        return f"{request.method} {request.path}, status {request.status or 'unknown'}"

    def _parent(self, request: Request) -> str:
        if request.parent_span_id:
            return f"child of the caller's {request.parent_span_id}"
        return "the root of its trace"

    def _client(self, request: Request) -> str:
        names = ("client.address", "client.port", "network.protocol.version", "user_agent.original")
        address, port, version, agent = (str(request.attributes.get(name, "?")) for name in names)
        return f"{address} port {port}, HTTP/{version}, {agent}"

    def _ledger(self, request: Request) -> str:
        # A stamp that did not occur is not missing: who is running need not be woken.
        text = "complete" if request.complete else "not complete"
        return f"{text}, without {', '.join(request.absent)}" if request.absent else text

    def _sum(self, request: Request) -> Text:
        sign = "=" if request.stages_sum_ns == request.total_ns else "is not"
        stages = f"{len(request.stages)} stages: {request.stages_sum_ns:,} ns"
        return self._check(f"{stages} {sign} {request.total_ns:,} ns in all", request.tiled)


def _status_style(status: int | None) -> str:
    if status is None or status >= 500:
        return "red"
    return "yellow" if status >= 400 else "green"
