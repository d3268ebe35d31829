# SPDX-License-Identifier: Apache-2.0
"""What a command in a guest sees, what comes back from it, and what is left afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
RUN = HERE / "run"
KERNEL = "6.12"
# Of the whole runner; a guest that hangs is the runner's to end.
TIMEOUT_S = 400
DEADLINE_S = 30


@dataclass(frozen=True)
class Visit:
    """What visitor.py saw, and what came of it."""

    directory: Path
    out: Path
    console: Path
    written: Path
    removed: Path
    done: subprocess.CompletedProcess[bytes]

    def __getitem__(self, fact: str) -> object:
        return json.loads((self.out / "facts.json").read_text())[fact]


def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [RUN, *arguments], capture_output=True, timeout=TIMEOUT_S, **options
    )  # fmt: skip


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    """One boot for all that needs no guest of its own."""
    directory = tmp_path_factory.mktemp("a host's")
    out = directory / "shared, with a comma"
    out.mkdir()
    written, removed = directory / "written", directory / "removed"
    removed.write_text("on the host")
    done = run(
        KERNEL, "--out", out, "--console", directory / "console",
        "--env", "GREETING=it's \"$HOME\" = ü", "--env", "EMPTY=", "--cpus", "3",
        "--", sys.executable, HERE / "visitor.py", out / "facts.json", written, removed,
        cwd=directory, env=os.environ | {"KEPT_FROM_THE_GUEST": "yes"},
    )  # fmt: skip
    yield Visit(directory, out, directory / "console", written, removed, done)


def test_the_exit_code_is_the_commands(visit: Visit) -> None:
    assert visit.done.returncode == 7, visit.done.stderr.decode()


def test_the_output_is_the_commands_to_the_byte(visit: Visit) -> None:
    everything = bytes(range(256)) * 1024 + b"error output\nby its name\r\n"
    assert visit.done.stdout == everything
    assert visit.done.stderr == b""


def test_the_kernel_is_the_one_asked_for(visit: Visit) -> None:
    assert visit["release"].startswith(f"{KERNEL}.")
    assert visit["release"].endswith("-amd64")


def test_the_command_runs_as_root_in_the_callers_directory(visit: Visit) -> None:
    assert visit["user"] == 0
    assert visit["directory"] == str(visit.directory)


def test_the_environment_is_the_one_that_was_chosen(visit: Visit) -> None:
    environment = visit["environment"]
    assert environment == {
        "PATH": os.environ["PATH"],
        "HOME": str(Path.home()),
        "LANG": "C.UTF-8",
        "GREETING": 'it\'s "$HOME" = ü',
        "EMPTY": "",
    }


def test_the_host_cannot_be_written_to(visit: Visit) -> None:
    assert not visit.written.exists()
    assert visit.removed.read_text() == "on the host"


def test_every_file_system_that_tests_need_is_there(visit: Visit) -> None:
    expected = {
        "/": "overlay", "/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs", "/dev/pts": "devpts",
        "/dev/shm": "tmpfs", "/run": "tmpfs", "/sys/fs/bpf": "bpf", "/sys/fs/cgroup": "cgroup2",
        "/sys/kernel/debug": "debugfs", "/sys/kernel/tracing": "tracefs",
    }  # fmt: skip
    assert visit["mounts"].items() >= expected.items()


def test_modules_can_be_loaded(visit: Visit) -> None:
    assert visit["modules"] == []


def test_a_device_without_hardware_can_be_made(visit: Visit) -> None:
    assert visit["tap"] == ""


def test_network_namespaces_can_be_made(visit: Visit) -> None:
    assert visit["namespace"] == ""
    assert visit["namespaces"] == ["guest"]


def test_the_guest_has_the_processors_and_the_clock_it_should(visit: Visit) -> None:
    assert visit["processors"] == 3
    assert visit["clock"] == "tsc"
    # On a busy machine the processor that looks at both clocks may stand still between.
    assert visit["clock_rate"] == pytest.approx(1, abs=0.3)


def test_the_kernels_log_is_kept(visit: Visit) -> None:
    assert f"Linux version {visit['release']} " in visit.console.read_text(errors="replace")


def test_a_guest_that_dies_shows_its_log() -> None:
    done = run("6.1", "--", "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000")
    log = done.stderr.decode(errors="replace")
    assert done.returncode == 125
    assert log.startswith("vm: the guest died before the command ended; the end of its console:\n")
    assert "Kernel panic - not syncing: sysrq triggered crash" in log
    assert re.search(r" tainted 6\.1\.0-\d+-amd64 ", log)  # the kernel asked for


@pytest.mark.parametrize("command", ["sleep 1000", "yes"])
def test_a_command_that_takes_too_long_is_ended(command: str) -> None:
    done = run(KERNEL, "--timeout", "2", "--", "sh", "-c", command)
    assert done.returncode == 124
    assert set(done.stdout) <= set(b"y\n")
    assert done.stderr == b"vm: the command did not end within 2 s\n"


def test_where_instructions_are_counted_each_takes_a_nanosecond() -> None:
    # So the kernel finds one processor of 1 GHz.
    command = "nproc; awk '/^cpu MHz/ { print int($4 + 0.5) }' /proc/cpuinfo; sleep 1; echo slept"
    done = run(KERNEL, "--icount", "--timeout", "300", "--", "sh", "-c", command)
    assert done.stdout == b"1\n1000\nslept\n", done


def children(pid: int) -> list[int]:
    """Of a process, as long as it lives."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid:
            found.append(int(stat.parent.name))
    return found


def is_qemu(pid: int) -> bool:
    try:
        return "qemu" in os.readlink(f"/proc/{pid}/exe")
    except OSError:  # gone
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_runner_that_is_killed(number: signal.Signals) -> None:
    command = [RUN, KERNEL, "--", "sleep", "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as runner:
        end = time.monotonic() + DEADLINE_S
        qemu: list[int] = []
        try:
            while not (qemu := list(filter(is_qemu, children(runner.pid)))):
                assert time.monotonic() < end, "QEMU did not start"
                assert runner.poll() is None, runner.stdout.read()
            runner.send_signal(number)
            assert runner.wait(DEADLINE_S) == -number
            while any(map(is_qemu, qemu)):
                assert time.monotonic() < end, "QEMU goes on"
        finally:
            runner.kill()
            for pid in filter(is_qemu, qemu):
                os.kill(pid, signal.SIGKILL)
        assert runner.stdout.read() == b""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["7", "--", "true"], "'7' is no kernel: give a series, such as 6.1"),
        (["6.12.1-cloud-amd64", "--", "true"], "is no kernel"),
        ([KERNEL], "the command is missing; it comes after --"),
        ([KERNEL, "true"], "unrecognized arguments: true"),
        ([KERNEL, "--env", "1A=x", "--", "true"], "'1A=x' is not NAME=VALUE"),
        ([KERNEL, "--out", "/nowhere", "--", "true"], "--out /nowhere is no directory"),
        ([KERNEL, "--console", "/nowhere/log", "--", "true"], "'/nowhere/log'"),
        ([KERNEL, "--memory", "2", "--", "true"], "'2' is no size such as 512M or 2G"),
        ([KERNEL, "--timeout", "0", "--", "true"], "invalid positive float value: '0'"),
        ([KERNEL, "--cpus", "none", "--", "true"], "invalid positive int value: 'none'"),
    ],
)
def test_wrong_arguments_are_explained(arguments: list[str], complaint: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr.decode().splitlines()[-1]


def test_a_missing_qemu_is_explained(tmp_path: Path) -> None:
    done = run(KERNEL, "--", "true", env=os.environ | {"PATH": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr.decode() == (
        "vm: qemu-system-x86_64 is not there: install the package qemu-system-x86, "
        "or run scripts/setup --test\n"
    )
