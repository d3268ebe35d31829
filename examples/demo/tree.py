# SPDX-License-Identifier: Apache-2.0
"""A trace as the lines of a tree: each span, below a kernel's its stages, then its children."""

from collections.abc import Iterator
from dataclasses import dataclass

from demo.ledgers import SCOPE
from demo.look import Look
from demo.traces import Node, Trace
from otelbpf.ledger.stamps import Owner
from otelbpf.top.look import stage_label, visible


@dataclass(frozen=True)
class Line:
    """One line of the tree.

    Attributes:
        guide: what draws the tree, before the label.
        is_span: it is a span, and no stage of one.
        begin_ns, end_ns: since the trace began; both None for what is not measured here.
        parts: whose the time in between is; empty where that is not known of a span.
    """

    guide: str
    label: str
    is_span: bool
    begin_ns: int | None = None
    end_ns: int | None = None
    parts: tuple[tuple[Owner, int], ...] = ()


def lines(trace: Trace, look: Look) -> Iterator[Line]:
    """The whole tree, from whoever called to the last stage."""
    for root in trace.roots:
        caller = root.span.parent_span_id
        if caller:
            yield Line("", f"caller: {caller}", is_span=True)
        yield from _below(root, look.last if caller else "", "  " if caller else "", trace, look)


def _below(node: Node, guide: str, onward: str, trace: Trace, look: Look) -> Iterator[Line]:
    """A span and all that is below it; `onward` is what stands before the latter."""
    begin = node.span.start_unix_ns - trace.start_unix_ns
    end = node.span.end_unix_ns - trace.start_unix_ns
    request = node.request
    tiles = request.tiles if request is not None else ()
    yield Line(guide, _label(node), True, begin, end, tiles)
    trunk = look.trunk if node.children else "  "
    for stage, tile in zip(node.stages, tiles, strict=True):
        yield Line(
            onward + trunk,
            stage_label(visible(stage.name), look),
            False,
            begin + stage.offset_ns,
            begin + stage.end_ns,
            (tile,),
        )
    for child in node.children:
        last = child is node.children[-1]
        yield from _below(
            child,
            onward + (look.last if last else look.branch),
            onward + ("  " if last else look.trunk),
            trace,
            look,
        )


def _label(node: Node) -> str:
    """Whose span it is, who told it, and what it says."""
    teller = "kernel" if node.span.scope == SCOPE else "application"
    return visible(f"{node.service}, {teller}: {node.span.kind.name} {node.span.name}")
