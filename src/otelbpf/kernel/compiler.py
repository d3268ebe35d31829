# SPDX-License-Identifier: Apache-2.0
"""Programs that are compiled on this machine, by BCC, of which nothing else is used.

The maps are made before: the programs are compiled with their descriptors, so that BCC has none to
make and nothing to rewrite.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from otelbpf.errors import KernelError
from otelbpf.kernel import libbpf
from otelbpf.kernel.bcc_module import import_bcc
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.diagnostics import CapturedStderr, first_error, keep_log
from otelbpf.kernel.fields import field_offsets
from otelbpf.kernel.hooks import Choice, Mechanism
from otelbpf.kernel.libbpf import VerifierError
from otelbpf.kernel.loads import ROSTER, Load, load_of
from otelbpf.kernel.records import CONNECTION, CONNECTION_TAGS, READER, SCRATCH, SETTINGS
from otelbpf.kernel.sources import bpf_directory, source_text

# What the programs find, if they are not those that kernel/records.py is generated from.
_BYTES = {
    "SCRATCH_BYTES": SCRATCH.itemsize,
    "CONNECTION_BYTES": CONNECTION.itemsize,
    "CONNECTION_TAGS_BYTES": CONNECTION_TAGS.itemsize,
    "READER_BYTES": READER.itemsize,
    "SETTINGS_BYTES": SETTINGS.itemsize,
}


class Compiled:
    """All of bpf/, compiled, to be loaded.

    Args:
        choices: of what its programs may be loaded for.
        configuration: the values of fields of struct configuration, bpf/configuration.h.
        arrays: descriptors of the arrays' maps, by their names in bpf/.
        maps: of all others.
    Raises:
        KernelError: BCC is missing, or its compiler refuses them.
    """

    instead = ""

    def __init__(
        self,
        btf: Btf,
        choices: tuple[Choice, ...],
        configuration: Mapping[str, int],
        arrays: Mapping[str, int],
        maps: Mapping[str, int],
    ) -> None:
        self._instructions = _compiled(
            {
                **{name.upper(): int(value) for name, value in configuration.items()},
                # Of what nobody asked for there is none, and clang leaves out what would use it.
                **{f"FD_{name}": fd for name, fd in (*arrays.items(), *maps.items())},
                **field_offsets(btf),
                **_BYTES,
            }
        )
        self._target_ids = _target_ids(btf, choices)

    def load(self, load: Load) -> int:
        """Loads a program; its file descriptor.

        Raises:
            VerifierError: the kernel's refusal.
        """
        return libbpf.load_program(
            load.program,
            self._instructions[load.program],
            load.type,
            load.attach_type,
            self._target_ids.get(load, 0),
        )

    def load_all(self, loads: list[Load]) -> dict[Load, int]:
        """Loads these at the same time; what the kernel refuses is left out.

        The verifier takes long over some of them.
        """
        with ThreadPoolExecutor() as pool:
            fds = dict(zip(loads, pool.map(self._load_if_taken, loads), strict=True))
        return {load: fd for load, fd in fds.items() if fd is not None}

    def _load_if_taken(self, load: Load) -> int | None:
        try:
            return self.load(load)
        except VerifierError:
            return None


def _compiled(macros: Mapping[str, int]) -> dict[str, bytes]:
    """Program -> its instructions."""
    bcc = import_bcc()
    flags = ["-DBCC_BUILD", *(f"-D{name}={value}" for name, value in macros.items())]
    # BCC takes its headers from here instead of from a kernel-headers package.
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_directory() / "shim")
    try:
        with CapturedStderr() as diagnostics:
            bpf = bcc.BPF(text=source_text().encode(), cflags=flags)
    except Exception as error:
        raise KernelError(
            "BCC could not compile the programs, and its compiler's first error is "
            f'"{first_error(diagnostics.text)}"',
            keep_log("compile", diagnostics.text),
        ) from error
    try:
        names = (
            bcc.lib.bpf_function_name(bpf.module, index)
            for index in range(bcc.lib.bpf_num_functions(bpf.module))
        )
        return {name.decode(): bpf.dump_func(name) for name in names}
    finally:
        bpf.cleanup()


def _target_ids(btf: Btf, choices: tuple[Choice, ...]) -> dict[Load, int]:
    """The BTF ids of what typed programs may be loaded for."""
    ids = {}
    if btf.has_function(ROSTER.target):
        ids[ROSTER] = btf.function_id(ROSTER.target)
    for choice in choices:
        for candidate in (v.candidate for v in choice.verdicts if v.available):
            if candidate.mechanism is Mechanism.FENTRY:
                ids[load_of(candidate)] = btf.function_id(candidate.target)
            elif candidate.mechanism is Mechanism.TRACEPOINT:
                ids[load_of(candidate)] = btf.tracepoint_id(candidate.target)
    return ids
