# SPDX-License-Identifier: Apache-2.0
"""Real executables and libraries, made for a test, and what binutils says of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

#: USDT(provider, name, semaphore, moved, arguments), without <sys/sdt.h>. `moved` is added to each
#: address in the note, as if the file had been linked elsewhere.
USDT = r"""
#define USDT(provider, name, semaphore, moved, arguments) __asm__ volatile( \
    "990: nop\n" \
    ".pushsection .note.stapsdt, \"\", \"note\"\n" \
    ".balign 4\n" \
    ".4byte 992f - 991f, 994f - 993f, 3\n" \
    "991: .asciz \"stapsdt\"\n" \
    "992: .balign 4\n" \
    "993: .8byte 990b + " moved ", _.stapsdt.base + " moved ", " semaphore "\n" \
    ".asciz \"" provider "\"\n" \
    ".asciz \"" name "\"\n" \
    ".asciz \"" arguments "\"\n" \
    "994: .balign 4\n" \
    ".popsection\n" \
    ".ifndef _.stapsdt.base\n" \
    ".pushsection .stapsdt.base, \"aG\", \"progbits\", .stapsdt.base, comdat\n" \
    ".weak _.stapsdt.base\n" \
    ".hidden _.stapsdt.base\n" \
    "_.stapsdt.base: .space 1\n" \
    ".size _.stapsdt.base, 1\n" \
    ".popsection\n" \
    ".endif\n")
"""


@dataclass(frozen=True)
class Instruction:
    """A line of objdump's.

    Attributes:
        text: mnemonic and operands, in AT&T's syntax.
    """

    address: int
    data: bytes
    text: str

    @property
    def returns(self) -> bool:
        return bool(re.match(r"(?:(?:rep|repz|bnd|notrack) )?ret", self.text))


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """What a command prints, in English; an error if it fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"LC_ALL": "C"} | environment,
    )
    return done.stdout


def compile_c(path: Path, source: str, *options: str | Path) -> Path:
    """Compile C, or C++ if `path` ends in .cc.*, by gcc."""
    language = "c++" if ".cc" in path.suffixes else "c"
    text = path.with_name(f"{path.name}.source")
    text.write_text(source)
    compiler = "g++" if language == "c++" else "gcc"
    run(compiler, "-x", language, text, "-x", "none", "-o", path, "-Wl,--build-id", *options)
    return path


def compile_go(directory: Path, sources: dict[str, str], *options: str) -> Path:
    """Build the program whose files are `sources`."""
    go = shutil.which("go") or str(Path(sys.executable).parent / "go")
    for name, text in sources.items():
        (directory / name).write_text(text)
    (directory / "go.mod").write_text("module shop\n\ngo 1.21\n")
    run(
        go,
        "build",
        "-o",
        "shop",
        *options,
        ".",
        cwd=directory,
        CGO_ENABLED="0",
        GOTOOLCHAIN="local",
        GOFLAGS="",
    )
    return directory / "shop"


def disassemble(path: Path, function: str = "") -> list[Instruction]:
    """What objdump makes of a function, or of all there are."""
    which = f"--disassemble={function}" if function else "--disassemble"
    text = run("objdump", "--wide", which, path)
    lines = re.findall(r"^ *([0-9a-f]+):\t([0-9a-f ]+?) *(?:\t(.*))?$", text, re.MULTILINE)
    return [
        Instruction(int(address, 16), bytes.fromhex(data), words.strip())
        for address, data, words in lines
    ]


def offset_in_file(path: Path, address: int) -> int:
    """Where in the file an address is, by readelf's program headers."""
    text = run("readelf", "--wide", "--program-headers", path)
    for line in re.findall(r"^ *LOAD +(.*)$", text, re.MULTILINE):
        offset, start, _, size = (int(word, 16) for word in line.split()[:4])
        if start <= address < start + size:
            return address - start + offset
    raise AssertionError(f"{address:#x} is nowhere in {path}")
