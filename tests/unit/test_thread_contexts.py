# SPDX-License-Identifier: Apache-2.0
"""Which processes publish thread contexts is kept up to date. Needs gcc."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from binaries import compile_c

from otelbpf.userspace import thread_locals
from otelbpf.userspace.thread_contexts import ThreadContexts
from otelbpf.userspace.thread_locals import ThreadLocal, UnresolvedError

pytestmark = pytest.mark.impure

LIBRARY = "__thread void *otel_thread_ctx_v1; void publish(void *r) { otel_thread_ctx_v1 = r; }"
# Loads the library when it is told to, and becomes another program when it is told that.
PROGRAM = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	char line[16];

	setvbuf(stdin, NULL, _IONBF, 0); /* what follows is for the next program */
	do {
		puts("done");
		fflush(stdout);
		if (!fgets(line, sizeof(line), stdin))
			return 0;
		if (line[0] == 'l' && !dlopen(argv[1], RTLD_NOW))
			return 1;
	} while (line[0] != 'x');
	execlp("cat", "cat", NULL);
	return 1;
}
"""


@dataclass
class Table:
    """What the kernel would be told."""

    room: int = 1000
    entries: dict[int, bytes] = field(default_factory=dict)

    def set_thread_local(self, pid: int, where: bytes) -> bool:
        if len(self.entries) >= self.room:
            return False
        self.entries[pid] = where
        return True

    def forget_thread_local(self, pid: int) -> None:
        self.entries.pop(pid, None)


class Told:
    """The program, which does as it is told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        self._wait("done")

    def _wait(self, word: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == word

    def load(self) -> None:
        self._tell("load")
        self._wait("done")

    def become_cat(self) -> None:
        self._tell("x")
        self._tell("cat")
        self._wait("cat")

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Told]:
    library = compile_c(tmp_path / "libpublish.so", LIBRARY, "-shared", "-fPIC")
    executable = compile_c(tmp_path / "program", PROGRAM, "-ldl")
    with subprocess.Popen(
        [executable, library], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Told(process)
        finally:
            process.kill()


def test_a_library_that_comes_later_is_found_later(program: Told) -> None:
    table = Table()
    contexts = ThreadContexts(table)
    contexts.saw([0, program.pid], now_s=100.0)
    assert table.entries == {}
    program.load()
    contexts.saw([program.pid], now_s=100.5)
    contexts.refresh(now_s=100.9)
    assert table.entries == {}, "each look costs something"
    contexts.refresh(now_s=101.0)
    assert table.entries.keys() == {program.pid}


def test_a_process_that_ends_is_forgotten(program: Told) -> None:
    table = Table()
    contexts = ThreadContexts(table)
    program.load()
    contexts.saw([program.pid], now_s=0.0)
    assert table.entries.keys() == {program.pid}
    contexts.refresh(now_s=0.1)
    assert table.entries.keys() == {program.pid}
    program.end()
    contexts.refresh(now_s=0.2)
    assert table.entries == {}
    contexts.saw([program.pid], now_s=0.3)
    contexts.refresh(now_s=0.4)
    assert table.entries == {}


def test_another_program_in_the_same_process_is_another_one(program: Told) -> None:
    table = Table()
    contexts = ThreadContexts(table)
    program.load()
    contexts.saw([program.pid], now_s=0.0)
    assert table.entries.keys() == {program.pid}
    program.become_cat()
    contexts.refresh(now_s=0.1)
    assert table.entries == {}


def looks(contexts: ThreadContexts, until_s: int) -> None:
    for second in range(until_s):
        contexts.refresh(now_s=float(second))


def test_looks_become_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(thread_locals, "find_thread_local", lambda pid, *_: counted.append(pid))
    contexts = ThreadContexts(Table())
    contexts.saw([os.getpid()], now_s=0.0)
    looks(contexts, 128)
    assert len(counted) == 8  # at 0, 1, 3, 7, ... and 127 s
    looks(contexts, 128 + 640)
    assert len(counted) == 18


def test_what_cannot_be_told_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise UnresolvedError("it is hidden")

    monkeypatch.setattr(thread_locals, "find_thread_local", refuse)
    contexts = ThreadContexts(Table())
    contexts.saw([os.getpid()], now_s=0.0)
    assert caplog.messages == []
    looks(contexts, 100)
    name = Path(os.readlink("/proc/self/exe")).name
    assert caplog.messages == [
        f"{name} has otel_thread_ctx_v1, but it is hidden; its requests are not linked to its "
        "own spans"
    ]


def test_a_full_table_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(thread_locals, "find_thread_local", lambda *_: ThreadLocal(-8))
    contexts = ThreadContexts(Table(room=0))
    contexts.saw([os.getpid(), os.getppid()], now_s=0.0)
    looks(contexts, 10)
    assert len(caplog.messages) == 1 and "more processes" in caplog.messages[0]
