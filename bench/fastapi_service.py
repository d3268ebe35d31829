# SPDX-License-Identifier: Apache-2.0
"""The smallest service that is worth tracing: one route of FastAPI under uvicorn, one process."""

import sys

import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/hello/{number}")
async def hello(number: int) -> dict[str, int]:
    return {"number": number}


if __name__ == "__main__":
    uvicorn.run(app, host="0.0.0.0", port=int(sys.argv[1]), access_log=False, log_level="error")
