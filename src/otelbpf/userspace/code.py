# SPDX-License-Identifier: Apache-2.0
"""Machine code, as it lies in a file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """Instructions, and the address of the first as it was linked."""

    address: int
    data: bytes

    def __contains__(self, address: object) -> bool:
        return address in range(self.address, self.address + len(self.data))
