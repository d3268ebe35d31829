# SPDX-License-Identifier: Apache-2.0
"""Commands that end by themselves, and soon."""

from __future__ import annotations

import subprocess

from support.waiting import DEADLINE_S


def run(*command: str) -> str:
    """What a command prints; what it said instead is in the error if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout
