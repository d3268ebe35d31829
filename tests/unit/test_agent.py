# SPDX-License-Identifier: Apache-2.0
"""When the agent takes requests out of the ring, and when it leaves them there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from samples import record

from otelbpf.agent import agent as agent_module
from otelbpf.agent.agent import Agent
from otelbpf.agent.config import Config
from otelbpf.kernel.limits import Limits


class Reader:
    """A ring."""

    def __init__(self, _programs: object) -> None:
        self.waiting: list[np.ndarray] = []
        self.shown = 0

    @property
    def pending(self) -> int:
        return len(self.waiting)

    def come(self, count: int, pid: int) -> None:
        self.waiting += [record(pid=pid)] * count

    def peek(self) -> np.ndarray:
        new = self.waiting[self.shown :]
        self.shown = len(self.waiting)
        return np.concatenate([record()[:0], *new])

    def read(self, limit: int) -> np.ndarray:
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        self.shown = max(0, self.shown - len(taken))
        return np.concatenate([record()[:0], *taken])


class Pipeline:
    def __init__(self) -> None:
        self.met: list[int] = []
        self.taken: list[int] = []
        self.sender = SimpleNamespace(room=lambda: 10_000)

    def meet(self, records: np.ndarray) -> None:
        self.met += records["pid"].tolist()

    def take(self, records: np.ndarray) -> None:
        self.taken.append(len(records))


class Rest:
    """Whatever is asked of it, it does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: None


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    for name, stand_in in {"RingReader": Reader, "Sweeper": Rest, "ThreadContexts": Rest}.items():
        monkeypatch.setattr(agent_module, name, stand_in)
    config = Config((), (8080,), limits=Limits())
    made = Agent(Rest(), Pipeline(), None, None, config)  # type: ignore[arg-type]
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


def test_a_few_are_met_at_once_and_taken_later(agent: Agent) -> None:
    """Their processes may be gone by then."""
    reader(agent).come(2, pid=2)
    assert agent._look_at_ring(100.25) == 2
    assert agent._look_at_ring(100.5) == 0
    reader(agent).come(1, pid=3)
    assert agent._look_at_ring(100.75) == 1
    assert pipeline(agent).met == [2, 2, 3]
    assert pipeline(agent).taken == [1]
    assert agent._look_at_ring(101.0) == 3
    assert pipeline(agent).taken == [1, 3]


def test_many_are_taken_at_once(agent: Agent) -> None:
    reader(agent).come(1_023, pid=2)
    agent._look_at_ring(100.25)
    assert pipeline(agent).taken == [1]
    reader(agent).come(1, pid=2)
    agent._look_at_ring(100.26)
    assert pipeline(agent).taken == [1, 1_024]


def test_none_are_left_at_the_end(agent: Agent) -> None:
    reader(agent).come(2, pid=2)
    agent._look_at_ring(100.25)
    agent._read_all(room_by=0.0)
    assert pipeline(agent).taken == [1, 2]
    assert reader(agent).pending == 0
