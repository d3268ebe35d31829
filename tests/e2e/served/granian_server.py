# SPDX-License-Identifier: Apache-2.0
"""FastAPI or Flask under granian: one worker process, whose server is not written in Python."""

from __future__ import annotations

import asyncio
import sys
import time

import plugged
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from flask import Flask
from granian import Granian
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.flask import FlaskInstrumentor


def asgi() -> FastAPI:
    """Called in the worker, as wsgi() is."""
    plugged.instrument()
    app = FastAPI()
    FastAPIInstrumentor.instrument_app(app)

    @app.get("/work/{number}", response_class=PlainTextResponse)
    async def work(number: str) -> str:
        await asyncio.sleep(plugged.handle(number))
        return number

    return app


def wsgi() -> Flask:
    plugged.instrument()
    app = Flask(__name__)
    FlaskInstrumentor().instrument_app(app)

    @app.get("/work/<number>")
    def work(number: str) -> str:
        time.sleep(plugged.handle(number))
        return number

    return app


if __name__ == "__main__":
    _, _, interface, address = sys.argv
    Granian(
        f"granian_server:{interface}", factory=True, interface=interface, address=address,
        port=plugged.PORT, log_level="warning",
    ).serve()  # fmt: skip
