# SPDX-License-Identifier: Apache-2.0
"""Programs of the tests' own, compiled by BCC."""

from __future__ import annotations

import os
from typing import Any

from otelbpf.kernel.bcc_module import import_bcc
from otelbpf.kernel.sources import bpf_directory


def compiled(source: str, *flags: str) -> Any:
    """BCC's object for programs of the tests' own, which need no kernel headers either."""
    bcc = import_bcc()
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_directory() / "shim")
    return bcc.BPF(text=source.encode(), cflags=list(flags))
