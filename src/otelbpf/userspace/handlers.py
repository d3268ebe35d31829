# SPDX-License-Identifier: Apache-2.0
"""From the words of `--handler` to the places that are probed. Attaches nothing.

    TARGET:FUNCTION                   nginx:ngx_http_process_request
    TARGET:PROVIDER:START[,END]       /usr/bin/server:http:request__start,request__done
    TARGET:python:[FILE:]FUNCTION     1234:python:shop/views.py:get_basket

TARGET is an executable or a shared library, by its path or as the shell finds
it, and then every process that runs it is meant; or it is a process, by its
number, with all that it has loaded: a path cannot tell what is in a container,
or was deleted since. In FUNCTION, `*` and `?` stand for any letters and for
one, unless a function has just that name. C++ and Rust functions go by their
mangled names, Go's with their package: `main.handle`, `main.(*Shop).ServeHTTP`.

END is left out where the names of the two probes show that they are a pair, such as
`request__start` and `request__done`. FILE is the last part of a path, from one
slash to the end; FUNCTION is a name without its class, as tracebacks have it. That
needs a CPython built `--with-dtrace`, before 3.11 or from 3.15 on, and a coroutine
starts and ends each time that it goes on and waits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError

from otelbpf.errors import UsageError
from otelbpf.userspace.code import Code
from otelbpf.userspace.disassembly import UnclearCodeError, ends_of, start_of, start_of_go
from otelbpf.userspace.elf import DEBUG_ROOT, Elf, Symbol, UsdtNote
from otelbpf.userspace.handler import Handler, HandlerKind, ProbeSite, PythonFunction
from otelbpf.userspace.targets import TargetFile, find_files
from otelbpf.userspace.usdt import UsdtArgument, parse_usdt_arguments

#: More functions than this are not what anyone meant by a pattern.
MAX_FUNCTIONS = 64

_GRAMMAR = (
    "it is TARGET:FUNCTION, TARGET:PROVIDER:START,END or TARGET:python:FUNCTION, where TARGET is "
    "an executable, a library or a process's number"
)
#: How the names of a pair of probes end.
_PAIRS = (
    ("__entry", "__return"),
    ("__start", "__done"),
    ("__start", "__end"),
    ("__start", "__stop"),
    ("__begin", "__end"),
    ("__startup", "__shutdown"),
)
# The interpreter's probes, whose first arguments are the file's and the function's name:
# Include/pydtrace.d in CPython.
_PYTHON = ("python", "function__entry", "function__return")
_PYTHON_ARGUMENTS = 2
#: What reading a damaged file can raise; pyelftools checks little of what a file says.
_DAMAGE = (ELFError, ConstructError, OSError, ValueError, LookupError, MemoryError)


def find_handlers(spec: str) -> list[Handler]:
    """The handlers that a `--handler` option asks for: at least one, at most MAX_FUNCTIONS.

    Args:
        spec: as this module's docstring says.
    Raises:
        UsageError: there is none, or it cannot be probed without harm.
    """
    target, _, what = spec.partition(":")
    provider, _, probe = what.rpartition(":")
    try:
        if not target or not what or not all(what.split(":")):
            raise UsageError(_GRAMMAR)
        files = find_files(target)
        if what.startswith("python:"):
            file, _, name = what.removeprefix("python:").rpartition(":")
            return _python_handlers(files, PythonFunction(name, file))
        if provider:
            return _usdt_handlers(files, provider, probe)
        return _function_handlers(files, what)
    except UsageError as error:
        raise UsageError(f"--handler {spec}: {error}") from error
    except _DAMAGE as error:
        raise UsageError(
            f"--handler {spec}: the ELF file cannot be read to its end: {error}; build or install "
            "it anew"
        ) from error


def _function_handlers(files: list[TargetFile], pattern: str) -> list[Handler]:
    found: list[tuple[TargetFile, Symbol]] = []
    reasons = []
    for file in files:
        with file.open() as elf:
            symbols = elf.symbols(pattern)
            good = [symbol for symbol in symbols if _why_not(elf, symbol) is None]
            # One name may stand for several functions, but not for others than are called by it.
            if not good or any(each.is_resolver and each.name == pattern for each in symbols):
                reasons.append(_why_none(elf, symbols, pattern))
            else:
                found += [(file, symbol) for symbol in good]
    if not found:
        # Of a process's files, one that knows the name tells more than all the others.
        raise UsageError(max(reasons)[1])
    if len(found) > MAX_FUNCTIONS:
        raise UsageError(
            f"{pattern} matches {len(found)} functions, and {MAX_FUNCTIONS} is the limit; "
            "write more of the name"
        )
    handlers: list[Handler] = []
    for file, symbols_of_file in itertools.groupby(found, key=lambda each: each[0]):
        with file.open() as elf:
            for _, symbol in symbols_of_file:
                handlers += _function_handler(elf, file, symbol)
    if not handlers:
        raise UsageError(
            f"{pattern} never returns to its caller, so that it has no end to measure; name a "
            "function that it calls for each request"
        )
    return handlers


def _why_not(elf: Elf, symbol: Symbol) -> str | None:
    """Why a symbol is no function to probe; None: it is one."""
    if not symbol.is_function:
        return f"{symbol} in {elf.name} is data, not a function; name a function"
    if not symbol.is_defined:
        return (
            f"{elf.name} only calls {symbol}, which is in a library; name that library, or a "
            f"process: PID:{symbol.name}"
        )
    if symbol.is_resolver:
        return (
            f"{symbol} in {elf.name} only chooses, when a process starts, which function serves "
            "under that name (an ifunc); name the chosen one"
        )
    return None


def _why_none(elf: Elf, symbols: list[Symbol], pattern: str) -> tuple[int, str]:
    """Why a pattern gives nothing in this file, after how much that says."""
    told = [reason for reason in (_why_not(elf, symbol) for symbol in symbols) if reason]
    if told:
        return 2, told[0]
    missing = f"{elf.name} has no function {pattern}"
    if elf.is_stripped and elf.is_go:
        return 1, f"{missing}: it was built without symbols; build it without `-ldflags=-s`"
    if elf.is_stripped and elf.debug_file is None:
        where = f"{DEBUG_ROOT}/.build-id/{elf.build_id[:2]}/{elf.build_id[2:]}.debug"
        return 1, (
            f"{missing} among those that others may call, and its other symbols were stripped; "
            + (f"install its debug symbols ({where}) or " if elf.build_id else "")
            + "build it unstripped"
        )
    return 0, (
        f"{missing}; look through its names with `nm --defined-only`, since the compiler may have "
        "changed or inlined it"
    )


def _function_handler(elf: Elf, file: TargetFile, symbol: Symbol) -> Iterator[Handler]:
    """The handler of a function; nothing if it never comes back."""
    # Go's own functions are named after their package; what has no dot comes from C.
    is_go = elf.is_go and "." in symbol.name
    by_return = not elf.is_go and not elf.has_exceptions
    start, ends = symbol.address, None
    try:
        if not symbol.size:
            raise UnclearCodeError("is of unknown size")
        code = elf.code_of(symbol)
        rare = [] if is_go else _rare_parts(elf, symbol)
        start = start_of_go(code) if is_go else start_of(code, rare)
        # Of functions within others, as assembly has them, each has its own calls.
        between = range(symbol.address + 1, start + 1)
        if not is_go and not elf.addresses.isdisjoint(between):
            start = symbol.address
        ends = ends_of(code, () if by_return else rare, is_go=is_go)
    except UnclearCodeError as error:
        if not by_return:
            danger = "Go moves stacks" if elf.is_go else "exceptions or panics may pass through it"
            raise UsageError(
                f"the ends of {symbol} in {elf.name} cannot be told, since it {error}, and a "
                f"return probe could kill the process, where {danger}; name another function"
            ) from error
    if ends == ():
        return

    def site(address: int) -> ProbeSite:
        return ProbeSite(file.openable, elf.offset_of(address))

    yield Handler(
        name=f"{file.path.name}:{symbol.name}",
        path=file.path,
        pid=file.pid,
        starts=(site(start),),
        ends=() if by_return else tuple(map(site, ends or ())),
        return_probe=by_return,
        kind=HandlerKind.GO if is_go else HandlerKind.FUNCTION,
    )


def _rare_parts(elf: Elf, symbol: Symbol) -> list[Code]:
    """What the compiler moved out of the way, of this function or of others of its name."""
    return [elf.code_of(part) for part in elf.symbols(f"{symbol.name}.cold*") if part.size]


def _usdt_handlers(files: list[TargetFile], provider: str, probe: str) -> list[Handler]:
    start, _, end = probe.partition(",")
    handlers = []
    known: set[str] = set()
    for file in files:
        with file.open() as elf:
            names = {note.name for note in elf.usdt_notes if note.provider == provider}
            known |= {f"{note.provider}:{note.name}" for note in elf.usdt_notes}
            partner = end or next((name for name in _partners(start) if name in names), "")
            if {start, partner} <= names:
                handlers.append(
                    Handler(
                        name=f"{file.path.name}:{provider}:{start}",
                        path=file.path,
                        pid=file.pid,
                        starts=_usdt_sites(elf, file, provider, start),
                        ends=_usdt_sites(elf, file, provider, partner),
                        return_probe=False,
                        kind=HandlerKind.USDT,
                    )
                )
    if handlers:
        return handlers
    if not end and f"{provider}:{start}" in known:
        raise UsageError(
            f"which probe is the end of {start} cannot be told from its name; write "
            f"{provider}:{start},END with one of {_listed(known)}"
        )
    wanted = f"{start} and {end}" if end else start
    raise UsageError(
        f"there is no USDT probe {wanted} of {provider}; "
        + (f"name one of {_listed(known)}" if known else "there are none at all: name a function")
    )


def _partners(start: str) -> Iterator[str]:
    for first, last in _PAIRS:
        if start.endswith(first):
            yield start.removesuffix(first) + last


def _listed(names: set[str]) -> str:
    shown = sorted(names)[:12]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")


def _python_handlers(files: list[TargetFile], function: PythonFunction) -> list[Handler]:
    provider, entry, done = _PYTHON
    handlers = []
    for file in files:
        with file.open() as elf:
            names = {note.name for note in elf.usdt_notes if note.provider == provider}
            if not {entry, done} <= names:
                continue
            _require_live_python_probes(elf)
            handlers.append(
                Handler(
                    name=f"{file.path.name}:{function.name}",
                    path=file.path,
                    pid=file.pid,
                    starts=_usdt_sites(elf, file, provider, entry, _PYTHON_ARGUMENTS),
                    ends=_usdt_sites(elf, file, provider, done, _PYTHON_ARGUMENTS),
                    return_probe=False,
                    kind=HandlerKind.PYTHON,
                    python=function,
                )
            )
    if not handlers:
        raise UsageError(
            f"this Python has no USDT probe {entry}, which is there in those that were built with "
            "`--with-dtrace`, but not in 3.12, 3.13 and 3.14; where it is in a library, "
            "libpython, name that or a process"
        )
    return handlers


def _require_live_python_probes(elf: Elf) -> None:
    # Since 3.11 the interpreter's version number is among its symbols. On the probe see
    # github.com/python/cpython/issues/98894.
    version = next((elf.word_at(each) for each in elf.symbols("Py_Version") if each.is_defined), 0)
    if version >> 16 == 0x030B:
        raise UsageError(
            f"{elf.name} is Python 3.11, where no call passes the USDT probe function__entry "
            "unless a profiler runs; use another version of Python"
        )


def _usdt_sites(
    elf: Elf, file: TargetFile, provider: str, name: str, arguments: int = 0
) -> tuple[ProbeSite, ...]:
    """All locations of a probe, with the first `arguments` of what it passes on."""
    return tuple(
        ProbeSite(
            path=file.openable,
            offset=elf.offset_of(note.address),
            semaphore=elf.offset_of(note.semaphore, executable=False) if note.semaphore else 0,
            arguments=_arguments(elf, note, arguments),
        )
        for note in elf.usdt_notes
        if (note.provider, note.name) == (provider, name)
    )


def _arguments(elf: Elf, note: UsdtNote, count: int) -> tuple[UsdtArgument, ...]:
    try:
        found = parse_usdt_arguments(" ".join(note.arguments.split()[:count]))
        if len(found) < count:
            raise ValueError(note.arguments)
    except ValueError as error:
        raise UsageError(
            f"cannot read the arguments `{note.arguments}` of the USDT probe {note.name} in "
            f"{elf.name}; name another executable"
        ) from error
    return found
