# SPDX-License-Identifier: Apache-2.0
"""The demo's children: started, waited for, stopped; and what killed demos leave behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from demo import processes
from demo.names import files, leftovers
from demo.processes import Process, ProcessError, running, signals_as_exit

pytestmark = pytest.mark.impure

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TIMEOUT_S = 30.0
# Says when it is ready, then waits for a signal, which sleep does not mind to die of.
WAITS = ["sh", "-c", "echo ready; exec sleep 600"]


def test_a_process_is_ready_when_it_has_printed_a_line_and_is_stopped(tmp_path: Path) -> None:
    with running("waits", WAITS, tmp_path) as process:
        process.wait_until(Process.printed_line, TIMEOUT_S)
        assert process.popen.poll() is None
    assert process.popen.returncode == -signal.SIGTERM


def test_it_is_stopped_with_the_signal_that_it_wants(tmp_path: Path) -> None:
    script = "trap 'echo sums; exit 3' INT; echo ready; while :; do sleep 0.01; done"
    with running("agent", ["sh", "-c", script], tmp_path, stop_with=signal.SIGINT) as process:
        process.wait_until(Process.printed_line, TIMEOUT_S)
        assert process.stop(signal.SIGINT) == 3
    assert process.stdout.read_text() == "ready\nsums\n"


def test_it_is_stopped_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), running("waits", WAITS, tmp_path) as process:
        raise KeyError
    assert process.popen.returncode == -signal.SIGTERM


def test_one_that_minds_no_signal_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STOP_TIMEOUT_S", 0.05)
    script = "trap '' TERM; echo ready; exec sleep 600"
    with running("deaf", ["sh", "-c", script], tmp_path) as process:
        process.wait_until(Process.printed_line, TIMEOUT_S)
    assert process.popen.returncode == -signal.SIGKILL


def test_one_that_ends_before_it_is_ready_has_its_last_words_shown(tmp_path: Path) -> None:
    script = "echo one >&2; echo two >&2; exit 7"
    with (
        running("ends", ["sh", "-c", script], tmp_path) as process,
        pytest.raises(ProcessError) as error,
    ):
        process.wait_until(Process.printed_line, TIMEOUT_S)
    assert str(error.value) == "ends ended with exit code 7 before it was ready:\n  one\n  two"


def test_one_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    with (
        running("mute", ["sleep", "600"], tmp_path) as process,
        pytest.raises(ProcessError, match=r"mute was not ready after 0\.1 s"),
    ):
        process.wait_until(Process.printed_line, 0.1)


def test_one_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with (
        running("nothing", [str(tmp_path / "nothing")], tmp_path) as process,
        pytest.raises(ProcessError, match="nothing ended with exit code 127"),
    ):
        process.wait_until(Process.printed_line, TIMEOUT_S)


def test_what_it_printed_is_what_finish_returns(tmp_path: Path) -> None:
    with running("load", ["sh", "-c", "echo 23"], tmp_path) as process:
        assert process.finish(TIMEOUT_S) == "23\n"
    with (
        running("fails", ["sh", "-c", "echo why >&2; exit 2"], tmp_path) as process,
        pytest.raises(ProcessError, match=r"fails failed with exit code 2:\n  why"),
    ):
        process.finish(TIMEOUT_S)
    with (
        running("waits", WAITS, tmp_path) as process,
        pytest.raises(ProcessError, match=r"waits was not done after 0\.05 s"),
    ):
        process.finish(0.05)


def test_no_otel_variable_reaches_a_child_but_those_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    given = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with running("env", ["env"], tmp_path, given) as process:
        variables = process.finish(TIMEOUT_S).splitlines()
    assert [line for line in variables if line.startswith("OTEL_")] == [
        "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_by_an_exception_and_a_second_does_not_disturb(
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    cleaned = False
    with pytest.raises(SystemExit) as left, signals_as_exit():
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            os.kill(os.getpid(), number)
            cleaned = True
    assert cleaned
    assert left.value.code == 128 + number
    assert signal.getsignal(number) is before


def dead_pid() -> int:
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    return dead.pid


def test_leftovers_are_those_of_dead_demos(tmp_path: Path) -> None:
    dead = dead_pid()
    names = [
        f"otelbpf-demo-{dead}-client",
        f"otelbpf-demo-{dead}-server",
        f"otelbpf-demo-{dead}-files",
        f"otelbpf-demo-{os.getpid()}-server",
        f"otelbpf-demo-{dead}-server-of-mine",
        f"other-otelbpf-demo-{dead}-server",
        "otelbpf-demo-x-server",
    ]
    for name in names:
        (tmp_path / name).touch()
    assert leftovers(tmp_path, "server", "client") == [tmp_path / name for name in names[:2]]
    assert leftovers(tmp_path / "nothing", "server") == []


def test_a_demos_files_go_with_it_and_those_of_dead_ones_too(tmp_path: Path) -> None:
    dead = tmp_path / f"otelbpf-demo-{dead_pid()}-files"
    other = tmp_path / "otelbpf-demo-1-files"  # process 1 lives
    for directory in (dead, other):
        directory.mkdir()
        (directory / "sums.json").touch()

    with pytest.raises(KeyError), files(tmp_path) as directory:
        assert set(tmp_path.iterdir()) == {other, directory}
        (directory / "ready").touch()
        raise KeyError
    assert list(tmp_path.iterdir()) == [other]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--requests", "0"], "argument --requests: '0' is not a number from 1 to 100000"),
        (["--requests"], "argument --requests: expected one argument"),
        (["--json", "/no/such/directory/x.json"], "there is no directory /no/such/directory"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_a_bad_option_is_one_sentence(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "demo", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("demo: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
