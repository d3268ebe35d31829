# SPDX-License-Identifier: Apache-2.0
"""`otelbpf check`: what this machine offers, found out without attaching anything."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from otelbpf.btf import Btf
from otelbpf.errors import KernelError, OtelbpfError
from otelbpf.fields import field_offsets
from otelbpf.hooks import Choice, choose
from otelbpf.interfaces import VETH_AND_XDP, XdpSlot, find_interfaces, look_at_xdp
from otelbpf.loader import import_bcc
from otelbpf.netns import find_netns

#: Capabilities by their bits, linux/capability.h.
_CAPABILITIES = {"CAP_BPF": 39, "CAP_PERFMON": 38, "CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


def _effective_capabilities() -> set[str]:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            bits = int(line.split()[1], 16)
            return {name for name, bit in _CAPABILITIES.items() if bits >> bit & 1}
    return set()


def _missing_capabilities() -> list[str]:
    """CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, and is what entering a namespace takes."""
    held = _effective_capabilities()
    needed = {"CAP_NET_ADMIN", "CAP_SYS_ADMIN"}
    return sorted(needed - held)


def require_rights() -> None:
    """Raises KernelError where this process may not load and attach programs."""
    missing = _missing_capabilities()
    if missing:
        raise KernelError(
            f"otelbpf needs {' and '.join(missing)}, which this process does not have: "
            "run it as root (`sudo otelbpf run …`)"
        )


@dataclass(frozen=True)
class Finding:
    """One thing that otelbpf needs.

    Attributes:
        remedy: what to do where it is not there; empty where it is.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """What was found out."""

    kernel: str
    findings: tuple[Finding, ...]
    choices: tuple[Choice, ...] = field(default=())

    @property
    def can_run(self) -> bool:
        """Is everything there that otelbpf cannot do without?"""
        return all(finding.ok for finding in self.findings) and all(
            choice.chosen is not None or not choice.hook.required for choice in self.choices
        )

    def as_json(self) -> str:
        """One JSON object."""
        return json.dumps(
            {
                "kernel": self.kernel,
                "can_run": self.can_run,
                "findings": [asdict(finding) for finding in self.findings],
                "hooks": [
                    {
                        "name": choice.hook.name,
                        "stamps": list(choice.hook.stamps),
                        "measures": list(choice.hook.measures),
                        "chosen": _describe(choice),
                        "candidates": [
                            {
                                "mechanism": verdict.candidate.mechanism.value,
                                "target": verdict.candidate.target,
                                "available": verdict.available,
                                "reason": verdict.reason,
                            }
                            for verdict in choice.verdicts
                        ],
                    }
                    for choice in self.choices
                ],
            },
            indent=2,
        )

    def __str__(self) -> str:
        lines = [f"kernel {self.kernel}", ""]
        for finding in self.findings:
            state = "ok     " if finding.ok else "MISSING"
            lines.append(f"  {state}  {finding.name}: {finding.detail}")
            if finding.remedy:
                lines.append(f"           -> {finding.remedy}")
        if self.choices:
            lines += ["", f"  {'stamp':<26} {'hook':<38} passed over"]
        for choice in self.choices:
            gives = ", ".join(choice.hook.gives) or f"({choice.hook.name})"
            lines.append(f"  {gives:<26} {_describe(choice) or _nothing(choice):<38} "
                         + _passed_over(choice))
        lines += ["", "otelbpf can run here." if self.can_run else "otelbpf cannot run here."]
        return "\n".join(line.rstrip() for line in lines)


def _describe(choice: Choice) -> str | None:
    if choice.chosen is None:
        return None
    return str(choice.chosen)


def _nothing(choice: Choice) -> str:
    if choice.hook.not_everywhere:
        return f"none of its own for {choice.hook.name}"
    return "none: it will be absent"


def _passed_over(choice: Choice) -> str:
    return "; ".join(map(str, choice.passed_over))


def _try(name: str, detail: str, function: Callable[[], object]) -> Finding:
    """A finding from a function that raises an OtelbpfError where something is missing."""
    try:
        function()
    except OtelbpfError as error:
        what, _, remedy = str(error).partition(": ")
        return Finding(name, False, what, remedy or str(error))
    return Finding(name, True, detail)


def _memlock() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    # Kernels since 5.11 account BPF memory to the cgroup instead.
    return Finding("memlock", True, f"{limit}; BPF memory is accounted to the cgroup")


def examine(interfaces: tuple[str, ...], netns_name: str | None) -> Report:
    """Finds out what this machine offers. Attaches nothing.

    Args:
        interfaces: to look at as well; may be empty.
    """
    kernel = os.uname().release
    missing = _missing_capabilities()
    findings = [
        Finding("rights", not missing,
                "root, or all capabilities needed" if not missing else f"no {', '.join(missing)}",
                "" if not missing else "run it as root (`sudo otelbpf check`)"),
        _try("bcc", "the BPF Compiler Collection", import_bcc),
        _memlock(),
    ]
    choices: tuple[Choice, ...] = ()
    try:
        with Btf.of_kernel() as btf:
            findings.append(_try("fields", "all kernel fields were found in its BTF",
                                 lambda: field_offsets(btf)))
            choices = choose(btf, metrics=True)
        findings.append(Finding("BTF", True, "the kernel describes its types"))
    except KernelError as error:
        what, _, remedy = str(error).partition(": ")
        findings.append(Finding("BTF", False, what, remedy))
    if netns_name is not None:
        find_netns(netns_name)
    if interfaces:
        findings += _interface_findings(interfaces, netns_name)
    return Report(kernel, tuple(findings), choices)


def _interface_findings(interfaces: tuple[str, ...], netns_name: str | None) -> list[Finding]:
    netns = find_netns(netns_name)
    slots = look_at_xdp(find_interfaces(interfaces, netns), netns)
    return [Finding(f"XDP on {name}", True, _detail(slot)) for name, slot in slots.items()]


def _detail(slot: XdpSlot) -> str:
    if slot.program:
        return f"taken by program {slot.program}, which is left there: no nic stamp"
    if slot.is_veth:
        return f"free, but left alone, as {VETH_AND_XDP}: no nic stamp unless with `--xdp on`"
    return "free"
