# SPDX-License-Identifier: Apache-2.0
"""recording -> the few requests that are shown one by one, with what happened below each."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from otelbpf.errors import UsageError
from otelbpf.report.otlp_json import Span, lines_at
from otelbpf.report.recording import Recording

#: Requests shown of each route, the slowest.
SLOWEST = 20
#: Failed requests shown of all routes together, the latest.
FAILED = 500
#: Spans shown below one request, and below all of them.
BELOW = 50
BELOW_ALL = 5_000


@dataclass(frozen=True)
class Below:
    """A span below a request's in its trace.

    Attributes:
        depth: 1 for a child.
        request: its number in the recording; None: it is not otelbpf's.
    """

    depth: int
    span: Span
    request: int | None


@dataclass(frozen=True)
class Selection:
    """What is shown.

    Attributes:
        slowest: of each route, by its number, the slowest requests, the slowest first.
        failed: of each route that has some, the latest failed requests, the latest first.
        spans: of every request above and of every request below one of them.
        below: of each of them, in the order of the tree: parents first, by start.
        below_left_out: how many spans were too many.
    """

    slowest: tuple[tuple[int, ...], ...]
    failed: tuple[tuple[int, ...], ...]
    spans: dict[int, Span]
    below: dict[int, tuple[Below, ...]]
    below_left_out: int


def select(recording: Recording, route: np.ndarray, routes: int) -> Selection:
    """Chooses, and reads the chosen ones' lines again.

    Args:
        route: (n,) the route of each request, from 0 to `routes` - 1.
    Raises:
        UsageError: a file was changed since.
    """
    requests = recording.requests
    by_duration = np.lexsort((requests.span, -requests.total_ns))
    slowest = _first_of_each(by_duration, route, routes, SLOWEST)
    by_time = np.lexsort((requests.span, -requests.start_unix_ns))
    latest = by_time[requests.failed[by_time]][:FAILED]
    failed = _first_of_each(latest, route, routes, FAILED)
    chosen = list(dict.fromkeys(itertools.chain(*slowest, *failed)))

    tree = _Tree(recording)
    links, left_out = tree.below(chosen)
    found = (child for of_request in links.values() for _, child in of_request)
    spans = tree.read_again({*chosen, *found})
    shown = {node: span for node, span in spans.items() if tree.is_request(node)}
    for request in shown.keys() - links.keys():  # they are below another one
        links[request] = [link for link in tree.descend(request, BELOW)[0] if link.child in spans]
    below = {request: _in_order(request, links[request], spans, tree) for request in shown}
    return Selection(slowest, failed, shown, below, left_out)


def _first_of_each(
    order: np.ndarray, route: np.ndarray, routes: int, most: int
) -> tuple[tuple[int, ...], ...]:
    """The first requests of each route in this order."""
    grouped = order[np.argsort(route[order], kind="stable")]
    bounds = np.searchsorted(route[grouped], np.arange(routes + 1))
    return tuple(
        tuple(grouped[first : min(last, first + most)].tolist())
        for first, last in itertools.pairwise(bounds.tolist())
    )


class _Link(NamedTuple):
    parent: int
    child: int


class _Tree:
    """Requests and others' spans as nodes: request i is node i, other j is node n + j."""

    def __init__(self, recording: Recording) -> None:
        requests, others = recording.requests, recording.others
        self._recording = recording
        self._requests = len(requests)
        self._trace = np.concatenate((requests.trace, others.trace))
        self._span = np.concatenate((requests.span, others.span))
        self._line = np.concatenate((requests.line, others.line))
        parent = np.concatenate((requests.parent, others.parent))
        self._by_parent = np.argsort(parent, kind="stable")
        self._parents = parent[self._by_parent]

    def children(self, node: int) -> list[int]:
        """Of the same trace; a client can write any id into its `traceparent`."""
        span = self._span[node]
        first = np.searchsorted(self._parents, span, side="left")
        last = np.searchsorted(self._parents, span, side="right")
        found = self._by_parent[first:last]
        children: list[int] = found[self._trace[found] == self._trace[node]].tolist()
        return children

    def descend(self, root: int, most: int) -> tuple[list[_Link], int]:
        """(the links to up to `most` nodes below, the upper ones first; how many are left out)."""
        links: list[_Link] = []
        seen, level, left_out = {int(self._span[root])}, [root], 0
        while level:
            found = []
            for parent in level:
                for child in self.children(parent):
                    if int(self._span[child]) not in seen:
                        seen.add(int(self._span[child]))
                        found.append(_Link(parent, child))
            room = most - len(links)
            links += found[:room]
            left_out += len(found[room:])
            level = [link.child for link in found[:room]]
        return links, left_out

    def below(self, roots: Sequence[int]) -> tuple[dict[int, list[_Link]], int]:
        """What is below each of these, as far as there is room; how many are left out."""
        links, room, left_out = {}, BELOW_ALL, 0
        for root in roots:
            links[root], too_many = self.descend(root, min(BELOW, room))
            room -= len(links[root])
            left_out += too_many
        return links, left_out

    def read_again(self, nodes: set[int]) -> dict[int, Span]:
        """The whole span of each node."""
        wanted: dict[tuple[int, int], list[int]] = defaultdict(list)
        for node in nodes:
            wanted[int(self._trace[node]), int(self._span[node])].append(node)
        offsets: dict[int, set[int]] = defaultdict(set)
        for number in {int(self._line[node]) for node in nodes}:
            place = self._recording.places[number]
            offsets[place.file].add(place.offset)
        spans: dict[int, Span] = {}
        for file, of_file in sorted(offsets.items()):
            for line in lines_at(self._recording.paths[file], sorted(of_file)):
                for span in line.spans or ():
                    key = int(span.trace_id[16:], 16), int(span.span_id, 16)
                    for node in wanted.get(key, ()):
                        spans.setdefault(node, span)
        if len(spans) < len(nodes):
            raise UsageError(
                f"{' or '.join(map(str, self._recording.paths))} was changed while it was read: "
                "try again"
            )
        return spans

    def is_request(self, node: int) -> bool:
        """Is it otelbpf's span of a request?"""
        return node < self._requests


def _in_order(
    request: int, links: Sequence[_Link], spans: dict[int, Span], tree: _Tree
) -> tuple[Below, ...]:
    children: dict[int, list[int]] = defaultdict(list)
    for link in links:
        children[link.parent].append(link.child)

    def walk(node: int, depth: int) -> Iterator[Below]:
        for child in sorted(children[node], key=lambda each: spans[each].start_unix_ns):
            yield Below(depth, spans[child], child if tree.is_request(child) else None)
            yield from walk(child, depth + 1)

    return tuple(walk(request, 1))
