# SPDX-License-Identifier: Apache-2.0
"""Series that are used least make room, and no request is missing, misplaced or told twice."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter as Multiset
from collections.abc import Iterator

import numpy as np
import pytest
from samples import numbered
from series_kernel import MOST, WHOLE, Kernel, one
from snapshots import AGENT, START_UNIX_NS, sums

from otelbpf.host.resource import Resources
from otelbpf.kernel.records import RequestFlag
from otelbpf.ledger.request import KINDS, Kind
from otelbpf.metrics import series_places
from otelbpf.metrics.series import SeriesTable
from otelbpf.metrics.series_places import SILENT_LEAST_S, SILENT_S
from otelbpf.metrics.since import Receiver, since
from otelbpf.metrics.snapshot import Series, SeriesKey, Snapshot
from otelbpf.policy.routes import Routes
from otelbpf.policy.sampler import Slow

ROOM = MOST - len(KINDS)
SLOW_NS = 1 << 40
OVERFLOW = "overflow"


class Machine:
    """A kernel and an agent's table, and what was asked of them."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock
        self.kernel = Kernel()
        self.table = SeriesTable(
            self.kernel,
            Routes(),
            Resources("tested"),
            Slow(SLOW_NS),  # type: ignore[arg-type]
        )
        self.asked: Multiset[str] = Multiset()

    def ask(self, *letters: str, runs_on: bool = False, is_client: bool = False) -> None:
        """A request for the path of each letter, of as many bytes as the letter's number."""
        for letter in letters:
            flags = WHOLE | (RequestFlag.CLIENT if is_client else 0)
            record = one(
                f"/{letter}", ord(letter) << 40, request_bytes=ord(letter), flags=flags,
                peer_port=9000,
            )  # fmt: skip
            if not self.kernel.request(record, runs_on=runs_on):
                self.table.add(record)
            self.asked[letter] += 1

    def look(self) -> None:
        """The agent looks, as it does once a second."""
        self.clock[0] += 1
        self.table.refresh(self.clock[0])

    def wait(self, seconds: float) -> None:
        """Time in which nobody asks for anything."""
        self.look()
        self.clock[0] += seconds
        self.look()

    def series(self) -> dict[str, Series]:
        return {
            OVERFLOW if series.key.overflow else series.key.route.lstrip("/"): series
            for series in self.table.snapshot()
        }

    def counts(self) -> dict[str, int]:
        """Of all series, each of which has all bytes of just these requests."""
        found = self.series()
        for letter, series in found.items():
            if letter != OVERFLOW:
                assert series.request_bytes == series.duration.count * ord(letter)
            assert series.stages["nic_to_tc"].count == series.duration.count
        return {letter: series.duration.count for letter, series in found.items()}

    def assert_whole(self) -> None:
        """All requests that have ended are in the sums, once."""
        running = len(self.kernel.running)
        assert sum(self.counts().values()) == self.asked.total() - running
        if not running:
            in_all = sum(series.request_bytes for series in self.series().values())
            assert in_all == sum(ord(letter) * n for letter, n in self.asked.items())

    def snapshot(self) -> Snapshot:
        now = time.time_ns()
        return Snapshot(START_UNIX_NS, now, AGENT, self.table.snapshot(), (), sums())

    def close(self) -> None:
        self.table.close()
        self.kernel.close()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    clock = [1_000.0]
    monkeypatch.setattr(series_places.time, "monotonic", lambda: clock[0])
    machine = Machine(clock)
    yield machine
    machine.close()


def full(machine: Machine, waited_s: float = SILENT_S) -> None:
    """All places are taken, and nobody has asked for so long; then comes somebody else."""
    machine.ask(*"abcdef")
    machine.wait(waited_s)
    machine.ask("z")


def test_series_that_have_long_had_no_requests_make_room(machine: Machine) -> None:
    full(machine)
    assert machine.counts() == {**dict.fromkeys("abcdef", 1), OVERFLOW: 1}
    machine.look()
    assert machine.counts() == {OVERFLOW: 7}
    machine.ask(*"zzza")
    assert machine.counts() == {OVERFLOW: 7, "z": 3, "a": 1}
    machine.assert_whole()
    # The kernel adds to the series' own places again.
    assert machine.kernel.request(one("/z", ord("z") << 40, request_bytes=ord("z")))
    assert machine.counts() == {OVERFLOW: 7, "z": 4, "a": 1}


def test_nobody_makes_room_for_nobody(machine: Machine) -> None:
    machine.ask(*"abcdefz")
    for _ in range(3):
        machine.wait(10 * SILENT_S)
    assert machine.counts() == {**dict.fromkeys("abcdef", 1), OVERFLOW: 1}
    # What has gone to the overflow is no request that had no place.
    machine.ask("z")
    machine.look()
    machine.ask(*"uvwxyz")
    for _ in range(3):
        machine.wait(10 * SILENT_S)
    assert machine.counts() == {**dict.fromkeys("uvwxyz", 1), OVERFLOW: 8}


def test_the_least_recently_used_go_first_and_few_at_a_time(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series_places, "ENDING_MOST", 2)
    machine.ask(*"abcdef")
    machine.look()
    for letter in "cafe":
        machine.ask(letter)
        machine.look()
    machine.clock[0] += SILENT_S
    for newcomers, left in (("z", "cafe"), ("zyx", "fezy"), ("xwv", "zyxw")):
        machine.ask(*newcomers)
        machine.look()
        assert set(machine.counts()) == set(left) | {OVERFLOW}
    machine.assert_whole()


def test_what_only_the_kernel_sees_is_used(machine: Machine) -> None:
    machine.ask(*"abcdef")
    machine.wait(SILENT_S / 2)
    assert machine.kernel.request(one("/a", ord("a") << 40, request_bytes=ord("a")))
    machine.asked["a"] += 1
    machine.wait(SILENT_S / 2)
    machine.ask("z")
    machine.look()
    assert machine.counts() == {"a": 2, OVERFLOW: 6}
    machine.assert_whole()


def test_if_all_are_in_use_one_at_a_time_ends_and_none_that_was_used_just_now(
    machine: Machine,
) -> None:
    full(machine, SILENT_LEAST_S - 3)
    machine.look()
    assert len(machine.counts()) == ROOM + 1
    machine.ask(*"cdefz")
    machine.look()
    assert set(machine.counts()) == set("bcdef") | {OVERFLOW}
    machine.ask("z")
    machine.look()
    assert set(machine.counts()) == set("bcdefz") | {OVERFLOW}
    machine.ask("y")
    machine.look()
    assert set(machine.counts()) == set("cdefz") | {OVERFLOW}
    machine.ask("y")
    # Of more that are in use than there are places, those that have one keep it.
    for _ in range(100):
        machine.ask(*"abcdefzyx")
        machine.look()
        assert set(machine.counts()) == set("cdefzy") | {OVERFLOW}
    machine.assert_whole()


def test_who_scans_all_the_time_keeps_nobody_out(machine: Machine) -> None:
    """Each time a path of its own, and each as new as the one that comes again and again."""
    paths, chance = iter(range(0x4E00, 0x9000)), random.Random(1)
    for _ in range(200):
        asked = ["c", *(chr(next(paths)) for _ in range(10))]
        machine.ask(*chance.sample(asked, len(asked)))
        machine.look()
    found = machine.counts()
    # It has a place before long, and keeps it.
    assert found["c"] > 100
    assert len(found) <= MOST - 1
    machine.assert_whole()


def test_a_program_that_has_found_the_place_before(machine: Machine) -> None:
    """What it adds is its series', and so the overflow's; the next one there has nothing of it."""
    full(machine)
    machine.ask("a", runs_on=True)
    machine.assert_whole()
    machine.look()
    assert machine.kernel.running == []
    assert machine.counts() == {OVERFLOW: 8}
    machine.ask(*"uvwxyz")
    assert machine.counts() == {OVERFLOW: 8, **dict.fromkeys("uvwxyz", 1)}
    machine.assert_whole()


def test_requests_of_a_series_while_it_ends(machine: Machine) -> None:
    """The kernel does not know its key any more, and adds them to the overflow."""
    full(machine)
    late = one("/a", ord("a") << 40, request_bytes=ord("a"))
    were_added = []
    machine.kernel.running.append(lambda: were_added.append(machine.kernel.request(late)))
    machine.look()
    machine.asked["a"] += 1
    assert were_added == [True]
    assert machine.counts() == {OVERFLOW: 8}
    machine.assert_whole()


def test_all_keys_of_a_series_are_forgotten(machine: Machine) -> None:
    """Those, too, that were told so long ago that the agent has forgotten them."""
    for number in range(40):
        machine.table.add(one("/a", 1 + (number << 20), request_bytes=1))
    machine.ask(*"bcdef")
    assert len(machine.kernel.told) == 45
    machine.table._places._known.clear()
    machine.wait(SILENT_S)
    machine.ask("z")
    machine.look()
    assert machine.kernel.told == []


def test_what_the_agent_knows_to_have_no_place_gets_one(machine: Machine) -> None:
    """The kernel adds up no request that was cut short: they all come to the agent."""
    full(machine)
    cut_short = one(
        "/y", 7, request_bytes=ord("y"), flags=RequestFlag.REQUEST_RECEIVED | RequestFlag.PEER_RESET
    )
    for _ in range(2):
        machine.table.add(cut_short)
        machine.look()
    assert machine.counts() == {"y": 1, OVERFLOW: 8}


def test_a_series_that_begins_again(machine: Machine) -> None:
    """It is another one, of what came since the earlier one had ended."""
    full(machine)
    assert {series.since_unix_ns for series in machine.series().values()} == {0}
    before = time.time_ns()
    machine.look()
    machine.ask("a")
    assert before <= machine.series()["a"].since_unix_ns <= time.time_ns()
    assert machine.series()[OVERFLOW].since_unix_ns == 0


def test_exemplars_end_with_their_series(machine: Machine) -> None:
    machine.ask("a")
    record = one("/a", ord("a") << 40)
    machine.table.exemplify(dataclasses.replace(numbered(1), records=record))
    assert len(machine.series()["a"].exemplars) == 1
    full(machine)
    machine.look()
    machine.ask(*"uvwxyz")
    assert not any(series.exemplars for series in machine.series().values())


def test_clients_and_servers_have_overflows_of_their_own(machine: Machine) -> None:
    machine.ask(*"abc")
    machine.ask(*"def", is_client=True)
    machine.wait(SILENT_S)
    assert {int(place["in_use"]) for place in machine.kernel.overflow.values()} == {1}
    machine.ask("z", is_client=True)
    machine.look()
    overflows = {series.key.kind: series.duration.count for series in machine.table.snapshot()}
    assert overflows == {Kind.SERVER: 3, Kind.CLIENT: 4}
    assert {int(place["in_use"]) for place in machine.kernel.overflow.values()} == {0}


def test_the_overflow_knows_what_is_slow(machine: Machine) -> None:
    machine.ask(*"abcdef")
    for is_client, place in machine.kernel.overflow.items():
        row = Kernel.series_rows.rows_of(is_client).start
        assert (place["in_use"], place["row"], place["slow_ns"]) == (1, row, SLOW_NS)


def received(told: Snapshot, earlier: dict[tuple[SeriesKey, int], np.ndarray]) -> Multiset[int]:
    """What is new of cumulative sums: by bucket, of all series."""
    new = np.zeros(len(told.series[0].duration.counts), np.uint64)
    for series in told.series:
        before = earlier.get((series.key, series.since_unix_ns), np.uint64(0))
        assert (series.duration.counts >= before).all(), "a sum has become less"
        new += series.duration.counts - before
    earlier.clear()
    earlier |= {(s.key, s.since_unix_ns): s.duration.counts for s in told.series}
    return Multiset(dict(enumerate(new.tolist())))


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_each_request_is_told_once(machine: Machine, seed: int) -> None:
    """Cumulative or as deltas, to receivers that are told at any time."""
    chance = random.Random(seed)
    cumulative, deltas = Receiver(), Receiver()
    before: dict[tuple[SeriesKey, int], np.ndarray] = {}
    of_cumulative, of_deltas = 0, 0
    ended_once = False
    for _ in range(600):
        match chance.choice(("ask", "ask", "ask", "run on", "wait", "wait", "tell", "tell")):
            case "ask":
                machine.ask(*chance.choices("abcdefghijklmn", k=3))
            case "run on":
                machine.ask(chance.choice("abcdefghijklmn"), runs_on=True)
            case "wait":
                machine.clock[0] += chance.choice((0, 5, SILENT_LEAST_S, SILENT_S))
                machine.look()
            case "tell":
                now = machine.snapshot()
                told = cumulative.cumulative(now)
                of_all = sum(series.duration.count for series in now.series)
                if now.series:
                    of_cumulative += received(told, before).total()
                assert of_cumulative == of_all
                in_series = sum(series.duration.count for series in told.series)
                assert in_series + sum(told.ended.values()) == of_all
                ended_once |= any(told.ended.values())
                cumulative = cumulative.with_next(now)
                if chance.random() < 0.5:
                    recent = since(now, deltas.last)
                    of_deltas += sum(series.duration.count for series in recent.series)
                    assert of_deltas == of_all
                    deltas = deltas.with_next(now)
        machine.assert_whole()
    assert ended_once


# ---- another configuration ----


def test_another_time_is_told_to_all_series_at_once(machine: Machine) -> None:
    """With what they have added up; and to the overflow, once it is in use."""
    machine.ask(*"abc")
    told = {key["hash"]: at["row"] for key, at in machine.kernel.told}
    slow = Slow(7, (("/b", 5),))
    machine.table.become(machine.table._places._routes, slow, machine.clock[0])
    assert {key["hash"]: at["row"] for key, at in machine.kernel.told} == told
    assert sorted(int(at["slow_ns"]) for _, at in machine.kernel.told) == [5, 7, 7]
    machine.ask(*"abcdefz")
    assert machine.counts() == {**dict.fromkeys("abc", 2), **dict.fromkeys("def", 1), OVERFLOW: 1}
    machine.table.become(machine.table._places._routes, Slow(9), machine.clock[0])
    assert {int(at["slow_ns"]) for _, at in machine.kernel.told} == {9}
    assert {int(at["slow_ns"]) for at in machine.kernel.overflow.values()} == {9}
    # What has to be told a time by the agent itself, which has no place.
    assert machine.table.add(one("/y", ord("y") << 40, request_bytes=ord("y"))).tolist() == [True]
    machine.asked["y"] += 1
    machine.assert_whole()


def test_other_routes_begin_other_series_and_leave_what_there_is(machine: Machine) -> None:
    machine.ask(*"aab", runs_on=True)
    machine.ask("a", runs_on=True)
    machine.table.become(Routes(("/{any}",)), Slow(SLOW_NS), machine.clock[0])
    assert machine.kernel.told == [] and machine.kernel.running == []
    machine.ask(*"ab")
    found = {route: series.duration.count for route, series in machine.series().items()}
    assert found == {"a": 3, "b": 1, "{any}": 2}
    # The kernel adds to that one itself.
    machine.kernel.request(one("/b", ord("b") << 40, request_bytes=ord("b")))
    assert machine.series()["{any}"].duration.count == 3


def test_other_routes_where_all_places_are_taken(machine: Machine) -> None:
    """Series that are of the new routes, too, have their places again, and no others' requests."""
    machine.ask(*"abcdefz")
    slow = Slow(SLOW_NS + 1)
    machine.table.become(Routes(("/nothing",)), slow, machine.clock[0])
    assert not any(at["in_use"] for at in machine.kernel.overflow.values())
    machine.ask(*"abcdefz")
    assert machine.counts() == {**dict.fromkeys("abcdef", 2), OVERFLOW: 2}
    assert not machine.kernel.request(one("/z", ord("z") << 40, request_bytes=ord("z")))
    for _ in range(3):
        machine.look()
    # It adds the others' itself again, by the new time.
    overflows = machine.kernel.overflow.values()
    assert {(bool(at["in_use"]), int(at["slow_ns"])) for at in overflows} == {(True, SLOW_NS + 1)}
    machine.ask(*"abcdefz")
    assert machine.counts() == {**dict.fromkeys("abcdef", 3), OVERFLOW: 3}
    machine.assert_whole()
