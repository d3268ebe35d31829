# SPDX-License-Identifier: Apache-2.0
"""A handler: the code whose time is a request's handler's, and where that is probed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from otelbpf.userspace.usdt import UsdtArgument


@dataclass(frozen=True)
class ProbeSite:
    """A place for a uprobe.

    Attributes:
        path: of the file, for this process to open.
        offset: of the instruction, in bytes from the start of the file.
        semaphore: offset in the file of the counter to raise while the probe is attached
            (the kernel's ref_ctr_offset); 0: there is none.
        arguments: of a Python function's probe, where file name and function name are: pointers
            to text that ends with a zero byte. Empty for all others.
    """

    path: Path
    offset: int
    semaphore: int = 0
    arguments: tuple[UsdtArgument, ...] = ()


@dataclass(frozen=True)
class PythonFunction:
    """Which calls of all that the interpreter makes are the handler's.

    Attributes:
        name: equals the site's second argument.
        file: equals the end of its first argument, from one slash on; empty: any file.
    """

    name: str
    file: str = ""


class HandlerKind(StrEnum):
    """How a handler's calls are told from one another."""

    FUNCTION = "function"  # by the thread and where its stack is
    GO = "go"  # by the goroutine and where its stack is
    USDT = "usdt"  # by the thread: start and end may lie in different functions
    PYTHON = "python"  # by the function's name, the thread and where its stack is


@dataclass(frozen=True)
class Handler:
    """A function, or a pair of USDT probes, whose time is a request's handler's.

    Attributes:
        name: for people, such as "nginx:ngx_http_process_request".
        path: of the executable or library, as the processes have it.
        pid: the only process that is meant; None: all that run the file.
        starts: one for a function, each copy that the compiler made of a USDT probe.
        ends: likewise; empty if a return probe serves instead.
        return_probe: put one at the start. Never true where it could kill the process.
        kind: how its calls are told apart.
        python: None: not a Python function.
    """

    name: str
    path: Path
    pid: int | None
    starts: tuple[ProbeSite, ...]
    ends: tuple[ProbeSite, ...]
    return_probe: bool
    kind: HandlerKind
    python: PythonFunction | None = None
