# SPDX-License-Identifier: Apache-2.0
"""`otelbpf run` with all but the kernel: one request is read, exported, and then it stops.

As a program it reads lines of JSON, each a list of several environments' variables; it runs all of
them at once, and answers with a line: of each the exit code, and what it wrote to standard error.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import samples
import snapshots

from otelbpf.agent import agent, run
from otelbpf.cli import commands as cli
from otelbpf.kernel import needs
from otelbpf.kernel.loaders import Chosen, Loader
from otelbpf.kernel.records import Counter, RequestFlag

ARGUMENTS = ("otelbpf", "run", "--interface", "lo", "--port", "80")


class _Programs:
    def __init__(self, *_: object) -> None:
        pass

    def counts(self) -> dict[Counter, int]:
        return {**dict.fromkeys(Counter, 0), Counter.SEEN: 1}

    def close(self) -> None:
        pass


class _Sums:
    """In place of what adds up requests, and connections."""

    def __init__(self, *_: object) -> None:
        pass

    def snapshot(self) -> tuple[Any, ...]:
        return ()

    def add(self, records: np.ndarray) -> np.ndarray:
        return np.ones(len(records), bool)

    def exemplify(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


class _Series(_Sums):
    def snapshot(self) -> tuple[Any, ...]:
        return (snapshots.series(),)


class _Reader:
    """Reads one request, after which somebody stops the agent."""

    submitted = 1

    def __init__(self, *_: object) -> None:
        self.pending = 1

    def read(self, _limit: int) -> np.ndarray:
        self.pending = 0
        os.kill(os.getpid(), signal.SIGTERM)
        return samples.record(
            pid=os.getpid(), flags=samples.WHOLE | RequestFlag.KEPT | RequestFlag.IN_SERIES
        )

    def close(self) -> None:
        pass


class _Nothing:
    """Does whatever it is asked for, and nothing."""

    period_s = 5.0

    def __init__(self, *_: object) -> None:
        pass

    def __getattr__(self, _name: str) -> Any:
        return lambda *_arguments, **_others: None


class _Lookout(_Nothing):
    def look(self, _now_s: float, **_: bool) -> dict[str, Any]:
        return {}


class _Attachments:
    description, fallbacks, absent, unmeasured = ("nothing",), (), (), ()

    def missed(self) -> dict[str, int]:
        return {}


@contextlib.contextmanager
def _attached(*_: object) -> Iterator[_Attachments]:
    yield _Attachments()


def _take_the_kernel_away() -> None:
    needs.require = lambda *_, **__: []
    for name, stand_in in {
        "Programs": _Programs,
        "SeriesTable": _Series,
        "ConnectionSums": _Sums,
        "RingReader": _Reader,
        "Sweeper": _Nothing,
        "ThreadContexts": _Nothing,
        "Lookout": _Lookout,
        "attached": _attached,
        "choose": lambda *_, **__: (),
        "require": lambda _: None,
        "choose_loader": lambda *_: Chosen(Loader.OBJECT, ""),
        "programs_need_rights": lambda: False,
    }.items():
        having = [module for module in (agent, run) if hasattr(module, name)]
        assert having, name
        for module in having:
            setattr(module, name, stand_in)


def _run(variables: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]
    os.environ.update(variables)
    sys.argv = list(ARGUMENTS)
    sys.exit(cli.main())


class _Child:
    """A run in a process of its own."""

    def __init__(self, variables: dict[str, str]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._pid = os.fork()
        if not self._pid:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(self._said.fileno(), 2)
            _run(variables)

    def wait(self) -> tuple[int, str]:
        _, status = os.waitpid(self._pid, 0)
        with self._said:
            self._said.seek(0)
            return os.waitstatus_to_exitcode(status), self._said.read().decode(errors="replace")


if __name__ == "__main__":
    _take_the_kernel_away()
    gc.freeze()  # children that look through all that is loaded take three times as long
    for line in sys.stdin:
        children = [_Child(variables) for variables in json.loads(line)]
        print(json.dumps([child.wait() for child in children]), flush=True)
