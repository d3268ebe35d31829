# SPDX-License-Identifier: Apache-2.0
"""A server whose worker multiprocessing starts, as `uvicorn --workers` does it."""

from __future__ import annotations

import multiprocessing
import signal
import socket
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


class Server(HTTPServer):
    address_family = socket.AF_INET6  # and IPv4, mapped


def serve(port: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Server(("::", port), Handler).serve_forever()


if __name__ == "__main__":
    method, port = sys.argv[2], int(sys.argv[1])
    worker = multiprocessing.get_context(method).Process(target=serve, args=(port,), daemon=True)
    worker.start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which ends the worker, too
    worker.join()
