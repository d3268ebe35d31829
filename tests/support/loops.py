# SPDX-License-Identifier: Apache-2.0
"""What the verifier of Linux 6.1 refuses of loops before it looks at anything else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from elftools.elf.elffile import ELFFile

# struct bpf_insn, uapi/linux/bpf.h
_INSTRUCTION = np.dtype(
    [("code", "u1"), ("registers", "u1"), ("offset", "<i2"), ("immediate", "<i4")]
)
_JUMP_CLASSES = 0x05, 0x06
_ALWAYS, _CALL, _EXIT = 0x00, 0x80, 0x90


def functions_of(path: Path) -> dict[str, bytes]:
    """Function -> its instructions, of an object."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        found = {}
        for symbol in elf.get_section_by_name(".symtab").iter_symbols():
            if symbol["st_info"]["type"] == "STT_FUNC":
                start = symbol["st_value"]
                code = elf.get_section(symbol["st_shndx"]).data()
                found[symbol.name] = code[start : start + symbol["st_size"]]
        return found


def refused_loops(function: bytes) -> list[tuple[int, int]]:
    """Where it runs on into what it came from, as from the end of a loop into its beginning.

    There only a jump may lead back: check_cfg(), kernel/bpf/verifier.c, which goes the same way.
    What a function calls never leads back into it.

    Returns:
        The instruction, and the next one, of each such place.
    """
    code = np.frombuffer(function, _INSTRUCTION).tolist()
    entered, way, refused = {0}, {0: _following(code, 0)}, []
    while way:
        at, following = next(reversed(way.items()))
        to = next(following, None)
        if to is None:
            del way[at]
        elif to not in entered:
            entered.add(to)
            way[to] = _following(code, to)
        elif to in way and not _is_jump(code[at][0]):
            refused.append((at, to))
    return refused


def _following(code: list[tuple[int, ...]], at: int) -> Iterator[int]:
    what, _, offset, _ = code[at]
    if not _is_jump(what):
        if what & 0xF0 != _EXIT or what & 0x07 not in _JUMP_CLASSES:
            yield at + 1
        return
    if what & 0xF0 != _ALWAYS:
        yield at + 1
    yield at + 1 + offset


def _is_jump(what: int) -> bool:
    return what & 0x07 in _JUMP_CLASSES and what & 0xF0 not in (_CALL, _EXIT)
