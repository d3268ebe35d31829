# SPDX-License-Identifier: Apache-2.0
"""Compiles and loads the programs. The only module that imports bcc."""

from __future__ import annotations

import ctypes
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from otelbpf import libbpf
from otelbpf.btf import Btf
from otelbpf.errors import KernelError
from otelbpf.fields import field_offsets
from otelbpf.hooks import Choice, Mechanism
from otelbpf.records import Counter
from otelbpf.sources import bpf_directory

# One text for BCC, in the order in which each builds on the ones before.
_SOURCES = (
    "records.h", "maps.h", "kernel.h", "packet.h", "ledger.h", "words.h", "message.h", "head.h",
    "body.h", "xdp.c", "tc.c", "socket.c", "sched.c", "sweep.c",
)
_PAGE_BYTES = 4096
# Programs that a hook's program continues into, in the order of enum continuation.
_CONTINUATIONS = ("tc_ingress", "tc_egress", "tc_chunks")


@dataclass(frozen=True)
class Limits:
    """How much the programs may remember.

    Attributes:
        connections: the least recently used one goes first.
        ring_bytes: of the ring buffer; a power of two of pages.
    """

    connections: int = 65_536
    ring_bytes: int = 32 << 20


def import_bcc() -> ModuleType:
    """The distribution's BCC module.

    Raises:
        KernelError: it is missing, or another package called bcc is in its place.
    """
    try:
        import bcc
    except ImportError as error:
        raise KernelError(
            "the BCC Python module is missing: install it with `apt install python3-bpfcc` and run "
            "otelbpf with the distribution's python3 (a virtual environment needs "
            "--system-site-packages)"
        ) from error
    if not hasattr(bcc, "BPF"):
        raise KernelError(
            f"the bcc module at {bcc.__file__} is not the BPF Compiler Collection but an unrelated "
            "package from PyPI: run `pip uninstall bcc` and `apt install python3-bpfcc`"
        )
    return bcc


def source_text() -> str:
    """All of bpf/ as the one text that BCC compiles, with its lines' origins."""
    directory = bpf_directory()
    return "".join(
        f'#line 1 "bpf/{name}"\n{(directory / name).read_text()}' for name in _SOURCES
    )


class Programs:
    """The loaded programs and their maps. Close it to unload them.

    Args:
        ports: the measured server ports.
        netns_cookie: of the measured network namespace.
        choices: what each hook got, from hooks.choose().
    Raises:
        KernelError: the compiler's, the verifier's or the kernel's refusal.
    """

    def __init__(
        self,
        btf: Btf,
        ports: tuple[int, ...],
        netns_cookie: int,
        choices: tuple[Choice, ...],
        limits: Limits,
    ) -> None:
        self._bcc = import_bcc()
        self._types = {
            Mechanism.XDP: self._bcc.BPF.XDP,
            Mechanism.TC: self._bcc.BPF.SCHED_CLS,
            Mechanism.KPROBE: self._bcc.BPF.KPROBE,
            Mechanism.RAW_TRACEPOINT: self._bcc.BPF.RAW_TRACEPOINT,
        }
        self.limits = limits
        self._bpf = self._compile(btf, ports, netns_cookie, limits)
        wanted = {
            choice.chosen.program: self._types[choice.chosen.mechanism]
            for choice in choices
            if choice.chosen is not None and choice.chosen.program is not None
        }
        wanted.update(dict.fromkeys((*_CONTINUATIONS, "sweep"), self._bcc.BPF.SCHED_CLS))
        wanted["learn_agent"] = self._bcc.BPF.RAW_TRACEPOINT
        self._fds = self._load(wanted)
        continuations = self._bpf[b"continuations"]
        for index, name in enumerate(_CONTINUATIONS):
            continuations[ctypes.c_int(index)] = ctypes.c_int(self._fds[name])
        libbpf.run_once(self._fds["learn_agent"], context=bytes(8))

    def fd(self, program: str) -> int:
        """The file descriptor of a loaded program."""
        return self._fds[program]

    def map_fd(self, name: str) -> int:
        """The file descriptor of a map."""
        return self._bpf[name.encode()].map_fd

    def value_size(self, name: str) -> int:
        """Bytes of one value of a map, as the kernel sees it."""
        return ctypes.sizeof(self._bpf[name.encode()].Leaf)

    def counts(self) -> dict[Counter, int]:
        """What the programs have counted so far, summed over the CPUs."""
        table = self._bpf[b"counters"]
        return {counter: table.sum(ctypes.c_int(counter)).value for counter in Counter}

    def sweep(self, slot: int, before_ktime_ns: int, flag: int) -> None:
        """Ends the request in `slot` unless bytes of it were seen after `before_ktime_ns`."""
        orders = self._bpf[b"sweep_orders"]
        orders[ctypes.c_int(0)] = orders.Leaf(before_ktime_ns, slot, flag)
        libbpf.run_once(self._fds["sweep"], data=bytes(64))

    def close(self) -> None:
        """Unloads everything that is not attached any more."""
        self._bpf.cleanup()

    def _compile(
        self, btf: Btf, ports: tuple[int, ...], netns_cookie: int, limits: Limits
    ) -> Any:
        definitions = {
            **field_offsets(btf),
            "MAX_CONNECTIONS": limits.connections,
            "MAX_EXCHANGES": limits.connections,
            "RING_PAGES": limits.ring_bytes // _PAGE_BYTES,
            "NETNS_COOKIE": f"{netns_cookie}ull",
            "IS_MEASURED_PORT(p)": "(" + "||".join(f"(p)=={port}" for port in ports) + ")",
        }
        cflags = [f"-D{name}={value}" for name, value in definitions.items()]
        # BCC takes its headers from here instead of from a kernel-headers package.
        os.environ["BCC_KERNEL_SOURCE"] = str(bpf_directory() / "shim")
        try:
            with _CapturedStderr() as diagnostics:
                return self._bcc.BPF(text=source_text().encode(), cflags=cflags)
        except Exception as error:
            log = _keep_log("compile", diagnostics.text)
            raise KernelError(
                f"BCC could not compile the programs: {_first_error(diagnostics.text)}; "
                f"the compiler's whole output is in {log}; please report it with that file"
            ) from error

    def _load(self, wanted: dict[str, int]) -> dict[str, int]:
        """Loads programs side by side, since the verifier takes long over some of them.

        Args:
            wanted: name -> program type.
        Returns:
            name -> file descriptor.
        """
        with ThreadPoolExecutor() as pool, _CapturedStderr() as diagnostics:
            futures = {
                name: pool.submit(self._bpf.load_func, name.encode(), kind)
                for name, kind in wanted.items()
            }
            wait(futures.values())
        fds = {}
        for name, future in futures.items():
            error = future.exception()
            if error is not None:
                log = _keep_log(name, diagnostics.text)
                raise KernelError(
                    f"the kernel refused program {name} ({error}): "
                    f"{_last_verdict(diagnostics.text)}; the verifier's whole log is in {log}; "
                    "please report it with that file"
                ) from error
            fds[name] = future.result().fd
        return fds


class _CapturedStderr:
    """What BCC's C++ code writes to standard error, which Python cannot redirect."""

    text = ""

    def __enter__(self) -> _CapturedStderr:
        self._file = tempfile.TemporaryFile()
        self._saved = os.dup(2)
        os.dup2(self._file.fileno(), 2)
        return self

    def __exit__(self, *_: object) -> None:
        os.dup2(self._saved, 2)
        os.close(self._saved)
        self._file.seek(0)
        self.text = self._file.read().decode(errors="replace")
        self._file.close()


def _keep_log(name: str, text: str) -> Path:
    handle, path = tempfile.mkstemp(prefix=f"otelbpf-{name}-", suffix=".log")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    return Path(path)


def _first_error(text: str) -> str:
    lines = [line for line in text.splitlines() if "error:" in line]
    return lines[0] if lines else "no message"


def _last_verdict(text: str) -> str:
    """The verifier's last words before its statistics."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = [line for line in lines if not line.startswith(("processed ", "bpf: "))]
    return words[-1] if words else "no message"
