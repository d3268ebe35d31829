# SPDX-License-Identifier: Apache-2.0
"""Attaches the programs of bpf/hooks/handler.c to the starts and ends of handlers."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

import numpy as np

from otelbpf.errors import KernelError, UsageError
from otelbpf.kernel import libbpf
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.records import MAPS, PT_REGS, PYTHON_SITE
from otelbpf.userspace.handler import Handler, HandlerKind, ProbeSite, PythonFunction
from otelbpf.userspace.usdt import ArgumentKind, UsdtArgument

_PROGRAMS = {
    HandlerKind.FUNCTION: ("probed_handler_start", "probed_handler_end"),
    HandlerKind.GO: ("probed_go_start", "probed_go_end"),
    HandlerKind.USDT: ("probed_usdt_start", "probed_usdt_end"),
    HandlerKind.PYTHON: ("probed_python_start", "probed_python_end"),
}
_RETURN_PROGRAM = "probed_handler_return"
#: All that are attached to uprobes.
PROGRAMS = (*itertools.chain(*_PROGRAMS.values()), _RETURN_PROGRAM)
_PYTHON_SITES = MAPS["python_sites"].max_entries
_PYTHON_NAME_MAX, _PYTHON_FILE_MAX = (
    PYTHON_SITE[name].itemsize for name in ("function_name", "file_name")
)


@contextlib.contextmanager
def attached_to_handlers(programs: Programs, handlers: tuple[Handler, ...]) -> Iterator[list[str]]:
    """Attached to all handlers' starts and ends for the length of a `with` block.

    Gives, for people, what was attached where.

    Raises:
        KernelError: the kernel refused one.
        UsageError: a Python function's name is too long, or there are too many.
    """
    with contextlib.ExitStack() as stack:
        _attach(stack, programs, handlers)
        yield [f"uprobe {handler.name}" for handler in handlers]


def _attach(stack: contextlib.ExitStack, programs: Programs, handlers: tuple[Handler, ...]) -> None:
    python_sites = 0
    for handler in handlers:
        for site, program, at_return in _sites(handler):
            if handler.python is not None:
                if python_sites == _PYTHON_SITES:
                    raise UsageError(
                        f"more than {_PYTHON_SITES} places to probe for Python functions; name "
                        "fewer of them with --handler"
                    )
                programs.set_python_site(python_sites, _python_site(site, handler.python))
            try:
                link, event = libbpf.attach_uprobe(
                    site.path, site.offset, programs.fd(program), pid=handler.pid,
                    at_return=at_return, semaphore=site.semaphore, cookie=python_sites,
                )  # fmt: skip
            except OSError as error:
                raise KernelError(
                    f"cannot put a uprobe on {handler.name} in {handler.path}: {error.strerror}; "
                    "name another function with --handler"
                ) from error
            stack.callback(os.close, event)
            stack.callback(os.close, link)
            python_sites += handler.python is not None


def _sites(handler: Handler) -> Iterator[tuple[ProbeSite, str, bool]]:
    """(site, program, at its function's return). Ends first: what starts must be able to end."""
    start, end = _PROGRAMS[handler.kind]
    if handler.return_probe:
        yield from ((site, _RETURN_PROGRAM, True) for site in handler.starts)
    yield from ((site, end, False) for site in handler.ends)
    yield from ((site, start, False) for site in handler.starts)


def _python_site(site: ProbeSite, function: PythonFunction) -> bytes:
    file, name = site.arguments
    function_name, file_name = function.name.encode(), function.file.encode()
    if len(function_name) >= _PYTHON_NAME_MAX or len(file_name) >= _PYTHON_FILE_MAX:
        raise UsageError(
            f"the names in --handler ...:python:{function.file}:{function.name} are too long: a "
            f"function's may have {_PYTHON_NAME_MAX - 1} bytes, a file's {_PYTHON_FILE_MAX - 1}"
        )
    told = np.zeros((), PYTHON_SITE)
    told["file"], told["function"] = _argument(file), _argument(name)
    told["file_length"], told["function_length"] = len(file_name), len(function_name)
    told["function_name"], told["file_name"] = function_name, file_name
    return told.tobytes()


def _argument(argument: UsdtArgument) -> tuple[int, bool, int]:
    """struct usdt_argument, bpf/abi/settings.h."""
    assert PT_REGS.fields is not None
    _, at, *_ = PT_REGS.fields[argument.register]
    return at, argument.kind is ArgumentKind.MEMORY, argument.displacement
