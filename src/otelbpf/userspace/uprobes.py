# SPDX-License-Identifier: Apache-2.0
"""Attaches the programs of bpf/hooks/handler.c to the starts and ends of handlers."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from otelbpf.errors import KernelError, RefusedError, UsageError
from otelbpf.kernel import libbpf
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.records import MAPS, PT_REGS, PYTHON_SITE
from otelbpf.kernel.uprobe_multi import Place, attach_uprobes
from otelbpf.userspace.handler import Handler, HandlerKind, ProbeSite, PythonFunction
from otelbpf.userspace.usdt import ArgumentKind, UsdtArgument

_PROGRAMS = {
    HandlerKind.FUNCTION: ("probed_start", "probed_end"),
    HandlerKind.GO: ("probed_go_start", "probed_go_end"),
    HandlerKind.USDT: ("probed_usdt_start", "probed_usdt_end"),
    HandlerKind.PYTHON: ("probed_python_start", "probed_python_end"),
}
_RETURN_PROGRAM = "probed_return"
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


@dataclass(frozen=True)
class _Probe:
    """A program at a place.

    Attributes:
        at_return: of the function that begins there.
        cookie: what the program is told of it.
    """

    handler: Handler
    site: ProbeSite
    program: str
    at_return: bool
    cookie: int


def _attach(stack: contextlib.ExitStack, programs: Programs, handlers: tuple[Handler, ...]) -> None:
    probes = [*_probes(programs, handlers)]
    together: dict[object, list[_Probe]] = {}
    # Ends first: what starts must be able to end.
    for probe in sorted(probes, key=_is_start):
        key = probe.site.path, probe.program, probe.handler.pid
        together.setdefault(key, []).append(probe)
    for some in together.values():
        if some[0].handler.pid is not None or not _attach_as_one(stack, programs, some):
            for probe in some:
                _attach_alone(stack, programs, probe)


def _is_start(probe: _Probe) -> bool:
    return probe.program == _PROGRAMS[probe.handler.kind][0]


def _attach_as_one(stack: contextlib.ExitStack, programs: Programs, probes: list[_Probe]) -> bool:
    """One link for a program's places in a file; false: the kernel made none, whyever."""
    first = probes[0]
    places = [Place(each.site.offset, each.site.semaphore, each.cookie) for each in probes]
    try:
        link = attach_uprobes(
            first.site.path, places, programs.multi_fd(first.program), at_return=first.at_return
        )
    except (OSError, RefusedError):
        return False
    stack.callback(os.close, link)
    return True


def _attach_alone(stack: contextlib.ExitStack, programs: Programs, probe: _Probe) -> None:
    handler, site = probe.handler, probe.site
    try:
        link, event = libbpf.attach_uprobe(
            site.path, site.offset, programs.fd(probe.program), pid=handler.pid,
            at_return=probe.at_return, semaphore=site.semaphore, cookie=probe.cookie,
        )  # fmt: skip
    except OSError as error:
        raise KernelError(
            f"cannot put a uprobe on {handler.name} in {handler.path}: {error.strerror}; "
            "name another function with --handler"
        ) from error
    stack.callback(os.close, event)
    stack.callback(os.close, link)


def _probes(programs: Programs, handlers: tuple[Handler, ...]) -> Iterator[_Probe]:
    """All of them; the programs are told what Python's are for."""
    python_sites = 0
    for handler in handlers:
        for site, program, at_return in _sites(handler):
            if handler.python is None:
                yield _Probe(handler, site, program, at_return, cookie=0)
                continue
            if python_sites == _PYTHON_SITES:
                raise UsageError(
                    f"more than {_PYTHON_SITES} places to probe for Python functions; name "
                    "fewer of them with --handler"
                )
            programs.set_python_site(python_sites, _python_site(site, handler.python))
            yield _Probe(handler, site, program, at_return, cookie=python_sites)
            python_sites += 1


def _sites(handler: Handler) -> Iterator[tuple[ProbeSite, str, bool]]:
    """(site, program, at its function's return)."""
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
