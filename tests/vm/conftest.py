# SPDX-License-Identifier: Apache-2.0
"""Says at the end of a run what ran in guests, which passed tests would keep to themselves."""

from __future__ import annotations

import pytest
from kernels import TESTED, find

_CLOSING_LINES = pytest.StashKey[dict[str, str]]()


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
