# SPDX-License-Identifier: Apache-2.0
"""Which candidate a hook gets, on kernels made up for it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from otelbpf.errors import KernelError
from otelbpf.host import rights
from otelbpf.kernel import libbpf
from otelbpf.kernel.hooks import FORCEABLE, HOOKS, Choice, Mechanism, choose, require, without
from otelbpf.kernel.sources import source_text
from otelbpf.kernel.symbols import Symbols

FUNCTIONS = {
    "tcp_rcv_established": ("sock", "sk_buff"),
    "sock_def_readable": ("sock",),
    "tcp_rcv_space_adjust": ("sock",),
    "tcp_sendmsg_locked": ("sock", "msghdr", ""),
}
TRACEPOINTS = {
    "tcp_probe": ("sock", "sk_buff"),
    "sk_data_ready": ("sock",),
    "tcp_rcv_space_adjust": ("sock",),
    "tcp_sendmsg_locked": ("sock", "msghdr", "sk_buff", ""),
    "inet_sock_set_state": ("sock", "", ""),
    "sched_waking": ("task_struct",),
    "sched_switch": ("", "task_struct", "task_struct", ""),
    "softirq_exit": ("",),
}


class MadeUp:
    """A kernel, as a Btf describes it, with all that the hooks may want."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.functions = dict(FUNCTIONS)
        self.tracepoints = dict(TRACEPOINTS)
        self.symbols = sorted(FUNCTIONS)
        self.fentry_log = ""
        self.takes_fentry = True
        self.kprobes = tmp_path / "type"
        self.kprobes.write_text("6")
        monkeypatch.setattr(libbpf, "KPROBE_EVENTS", self.kprobes)
        monkeypatch.setattr(libbpf, "load_program", self._load)
        monkeypatch.setattr(rights, "missing", list)
        monkeypatch.setattr(Symbols, "of_kernel", self._kallsyms)

    def _load(self, *_: object) -> int:
        if not self.takes_fentry:
            raise libbpf.VerifierError(errno.EPERM, self.fentry_log)
        return os.open(os.devnull, os.O_RDONLY)

    def _kallsyms(self) -> Symbols:
        return Symbols("".join(f"0 T {name}\n" for name in self.symbols).encode())

    def has_function(self, name: str) -> bool:
        return name in self.functions

    def has_tracepoint(self, name: str) -> bool:
        return name in self.tracepoints

    def function_arguments(self, name: str) -> tuple[str, ...]:
        return self.functions[name]

    def tracepoint_arguments(self, name: str) -> tuple[str, ...]:
        return self.tracepoints[name]

    def function_id(self, name: str) -> int:
        return sorted(self.functions).index(name)

    def chosen(self, hook: str, only: Mechanism | None = None) -> str:
        return str(self.choice(hook, only).chosen)

    def choice(self, hook: str, only: Mechanism | None = None) -> Choice:
        (choice,) = (c for c in choose(self, only) if c.hook.name == hook)
        return choice


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MadeUp:
    return MadeUp(monkeypatch, tmp_path)


def test_what_costs_least_comes_first(kernel: MadeUp) -> None:
    assert kernel.chosen("tcp") == "tracepoint tcp_probe"
    del kernel.tracepoints["tcp_probe"]
    assert kernel.chosen("tcp") == "fentry tcp_rcv_established"
    kernel.takes_fentry = False
    assert kernel.chosen("tcp") == "kprobe tcp_rcv_established"
    kernel.kprobes.unlink()
    assert kernel.chosen("tcp") == "None"


@pytest.mark.parametrize("log", ["", "processed 2 insns (limit 1000000)\n"])
def test_a_kernel_that_takes_no_fentry_programs_says_why(kernel: MadeUp, log: str) -> None:
    kernel.takes_fentry = False
    kernel.fentry_log = log
    (verdict,) = kernel.choice("tcp", Mechanism.FENTRY).verdicts[1:2]
    assert verdict.reason == "this kernel takes no fentry programs: Operation not permitted"
    kernel.fentry_log = "no trampoline here\nprocessed 0 insns\n"
    (verdict,) = kernel.choice("tcp", Mechanism.FENTRY).verdicts[1:2]
    assert verdict.reason.endswith("Operation not permitted (no trampoline here)")


@pytest.mark.parametrize(
    ("symbols", "reason"),
    [
        ([], "has no function sock_def_readable, or it was inlined everywhere"),
        (["sock_def_readable.isra.0"], "left only sock_def_readable.isra.0"),
        (
            ["sock_def_readable", "sock_def_readable.constprop.0"],
            "some callers of sock_def_readable use sock_def_readable.constprop.0",
        ),
    ],
)
def test_a_function_that_the_compiler_took_apart_is_passed_over(
    kernel: MadeUp, symbols: list[str], reason: str
) -> None:
    kernel.symbols = [*kernel.symbols, *symbols]
    if "sock_def_readable" not in symbols:
        kernel.symbols.remove("sock_def_readable")
    choice = kernel.choice("queued", Mechanism.FENTRY)
    assert choice.chosen is None
    assert reason in choice.passed_over[1].reason
    assert kernel.chosen("queued", Mechanism.KPROBE) == "None"


def test_arguments_that_changed_are_noticed(kernel: MadeUp) -> None:
    kernel.functions["tcp_rcv_established"] = ("sk_buff", "sock")
    kernel.tracepoints["tcp_probe"] = ("sk_buff",)
    choice = kernel.choice("tcp")
    assert choice.chosen is None
    assert [verdict.reason for verdict in choice.verdicts] == [
        "the arguments of tracepoint tcp_probe are (sk_buff), not (sock, sk_buff)",
        "the arguments of function tcp_rcv_established are (sk_buff, sock), not (sock, sk_buff)",
        "the arguments of function tcp_rcv_established are (sk_buff, sock), not (sock, sk_buff)",
    ]


def test_a_function_without_btf_is_passed_over(kernel: MadeUp) -> None:
    del kernel.functions["tcp_sendmsg_locked"]
    del kernel.tracepoints["tcp_sendmsg_locked"]
    assert kernel.chosen("write") == "None"


@pytest.mark.parametrize("only", FORCEABLE)
def test_one_mechanism_can_be_forced(kernel: MadeUp, only: Mechanism) -> None:
    for hook in ("tcp", "queued", "read", "write"):
        choice = kernel.choice(hook, only)
        assert choice.chosen.mechanism is only
        assert {v.reason for v in choice.passed_over} <= {f"only {only} was asked for"}
    # These have but one way.
    for hook in ("waking", "switch", "softirq", "state"):
        assert kernel.choice(hook, only).chosen.mechanism is Mechanism.TRACEPOINT
    assert kernel.chosen("arrival", only) == "xdp native"


def test_a_forced_mechanism_that_is_not_there_leaves_the_stamp_absent(kernel: MadeUp) -> None:
    del kernel.tracepoints["tcp_sendmsg_locked"]
    assert kernel.chosen("write", Mechanism.TRACEPOINT) == "None"
    assert kernel.chosen("read", Mechanism.TRACEPOINT) == "tracepoint tcp_rcv_space_adjust"


def test_sendfile_has_a_way_of_its_own_on_some_kernels_only(kernel: MadeUp) -> None:
    assert kernel.chosen("sendfile") == "None"
    kernel.functions["do_tcp_sendpages"] = ("sock", "page", "", "", "")
    kernel.symbols.append("do_tcp_sendpages")
    assert kernel.chosen("sendfile") == "fentry do_tcp_sendpages"
    assert kernel.chosen("sendfile", Mechanism.KPROBE) == "kprobe do_tcp_sendpages"
    assert kernel.chosen("sendfile", Mechanism.TRACEPOINT) == "None"


def test_what_failed_when_it_was_tried_is_told(kernel: MadeUp) -> None:
    choice = kernel.choice("queued")
    later = choice.without(choice.chosen, "it was silent")
    assert str(later.chosen) == "fentry sock_def_readable"
    assert [(v.reason, v.tried) for v in later.passed_over] == [("it was silent", True)]
    assert str(choice.chosen) == "tracepoint sk_data_ready"


def test_a_kernel_without_a_required_hook_is_refused(kernel: MadeUp) -> None:
    require(choose(kernel))
    del kernel.tracepoints["inet_sock_set_state"]
    with pytest.raises(KernelError, match=r"nothing for the hook state \(.*no tracepoint inet"):
        require(choose(kernel))


def test_a_hook_can_be_left_alone(kernel: MadeUp) -> None:
    choices = {c.hook.name: c for c in without(choose(kernel), "arrival", "asked to")}
    assert choices["arrival"].chosen is None
    assert {v.reason for v in choices["arrival"].verdicts} == {"asked to"}
    assert choices["tcp"].chosen is not None


def test_every_candidate_has_a_program() -> None:
    sources = source_text()
    for hook in HOOKS:
        for candidate in hook.candidates:
            assert f"int {candidate.program}(" in sources
