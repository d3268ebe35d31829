# SPDX-License-Identifier: Apache-2.0
"""A gateway with a thread for each connection: asks an upstream for the path that it is asked for.

    threading_gateway.py PORT UPSTREAM-PORT

Each thread has one connection to the upstream, which it keeps. A request with the header X-Trace
is taken for one that an SDK traces: it goes on with that as its traceparent.
"""

from __future__ import annotations

import http.client
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_local = threading.local()


def ask(path: str, headers: dict[str, str]) -> bytes:
    if not hasattr(_local, "upstream"):
        _local.upstream = http.client.HTTPConnection("127.0.0.1", int(sys.argv[2]))
    _local.upstream.request("GET", path, headers=headers)
    return _local.upstream.getresponse().read()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        trace = self.headers.get("X-Trace")
        # Others read, ask and answer in the meantime.
        time.sleep(0.001)
        body = ask(self.path, {"traceparent": trace} if trace else {})
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6  # and IPv4, mapped
    daemon_threads = True


Server(("::", int(sys.argv[1])), Handler).serve_forever()
