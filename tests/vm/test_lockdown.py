# SPDX-License-Identifier: Apache-2.0
"""A kernel that lets no program read its memory: one sentence, in a guest of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
OTELBPF = Path(sys.executable).parent / "otelbpf"
TIMEOUT_S = 400
SAID = (
    "this kernel lets no program read its memory, where otelbpf's find sockets and tasks: its "
    "lockdown is 'confidentiality' (/sys/kernel/security/lockdown)"
)
REMEDY = "start it without lockdown=confidentiality on its command line; lockdown=integrity will do"
#: There is no way back from it.
SCRIPT = f"""
mount -t securityfs none /sys/kernel/security
echo confidentiality >/sys/kernel/security/lockdown
{OTELBPF} check | grep MISSING
{OTELBPF} run --interface lo --port 80 --duration 0.1 || echo $?
"""


def test_confidentiality_is_refused() -> None:
    command = [HERE / "run", "6.12", "--", "sh", "-ec", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.stdout.splitlines() == [
        f"  MISSING  kernel's memory: {SAID}",
        f"otelbpf: {SAID}: {REMEDY}",
        "2",
    ], done.stdout + done.stderr
