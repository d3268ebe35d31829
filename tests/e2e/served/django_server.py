# SPDX-License-Identifier: Apache-2.0
"""Django: `wsgi` under its own threading server, `asgi` under uvicorn."""

from __future__ import annotations

import asyncio
import logging
import sys
import time

import django
import plugged
from django.conf import settings
from django.core.servers import basehttp
from django.http import HttpRequest, HttpResponse
from django.urls import path
from opentelemetry.instrumentation.django import DjangoInstrumentor

IS_ASGI = sys.argv[2] == "asgi"


def work(_: HttpRequest, number: str) -> HttpResponse:
    time.sleep(plugged.handle(number))
    return HttpResponse(number)


async def work_async(_: HttpRequest, number: str) -> HttpResponse:
    await asyncio.sleep(plugged.handle(number))
    return HttpResponse(number)


urlpatterns = [path("work/<str:number>", work_async if IS_ASGI else work)]
# The middleware of common use: with it Django sets Content-Length, and so keeps connections alive.
settings.configure(
    ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="of a test",
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)  # fmt: skip
plugged.instrument()
DjangoInstrumentor().instrument()
django.setup()
logging.getLogger("django.server").setLevel(logging.ERROR)

if IS_ASGI:
    from django.core.asgi import get_asgi_application

    plugged.serve(get_asgi_application())
else:
    from django.core.wsgi import get_wsgi_application

    basehttp.run("::", plugged.PORT, get_wsgi_application(), ipv6=True, threading=True)
