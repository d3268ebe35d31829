# SPDX-License-Identifier: Apache-2.0
"""A server of threads with something for each panel of the dashboard.

`/fail` is answered with 500, `/slow/MS` after that long, `/ask` once an upstream has answered (the
second argument is its port on 127.0.0.1), `/held` once `/meet` was asked for twice, the first
`/meet` once `/held` is in its handler, all else at once.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

meeting = threading.Barrier(2)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/slow/"):
            time.sleep(int(self.path.removeprefix("/slow/")) / 1000)
        for _ in range({"/held": 2, "/meet": 1}.get(self.path, 0)):
            meeting.wait()
        if self.path == "/ask":
            upstream = HTTPConnection("127.0.0.1", int(sys.argv[2]))
            # Which it writes after the head, by itself.
            upstream.request("GET", "/asked/7", b"a body")
            upstream.getresponse().read()
            upstream.close()
        body = f"{self.path}\n".encode()
        self.send_response(500 if self.path == "/fail" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True


Server(("::", int(sys.argv[1])), Handler).serve_forever()
