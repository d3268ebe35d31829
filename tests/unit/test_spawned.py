# SPDX-License-Identifier: Apache-2.0
"""What multiprocessing starts is what started it, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from proc import Proc, instead_of_proc
from support.waiting import wait_until

from otelbpf.host.processes import Process, look_at
from otelbpf.host.resource import Resources
from otelbpf.host.spawned import starter_of

PYTHON = "/usr/bin/python3.11"
TRACKER, ALIVE = "pipe:[71]", "pipe:[72]"
SPAWNED = (
    "python3", "-X", "dev", "-c",
    "from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=5, pipe_handle=7)",
    "--multiprocessing-fork",
)  # fmt: skip
FORK_SERVER = (
    "python3", "-c",
    "from multiprocessing.forkserver import main; main(5, 6, ['__main__'], **{'sys_path': ['']})",
)  # fmt: skip


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proc]:
    with instead_of_proc(tmp_path, monkeypatch) as made:
        yield made


def starter(pid: int) -> int | None:
    running = look_at(pid, ())
    assert running is not None
    found = starter_of(running)
    return found and found.pid


def test_who_spawned_it_has_the_other_end_of_its_pipe(proc: Proc) -> None:
    proc.add(11, PYTHON, ("python3", "/srv/shop.py"), files={3: "socket:[9]", 4: TRACKER})
    proc.add(12, PYTHON, SPAWNED, parent=11, files={0: "/dev/null", 5: TRACKER})
    proc.add(13, PYTHON, SPAWNED, parent=12, files={5: TRACKER})
    assert (starter(13), starter(12), starter(11)) == (11, 11, None)


def test_what_a_fork_server_forked_is_whose_the_server_is(proc: Proc) -> None:
    proc.add(11, PYTHON, ("python3", "/srv/shop.py"), files={9: ALIVE})
    proc.add(12, PYTHON, FORK_SERVER, parent=11, files={6: ALIVE}, stack=7)
    proc.add(13, PYTHON, FORK_SERVER, parent=12, files={9: ALIVE}, stack=7)
    assert (starter(13), starter(12)) == (11, 11)
    proc.add(13, PYTHON, FORK_SERVER, parent=1, files={9: ALIVE}, stack=7)
    proc.add(1, PYTHON, ("python3", "/srv/supervisor.py"))
    assert starter(13) is None


@pytest.mark.parametrize(
    ("executable", "files", "parent"),
    [
        (PYTHON, {1: "pipe:[73]", 5: "pipe:[74]"}, 11),  # it has taken the place of who is gone
        (PYTHON, {}, 11),
        ("/usr/bin/python3.12", {5: TRACKER}, 11),
        ("", {5: TRACKER}, 11),
        (PYTHON, {5: TRACKER}, 10),  # nobody
        (PYTHON, {5: TRACKER}, 0),  # not to be seen from here
    ],
)
def test_who_may_be_another_one_is_not_believed(
    proc: Proc, executable: str, files: dict[int, str], parent: int
) -> None:
    proc.add(11, executable, ("python3", "/srv/supervisor.py"), files=files)
    proc.add(12, PYTHON, SPAWNED, parent=parent, files={1: "pipe:[73]", 5: TRACKER})
    assert starter(12) is None


def test_a_file_that_both_have_is_no_pipe_of_theirs(proc: Proc) -> None:
    proc.add(11, PYTHON, ("python3", "/srv/supervisor.py"), files={5: "/dev/null"})
    proc.add(12, PYTHON, SPAWNED, parent=11, files={5: "/dev/null"})
    assert starter(12) is None


@pytest.mark.parametrize(
    "arguments", [("python3", "-c", "serve()"), ("python3", "-c"), ("shop.py", SPAWNED[4])]
)
def test_whom_multiprocessing_has_not_started(proc: Proc, arguments: tuple[str, ...]) -> None:
    proc.add(11, PYTHON, ("python3", "/srv/shop.py"), files={5: TRACKER})
    proc.add(12, PYTHON, arguments, parent=11, files={5: TRACKER})
    assert starter(12) is None


def test_parents_in_a_circle_come_to_an_end(proc: Proc) -> None:
    proc.add(11, PYTHON, SPAWNED, parent=12, files={5: TRACKER})
    proc.add(12, PYTHON, SPAWNED, parent=11, files={5: TRACKER})
    assert starter(12) is None


# Tells its worker's pid, which lives as long as there is somebody to write to it.
_SHOP = """
import multiprocessing, os, sys, time

def work():
    print(os.getpid(), flush=True)
    while True:
        time.sleep(60)

if __name__ == "__main__":
    worker = multiprocessing.get_context(sys.argv[1]).Process(target=work)
    worker.start()
    worker.join()
"""
# Runs the rest of its command line, and all that loses its parent becomes its child.
_SUPERVISOR = """
import ctypes, subprocess, sys
assert not ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
shop = subprocess.Popen([sys.executable, *sys.argv[1:]])
print(shop.pid, flush=True)
shop.wait()
sys.stdin.read()
"""


def name_of(pid: int) -> object:
    running = look_at(pid, ())
    assert running is not None
    process = Process(pid, running.start_ticks * 10_000_000, 0, running.stack, running.comm)
    return Resources(None).of(process).resource.attributes["service.name"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_that_run(tmp_path: Path, method: str) -> None:
    """One that has lost who started it is nobody's: its new parent runs the same executable."""
    shop, supervisor = tmp_path / "shop.py", tmp_path / "supervisor.py"
    shop.write_text(_SHOP)
    supervisor.write_text(_SUPERVISOR)
    with subprocess.Popen(
        [sys.executable, supervisor, shop, method],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            main, worker = int(process.stdout.readline()), int(process.stdout.readline())
            assert name_of(main) == "shop.py"
            assert name_of(worker) == "shop.py"
            os.kill(main, signal.SIGKILL)
            wait_until(lambda: look_at(main, ()) is None, "it was gone")
            unknown = f"unknown_service:{Path(sys.executable).resolve().name}"
            assert name_of(worker) == ("shop.py" if method == "fork" else unknown)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
