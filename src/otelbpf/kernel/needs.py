# SPDX-License-Identifier: Apache-2.0
"""What otelbpf needs of the machine and of this process: `check` tells all of it, `run` insists.

Both ask the same functions, so they say the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from otelbpf.errors import KernelError
from otelbpf.host import rights, ulimits
from otelbpf.host.netns import current_cookie
from otelbpf.kernel import libbpf, memory
from otelbpf.kernel.btf import Btf, require_btf
from otelbpf.kernel.fields import field_offsets
from otelbpf.kernel.limits import DEFAULT, Limits
from otelbpf.kernel.loaders import Loader, choose_loader

PROC = Path("/proc")
REALTIME = Path("/sys/kernel/realtime")
LOCKDOWN = Path("/sys/kernel/security/lockdown")
# include/linux/proc_ns.h, PROC_PID_INIT_INO: in its numbers the kernel's programs tell processes.
_HOST_PIDS = f"pid:[{0xEFFFFFFC}]"
# What an XDP program must at least be run on.
_PACKET = bytes(64)


@dataclass(frozen=True)
class Need:
    """One thing that otelbpf needs.

    Attributes:
        met: what is there, for people, where it is; None: what `require` gives.
        require: raises a KernelError where it is not.
        optional: without it otelbpf runs, but does not do all that it could.
    """

    name: str
    met: str | None
    require: Callable[[], object]
    optional: bool = False


def needs(
    loader: Loader, limits: Limits = DEFAULT, *, keeps_forwarded: bool = False
) -> tuple[Need, ...]:
    """All of them; what the later ones ask for takes what the earlier ones do.

    Args:
        loader: where the programs are to come from.
        limits: how long the tables are to be.
        keeps_forwarded: is a header to be kept in which proxies say for whom they forward?
    """
    return (
        Need("/proc", "it is mounted whole", _require_proc),
        Need("processor", "x86-64", _require_processor),
        Need("preemption", "no PREEMPT_RT", _require_no_realtime),
        Need("rights", "all capabilities that it takes to start", rights.require),
        Need(
            "other processes",
            "all capabilities that it takes to look at them",
            rights.require_to_look,
            optional=True,
        ),
        Need("process numbers", "/proc has the kernel's own", _require_host_pids, optional=True),
        *(Need(limit.name, limit.met, limit.require) for limit in ulimits.limits()),
        Need("libbpf", None, libbpf.version),
        Need("namespaces", "network namespaces have cookies", current_cookie),
        Need("/sys", "it is mounted", libbpf.possible_cpus),
        Need("BTF", "the kernel describes its types", require_btf),
        Need("programs", None, lambda: _require_loader(loader)),
        Need("memory", None, lambda: memory.require(limits, keeps_forwarded=keeps_forwarded)),
        Need("bpf()", "the kernel takes programs and runs them", programs_need_rights),
        Need("kernel's memory", "programs may read it", _require_kernel_memory),
    )


def require(
    loader: Loader, limits: Limits = DEFAULT, *, keeps_forwarded: bool = False
) -> list[KernelError]:
    """Raises a KernelError for the first thing missing; gives those for what is optional.

    Args:
        loader, limits, keeps_forwarded: as for needs().
    """
    limited = []
    for need in needs(loader, limits, keeps_forwarded=keeps_forwarded):
        try:
            need.require()
        except KernelError as error:
            if not need.optional:
                raise
            limited.append(error)
    return limited


def _require_proc() -> None:
    # With subset=pid it has nothing but processes.
    for path in (PROC / "self/status", PROC / "kallsyms"):
        if not path.exists():
            raise KernelError(
                f"{path} is missing, from which otelbpf learns what there is",
                f"mount a whole proc file system there (`mount -t proc proc {PROC}`)",
            )


def _require_host_pids() -> None:
    try:
        namespace = os.readlink(PROC / "self/ns/pid")
        status = (PROC / "self/status").read_text()
    except OSError:
        return
    # More than one: this process has others than /proc, which is then of a namespace around it.
    numbers = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
    if namespace != _HOST_PIDS and len(numbers) == 1:
        raise KernelError(
            "this PID namespace has other numbers for processes than the kernel tells: whose a "
            "request is cannot be found out here (`unknown_service`)",
            "run otelbpf in the host's PID namespace (`hostPID: true` for a pod, `--pid=host` for "
            "a container)",
        )


def _require_processor() -> None:
    machine = os.uname().machine
    if machine != "x86_64":
        raise KernelError(
            f"this processor is {machine}, and otelbpf knows the registers and system calls of "
            "x86-64 only",
            "run it on such a machine",
        )


def _require_no_realtime() -> None:
    try:
        is_realtime = REALTIME.read_text().strip() == "1"
    except OSError:
        is_realtime = False
    if is_realtime:
        raise KernelError(
            f"this kernel is PREEMPT_RT ({REALTIME} says so), where a program can be interrupted "
            "by another one on the same processor that works in the same memory",
            "use a kernel without PREEMPT_RT",
        )


def _require_directory() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise KernelError(
            f"the working directory, which the compiler comes back to, is gone ({error.strerror})",
            "start otelbpf in another one",
        ) from error


def _require_loader(loader: Loader) -> str:
    with Btf.of_kernel() as btf:
        chosen = choose_loader(loader, btf)
        if chosen.loader is Loader.BCC:
            _require_directory()
            field_offsets(btf)
        return str(chosen)


def programs_need_rights() -> bool:
    """Does it take a right to run a program that was loaded with all rights?

    Raises:
        KernelError: the kernel takes no programs from this process at all.
    """
    try:
        fd = libbpf.load_program("otelbpf_try", libbpf.RETURN_0, libbpf.BPF_PROG_TYPE_XDP)
    except OSError as error:
        rights.require()
        raise KernelError(
            f"the kernel takes no BPF program from this process ({error.strerror})",
            "look for what forbids bpf(): a seccomp profile, a security module",
        ) from error
    try:
        rights.with_only((), lambda: libbpf.run_once(fd, data=_PACKET))
    except PermissionError:
        return True
    finally:
        os.close(fd)
    return False


def _require_kernel_memory() -> None:
    try:
        fd = libbpf.load_program("otelbpf_try", libbpf.READ_KERNEL, libbpf.BPF_PROG_TYPE_SCHED_CLS)
    except OSError as error:
        programs_need_rights()  # it may take none at all
        raise KernelError(
            "this kernel lets no program read its memory, where otelbpf's find sockets and tasks: "
            + _lockdown(),
            "start it without lockdown=confidentiality on its command line; lockdown=integrity "
            "will do",
        ) from error
    os.close(fd)


def _lockdown() -> str:
    """How far the kernel is locked down, for people."""
    try:
        told = LOCKDOWN.read_text().split()
    except OSError:
        return f"it is locked down, probably ({LOCKDOWN} cannot be read)"
    (mode,) = (word.strip("[]") for word in told if word.startswith("["))
    return f"its lockdown is {mode!r} ({LOCKDOWN})"
