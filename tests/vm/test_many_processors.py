# SPDX-License-Identifier: Apache-2.0
"""What shows from many processors on only, in a guest of its own that has sixteen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROCESSORS = 16
TIMEOUT_S = 900
TESTS = ("what_came_early_is_kept", "no_room_is_counted", "each_processor_adds_to_a_row")


def test_each_of_sixteen_processors_keeps_what_came_early_and_adds_up() -> None:
    done = subprocess.run(
        [
            *(HERE / "run", "6.12", "--cpus", str(PROCESSORS), "--timeout", str(TIMEOUT_S)),
            *("--env", "PYTHONDONTWRITEBYTECODE=1", "--"),
            # Each connection of a test has two ends.
            *("prlimit", "--nofile=4096", sys.executable, "-m", "pytest", "-q"),
            *("-p", "no:cacheprovider", "--color=no", "--tb=short"),
            *(f"tests/kernel/test_{name}.py" for name in ("processors", "series")),
            *("-k", " or ".join(TESTS)),
        ],
        cwd=HERE.parents[1], capture_output=True, text=True, timeout=TIMEOUT_S + 300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(TESTS)} passed" in done.stdout
