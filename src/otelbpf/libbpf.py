# SPDX-License-Identifier: Apache-2.0
"""The few calls of libbpf that BCC's Python module does not offer, by ctypes.

BCC loads the programs; these attach what it loaded by links, which the kernel
takes down itself when the process ends, however it ends.
"""

from __future__ import annotations

import ctypes
import functools
import os

from otelbpf.errors import KernelError

# enum bpf_attach_type, uapi/linux/bpf.h
BPF_XDP = 37
BPF_TCX_INGRESS = 46
BPF_TCX_EGRESS = 47
# With nothing to be relative to: before all others.
BPF_F_BEFORE = 1 << 3
XDP_FLAGS_SKB_MODE = 1 << 1
XDP_FLAGS_DRV_MODE = 1 << 2


class _LinkCreateOpts(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("flags", ctypes.c_uint32),
        ("iter_info", ctypes.c_void_p),
        ("iter_info_len", ctypes.c_uint32),
        ("target_btf_id", ctypes.c_uint32),
    ]


class _TestRunOpts(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    """libbpf, loaded once.

    Raises:
        KernelError: it is not installed.
    """
    try:
        return ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise KernelError(
            f"cannot load libbpf.so.1 ({error}): install it with `apt install libbpf1`"
        ) from error


def _checked(result: int) -> int:
    if result < 0:
        number = -result if result != -1 else ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def link_create(program_fd: int, ifindex: int, attach_type: int, flags: int = 0) -> int:
    """Attaches a program to an interface of the calling thread's network namespace.

    Returns:
        the link's file descriptor; closing it detaches.
    Raises:
        OSError: the kernel's refusal.
    """
    opts = _LinkCreateOpts(sz=ctypes.sizeof(_LinkCreateOpts), flags=flags)
    return _checked(
        library().bpf_link_create(program_fd, ifindex, attach_type, ctypes.byref(opts))
    )


def raw_tracepoint_open(name: str, program_fd: int) -> int:
    """Attaches a program to a raw tracepoint; closing the descriptor detaches it.

    Raises:
        OSError: the kernel's refusal.
    """
    return _checked(library().bpf_raw_tracepoint_open(name.encode(), program_fd))


def run_once(program_fd: int, *, data: bytes = b"", context: bytes = b"") -> None:
    """Runs a program once, in this process, on made-up input.

    Raises:
        OSError: the kernel's refusal.
    """
    opts = _TestRunOpts(sz=ctypes.sizeof(_TestRunOpts))
    if data:
        opts.data_in = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p)
        opts.data_size_in = len(data)
    if context:
        opts.ctx_in = ctypes.cast(ctypes.c_char_p(context), ctypes.c_void_p)
        opts.ctx_size_in = len(context)
    _checked(library().bpf_prog_test_run_opts(program_fd, ctypes.byref(opts)))
