# SPDX-License-Identifier: Apache-2.0
"""Which container a process runs in, and of which pod that is, by its paths among the cgroups.

Only what a runtime is known to call its containers' cgroups counts: a wrong id is worse than none.
Nothing else of a path is told.

Source:
    Docker (libcontainer), containerd's CRI plugin, nerdctl, CRI-O and podman for the names of
    cgroups; Kubernetes, pkg/kubelet/cm, for those of pods; OpenTelemetry's semantic conventions,
    container and k8s resources.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# What stands before a container's id where systemd keeps the cgroups, and with some wherever that
# is. Programs that mind one from outside have others, as in `crio-conmon-ID.scope`.
_RUNTIMES = {
    "docker": "docker",
    "cri-containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "cri-o",
    "libpod": "podman",
    "libpod-payload": "podman",
}
_ID = "[0-9a-f]{64}"
_PREFIXED = re.compile(f"({'|'.join(_RUNTIMES)})-({_ID})(?:\\.scope)?")
# systemd's way to say it to a runtime, where that has taken it for a path.
_COLONS = re.compile(f"[^:]+\\.slice:({'|'.join(_RUNTIMES)}):({_ID})")
_PLAIN = re.compile(_ID)
# The same without a prefix, which only this parent tells whose it is.
_RUNTIME_OF_PARENT = {"docker": "docker"}
# What has such a name below these is a pod of podman's, or minds a sandbox of Kata's from outside.
_NO_CONTAINERS_BELOW = frozenset(("libpod_parent", "kata_overhead"))
# A task's and a number.
_ECS = re.compile("([0-9a-f]{32})-[0-9]{8,}")
_MINDER = "conmon"

_UID = "[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}"
# A static pod's is a hash of its file, 32 digits: the API server knows it by another one.
_POD_SLICE = re.compile(f"(?:.+-)?kubepods(?:-burstable|-besteffort)?-pod({_UID})\\.slice(?::.*)?")
_POD = re.compile(f"pod({_UID})")
# Out of the agent's cgroup namespace its parent may not be seen.
_POD_PARENTS = frozenset(("kubepods", "burstable", "besteffort", "guaranteed", ".."))


class Container(NamedTuple):
    """A container.

    Attributes:
        id: as its runtime names it.
        runtime: which one that is; empty: the path does not say.
    """

    id: str
    runtime: str


class Place(NamedTuple):
    """Where a process runs.

    Attributes:
        container: the innermost one; None: in none that is known.
        pod_uid: of the Kubernetes pod; empty: in none that is known.
    """

    container: Container | None = None
    pod_uid: str = ""


def place_of(paths: Iterable[str]) -> Place:
    """Where a process runs that has these paths, one in each hierarchy of cgroups.

    Not all runtimes make cgroups in all hierarchies. Where two say what cannot both be true,
    nothing is told.
    """
    parts = [path.split("/") for path in paths]
    chains = [_containers(each) for each in parts]
    longest = max(chains, key=len, default=[])
    ids = [each.id for each in longest]
    agree = all([each.id for each in chain] == ids[: len(chain)] for chain in chains)
    pods = {pod for each in parts if (pod := _pod(each))}
    return Place(
        _with_runtime(chains, ids[-1]) if ids and agree else None,
        pods.pop() if len(pods) == 1 else "",
    )


def _with_runtime(chains: list[list[Container]], innermost: str) -> Container:
    """A runtime may tell of itself in one hierarchy and not in another."""
    runtimes = {each.runtime for chain in chains for each in chain if each.id == innermost} - {""}
    return Container(innermost, runtimes.pop() if len(runtimes) == 1 else "")


def _containers(parts: list[str]) -> list[Container]:
    """The containers on the way to a cgroup, from the outermost one in."""
    if parts[-1] == _MINDER:
        return []
    found = (_container(parent, part) for parent, part in zip(["", *parts], parts, strict=False))
    return [each for each in found if each is not None]


def _container(parent: str, part: str) -> Container | None:
    if match := _PREFIXED.fullmatch(part) or _COLONS.fullmatch(part):
        return Container(match[2], _RUNTIMES[match[1]])
    if _PLAIN.fullmatch(part) and parent not in _NO_CONTAINERS_BELOW:
        return Container(part, _RUNTIME_OF_PARENT.get(parent, ""))
    if (match := _ECS.fullmatch(part)) and parent in ("ecs", match[1]):
        return Container(part, "")
    return None


def _pod(parts: list[str]) -> str:
    """The uid of the innermost pod on the way to a cgroup."""
    uid = ""
    for parent, part in zip(["", *parts], parts, strict=False):
        match = _POD_SLICE.fullmatch(part)
        if match is None and parent in _POD_PARENTS:
            match = _POD.fullmatch(part)
        if match:
            uid = match[1].replace("_", "-")
    return uid
