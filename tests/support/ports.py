# SPDX-License-Identifier: Apache-2.0
"""Ports for servers that are told where to listen."""

from __future__ import annotations

import socket


def unused_port() -> int:
    """A port of the loopback at which nobody listens just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
