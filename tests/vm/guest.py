# SPDX-License-Identifier: Apache-2.0
"""A guest in QEMU that runs one command, and ends with whoever started it."""

from __future__ import annotations

import os
import secrets
import selectors
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import initramfs
import tsc
from children import dies_with_us
from errors import CommandTimeoutError, GuestError, InputError
from kernels import Kernel

QEMU = "qemu-system-x86_64"

_HERE = Path(__file__).resolve().parent
_BOOT_DEADLINE_S = 180
#: The TSC counts instructions then.
_ICOUNT_TSC_KHZ = 1_000_000
_CONSOLE_BYTES_KEPT = 64 * 1024
_CONSOLE_LINES_SHOWN = 60
_KERNEL_ARGUMENTS = (
    "console=ttyS0 loglevel=6 panic=-1 oops=panic mitigations=off "
    # The guest's clock is then read at once and never steps back. The kernel would find the
    # emulated TSC wanting, and choose the HPET, which takes ten times as long. What it measures
    # of the TSC on a busy host can be wrong by half, and all its time with it.
    "tsc=reliable clocksource=tsc tsc_early_khz={tsc_khz}"
)


@dataclass(frozen=True)
class Job:
    """What to run, and in which guest.

    Attributes:
        directory: the command's working directory.
        environment: all of the command's environment.
        out: a directory of the host's in which the guest may write.
        timeout_s: how long the command may take, counted from its start.
        memory: as QEMU takes it: 2G.
        icount: one instruction takes one nanosecond; on one processor.
    """

    command: Sequence[str]
    directory: Path
    environment: Mapping[str, str]
    out: Path | None = None
    timeout_s: float = 600.0
    processors: int = 2
    memory: str = "2G"
    icount: bool = False


@dataclass
class _Console:
    """The kernel's log, and what QEMU itself has to say."""

    write: Callable[[bytes], object]
    _kept: bytearray = field(default_factory=bytearray)

    def take(self, data: bytes) -> None:
        self.write(data)
        self._kept += data
        del self._kept[:-_CONSOLE_BYTES_KEPT]

    def after(self, what: str) -> str:
        """What happened, and what the console said last."""
        lines = self._kept.decode(errors="replace").replace("\r", "").splitlines()
        return "\n".join([f"{what}; the end of its console:", *lines[-_CONSOLE_LINES_SHOWN:]])


class _Output:
    """Takes the marks out of what the guest sends: one before and one after the output."""

    def __init__(self, mark: str, write: Callable[[bytes], object]) -> None:
        self._mark = mark.encode()
        self._write = write
        self._kept = b""
        self.started = False
        self.exit_code: int | None = None

    def take(self, data: bytes) -> None:
        self._kept += data
        if not self.started:
            _, mark, after = self._kept.partition(self._mark + b"\n")
            if not mark:
                return
            self.started, self._kept = True, after
        output, mark, after = self._kept.partition(self._mark)
        if mark and after.endswith(b"\n"):
            self.exit_code = int(after)
            self._kept = b""
        elif mark:
            self._kept = mark + after
        else:
            # The end may be the beginning of the mark.
            keep = next(
                length
                for length in range(len(self._mark) - 1, -1, -1)
                if output.endswith(self._mark[:length])
            )
            self._kept = output[len(output) - keep :]
            output = output[: len(output) - keep]
        if output:
            self._write(output)


def run(
    kernel: Kernel,
    job: Job,
    write: Callable[[bytes], object],
    write_console: Callable[[bytes], object] = lambda data: None,
) -> int:
    """Boots the kernel with the host's files in it and runs the command there as root.

    Args:
        write: gets the command's standard output and error output, as they come.
        write_console: gets the kernel's log.
    Returns:
        The command's exit code.
    Raises:
        InputError: QEMU is not there.
        GuestError: the guest did not boot, or died before the command ended.
        CommandTimeoutError: the command took too long.
    """
    find_qemu()
    mark = f"<{secrets.token_hex(16)}>"
    output = _Output(mark, write)
    console = _Console(write_console)
    output_here, output_there = socket.socketpair()
    console_here, console_there = socket.socketpair()
    with output_here, console_here, selectors.DefaultSelector() as selector:
        with output_there, console_there, _memory_file(_initramfs(kernel, job, mark)) as image:
            inherited = (output_there.fileno(), console_there.fileno(), image.fileno())
            qemu = subprocess.Popen(
                _command(kernel, job, *inherited),
                stdin=subprocess.DEVNULL,
                stdout=inherited[1],
                stderr=inherited[1],
                pass_fds=inherited,
                start_new_session=True,  # Ctrl-C is for us alone
                preexec_fn=dies_with_us(),
            )
        try:
            selector.register(output_here, selectors.EVENT_READ, output)
            selector.register(console_here, selectors.EVENT_READ, console)
            return _follow(selector, output, console, job.timeout_s)
        finally:
            qemu.kill()
            qemu.wait()


def find_qemu() -> None:
    """Raises InputError if QEMU is not there."""
    if shutil.which(QEMU) is None:
        raise InputError(
            f"{QEMU} is not there: install the package qemu-system-x86, or run scripts/setup --test"
        )


def _follow(
    selector: selectors.BaseSelector, output: _Output, console: _Console, timeout_s: float
) -> int:
    deadline = time.monotonic() + _BOOT_DEADLINE_S
    while output.exit_code is None:
        left_s = deadline - time.monotonic()
        if left_s <= 0 and output.started:
            raise CommandTimeoutError(f"the command did not end within {timeout_s:g} s")
        if left_s <= 0:
            raise GuestError(console.after(f"the guest did not boot within {_BOOT_DEADLINE_S} s"))
        booted = output.started
        for key, _ in selector.select(left_s):
            data = os.read(key.fd, 1 << 16)
            if data:
                key.data.take(data)
            else:
                selector.unregister(key.fileobj)
        if output.started and not booted:
            deadline = time.monotonic() + timeout_s
        if not selector.get_map():
            what = "died before the command ended" if output.started else "did not boot"
            raise GuestError(console.after(f"the guest {what}"))
    return output.exit_code


# Without "enhanced rep movsb", of which QEMU counts every byte as an instruction: with it kernels
# before 6.4, which use it for all copies, would seem to pay what no processor does.
_CPU_COUNTED = "max,-erms"


def _command(kernel: Kernel, job: Job, output: int, console: int, image: int) -> list[str]:
    """QEMU's command line; the numbers are file descriptors."""
    tsc_khz = _ICOUNT_TSC_KHZ if job.icount else tsc.frequency_khz()
    command = [
        QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot",
        # Never KVM, so that a guest is the same everywhere; where a hypervisor passes it on
        # badly, it hangs. All processors in one thread: with a thread for each, QEMU before 8.1
        # (commit deba78709ae8) runs stale code when the kernel patches its text, as it does for
        # each tracepoint, and the guest dies of "Oops: int3". It is no slower.
        "-machine", "q35", "-accel", "tcg,thread=single",
        "-cpu", _CPU_COUNTED if job.icount else "max",
        "-smp", "1" if job.icount else str(job.processors), "-m", job.memory,
        "-kernel", str(kernel.vmlinux), "-initrd", f"/proc/self/fd/{image}",
        "-append", _KERNEL_ARGUMENTS.format(tsc_khz=tsc_khz),
        "-chardev", f"socket,id=console,fd={console}", "-serial", "chardev:console",
        "-chardev", f"socket,id=output,fd={output}",
        "-device", "virtio-serial-pci", "-device", "virtserialport,nr=1,chardev=output",
        *_share("host", Path("/"), "readonly=on,multidevs=remap"),
    ]  # fmt: skip
    if job.out:
        command += _share("out", job.out, "multidevs=remap")
    if job.icount:
        # An idle guest waits as long as it says. Would its clock jump to its next time-out instead,
        # that would be over before a busy machine has read it a file.
        command += ["-icount", "shift=0,sleep=on"]
    return command


def _share(tag: str, path: Path, options: str) -> list[str]:
    escaped = str(path).replace(",", ",,")
    return ["-fsdev", f"local,id={tag},path={escaped},security_model=none,{options}",
            "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]  # fmt: skip


def _initramfs(kernel: Kernel, job: Job, mark: str) -> bytes:
    settings = {
        "release": kernel.release,
        "modules": kernel.modules,
        "mark": mark,
        "out": job.out or "",
    }
    assignments = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in settings.items())
    variables = [f"{name}={value}" for name, value in job.environment.items()]
    command = (
        f"cd {shlex.quote(str(job.directory))} || exit 125\n"
        f"exec env -i {shlex.join([*variables, *job.command])}\n"
    )
    return kernel.initramfs.read_bytes() + initramfs.archive(
        [
            initramfs.regular("init", (_HERE / "init").read_bytes(), executable=True),
            initramfs.regular("supervise", (_HERE / "supervise").read_bytes()),
            initramfs.regular("job", assignments.encode(errors="surrogateescape")),
            initramfs.regular("command", command.encode(errors="surrogateescape")),
        ]
    )


def _memory_file(data: bytes) -> BinaryIO:
    file = os.fdopen(os.memfd_create("initramfs"), "r+b")
    file.write(data)
    file.flush()
    return file
