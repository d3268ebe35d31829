# SPDX-License-Identifier: Apache-2.0
"""Markers by directory, and a clear failure for tests that need root and do not have it."""

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
KINDS = ("unit", "kernel", "e2e", "vm")
NEEDS_ROOT = ("kernel", "e2e")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the marker of its directory, so that none is forgotten; and pure."""
    for item in items:
        if not item.path.is_relative_to(TESTS):
            continue
        directory = item.path.relative_to(TESTS).parts[0]
        if directory in KINDS:
            item.add_marker(directory)
        if directory == "unit" and not item.get_closest_marker("impure"):
            item.add_marker("pure")


@pytest.hookimpl(tryfirst=True)  # before fixtures, which need root themselves
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail, never skip: a run without root must not look like a pass."""
    for kind in NEEDS_ROOT:
        if item.get_closest_marker(kind) and os.geteuid() != 0:
            pytest.fail(f"a {kind} test needs root; run it with sudo scripts/test", pytrace=False)
