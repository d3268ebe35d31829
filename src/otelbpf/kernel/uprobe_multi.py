# SPDX-License-Identifier: Apache-2.0
"""One attachment for many uprobes of a file, where the kernel has such: Linux 6.6 and later.

It is made, and above all given up, at once: the kernel waits for running programs once, and not for
each place. libbpf knows it since 1.3, so the system call is made here.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from otelbpf.kernel.libbpf import BPF_TRACE_UPROBE_MULTI, checked

_BPF = 321  # the number of the system call on x86-64
_BPF_LINK_CREATE = 28
_AT_RETURN = 1  # BPF_F_UPROBE_MULTI_RETURN


@dataclass(frozen=True)
class Place:
    """Of one uprobe among many.

    Attributes:
        offset: of the instruction, in bytes from the start of the file.
        semaphore: offset in the file of a USDT probe's counter, raised while this is attached.
        cookie: what the program is told of this place.
    """

    offset: int
    semaphore: int = 0
    cookie: int = 0


class _LinkCreate(ctypes.Structure):
    """union bpf_attr for BPF_LINK_CREATE, with its uprobe_multi."""

    _fields_ = [
        ("prog_fd", ctypes.c_uint32),
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("path", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("semaphores", ctypes.c_void_p),
        ("cookies", ctypes.c_void_p),
        ("count", ctypes.c_uint32),
        ("multi_flags", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    ]


def attach_uprobes(
    path: Path, places: Sequence[Place], program_fd: int, *, at_return: bool = False
) -> int:
    """Attaches a program to instructions of an executable or a library, for all that map it.

    Not for one process: before 6.10, commit 46ba0e49b642 (bpf: fix multi-uprobe PID filtering
    logic), the kernel would take one of its threads for all of it.

    Args:
        program_fd: of a program that was loaded for BPF_TRACE_UPROBE_MULTI.
        at_return: of the functions that begin there.
    Returns:
        the descriptor of the link; closing it detaches.
    Raises:
        OSError: the kernel's refusal; it may have no such links.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    columns = [
        (ctypes.c_uint64 * len(places))(*column)
        for column in zip(*((p.offset, p.semaphore, p.cookie) for p in places), strict=True)
    ]
    offsets, semaphores, cookies = map(ctypes.addressof, columns)
    attr = _LinkCreate(
        prog_fd=program_fd,
        attach_type=BPF_TRACE_UPROBE_MULTI,
        path=ctypes.addressof(name),
        offsets=offsets,
        semaphores=semaphores,
        cookies=cookies,
        count=len(places),
        multi_flags=_AT_RETURN if at_return else 0,
    )
    libc = ctypes.CDLL(None, use_errno=True)
    return checked(libc.syscall(_BPF, _BPF_LINK_CREATE, ctypes.byref(attr), ctypes.sizeof(attr)))
