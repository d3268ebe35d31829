# SPDX-License-Identifier: Apache-2.0
"""When the agent takes requests out of the ring, and when it leaves them there."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from samples import record

from otelbpf.agent import agent as agent_module
from otelbpf.agent.agent import Agent
from otelbpf.agent.config import Config
from otelbpf.export.sender import QueueLimits
from otelbpf.kernel.limits import Limits
from otelbpf.ledger.tally import Coverage, Gap


class Reader:
    """A ring."""

    def __init__(self, _programs: object, _forwarding: object) -> None:
        self.waiting: list[np.ndarray] = []
        self.submitted = self._peeked = 0

    @property
    def pending(self) -> int:
        return len(self.waiting)

    def come(self, count: int, pid: int) -> None:
        self.waiting += [record(pid=pid)] * count
        self.submitted += count

    def read(self, limit: int) -> np.ndarray:
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return np.concatenate([record()[:0], *taken])

    def peek(self) -> np.ndarray:
        new = min(self.submitted - self._peeked, self.pending)
        self._peeked = self.submitted
        return np.concatenate([record()[:0], *self.waiting[self.pending - new :]])


class Pipeline:
    def __init__(self) -> None:
        self.met: list[int] = []
        self.taken: list[int] = []
        self.sender = SimpleNamespace(room=lambda: 10_000, stop=lambda: None)
        self.tally = SimpleNamespace(lose=lambda *_: None)

    def meet(self, records: np.ndarray) -> None:
        self.met += records["pid"].tolist()

    def take(self, records: np.ndarray) -> None:
        self.taken.append(len(records))


class Rest:
    """Whatever is asked of it, it does nothing."""

    period_s = 5.0

    def __init__(self, *_: object) -> None:
        pass

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: None


def made_of(monkeypatch: pytest.MonkeyPatch, config: Config) -> Agent:
    for name, stand_in in {"RingReader": Reader, "Sweeper": Rest, "ThreadContexts": Rest}.items():
        monkeypatch.setattr(agent_module, name, stand_in)
    return Agent(Rest(), Pipeline(), None, None, config)  # type: ignore[arg-type]


@pytest.fixture
def agent(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Agent:
    limits = getattr(request, "param", Limits())
    made = made_of(monkeypatch, Config((), (8080,), limits=limits))
    reader(made).come(1, pid=1)
    assert made._look_at_ring(100.0) == 1
    return made


def reader(agent: Agent) -> Reader:
    return agent._reader  # type: ignore[return-value]


def pipeline(agent: Agent) -> Pipeline:
    return agent.pipeline  # type: ignore[return-value]


def test_what_comes_after_a_rest_is_taken_at_once(agent: Agent) -> None:
    assert pipeline(agent).taken == [1]
    assert pipeline(agent).met == []


def test_a_few_are_met_soon_and_taken_later(agent: Agent) -> None:
    """Their processes may be gone by then."""
    reader(agent).come(2, pid=2)
    assert agent._look_at_ring(100.25) == 2
    assert pipeline(agent).met == [2, 2]
    reader(agent).come(1, pid=3)
    assert agent._look_at_ring(100.5) == 1
    assert pipeline(agent).met == [2, 2]
    for at_s in (100.75, 104.75):
        assert agent._look_at_ring(at_s) == 0
        assert pipeline(agent).met == [2, 2, 3]
    assert pipeline(agent).taken == [1]
    assert agent._look_at_ring(105.0) == 3
    assert pipeline(agent).taken == [1, 3]
    assert pipeline(agent).met == [2, 2, 3]


def test_what_is_taken_needs_room(agent: Agent) -> None:
    pipeline(agent).sender.room = lambda: 700
    reader(agent).come(1_100, pid=2)
    assert agent._look_at_ring(100.5) == 1_100
    assert pipeline(agent).taken == [1, 700]
    assert reader(agent).pending == 400
    agent._look_at_ring(100.51)
    assert pipeline(agent).taken == [1, 700, 400]


@pytest.mark.parametrize(
    ("agent", "many"), [(Limits(), 1_024), (Limits(ring=64), 16)], indirect=["agent"]
)
def test_many_are_taken_at_once(agent: Agent, many: int) -> None:
    """In a small ring fewer are many."""
    reader(agent).come(many - 1, pid=2)
    agent._look_at_ring(100.25)
    assert pipeline(agent).taken == [1]
    reader(agent).come(1, pid=2)
    agent._look_at_ring(100.26)
    assert pipeline(agent).taken == [1, many]


def test_none_are_left_at_the_end(agent: Agent) -> None:
    reader(agent).come(2, pid=2)
    agent._look_at_ring(100.5)
    reader(agent).come(3, pid=2)
    agent.drain()
    assert pipeline(agent).taken == [1, 5]
    assert reader(agent).pending == 0


class Clock:
    """Stands in for the module `time`: it goes by only where the agent sleeps."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s

    def monotonic_ns(self) -> int:
        return int(self.now_s * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Course:
    """Of an agent's run: what it did when, and what was the matter meanwhile.

    Args:
        seconds: how long it runs.
    Attributes:
        looked_s, kept_house_s: since the start.
        gap: of an interface, as the lookout tells it.
    """

    def __init__(self, agent: Agent, clock: Clock, seconds: float) -> None:
        self._agent, self._clock = agent, clock
        self._begin_s, self._end_s = clock.now_s, clock.now_s + seconds
        self.looked_s: list[float] = []
        self.kept_house_s: list[float] = []
        self.gap: Gap | None = None
        self.request_at_s = float("inf")
        pipeline(agent).refresh = lambda: self.kept_house_s.append(self._passed_s())  # type: ignore[attr-defined]

    def _passed_s(self) -> float:
        return self._clock.now_s - self._begin_s

    def is_set(self) -> bool:
        if self._passed_s() >= self.request_at_s:
            self.request_at_s = float("inf")
            reader(self._agent).come(1, pid=1)
        return self._clock.now_s >= self._end_s

    def look(self, _now_s: float, *, is_quiet: bool) -> dict[str, Coverage]:
        self.looked_s.append(self._passed_s())
        return {"lo": Coverage(self.gap, {})}

    def run(self) -> None:
        self._agent.run(self, dict, self, Rest())  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(agent_module, "time", clock := Clock())
    return clock


def gaps(times_s: list[float], begin_s: float, end_s: float) -> set[float]:
    """How long it is from one to the next, as far as they are in between."""
    within = [at_s for at_s in times_s if begin_s <= at_s < end_s]
    return {round(after - before, 6) for before, after in itertools.pairwise(within)}


def test_without_requests_it_keeps_house_more_rarely(agent: Agent, clock: Clock) -> None:
    course = Course(agent, clock, 40.0)
    course.run()
    assert gaps(course.looked_s, 0.5, 40.0) == {1.0}
    assert gaps(course.kept_house_s, 0.0, 10.0) == {1.0}
    assert gaps(course.kept_house_s, 11.5, 40.0) == {5.0}


def test_the_first_request_makes_it_look_around(agent: Agent, clock: Clock) -> None:
    course = Course(agent, clock, 25.0)
    course.request_at_s = 20.3
    course.run()
    for times_s in (course.looked_s, course.kept_house_s):
        assert any(20.3 <= at_s < 20.8 for at_s in times_s)
    assert gaps(course.looked_s, 20.3, 25.0) == {1.0}
    assert gaps(course.kept_house_s, 20.3, 25.0) == {1.0}
    assert pipeline(agent).taken == [1, 1]


def test_while_something_is_not_measured_it_looks_each_turn(agent: Agent, clock: Clock) -> None:
    course = Course(agent, clock, 20.0)
    course.gap = Gap.GONE
    course.run()
    assert gaps(course.looked_s, 0.05, 20.0) == {0.25}


def test_a_full_queue_is_looked_at_now_and_then(agent: Agent, clock: Clock) -> None:
    """A slow collector must not keep a processor busy."""
    looks: list[float] = []
    pipeline(agent).sender.room = lambda: looks.append(clock.now_s) or 0
    reader(agent).come(5_000, pid=2)
    Course(agent, clock, 10.0).run()
    assert len(looks) > 1
    assert min(later - sooner for sooner, later in itertools.pairwise(looks)) >= 0.0099
    assert pipeline(agent).taken == [1]
    assert reader(agent).pending == 5_000


@pytest.mark.parametrize("agent", [Limits(ring=1_000)], indirect=True)
def test_three_quarters_of_the_ring_wait_for_room(agent: Agent) -> None:
    """What is beyond is taken all the same, to be added up."""
    pipeline(agent).sender.room = lambda: 0
    reader(agent).come(750, pid=2)
    assert agent._look_at_ring(101.0) is None
    reader(agent).come(20, pid=2)
    assert agent._look_at_ring(101.5) == 20
    agent._look_at_ring(103.0)
    assert pipeline(agent).taken == [1, 20]
    assert reader(agent).pending == 750


@pytest.mark.parametrize("agent", [Limits(ring=1_000)], indirect=True)
def test_as_many_as_came_say_when_it_looks_again(agent: Agent) -> None:
    """Not as few as there was room for: the ring would be full meanwhile."""
    pipeline(agent).sender.room = lambda: 5
    reader(agent).come(500, pid=2)
    assert agent._look_at_ring(101.0) == 500
    assert reader(agent).pending == 495


def test_who_wants_no_delay_has_less_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_of(monkeypatch, Config((), (8080,), queue=QueueLimits(delay_s=0.1)))
    for at_s in (100.0, 100.1, 100.2):
        reader(made).come(1, pid=1)
        made._look_at_ring(at_s)
    assert pipeline(made).taken == [1, 1, 1]
