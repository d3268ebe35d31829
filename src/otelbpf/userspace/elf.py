# SPDX-License-Identifier: Apache-2.0
"""Reads executables and shared libraries: functions, where they lie in the file, USDT probes.

A uprobe is put on a place in a file, not on an address; the program headers
tell the one from the other. Symbols are read as arrays, since a large server
has some hundred thousand of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection
from elftools.elf.sections import NoteSection, Section
from elftools.elf.segments import NoteSegment

from otelbpf.errors import UsageError
from otelbpf.userspace.code import Code

#: Where distributions put the symbols that they stripped, by build id.
DEBUG_ROOT = Path("/usr/lib/debug")

_MAGIC = b"\x7fELF"
_PF_X = 1
_PAGE = 4096
_SHN_UNDEF = 0
# The lower four bits of st_info, elf.h
_STT_FUNC = 2
_STT_GNU_IFUNC = 10
_VERSION_HIDDEN = 0x8000
# The versions that stand for "local" and "without a version".
_VERSION_RESERVED = 1

_SHF_ALLOC = 2
_DF_1_PIE = 0x08000000

# Elf64_Rela, elf.h
_RELOCATION = np.dtype([("place", "<u8"), ("kind", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
# Elf64_Sym, elf.h
_SYMBOL = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("section", "<u2"),
        ("address", "<u8"),
        ("size", "<u8"),
    ]
)


@dataclass(frozen=True)
class Symbol:
    """A name in a symbol table.

    Attributes:
        version: of a versioned library's function, such as "OPENSSL_3.0.0"; else empty.
        address: as linked; not where a process has it, and no place in the file.
        size: bytes; 0: the symbol table does not tell.
        is_resolver: calling it is calling what it chose when the program started (an "ifunc").
        is_defined: in this file; it is imported from another one if not.
    """

    name: str
    version: str
    address: int
    size: int
    is_function: bool
    is_resolver: bool
    is_defined: bool

    def __str__(self) -> str:
        return f"{self.name}@{self.version}" if self.version else self.name


@dataclass(frozen=True)
class UsdtNote:
    """One location of a USDT probe; what the compiler copied has several.

    Attributes:
        address: of its instruction, as this file is linked.
        semaphore: address of the counter that is raised while a probe is attached; 0: none.
        arguments: as the assembler wrote them, for `otelbpf.userspace.usdt`.
    """

    provider: str
    name: str
    address: int
    semaphore: int
    arguments: str


def is_elf(path: Path) -> bool:
    """Does the file look like an executable or a shared library? False if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


class Elf:
    """One executable or shared library for x86-64. A context manager: it keeps the file open.

    Args:
        path: to open.
        name: for messages, where the path is none that people know; default: the path.
        debug_roots: directories with `.build-id/xx/yyyy.debug`, the best first.
    Raises:
        UsageError: the file cannot be read, or is none of those.
    """

    def __init__(
        self, path: Path, name: str = "", debug_roots: Sequence[Path] = (DEBUG_ROOT,)
    ) -> None:
        self.path = path
        self.name = name or str(path)
        self._debug_roots = debug_roots
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise UsageError(
                f"cannot read {self.name}: {error.strerror}; name an executable or a shared "
                "library that otelbpf may read"
            ) from error
        try:
            self._elf = self._parse()
        except BaseException:
            self._file.close()
            raise

    def _parse(self) -> ELFFile:
        if self._file.read(len(_MAGIC)) != _MAGIC:
            raise UsageError(
                f"{self.name} is no executable or shared library in the ELF format; "
                "of a script, name the interpreter that runs it, or the process (PID:...)"
            )
        try:
            elf = ELFFile(self._file)
        except ELFError as error:
            raise UsageError(
                f"{self.name} is a damaged ELF file: {error}; build or install it anew"
            ) from error
        if elf["e_machine"] != "EM_X86_64" or elf.elfclass != 64:
            raise UsageError(
                f"{self.name} is built for {elf.get_machine_arch()}, {elf.elfclass} bits; "
                "otelbpf can only probe what is built for x86-64"
            )
        return elf

    def __enter__(self) -> Elf:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def is_position_independent(self) -> bool:
        """Is it a shared library or a position-independent executable?"""
        return bool(self._elf["e_type"] == "ET_DYN")

    @cached_property
    def is_program(self) -> bool:
        """Is it an executable? Those of older linkers are told by their interpreter alone."""
        if not self.is_position_independent or any(self._elf.iter_segments("PT_INTERP")):
            return True
        return any(
            tag["d_tag"] == "DT_FLAGS_1" and tag["d_val"] & _DF_1_PIE
            for segment in self._elf.iter_segments("PT_DYNAMIC")
            if isinstance(segment, DynamicSegment)
            for tag in segment.iter_tags()
        )

    @property
    def thread_local_size(self) -> int:
        """Bytes that its thread-local variables take, their alignment included; 0: none."""
        for segment in self._elf.iter_segments("PT_TLS"):
            align = segment["p_align"] or 1
            return -(-segment["p_memsz"] // align) * align
        return 0

    @cached_property
    def is_go(self) -> bool:
        """Did Go's linker write it?"""
        return any(self._section(name) for name in (".go.buildinfo", ".note.go.buildid"))

    @cached_property
    def has_exceptions(self) -> bool:
        """May exceptions or panics pass through its functions, as they do in C++ and Rust?

        What is stripped and has code that cleans up after them is taken to.
        """
        if self._section(".gcc_except_table") is None:
            return False
        # Each language has a function to unwind its frames; C's ends threads, in the C library.
        names = [symbol.name for symbol in self.symbols("*_personality*")]
        return self.is_stripped or any("__gcc_personality" not in name for name in names)

    @cached_property
    def is_stripped(self) -> bool:
        """Is the table of all its symbols gone? What others may call is still there."""
        return self._section(".symtab") is None

    @cached_property
    def build_id(self) -> str:
        """In hexadecimal digits; empty if it has none."""
        for part in (*self._elf.iter_segments(), *self._elf.iter_sections()):
            if isinstance(part, NoteSegment | NoteSection):
                for note in part.iter_notes():
                    if note["n_name"] == "GNU" and note["n_type"] == "NT_GNU_BUILD_ID":
                        return str(note["n_desc"])
        return ""

    @property
    def debug_file(self) -> Path | None:
        """The file with the symbols that were stripped from this one; None: not installed."""
        if not self.build_id:
            return None
        part = Path(".build-id", self.build_id[:2], f"{self.build_id[2:]}.debug")
        return next((root / part for root in self._debug_roots if is_elf(root / part)), None)

    def symbols(self, pattern: str) -> list[Symbol]:
        """The symbols that a pattern names, sorted by address and one for each.

        Args:
            pattern: a name, taken as it is if a symbol has it; else `*` and `?` in it stand for
                any letters and one. `NAME@VERSION` asks for one version of a library's function.
                C++ and Rust functions have only their mangled names.
        """
        name, _, version = pattern.partition("@")
        version = version.removeprefix("@")
        found = self._matching(re.escape(name.encode()))
        if not found and re.search(r"[*?]", name):
            parts = {"*": rb"[^\0@]*", "?": rb"[^\0@]"}
            found = self._matching(
                b"".join(parts.get(each) or re.escape(each.encode()) for each in name)
            )
        first: dict[int | str, Symbol] = {}
        for symbol in found:
            if not version or symbol.version == version:
                first.setdefault(symbol.address if symbol.is_defined else symbol.name, symbol)
        return sorted(first.values(), key=lambda symbol: symbol.address)

    @cached_property
    def addresses(self) -> frozenset[int]:
        """Of all its symbols."""
        return frozenset(each.address for each in self.symbols("*") if each.is_defined)

    def offset_of(self, address: int, *, executable: bool = True) -> int:
        """Where in the file an address is, in bytes.

        Args:
            executable: it is an instruction's.
        Raises:
            UsageError: nowhere.
        """
        for segment in self._elf.iter_segments("PT_LOAD"):
            start = segment["p_vaddr"]
            if executable and not segment["p_flags"] & _PF_X:
                continue
            if start <= address < start + segment["p_filesz"]:
                return address - start + segment["p_offset"]
        kind = "executable part" if executable else "part"
        raise UsageError(
            f"address {address:#x} of {self.name} lies in no {kind} of the file, so that it cannot "
            "be probed; name another function"
        )

    def moved_by(self, address: int, offset: int) -> int:
        """How far from where it is linked a process has it.

        Args:
            address: where the process has mapped what is at `offset` in the file.
        Raises:
            UsageError: such a part is none that is mapped.
        """
        for segment in self._elf.iter_segments("PT_LOAD"):
            start = segment["p_offset"]
            if start & -_PAGE <= offset < start + segment["p_filesz"]:
                return address - offset - (segment["p_vaddr"] - start)
        raise UsageError(f"{self.name} has no part at {offset:#x} that could be mapped")

    def code_of(self, symbol: Symbol) -> Code:
        """The instructions of a function whose size is known; UsageError where they lie nowhere."""
        self._file.seek(self.offset_of(symbol.address))
        return Code(symbol.address, self._file.read(symbol.size))

    def word_at(self, symbol: Symbol) -> int:
        """An `unsigned long` constant's value; UsageError where it lies nowhere in the file."""
        self._file.seek(self.offset_of(symbol.address, executable=False))
        return int.from_bytes(self._file.read(8), "little")

    @cached_property
    def usdt_notes(self) -> tuple[UsdtNote, ...]:
        """Its USDT probes, a note for each location.

        Source:
            sourceware.org/systemtap/wiki/UserSpaceProbeImplementation
        """
        notes = self._section(".note.stapsdt")
        if not isinstance(notes, NoteSection):
            return ()
        # What moved the file's addresses after it was linked moved this section, too.
        base = self._section(".stapsdt.base")
        return tuple(
            _usdt_note(note["n_descdata"], base["sh_addr"] if base else None)
            for note in notes.iter_notes()
            if note["n_name"] == "stapsdt"
        )

    def dynamic_symbol(self, name: str) -> tuple[int, Symbol] | None:
        """The number and the symbol of this name among those that libraries share."""
        table = self._section(".dynsym")
        # Of a large library this tells in no time what its symbols, one by one, do not.
        wanted = name.encode() + b"\0"
        if table is None or wanted not in self._elf.get_section(table["sh_link"]).data():
            return None
        return next(self._numbered(".dynsym", _pattern(re.escape(name.encode()))), None)

    def relocations(self) -> np.ndarray:
        """What is filled in when it is loaded.

        Returns:
            (n,): `place`, an address as linked; `kind`, R_X86_64_*; `symbol`, the number of a
            dynamic one, 0: none; `addend`.
        """
        tables = [
            np.frombuffer(section.data(), _RELOCATION)
            for section in self._elf.iter_sections("SHT_RELA")
            if section["sh_flags"] & _SHF_ALLOC
        ]
        return np.concatenate([np.empty(0, _RELOCATION), *tables])

    def _section(self, name: str) -> Section | None:
        return self._elf.get_section_by_name(name)

    def _matching(self, name: bytes) -> list[Symbol]:
        pattern = _pattern(name)
        found = list(self._table(".dynsym", pattern))
        if not self.is_stripped:
            found += self._table(".symtab", pattern)
        elif self.debug_file:
            with Elf(self.debug_file) as debug:
                found += debug._table(".symtab", pattern)
        return found

    def _table(self, section_name: str, pattern: re.Pattern[bytes]) -> Iterator[Symbol]:
        return (symbol for _, symbol in self._numbered(section_name, pattern))

    def _numbered(
        self, section_name: str, pattern: re.Pattern[bytes]
    ) -> Iterator[tuple[int, Symbol]]:
        section = self._section(section_name)
        if section is None or section["sh_type"] == "SHT_NOBITS":
            return
        rows = np.frombuffer(section.data(), _SYMBOL)
        names = self._elf.get_section(section["sh_link"]).data()
        versions = self._versions(len(rows)) if section_name == ".dynsym" else None
        for index, offset in enumerate(rows["name"].tolist()):
            match = pattern.match(names, offset)
            if not match:
                continue
            row = rows[index]
            kind = int(row["info"]) & 0xF
            version = (match["version"] or b"").decode(errors="replace")
            yield (
                index,
                Symbol(
                    name=match["name"].decode(errors="replace"),
                    version=versions[index] if versions else version,
                    address=int(row["address"]),
                    size=int(row["size"]),
                    is_function=kind in (_STT_FUNC, _STT_GNU_IFUNC),
                    is_resolver=kind == _STT_GNU_IFUNC,
                    is_defined=int(row["section"]) != _SHN_UNDEF,
                ),
            )

    def _versions(self, count: int) -> list[str]:
        """The version of each dynamic symbol; those of imported ones are not looked up."""
        numbers, definitions = self._section(".gnu.version"), self._section(".gnu.version_d")
        if numbers is None or not isinstance(definitions, GNUVerDefSection):
            return [""] * count
        names = {
            definition["vd_ndx"]: next(auxiliaries).name
            for definition, auxiliaries in definitions.iter_versions()
            if definition["vd_ndx"] > _VERSION_RESERVED
        }
        indices = np.frombuffer(numbers.data(), "<u2") & ~np.uint16(_VERSION_HIDDEN)
        return [names.get(index, "") for index in indices.tolist()]


def _pattern(name: bytes) -> re.Pattern[bytes]:
    # In the table of all symbols a version follows the name.
    return re.compile(rb"(?P<name>" + name + rb")(?:@@?(?P<version>[^\0]*))?\0")


def _usdt_note(data: bytes, base: int | None) -> UsdtNote:
    location, linked_base, semaphore = np.frombuffer(data, "<u8", 3).tolist()
    moved = base - linked_base if base is not None else 0
    provider, name, arguments = data[24:].split(b"\0")[:3]
    return UsdtNote(
        provider=provider.decode(errors="replace"),
        name=name.decode(errors="replace"),
        address=location + moved,
        semaphore=semaphore + moved if semaphore else 0,
        arguments=arguments.decode(errors="replace"),
    )
