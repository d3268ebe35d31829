# SPDX-License-Identifier: Apache-2.0
"""What is deployed without us: files that their own tools accept, and that say what is tested.

No container is started here but in test_image.py. The capabilities are tried for what they are: a
bounding set.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from client import Client
from collector_stack import COLLECTOR, built, go_environment
from demo.receiver import Receiver
from servers import Server
from stack import COUNT, Agent, agent, otelbpf, to, wait_for_requests
from support.namespaces import Network
from support.wheels import build_wheel

from otelbpf.agent import agent as agent_module
from otelbpf.cli.options import build_parser
from otelbpf.export import http_port, sender
from otelbpf.export import metrics as metrics_export
from otelbpf.export.sender import QueueLimits
from otelbpf.host.rights import TO_LOOK, TO_START

pytestmark = pytest.mark.heavy

ROOT = COLLECTOR.parent
DEPLOY = ROOT / "deploy"
_COMPOSE = Path(__file__).resolve().parent / "compose"
_BUILD_S = 300.0

DAEMONSET = yaml.safe_load((DEPLOY / "daemonset.yaml").read_text())
POD = DAEMONSET["spec"]["template"]["spec"]
(AGENT,), (BESIDE,) = POD["containers"], POD["initContainers"]
CAPABILITIES = AGENT["securityContext"]["capabilities"]["add"]


def output(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=_BUILD_S, env=go_environment()
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    "configurations",
    [
        ["single-machine"],
        ["agent"],
        ["agent", "agent-kafka"],
        ["agent", "agent-kubernetes"],
        ["agent", "agent-kubernetes", "agent-kafka"],
        ["fleet"],
    ],
    ids=" ".join,
)
def test_the_collector_accepts_its_configurations(
    monkeypatch: pytest.MonkeyPatch, configurations: list[str]
) -> None:
    monkeypatch.setenv("OTELBPF_NODE", "this")
    files = [f"--config={COLLECTOR / name}.yaml" for name in configurations]
    output(built("build"), "validate", *files)


@pytest.mark.parametrize("configuration", ["jaeger", "jaeger-cassandra"])
def test_jaeger_accepts_its_configurations(configuration: str) -> None:
    output(built("build-jaeger"), "validate", f"--config={COLLECTOR / configuration}.yaml")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What compose makes of its file: it knows every key, and fills in what is left out."""
    program = tmp_path_factory.mktemp("compose") / "compose"
    output("go", "build", "-o", program, ".", cwd=_COMPOSE)
    return json.loads(output(program, COLLECTOR / "compose.yaml"))["services"]


def mounts(service: dict[str, Any]) -> dict[str, Path]:
    """Where in the container -> which of our files."""
    return {
        mount["target"]: Path(mount["source"])
        for mount in service["volumes"]
        if mount["type"] == "bind"
    }


def test_compose_starts_what_is_tested(services: dict[str, Any]) -> None:
    assert services.keys() == {"collector", "jaeger", "prometheus", "grafana"}
    version = yaml.safe_load((COLLECTOR / "builder.yaml").read_text())["dist"]["version"]
    assert services["collector"]["image"].endswith(f"collector-contrib:{version}")
    single = COLLECTOR / "single-machine.yaml"
    for name, option, ours in (
        ("collector", services["collector"]["command"][-1], single),
        ("prometheus", services["prometheus"]["command"][0], COLLECTOR / "prometheus.yaml"),
    ):
        assert mounts(services[name])[option.rpartition("=")[2]] == ours
    # The variables that are set are those that the configuration asks for.
    assert set(re.findall(r"\$\{env:(\w+)", single.read_text())) == (
        services["collector"]["environment"].keys()
    )


def test_compose_publishes_on_the_loopback_interface_only(services: dict[str, Any]) -> None:
    published = {
        (service, port["target"]): port["host_ip"]
        for service, each in services.items()
        for port in each.get("ports", ())
    }
    assert published.keys() >= {("collector", 4317), ("jaeger", 16686), ("grafana", 3000)}
    assert set(published.values()) == {"127.0.0.1"}


def test_compose_mounts_what_is_there(services: dict[str, Any]) -> None:
    for service in services.values():
        if service.get("volumes"):
            for path in mounts(service).values():
                assert path.exists(), path


def test_grafana_finds_its_sources_and_its_dashboard(services: dict[str, Any]) -> None:
    provisioning = COLLECTOR / "grafana/provisioning"
    sources = yaml.safe_load((provisioning / "datasources/otelbpf.yaml").read_text())
    by_uid = {source["uid"]: source for source in sources["datasources"]}
    for source in by_uid.values():
        host = source["url"].removeprefix("http://").partition(":")[0]
        assert host in services
        for link in source.get("jsonData", {}).get("exemplarTraceIdDestinations", ()):
            assert link["datasourceUid"] in by_uid
    boards = yaml.safe_load((provisioning / "dashboards/otelbpf.yaml").read_text())
    directory = boards["providers"][0]["options"]["path"]
    mounted = mounts(services["grafana"])
    assert mounted["/etc/grafana/provisioning"] == provisioning
    (target,) = (path for path in mounted if path.startswith(directory + "/"))
    board = json.loads(mounted[target].read_text())
    # It asks for a Prometheus, whichever there is, and names no source.
    kinds = {each["query"] for each in board["templating"]["list"] if each["type"] == "datasource"}
    assert kinds <= {source["type"] for source in by_uid.values()}
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == target


def test_prometheus_finds_its_rules(services: dict[str, Any]) -> None:
    config = yaml.safe_load((COLLECTOR / "prometheus.yaml").read_text())
    mounted = mounts(services["prometheus"])
    for name in config["rule_files"]:
        assert mounted[f"/etc/prometheus/{name}"] == COLLECTOR / name


def test_prometheus_accepts_its_configuration() -> None:
    output("promtool", "check", "config", COLLECTOR / "prometheus.yaml")


@pytest.mark.parametrize("name", ["daemonset", "fleet", "roles"])
def test_kubernetes_accepts_the_manifests(name: str) -> None:
    """By its own schema, of its newest version that is known here, without a word unknown to it."""
    for manifest in yaml.safe_load_all((DEPLOY / f"{name}.yaml").read_text()):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_collector_alone_may_ask_for_pods_and_nothing_else() -> None:
    """What it asks for test_collector_kubernetes.py shows."""
    account, role, binding = yaml.safe_load_all((DEPLOY / "roles.yaml").read_text())
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (subject,) = binding["subjects"]
    assert subject["name"] == account["metadata"]["name"] == POD["serviceAccountName"]
    assert POD["automountServiceAccountToken"] is False
    (token,) = (each["name"] for each in POD["volumes"] if "projected" in each)
    assert token in {mount["name"] for mount in BESIDE["volumeMounts"]}
    assert token not in {mount["name"] for mount in AGENT["volumeMounts"]}


def test_the_collectors_have_no_rights() -> None:
    fleet = yaml.safe_load((DEPLOY / "fleet.yaml").read_text())
    for container in (BESIDE, *fleet["spec"]["template"]["spec"]["containers"]):
        security = container["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["allowPrivilegeEscalation"] is False


def test_the_daemonset_runs_what_is_tested() -> None:
    version = yaml.safe_load((COLLECTOR / "builder.yaml").read_text())["dist"]["version"]
    assert BESIDE["image"].endswith(f"collector-contrib:{version}")
    files = [COLLECTOR / Path(argument).name for argument in BESIDE["args"]]
    assert [file.stem for file in files] == ["agent", "agent-kubernetes"]
    text = "".join(file.read_text() for file in files)
    asked = set(re.findall(r"\$\{env:(\w+)|node_from_env_var: (\w+)", text))
    assert {variable["name"] for variable in BESIDE["env"]} <= {"".join(each) for each in asked}
    queue = re.search(r"OTELBPF_QUEUE:-([^}]+)", (COLLECTOR / "agent.yaml").read_text())
    assert queue and queue[1] in {mount["mountPath"] for mount in BESIDE["volumeMounts"]}
    assert AGENT["securityContext"]["capabilities"]["drop"] == ["ALL"]


def test_the_collector_is_there_before_and_after_otelbpf() -> None:
    """A container that is started first and always started again is a sidecar."""
    assert BESIDE["restartPolicy"] == "Always"


def test_the_collector_refuses_spans_before_it_is_killed() -> None:
    """The agent's limits are tried in test_image.py."""
    configuration = yaml.safe_load((COLLECTOR / "agent.yaml").read_text())
    # Go's heap is not all that a process has.
    least = 1.5 * configuration["processors"]["memory_limiter"]["limit_mib"]
    assert int(BESIDE["resources"]["limits"]["memory"].removesuffix("Mi")) >= least


def test_the_daemonset_probes_where_otelbpf_answers() -> None:
    host, port = build_parser().parse_args(AGENT["args"]).health
    probes = {name: AGENT[name]["httpGet"] for name in ("livenessProbe", "readinessProbe")}
    assert probes == {
        "livenessProbe": {"host": host, "path": "/livez", "port": port},
        "readinessProbe": {"host": host, "path": "/readyz", "port": port},
    }
    # Nobody else listens there.
    assert str(port) not in (COLLECTOR / "agent.yaml").read_text()


def test_the_daemonset_waits_until_otelbpf_has_stopped() -> None:
    """For each step as long as it may take; and for taking off its programs."""
    spans_s = QueueLimits().flush_s + sender._LAST_EXPORT_S
    metrics_s = metrics_export._LAST_EXPORT_S + metrics_export._GIVING_UP_S
    ports_s = 2 * http_port._STOP_S
    records_s = 2 * agent_module._LAST_RECORD_S
    detaching_s = 10.0
    assert POD["terminationGracePeriodSeconds"] >= (
        detaching_s + records_s + spans_s + metrics_s + ports_s
    )


def test_the_image_has_what_the_set_up_installs() -> None:
    setup = (ROOT / "scripts/setup").read_text()
    needed = re.search(r"^for package in (.+); do\n    need_package", setup, re.MULTILINE)
    assert needed
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    ready_made = dockerfile.partition("AS ready-made")[2].partition("FROM")[0]
    assert "FROM debian:13-slim AS ready-made\n" in dockerfile
    for package in needed[1].split():
        # Of these the one is for network namespaces' names, the other to install with.
        if package not in ("iproute2", "python3-venv"):
            assert package in ready_made, package


def test_a_wheel_is_made_of_what_the_image_copies(tmp_path: Path) -> None:
    """The lines with an exclamation mark, and no others; but for what another one leaves out."""
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    left_out = shutil.ignore_patterns(
        *(line.removeprefix("**/") for line in lines if line.startswith("**/"))
    )
    (tmp_path / "source").mkdir()
    for line in lines:
        if line.startswith("!"):
            source, copy = ROOT / line[1:], tmp_path / "source" / line[1:]
            if source.is_dir():
                shutil.copytree(source, copy, ignore=left_out)
            else:
                shutil.copy(source, copy)
    assert build_wheel(tmp_path / "source", tmp_path).name.startswith("otelbpf-")


def with_only(capabilities: Sequence[str]) -> list[str]:
    """Root as the container has it: with these capabilities, and no way to others."""
    kept = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities)])
    return [
        "setpriv",
        "--no-new-privs",
        f"--bounding-set={kept}",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        "--",
    ]


@contextlib.contextmanager
def started(
    net: Network, server: Server, receiver: Receiver, directory: Path, capabilities: Sequence[str]
) -> Iterator[Agent]:
    arguments = (
        "--interface",
        net.server.interface,
        "--port",
        server.port,
        "--netns",
        net.server.path,
    )
    with agent(
        directory, *arguments, environment=to(receiver), under=with_only(capabilities)
    ) as running:
        running.wait_ready()
        with Client.of(net, server.port) as client:
            for number in range(COUNT):
                client.ask(f"/{number}")
        yield running


def test_the_capabilities_are_enough(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    with started(net, server, receiver, tmp_path, CAPABILITIES) as running:
        requests = wait_for_requests(receiver, COUNT)
        running.stop().assert_clean(seen=COUNT)
    for request in requests:
        request.assert_complete()
        assert request.span.resource["process.executable.name"] == server.executable
        assert request.span.resource["service.name"] == server.service


def without(capability: str) -> list[str]:
    assert capability in CAPABILITIES
    return [name for name in CAPABILITIES if name != capability]


def test_without_sys_ptrace_nobodys_environment_and_executable_are_known(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """What it runs, its command line says all the same."""
    with started(net, server, receiver, tmp_path, without("SYS_PTRACE")) as running:
        requests = wait_for_requests(receiver, COUNT)
        running.stop().assert_clean(seen=COUNT)
    assert {each.span.resource.get("process.executable.name") for each in requests} == {None}
    assert {each.span.resource["service.name"] for each in requests} == {server.service}


def refused(capability: str, net: Network, server: Server, directory: Path) -> str:
    """What otelbpf says without it."""
    ended = otelbpf(
        directory,
        "run",
        "--interface",
        net.server.interface,
        "--port",
        server.port,
        "--netns",
        net.server.path,
        environment={"OTEL_TRACES_EXPORTER": "none"},
        under=with_only(without(capability)),
    )
    ended.assert_refused()
    return ended.stderr


@pytest.mark.parametrize("capability", ["NET_ADMIN", "SYS_ADMIN"])
def test_without_the_others_it_is_refused(
    net: Network, server: Server, tmp_path: Path, capability: str
) -> None:
    assert f"does not have CAP_{capability} (" in refused(capability, net, server, tmp_path)


def test_these_are_all() -> None:
    """Those that it takes to start have their tests above, the others in test_rights.py."""
    known = {right.capability.name.removeprefix("CAP_") for right in (*TO_START, *TO_LOOK)}
    assert set(CAPABILITIES) == known
