# SPDX-License-Identifier: Apache-2.0
"""aiohttp's server."""

from __future__ import annotations

import asyncio

import plugged
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor

plugged.instrument()
AioHttpServerInstrumentor().instrument()

from aiohttp import web  # noqa: E402 (the instrumentation replaces what is imported later)


async def work(request: web.Request) -> web.Response:
    number = request.match_info["number"]
    await asyncio.sleep(plugged.handle(number))
    return web.Response(text=number)


app = web.Application()
app.router.add_get("/work/{number}", work)
web.run_app(app, sock=plugged.listener(), print=None, access_log=None)
