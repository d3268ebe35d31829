# SPDX-License-Identifier: Apache-2.0
"""`otelbpf check` shows what this machine offers, and touches nothing."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from demo.receiver import Receiver
from servers import Server
from stack import Ended, agent, otelbpf, to
from support.namespaces import Network
from test_run_refusals import AS_NOBODY

STAMPS = {
    "nic",
    "nic_last",
    "tc",
    "tc_last",
    "tcp",
    "queued",
    "woken",
    "running",
    "read",
    "read_last",
    "handler_start",
    "handler_end",
    "write",
    "write_last",
    "tc_out",
    "tc_out_last",
    "ended",
    "acked",
}


def options(net: Network) -> tuple[str, ...]:
    return ("--interface", net.server.interface, "--netns", net.server.netns)


def finding(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in report["findings"] if each["name"] == name)


def test_json_names_a_candidate_for_each_hook(net: Network, tmp_path: Path) -> None:
    ended = otelbpf(tmp_path, "check", "--json", *options(net))
    assert (ended.code, ended.stderr) == (0, "")
    report = json.loads(ended.stdout)
    assert report["can_run"] is True
    assert all(each["ok"] for each in report["findings"]), report
    xdp = finding(report, f"XDP on {net.server.interface}")["detail"]
    assert xdp.startswith("free, but left alone, ")
    assert "`--xdp on`" in xdp
    assert {stamp for hook in report["hooks"] for stamp in hook["stamps"]} == STAMPS
    for hook in report["hooks"]:
        available = [
            f"{each['mechanism']} {each['target']}"
            for each in hook["candidates"]
            if each["available"]
        ]
        # Only on some kernels sendfile() has a way of its own, and accept() any.
        assert available or hook["name"] in ("sendfile", "accept")
        assert hook["chosen"] == (available[0] if available else None)
        assert all(each["reason"] for each in hook["candidates"])


def test_memory_is_what_a_run_takes(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """What the kernel adds to its tables is little; what is resident is an estimate."""
    report = json.loads(otelbpf(tmp_path, "check", "--json").stdout)
    detail = finding(report, "memory")["detail"]
    tables_mib, resident_mib = map(int, re.findall(r"(\d+) MiB", detail))
    # Metrics go where traces do, as by default.
    environment = {**to(receiver), "OTEL_METRICS_EXPORTER": "otlp"}
    with agent(tmp_path, *options(net), "--port", server.port, environment=environment) as running:
        running.wait_ready()
        status = Path(f"/proc/{running.pid}/status").read_text()
        kernels = map_bytes(running.pid) / (1 << 20)
        running.stop().assert_clean(seen=0)
    resident = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert resident is not None
    assert tables_mib - 1 < kernels < 1.02 * tables_mib
    assert 0.6 * resident_mib < int(resident[1]) / 1024 < 1.25 * resident_mib


def map_bytes(pid: int) -> int:
    """What the kernel counts for the maps that a process holds."""
    found = {}
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            lines = path.read_text().splitlines()
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
            if "map_id" in fields:
                found[fields["map_id"]] = int(fields["memlock"])
    return sum(found.values())


def test_as_text(net: Network, tmp_path: Path) -> None:
    ended = otelbpf(tmp_path, "check", *options(net))
    assert (ended.code, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert lines[-1] == "otelbpf can run here."
    header = next(number for number, line in enumerate(lines) if "passed over" in line)
    hook, passed_over = lines[header].index("hook"), lines[header].index("passed over")
    table = lines[header + 1 : lines.index("", header)]
    assert {stamp for line in table for stamp in line[:hook].strip().split(", ")} >= STAMPS
    for line in table:
        for column in (hook, passed_over):
            assert line[column - 1 : column] in ("", " "), line
        assert line[hook] != " ", line


def test_it_attaches_nothing_and_sees_a_taken_xdp_slot(
    net: Network, server: Server, tmp_path: Path
) -> None:
    """The slot is taken by an agent, which goes on undisturbed, and attached what was chosen."""

    def state() -> tuple[int | None, list[str]]:
        return net.server.xdp_program(), net.server.qdiscs()

    before = state()
    assert before[0] is None
    free = otelbpf(tmp_path, "check", "--json", *options(net))
    assert state() == before
    with agent(
        tmp_path,
        *options(net),
        "--port",
        server.port,
        # With spans and metrics: there are hooks that nothing else needs.
        environment={"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "console"},
    ) as running:
        running.wait_ready()
        during = state()
        taken = otelbpf(tmp_path, "check", *options(net))
        assert state() == during
        assert running.is_running()
        ended = running.stop()
    ended.assert_clean(seen=0)
    assert free.code == 0
    assert_attached(ended, json.loads(free.stdout)["hooks"], f"on {net.server.interface}")
    assert taken.code == 0
    slot = f"XDP on {net.server.interface}"
    (line,) = [line for line in taken.stdout.splitlines() if slot in line]
    assert f"taken by program {during[0]}, which is left there" in line


def assert_attached(ended: Ended, hooks: list[dict[str, Any]], where: str) -> None:
    """What was chosen; but only the attempt can tell whether a driver has XDP."""
    (line,) = [line for line in ended.stderr.splitlines() if "attached: " in line]
    attached = set(line.removeprefix("otelbpf: attached: ").split(", "))
    expected = set()
    for hook in hooks:
        if hook["chosen"] is None:
            continue
        mechanism, _, target = hook["chosen"].rpartition(" ")
        if mechanism == "tc":
            expected.add(f"{target} {hook['name']} {where}")
        elif mechanism != "xdp":
            expected.add(hook["chosen"])
    (xdp,) = attached - expected
    assert xdp in (f"XDP native {where}", f"XDP generic {where}")
    assert expected < attached


def test_without_rights_it_says_so_and_finds_the_same_hooks(tmp_path: Path) -> None:
    """Who has no right to attach anything still learns what could be attached.

    But for function entries: whether the kernel takes them is found out by loading one.
    """
    for_root, for_nobody = (
        json.loads(otelbpf(tmp_path, "check", "--json", under=under).stdout)["hooks"]
        for under in ((), AS_NOBODY)
    )
    assert for_root != []
    for root, nobody in zip(for_root, for_nobody, strict=True):
        for candidate, seen in zip(root["candidates"], nobody["candidates"], strict=True):
            if candidate["mechanism"] != "fentry":
                assert seen == candidate
            elif seen != candidate:
                assert not seen["available"]
                assert seen["reason"].startswith("only who has the rights to load programs ")
    ended = otelbpf(tmp_path, "check", under=AS_NOBODY)
    assert ended.code == 1
    assert "MISSING  rights" in ended.stdout
    assert "-> run otelbpf as root" in ended.stdout
    assert ended.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [("--interface", "none0"), ("--interface", "lo", "--netns", "none-such"), ("--port", "80")],
    ids=" ".join,
)
def test_arguments_that_cannot_be_used(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    otelbpf(tmp_path, "check", *arguments).assert_refused(arguments[-1])
