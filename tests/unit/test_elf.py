# SPDX-License-Identifier: Apache-2.0
"""Reading executables and libraries: the same as binutils read. Needs gcc and binutils."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from binaries import USDT, compile_c, disassemble, offset_in_file, run

from otelbpf.errors import UsageError
from otelbpf.userspace.elf import Elf

pytestmark = pytest.mark.impure

SOURCE = """
#include <stdio.h>
int table[4] = {1, 2, 3, 4};
__attribute__((noinline)) int handle(int x) { return puts("x") + table[x & 3]; }
static __attribute__((noinline)) int hidden(int x) { return handle(x) * 3; }
int handle_more(int x) { return hidden(x) + 1; }
int main(int argc, char **argv) { return handle_more(argc) + (argv == 0); }
"""
FLAVOURS = {
    "static": ["-static"],
    "position_dependent": ["-no-pie"],
    "position_independent": ["-pie", "-fPIE"],
    "library": ["-shared", "-fPIC"],
    # The address of what is in the file is far from its place there.
    "high": ["-no-pie", "-Wl,-Ttext-segment=0x10000000"],
}


@pytest.fixture(scope="module")
def flavours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("elf")
    return {
        name: compile_c(directory / name, SOURCE, "-O1", *options)
        for name, options in FLAVOURS.items()
    }


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("function", ["handle", "hidden", "handle_more"])
def test_functions_are_where_binutils_find_them(
    flavours: dict[str, Path], flavour: str, function: str
) -> None:
    path = flavours[flavour]
    with Elf(path) as elf:
        (symbol,) = elf.symbols(function)
        assert (symbol.name, symbol.version) == (function, "")
        assert symbol.is_function and symbol.is_defined and not symbol.is_resolver
        listed = re.search(rf"^(\w+) (\w+) [tT] {function}$", run("nm", "-S", path), re.MULTILINE)
        assert [symbol.address, symbol.size] == [int(word, 16) for word in listed.groups()]
        instructions = disassemble(path, function)
        code = b"".join(each.data for each in instructions)
        assert elf.code_of(symbol).data == code
        offset = elf.offset_of(symbol.address)
        assert offset == offset_in_file(path, instructions[0].address)
        assert path.read_bytes()[offset:].startswith(code)
        assert elf.build_id == re.search(r"Build ID: (\w+)", run("readelf", "-n", path))[1]
        assert not (elf.is_go or elf.is_stripped or elf.has_exceptions)
        independent = flavour in ("position_independent", "library")
        assert elf.is_position_independent == independent


def test_patterns(flavours: dict[str, Path]) -> None:
    with Elf(flavours["library"]) as elf:
        names = [
            [each.name for each in elf.symbols(pattern)]
            for pattern in ("handle", "handle*", "h?dd*", "*ndle_m*", "nothing", "handle?")
        ]
    assert [sorted(each) for each in names] == [
        ["handle"],
        ["handle", "handle_more"],
        ["hidden"],
        ["handle_more"],
        [],
        [],
    ]


def test_what_is_no_function_here(flavours: dict[str, Path]) -> None:
    with Elf(flavours["position_independent"]) as elf:
        (data,) = elf.symbols("table")
        (imported,) = elf.symbols("puts")
        assert not data.is_function and data.is_defined
        assert imported.is_function and not imported.is_defined
        assert elf.word_at(data) == 1 | 2 << 32
        with pytest.raises(UsageError, match="lies in no executable part of the file"):
            elf.offset_of(data.address)


def test_a_name_with_a_letter_that_patterns_use_is_taken_as_it_is(tmp_path: Path) -> None:
    source = """
    __asm__(".globl \\"of(*T)\\"\\n.type \\"of(*T)\\", @function\\n\\"of(*T)\\": ret\\n"
            ".globl \\"of(*XT)\\"\\n.type \\"of(*XT)\\", @function\\n\\"of(*XT)\\": ret\\n");
    int main(void) { return 0; }
    """
    with Elf(compile_c(tmp_path / "odd", source)) as elf:
        assert [each.name for each in elf.symbols("of(*T)")] == ["of(*T)"]
        assert len(elf.symbols("of(*T?")) == 2


def test_versions_of_a_librarys_function(tmp_path: Path) -> None:
    (tmp_path / "map").write_text("OLD_1 { global: get; local: *; }; NEW_2 { global: get; } OLD_1;")
    source = """
    int old_get(void) { return 1; }
    int new_get(void) { return 2; }
    __asm__(".symver old_get, get@OLD_1\\n.symver new_get, get@@NEW_2");
    """
    library = compile_c(
        tmp_path / "versions.so",
        source,
        "-shared",
        "-fPIC",
        f"-Wl,--version-script={tmp_path / 'map'}",
    )
    run("strip", library, cwd=tmp_path)
    with Elf(library) as elf:
        assert {str(each) for each in elf.symbols("get")} == {"get@OLD_1", "get@NEW_2"}
        (old,), (new,) = elf.symbols("get@OLD_1"), elf.symbols("get@@NEW_2")
        assert old.address != new.address
        assert elf.symbols("get@NEWER_3") == []


def test_all_symbols_name_versions_too(tmp_path: Path) -> None:
    (tmp_path / "map").write_text("ONE_1 { global: get; local: *; };")
    library = compile_c(
        tmp_path / "one.so",
        "int get(void) { return 1; }",
        "-shared",
        "-fPIC",
        f"-Wl,--version-script={tmp_path / 'map'}",
    )
    with Elf(library) as elf:
        assert [str(each) for each in elf.symbols("get")] == ["get@ONE_1"]


def test_stripped(flavours: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "stripped.so"
    shutil.copy(flavours["library"], path)
    run("strip", path)
    with Elf(path) as elf:
        assert elf.is_stripped and elf.debug_file is None
        assert len(elf.symbols("handle")) == 1
        assert elf.symbols("hidden") == []


@pytest.mark.parametrize("flavour", ["library", "position_dependent"])
def test_symbols_that_were_stripped_are_found_by_build_id(
    flavours: dict[str, Path], flavour: str, tmp_path: Path
) -> None:
    with Elf(flavours[flavour]) as elf:
        (expected,) = elf.symbols("hidden")
        part = Path(".build-id", elf.build_id[:2], f"{elf.build_id[2:]}.debug")
    (tmp_path / part).parent.mkdir(parents=True)
    run("objcopy", "--only-keep-debug", flavours[flavour], tmp_path / part)
    path = tmp_path / "stripped"
    run("strip", "-o", path, flavours[flavour])
    with Elf(path, debug_roots=(tmp_path / "none", tmp_path)) as elf:
        assert elf.debug_file == tmp_path / part
        assert elf.symbols("hidden") == [expected]
        assert elf.code_of(expected).data == b"".join(
            each.data for each in disassemble(flavours[flavour], "hidden")
        )


CPP = """
#include <stdexcept>
int main(int argc, char **) try {
    if (argc == 3) throw std::runtime_error("3");
    return 0;
} catch (std::exception &) { return 1; }
"""


@pytest.mark.parametrize("options", [[], ["-static"], ["-s"], ["-static", "-s"]])
def test_exceptions_may_pass_through_cpp(tmp_path: Path, options: list[str]) -> None:
    with Elf(compile_c(tmp_path / "throws.cc.out", CPP, *options)) as elf:
        assert elf.has_exceptions


PROBES = (
    USDT
    + """
__extension__ unsigned short raised __attribute__((section(".probes"))) = 0;
static inline __attribute__((always_inline)) void pass(void)
{
    USDT("shop", "passed", "raised MOVED", "MOVED", "8@%rdi -4@$5");
}
__attribute__((noinline)) void one(void) { pass(); }
__attribute__((noinline)) void two(void) { pass(); USDT("shop", "quiet", "0", "MOVED", ""); }
int main(void) { one(); two(); return 0; }
"""
)


def readelf_notes(path: Path) -> list[tuple[str, ...]]:
    """Provider, name, location, semaphore, arguments of each note, as readelf has them."""
    return re.findall(
        r"Provider: (\S+)\s+Name: (\S+)\s+Location: (\w+), Base: \w+, Semaphore: (\w+)\s+"
        r"Arguments: ?(.*)",
        run("readelf", "--wide", "--notes", path),
    )


def read_notes(path: Path) -> list[tuple[str, ...]]:
    with Elf(path) as elf:
        return [
            (
                note.provider,
                note.name,
                f"{note.address:#018x}",
                f"{note.semaphore:#018x}",
                note.arguments,
            )
            for note in elf.usdt_notes
        ]


@pytest.mark.parametrize("option", ["-no-pie", "-pie"])
def test_usdt_notes_with_several_locations(tmp_path: Path, option: str) -> None:
    path = compile_c(tmp_path / "probes", PROBES.replace("MOVED", "+ 0"), "-O1", option)
    notes = read_notes(path)
    assert notes == readelf_notes(path)
    assert sorted(each[1] for each in notes) == ["passed", "passed", "quiet"]
    with Elf(path) as elf:
        (raised,) = elf.symbols("raised")
        passed = [note for note in elf.usdt_notes if note.name == "passed"]
        assert {note.semaphore for note in passed} == {raised.address}
        assert len({note.address for note in passed}) == 2
        for note, function in zip(passed, ("one", "two"), strict=True):
            (inside,) = [
                each for each in disassemble(path, function) if each.address == note.address
            ]
            assert inside.text == "nop"


def test_usdt_notes_of_a_file_that_was_moved(tmp_path: Path) -> None:
    here = compile_c(tmp_path / "here", PROBES.replace("MOVED", "+ 0"), "-O1", "-no-pie")
    moved = compile_c(tmp_path / "moved", PROBES.replace("MOVED", "- 0x1000"), "-O1", "-no-pie")
    assert readelf_notes(here) != readelf_notes(moved)
    assert read_notes(moved) == read_notes(here)


def test_usdt_notes_of_the_distributions_python() -> None:
    path = Path("/usr/bin/python3").resolve()
    assert read_notes(path) == readelf_notes(path)


def test_no_usdt_notes(flavours: dict[str, Path]) -> None:
    assert read_notes(flavours["library"]) == []


def test_what_is_no_executable(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(UsageError, match=r"script is no executable .* name the interpreter"):
        Elf(script)
    with pytest.raises(UsageError, match=r"cannot read .*nothing: No such file"):
        Elf(tmp_path / "nothing")


def test_another_machines_executable(flavours: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(flavours["library"].read_bytes())
    data[18:20] = (183).to_bytes(2, "little")  # e_machine: EM_AARCH64
    path = tmp_path / "arm"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="arm is built for AArch64, 64 bits; otelbpf can only"):
        Elf(path)
