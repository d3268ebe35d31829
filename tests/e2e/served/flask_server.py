# SPDX-License-Identifier: Apache-2.0
"""Flask, served by werkzeug: a thread for each connection."""

from __future__ import annotations

import logging
import time

import plugged
from flask import Flask
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from werkzeug.serving import WSGIRequestHandler, run_simple

plugged.instrument()
app = Flask(__name__)
FlaskInstrumentor().instrument_app(app)
logging.getLogger("werkzeug").setLevel(logging.ERROR)


class Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections alive


@app.get("/work/<number>")
def work(number: str) -> str:
    time.sleep(plugged.handle(number))
    return number


run_simple("::", plugged.PORT, app, threaded=True, request_handler=Handler)
