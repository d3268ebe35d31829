# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of loaded programs, and of where they are attached."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TypeVar

from otelbpf.kernel.libbpf import checked, library

_LINE_MOST = 64  # programs in one: BPF_MPROG_MAX


class _ProgInfo(ctypes.Structure):
    """struct bpf_prog_info up to the last field that is read here; the kernel fills what fits."""

    id: int
    name: bytes
    run_time_ns: int
    run_cnt: int
    recursion_misses: int
    verified_insns: int
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("before_name", ctypes.c_uint8 * 56),
        ("name", ctypes.c_char * 16),
        ("before_run_time", ctypes.c_uint8 * 112),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_insns", ctypes.c_uint32),
    ]


class _LinkInfo(ctypes.Structure):
    """struct bpf_link_info; a kernel that does not know a field leaves it 0.

    Of the union only `ifindex` is that of XDP's and of tcx links, and `missed` of a kprobe's.
    """

    ifindex: int
    missed: int
    _fields_ = [
        ("before_union", ctypes.c_uint8 * 16),
        ("ifindex", ctypes.c_uint32),
        ("before_missed", ctypes.c_uint8 * 28),
        ("missed", ctypes.c_uint64),
    ]


class _QueryOpts(ctypes.Structure):
    """struct bpf_prog_query_opts as libbpf has had it from the start."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("prog_ids", ctypes.c_void_p),
        ("count", ctypes.c_uint32),
        ("prog_attach_flags", ctypes.c_void_p),
    ]


_Info = TypeVar("_Info", _ProgInfo, _LinkInfo)


@dataclass(frozen=True)
class ProgramInfo:
    """What the kernel says of a loaded program.

    Attributes:
        id: the kernel's number for it.
        name: what the kernel keeps of it, libbpf.kernel_name().
        runs, run_time_ns: counted only while statistics are on.
        missed: how often it was not run because a program was running already.
        verified: how many instructions the verifier looked at; of one million it refuses.
    """

    id: int
    name: str
    runs: int
    run_time_ns: int
    missed: int
    verified: int


def program_info(program_fd: int) -> ProgramInfo:
    """What the kernel says of a loaded program.

    Raises:
        OSError: the kernel's refusal.
    """
    info = _info(program_fd, _ProgInfo())
    return ProgramInfo(
        info.id, info.name.decode(errors="replace"), info.run_cnt, info.run_time_ns,
        info.recursion_misses, info.verified_insns,
    )  # fmt: skip


def kprobe_missed(link_fd: int) -> int:
    """How often a kprobe was hit while the kernel could not run it, as far as it tells.

    Kernels before 6.7 do not count it, and 0 is all they say.

    Args:
        link_fd: of attach_kprobe().
    Raises:
        OSError: the kernel's refusal.
    """
    return _info(link_fd, _LinkInfo()).missed


def link_ifindex(link_fd: int) -> int:
    """Of which interface an XDP or a tcx link is; 0 once that is gone, or the link was cut.

    Raises:
        OSError: the kernel's refusal.
    """
    return _info(link_fd, _LinkInfo()).ifindex


def attached_programs(ifindex: int, attach_type: int) -> list[int]:
    """The numbers of the programs in a line of tcx, the first one first.

    Args:
        ifindex: of an interface in the calling thread's network namespace.
    Raises:
        OSError: the kernel's refusal.
    """
    ids = (ctypes.c_uint32 * _LINE_MOST)()
    opts = _QueryOpts(ctypes.sizeof(_QueryOpts), prog_ids=ctypes.addressof(ids), count=len(ids))
    checked(library().bpf_prog_query_opts(ifindex, attach_type, ctypes.byref(opts)))
    return list(ids[: opts.count])


def _info(fd: int, info: _Info) -> _Info:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    checked(library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)))
    return info
