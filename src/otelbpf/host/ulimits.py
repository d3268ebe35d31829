# SPDX-License-Identifier: Apache-2.0
"""What this process's own resource limits must at least be.

They are looked at before anything else: below them not even importing what looks at the rest is
sure to work. So this imports nothing that is large.
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass

from otelbpf.errors import KernelError

_KIB, _MIB = 1 << 10, 1 << 20
_ADDRESS_SPACE_MIB = 1_536


@dataclass(frozen=True)
class Limit:
    """What one of this process's resource limits must at least be.

    Attributes:
        what: is limited, for people.
        shell: how a shell sets it.
        least: the soft limit is raised to it where the hard one allows that.
        unit: in which the shell counts, in bytes or pieces.
        whose: it takes that much, for people.
    """

    what: str
    number: int
    shell: str
    least: int
    unit: int = 1
    whose: str = "otelbpf"

    @property
    def name(self) -> str:
        """For people, among all that otelbpf needs."""
        return f"limit of {self.what}"

    @property
    def met(self) -> str:
        """What is there, for people, where it is high enough."""
        return f"at least {self.least // self.unit}"

    def require(self) -> None:
        """Raises KernelError where it is lower, and cannot be raised."""
        soft, hard = resource.getrlimit(self.number)
        if _is_enough(soft, self.least):
            return
        if not _is_enough(hard, self.least):
            raise KernelError(
                f"the limit of this process's {self.what} is {hard // self.unit}, and "
                f"{self.whose} needs {self.least // self.unit}",
                f"raise it (`{self.shell} {self.least // self.unit}`)",
            )
        resource.setrlimit(self.number, (self.least, hard))


def limits() -> tuple[Limit, ...]:
    """Over half as much again as a run took.

    With ready-made programs, and with spans and metrics sent over gRPC, it ended well from 848 MiB
    of address space and 159 MiB of data on; with threads as for 64 processors from 987 and 186 on.
    """
    return (
        Limit("open files", resource.RLIMIT_NOFILE, "ulimit -n", 256),
        _address_space(_ADDRESS_SPACE_MIB),
        _data(320),
        Limit("stack in KiB", resource.RLIMIT_STACK, "ulimit -s", _MIB, _KIB),
    )


def with_tables(more_mib: int) -> Limit:
    """What it takes where tables take more addresses than by default, in MiB."""
    return _address_space(_ADDRESS_SPACE_MIB + more_mib, "otelbpf, with tables of these lengths,")


def to_compile() -> tuple[Limit, ...]:
    """What BCC takes: twice what a run took, with what the threads that load may reserve."""
    threads = (os.cpu_count() or 1) + 4
    whose = "BCC, which compiles the programs here,"
    return _address_space(2_048 + 128 * threads, whose), _data(512 + 32 * threads, whose)


def _address_space(mib: int, whose: str = "otelbpf") -> Limit:
    what = "address space in KiB"
    return Limit(what, resource.RLIMIT_AS, "ulimit -v", mib * _MIB, _KIB, whose)


def _data(mib: int, whose: str = "otelbpf") -> Limit:
    return Limit("data in KiB", resource.RLIMIT_DATA, "ulimit -d", mib * _MIB, _KIB, whose)


def require() -> None:
    """Raises KernelError for the first one that is too low."""
    for limit in limits():
        limit.require()


def too_low() -> list[tuple[Limit, KernelError]]:
    """All that are, and what is to be said of each."""
    found = []
    for limit in limits():
        try:
            limit.require()
        except KernelError as error:
            found.append((limit, error))
    return found


def _is_enough(limit: int, least: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= least
