# SPDX-License-Identifier: Apache-2.0
"""From the words of --handler to places in files. Needs gcc, binutils, nginx and Go."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from binaries import USDT, compile_c, compile_go, disassemble, offset_in_file, run

from otelbpf.errors import UsageError
from otelbpf.userspace.handler import Handler, HandlerKind, ProbeSite, PythonFunction
from otelbpf.userspace.handlers import MAX_FUNCTIONS, find_handlers
from otelbpf.userspace.usdt import ArgumentKind, UsdtArgument

pytestmark = pytest.mark.impure

SERVER = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int prices[4] = {1, 2, 3, 4};
__attribute__((noinline)) int handle(int x) { return puts("") + prices[x & 3]; }
__attribute__((noinline)) int handle_more(int x) { return handle(x) + 1; }
static __attribute__((noinline)) int hidden(int x) { return handle_more(x) * 3; }
__attribute__((noinline, noreturn)) void work(void) { for (;;) if (hidden(getpid())) exit(1); }
static int chosen(int x) { return x; }
static int (*choose(void))(int) { return chosen; }
int price(int x) __attribute__((ifunc("choose")));
__asm__(".globl unsized\\n.type unsized, @function\\nunsized: ret\\n");
int main(void)
{
    puts("ready");
    fflush(stdout);
    pause();
    work();
}
"""
LIBRARY = """
__attribute__((noinline)) int serve(int x) { return x * 3; }
__attribute__((constructor)) static void start(void) { serve(1); }
__asm__(
    ".globl asks\\n.type asks, @function\\nasks: mov %rdi,%rax\\ntest %rax,%rax\\nje 1f\\n1: ret\\n"
    ".size asks, .-asks\\n"
    ".globl outer\\n.type outer, @function\\nouter: mov %rdi,%rax\\n"
    ".globl inner\\n.type inner, @function\\ninner: push %rbx\\npop %rbx\\nret\\n"
    ".size inner, .-inner\\n.size outer, .-outer\\n"
);
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("handlers")


@pytest.fixture(scope="module")
def server(directory: Path) -> Path:
    """A program, and a library that it has loaded."""
    # Ubuntu's compiler would begin functions with a mark: tests/unit/test_disassembly.py.
    options = ("-O1", "-fcf-protection=none")
    library = compile_c(directory / "libserve.so", LIBRARY, *options, "-shared", "-fPIC")
    return compile_c(
        directory / "server",
        SERVER,
        *options,
        "-Wl,--no-as-needed",
        library,
        f"-Wl,-rpath,{directory}",
    )


@contextlib.contextmanager
def running(path: Path) -> Iterator[int]:
    """The number of a process that runs `path`, and has loaded all of it."""
    with subprocess.Popen([path], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            process.kill()


def start_of(path: Path, function: str) -> int:
    return offset_in_file(path, disassemble(path, function)[0].address)


def test_a_function_of_c(server: Path) -> None:
    assert find_handlers(f"{server}:handle") == [
        Handler(
            name="server:handle",
            path=server,
            pid=None,
            starts=(ProbeSite(server, start_of(server, "handle")),),
            ends=(),
            return_probe=True,
            kind=HandlerKind.FUNCTION,
        )
    ]


def test_functions_by_a_pattern(server: Path) -> None:
    assert sorted(each.name for each in find_handlers(f"{server}:h?*d*")) == [
        "server:handle",
        "server:handle_more",
        "server:hidden",
    ]


def test_by_a_relative_path_and_as_a_command(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = find_handlers(f"{server}:handle")
    monkeypatch.chdir(server.parent)
    assert find_handlers("./server:handle") == expected
    monkeypatch.chdir("/")
    monkeypatch.setenv("PATH", str(server.parent))
    assert find_handlers("server:handle") == expected


def test_a_function_whose_size_no_one_knows(server: Path) -> None:
    (handler,) = find_handlers(f"{server}:unsized")
    assert handler.return_probe
    assert handler.starts == (ProbeSite(server, start_of(server, "unsized")),)


@pytest.mark.parametrize(("function", "passed_over"), [("asks", 2), ("outer", 0), ("inner", 0)])
def test_a_probe_is_where_it_costs_least_and_only_calls_pass_it(
    server: Path, function: str, passed_over: int
) -> None:
    library = server.with_name("libserve.so")
    expected = offset_in_file(library, disassemble(library, function)[passed_over].address)
    (handler,) = find_handlers(f"{library}:{function}")
    assert [site.offset for site in handler.starts] == [expected]


def test_nginx_of_the_distribution() -> None:
    nginx = Path(shutil.which("nginx")).resolve()
    names = re.findall(r" T (ngx_http_\w*_handler)$", run("nm", "-D", nginx), re.MULTILINE)
    handlers = find_handlers("nginx:ngx_http_*_handler")
    assert handlers and all(each.return_probe for each in handlers)
    assert sorted(each.name for each in handlers) == sorted(f"nginx:{name}" for name in names)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("server", "it is TARGET:FUNCTION, "),
        ("server:", "it is TARGET:FUNCTION, "),
        (":handle", "it is TARGET:FUNCTION, "),
        ("server:shop::x", "it is TARGET:FUNCTION, "),
        ("server:nothing", "server has no function nothing; look .* `nm"),
        ("server:prices", "prices in .*server is data, not a function"),
        ("server:puts", "server only calls puts.*name that library, or a process: PID:puts"),
        ("server:serve", "server has no function serve"),
        ("server:price", r"price in .* only chooses.*\(an ifunc\); name the chosen one"),
        ("server:work", "work never returns to its caller.* name a function that it calls"),
        ("server:shop:sold", "no USDT probe sold of shop; .* none at all: name a function"),
        ("server:python:sold", "this Python has no USDT probe function__entry.*--with-dtrace"),
        ("no_such_server:handle", "there is no file no_such_server, and no such command"),
        ("script:handle", "script is no executable or shared library.*name the interpreter"),
        ("0:handle", "there is no process 0; `pgrep"),
        ("4194305:handle", "there is no process 4194305; `pgrep"),  # PID_MAX_LIMIT is 4194304
    ],
)
def test_refusals(server: Path, monkeypatch: pytest.MonkeyPatch, words: str, reason: str) -> None:
    (server.parent / "script").write_text("#!/bin/sh\n")
    (server.parent / "script").chmod(0o755)
    monkeypatch.setenv("PATH", str(server.parent))
    with pytest.raises(UsageError, match=f"^--handler {re.escape(words)}: .*{reason}") as caught:
        find_handlers(words)
    assert "\n" not in str(caught.value)


def test_a_pattern_of_too_many_functions(directory: Path) -> None:
    def source(count: int) -> str:
        return "\n".join(f"int price{each}(void) {{ return {each}; }}" for each in range(count))

    enough = compile_c(directory / "enough.so", source(MAX_FUNCTIONS), "-shared", "-fPIC")
    assert len(find_handlers(f"{enough}:price*")) == MAX_FUNCTIONS
    many = compile_c(directory / "many.so", source(MAX_FUNCTIONS + 1), "-shared", "-fPIC")
    with pytest.raises(UsageError, match=r"price\* matches 65 functions, and 64 is the limit"):
        find_handlers(f"{many}:price*")


def test_what_was_stripped(server: Path, tmp_path: Path) -> None:
    run("strip", "-o", tmp_path / "server", server)
    identity = re.search(r"Build ID: (\w\w)(\w+)", run("readelf", "-n", server)).groups()
    debug_file = "/usr/lib/debug/.build-id/{}/{}.debug".format(*identity)
    with pytest.raises(UsageError, match=f"has no function hidden .*stripped.*{debug_file}"):
        find_handlers(f"{tmp_path}/server:hidden")


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_a_file_that_was_cut_off(server: Path, tmp_path: Path, keep: float) -> None:
    data = server.read_bytes()
    (tmp_path / "cut").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UsageError, match=r"ELF file.*anew"):
        find_handlers(f"{tmp_path}/cut:handle")


def test_a_process(server: Path) -> None:
    with running(server) as pid:
        (handler,) = find_handlers(f"{pid}:handle")
        assert (handler.pid, handler.path, handler.name) == (pid, server, "server:handle")
        (site,) = handler.starts
        assert site.path.samefile(server)
        assert site.offset == start_of(server, "handle")


def test_a_library_of_a_process(server: Path) -> None:
    library = server.with_name("libserve.so")
    with running(server) as pid:
        (handler,) = find_handlers(f"{pid}:serve")
        assert (handler.path, handler.name) == (library, "libserve.so:serve")
        assert handler.starts[0].path.samefile(library)
        assert handler.starts[0].offset == start_of(library, "serve")
        with pytest.raises(UsageError, match="has no function nothing"):
            find_handlers(f"{pid}:nothing")


@pytest.mark.parametrize("replaced", [False, True])
def test_a_process_whose_executable_was_deleted(
    server: Path, tmp_path: Path, replaced: bool
) -> None:
    path = tmp_path / "server"
    shutil.copy(server, path)
    with running(path) as pid:
        path.unlink()
        if replaced:
            shutil.copy(server, path)
        (handler,) = find_handlers(f"{pid}:handle")
        (site,) = handler.starts
        assert handler.path == path
        assert site.path.samefile(f"/proc/{pid}/exe")
        assert not replaced or not site.path.samefile(path)
        assert site.path.read_bytes() == server.read_bytes()
        assert site.offset == start_of(server, "handle")


def test_a_library_of_a_process_that_was_deleted(tmp_path: Path, server: Path) -> None:
    library = compile_c(tmp_path / "libgone.so", LIBRARY, "-O1", "-shared", "-fPIC")
    path = compile_c(
        tmp_path / "server", SERVER, "-O1", "-Wl,--no-as-needed", library, f"-Wl,-rpath,{tmp_path}"
    )
    data, offset = library.read_bytes(), start_of(library, "serve")
    with running(path) as pid:
        library.unlink()
        shutil.copy(server.with_name("libserve.so"), library)
        if os.geteuid() != 0:  # only root may have it
            with pytest.raises(UsageError, match="has no function serve"):
                find_handlers(f"{pid}:serve")
            return
        (handler,) = find_handlers(f"{pid}:serve")
        (site,) = handler.starts
        assert handler.path == library
        assert not site.path.samefile(library)
        assert (site.path.read_bytes(), site.offset) == (data, offset)


def test_an_old_version_does_not_stand_in_for_what_is_chosen_later(tmp_path: Path) -> None:
    (tmp_path / "map").write_text("OLD_1 { global: get; local: *; }; NEW_2 { global: get; } OLD_1;")
    source = """
    int old_get(void) { return 1; }
    static int chosen(void) { return 2; }
    static int (*choose(void))(void) { return chosen; }
    int new_get(void) __attribute__((ifunc("choose")));
    __asm__(".symver old_get, get@OLD_1\\n.symver new_get, get@@NEW_2");
    """
    library = compile_c(
        tmp_path / "versions.so",
        source,
        "-shared",
        "-fPIC",
        f"-Wl,--version-script={tmp_path / 'map'}",
    )
    with pytest.raises(UsageError, match=r"get@NEW_2 in .* only chooses"):
        find_handlers(f"{library}:get")
    assert len(find_handlers(f"{library}:get@OLD_1")) == 1


def test_ends_of_cpp_are_no_return_probe(directory: Path) -> None:
    source = """
    #include <stdexcept>
    extern "C" __attribute__((noinline)) int handle(int x)
    { if (x == 3) throw std::runtime_error("3"); return x + 1; }
    namespace shop { __attribute__((noinline)) int sell(int x) { return handle(x) + 1; } }
    extern "C" __attribute__((noinline)) int call(int (*function)(int)) { return function(1); }
    int main(int argc, char **) { try { return shop::sell(argc); } catch (...) { return 1; } }
    """
    path = compile_c(directory / "shop.cc.out", source, "-O2")
    (handler,) = find_handlers(f"{path}:handle")
    returns = [each.address for each in disassemble(path, "handle") if each.returns]
    assert returns
    assert not handler.return_probe
    assert handler.ends == tuple(ProbeSite(path, offset_in_file(path, each)) for each in returns)
    (mangled,) = find_handlers(f"{path}:*sell*")
    assert mangled.name == "shop.cc.out:_ZN4shop4sellEi"
    with pytest.raises(UsageError, match=r"ends of call .* exceptions or panics may pass through"):
        find_handlers(f"{path}:call")


GO = """
package main

import "os"

//go:noinline
func handle(n int) int {
	var frame [200]int
	if n < 3 {
		return other(frame[:]) + n
	}
	return other(frame[n:])
}

//go:noinline
func other(frame []int) int { return len(frame) }

func main() { os.Exit(handle(len(os.Args))) }
"""


@pytest.fixture(scope="module")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_go(tmp_path_factory.mktemp("go"), {"main.go": GO})


def test_a_function_of_go(go_program: Path) -> None:
    (handler,) = find_handlers(f"{go_program}:main.handle")
    instructions = disassemble(go_program, "main.handle")
    returns = [each.address for each in instructions if each.returns]
    assert len(returns) >= 2
    assert handler.kind is HandlerKind.GO and not handler.return_probe
    assert handler.ends == tuple(
        ProbeSite(go_program, offset_in_file(go_program, each)) for each in returns
    )
    (start,) = handler.starts
    first = offset_in_file(go_program, instructions[0].address)
    assert first < start.offset < handler.ends[0].offset


def test_go_without_symbols(tmp_path: Path) -> None:
    program = compile_go(tmp_path, {"main.go": GO}, "-ldflags=-s")
    with pytest.raises(UsageError, match=r"has no function main\.handle: .* without `-ldflags=-s`"):
        find_handlers(f"{program}:main.handle")


PROBES = (
    USDT
    + """
__extension__ unsigned short raised __attribute__((section(".probes"))) = 0;
__extension__ unsigned short lowered __attribute__((section(".probes"))) = 0;
#define SHOP(name) USDT("shop", name, "0", "+ 0", "8@%rbp")
#define PYTHON(name, semaphore, arguments) USDT("python", name, semaphore, "+ 0", arguments)
static inline __attribute__((always_inline)) void pass(void) { SHOP("sale__start"); }
int main(int argc, char **argv)
{
    pass();
    if (argc > 1)
        pass();
    SHOP("sale__done"); SHOP("opened"); SHOP("closed");
    PYTHON("function__entry", "raised", "8@%rbp 8@-24(%rbp) -4@%eax");
    PYTHON("function__return", "lowered", RETURN_ARGUMENTS);
    return 0;
}
"""
)


@pytest.fixture(scope="module")
def probes(directory: Path) -> Path:
    source = f'#define RETURN_ARGUMENTS "8@%rbp 8@%r12 4@counter(%rip)"\n{PROBES}'
    return compile_c(directory / "probes", source, "-O1")


def locations(path: Path, name: str) -> list[int]:
    text = run("readelf", "--wide", "--notes", path)
    found = re.findall(rf"Name: {name}\s+Location: (\w+)", text)
    return [offset_in_file(path, int(each, 16)) for each in found]


@pytest.mark.parametrize(
    ("words", "start", "end", "copies"),
    [
        ("shop:sale__start", "sale__start", "sale__done", 2),
        ("shop:sale__start,sale__done", "sale__start", "sale__done", 2),
        ("shop:opened,closed", "opened", "closed", 1),
    ],
)
def test_a_pair_of_usdt_probes(probes: Path, words: str, start: str, end: str, copies: int) -> None:
    (handler,) = find_handlers(f"{probes}:{words}")
    assert len(handler.starts) == copies
    assert handler.starts == tuple(ProbeSite(probes, each) for each in locations(probes, start))
    assert handler.ends == tuple(ProbeSite(probes, each) for each in locations(probes, end))
    assert not handler.return_probe and handler.python is None


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("shop:opened", "which probe is the end of opened .* shop:opened,END with one of .*closed"),
        ("shop:lost", "no USDT probe lost of shop; name one of .*shop:closed"),
        ("shop:opened,lost", "no USDT probe opened and lost of shop"),
        ("stall:opened,closed", "no USDT probe opened and closed of stall"),
    ],
)
def test_usdt_probes_without_a_pair(probes: Path, words: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        find_handlers(f"{probes}:{words}")


def test_a_function_of_python(probes: Path) -> None:
    (handler,) = find_handlers(f"{probes}:python:shop/views.py:get")
    assert handler.python == PythonFunction("get", "shop/views.py")
    assert find_handlers(f"{probes}:python:get")[0].python == PythonFunction("get")
    (start,), (end,) = handler.starts, handler.ends
    assert [start.offset] == locations(probes, "function__entry")
    assert [end.offset] == locations(probes, "function__return")
    assert start.arguments == (
        UsdtArgument(8, False, ArgumentKind.REGISTER, "bp", 0),
        UsdtArgument(8, False, ArgumentKind.MEMORY, "bp", -24),
    )
    assert [each.register for each in end.arguments] == ["bp", "r12"]
    symbols = {
        name: int(address, 16)
        for address, name in re.findall(r"^(\w+) \w (\w+)$", run("nm", probes), re.MULTILINE)
    }
    assert start.semaphore == offset_in_file(probes, symbols["raised"])
    assert end.semaphore == offset_in_file(probes, symbols["lowered"])


def test_python_arguments_that_cannot_be_read(directory: Path) -> None:
    source = f'#define RETURN_ARGUMENTS "8@%rbp 8@name(%rip)"\n{PROBES}'
    path = compile_c(directory / "unreadable", source, "-O1")
    with pytest.raises(UsageError, match="cannot read the arguments `8@%rbp 8@name"):
        find_handlers(f"{path}:python:get")


@pytest.mark.skipif(sys.version_info >= (3, 15), reason="3.15 has the probes again")
def test_the_distributions_python_has_no_probes_that_work() -> None:
    reason = (
        "is Python 3.11, where no call passes"
        if sys.version_info < (3, 12)
        else "has no USDT probe function__entry"
    )
    with pytest.raises(UsageError, match=reason):
        find_handlers(f"{os.getpid()}:python:get")
