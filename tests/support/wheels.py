# SPDX-License-Identifier: Apache-2.0
"""Wheels, built as pip does, with the backend that is installed and without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_TIMEOUT_S = 300.0


def build_wheel(source: Path, into: Path) -> Path:
    """Builds the one wheel of a source tree; fails with all that pip said.

    Args:
        into: a directory that has no wheel yet.
    """
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel",
        "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", into, source,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=into, capture_output=True, text=True, timeout=_TIMEOUT_S)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    (wheel,) = into.glob("*.whl")
    return wheel
