# SPDX-License-Identifier: Apache-2.0
"""The few calls of libbpf and of the kernel that are needed, by ctypes.

Maps are made, and programs loaded and attached here, whoever compiled them: by links that the
kernel takes down itself when the process ends, however it ends.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from otelbpf.errors import KernelError
from otelbpf.kernel.libbpf_functions import functions_of

# enum bpf_map_type, uapi/linux/bpf.h
_BPF_MAP_TYPE_ARRAY = 2
_BPF_MAP_TYPE_ARRAY_OF_MAPS = 12
_BPF_F_MMAPABLE = 1 << 10
# enum bpf_prog_type
BPF_PROG_TYPE_KPROBE = 2
BPF_PROG_TYPE_SCHED_CLS = 3
BPF_PROG_TYPE_XDP = 6
BPF_PROG_TYPE_RAW_TRACEPOINT = 17
BPF_PROG_TYPE_CGROUP_SOCKOPT = 25
BPF_PROG_TYPE_TRACING = 26
# enum bpf_attach_type
BPF_CGROUP_SETSOCKOPT = 22
BPF_TRACE_RAW_TP = 23
BPF_TRACE_FENTRY = 24
BPF_TRACE_ITER = 28
BPF_XDP = 37
_BPF_PERF_EVENT = 41
BPF_TCX_INGRESS = 46
BPF_TCX_EGRESS = 47
BPF_TRACE_UPROBE_MULTI = 48
# With nothing to be relative to: before all others.
BPF_F_BEFORE = 1 << 3
XDP_FLAGS_SKB_MODE = 1 << 1
XDP_FLAGS_DRV_MODE = 1 << 2


class _MapCreateOpts(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    ]


class _LinkCreateOpts(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("flags", ctypes.c_uint32),
        ("iter_info", ctypes.c_void_p),
        ("iter_info_len", ctypes.c_uint32),
        ("target_btf_id", ctypes.c_uint32),
        ("cookie", ctypes.c_uint64),  # of a link to a perf event
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


class _LoadOpts(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_uint32),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
    ]


class _PerfEventAttr(ctypes.Structure):
    """struct perf_event_attr as of PERF_ATTR_SIZE_VER1, for kprobes and uprobes."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("bp_type", ctypes.c_uint32),
        ("target", ctypes.c_uint64),
        ("probe_offset", ctypes.c_uint64),
    ]


KPROBE_EVENTS = Path("/sys/bus/event_source/devices/kprobe/type")
UPROBE_EVENTS = Path("/sys/bus/event_source/devices/uprobe/type")
# What the kernel's own format/retprobe and format/ref_ctr_offset say of config.
_RETURN_PROBE = 1
_SEMAPHORE_SHIFT = 32
_PERF_EVENT_OPEN = 298  # the number of the system call on x86-64
_PERF_FLAG_FD_CLOEXEC = 8
_INSTRUCTION_BYTES = 8
# BPF_OBJ_NAME_LEN, with the zero at the end.
_NAME_BYTES = 16
# For what the verifier says: most of it is short, of tens of thousands of instructions it is not.
_LOG_BYTES = (1 << 20, 16 << 20)
#: The instructions of a program that does nothing.
RETURN_0 = bytes([0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])
#: Of one that reads the kernel's memory: bpf_probe_read_kernel(r10 - 8, 8, 0).
READ_KERNEL = b"".join(
    map(
        bytes.fromhex,
        ("bfa1000000000000", "07010000f8ffffff", "b702000008000000", "b703000000000000",
         "8500000071000000"),
    )
) + RETURN_0  # fmt: skip


class VerifierError(OSError):
    """The kernel refused a program.

    Attributes:
        log: the verifier's own words.
    """

    def __init__(self, number: int, log: str) -> None:
        super().__init__(number, os.strerror(number))
        self.log = log


@functools.cache
def library() -> SimpleNamespace:
    """The functions of libbpf, which is loaded once.

    Raises:
        KernelError: it is not installed, or another library is in its place.
    """
    functions = functions_of("libbpf.so.1")
    # What it cannot do is told by who asked for it.
    functions.libbpf_set_print(None)
    return functions


def version() -> str:
    """Which libbpf it is. Raises KernelError as library()."""
    told: bytes = library().libbpf_version_string()
    return told.decode().removeprefix("v")


def checked(result: int) -> int:
    """What a call gave, or the OSError that it says."""
    if result < 0:
        number = -result if result != -1 else ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def possible_cpus() -> int:
    """How many processors the machine may ever have: their numbers are below that.

    Raises:
        KernelError: the kernel does not say.
    """
    try:
        return checked(library().libbpf_num_possible_cpus())
    except OSError as error:
        raise KernelError(
            "cannot tell how many processors there may be from /sys/devices/system/cpu/possible "
            f"({error.strerror})",
            "mount a sysfs file system at /sys",
        ) from error


def kernel_name(name: str) -> str:
    """What the kernel keeps of the name of a map or of a program, and others show."""
    return name[: _NAME_BYTES - 1]


class MapShape(NamedTuple):
    """What a map is like.

    Attributes:
        type: of enum bpf_map_type.
        key_size, value_size: in bytes.
        max_entries: how many of them it has room for.
    """

    type: int
    key_size: int
    value_size: int
    max_entries: int


def create_map(name: str, shape: MapShape) -> int:
    """Makes a map.

    Args:
        name: of which it keeps what kernel_name() says.
    Returns:
        the map's file descriptor.
    Raises:
        OSError: the kernel's refusal.
    """
    return _create_map(name, shape, _MapCreateOpts(sz=ctypes.sizeof(_MapCreateOpts)))


def create_value(name: str, size: int) -> int:
    """Makes a map of one value, all zeros, that processes may map and programs have the address of.

    Args:
        size: in bytes.
    Returns, Raises:
        as create_map().
    """
    shape = MapShape(_BPF_MAP_TYPE_ARRAY, ctypes.sizeof(ctypes.c_uint32), size, 1)
    opts = _MapCreateOpts(sz=ctypes.sizeof(_MapCreateOpts), map_flags=_BPF_F_MMAPABLE)
    return _create_map(name, shape, opts)


def create_map_of_maps(name: str, inner_fd: int) -> int:
    """Makes an array with a place for one map that is like another.

    Args:
        inner_fd: of that other one.
    Returns, Raises:
        as create_map().
    """
    size = ctypes.sizeof(ctypes.c_uint32)
    opts = _MapCreateOpts(sz=ctypes.sizeof(_MapCreateOpts), inner_map_fd=inner_fd)
    return _create_map(name, MapShape(_BPF_MAP_TYPE_ARRAY_OF_MAPS, size, size, 1), opts)


def _create_map(name: str, shape: MapShape, opts: _MapCreateOpts) -> int:
    return checked(
        library().bpf_map_create(
            shape.type, kernel_name(name).encode(), shape.key_size, shape.value_size,
            shape.max_entries, ctypes.byref(opts),
        )
    )  # fmt: skip


def update_map(map_fd: int, key: bytes, value: bytes) -> None:
    """Puts a value into a map, in the place of an earlier one.

    Args:
        key, value: of the sizes that the map has.
    Raises:
        OSError: the kernel's refusal: there is no room, for one.
    """
    any_flags = ctypes.c_uint64(0)
    checked(library().bpf_map_update_elem(map_fd, key, value, any_flags))


def delete_from_map(map_fd: int, key: bytes) -> None:
    """Takes a key out of a map.

    Raises:
        OSError: the kernel's refusal: it is not there, for one.
    """
    checked(library().bpf_map_delete_elem(map_fd, key))


def link_create(program_fd: int, ifindex: int, attach_type: int, flags: int = 0) -> int:
    """Attaches a program to an interface of the calling thread's network namespace.

    Returns:
        the link's file descriptor; closing it detaches.
    Raises:
        OSError: the kernel's refusal.
    """
    opts = _LinkCreateOpts(sz=ctypes.sizeof(_LinkCreateOpts), flags=flags)
    return checked(library().bpf_link_create(program_fd, ifindex, attach_type, ctypes.byref(opts)))


def xdp_program(ifindex: int) -> int | None:
    """The number of the XDP program of an interface of the calling thread's network namespace.

    Raises:
        OSError: the kernel's refusal: there is no such interface, for one.
    """
    number = ctypes.c_uint32()
    checked(library().bpf_xdp_query_id(ifindex, 0, ctypes.byref(number)))
    return number.value or None


def link_update(link_fd: int, program_fd: int) -> None:
    """Puts another program in the place of a link's own.

    Raises:
        OSError: the kernel's refusal.
    """
    checked(library().bpf_link_update(link_fd, program_fd, None))


def load_program(
    name: str,
    instructions: bytes,
    program_type: int,
    attach_type: int = 0,
    target_btf_id: int = 0,
) -> int:
    """Loads a program.

    Args:
        name: of which it keeps what kernel_name() says.
        instructions: maps resolved.
        program_type: BPF_PROG_TYPE_*.
        attach_type: BPF_*, of a type that is made for one way to attach it.
        target_btf_id: of the tracepoint's or the function's type in the kernel's BTF;
            0 for a program that follows no typed pointers.
    Raises:
        VerifierError: the kernel's refusal.
    """
    opts = _LoadOpts(
        sz=ctypes.sizeof(_LoadOpts),
        expected_attach_type=attach_type,
        attach_btf_id=target_btf_id,
    )

    def load() -> int:
        fd: int = library().bpf_prog_load(
            program_type,
            kernel_name(name).encode(),
            b"GPL",
            instructions,
            ctypes.c_size_t(len(instructions) // _INSTRUCTION_BYTES),
            ctypes.byref(opts),
        )
        return -ctypes.get_errno() if fd == -1 else fd

    refusal = fd = load()
    # Again, with a log this time: writing one slows the verifier down. Before Linux 6.4 the answer
    # is another one where it does not fit.
    for size in _LOG_BYTES:
        if fd >= 0:
            break
        log = ctypes.create_string_buffer(size)
        opts.log_level, opts.log_size = 1, size
        opts.log_buf = ctypes.cast(log, ctypes.c_void_p)
        fd = load()
        if fd < 0 and fd != -errno.ENOSPC:
            raise VerifierError(-refusal, log.value.decode(errors="replace"))
    if fd < 0:
        raise VerifierError(-refusal, "")
    return fd


def attach_tracing(program_fd: int) -> int:
    """Attaches a program of load_program(); closing the descriptor detaches it.

    Raises:
        OSError: the kernel's refusal.
    """
    return checked(library().bpf_raw_tracepoint_open(None, program_fd))


def attach_iterator(program_fd: int) -> int:
    """Attaches a program that is run for each of something; it runs when an iterator is read.

    Returns:
        the link's file descriptor; closing it detaches.
    Raises:
        OSError: the kernel's refusal.
    """
    return checked(library().bpf_link_create(program_fd, 0, BPF_TRACE_ITER, None))


def create_iterator(link_fd: int) -> int:
    """A file descriptor to read from what the program of a link writes. It takes no right.

    Raises:
        OSError: the kernel's refusal.
    """
    return checked(library().bpf_iter_create(link_fd))


def attach_cgroup(directory: Path, program_fd: int) -> int:
    """Attaches a program to all processes of a cgroup; closing the descriptor detaches it.

    Args:
        directory: of the cgroup, in a cgroup2 file system.
    Raises:
        OSError: the kernel's refusal.
    """
    cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return checked(library().bpf_link_create(program_fd, cgroup, BPF_CGROUP_SETSOCKOPT, None))
    finally:
        os.close(cgroup)


def attach_kprobe(function: str, program_fd: int) -> tuple[int, int]:
    """Attaches a program to a function's entry.

    Returns:
        the descriptors of the link and of its event; closing both detaches.
    Raises:
        OSError: the kernel's refusal.
    """
    name = ctypes.create_string_buffer(function.encode())
    attr = _PerfEventAttr(
        type=int(KPROBE_EVENTS.read_text()),
        size=ctypes.sizeof(_PerfEventAttr),
        target=ctypes.addressof(name),
    )
    return _attach_to_event(attr, program_fd)


def attach_uprobe(
    path: Path,
    offset: int,
    program_fd: int,
    *,
    pid: int | None = None,
    at_return: bool = False,
    semaphore: int = 0,
    cookie: int = 0,
) -> tuple[int, int]:
    """Attaches a program to an instruction of an executable or a library.

    Args:
        offset: of the instruction, in bytes from the start of the file.
        pid: of the only process that is meant; None: all that map the file, now or later.
        at_return: of the function that begins there.
        semaphore: offset in the file of a USDT probe's counter, raised while this is attached.
        cookie: what the program is told of this attachment.
    Returns:
        the descriptors of the link and of its event; closing both detaches.
    Raises:
        OSError: the kernel's refusal.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    attr = _PerfEventAttr(
        type=int(UPROBE_EVENTS.read_text()),
        size=ctypes.sizeof(_PerfEventAttr),
        config=semaphore << _SEMAPHORE_SHIFT | (_RETURN_PROBE if at_return else 0),
        target=ctypes.addressof(name),
        probe_offset=offset,
    )
    return _attach_to_event(attr, program_fd, pid, cookie)


def _attach_to_event(
    attr: _PerfEventAttr, program_fd: int, pid: int | None = None, cookie: int = 0
) -> tuple[int, int]:
    libc = ctypes.CDLL(None, use_errno=True)
    # On no process and one CPU: a program on a probe runs wherever it is hit, all the same.
    on_pid, on_cpu = (-1, 0) if pid is None else (pid, -1)
    event = checked(
        libc.syscall(
            _PERF_EVENT_OPEN, ctypes.byref(attr), on_pid, on_cpu, -1, _PERF_FLAG_FD_CLOEXEC
        )
    )
    try:
        opts = _LinkCreateOpts(sz=ctypes.sizeof(_LinkCreateOpts), cookie=cookie)
        return checked(
            library().bpf_link_create(program_fd, event, _BPF_PERF_EVENT, ctypes.byref(opts))
        ), event
    except OSError:
        os.close(event)
        raise


def enable_run_counts() -> int:
    """The kernel counts programs' runs until the descriptor is closed.

    Raises:
        OSError: the kernel's refusal.
    """
    run_time = 0  # BPF_STATS_RUN_TIME
    return checked(library().bpf_enable_stats(run_time))


def run_once(program_fd: int, *, data: bytes = b"", context: bytes = b"") -> int:
    """Runs a program once, in this process, on made-up input; gives what it returned.

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
    checked(library().bpf_prog_test_run_opts(program_fd, ctypes.byref(opts)))
    returned: int = opts.retval
    return returned
