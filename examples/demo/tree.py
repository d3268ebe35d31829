# SPDX-License-Identifier: Apache-2.0
"""A trace as the lines of a tree: each span, below a kernel's its stages, then its children."""

from collections.abc import Iterator
from dataclasses import dataclass

from demo.ledgers import SCOPE
from demo.look import Look, owner_of, printable, stage_label
from demo.otlp import Kind
from demo.traces import Node, Trace

SPAN_STYLE = "bold"


@dataclass(frozen=True)
class Line:
    """One line of the tree.

    Attributes:
        guide: what draws the tree, before the label.
        begin_ns, end_ns: since the trace began; both None for what is not measured here.
        style: of its bar.
    """

    guide: str
    label: str
    begin_ns: int | None
    end_ns: int | None
    style: str

    @property
    def is_span(self) -> bool:
        """Whether it is a span, and no stage of one."""
        return self.style == SPAN_STYLE


def lines(trace: Trace, look: Look) -> Iterator[Line]:
    """The whole tree, from whoever called to the last stage."""
    for root in trace.roots:
        caller = root.span.parent_span_id
        if caller:
            yield Line("", f"caller: {caller}", None, None, SPAN_STYLE)
        yield from _below(root, look.last if caller else "", "  " if caller else "", trace, look)


def _below(node: Node, guide: str, onward: str, trace: Trace, look: Look) -> Iterator[Line]:
    """A span and all that is below it; `onward` is what stands before the latter."""
    begin = node.span.start_unix_ns - trace.start_unix_ns
    end = node.span.end_unix_ns - trace.start_unix_ns
    yield Line(guide, _label(node, look), begin, end, SPAN_STYLE)
    call = node.span.kind is Kind.CLIENT
    trunk = look.trunk if node.children else "  "
    for stage in node.stages:
        yield Line(
            onward + trunk,
            stage_label(stage.name, look),
            begin + stage.offset_ns,
            begin + stage.end_ns,
            owner_of(stage.name, call).style,
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


def _label(node: Node, look: Look) -> str:
    """Whose span it is, who told it, and what it says."""
    teller = "kernel" if node.span.scope == SCOPE else "application"
    return printable(f"{node.service}, {teller}: {node.span.kind.name} {node.span.name}", look)
