# SPDX-License-Identifier: Apache-2.0
"""FastAPI under uvicorn."""

from __future__ import annotations

import asyncio

import plugged
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

plugged.instrument()
app = FastAPI()
FastAPIInstrumentor.instrument_app(app)


@app.get("/work/{number}", response_class=PlainTextResponse)
async def work(number: str) -> str:
    await asyncio.sleep(plugged.handle(number))
    return number


plugged.serve(app)
