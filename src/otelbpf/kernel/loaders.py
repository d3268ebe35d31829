# SPDX-License-Identifier: Apache-2.0
"""Where the programs come from: ready-made, or compiled on this machine."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from otelbpf.errors import KernelError
from otelbpf.kernel.bcc_module import import_bcc
from otelbpf.kernel.bpf_object import OTHER_LOADER
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.objects import why_unusable

# The kernel's function that goes round loops for programs: since 5.17.
_LOOP = "bpf_loop"


#: What BCC's programs have no room for.
BCC_LACKS = (
    "they do not read the header of --forwarded-by, and do not compare a head in several segments "
    "that comes again"
)


class Loader(StrEnum):
    """Where the programs come from.

    The ready-made ones need no compiler and are loaded in a fraction of a second. BCC's are of the
    same sources, and for kernels that do not take those.
    """

    AUTO = "auto"
    OBJECT = "object"
    BCC = "bcc"


class Chosen(NamedTuple):
    """What AUTO means here.

    Attributes:
        loader: OBJECT or BCC.
        reason: why that one.
    """

    loader: Loader
    reason: str

    def __str__(self) -> str:
        if self.loader is Loader.OBJECT:
            return f"ready-made, as {self.reason}"
        return f"to be compiled by BCC {import_bcc().__version__}, as {self.reason}; {BCC_LACKS}"


def choose_loader(asked: Loader, btf: Btf) -> Chosen:
    """Where the programs are to come from.

    Raises:
        KernelError: not from where it was asked, or from nowhere.
    """
    if asked is Loader.BCC:
        import_bcc()
        return Chosen(Loader.BCC, "--loader bcc asks for it")
    reason = _why_not_ready_made(btf)
    if not reason:
        return Chosen(Loader.OBJECT, f"the kernel has {_LOOP}()")
    if asked is Loader.OBJECT:
        raise KernelError(
            f"the ready-made programs are of no use here, as {reason}",
            OTHER_LOADER,
        )
    try:
        import_bcc()
    except KernelError as error:
        raise KernelError(
            f"the ready-made programs are of no use here ({reason}), and {error.what}",
            error.remedy,
        ) from error
    return Chosen(Loader.BCC, reason)


def _why_not_ready_made(btf: Btf) -> str:
    reason = why_unusable()
    if reason:
        return reason
    if not btf.has_function(_LOOP):
        return f"the kernel has no {_LOOP}(), which came with 5.17"
    return ""
