# SPDX-License-Identifier: Apache-2.0
"""An API gateway in front of two model services: keys, rate limits, routes, streams.

It knows nothing of OpenTelemetry. It only passes the caller's headers on, ``traceparent`` among
them; ``opentelemetry-instrument`` puts its own in that one's place.
"""

import math
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from limits import Bucket, Plan, parse_plan
from serving import error, options, serve

ROUTES = web.AppKey("routes", dict[str, str])  # path -> the base URL of its upstream
BUCKETS = web.AppKey("buckets", dict[str, Bucket])  # API key -> what it may still ask
UPSTREAM = web.AppKey("upstream", aiohttp.ClientSession)

DEFAULT_PLANS = (Plan("demo-key", 1_000_000, 60), Plan("demo-small", 3, 3600))

# Headers that belong to one connection, or that the gateway answers for itself.
OWN_HEADERS = frozenset(
    (
        "authorization",
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "te",
        "transfer-encoding",
    )
)


async def healthz(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def gateway(request: web.Request) -> web.StreamResponse:
    """Check the key and its limit, find the route, hand the request on."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    bucket = request.app[BUCKETS].get(key)
    if scheme != "Bearer" or bucket is None:
        return error(401, "this API key is not known", {"WWW-Authenticate": "Bearer"})

    wait_s = bucket.take()
    if wait_s > 0:
        return error(
            429, "this API key has used up its requests", {"Retry-After": str(math.ceil(wait_s))}
        )

    upstream_url = request.app[ROUTES].get(request.path)
    if upstream_url is None:
        return error(404, f"there is no model at {request.path}")
    return await forward(request, upstream_url + request.path_qs)


async def forward(request: web.Request, url: str) -> web.StreamResponse:
    """Send the request to the upstream and its answer back to the caller."""
    headers = {
        name: value for name, value in request.headers.items() if name.lower() not in OWN_HEADERS
    }
    body = await request.read()
    streamed: web.StreamResponse | None = None
    try:
        async with request.app[UPSTREAM].request(
            request.method, url, data=body, headers=headers
        ) as answer:
            headers = {
                "Content-Type": answer.headers.get("Content-Type", "application/octet-stream")
            }
            if answer.content_length is not None:
                return web.Response(status=answer.status, body=await answer.read(), headers=headers)

            # No length: the model streams. Pass each chunk on as it comes.
            streamed = web.StreamResponse(status=answer.status, headers=headers)
            streamed.enable_chunked_encoding()
            await streamed.prepare(request)
            async for chunk in answer.content.iter_any():
                await streamed.write(chunk)
            await streamed.write_eof()
            return streamed
    except (aiohttp.ClientError, TimeoutError) as failure:
        if streamed is not None:
            # The status has gone out already. Cutting the stream short is the one way left
            # to tell the caller that it is not whole.
            if request.transport is not None:
                request.transport.abort()
            return streamed
        if isinstance(failure, TimeoutError):
            return error(504, "the model did not answer in time")
        return error(502, "the model cannot be reached")


def application(routes: dict[str, str], plans: list[Plan], timeout_s: float) -> web.Application:
    """Make the gateway.

    Args:
        routes: path -> the base URL of its upstream, as in ``http://127.0.0.1:9001``.
        plans: the known API keys.
        timeout_s: how long an upstream may take to connect, or stay silent.
    """
    app = web.Application()
    app[ROUTES] = routes
    app[BUCKETS] = {plan.key: Bucket(plan) for plan in plans}

    async def upstream_session(app: web.Application) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
            app[UPSTREAM] = session
            yield

    app.cleanup_ctx.append(upstream_session)
    app.router.add_get("/healthz", healthz)
    app.router.add_route("*", "/{path:.*}", gateway)
    return app


if __name__ == "__main__":
    parser = options(__doc__, default_port=8080)
    parser.add_argument(
        "--json-upstream", metavar="URL", default="http://127.0.0.1:9001", help="(%(default)s)"
    )
    parser.add_argument(
        "--stream-upstream", metavar="URL", default="http://127.0.0.1:9002", help="(%(default)s)"
    )
    parser.add_argument(
        "--key",
        action="append",
        type=parse_plan,
        metavar="KEY=REQUESTS/SECONDS",
        help="an API key and its limit, instead of demo-key and demo-small; may be given often",
    )
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="SECONDS", help="(%(default)s)"
    )
    args = parser.parse_args()
    serve(
        application(
            {
                "/v1/embeddings": args.json_upstream.rstrip("/"),
                "/v1/chat/completions": args.stream_upstream.rstrip("/"),
            },
            args.key or list(DEFAULT_PLANS),
            args.timeout,
        ),
        "gateway",
        args.host,
        args.port,
    )
