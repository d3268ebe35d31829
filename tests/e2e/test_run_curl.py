# SPDX-License-Identifier: Apache-2.0
"""curl, a client that is not ours: spans say what it says of each of its transfers."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from demo.receiver import Receiver
from servers import nginx, node_server, python_server
from stack import COUNT, agent, to, wait_for_requests
from support.namespaces import Network
from support.waiting import DEADLINE_S

#: What each server says when it is asked whether to send the body. h11 gives no reason.
INTERIM = {
    "nginx": b"HTTP/1.1 100 Continue\r\n\r\n",
    "node": b"HTTP/1.1 100 Continue\r\n\r\n",
    "threading": b"HTTP/1.1 100 Continue\r\n\r\n",
    "asyncio": b"HTTP/1.1 100 \r\n\r\n",
}
PORT = 8080
BEHIND = 9090


def curl(net: Network, *arguments: str | Path) -> list[dict[str, Any]]:
    """What curl says of each transfer, in order."""
    done = subprocess.run(
        [
            *net.client.enter(),
            "curl",
            "--silent",
            "--show-error",
            "--output",
            "/dev/null",
            "--write-out",
            "%{stderr}%{json}\n",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stderr.splitlines()]


@pytest.mark.parametrize("kind", INTERIM)
def test_what_curl_says(net: Network, receiver: Receiver, tmp_path: Path, kind: str) -> None:
    """Kept alive and closed each time, over HTTP/1.1 and 1.0, and with `Expect: 100-continue`."""
    upload = tmp_path / "upload"
    upload.write_bytes(b"u" * 2_000_000)
    with contextlib.ExitStack() as stack:
        if kind == "nginx":
            stack.enter_context(python_server(net, tmp_path, "threading_server", BEHIND))
            stack.enter_context(nginx(net, tmp_path, PORT, upstream=BEHIND))
        elif kind == "node":
            stack.enter_context(node_server(net, tmp_path, PORT))
        else:
            stack.enter_context(python_server(net, tmp_path, f"{kind}_server", PORT))
        running = stack.enter_context(
            agent(
                tmp_path,
                "--interface",
                net.server.interface,
                "--port",
                PORT,
                "--netns",
                net.server.netns,
                environment=to(receiver),
            )
        )
        running.wait_ready()
        base = f"http://{net.server.ipv4}:{PORT}"
        said = curl(net, f"{base}/kept/[1-10]")
        for number in range(5):
            said += curl(net, "--header", "Connection: close", f"{base}/closed/{number}")
            said += curl(net, "--http1.0", f"{base}/chunked/old/{number}")
        for number in range(COUNT - len(said)):
            said += curl(
                net,
                "--header",
                "Expect: 100-continue",
                "--data-binary",
                f"@{upload}",
                f"{base}/upload/{number}",
            )
        requests = wait_for_requests(receiver, COUNT)
        running.stop().assert_clean(seen=COUNT)

    assert len({each["local_port"] for each in said}) == COUNT - 9
    by_path = {request["url.path"]: request for request in requests}
    for each in said:
        request = by_path.pop("/" + each["url_effective"].split("/", 3)[3])
        tells = f"{kind}: {each} {request.span}"
        assert request["client.port"] == each["local_port"], tells
        assert request["http.response.status_code"] == each["response_code"] == 200, tells
        # The request's: a server of HTTP/1.1 may answer HTTP/1.0 as such.
        version = "1.0" if "/old/" in each["url_effective"] else "1.1"
        assert request["network.protocol.version"] == version, tells
        sent = each["size_request"]
        if sent < each["size_upload"]:  # Debian 12's curl counts the head alone, Debian 13's all
            sent += each["size_upload"]
        assert request["http.request.size"] == sent, tells
        assert request["http.request.body.size"] == each["size_upload"], tells
        received = each["size_header"] + each["size_download"]
        if each["size_upload"]:
            # The interim response is none of the response's own, neither its bytes nor its time.
            received -= len(INTERIM[kind])
            assert request.stamp_unix_ns("nic_last") < request.stamp_unix_ns("write"), tells
            assert request.stamp_unix_ns("read_last") < request.stamp_unix_ns("write"), tells
        assert request["http.response.size"] == received, tells
        assert request["http.response.body.size"] == each["size_download"], tells
        assert f"lib{request['user_agent.original']}" == each["curl_version"].split()[0], tells
        assert request["error.type"] is None, tells
        request.assert_tiled()
        request.assert_complete()
        # curl's own time of the whole transfer holds ours, but for the last acknowledgement.
        ours_s = (request.stamp_unix_ns("tc_out") - request.stamp_unix_ns("nic")) / 1e9
        assert ours_s < each["time_total"], tells
    assert not by_path
