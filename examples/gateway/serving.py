# SPDX-License-Identifier: Apache-2.0
"""What the gateway and its upstreams share: options, one ready line, demo headers."""

import argparse
import asyncio
import math
import os
import signal

from aiohttp import web

MAX_DELAY_MS = 10_000.0


def options(description: str, default_port: int) -> argparse.ArgumentParser:
    """An argument parser that has ``--host`` (IPv4, IPv6, or both) and ``--port``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--host",
        action="append",
        metavar="ADDRESS",
        help="IPv4 or IPv6 address to listen on; may be given twice (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port", type=int, default=default_port, help="TCP port; 0 takes a free one (%(default)s)"
    )
    return parser


def serve(app: web.Application, name: str, hosts: list[str] | None, port: int) -> None:
    """Serve until SIGINT or SIGTERM; print ``NAME ready on URL ...`` once it listens.

    Raises:
        SystemExit: an address cannot be bound; the message names it.
    """
    asyncio.run(_serve(app, name, hosts or ["127.0.0.1"], port))


async def _serve(app: web.Application, name: str, hosts: list[str], port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        for host in hosts:
            try:
                await web.TCPSite(runner, host, port).start()
            except OSError as failure:
                reason = os.strerror(failure.errno) if failure.errno else str(failure)
                raise SystemExit(
                    f"{name}: cannot listen on {host} port {port}: {reason}"
                ) from failure
        print(
            f"{name} ready on {' '.join(url(*address[:2]) for address in runner.addresses)}",
            flush=True,
        )
        await stop.wait()
    finally:
        await runner.cleanup()


def url(host: str, port: int) -> str:
    """``http://host:port``, with the brackets that an IPv6 address wants."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON error body, in the shape that clients of model APIs know."""
    return web.json_response({"error": {"message": message}}, status=status, headers=headers)


async def obey_demo_headers(request: web.Request) -> web.Response | None:
    """Let a request ask for trouble, so that a load can show how it looks in a trace.

    ``X-Demo-Delay: 40`` waits 40 ms (at most 10 s) before the work starts.
    ``X-Demo-Fail: 503`` answers with that status (500 to 599) in place of the work.

    Returns:
        The response to give at once, or None to go on.
    """
    delay = request.headers.get("X-Demo-Delay")
    if delay is not None:
        try:
            delay_ms = float(delay)
        except ValueError:
            delay_ms = math.nan
        if not 0 <= delay_ms <= MAX_DELAY_MS:
            return error(400, f"X-Demo-Delay wants milliseconds from 0 to {MAX_DELAY_MS:.0f}")
        await asyncio.sleep(delay_ms / 1000)

    fail = request.headers.get("X-Demo-Fail")
    if fail is None:
        return None
    if not (fail.isascii() and fail.isdigit() and 500 <= int(fail) <= 599):
        return error(400, "X-Demo-Fail wants a status from 500 to 599")
    return error(int(fail), "failed, as X-Demo-Fail asked")
