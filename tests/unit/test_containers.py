# SPDX-License-Identifier: Apache-2.0
"""Containers and pods by the cgroups that processes are in.

Source:
    paths as the runtimes make them: their own tests and documentation, and those of the agents that
    read them (OpenTelemetry's resource detectors, SPIRE, Kata's design of its cgroups), with other
    ids.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otelbpf.host.cgroups import paths_of
from otelbpf.host.containers import Container, Place, place_of

ID, OUTER = "3f" * 32, "a0" * 32
UID = "d5b9c3d2-1f2e-4a3b-8c7d-6e5f4a3b2c1d"
UID_ = UID.replace("-", "_")
STATIC = "7f3c1f0f1d2f5a8a0bd2bcc7e7c1d9a1"
PODS = "/kubepods.slice/kubepods-burstable.slice"
POD = f"{PODS}/kubepods-burstable-pod{UID_}.slice"


def told(path: str) -> tuple[str, str, str]:
    """The id, the runtime, the pod; empty where nothing is told."""
    container, pod_uid = place_of([path])
    return (*(container or ("", "")), pod_uid)


@pytest.mark.parametrize(
    ("path", "runtime"),
    [
        # Docker: by systemd, by itself, in another parent, in another container.
        (f"/system.slice/docker-{ID}.scope", "docker"),
        (f"/user.slice/user-7.slice/user@7.service/app.slice/docker-{ID}.scope", "docker"),
        (f"/docker/{ID}", "docker"),
        (f"/docker/{ID}/system.slice/shop.service", "docker"),
        (f"/docker/{ID}/docker/buildkit/m7nh2vrm4kqbfhi3rq5gz1fwk", "docker"),
        (f"/actions_job/{ID}", ""),
        (f"/docker/{OUTER}/docker/{ID}", "docker"),
        (f"/system.slice/docker-{OUTER}.scope/docker/{ID}", "docker"),
        # nerdctl: by systemd, by itself.
        (f"/system.slice/nerdctl-{ID}.scope", "containerd"),
        (f"/default/{ID}", ""),
        # Podman: by systemd, rootless, in a pod, by itself, as a unit's own.
        (f"/machine.slice/libpod-{ID}.scope", "podman"),
        (f"/machine.slice/libpod-{ID}.scope/container", "podman"),
        (f"/user.slice/user-7.slice/user@7.service/user.slice/libpod-{ID}.scope", "podman"),
        (f"/machine.slice/machine-libpod_pod_{OUTER}.slice/libpod-{ID}.scope", "podman"),
        (f"/libpod_parent/libpod-{ID}", "podman"),
        (f"/libpod_parent/{OUTER}/libpod-{ID}", "podman"),
        (f"/system.slice/nginx.service/libpod-payload-{ID}", "podman"),
        # ECS
        (f"/ecs/5a0d5ceddf6c44c1928d367a815d890f/{ID}", ""),
        # Out of the agent's own namespace of cgroups.
        (f"/../libpod-{ID}.scope", "podman"),
        (f"/../{ID}", ""),
    ],
)
def test_containers(path: str, runtime: str) -> None:
    assert told(path) == (ID, runtime, "")


@pytest.mark.parametrize("path", ["/ecs", f"/ecs/{'0b' * 16}"])
def test_a_task_of_ecs_on_fargate(path: str) -> None:
    task = f"{'0b' * 16}-1234567890"
    assert told(f"{path}/{task}") == (task, "", "")
    assert told(f"{path}/{'0c' * 16}-1234567890") == (
        ("", "", "") if "0b" in path else (f"{'0c' * 16}-1234567890", "", "")
    )


@pytest.mark.parametrize(
    ("path", "runtime"),
    [
        # By systemd, with each class of service.
        (f"{POD}/cri-containerd-{ID}.scope", "containerd"),
        (f"{POD}/docker-{ID}.scope", "docker"),
        (f"{POD}/crio-{ID}.scope", "cri-o"),
        (f"{POD}/crio-{ID}.scope/container", "cri-o"),
        (f"{POD}/{ID}", ""),
        (
            "/kubepods.slice/kubepods-besteffort.slice/"
            f"kubepods-besteffort-pod{UID_}.slice/cri-containerd-{ID}.scope",
            "containerd",
        ),
        (f"/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope", "containerd"),
        (f"/kubepods.slice/kubepods-pod{UID}.slice/docker-{ID}.scope", "docker"),
        # The same, where a runtime took systemd's words for a path.
        (
            "/system.slice/containerd.service/"
            f"kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}",
            "containerd",
        ),
        (f"/kubepods-besteffort-pod{UID_}.slice:cri-containerd:{ID}", "containerd"),
        # By the kubelet.
        (f"/kubepods/burstable/pod{UID}/{ID}", ""),
        (f"/kubepods/besteffort/pod{UID}/{ID}", ""),
        (f"/kubepods/pod{UID}/{ID}", ""),
        (f"/kubepods/burstable/pod{UID}/cri-containerd-{ID}", "containerd"),
        (f"/kubepods/burstable/pod{UID}/crio-{ID}", "cri-o"),
        # A node that is a container itself: kind, minikube, k3d.
        (f"/docker/{OUTER}/kubelet/kubepods/besteffort/pod{UID}/{ID}", ""),
        (
            f"/system.slice/docker-{OUTER}.scope/kubelet.slice/kubelet-kubepods.slice/"
            "kubelet-kubepods-besteffort.slice/"
            f"kubelet-kubepods-besteffort-pod{UID_}.slice/cri-containerd-{ID}.scope",
            "containerd",
        ),
        # A container that a pod has made.
        (f"{POD}/cri-containerd-{OUTER}.scope/docker/{ID}", "docker"),
        # Out of the agent's own namespace of cgroups.
        (f"/../../kubepods-burstable-pod{UID_}.slice/cri-containerd-{ID}.scope", "containerd"),
        (f"/../../pod{UID}/{ID}", ""),
        (f"/../../../burstable/pod{UID}/{ID}", ""),
    ],
)
def test_containers_of_pods(path: str, runtime: str) -> None:
    assert told(path) == (ID, runtime, UID)


def test_a_static_pods_hash_is_not_its_uid() -> None:
    """The API server knows that pod by another one."""
    path = f"{PODS}/kubepods-burstable-pod{STATIC}.slice/cri-containerd-{ID}.scope"
    assert told(path) == (ID, "containerd", "")
    assert told(f"/kubepods/burstable/pod{STATIC}/{ID}") == (ID, "", "")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/..",
        "/system.slice/shop.service",
        "/init.scope",
        "/system.slice/containerd.service",
        "/user.slice/user-1000.slice/session-3.scope",
        "/system.slice/run-r5f1a1e3c9d5b4b6e8e0fdc2f9a7e6c11.scope",
        "/lxc.payload.web/system.slice/shop.service",
        "/machine.slice/systemd-nspawn@web.service/payload/system.slice/shop.service",
        # What is no container, though it has such a name: who minds one from outside, or asks how
        # it is, a pod of podman's, a sandbox's virtual machine.
        f"/machine.slice/libpod-conmon-{ID}.scope",
        f"/system.slice/crio-conmon-{ID}.scope",
        f"/system.slice/{ID}.service",
        f"/system.slice/{ID}-5c6d2f.service",
        f"/system.slice/{ID}-5c6d2f.timer",
        f"/user.slice/{ID}.slice",
        f"/libpod_parent/{ID}",
        f"/libpod_parent/{ID}/conmon",
        f"/lxc/{ID}/conmon",
        "/libpod_parent/conmon",
        f"/machine.slice/machine-libpod_pod_{ID}.slice",
        f"/kata_overhead/{ID}",
        "/system.slice/nginx.service/runtime",
        f"/system.slice/docker-{ID}.scope.mount",
        # Too long, too short, no such digits, somebody's own words.
        f"/docker/{ID}0",
        f"/docker/{ID[1:]}",
        f"/docker/{ID.upper()}",
        f"/docker/{'g' * 64}",
        f"/x/shop-{ID}.scope",
        f"/x/my-docker-{ID}.scope",
        f"/x/docker-{ID}.scope.slice",
        f"/x/docker:{ID}",
        f"/{'0b' * 16}-1234567890",
    ],
)
def test_what_is_no_container(path: str) -> None:
    assert told(path) == ("", "", "")


@pytest.mark.parametrize(
    ("path", "uid"),
    [
        (f"{POD}", UID),
        (f"{POD}/crio-conmon-{ID}.scope", UID),
        (f"/kubepods/burstable/pod{UID}", UID),
        # Whatever else is called so.
        (f"/pod{UID}", ""),
        (f"/mine/pod{UID}", ""),
        (f"/mykubepods-pod{UID_}.slice", ""),
        (f"/kubepods-pod{UID_}.service", ""),
        (f"/kubepods/burstable/pod{UID}0", ""),
        (f"/kubepods/burstable/pod{UID.upper()}", ""),
        ("/kubepods/burstable/pod-shop", ""),
    ],
)
def test_pods_without_a_container(path: str, uid: str) -> None:
    assert told(path) == ("", "", uid)


def test_of_pods_within_each_other_the_innermost_counts() -> None:
    outer = UID.replace("d", "e")
    path = f"/kubepods/pod{outer}/{OUTER}/kubepods/pod{UID}/{ID}"
    assert told(path) == (ID, "", UID)


V1 = (
    "12:pids:{0}\n11:hugetlb:{0}\n10:net_prio:{0}\n9:perf_event:{0}\n8:net_cls:{0}\n7:freezer:{0}\n"
    "6:devices:{0}\n5:memory:{0}\n4:blkio:{0}\n3:cpuacct:{0}\n2:cpu:{0}\n1:cpuset:{0}\n"
)
DOCKER = Place(Container(ID, "docker"))


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        (f"0::/system.slice/docker-{ID}.scope\n", DOCKER),
        (f"0::/system.slice/docker-{ID}.scope (deleted)\n", DOCKER),
        (V1.format(f"/docker/{ID}"), DOCKER),
        (V1.format(f"/docker/{ID}") + "0::/system.slice/containerd.service\n", DOCKER),
        (V1.format(f"/docker/{ID}") + "0::/\n", DOCKER),
        ("4:memory:/\n" + f"1:name=systemd:/docker/{ID}\n0::/\n", DOCKER),
        # Where only one hierarchy names the runtime.
        (f"4:memory:/own/{ID}\n1:name=systemd:/system.slice/docker-{ID}.scope\n", DOCKER),
        # A container in a container that has no cgroup of its own in all of them.
        (f"4:memory:/docker/{OUTER}/docker/{ID}\n0::/docker/{OUTER}\n", DOCKER),
        # What cannot both be.
        (f"4:memory:/docker/{OUTER}\n0::/docker/{ID}\n", Place()),
        (f"4:memory:/docker/{OUTER}/docker/{ID}\n0::/docker/{ID}\n", Place()),
        (
            f"4:memory:/kubepods/pod{UID}/{ID}\n0::/kubepods/pod{UID.replace('d', 'e')}/{ID}\n",
            Place(Container(ID, "")),
        ),
        ("", Place()),
    ],
)
def test_all_hierarchies(lines: str, place: Place) -> None:
    assert place_of(paths_of(lines).all) == place


@given(st.lists(st.text(st.characters(exclude_characters="\n/"), max_size=80), max_size=6))
def test_nothing_of_a_path_is_told_but_ids(parts: list[str]) -> None:
    """Whatever it is: an id is 64 digits of a part, or a task's."""
    container, pod_uid = place_of(["/" + "/".join(parts)])
    assert container is None or any(container.id in part for part in parts)
    assert pod_uid == "" or any(
        pod_uid.replace("-", "_") in part or pod_uid in part for part in parts
    )
