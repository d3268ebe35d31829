# SPDX-License-Identifier: Apache-2.0
"""Answers as late as the path says (/answer/SECONDS), or closes then instead (/close/SECONDS)."""

from __future__ import annotations

import socket
import sys
import threading
import time

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def serve(connection: socket.socket) -> None:
    """One connection, until either side has enough."""
    with connection:
        head = b""
        while data := connection.recv(4096):
            head += data
            if not head.endswith(b"\r\n\r\n"):
                continue
            action, seconds = head.split()[1].decode().strip("/").split("/")
            time.sleep(float(seconds))
            if action == "close":
                return
            connection.sendall(ANSWER)
            head = b""


listener = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6,
                                dualstack_ipv6=True)  # fmt: skip
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
