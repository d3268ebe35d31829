# SPDX-License-Identifier: Apache-2.0
"""What `run` needs `check` tests, on machines made poor for it: both say the same, with the remedy.

Each machine is this one, as a command sees it that is started with fewer rights, lower limits, or
other file systems.
"""

from __future__ import annotations

import json
import re
import resource
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from demo.receiver import Receiver
from stack import Ended, otelbpf, to
from support.namespaces import Network

from otelbpf.host import ulimits
from otelbpf.host.ulimits import Limit

NOTHING = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
#: All that otelbpf has a use for.
RIGHTS = ("sys_admin", "net_admin", "sys_ptrace", "dac_read_search", "checkpoint_restore")
_ALL = ",".join(f"+{name}" for name in RIGHTS)


def without(*rights: str) -> tuple[str, ...]:
    """With all rights that otelbpf has a use for, but these."""
    kept = ",".join(["-all", *(f"+{name}" for name in RIGHTS if name not in rights)])
    return ("setpriv", f"--bounding-set={kept}", "--inh-caps=-all", "--ambient-caps=-all", "--")


def mounted(script: str) -> tuple[str, ...]:
    """In a mount namespace of its own, which a shell changes first."""
    return (
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-ec",
        f'{script}; exec "$@"',
        "sh",
    )


def limited(option: str) -> tuple[str, ...]:
    return ("prlimit", option, "--")


#: /sys/kernel made anew, with the kernel's BTF and whatever else.
SYS_KERNEL = (
    "cp /sys/kernel/btf/vmlinux {btf}; mount -t tmpfs none /sys/kernel; mkdir /sys/kernel/btf; "
    "cp {btf} /sys/kernel/btf/vmlinux"
)

# How it is poor -> what starts a command there, what is missing, a word of the remedy.
POOR: dict[str, tuple[tuple[str, ...], str, str]] = {
    "no right to load": (without("sys_admin"), "CAP_SYS_ADMIN (", "as root"),
    "no right to see packets": (without("net_admin"), "CAP_NET_ADMIN (", "as root"),
    "neither": (without("sys_admin", "net_admin"), "CAP_NET_ADMIN (", "as root"),
    "64 files": (limited("--nofile=64:64"), "open files is 64", "ulimit -n 256"),
    "little address space": (limited(f"--as={400 << 20}:{400 << 20}"), "409600", "ulimit -v"),
    "little data": (limited(f"--data={100 << 20}:{100 << 20}"), "102400", "ulimit -d"),
    "little stack": (limited(f"--stack={512 << 10}:{512 << 10}"), "is 512", "ulimit -s 1024"),
    "no BTF": (mounted("mount -t tmpfs none /sys/kernel/btf"), "no BTF", "CONFIG_DEBUG_INFO_BTF"),
    "a BTF of nothing": (
        mounted("mount --bind {empty} /sys/kernel/btf/vmlinux"),
        "cannot read /sys/kernel/btf/",
        "libbpf1",
    ),
    # A file that nobody can load: the package is gone in a chroot, tests/e2e/test_debian13.py.
    "no libbpf": (
        mounted("mount --bind {empty} $(ldconfig -p | sed -n 's/.*libbpf.so.1 .*=> //p')"),
        "cannot load libbpf.so.1 (",
        "apt install libbpf1",
    ),
    "another library in libbpf's place": (
        mounted(
            "mkdir -p {gone}; libm=$(ldconfig -p | sed -n 's/.*libm.so.6 .*=> //p'); "
            "cp $libm {gone}/libbpf.so.1; export LD_LIBRARY_PATH={gone}"
        ),
        "/gone/libbpf.so.1, which is no libbpf that otelbpf can use",
        "LD_LIBRARY_PATH",
    ),
    "no /sys": (mounted("mount -t tmpfs none /sys/devices"), "how many processors", "sysfs"),
    "no /proc": (mounted("umount --lazy /proc"), "/proc/self/status is missing", "-t proc"),
    "half a /proc": (
        mounted("mount -t proc -o subset=pid none /proc"),
        "/proc/kallsyms is missing",
        "-t proc",
    ),
    "PREEMPT_RT": (
        mounted(f"{SYS_KERNEL}; echo 1 >/sys/kernel/realtime"),
        "PREEMPT_RT",
        "without PREEMPT_RT",
    ),
}

# These only look poor.
RICH_ENOUGH: dict[str, tuple[str, ...]] = {
    "all that it takes, and no more": without(),
    "another user who has it": (
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        f"--inh-caps={_ALL}",
        f"--ambient-caps={_ALL}",
        "--",
    ),
    "low limits that it may raise": limited("--nofile=16:1024"),
    "no locked memory": limited("--memlock=0:0"),
    "no directory": mounted("mkdir {gone}; cd {gone}; rmdir {gone}"),
    "a kernel that is not realtime": mounted(f"{SYS_KERNEL}; echo 0 >/sys/kernel/realtime"),
    "nowhere to write": mounted(
        "mount -t tmpfs -o ro none /tmp; mount -t tmpfs -o ro none /var/tmp; "
        "mount -o remount,ro,bind /; cd /"
    ),
    "a full /tmp": mounted(
        "mount -t tmpfs -o size=4k none /tmp; head -c 9999 /dev/zero >/tmp/full 2>/dev/null || true"
    ),
    "processes hidden from others": mounted("mount -t proc -o hidepid=invisible none /proc"),
    "no cgroups, no tracefs": mounted(
        "umount --recursive /sys/fs/cgroup; mount -t tmpfs none /sys/fs; "
        "mount -t tmpfs none /sys/kernel/tracing; mount -t tmpfs none /sys/kernel/debug"
    ),
}


def filled(under: tuple[str, ...], directory: Path) -> list[str]:
    """With the paths that a script needs."""
    (directory / "empty").touch()
    paths = {name: shlex.quote(str(directory / name)) for name in ("empty", "gone", "btf")}
    return [word.format(**paths) if word.endswith('exec "$@"') else word for word in under]


def check(
    directory: Path, net: Network, under: list[str], *more: str
) -> tuple[Ended, dict[str, Any]]:
    ended = otelbpf(directory, "check", "--json", *more, under=[*net.server.enter(), *under])
    assert ended.stderr == ""
    return ended, json.loads(ended.stdout)


def run(directory: Path, net: Network, under: list[str], *more: str) -> Ended:
    return otelbpf(
        directory,
        "run",
        "--interface",
        net.server.interface,
        "--port",
        80,
        "--duration",
        "0.1",
        *more,
        environment=NOTHING,
        under=[*net.server.enter(), *under],
    )


@pytest.mark.parametrize("poor", POOR)
def test_what_is_missing(net: Network, tmp_path: Path, poor: str) -> None:
    """The first thing that `check` finds missing is what `run` says, to the letter."""
    under, what, remedy = POOR[poor]
    checked, report = check(tmp_path, net, filled(under, tmp_path))
    missing = [each for each in report["findings"] if not (each["ok"] or each["optional"])]
    assert (checked.code, report["can_run"]) == (1, False)
    assert what in missing[0]["detail"]
    assert remedy in missing[0]["remedy"]
    ended = run(tmp_path, net, filled(under, tmp_path))
    ended.assert_refused()
    assert ended.stderr == f"otelbpf: {missing[0]['detail']}: {missing[0]['remedy']}\n"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere"), ("OTEL_TRACES_SAMPLER", "sometimes"),
     ("OTEL_BSP_MAX_QUEUE_SIZE", "many"), ("OTEL_METRICS_EXPORTER", "nobody")],
)  # fmt: skip
def test_a_variable_that_is_refused(
    net: Network, tmp_path: Path, variable: str, value: str
) -> None:
    checked = otelbpf(
        tmp_path, "check", "--json", environment={variable: value}, under=net.server.enter()
    )
    assert (checked.code, checked.stderr) == (1, "")
    (found,) = [each for each in json.loads(checked.stdout)["findings"] if not each["ok"]]
    ended = otelbpf(
        tmp_path,
        "run",
        "--interface",
        net.server.interface,
        "--port",
        80,
        "--duration",
        "0.1",
        environment={variable: value},
        under=net.server.enter(),
    )
    ended.assert_refused(variable)
    said = found["detail"] + (f": {found['remedy']}" if found["remedy"] else "")
    assert ended.stderr == f"otelbpf: {said}\n"


@pytest.mark.parametrize("rich", RICH_ENOUGH)
def test_what_is_not_missing(net: Network, tmp_path: Path, rich: str) -> None:
    under = filled(RICH_ENOUGH[rich], tmp_path)
    checked, report = check(tmp_path, net, under)
    assert (checked.code, report["can_run"]) == (0, True), report["findings"]
    ended = run(tmp_path, net, under)
    assert ended.code == 0, ended.stderr
    assert "otelbpf: limited: " not in ended.stderr
    assert ended.stderr.endswith("otelbpf: seen 0 = exported 0 + sampled out 0 + lost 0\n")


def at_least(*limits: Limit) -> list[str]:
    """With no more of each than what must at least be there."""
    names = {
        resource.RLIMIT_NOFILE: "nofile",
        resource.RLIMIT_AS: "as",
        resource.RLIMIT_DATA: "data",
        resource.RLIMIT_STACK: "stack",
    }
    told = (f"--{names[limit.number]}={limit.least}:{limit.least}" for limit in limits)
    return ["prlimit", *told, "--"]


def test_what_is_asked_for_is_enough(net: Network, receiver: Receiver, tmp_path: Path) -> None:
    """With spans and metrics sent over gRPC, which is what takes most."""
    ended = otelbpf(
        tmp_path, "run", "--netns", net.server.netns, "--interface", net.server.interface,
        "--port", 80, "--duration", "0.1",
        environment={**to(receiver), "OTEL_METRICS_EXPORTER": "otlp"},
        under=at_least(*ulimits.limits()),
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    assert ended.stderr.endswith("otelbpf: seen 0 = exported 0 + sampled out 0 + lost 0\n")


@pytest.mark.parametrize("what", ["address space", "data"])
def test_what_only_the_compiler_takes(net: Network, tmp_path: Path, what: str) -> None:
    """Both ask for it where it is to compile, and nowhere else."""
    (limit,) = (each for each in ulimits.limits() if each.what.startswith(what))
    under = at_least(limit)
    checked, report = check(tmp_path, net, under, "--loader", "bcc")
    (missing,) = (each for each in report["findings"] if not each["ok"])
    assert checked.code == 1
    assert f"{what} in KiB is {limit.least >> 10}, and BCC, " in missing["detail"]
    ended = run(tmp_path, net, under, "--loader", "bcc")
    ended.assert_refused()
    assert ended.stderr == f"otelbpf: {missing['detail']}: {missing['remedy']}\n"
    checked, report = check(tmp_path, net, under)
    assert (checked.code, report["can_run"]) == (0, True), report["findings"]
    assert run(tmp_path, net, under).code == 0


#: Tables that take more addresses.
LARGE = ("--series", "4096")


def test_what_larger_tables_take(net: Network, receiver: Receiver, tmp_path: Path) -> None:
    """Both ask for the addresses, and for no more than is enough with all that is sent."""
    (limit,) = (each for each in ulimits.limits() if each.what.startswith("address space"))
    under = at_least(limit)
    checked, report = check(tmp_path, net, under, *LARGE)
    (missing,) = (each for each in report["findings"] if not each["ok"])
    assert checked.code == 1
    assert f"is {limit.least >> 10}, and otelbpf, with tables of these " in missing["detail"]
    ended = run(tmp_path, net, under, *LARGE)
    ended.assert_refused()
    assert ended.stderr == f"otelbpf: {missing['detail']}: {missing['remedy']}\n"
    (enough,) = re.findall(r"`ulimit -v (\d+)`", missing["remedy"])
    under = at_least(replace(limit, least=int(enough) << 10))
    checked, report = check(tmp_path, net, under, *LARGE)
    assert (checked.code, report["can_run"]) == (0, True), report["findings"]
    ended = otelbpf(
        tmp_path, "run", "--netns", net.server.netns, "--interface", net.server.interface,
        "--port", 80, "--duration", "0.1", *LARGE,
        environment={**to(receiver), "OTEL_METRICS_EXPORTER": "otlp"}, under=under,
    )  # fmt: skip
    assert ended.code == 0, ended.stderr


RIGHTS_TO_LOOK = ("sys_ptrace", "dac_read_search", "checkpoint_restore")
# What starts a command with less than it could use, and what that is.
LESS: dict[str, tuple[tuple[str, ...], str]] = {
    **{
        right: (without(right), f"this process does not have CAP_{right.upper()} (")
        for right in RIGHTS_TO_LOOK
    },
    "PID namespace": (
        ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
        "this PID namespace has other numbers for processes ",
    ),
}


@pytest.mark.parametrize("less", LESS)
def test_what_it_can_do_without(net: Network, tmp_path: Path, less: str) -> None:
    """Both say what it will not see, and it runs."""
    under, what = LESS[less]
    checked, report = check(tmp_path, net, list(under))
    assert (checked.code, report["can_run"]) == (0, True)
    (finding,) = [each for each in report["findings"] if not each["ok"]]
    assert finding["detail"].startswith(what)
    ended = run(tmp_path, net, list(under))
    assert ended.code == 0
    assert ended.stderr.startswith(f"otelbpf: limited: {finding['detail']}: {finding['remedy']}\n")
    kept = [f"{right['capability']} ({right['purpose']})" for right in report["keeps"]]
    assert f"otelbpf: keeps {', '.join(kept)}\n" in ended.stderr
