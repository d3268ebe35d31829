# SPDX-License-Identifier: Apache-2.0
"""The guests that run a selection of the kernel tests, from the beginning of a run to its end.

Emulated, they take longer than most of the run. So they are begun first and asked for last, and
have what processor time the other tests leave. What they say at the end is told, which passed tests
would keep to themselves.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from background import Guest
from kernels import TESTED, find

_ASKED_FOR = Path(__file__).resolve().parent / "test_kernels.py"
_CLOSING_LINES = pytest.StashKey[dict[str, str]]()
_GUESTS = pytest.StashKey[dict[str, Guest]]()


@pytest.hookimpl(trylast=True)  # after -m has selected, and pytest-randomly shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path == _ASKED_FOR)


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    if any(item.path == _ASKED_FOR for item in session.items):
        session.config.stash[_GUESTS] = {kernel: Guest(kernel) for kernel in TESTED}


def pytest_unconfigure(config: pytest.Config) -> None:
    for guest in config.stash.get(_GUESTS, {}).values():
        guest.close()


@pytest.fixture(scope="session")
def guests(pytestconfig: pytest.Config) -> dict[str, Guest]:
    """On each kernel."""
    return pytestconfig.stash[_GUESTS]


@pytest.fixture(scope="session", autouse=True)
def _fetched() -> None:
    """What is waited for in a test is a guest, not the network."""
    for kernel in TESTED:
        find(kernel)


@pytest.fixture(scope="session")
def closing_lines(pytestconfig: pytest.Config) -> dict[str, str]:
    """For each kernel, to be filled in: what pytest said last in its guest."""
    return pytestconfig.stash.setdefault(_CLOSING_LINES, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = terminalreporter.config.stash.get(_CLOSING_LINES, {})
    for kernel, line in sorted(lines.items()):
        terminalreporter.write_line(f"on {kernel}: {line}")
