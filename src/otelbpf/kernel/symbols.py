# SPDX-License-Identifier: Apache-2.0
"""What the compiler made of the kernel's functions, from /proc/kallsyms.

A function may be there whole, or only as a clone with changed arguments
(`.isra`), or it may be bypassed: some callers use a specialised clone
(`.constprop`), or have its first part inlined and call the rest (`.part`).
A probe on its name would then never run, or miss calls.
"""

from __future__ import annotations

import re
from pathlib import Path

KALLSYMS = Path("/proc/kallsyms")
#: A function's rare code, moved out of the way: whoever calls the function passes its start.
_COLD = re.compile(r"\.cold(\.\d+)?$")


class Symbols:
    """The kernel's symbols.

    Args:
        text: as /proc/kallsyms has them, a line each: address, type, name.
    """

    def __init__(self, text: bytes) -> None:
        self._text = text + b"\n"

    @classmethod
    def of_kernel(cls) -> Symbols:
        """The running kernel's; none if it does not tell."""
        try:
            return cls(KALLSYMS.read_bytes())
        except OSError:
            return cls(b"")

    def variants(self, function: str) -> list[str]:
        """The names that the compiler gave to `function` and to what it made of it."""
        name = re.escape(function.encode())
        # What a module has is followed by the module's name.
        found = re.findall(rb" (" + name + rb"(?:\.\S+)?)[\t\n]", self._text)
        return [variant.decode() for variant in dict.fromkeys(found)]

    def why_not_probed(self, function: str) -> str | None:
        """Why a probe on `function` would miss calls of it, or read wrong arguments; else None."""
        variants = self.variants(function)
        clones = [name for name in variants if name != function and not _COLD.search(name)]
        if function not in variants:
            if clones:
                return (
                    f"the compiler left only {', '.join(clones)} of {function}, whose arguments "
                    "may be others"
                )
            return f"this kernel has no function {function}, or it was inlined everywhere"
        if clones:
            return f"some callers of {function} use {', '.join(clones)} instead"
        return None
