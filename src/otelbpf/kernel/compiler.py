# SPDX-License-Identifier: Apache-2.0
"""Compiles the programs on this machine, by BCC, of which nothing else is used.

The maps are made before: the programs are compiled with their descriptors, so that BCC has none to
make and nothing to rewrite.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from otelbpf.errors import KernelError
from otelbpf.kernel.bcc_module import import_bcc
from otelbpf.kernel.diagnostics import CapturedStderr, first_error, keep_log
from otelbpf.kernel.sources import bpf_directory, source_text


def compiled(macros: Mapping[str, object]) -> dict[str, bytes]:
    """All of bpf/.

    Args:
        macros: what the programs are to know: macro -> C.
    Returns:
        program -> its instructions.
    Raises:
        KernelError: BCC is missing, or its compiler refuses them.
    """
    bcc = import_bcc()
    flags = ["-DBCC_BUILD", *(f"-D{name}={value}" for name, value in macros.items())]
    # BCC takes its headers from here instead of from a kernel-headers package.
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_directory() / "shim")
    try:
        with CapturedStderr() as diagnostics:
            bpf = bcc.BPF(text=source_text().encode(), cflags=flags)
    except Exception as error:
        raise KernelError(
            f"BCC could not compile the programs: {first_error(diagnostics.text)}; "
            + keep_log("compile", diagnostics.text)
        ) from error
    try:
        names = (
            bcc.lib.bpf_function_name(bpf.module, index)
            for index in range(bcc.lib.bpf_num_functions(bpf.module))
        )
        return {name.decode(): bpf.dump_func(name) for name in names}
    finally:
        bpf.cleanup()
