# SPDX-License-Identifier: Apache-2.0
"""Flask under gunicorn: one worker whose main thread waits for what 60 threads then read."""

from __future__ import annotations

import time
from typing import Any

import plugged
from flask import Flask
from gunicorn.app.base import BaseApplication
from opentelemetry.instrumentation.flask import FlaskInstrumentor


class Application(BaseApplication):
    def load_config(self) -> None:
        options = {
            "bind": f"[::]:{plugged.PORT}", "worker_class": "gthread", "threads": 60,
            "keepalive": 60, "loglevel": "warning",
        }  # fmt: skip
        if "control_socket_disable" in self.cfg.settings:  # newer ones leave a file somewhere
            options["control_socket_disable"] = True
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Called in the worker."""
        plugged.instrument()
        app = Flask(__name__)
        FlaskInstrumentor().instrument_app(app)

        @app.get("/work/<number>")
        def work(number: str) -> str:
            time.sleep(plugged.handle(number))
            return number

        return app


Application().run()
