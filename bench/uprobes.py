# SPDX-License-Identifier: Apache-2.0
"""What a uprobe costs who passes it, by the instruction that it is on; and many of them, at once.

    .venv/bin/python bench/uprobes.py

calls functions that begin with these instructions in a loop, with an empty program attached and
without, and tells the difference, the median of several loops. What the kernel does not do in the
instruction's place the processor executes by itself, with an interrupt after it: slow where that is
a hypervisor's.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from otelbpf.kernel import libbpf
from otelbpf.kernel.uprobe_multi import Place, attach_uprobes
from otelbpf.userspace.elf import Elf

#: Functions, by what they begin with.
_FUNCTIONS = {
    "push": "push %rbp; pop %rbp; ret",
    "nop": "nop; ret",
    "nop of 5 bytes": ".byte 0x0f, 0x1f, 0x44, 0, 0; ret",
    "jmp": "jmp 1f; 1: ret",
    "je": "je 1f; 1: ret",
    "call": "call 1f; ret; 1: ret",
    "endbr64": "endbr64; ret",
    "sub from %rsp": "sub $24, %rsp; add $24, %rsp; ret",
    "mov": "mov %rdi, %rax; ret",
    "ret": "ret",
}
_MANY = (2, 16, 128)


def build(directory: Path) -> Path:
    """A library with these functions, f0 and on, call(), which calls one in a loop, and more."""
    text = "".join(
        f'__asm__(".globl f{n}\\n.type f{n},@function\\nf{n}: {code}\\n.size f{n},.-f{n}\\n");\n'
        for n, code in enumerate(_FUNCTIONS.values())
    )
    text += "void call(void (*f)(void), long times) { while (times--) f(); }\n"
    text += "".join(f"int many{n}(int x) {{ return x + {n}; }}\n" for n in range(max(_MANY)))
    source, library = directory / "functions.c", directory / "functions.so"
    source.write_text(text)
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", source, "-o", library], check=True)
    return library


def empty(attach_type: int = 0) -> int:
    """A program that does nothing."""
    return libbpf.load_program(
        "empty", libbpf.RETURN_0, libbpf.BPF_PROG_TYPE_KPROBE, attach_type, 0
    )


@contextlib.contextmanager
def probed(library: Path, offset: int, program: int, *, at_return: bool) -> Iterator[None]:
    fds = libbpf.attach_uprobe(library, offset, program, at_return=at_return)
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)


def ns_each(loaded: ctypes.CDLL, function: str, times: int) -> float:
    begin = time.perf_counter_ns()
    loaded.call(loaded[function], ctypes.c_long(times))
    return (time.perf_counter_ns() - begin) / times


def tell_each(library: Path, times: int, loops: int) -> None:
    loaded, program = ctypes.CDLL(str(library)), empty()
    with Elf(library) as elf:
        offsets = [elf.offset_of(elf.symbols(f"f{n}")[0].address) for n in range(len(_FUNCTIONS))]
    cases = [(name, n, False) for n, name in enumerate(_FUNCTIONS)]
    cases.append(("a return probe (and push)", 0, True))
    for name, number, at_return in cases:
        function = f"f{number}"
        without = min(ns_each(loaded, function, times) for _ in range(loops))
        with probed(library, offsets[number], program, at_return=at_return):
            took = statistics.median(ns_each(loaded, function, times) for _ in range(loops))
        print(f"  {name:<26} {(took - without) / 1000:6.2f} us", flush=True)


def tell_many(library: Path) -> None:
    alone, as_one = empty(), empty(libbpf.BPF_TRACE_UPROBE_MULTI)
    with Elf(library) as elf:
        offsets = [elf.offset_of(each.address) for each in elf.symbols("many*")]
    for count in _MANY:
        begin = time.monotonic()
        fds = [fd for each in offsets[:count] for fd in libbpf.attach_uprobe(library, each, alone)]
        attached = time.monotonic()
        for fd in fds:
            os.close(fd)
        closed = time.monotonic()
        link = attach_uprobes(library, [Place(each) for each in offsets[:count]], as_one)
        together = time.monotonic()
        os.close(link)
        print(
            f"  {count:>3} places: {1000 * (attached - begin):.0f} ms to attach one by one, "
            f"{1000 * (closed - attached):.0f} ms to close; as one link "
            f"{1000 * (together - closed):.0f} and {1000 * (time.monotonic() - together):.0f} ms",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20_000, help="of each loop (default: 20000)")
    parser.add_argument("--loops", type=int, default=9, help="(default: 9)")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"kernel {platform.release()}, {os.cpu_count()} processors, whose load was {load:.1f}")
    with tempfile.TemporaryDirectory() as directory:
        library = build(Path(directory))
        tell_each(library, arguments.times, arguments.loops)
        tell_many(library)


if __name__ == "__main__":
    main()
