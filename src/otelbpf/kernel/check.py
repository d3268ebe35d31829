# SPDX-License-Identifier: Apache-2.0
"""`otelbpf check`: what this machine offers, found out without attaching anything."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from otelbpf.errors import KernelError, OtelbpfError
from otelbpf.host import rights
from otelbpf.host.interfaces import find_interfaces
from otelbpf.host.netns import find_netns
from otelbpf.host.rights import Right
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.hooks import Choice, choose, require, takes_filters
from otelbpf.kernel.loaders import Loader
from otelbpf.kernel.needs import Need, needs, programs_need_rights
from otelbpf.kernel.xdp_slots import VETH_AND_XDP, XdpSlot, look_at_xdp


@dataclass(frozen=True)
class Finding:
    """One thing that otelbpf needs.

    Attributes:
        remedy: what to do where it is not there; empty where it is.
        optional: without it otelbpf runs, but does not do all that it could.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Report:
    """What was found out.

    Attributes:
        keeps: the rights of this process that otelbpf does not give up once it has attached.
    """

    kernel: str
    findings: tuple[Finding, ...]
    choices: tuple[Choice, ...]
    keeps: tuple[Right, ...]

    @property
    def can_run(self) -> bool:
        """Is everything there that otelbpf cannot do without?"""
        return all(finding.ok or finding.optional for finding in self.findings)

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
                "keeps": [
                    {"capability": right.capability.name, "purpose": right.purpose}
                    for right in self.keeps
                ],
            },
            indent=2,
        )

    def __str__(self) -> str:
        lines = [f"kernel {self.kernel}", ""]
        for finding in self.findings:
            state = "ok     " if finding.ok else "limited" if finding.optional else "MISSING"
            lines.append(f"  {state}  {finding.name}: {finding.detail}")
            if finding.remedy:
                lines.append(f"           -> {finding.remedy}")
        if self.choices:
            lines += ["", f"  {'stamp':<26} {'hook':<38} passed over"]
        for choice in self.choices:
            gives = ", ".join(choice.hook.gives) or f"({choice.hook.name})"
            lines.append(
                f"  {gives:<26} {_describe(choice) or _nothing(choice):<38} " + _passed_over(choice)
            )
        if self.keeps:
            lines += ["", "  once attached it gives up all rights but"]
            lines += [f"  {right.capability.name:<26} {right.purpose}" for right in self.keeps]
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


def _find(need: Need) -> Finding:
    try:
        found = need.require()
    except OtelbpfError as error:
        return Finding(need.name, False, error.what, error.remedy, need.optional)
    return Finding(
        need.name, True, str(found) if need.met is None else need.met, optional=need.optional
    )


def examine(
    interfaces: tuple[str, ...],
    netns_name: str | None,
    loader: Loader = Loader.AUTO,
    others: Iterable[Need] = (),
) -> Report:
    """Finds out what this machine offers. Attaches nothing.

    Args:
        interfaces: to look at as well; may be empty.
        loader: where the programs are to come from.
        others: what else is needed; looked at only where nothing of the machine's is missing.
    """
    findings: list[Finding] = []
    for finding in map(_find, needs(loader)):
        # What is missing once is said once, whoever else would need it.
        if finding.ok or finding.detail not in (other.detail for other in findings):
            findings.append(finding)
    choices: tuple[Choice, ...] = ()
    with contextlib.suppress(KernelError), Btf.of_kernel() as btf:
        choices = choose(btf, metrics=True)
        findings.append(
            _find(Need("hooks", "all that otelbpf cannot do without", lambda: require(choices)))
        )
    if all(finding.ok or finding.optional for finding in findings):
        findings += [_find(need) for need in others]
    if netns_name is not None:
        find_netns(netns_name)
    if interfaces:
        findings += _interface_findings(interfaces, netns_name)
    keeps = rights.had(
        rights.kept(
            programs=_programs_need_rights(),
            filters=takes_filters(choices),
            namespace=netns_name is not None,
        )
    )
    return Report(os.uname().release, tuple(findings), choices, keeps)


def _programs_need_rights() -> bool:
    try:
        return programs_need_rights()
    except KernelError:  # which is a finding
        return False


def _interface_findings(interfaces: tuple[str, ...], netns_name: str | None) -> list[Finding]:
    netns = find_netns(netns_name)
    return [
        Finding(f"XDP on {name}", True, _detail(look_at_xdp(ifindex, netns)))
        for name, ifindex in find_interfaces(interfaces, netns).items()
    ]


def _detail(slot: XdpSlot) -> str:
    if slot.program:
        return f"taken by program {slot.program}, which is left there: no nic stamp"
    if slot.is_veth:
        return f"free, but left alone, as {VETH_AND_XDP}: no nic stamp unless with `--xdp on`"
    return "free"
