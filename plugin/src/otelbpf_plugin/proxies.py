# SPDX-License-Identifier: Apache-2.0
"""Keeps the peer that uvicorn knew before it believed X-Forwarded-For.

Behind an API gateway, its middleware puts the gateway's client in place of the connection's peer.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

from otelbpf_plugin.connection import CLIENT_KEY

MODULE = "uvicorn.middleware.proxy_headers"


def keeping_client(call: Callable[..., Any]) -> Callable[..., Any]:
    """The middleware's __call__, that of uvicorn.middleware.proxy_headers."""

    # async as the wrapped one is: uvicorn asks what it is given whether it is.
    @functools.wraps(call)
    async def wrapper(self: Any, scope: dict[str, Any], receive: Any, send: Any) -> Any:
        if CLIENT_KEY not in scope:  # where two of them are stacked, the outer one knows
            scope[CLIENT_KEY] = scope.get("client")
        return await call(self, scope, receive, send)

    return wrapper
