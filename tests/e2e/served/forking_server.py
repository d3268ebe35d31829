# SPDX-License-Identifier: Apache-2.0
"""The standard library's forking server: a process for each connection, gone with it."""

from __future__ import annotations

import socket
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ForkingMixIn


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{self.path}\n".encode())

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


class Server(ForkingMixIn, HTTPServer):
    address_family = socket.AF_INET6


Server(("::", int(sys.argv[1])), Handler).serve_forever()
