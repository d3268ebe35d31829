# SPDX-License-Identifier: Apache-2.0
"""The distribution's BCC."""

from __future__ import annotations

from types import ModuleType

from otelbpf.errors import KernelError
from otelbpf.host import ulimits


def import_bcc() -> ModuleType:
    """The distribution's BCC module.

    Raises:
        KernelError: it is missing, another package called bcc is in its place, or this process's
            limits are too low for it.
    """
    # Before: below them not even this import is sure to work, and would be told as one missing.
    for limit in ulimits.to_compile():
        limit.require()
    try:
        import bcc
    except ImportError as error:
        raise KernelError(
            "the BCC Python module is missing",
            "install it with `apt install python3-bpfcc` and run otelbpf with the distribution's "
            "python3 (a virtual environment needs --system-site-packages; the image is built with "
            "--target bcc)",
        ) from error
    if not hasattr(bcc, "BPF"):
        raise KernelError(
            f"the bcc module at {bcc.__file__} is not the BPF Compiler Collection but an unrelated "
            "package from PyPI",
            "run `pip uninstall bcc` and `apt install python3-bpfcc`",
        )
    module: ModuleType = bcc
    return module


def has_bcc() -> bool:
    """Is it there, and can it be used?"""
    try:
        import_bcc()
    except KernelError:
        return False
    return True
