# SPDX-License-Identifier: Apache-2.0
"""`otelbpf check`: what this machine offers, found out without attaching anything."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from otelbpf.errors import KernelError, OtelbpfError
from otelbpf.host import rights
from otelbpf.host.interfaces import find_interfaces
from otelbpf.host.netns import find_netns
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.findings import Finding, Report
from otelbpf.kernel.hooks import Choice, choose, require, takes_filters
from otelbpf.kernel.loaders import Loader
from otelbpf.kernel.needs import Need, needs, programs_need_rights
from otelbpf.kernel.xdp_slots import VETH_AND_XDP, XdpSlot, look_at_xdp


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
    machine: Iterable[Need] = (),
    others: Iterable[Need] = (),
) -> Report:
    """Finds out what this machine offers. Attaches nothing.

    Args:
        interfaces: to look at as well; may be empty.
        machine: what is needed of it; empty: what needs() says by default.
        others: what else is needed; looked at only where nothing of the machine's is missing.
    """
    findings: list[Finding] = []
    for finding in map(_find, machine or needs(Loader.AUTO)):
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
