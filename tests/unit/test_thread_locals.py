# SPDX-License-Identifier: Apache-2.0
"""Thread-local variables of real processes: found where the processes themselves say. Needs gcc."""

from __future__ import annotations

import contextlib
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from binaries import compile_c

from otelbpf.userspace.thread_locals import ThreadLocal, UnresolvedError, find_thread_local

pytestmark = pytest.mark.impure

NAME = "otel_thread_ctx_v1"
# Others around it, so that a wrong offset or alignment is somewhere else.
VARIABLE = """
__thread char before[3] = {1, 2, 3};
__thread int aligned __attribute__((aligned(64))) = 7;
__attribute__((visibility(VISIBILITY))) __thread void *otel_thread_ctx_v1;
__thread char after[9] = {4};
char *neighbours(void) { return before + after[0] + aligned; }
void *address(void) { return &otel_thread_ctx_v1; }
void publish(void *record) { otel_thread_ctx_v1 = record; }
"""
# For each of two threads: what it has in fs, where it has the variable, and what it holds.
PROGRAM = r"""
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
#ifdef USED_HERE
extern __thread void *otel_thread_ctx_v1;
#endif
static int marks[2];
static void *(*address_of)(void);
static void (*publish_it)(void *);
#ifndef OPENED
void *address(void);
void publish(void *);
#endif

static void tell(int *mark)
{
	unsigned long fs;
	__asm__("movq %%fs:0, %0" : "=r"(fs));
	publish_it(mark);
#ifdef USED_HERE
	if (otel_thread_ctx_v1 != mark)
		_exit(3);
#endif
	printf("%lx %lx %lx\n", fs, (unsigned long)address_of(), (unsigned long)mark);
}

static void *second(void *mark)
{
	tell(mark);
	printf("ready\n");
	fflush(stdout);
	pause();
	return 0;
}

int main(int argc, char **argv)
{
	pthread_t thread;
#ifdef OPENED
	/* Before the library is there, so that this thread's table has to grow for it. */
	void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : 0;
	if (!library)
		return 2;
	address_of = (void *(*)(void))dlsym(library, "address");
	publish_it = (void (*)(void *))dlsym(library, "publish");
#else
	address_of = address;
	publish_it = publish;
#endif
	tell(&marks[0]);
	pthread_create(&thread, 0, second, &marks[1]);
	pthread_join(thread, 0);
	return 0;
}
"""
GNU2 = "-mtls-dialect=gnu2"
INITIAL_EXEC = "-ftls-model=initial-exec"
# More than glibc sets aside for libraries that come later: these get no static block.
LARGE = "-DLARGE=1"
DYNAMIC = """
#ifdef LARGE
__thread char large[1 << 16] = {1};
char *use_large(void) { return large; }
#endif
"""


@dataclass(frozen=True)
class Said:
    """What a thread of the program says of itself."""

    fs: int
    address: int
    value: int


@contextlib.contextmanager
def running(*command: str | Path) -> Iterator[tuple[int, list[Said]]]:
    """The program's pid, and what its two threads say."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = []
            while (line := process.stdout.readline()) != "ready\n":
                assert line, "the program ended"
                lines.append(Said(*(int(word, 16) for word in line.split())))
            assert len(lines) == 2
            yield process.pid, lines
        finally:
            process.kill()


def word_at(pid: int, address: int) -> int:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return int(struct.unpack("=Q", memory.read(8))[0])


def address_in(pid: int, found: ThreadLocal, fs: int) -> int:
    """What the kernel's side does: bpf/ledger/thread_context.h."""
    if not found.module:
        return fs + found.offset
    table = word_at(pid, fs + 8)
    assert word_at(pid, table - 16) >= found.module
    assert word_at(pid, table) >= found.generation
    return word_at(pid, table + 16 * found.module) + found.offset


def assert_found(pid: int, said: list[Said]) -> ThreadLocal:
    found = find_thread_local(pid, NAME, {})
    assert found is not None
    assert [address_in(pid, found, each.fs) for each in said] == [each.address for each in said]
    assert [word_at(pid, each.address) for each in said] == [each.value for each in said]
    return found


def library(directory: Path, *options: str, visibility: str = "default") -> Path:
    return compile_c(
        directory / "libvariable.so",
        DYNAMIC + VARIABLE,
        "-shared",
        "-fPIC",
        "-O1",
        f'-DVISIBILITY="{visibility}"',
        *options,
    )


EXECUTABLES = {
    "pie": ["-pie", "-fPIE", "-rdynamic"],
    "position dependent": ["-no-pie", "-rdynamic"],
    "static pie": ["-static-pie", "-fPIE", f"-Wl,--export-dynamic-symbol={NAME}"],
    "pie with descriptors": ["-pie", "-fPIE", "-rdynamic", GNU2],
}


@pytest.mark.parametrize("options", EXECUTABLES.values(), ids=EXECUTABLES)
def test_in_the_executable(tmp_path: Path, options: list[str]) -> None:
    program = compile_c(
        tmp_path / "program",
        PROGRAM + VARIABLE,
        '-DVISIBILITY="default"',
        "-O1",
        "-pthread",
        *options,
    )
    with running(program) as (pid, said):
        assert assert_found(pid, said).module == 0


LINKED = {
    "descriptors": [GNU2],
    "initial exec": [INITIAL_EXEC],
    "general dynamic": ["-mtls-dialect=gnu"],
}


@pytest.mark.parametrize("visibility", ["default", "protected"])
@pytest.mark.parametrize("options", LINKED.values(), ids=LINKED)
def test_in_a_library_that_is_there_from_the_start(
    tmp_path: Path, options: list[str], visibility: str
) -> None:
    made = library(tmp_path, *options, visibility=visibility)
    program = compile_c(tmp_path / "program", PROGRAM, made, f"-Wl,-rpath,{tmp_path}", "-pthread")
    with running(program) as (pid, said):
        found = assert_found(pid, said)
    assert (found.module > 0) == (options == LINKED["general dynamic"])


def test_in_a_library_whose_variable_the_executable_uses(tmp_path: Path) -> None:
    made = library(tmp_path, "-mtls-dialect=gnu")
    program = compile_c(
        tmp_path / "program",
        PROGRAM,
        "-DUSED_HERE",
        made,
        f"-Wl,-rpath,{tmp_path}",
        "-pthread",
    )
    with running(program) as (pid, said):
        assert assert_found(pid, said).module == 0


# The loader refuses a large library that wants to be in the static block.
OPENED = {
    **LINKED,
    "descriptors, large": [GNU2, LARGE],
    "general dynamic, large": ["-mtls-dialect=gnu", LARGE],
}


@pytest.mark.parametrize("visibility", ["default", "protected"])
@pytest.mark.parametrize("options", OPENED.values(), ids=OPENED)
def test_in_a_library_that_is_loaded_later(
    tmp_path: Path, options: list[str], visibility: str
) -> None:
    made = library(tmp_path, *options, visibility=visibility)
    program = compile_c(tmp_path / "program", PROGRAM, "-DOPENED", "-pthread", "-ldl")
    with running(program, made) as (pid, said):
        found = assert_found(pid, said)
    if LARGE in options:
        assert found.module > 0


def test_a_process_without_it() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        known: dict[tuple[int, int, int], bool] = {}
        assert find_thread_local(process.pid, NAME, known) is None
        assert known and not any(known.values())
        assert find_thread_local(process.pid, NAME, known) is None


def test_a_process_that_is_gone() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(OSError):
        find_thread_local(process.pid, NAME, {})


def test_a_variable_that_nothing_uses_is_not_guessed(tmp_path: Path) -> None:
    made = compile_c(
        tmp_path / "libvariable.so",
        "__thread void *otel_thread_ctx_v1; void *address(void) { return 0; }"
        "void publish(void *record) {}",
        "-shared",
        "-fPIC",
    )
    program = compile_c(tmp_path / "program", PROGRAM, made, f"-Wl,-rpath,{tmp_path}", "-pthread")
    with running(program) as (pid, _), pytest.raises(UnresolvedError, match="none of its files"):
        find_thread_local(pid, NAME, {})
