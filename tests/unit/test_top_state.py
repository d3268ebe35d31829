# SPDX-License-Identifier: Apache-2.0
"""The view of `otelbpf top`: keys, intervals, and what is said of the agent."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from rich.console import Console
from snapshots import key, series, snapshot

from otelbpf.metrics.snapshot import Series, Snapshot
from otelbpf.top.rows import Sort
from otelbpf.top.state import State

MS = 1_000_000
DOWN, UP, DOWN_IN_ANOTHER_MODE = b"\x1b[B", b"\x1b[A", b"\x1bOB"


def taken(*all_series: Series) -> Snapshot:
    return replace(snapshot(), series=all_series)


FIRST = series(key(route="/first"), [MS] * 9), series(key(route="/second"), [5 * MS] * 2)
LATER = series(key(route="/first"), [MS] * 10), series(key(route="/second"), [5 * MS] * 25)


@dataclass
class Agent:
    """One that has begun, with these snapshots; the last one stays."""

    snapshots: list[Snapshot]

    attachments = SimpleNamespace(description=["tcx ingress on eth0"], absent=["nic: it is taken"])
    on_handlers = ()

    def snapshot(self) -> Snapshot:
        return self.snapshots.pop(0) if len(self.snapshots) > 1 else self.snapshots[0]


def state(*snapshots: Snapshot, keys: bool = True) -> State:
    return State(Agent([*snapshots]), "port 80", 1.0, Sort.RATE, keys=keys)  # type: ignore[arg-type]


def text_of(shown: State, height: int | None = 30, **others: object) -> str:
    console = Console(file=io.StringIO(), width=100, color_system=None, _environ={})
    console.print(shown.frame(console, height, **others))
    return console.file.getvalue()


def selected(shown: State) -> str:
    """Whose stages are shown; empty: nobody's."""
    lines = (line for line in text_of(shown).splitlines() if "requests so far" in line)
    return next(lines, "").partition(",")[0]


def test_the_first_frame_is_of_all_and_later_ones_of_the_last_interval() -> None:
    shown = state(taken(*FIRST), taken(*LATER))
    assert re.search(r"; all \d+\.\d s, by rate", text_of(shown))
    shown.take()
    assert re.search(r"; the last \d+\.\d s, by rate", text_of(shown))
    # 23 and 1 in the interval.
    assert text_of(shown).index("/second") < text_of(shown).index("/first")
    shown.press(b"a")
    assert re.search(r"; all \d+\.\d s", text_of(shown))
    shown.press(b"a")
    assert re.search(r"; the last \d+\.\d s", text_of(shown))


def test_a_snapshot_is_due_after_an_interval() -> None:
    shown = state(taken(*FIRST))
    assert shown.due_s == shown.began_s + 1.0
    shown.take()
    assert shown.due_s > shown.began_s + 1.0


@pytest.mark.parametrize("key", [b"q", b"Q", b"sq", b"\x1bq", b"\x1b[Bq"])
def test_q_ends_it(key: bytes) -> None:
    assert not state(taken(*FIRST)).press(key)


@pytest.mark.parametrize(
    "keys", [b"", b"x", b"\x1b", b"\x1b[5~", b"\x1b[1;5A", b"\xff\x00", b"\x1b["]
)
def test_other_keys_do_nothing(keys: bytes) -> None:
    shown = state(taken(*FIRST))
    before = text_of(shown)
    assert shown.press(keys)
    assert text_of(shown) == before


def test_s_cycles_what_rows_are_sorted_by() -> None:
    shown = state(taken(*FIRST))
    for sort in ("p99", "errors", "time", "rate"):
        shown.press(b"s")
        assert f", by {sort}" in text_of(shown)
    shown.press(b"ss")
    assert ", by errors" in text_of(shown)


def test_arrows_select_a_route_and_escape_none() -> None:
    shown = state(taken(*FIRST), taken(*LATER))
    assert selected(shown) == ""
    for keys, name in (
        (DOWN, "/first"), (UP, "/first"), (DOWN, "/second"), (DOWN_IN_ANOTHER_MODE, "/second"),
        (UP, "/first"), (DOWN * 5, "/second"),
    ):  # fmt: skip
        shown.press(keys)
        assert selected(shown) == f"GET {name}", keys
    # The route stays selected wherever it moves to.
    shown.take()
    assert selected(shown) == "GET /second"
    shown.press(b"\x1b")
    assert selected(shown) == ""


def test_arrows_without_routes() -> None:
    shown = state(taken())
    assert shown.press(DOWN)
    assert "no requests yet" in text_of(shown)


def test_what_is_attached_and_absent_is_said_where_the_screen_is_new() -> None:
    said = "absent from requests: nic: it is taken", "attached: tcx ingress on eth0"
    for keys in (True, False):
        text = text_of(state(taken(*FIRST), keys=keys))
        assert [line in text for line in said] == [keys, keys]
        assert (" q  quit" in text) is keys
    text = text_of(state(taken()), notes=[("a warning\x1b[2J", True)])
    assert "a warning%1B[2J" in text


def test_at_the_end_it_is_of_all_requests() -> None:
    shown = state(taken(*FIRST), taken(*FIRST), taken(*LATER))
    shown.take()
    shown.press(DOWN)
    console = Console(file=io.StringIO(), width=100, color_system=None, _environ={})
    console.print(shown.of_all(console))
    text = console.file.getvalue()
    assert re.search(r"; all \d+\.\d s", text)
    assert "requests so far" not in text and "quit" not in text
    # Now 25 to 10.
    assert text.index("/second") < text.index("/first")


def test_others_pay_nothing_for_it() -> None:
    """`otelbpf run` imports none of it."""
    code = (
        "import sys, otelbpf.cli, otelbpf.agent\n"
        "sys.exit(str([m for m in sys.modules if m.startswith(('rich', 'otelbpf.top'))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
