# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a chat model: POST /v1/chat/completions streams its answer word by word."""

import argparse
import asyncio
import itertools
import json

from aiohttp import web
from serving import error, obey_demo_headers, options, serve

WORDS = ("every", "request", "knows", "where", "its", "time", "went")
CHUNK_MS = web.AppKey("chunk_ms", float)


def event(data: str) -> bytes:
    """One server-sent event."""
    return f"data: {data}\n\n".encode()


async def chat(request: web.Request) -> web.StreamResponse:
    try:
        body = await request.json()
        tokens = int(body.get("max_tokens", 12))
        if not (body["messages"] and 1 <= tokens <= 1000):
            raise ValueError("out of range")
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError):
        return error(400, 'the body wants {"messages": [...], "max_tokens": 1 to 1000}')

    answer = await obey_demo_headers(request)
    if answer is not None:
        return answer

    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    for word in itertools.islice(itertools.cycle(WORDS), tokens):
        # The pause is the model at work on its next token.
        await asyncio.sleep(request.app[CHUNK_MS] / 1000)
        await response.write(event(json.dumps({"choices": [{"delta": {"content": f"{word} "}}]})))
    await response.write(event("[DONE]"))
    await response.write_eof()
    return response


def application(chunk_ms: float) -> web.Application:
    app = web.Application()
    app[CHUNK_MS] = chunk_ms
    app.router.add_post("/v1/chat/completions", chat)
    return app


def milliseconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 10_000:
        raise argparse.ArgumentTypeError("wants milliseconds from 0 to 10000")
    return value


if __name__ == "__main__":
    parser = options(__doc__, default_port=9002)
    parser.add_argument(
        "--chunk-ms", type=milliseconds, default=5.0, help="pause before each word (%(default)s)"
    )
    args = parser.parse_args()
    serve(application(args.chunk_ms), "upstream_stream", args.host, args.port)
