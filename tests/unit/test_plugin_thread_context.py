# SPDX-License-Identifier: Apache-2.0
"""What a Python application publishes, read from outside and by its own threads. Needs gcc."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from binaries import run
from support import thread_context
from test_thread_locals import address_in, word_at

from otelbpf.userspace.thread_contexts import VARIABLE
from otelbpf.userspace.thread_locals import find_thread_local

pytestmark = pytest.mark.impure

# seen() is the calling thread's record, by the variable's own name; None where nothing is valid.
PREAMBLE = """
import asyncio, contextvars, ctypes, json, sys, threading
from pathlib import Path
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
import otelbpf_thread_context
from otelbpf_thread_context.context import PublishingContext
assert type(context._RUNTIME_CONTEXT) is PublishingContext
library = ctypes.CDLL(str(Path(otelbpf_thread_context.__file__).with_name("record.so")))
tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")

def seen():
    pointer = ctypes.c_void_p.in_dll(library, "otel_thread_ctx_v1").value
    record = ctypes.string_at(pointer, 28) if pointer else bytes(28)
    assert record[26:] == bytes(2)
    return [record[:16].hex(), record[16:24].hex(), record[25]] if record[24] == 1 else None

def of(span):
    found = span.get_span_context()
    return [f"{found.trace_id:032x}", f"{found.span_id:016x}", int(found.trace_flags)]
"""
SCENARIOS = {
    "spans within one another": """
assert seen() is None
with tracer.start_as_current_span("outer") as outer:
    assert seen() == of(outer)
    with tracer.start_as_current_span("inner") as inner:
        assert seen() == of(inner) != of(outer)
    assert seen() == of(outer)
assert seen() is None
""",
    "a caller's span": """
caller = trace.SpanContext(0x1234, 0x56, is_remote=True, trace_flags=trace.TraceFlags(1))
token = context.attach(trace.set_span_in_context(trace.NonRecordingSpan(caller)))
assert seen() is None
with tracer.start_as_current_span("own") as own:
    assert seen() == of(own) and own.get_span_context().trace_id == 0x1234
assert seen() is None
context.detach(token)
""",
    "a span that is not sampled": """
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
off = TracerProvider(ALWAYS_OFF, shutdown_on_exit=False).get_tracer("off")
with off.start_as_current_span("x") as span:
    assert seen() == of(span) and not seen()[2] & 1
""",
    "threads": """
def work(barrier, wrong):
    with tracer.start_as_current_span("in a thread") as span:
        barrier.wait()
        if seen() != of(span):
            wrong.append(seen())
        barrier.wait()
    if seen() is not None:
        wrong.append("after")
with tracer.start_as_current_span("main") as main:
    barrier, wrong = threading.Barrier(8), []
    threads = [threading.Thread(target=work, args=(barrier, wrong)) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert wrong == [] and seen() == of(main)
""",
    "an event loop's tasks": """
async def task():
    with tracer.start_as_current_span("task"):
        assert seen() is None
        await asyncio.sleep(0)
        assert seen() is None
    return await asyncio.to_thread(in_thread)
def in_thread():
    assert seen() is None
    with tracer.start_as_current_span("thread") as span:
        assert seen() == of(span)
    # The context that was copied for this is the task's: it ends with this function.
    assert seen() is None
async def main():
    await asyncio.gather(task(), task(), task())
asyncio.run(main())
assert seen() is None
with tracer.start_as_current_span("afterwards") as span:
    assert seen() == of(span)
with tracer.start_as_current_span("around") as span:
    asyncio.run(main())
    assert seen() is None
assert seen() is None
""",
    "what is detached elsewhere": """
copied = contextvars.copy_context()
token = copied.run(context.attach, trace.set_span_in_context(tracer.start_span("x")))
assert seen() is not None
context.detach(token)  # is refused, and logged
assert seen() is None
""",
    "greenlets": """
import types
sys.modules["gevent"] = types.ModuleType("gevent")
with tracer.start_as_current_span("greenlet"):
    assert seen() is None
""",
}
LIVE = """
def wait(name):
    with tracer.start_as_current_span(name) as span:
        rows.append([fs(), of(span)])
        ready.wait(); ready.wait()
def fs():
    libc = ctypes.CDLL(None)
    libc.pthread_self.restype = ctypes.c_void_p
    return libc.pthread_self()
rows, ready = [], threading.Barrier(4)
for name in "abc":
    threading.Thread(target=wait, args=(name,), daemon=True).start()
ready.wait()
print(json.dumps(rows), flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thread_context.install(tmp_path_factory.mktemp("thread-context"))


def environment(installed: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(installed), "OTEL_PYTHON_CONTEXT": "otelbpf"}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_what_a_thread_says_of_itself(installed: Path, scenario: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + scenario],
        env=environment(installed),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_its_variable_is_a_descriptor_that_others_can_find(installed: Path) -> None:
    library = installed / "otelbpf_thread_context/record.so"
    (symbol,) = [
        line
        for line in run("readelf", "-W", "--dyn-syms", library).splitlines()
        if VARIABLE in line
    ]
    assert {"TLS", "GLOBAL", "DEFAULT"} <= set(symbol.split())
    (relocation,) = [
        line for line in run("readelf", "-W", "-r", library).splitlines() if VARIABLE in line
    ]
    assert "R_X86_64_TLSDESC" in relocation


def test_it_is_read_from_outside(installed: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + LIVE],
        env=environment(installed),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            rows = json.loads(process.stdout.readline())
            found = find_thread_local(process.pid, VARIABLE, {})
            assert found is not None and len(rows) == 3
            for thread_pointer, (trace_id, span_id, flags) in rows:
                pointer = word_at(process.pid, address_in(process.pid, found, thread_pointer))
                words = [
                    word_at(process.pid, pointer + at).to_bytes(8, "little")
                    for at in (0, 8, 16, 24)
                ]
                record = b"".join(words)[:28]
                assert record == bytes.fromhex(trace_id + span_id) + bytes((1, flags, 0, 0))
        finally:
            process.kill()
