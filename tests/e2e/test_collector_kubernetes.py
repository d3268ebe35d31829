# SPDX-License-Identifier: Apache-2.0
"""Names of pods: otelbpf says which pod it is, and the collector asks an API server, made up here.

Its processes are in cgroups that are called as Kubernetes and containerd call them.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from client import Client
from collector_stack import LOOPBACK, OTLP_GRPC_PORT, collector
from demo.receiver import Receiver
from servers import SOURCES, server
from stack import COUNT, agent, wait_for_requests
from support.namespaces import Network
from support.waiting import wait_until
from test_run_names import cgroup

pytestmark = pytest.mark.heavy

NODE = "node-7"
UID = "d5b9c3d2-1f2e-4a3b-8c7d-6e5f4a3b2c1d"
UNKNOWN_UID = UID.replace("d", "e")
ID, OTHER_ID = "3f" * 32, "a0" * 32
NAME, FALLBACK = "service.name", "otelbpf.service.name.fallback"
#: What the API server knows: one of a deployment's pods.
POD = {
    "metadata": {
        "name": "shop-6d4cf56db6-x7k2p",
        "namespace": "web",
        "uid": UID,
        "resourceVersion": "1",
        "labels": {"pod-template-hash": "6d4cf56db6"},
        "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-6d4cf56db6", "uid": "9",
             "controller": True}
        ],
    },
    "spec": {"nodeName": NODE, "containers": [{"name": "front", "image": "shop:7"}]},
    "status": {
        "phase": "Running",
        "podIP": "10.1.2.3",
        "containerStatuses": [
            {"name": "front", "containerID": f"containerd://{ID}", "restartCount": 0}
        ],
    },
}  # fmt: skip


class Api:
    """An API server that knows one pod, and what it was asked for."""

    def __init__(self, net: Network) -> None:
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        self.over = threading.Event()
        self._server = net.server.call(
            lambda: ThreadingHTTPServer((LOOPBACK, 0), _handler_of(self))
        )
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def configuration(self, directory: Path) -> Path:
        """By which clients find it."""
        path = directory / "kubeconfig"
        host, port = self._server.server_address[:2]
        path.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "made-up",
            "clusters": [{"name": "made-up", "cluster": {"server": f"http://{host!s}:{port}"}}],
            "contexts": [{"name": "made-up", "context": {"cluster": "made-up", "user": "one"}}],
            "users": [{"name": "one", "user": {}}],
        }))  # fmt: skip
        return path

    def __enter__(self) -> Api:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler_of(api: Api) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = parse_qs(url.query)
            api.asked.append((url.path, query))
            if url.path != "/api/v1/pods":
                self.answer(403, {"kind": "Status", "apiVersion": "v1", "status": "Failure"})
            elif "sendInitialEvents" in query:
                # Of a server that does not know it, which clients ask for a list then.
                self.answer(422, {
                    "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 422,
                    "reason": "Invalid",
                })  # fmt: skip
            elif "watch" in query:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.flush()
                # Nothing changes.
                api.over.wait()
                self.close_connection = True
            else:
                self.answer(200, {
                    "kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"},
                    "items": [POD],
                })  # fmt: skip

        def answer(self, status: int, said: dict[str, Any]) -> None:
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            """Say nothing."""

    return Handler


@contextlib.contextmanager
def serving(
    net: Network, directory: Path, port: int, uid: str, identity: str, **variables: str
) -> Iterator[None]:
    """A Python server in a container of a pod, as far as its cgroup says."""
    name = uid.replace("-", "_")
    path = f"kubepods.slice/kubepods-pod{name}.slice/cri-containerd-{identity}.scope"
    command = [sys.executable, SOURCES / "threading_server.py", str(port)]
    with (
        cgroup(path) as inside,
        server(net, directory, f"of-{port}", port, [*inside, *command], "python3", variables),
    ):
        yield


def test_a_pods_names_take_the_place_of_those_that_nobody_gave(
    net: Network, tmp_path: Path
) -> None:
    """In spans and in metrics; what a process says of itself stays, and what nobody knows."""
    fallback, own, unknown = 8080, 8081, 8082
    receiver = net.server.call(Receiver)
    with contextlib.ExitStack() as stack:
        stack.enter_context(receiver)
        api = stack.enter_context(Api(net))
        asked = stack.enter_context(collector(
            net.server, tmp_path, "agent", "agent-kubernetes",
            environment={
                "KUBECONFIG": str(api.configuration(tmp_path)),
                "OTELBPF_KUBERNETES_AUTH": "kubeConfig", "OTELBPF_NODE": NODE,
                "OTELBPF_NEXT": f"{LOOPBACK}:{receiver.grpc_port}", "OTELBPF_INSECURE": "true",
                "OTELBPF_QUEUE": str(tmp_path / "queue"),
            },
        ))  # fmt: skip
        for port, uid, identity, variables in (
            (fallback, UID, ID, {}),
            (own, UID, OTHER_ID, {"OTEL_SERVICE_NAME": "own"}),
            (unknown, UNKNOWN_UID, ID, {}),
        ):
            stack.enter_context(serving(net, tmp_path, port, uid, identity, **variables))
        ports = [word for port in (fallback, own, unknown) for word in ("--port", port)]
        running = stack.enter_context(agent(
            tmp_path, "--interface", net.server.interface, *ports, under=net.server.enter(),
            environment={
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:{OTLP_GRPC_PORT}",
                "OTEL_METRICS_EXPORTER": "otlp",
            },
        ))  # fmt: skip
        running.wait_ready()
        for port in (fallback, own, unknown):
            with Client.of(net, port) as client:
                for number in range(COUNT):
                    client.ask(f"/{number}")
        requests = wait_for_requests(receiver, 3 * COUNT)
        running.stop().assert_clean(seen=3 * COUNT)

        def jobs() -> set[str]:
            series = asked.metrics().get("http_server_request_duration_seconds_count", [])
            return {
                part.removeprefix("job=").strip('"')
                for labels, _ in series
                for part in labels.split(",")
                if part.startswith("job=")
            }

        expected = {"web/shop", "own", "threading_server.py"}
        wait_until(lambda: jobs() == expected, "metrics have the names", state=lambda: str(jobs()))
    of_port = {
        port: [each.span.resource for each in requests if each["network.local.port"] == port]
        for port in (fallback, own, unknown)
    }
    assert {port: len(resources) for port, resources in of_port.items()} == dict.fromkeys(
        of_port, COUNT
    )
    keys = (
        NAME, FALLBACK, "service.namespace", "k8s.pod.name", "k8s.namespace.name",
        "k8s.deployment.name", "k8s.container.name", "k8s.pod.uid", "otelbpf.service.name",
    )  # fmt: skip
    said = {
        port: {tuple(map(resource.get, keys)) for resource in resources}
        for port, resources in of_port.items()
    }
    pod = POD["metadata"]["name"]  # type: ignore[index]
    assert said == {
        fallback: {("shop", None, "web", pod, "web", "shop", "front", UID, None)},
        own: {("own", None, None, pod, "web", "shop", None, UID, None)},
        unknown: {("threading_server.py", True, None, None, None, None, None, UNKNOWN_UID, None)},
    }
    # By the rights of deploy/roles.yaml, and of this node alone.
    assert {path for path, _ in api.asked} == {"/api/v1/pods"}
    assert {tuple(query["fieldSelector"]) for _, query in api.asked} == {(f"spec.nodeName={NODE}",)}
