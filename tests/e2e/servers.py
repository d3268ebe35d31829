# SPDX-License-Identifier: Apache-2.0
"""Real servers, started inside the server's namespace."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.processes import Process, running
from support.namespaces import Network
from support.waiting import DEADLINE_S

SOURCES = Path(__file__).resolve().parent / "served"
GATEWAY = Path(__file__).resolve().parents[2] / "examples/gateway/gateway.py"

_NGINX_CONFIG = """
worker_processes 1;
daemon off;
user root;
pid {directory}/nginx.pid;
error_log stderr;
events {{ worker_connections 64; }}
http {{
    log_format proxied "$uri $proxy_protocol_addr $proxy_protocol_port $remote_addr";
    access_log {log};
    client_body_temp_path {directory};
    proxy_temp_path {directory};
    fastcgi_temp_path {directory};
    uwsgi_temp_path {directory};
    scgi_temp_path {directory};
    keepalive_requests 1000000;
    client_max_body_size 8m;
    upstream behind {{ server 127.0.0.1:{upstream}; keepalive 8; }}
    server {{
        listen {port}{option};
        listen [::]:{port}{option};
        {location}
    }}
}}
"""
_STATIC = "location / {{ root {directory}/files; }}"
_PROXY = """
        location / {
            proxy_pass http://behind;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }
"""


@dataclass(frozen=True)
class Server:
    """A server that listens, on IPv4 and IPv6.

    Attributes:
        executable: the name of the program that reads the requests.
        service: what it runs, which its spans are of.
    """

    process: Process
    port: int
    executable: str
    service: str

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self.process.popen.pid


def listens(pid: int, port: int) -> bool:
    """Does anyone in the network namespace of `pid` listen on IPv6, which all do last?

    Asking the kernel leaves no connection behind that a test would count.
    """
    sockets = (line.split() for line in Path(f"/proc/{pid}/net/tcp6").read_text().splitlines()[1:])
    return any(
        local.endswith(f":{port:04X}") and state == "0A" for _, local, _, state, *_ in sockets
    )


@contextlib.contextmanager
def server(
    network: Network,
    directory: Path,
    name: str,
    port: int,
    command: Sequence[str | Path],
    executable: str,
    environment: Mapping[str, str] | None = None,
    service: str = "",
) -> Iterator[Server]:
    """Runs a command; its service is the executable if nothing else is said."""
    with running(name, [*network.server.enter(), *command], directory, environment) as process:
        process.wait_until(lambda each: listens(each.popen.pid, port), DEADLINE_S)
        yield Server(process, port, executable, service or executable)


def python_server(
    network: Network,
    directory: Path,
    name: str,
    port: int,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
) -> contextlib.AbstractContextManager[Server]:
    """Runs served/NAME.py."""
    command = [sys.executable, SOURCES / f"{name}.py", str(port), *arguments]
    executable = Path(sys.executable).resolve().name
    return server(network, directory, name, port, command, executable, environment, f"{name}.py")


def gateway(
    network: Network, directory: Path, port: int
) -> contextlib.AbstractContextManager[Server]:
    """Runs the example gateway, which is aiohttp's server."""
    command = [
        sys.executable,
        GATEWAY,
        "--port",
        str(port),
        "--host",
        "0.0.0.0",
        "--host",
        network.server.ipv6,
    ]
    return server(
        network,
        directory,
        "gateway",
        port,
        command,
        Path(sys.executable).resolve().name,
        service=GATEWAY.name,
    )


def node_server(
    network: Network, directory: Path, port: int
) -> contextlib.AbstractContextManager[Server]:
    """Runs Node's http."""
    program = SOURCES / "node_server.js"
    return server(
        network,
        directory,
        "node",
        port,
        ["node", program, str(port)],
        "node",
        service=program.name,
    )


@contextlib.contextmanager
def nginx(
    network: Network, directory: Path, port: int, upstream: int = 0, *, proxied: bool = False
) -> Iterator[Server]:
    """Runs nginx with one worker: in front of `upstream`, else for the files in directory/files.

    Args:
        proxied: it wants a header of the PROXY protocol, and logs in directory/proxied.log whom
            that tells.
    """
    (directory / "files").mkdir(exist_ok=True)
    location = _PROXY if upstream else _STATIC.format(directory=directory)
    config = directory / "nginx.conf"
    config.write_text(
        _NGINX_CONFIG.format(
            directory=directory,
            port=port,
            upstream=upstream or 1,
            location=location,
            log=f"{directory}/proxied.log proxied" if proxied else "off",
            option=" proxy_protocol" if proxied else "",
        )
    )
    command = ["nginx", "-p", directory, "-c", config, "-e", "stderr"]
    with server(network, directory, "nginx", port, command, "nginx") as running_nginx:
        yield running_nginx
