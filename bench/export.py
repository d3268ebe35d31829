# SPDX-License-Identifier: Apache-2.0
"""What sending spans costs the agent: processor time for each request, all of its threads together.

    .venv/bin/python bench/export.py [--agent OTHER/.venv/bin/otelbpf]
    .venv/bin/python bench/export.py --memory 600 [--rates 1000]
    .venv/bin/python bench/export.py --new-series 40

asks a server at a steady rate, or as fast as wrk does, while an agent sends every request to a
receiver that throws away what it gets. With --agent, another checkout's agent does that. With
--memory it does so for that many seconds, and tells the agent's size meanwhile. With --new-series
each path is asked for so many times and never again, and all requests are added up, too, in 4,096
series. Meanwhile no processor goes to sleep, unless --asleep says so.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import platform
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import measure
from instructions import nginx
from measure import PORT, Network, add_asleep, agent, awake, load, resident_mib, served
from support.namespaces import Side

_TICK_S = 0.01
_RATES = (400, 5_000, 0)
# How often an agent's size is told, and under how many requests a second.
_EACH_S, _MEMORY_RATES = 15, (5_000,)
_WARM_UP_S = 2.0
# A batch waits no longer for its requests, and then there is nothing left to do.
_REST_S = 6.0
# From then on an agent takes it that nothing will come.
_QUIET_S = 12.0
_SPANS = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_STYLES = ("spans", "attributes")


class _Swallow(grpc.GenericRpcHandler):
    def __init__(self, on_spans: Callable[[], object]) -> None:
        self._on_spans = on_spans

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def take(_octets: bytes, _context: grpc.ServicerContext) -> bytes:
            if call.method == _SPANS:
                self._on_spans()
            return b""

        return grpc.unary_unary_rpc_method_handler(take)


class _Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 16)))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def receiver(
    protocol: str, side: Side | None = None, on_spans: Callable[[], object] = lambda: None
) -> Iterator[dict[str, str]]:
    """Gives the variables by which somebody sends spans to it.

    Args:
        side: the namespace that it is in; None: this process's own.
        on_spans: called for each message of spans that comes over gRPC.
    """
    if protocol == "grpc":
        server = grpc.server(futures.ThreadPoolExecutor(2), handlers=(_Swallow(on_spans),))
        listen = functools.partial(server.add_insecure_port, "127.0.0.1:0")
        port = listen() if side is None else side.call(listen)
        server.start()
        stop = lambda: server.stop(None)  # noqa: E731
    else:
        assert side is None, "only gRPC's"
        http = ThreadingHTTPServer(("127.0.0.1", 0), _Http)
        port = http.server_address[1]
        threading.Thread(target=http.serve_forever, daemon=True).start()
        stop = http.shutdown
    try:
        yield {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol.removesuffix("+gzip"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            **({"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"} if protocol.endswith("+gzip") else {}),
        }
    finally:
        stop()


def known_path(count: int) -> str:
    """One of eight."""
    return f"/hello/{count % 8}"


def new_path(count: int) -> str:
    """Another one each time."""
    return f"/item/{count}"


def ask(net: Network, rate: int, seconds: float, path_of: Callable[[int], str] = known_path) -> int:
    """How many were answered: all."""
    each_tick = max(1, round(rate * _TICK_S))
    tick_s = each_tick / rate
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(
                net.client.call(lambda: socket.create_connection((net.server.ipv4, PORT)))
            )
            for _ in range(each_tick)
        ]
        count, due_s = 0, time.monotonic()
        end_s = due_s + seconds
        while due_s < end_s:
            for sock in sockets:
                count += 1
                sock.sendall(f"GET {path_of(count)} HTTP/1.1\r\nHost: server\r\n\r\n".encode())
            for sock in sockets:
                _take_answer(sock)
            due_s += tick_s
            time.sleep(max(0.0, due_s - time.monotonic()))
    return count


def _take_answer(sock: socket.socket) -> None:
    """A whole one: of half of it the next request would be sent too early."""
    received = b""
    while True:
        piece = sock.recv(4_096)
        if not piece:
            raise ConnectionError("the server has closed the connection")
        received += piece
        head, end, body = received.partition(b"\r\n\r\n")
        if end and len(body) >= int(_LENGTH.search(head)[1]):
            return


def run(
    net: Network, rate: int, protocol: str, style: str, seconds: float, *, new_paths: bool = False
) -> str:
    """One row of the table."""
    path_of = new_path if new_paths else known_path
    with (
        receiver(protocol) as variables,
        agent(net, PORT, "--stages", style, **variables) as running,
    ):
        if rate:
            ask(net, rate, _WARM_UP_S, path_of)
        else:
            load(net, round(_WARM_UP_S))
        running.catch_up()
        before_s = running.processor_s()
        if rate:
            asked, per_s = ask(net, rate, seconds, path_of), float(rate)
        else:
            done = load(net, round(seconds))
            asked, per_s = done.requests, done.per_second
        time.sleep(_REST_S)
        used_s = running.processor_s() - before_s
        memory_mib = resident_mib(running.pid)
        sums = running.stop()
    paths = ", new paths" if new_paths else ""
    return (
        f"{per_s:>7.0f}/s  {protocol + ', ' + style + paths:<38} {used_s / asked * 1e6:>7.1f} us"
        f"  lost {sums['lost']}  {memory_mib:.0f} MiB"
    )


def idle(net: Network, seconds: float) -> str:
    """The row of an agent that has nothing to do."""
    with receiver("grpc") as variables, agent(net, PORT, **variables) as running:
        running.catch_up()
        time.sleep(_QUIET_S)
        before_s = running.processor_s()
        time.sleep(seconds)
        used_s = running.processor_s() - before_s
        memory_mib = resident_mib(running.pid)
    return f"   idle    {used_s / seconds:.2%} of a processor  {memory_mib:.0f} MiB"


def memory(net: Network, rate: int, seconds: float) -> None:
    """How large an agent is at ready, and while it sends all the time."""
    with receiver("grpc") as variables, agent(net, PORT, **variables) as running:
        ready_mib = resident_mib(running.pid)
        print(f"{rate or 'as many as can be'} requests a second, grpc, spans", flush=True)
        print(_size("at ready", running.pid), flush=True)
        sizes_mib, began_s, asked = [], time.monotonic(), 0
        while time.monotonic() - began_s < seconds:
            asked += ask(net, rate, _EACH_S) if rate else load(net, _EACH_S).requests
            sizes_mib.append(resident_mib(running.pid))
            print(_size(f"{time.monotonic() - began_s:.0f} s", running.pid), flush=True)
        sums = running.stop()
    half = sizes_mib[len(sizes_mib) // 2 :]
    print(
        f"  at most ready + {max(sizes_mib) - ready_mib:.1f} MiB; in the second half "
        f"{min(half):.1f} to {max(half):.1f} MiB; asked {asked}, exported {sums['exported']}, "
        f"lost {sums['lost']}"
    )


# A word of letters, which no route is folded by.
_WORDS = """
local count = 0
request = function()
  local number = math.floor(count / EACH)
  local word = ""
  for i = 1, 4 do
    word = word .. string.char(97 + number % 26)
    number = math.floor(number / 26)
  end
  count = count + 1
  return wrk.format("GET", "/" .. word)
end
"""


def new_series(net: Network, each: int, seconds: int) -> str:
    """Many new series at once: the row of what becomes of their requests."""
    with (
        tempfile.NamedTemporaryFile("w", suffix=".lua") as script,
        receiver("grpc") as variables,
        agent(net, PORT, "--series", "4096", OTEL_METRICS_EXPORTER="otlp", **variables) as running,
    ):
        script.write(_WORDS.replace("EACH", str(each)))
        script.flush()
        running.catch_up()
        before_s = running.processor_s()
        done = load(net, seconds, script=Path(script.name))
        time.sleep(_REST_S)
        used_s = running.processor_s() - before_s
        sums = running.stop()
    return (
        f"{done.per_second:>7.0f}/s, {done.per_second / each:.0f} new series/s "
        f"{used_s / done.requests * 1e6:>5.1f} us  lost {sums['lost']}"
    )


def _size(when: str, pid: int) -> str:
    own_mib = resident_mib(pid, "RssAnon")
    return f"  {when:>8}  {resident_mib(pid):6.1f} MiB, its own {own_mib:6.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agent", type=Path, help="an agent's command, instead of this one's")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--rates", type=int, nargs="+", help="of requests a second; 0: wrk's")
    parser.add_argument("--protocols", nargs="+", default=["grpc", "http/protobuf"])
    parser.add_argument("--styles", nargs="+", default=list(_STYLES), choices=_STYLES)
    parser.add_argument("--new-paths", action="store_true", help="no path is asked for twice")
    parser.add_argument("--memory", type=float, metavar="SECONDS", help="its size, so long")
    parser.add_argument("--new-series", type=int, metavar="N", help="each has N requests")
    add_asleep(parser)
    given = parser.parse_args()
    if given.agent is not None:
        measure.COMMAND = given.agent
    print(f"kernel {platform.release()}; {measure.COMMAND}")
    with awake(asleep=given.asleep), served(nginx) as net:
        if given.memory is not None:
            for rate in given.rates or _MEMORY_RATES:
                memory(net, rate, given.memory)
            return
        print(f"{given.seconds:.0f} s a load")
        if given.new_series is not None:
            print(new_series(net, given.new_series, round(given.seconds)))
            return
        print(idle(net, given.seconds), flush=True)
        for rate in given.rates or _RATES:
            for protocol in given.protocols:
                for style in given.styles:
                    print(
                        run(net, rate, protocol, style, given.seconds, new_paths=given.new_paths),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
