# SPDX-License-Identifier: Apache-2.0
"""Who listens on which port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from otelbpf.netns import find_netns
from otelbpf.processes import executable_name, listening_ports

# Listens on two ports, says which, and ends with its input.
_LISTENER = """
import socket, sys
one, other = socket.create_server(("127.0.0.1", 0)), socket.create_server(("::1", 0), family=10)
print(one.getsockname()[1], other.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_all_ports_that_others_listen_on() -> None:
    with (
        subprocess.Popen(
            [sys.executable, "-c", _LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process,
        socket.create_server(("127.0.0.1", 0)) as own,
    ):
        one, other = map(int, process.stdout.readline().split())
        found = listening_ports(find_netns(None))
        name = Path(os.readlink(f"/proc/{process.pid}/exe")).name
        assert (found[one], found[other]) == (name, name) == (executable_name(process.pid),) * 2
        assert own.getsockname()[1] not in found
        process.stdin.close()
    assert one not in listening_ports(find_netns(None))
