# SPDX-License-Identifier: Apache-2.0
"""Markers by directory, a clear failure for tests that need root and do not have it, and a second
try for what the kernel's own silence spoiled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.unseen import Watch

TESTS = Path(__file__).resolve().parent
KINDS = ("unit", "kernel", "e2e", "vm")
NEEDS_ROOT = ("kernel", "e2e")
# Of tests of what the kernel's programs saw; see support/unseen.py.
_RERUNS = 2

_watch: Watch | None = None


def _spoiled() -> bool:
    return _watch is not None and _watch.spoiled()


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the marker of its directory, so that none is forgotten; and pure."""
    for item in items:
        if not item.path.is_relative_to(TESTS):
            continue
        directory = item.path.relative_to(TESTS).parts[0]
        if directory in KINDS:
            item.add_marker(directory)
        if directory in NEEDS_ROOT:
            # What fails in such a moment is asked again, and told as a rerun; all else fails.
            item.add_marker(pytest.mark.flaky(reruns=_RERUNS, condition=_spoiled))
        if directory == "unit" and not item.get_closest_marker("impure"):
            item.add_marker("pure")


@pytest.hookimpl(tryfirst=True)  # before fixtures, which need root themselves
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail, never skip: a run without root must not look like a pass."""
    for kind in NEEDS_ROOT:
        if item.get_closest_marker(kind) and os.geteuid() != 0:
            pytest.fail(f"a {kind} test needs root; run it with sudo scripts/test", pytrace=False)


@pytest.fixture(scope="session")
def _watching() -> Iterator[Watch]:
    global _watch
    from support.unseen import Watch

    _watch = Watch()
    yield _watch
    _watch.close()
    _watch = None


@pytest.fixture(autouse=True)
def _moments_are_known(request: pytest.FixtureRequest) -> None:
    """Only where they matter: other tests need neither root nor a compiler."""
    if any(request.node.get_closest_marker(kind) for kind in NEEDS_ROOT):
        request.getfixturevalue("_watching").begin()
