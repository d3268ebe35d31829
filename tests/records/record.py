# SPDX-License-Identifier: Apache-2.0
"""Records a fixed handful of requests on this kernel; run it as scripts/record.

curl asks Python's http.server, in two network namespaces that are made for it.
What curl saw of each exchange goes into the text beside the records.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from replay import CLOCK, ORIGIN, RING, SPANS, all_as_json, layout, replay
from support.commands import run
from support.namespaces import Network, network
from support.waiting import wait_until

from otelbpf.agent.config import Config
from otelbpf.agent.settings import settings
from otelbpf.host.interfaces import find_interfaces
from otelbpf.host.netns import find_netns
from otelbpf.kernel.attach import attached
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.hooks import choose
from otelbpf.kernel.limits import Limits
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.records import Counter
from otelbpf.ledger.reader import RingReader

PORT = 8080
IPV4, IPV6 = f"http://198.18.0.1:{PORT}", f"http://[fd00:6f74::1]:{PORT}"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
#: curl's arguments; each is a process, hence a connection, of its own but for the last, which
#: asks twice on one.
REQUESTS: tuple[tuple[str, ...], ...] = (
    (f"{IPV4}/hello.txt",),
    ("--data-binary", "@body", f"{IPV4}/orders?token=s3cret"),
    ("--head", f"{IPV4}/hello.txt"),
    (f"{IPV4}/nothing/here",),
    ("--header", f"traceparent: {TRACEPARENT}", f"{IPV4}/hello.txt"),
    (f"{IPV6}/hello.txt",),
    (f"{IPV4}/hello.txt", f"{IPV4}/large.bin"),
)
COUNT = sum(argument.startswith("http://") for request in REQUESTS for argument in request)
BODY_BYTES = 5_000
LARGE_BYTES = 300_000
WRITE_OUT = (
    "%{method} %{url} from port %{local_port}: request %{size_request} bytes with a body of "
    "%{size_upload}, response %{response_code} with a head of %{size_header} and a body of "
    "%{size_download}\\n"
)
# http.server knows no POST of its own.
SERVE = f"""
import http.server, socket
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = b"%d bytes\\n" % len(body)
        self.send_response(201)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
Server(("::", {PORT}), Handler).serve_forever()
"""


@contextlib.contextmanager
def server(net: Network) -> Iterator[None]:
    """http.server with something to serve."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "hello.txt").write_text("hello\n")
        (Path(directory) / "large.bin").write_bytes(bytes(LARGE_BYTES))
        process = subprocess.Popen(
            [*net.server.enter(), sys.executable, "-c", SERVE],
            cwd=directory,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_until(
                lambda: run("ss", "-N", net.server.netns, "-Hltn", f"sport = {PORT}"),
                "the server listened",
            )
            yield
        finally:
            process.kill()
            process.wait()


def ask(net: Network) -> list[str]:
    """Every request of REQUESTS; gives what curl says of each."""
    said = []
    with tempfile.TemporaryDirectory() as directory:
        body = Path(directory) / "body"
        body.write_bytes(b"x" * BODY_BYTES)
        for arguments in REQUESTS:
            outputs = [a for b in arguments if b.startswith("http:") for a in ("-o", os.devnull)]
            said += run(
                *net.client.enter(),
                "curl",
                "--silent",
                "--user-agent",
                "record",
                "--write-out",
                WRITE_OUT,
                *outputs,
                *(a.replace("@body", f"@{body}") for a in arguments),
            ).splitlines()
    return said


def record() -> tuple[np.ndarray, list[str]]:
    """(COUNT,) REQUEST_RECORD in the order in which they were asked, and what curl saw."""
    with network() as net, Btf.of_kernel() as btf:
        choices = choose(btf)
        netns = find_netns(net.server.netns)
        interfaces = find_interfaces((net.server.interface,), netns)
        programs = Programs(btf, choices, Limits(1_024, 1_024), settings(netns.cookie, (PORT,)))
        reader = RingReader(programs)
        taken: list[np.ndarray] = []

        def all_came() -> bool:
            taken.append(reader.read())
            return sum(map(len, taken)) >= COUNT

        try:
            with attached(programs, choices, interfaces, netns), server(net):
                said = ask(net)
                wait_until(all_came, f"{COUNT} records came: {programs.counts()}")
            counts = programs.counts()
        finally:
            reader.close()
            programs.close()
    records = np.concatenate(taken)
    if not len(records) == counts[Counter.SEEN] == counts[Counter.SUBMITTED] == COUNT:
        raise SystemExit(f"record: {len(records)} records of {COUNT} requests; {counts}")
    return records[np.argsort(records["stamp_ktime_ns"].max(axis=1))], said


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/record", description=__doc__)
    parser.add_argument("--rewrite", action="store_true", help="rewrite tests/records/")
    arguments = parser.parse_args()
    if os.geteuid():
        raise SystemExit("record: this needs root")
    try:
        records, said = record()
    except (RuntimeError, AssertionError) as error:
        raise SystemExit(f"record: {error}") from error
    _, spans = replay(records.tobytes(), Config((), ()))
    origin = "\n".join(
        [
            "Made by: scripts/record --rewrite",
            f"Kernel: {os.uname().release} {os.uname().machine}",
            f"Records: {len(records)} of struct request_record, layout {layout()}",
            f"Clock: Unix time is CLOCK_MONOTONIC plus {CLOCK.offset_ns} ns",
            "",
            "What curl saw:",
            *said,
            "",
        ]
    )
    print(origin)
    for span in spans:
        print(span.name, span.end_time - span.start_time)
    if arguments.rewrite:
        RING.write_bytes(records.tobytes())
        SPANS.write_text(json.dumps(all_as_json(spans), indent=1) + "\n")
        ORIGIN.write_text(origin)
    return 0


if __name__ == "__main__":
    sys.exit(main())
