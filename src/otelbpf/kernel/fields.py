# SPDX-License-Identifier: Apache-2.0
"""Where the fields of the kernel's structures lie that the programs read.

BCC is told; of an object libbpf finds it out itself. Nothing depends on a kernel's version or on
its headers.
"""

from __future__ import annotations

from otelbpf.errors import KernelError
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.records import KERNEL_FIELDS

# Where a field was before it was there.
_EARLIER = {
    ("sock", "sk_rx_dst_ifindex"): ("inet_sock", "rx_dst_ifindex"),  # until 5.16
}


def field_offsets(btf: Btf) -> dict[str, int]:
    """Where each field of bpf/kernel/structures.h lies in the running kernel.

    Returns:
        OFFSET_<struct>_<field> -> bytes.
    Raises:
        KernelError: the kernel has no such field.
    """
    offsets = {}
    for struct, fields in KERNEL_FIELDS.items():
        for field in fields:
            offset = btf.offset_of(struct, field)
            if offset is None and (struct, field) in _EARLIER:
                offset = btf.offset_of(*_EARLIER[struct, field])
            if offset is None:
                raise KernelError(
                    f"this kernel's struct {struct} has no field {field}, so otelbpf does not know "
                    "this kernel yet",
                    "please report its version and `otelbpf check --json`",
                )
            offsets[f"OFFSET_{struct}_{field}"] = offset
    return offsets
