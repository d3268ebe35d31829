# SPDX-License-Identifier: Apache-2.0
"""A stand-in for an embeddings model: POST /v1/embeddings answers with JSON."""

import hashlib
import json

from aiohttp import web
from serving import error, obey_demo_headers, options, serve

DIMENSIONS = 32


def embed(text: str) -> list[float]:
    """A vector in [-1, 1) that depends on nothing but the text."""
    digest = hashlib.shake_256(text.encode()).digest(2 * DIMENSIONS)
    return [
        int.from_bytes(digest[i : i + 2], "big", signed=True) / 32768
        for i in range(0, len(digest), 2)
    ]


async def embeddings(request: web.Request) -> web.Response:
    try:
        body = await request.json()
        texts = [body["input"]] if isinstance(body["input"], str) else list(body["input"])
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("input is not text")
    except (json.JSONDecodeError, KeyError, TypeError):
        return error(400, 'the body wants {"input": text or a list of texts}')

    answer = await obey_demo_headers(request)
    if answer is not None:
        return answer
    return web.json_response(
        {
            "object": "list",
            "model": "demo-embedding",
            "data": [
                {"object": "embedding", "index": index, "embedding": embed(text)}
                for index, text in enumerate(texts)
            ],
        }
    )


def application() -> web.Application:
    app = web.Application()
    app.router.add_post("/v1/embeddings", embeddings)
    return app


if __name__ == "__main__":
    args = options(__doc__, default_port=9001).parse_args()
    serve(application(), "upstream_json", args.host, args.port)
