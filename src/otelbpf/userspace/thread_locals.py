# SPDX-License-Identifier: Apache-2.0
"""Where a process has a thread-local variable, counted from what each thread has in `fs`.

An executable's variables lie right below that address. A library's are where the loader put them,
and its notes tell where that is: whoever uses the variable has it in its global offset table, in
one of three forms, which differ by the relocation that asked for it.

Source:
    Drepper, ELF Handling For Thread-Local Storage; Oliva, RFC: TLSDESC for x86;
    glibc, sysdeps/x86_64/{dl-tls.h,dl-tlsdesc.h} and sysdeps/x86_64/nptl/tls.h (tcbhead_t, dtv_t).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError

from otelbpf.errors import UsageError
from otelbpf.host.processes import MappedFile, mapped_files
from otelbpf.kernel.records import THREAD_VARIABLE
from otelbpf.userspace.elf import Elf, is_elf

# R_X86_64_*, elf.h
_DTPMOD64 = 16
_TPOFF64 = 18
_TLSDESC = 36
# The best first: what says it in one number, and without a look at each thread's table.
_KINDS = (_TPOFF64, _TLSDESC, _DTPMOD64)

# No process has as many modules, or as much in one of them; other numbers are something else.
_MODULES_MOST = 1 << 16
_OFFSET_MOST = 1 << 31

#: Of files, by device, inode and time of change: do they have the name?
KnownFiles = dict[tuple[int, int, int], bool]

#: What reading a damaged file can raise; pyelftools checks little of what a file says.
_DAMAGE = (ELFError, ConstructError, ValueError, KeyError, AttributeError, TypeError, IndexError)


class UnresolvedError(Exception):
    """The variable is there, and where each thread has it could not be told; says why."""


@dataclass(frozen=True)
class ThreadLocal:
    """Where each thread of a process has a variable.

    Attributes:
        offset: from the thread's pointer on; if there is a module, from its block on.
        module: whose block it is, by its number in the thread's table of them (glibc's dtv), or 0.
        generation: since which the table has the module.
    """

    offset: int
    module: int = 0
    generation: int = 0

    def packed(self) -> bytes:
        """As struct thread_variable, bpf/abi/settings.h."""
        return np.array((self.offset, self.module, self.generation), THREAD_VARIABLE).tobytes()


@dataclass(frozen=True)
class _Use:
    """A place where the loader has noted the variable for a file that uses it.

    Attributes:
        address: in the process.
        missing: what the offset that it says lacks.
        whole: the offset is this one, and not what the place says; None: it is that.
    """

    kind: int
    address: int
    missing: int = 0
    whole: int | None = None


def find_thread_local(pid: int, name: str, known: KnownFiles) -> ThreadLocal | None:
    """Where the threads of a process have the variable `name`; None: it has no such one.

    Args:
        known: what was found out before; is added to.
    Raises:
        UnresolvedError: it has it, but where could not be told.
        OSError: there is no such process, or it is none of this user's.
    """
    files = mapped_files(pid)
    uses: list[_Use] = []
    is_defined = False
    for file in files:
        if not _may_name(file, known):
            continue
        assert file.openable is not None
        try:
            with Elf(file.openable, str(file.path)) as elf:
                found = elf.dynamic_symbol(name)
                known[_identity(file.openable)] = found is not None
                if found is None:
                    continue
                number, symbol = found
                if symbol.is_defined and elf.is_program:
                    # Its block ends where the threads' pointers point to, which its code relies on.
                    return ThreadLocal(symbol.address - elf.thread_local_size)
                is_defined |= symbol.is_defined
                uses += _uses(elf, file, number, symbol.address if symbol.is_defined else None)
        except (UsageError, *_DAMAGE) as error:
            raise UnresolvedError(f"{file.path} cannot be read: {error}") from error
    if not is_defined:
        return None
    is_glibc = any(file.path.name.startswith("ld-linux") for file in files)
    reason: Exception = UnresolvedError("none of its files says where the loader has put it")
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for use in sorted(uses, key=lambda use: _KINDS.index(use.kind)):
            try:
                return _read_use(memory, use, is_glibc)
            except (UnresolvedError, OSError) as error:
                reason = error
    raise UnresolvedError(str(reason)) from reason


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _may_name(file: MappedFile, known: KnownFiles) -> bool:
    """False if it is certain that the file does not have the name."""
    if file.openable is None:
        return False
    try:
        return known.get(_identity(file.openable), True) and is_elf(file.openable)
    except OSError:
        return False


def _uses(elf: Elf, file: MappedFile, number: int, value: int | None) -> list[_Use]:
    """Where the loader has noted the variable for this file: at most one place of each kind.

    Args:
        number: of its symbol.
        value: its offset in the file's own block; None: it is another file's.
    """
    moved = elf.moved_by(file.address, file.offset)
    relocations = elf.relocations()
    found = []
    for kind in _KINDS:
        of_kind = relocations[relocations["kind"] == kind]
        named = of_kind[of_kind["symbol"] == number]
        # What no other file may replace has no name there. Any place that says where the file's
        # block is will do.
        nameless = of_kind[of_kind["symbol"] == 0]
        if len(named):
            row, missing, whole = named[0], -int(named[0]["addend"]), None
        elif value is not None and len(nameless):
            row, missing, whole = nameless[0], value - int(nameless[0]["addend"]), value
        else:
            continue
        found.append(_Use(kind, int(row["place"]) + moved, missing, whole))
    return found


def _read_use(memory: BinaryIO, use: _Use, is_glibc: bool) -> ThreadLocal:
    """What the loader has noted in one place.

    Raises:
        UnresolvedError, OSError: nothing that could be understood.
    """
    if use.kind == _TPOFF64:
        (offset,) = _words(memory, use.address, "q")
        return _static(offset + use.missing)
    if use.kind == _TLSDESC:
        function, argument = _words(memory, use.address, "Qq")
        if not function:
            raise UnresolvedError("it is still being loaded")
        # The argument is an offset for the one function and an address for the other, whose
        # names nobody can see; offsets are negative, and no address is.
        if argument < 0:
            return _static(argument + use.missing)
        module, offset, generation = _words(memory, argument, "QqQ")
    else:
        module, offset = _words(memory, use.address, "Qq")
        generation = 0
    if not is_glibc:
        raise UnresolvedError("its C library is not glibc, whose table of modules otelbpf knows")
    offset = offset + use.missing if use.whole is None else use.whole
    if not (0 < module < _MODULES_MOST and 0 <= offset < _OFFSET_MOST):
        raise UnresolvedError("it is still being loaded")
    return ThreadLocal(offset, module, generation)


def _static(offset: int) -> ThreadLocal:
    if not -_OFFSET_MOST < offset < 0:
        raise UnresolvedError("it is still being loaded")
    return ThreadLocal(offset)


def _words(memory: BinaryIO, address: int, layout: str) -> tuple[int, ...]:
    memory.seek(address)
    layout = f"={layout}"
    data = memory.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise UnresolvedError("its memory ends there")
    return struct.unpack(layout, data)
