# SPDX-License-Identifier: Apache-2.0
"""However low its limits are, the command says in words what is too low, or that something is."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from otelbpf.cli import want

RUN = ("run", "--interface", "lo", "--port", "80", "--duration", "0.1")
LIMITS = (
    *(f"--as={mib << 20}" for mib in (96, 144, 400)),
    *(f"--data={mib << 20}" for mib in (24, 100)),
    *(f"--nofile={files}" for files in (5, 8, 64)),
)
#: About what Python itself takes to start: from one start to the next it gets further or less far.
TOO_LOW_FOR_PYTHON = (
    *(f"--as={mib << 20}" for mib in (16, 20, 32, 64)),
    *(f"--data={mib << 20}" for mib in (6, 8, 12)),
    "--nofile=4",
)


def limited(limit: str, *command: str) -> subprocess.CompletedProcess[str]:
    command = ("prlimit", limit, sys.executable, *command)
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("limit", TOO_LOW_FOR_PYTHON)
def test_below_what_python_takes_nobody_can_say_anything(limit: str) -> None:
    ran = limited(limit, "-m", "otelbpf", *RUN)
    assert ran.returncode != 0
    assert ran.stdout == ""
    assert "measuring port" not in ran.stderr


@pytest.mark.parametrize("limit", LIMITS)
def test_low_limits(limit: str) -> None:
    ran = limited(limit, "-m", "otelbpf", *RUN)
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    (sentence,) = ran.stderr.splitlines()
    checked = limited(limit, "-m", "otelbpf", "check")
    if sentence.startswith("otelbpf: the limit of this process's "):
        assert (checked.returncode, checked.stderr) == (1, "")
        what, _, remedy = sentence.removeprefix("otelbpf: ").rpartition(": ")
        assert f": {what}\n" in checked.stdout
        assert f"-> {remedy}\n" in checked.stdout
        assert checked.stdout.endswith("\notelbpf cannot run here.\n")
    else:
        assert sentence.startswith("otelbpf: the system has no more of what this takes (")
        assert "takes ()" not in sentence
        assert (checked.returncode, checked.stdout) == (2, "")
        assert checked.stderr.startswith("otelbpf: the system has no more of what this takes (")


@pytest.mark.parametrize("limit", ["--as=150000000", "--data=100000000", "--nofile=8"])
def test_which_limit_it_is(limit: str) -> None:
    ran = limited(limit, "-m", "otelbpf", *RUN)
    assert ran.stderr.startswith("otelbpf: the limit of this process's ")
    assert ran.returncode == 2


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "(memory)"),
        (MemoryError("Out of memory\ninterning"), "(Out of memory interning)"),
        (OSError(errno.EMFILE, "Too many open files"), "([Errno 24] Too many open files)"),
        (RuntimeError("can't start new thread"), "(can't start new thread)"),
        (ImportError("x.so: failed to map segment from shared object"), "(x.so: failed to map "),
        (SystemError("error return without exception set"), "(error return without exception set)"),
    ],
)
def test_what_is_wanting_is_told(error: Exception, words: str) -> None:
    assert want.is_why(error)
    assert f"the system has no more of what this takes {words}" in want.sentence(error)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, "No such file"), RuntimeError("x"), ImportError("No module x")]
)
def test_other_errors_are_no_want(error: Exception) -> None:
    assert not want.is_why(error)
