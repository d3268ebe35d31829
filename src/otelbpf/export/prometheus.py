# SPDX-License-Identifier: Apache-2.0
"""metrics -> Prometheus: an endpoint to be scraped."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from opentelemetry.sdk.metrics.export import MetricsData

from otelbpf.errors import UsageError
from otelbpf.export.http_port import HttpPort, Page, takes
from otelbpf.export.prometheus_text import texts

_TOLD_AGAIN_S = 1.0
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class PrometheusEndpoint:
    """Answers scrapes at /metrics: in OpenMetrics, with exemplars, if asked for it.

    Several scrapers at a time are told the same: what was made is told again for a second, or twice
    as long as it took to make it. So they cannot keep the agent from its own work.

    Args:
        host, port: where to listen.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._served: HttpPort | None = None
        #: By their types, and until when each is told, on the monotonic clock.
        self._pages: dict[str, tuple[Page, float]] = {}

    def start(self, collect: Callable[[], MetricsData]) -> None:
        """Listens.

        Args:
            collect: makes the metrics of the moment; called by one thread.
        Raises:
            UsageError: the address cannot be listened on.
        """

        def page(accept: str) -> Page:
            openmetrics = takes(accept, "application/openmetrics-text")
            content_type = _OPENMETRICS if openmetrics else _TEXT
            known, until_s = self._pages.get(content_type, (None, 0.0))
            began_s = monotonic()
            if known is None or began_s >= until_s:
                pieces = map(str.encode, texts(collect(), openmetrics=openmetrics))
                known = Page.of_pieces(pieces, content_type)
                now_s = monotonic()
                self._pages[content_type] = known, now_s + max(_TOLD_AGAIN_S, 2 * (now_s - began_s))
            return known

        try:
            self._served = HttpPort(self._host, self._port, {"/metrics": page}, "Prometheus")
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"cannot listen on {self._host}:{self._port} for Prometheus "
                f"({reason}): give another address by "
                "OTEL_EXPORTER_PROMETHEUS_HOST and OTEL_EXPORTER_PROMETHEUS_PORT"
            ) from error
        self._served.start()

    def stop(self) -> None:
        """Listens no more, and waits for a scrape under way."""
        if self._served is not None:
            self._served.stop()
            self._served = None
