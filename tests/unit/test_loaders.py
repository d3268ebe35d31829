# SPDX-License-Identifier: Apache-2.0
"""Where the programs come from, and what is said where they cannot."""

from __future__ import annotations

import errno
import resource
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from otelbpf.agent import run
from otelbpf.agent.config import Config
from otelbpf.errors import KernelError, RefusedError
from otelbpf.host import ulimits
from otelbpf.kernel import objects
from otelbpf.kernel.bcc_module import has_bcc
from otelbpf.kernel.bpf_object import OTHER_LOADER
from otelbpf.kernel.diagnostics import keep_log
from otelbpf.kernel.libbpf import VerifierError
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.loaders import BCC_LACKS, Loader, choose_loader
from otelbpf.kernel.loads import Load
from otelbpf.ledger.ids import Ids
from otelbpf.policy.sampler import Sampler
from otelbpf.policy.upstreams import Upstreams


class Kernel:
    """What is asked of its BTF."""

    def __init__(self, *functions: str) -> None:
        self._functions = functions

    def has_function(self, name: str) -> bool:
        return name in self._functions


NEW, OLD = Kernel("bpf_loop"), Kernel()


@pytest.fixture
def _has_bcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcc", SimpleNamespace(BPF=None, __version__="1.2"))


@pytest.fixture
def _has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcc", None)


@pytest.mark.usefixtures("_has_none")
@pytest.mark.parametrize("asked", [Loader.AUTO, Loader.OBJECT])
def test_the_ready_made_ones_need_no_compiler(asked: Loader) -> None:
    chosen = choose_loader(asked, NEW)
    assert chosen.loader is Loader.OBJECT
    assert str(chosen) == "ready-made, as the kernel has bpf_loop()"


@pytest.mark.usefixtures("_has_bcc")
def test_an_older_kernel_gets_them_compiled() -> None:
    chosen = choose_loader(Loader.AUTO, OLD)
    assert chosen.loader is Loader.BCC
    assert str(chosen) == (
        "to be compiled by BCC 1.2, as the kernel has no bpf_loop(), which came with 5.17; "
        + BCC_LACKS
    )


@pytest.mark.usefixtures("_has_bcc")
def test_who_asks_for_bcc_gets_it() -> None:
    chosen = choose_loader(Loader.BCC, NEW)
    assert (chosen.loader, str(chosen)) == (
        Loader.BCC,
        f"to be compiled by BCC 1.2, as --loader bcc asks for it; {BCC_LACKS}",
    )


@pytest.mark.usefixtures("_has_bcc")
def test_another_machine_has_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "object_path", lambda: Path("/programs-riscv64.o"))
    assert "as there is no programs-riscv64.o; " in str(choose_loader(Loader.AUTO, NEW))


@pytest.mark.usefixtures("_has_bcc")
@pytest.mark.parametrize("number", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_the_compiler_needs_more_than_the_ready_made_ones(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing more is asked where none compiles; else it is told as what it is."""
    least = {limit.number: limit.least for limit in ulimits.limits()}
    unlimited = (resource.RLIM_INFINITY,) * 2
    monkeypatch.setattr(
        resource, "getrlimit", lambda each: (least[each],) * 2 if each == number else unlimited
    )
    ulimits.require()
    for asked in (Loader.AUTO, Loader.OBJECT):
        assert choose_loader(asked, NEW).loader is Loader.OBJECT
    sentence = rf"this process's .* is {least[number] >> 10}, and BCC, which .*, needs \d+: "
    for asked, kernel in ((Loader.BCC, NEW), (Loader.AUTO, OLD)):
        with pytest.raises(KernelError, match=sentence):
            choose_loader(asked, kernel)
    assert not has_bcc()


@pytest.mark.usefixtures("_has_none")
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Loader.AUTO, ("no bpf_loop()", "the BCC Python module is missing", "apt install")),
        (Loader.OBJECT, ("no bpf_loop()", "apt install python3-bpfcc", "--loader bcc")),
        (Loader.BCC, ("the BCC Python module is missing", "apt install")),
    ],
)
def test_nothing_goes(asked: Loader, words: tuple[str, ...]) -> None:
    with pytest.raises(KernelError) as refusal:
        choose_loader(asked, OLD)
    for word in words:
        assert word in str(refusal.value)


class Refused:
    """Programs that are built, and of which the kernel takes none."""

    def __init__(self, instead: str) -> None:
        self.instead = instead

    def load(self, _load: Load) -> int:
        raise VerifierError(errno.EACCES, "0: (95) exit\nR0 !read_ok\nprocessed 1 insns\n")


@pytest.mark.parametrize("instead", [OTHER_LOADER, ""])
def test_a_refusal_is_told_in_plain_words(
    instead: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What, why, and what to do, each after the other; one colon stands between both."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    programs = Programs.__new__(Programs)
    programs._loaded, programs._built = {}, Refused(instead)
    with pytest.raises(RefusedError) as refusal:
        programs.fd("tc_ingress")
    (log,) = tmp_path.iterdir()
    others = (
        "install BCC with `apt install python3-bpfcc` and give --loader bcc, which compiles the "
        "programs here; "
    )
    assert str(refusal.value) == (
        "the kernel refused program tc_ingress ([Errno 13] Permission denied), and its verifier's "
        f'last words are "R0 !read_ok": {others if instead else ""}please report this with the '
        f"whole log, which is in {log}"
    )
    assert "R0 !read_ok" in log.read_text()


def test_a_log_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert keep_log("tc_ingress", "words") == (
        "set TMPDIR to a directory that can be written, try again and please report this with the "
        "whole log, which could not be written this time (No such file or directory)"
    )


def load(config: Config) -> Any:
    target = SimpleNamespace(cookie=1, upstreams=Upstreams(), handlers=())
    loader = choose_loader(config.loader, NEW).loader
    return run._load(config, loader, NEW, (), target, Sampler(), Ids())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Loader]:
    """Of whom the programs were asked; the verifier takes none that is ready-made."""
    asked = []

    def programs(*arguments: Any) -> str:
        asked.append(arguments[-1])
        if asked[-1] is Loader.OBJECT:
            raise RefusedError("the kernel refused program tc_ingress", "do this", "report it")
        return "compiled"

    monkeypatch.setattr(run, "Programs", programs)
    return asked


@pytest.mark.usefixtures("_has_bcc")
def test_what_the_verifier_refuses_is_compiled(
    asked: list[Loader], caplog: pytest.LogCaptureFixture
) -> None:
    assert load(Config((), (80,))) == "compiled"
    assert asked == [Loader.OBJECT, Loader.BCC]
    (told,) = caplog.messages
    assert told == (
        "the kernel refused program tc_ingress; BCC compiles them here instead, in some seconds; "
        "report it"
    )


@pytest.mark.usefixtures("_has_none")
def test_without_bcc_the_refusal_is_told(asked: list[Loader]) -> None:
    with pytest.raises(RefusedError):
        load(Config((), (80,)))
    assert asked == [Loader.OBJECT]


@pytest.mark.usefixtures("_has_bcc")
def test_who_asks_for_the_ready_made_ones_gets_no_others(asked: list[Loader]) -> None:
    with pytest.raises(RefusedError):
        load(Config((), (80,), loader=Loader.OBJECT))
    assert asked == [Loader.OBJECT]
