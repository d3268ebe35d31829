# SPDX-License-Identifier: Apache-2.0
"""When the plugin wakes and when it sleeps; what it has in place then."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import wrapt
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Tracer
from opentelemetry.trace import Span, SpanKind
from plugin_lab import Kernel, Spans, ids, kernel, plugin, sleeping
from support.waiting import wait_until
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from otelbpf_plugin import OtelbpfInstrumentor, marker
from otelbpf_plugin.propagator import ARRIVAL_KEY
from otelbpf_plugin.switch import Patch, Switch
from otelbpf_plugin.watch import LINGER_S, QUIET_S, Watch, watch

__all__ = ["kernel", "plugin", "sleeping"]  # fixtures

START_SPAN, CALL = Tracer.start_span, ProxyHeadersMiddleware.__call__
MEASURED, OTHER = 8080, 8081


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in ("watch", "propagator"):
        monkeypatch.setattr(f"otelbpf_plugin.{module}.monotonic", made)
    return made


@pytest.fixture(autouse=True)
def all_is_as_it_was() -> Iterator[None]:
    yield
    Tracer.start_span = START_SPAN
    ProxyHeadersMiddleware.__call__ = CALL


def scope(port: int = MEASURED, client: Any = ("192.0.2.1", 40_000)) -> dict[str, Any]:
    return {"type": "http", "asgi": {}, "client": client, "server": ("192.0.2.2", port)}


def arrive(port: int = MEASURED) -> Context:
    return propagate.extract(scope(port))


def serve(made: Spans, port: int = MEASURED) -> bool:
    """A request; has its span the kernel's above it?"""
    made.tracer.start_span("GET /", arrive(port), SpanKind.SERVER).end()
    return bool(ids(made.ended[-1])[1])


def is_in_place() -> bool:
    changed = {Tracer.start_span is not START_SPAN, ProxyHeadersMiddleware.__call__ is not CALL}
    assert len(changed) == 1, "one is wrapped and the other one not"
    return changed.pop()


def test_asleep_one_request_a_second_asks(
    kernel: Kernel, sleeping: OtelbpfInstrumentor, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.measured = set()
    made = Spans()
    looked_at: list[object] = []
    monkeypatch.setattr("otelbpf_plugin.propagator.server_of", looked_at.append)
    for second in range(1, 5):
        for port in (MEASURED, OTHER) * 23:
            assert not serve(made, port)
        assert len(kernel.asked) == len(looked_at) == second
        clock.now += QUIET_S
    assert not kernel.told
    assert not is_in_place()


def test_the_next_request_after_the_one_that_asked_is_joined(
    kernel: Kernel, sleeping: OtelbpfInstrumentor, clock: Clock
) -> None:
    kernel.measured = set()
    made = Spans()
    assert not serve(made)
    kernel.measured = {MEASURED}
    clock.now += QUIET_S - 0.001
    assert not serve(made)
    assert not is_in_place()
    clock.now += 0.001
    assert not serve(made)
    assert is_in_place()
    for _ in range(23):
        assert serve(made)
    assert len(kernel.starts) == len(kernel.ends) == 23


def test_the_request_that_asked_is_joined_where_its_socket_tells(
    kernel: Kernel, sleeping: OtelbpfInstrumentor
) -> None:
    made = Spans()
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as server,
    ):
        kernel.measured = {server.getsockname()[1]}
        context = propagate.extract({"wsgi.version": (1, 0), "gunicorn.socket": server})
        made.tracer.start_span("GET /", context, SpanKind.SERVER).end()
    assert is_in_place()
    assert len(kernel.starts) == 1
    assert ids(made.ended[-1])[1]


def test_it_sleeps_when_nobody_has_been_measured_for_a_while(
    kernel: Kernel, plugin: OtelbpfInstrumentor, clock: Clock
) -> None:
    made = Spans()
    assert serve(made)
    clock.now += 10 * LINGER_S
    assert serve(made)
    kernel.measured = set()
    asleep_at = clock.now + LINGER_S
    while clock.now < asleep_at:
        assert not serve(made)
        assert is_in_place()
        clock.now += QUIET_S / 2
    assert len(kernel.starts) - 2 == LINGER_S / QUIET_S
    assert not serve(made)
    assert not is_in_place()
    kernel.told.clear()
    clock.now += QUIET_S
    assert not serve(made)
    assert not kernel.told
    kernel.measured = {MEASURED}
    clock.now += QUIET_S
    assert [serve(made) for _ in range(3)] == [False, True, True]


def test_an_agent_that_is_started_again_finds_it_awake(
    kernel: Kernel, plugin: OtelbpfInstrumentor, clock: Clock
) -> None:
    made = Spans()
    for _ in range(5):
        assert serve(made)
        kernel.measured = set()
        assert not serve(made)
        clock.now += LINGER_S - 0.1
        assert not serve(made)
        kernel.measured = {MEASURED}
        clock.now += QUIET_S
        assert is_in_place()


@pytest.mark.parametrize("known", [True, False], ids=["asked about before", "new"])
def test_of_two_servers_the_measured_one_is_joined(
    kernel: Kernel, sleeping: OtelbpfInstrumentor, clock: Clock, known: bool
) -> None:
    """The other one has nearly all requests, and so does nearly all the asking."""
    kernel.measured = set()
    made = Spans()
    if known:
        assert not serve(made, MEASURED)
        clock.now += QUIET_S
    assert not serve(made, OTHER)
    kernel.measured = {MEASURED}
    clock.now += QUIET_S
    for _ in range(23):
        assert not serve(made, OTHER)
    assert not serve(made, MEASURED)
    for _ in range(3 * int(LINGER_S)):
        for _ in range(5):
            assert not serve(made, OTHER)
        clock.now += QUIET_S
    # Not one of its requests was there to keep it awake.
    assert serve(made, MEASURED)
    assert {told.peer for told in kernel.told} == {("192.0.2.1", 40_000)}
    kernel.measured = set()
    for _ in range(int(LINGER_S) + 1):
        clock.now += QUIET_S
        assert not serve(made, OTHER)
    assert not is_in_place()


def test_a_server_that_is_measured_later_keeps_it_awake_too(
    kernel: Kernel, plugin: OtelbpfInstrumentor, clock: Clock
) -> None:
    """It never had to be asked about: its marks were answered."""
    made = Spans()
    assert serve(made, OTHER)
    assert serve(made, MEASURED)
    kernel.measured = {MEASURED}
    for _ in range(3 * int(LINGER_S)):
        clock.now += QUIET_S
        assert not serve(made, OTHER)
    assert serve(made, MEASURED)


def test_another_application_s_agent_does_not_wake_it(
    kernel: Kernel, sleeping: OtelbpfInstrumentor, clock: Clock
) -> None:
    kernel.measured = {1}
    made = Spans()
    for second in range(1, 4):
        for port in (MEASURED, OTHER) * 23:
            assert not serve(made, port)
        assert sorted(kernel.asked) == [MEASURED] * second + [OTHER] * second
        clock.now += QUIET_S
    assert not is_in_place()


def test_a_client_from_a_header_does_not_keep_it_asleep(
    kernel: Kernel, sleeping: OtelbpfInstrumentor
) -> None:
    """Asleep, the peer that uvicorn knew is not kept, and so no connection is known."""
    assert ARRIVAL_KEY not in propagate.extract(scope(client=("203.0.113.7", 0)))
    assert is_in_place()


def test_a_wsgi_server_s_own_socket_says_its_port(
    kernel: Kernel, sleeping: OtelbpfInstrumentor
) -> None:
    """Not the environ: that may be what a proxy's header says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        propagate.extract(
            {"wsgi.version": (1, 0), "SERVER_PORT": "443", "gunicorn.socket": listener}
        )
        assert kernel.asked == [listener.getsockname()[1]]
    assert is_in_place()


@pytest.mark.parametrize("carrier", [
    {}, {"traceparent": "00-1-2-01"},
    pytest.param({"wsgi.version": (1, 0), "wsgi.input": io.BytesIO()}, id="wsgi"),
    {"type": "http", "asgi": {}, "server": ("/run/app.sock", None)},
    {"type": "http", "asgi": {}, "server": None}, {"type": "lifespan", "asgi": {}},
], ids=str)  # fmt: skip
def test_what_came_on_no_port_asks_but_once_a_second(
    kernel: Kernel, sleeping: OtelbpfInstrumentor, clock: Clock, carrier: Any
) -> None:
    kernel.measured = set()
    propagate.extract(carrier)
    assert not kernel.asked
    assert watch.nobody_until == clock.now + QUIET_S
    clock.now += QUIET_S
    kernel.measured = {MEASURED}
    propagate.extract(carrier)
    assert not is_in_place()
    arrive()
    assert is_in_place()


def test_a_client_that_has_gone_says_nothing_of_the_server(
    kernel: Kernel, plugin: OtelbpfInstrumentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel answers its mark as one of a port that nobody measures."""
    made = Spans()
    with monkeypatch.context() as patching:
        patching.setattr(
            marker, "tell",
            lambda fd, option, mark: kernel.tell(fd, option, mark)
            if option == marker.ASK else marker.NOT_MEASURED[0],
        )  # fmt: skip
        assert not serve(made)
    assert kernel.asked == [MEASURED]
    assert serve(made)


@pytest.mark.parametrize("answer", marker.NOT_MEASURED)
def test_awake_a_server_that_is_not_measured_is_left_alone_for_a_while(
    kernel: Kernel, plugin: OtelbpfInstrumentor, clock: Clock, answer: int
) -> None:
    kernel.answer, kernel.measured = answer, {1}
    made = Spans()
    for _ in range(23):
        serve(made)
    assert len(kernel.starts) == 1
    assert not watch.is_quiet(("192.0.2.2", OTHER))
    clock.now += QUIET_S
    serve(made)
    assert len(kernel.starts) == 2


def test_what_clients_say_does_not_fill_the_memory(
    kernel: Kernel, plugin: OtelbpfInstrumentor
) -> None:
    """A server's port is a header's, where a middleware believes in those."""
    for measured in ({1}, None):
        kernel.measured = measured
        for number in range(1000):
            watch.ask(number, number % 9 + 2)
    assert max(len(watch._quiet_until), len(watch._ports)) <= 256


def test_a_request_in_flight_ends_as_it_began(
    kernel: Kernel, plugin: OtelbpfInstrumentor, clock: Clock
) -> None:
    made = Spans()
    joined = made.tracer.start_span("GET /1", arrive(), SpanKind.SERVER)
    between = arrive()
    kernel.measured = set()
    for _ in range(int(LINGER_S) + 1):
        clock.now += QUIET_S
        arrive_and_mark = made.tracer.start_span("GET /2", arrive(), SpanKind.SERVER)
        arrive_and_mark.end()
    assert not is_in_place()
    made.clear()
    made.tracer.start_span("GET /3", between, SpanKind.SERVER).end()
    joined.end()
    assert [span.name for span in made.ended] == ["GET /3", "GET /1"]
    assert [bool(span.parent) for span in made.ended] == [False, True]
    assert [told.mark for told in kernel.ends] == [kernel.starts[0].mark]


def sleep(kernel: Kernel, made: Spans, clock: Clock) -> None:
    kernel.measured = set()
    for _ in range(int(LINGER_S) + 2):
        clock.now += QUIET_S
        serve(made)
    assert not watch.is_awake


def wake(kernel: Kernel, made: Spans, clock: Clock) -> None:
    kernel.measured = None
    clock.now += QUIET_S
    assert not serve(made)
    assert watch.is_awake


def counting(seen: list[str]) -> Any:
    """Another instrumentor's wrapper, made as those are made."""

    def wrapper(wrapped: Any, instance: Any, arguments: Any, keywords: Any) -> Span:
        assert isinstance(instance, Tracer)
        seen.append(arguments[0])
        return wrapped(*arguments, **keywords)

    return wrapper


def test_a_wrapper_below_ours_stays(
    kernel: Kernel, sleeping: OtelbpfInstrumentor, clock: Clock
) -> None:
    seen: list[str] = []
    wrapt.wrap_function_wrapper(Tracer, "start_span", counting(seen))
    theirs = vars(Tracer)["start_span"]
    made = Spans()
    for _ in range(3):
        wake(kernel, made, clock)
        assert vars(Tracer)["start_span"] is not theirs
        assert serve(made)
        sleep(kernel, made, clock)
        assert vars(Tracer)["start_span"] is theirs
    assert len(seen) == len(made.ended)


def test_a_wrapper_around_ours_stays(
    kernel: Kernel, plugin: OtelbpfInstrumentor, clock: Clock
) -> None:
    """Ours stays too, inside, and does nothing; awake again, a request is marked once."""
    seen: list[str] = []
    ours = vars(Tracer)["start_span"]
    wrapt.wrap_function_wrapper(Tracer, "start_span", counting(seen))
    theirs = vars(Tracer)["start_span"]
    made = Spans()
    for _ in range(3):
        assert serve(made)
        sleep(kernel, made, clock)
        assert vars(Tracer)["start_span"] is theirs
        told = len(kernel.told)
        assert not serve(made)
        assert len(kernel.told) == told
        wake(kernel, made, clock)
        assert serve(made)
        assert len(kernel.told) == told + 2
    assert len(seen) == len(made.ended)
    sleep(kernel, made, clock)
    # They take theirs out; ours is what they had found, and goes with the next sleep.
    Tracer.start_span = ours
    wake(kernel, made, clock)
    assert serve(made)
    plugin.uninstrument()


@pytest.mark.parametrize("kept", [False, True], ids=["before it slept", "while it slept"])
def test_ours_is_put_back_when_nothing_is_around_it_any_more(kept: bool) -> None:
    class Owner:
        def method(self) -> str:
            return "theirs"

    original = Owner.method
    patch = Patch(Owner, "method", lambda before: lambda self: f"ours {before(self)}")
    patch.put()
    ours = Owner.method
    Owner.method = lambda self: f"around {ours(self)}"  # type: ignore[method-assign]
    if kept:
        patch.take_back()
        assert Owner().method() == "around ours theirs"
    Owner.method = ours  # type: ignore[method-assign]
    if kept:
        patch.put()
    assert Owner().method() == "ours theirs"
    patch.take_back()
    assert Owner.method is original


@pytest.mark.parametrize("awake", [False, True], ids=["asleep", "awake"])
def test_taken_out_it_stays_out(kernel: Kernel, sleeping: OtelbpfInstrumentor, awake: bool) -> None:
    switch = watch._switch
    assert switch is not None
    if awake:
        arrive()
        assert is_in_place()
    sleeping.uninstrument()
    assert not is_in_place()
    # As threads would that were asking meanwhile.
    switch.on()
    switch.add(Patch(Tracer, "start_span", lambda before: None))
    watch.nobody_until = 0.0
    arrive()
    assert not is_in_place()
    assert not watch.is_awake
    assert len(kernel.asked) == awake
    sleeping.instrument()
    arrive()
    assert is_in_place()


def test_what_is_imported_while_it_is_awake_is_wrapped_at_once() -> None:
    class Owner:
        def method(self) -> str:
            return "theirs"

    switch = Switch()
    switch.on()
    switch.add(Patch(Owner, "method", lambda before: lambda self: f"ours {before(self)}"))
    assert Owner().method() == "ours theirs"
    switch.off()
    assert Owner().method() == "theirs"


class Two:
    """Two methods, of which wrapping the second one takes as long as a test wants."""

    def __init__(self) -> None:
        class Owner:
            def first(self) -> None: ...

            def second(self) -> None: ...

        self._owner = Owner
        self._originals = (Owner.first, Owner.second)
        self.started, self.go_on = threading.Event(), threading.Event()
        self.wraps = 0
        self.switch = Switch()
        self.switch.add(Patch(Owner, "first", lambda _: lambda self: None))
        self.switch.add(Patch(Owner, "second", self._slowly))

    def _slowly(self, _: object) -> Any:
        self.wraps += 1
        self.started.set()
        assert self.go_on.wait(30)
        return lambda self: None

    @property
    def in_place(self) -> list[bool]:
        now = (self._owner.first, self._owner.second)
        return [mine is not its for mine, its in zip(now, self._originals, strict=True)]


@pytest.mark.parametrize("then", ["on", "off", "close"])
def test_a_thread_that_comes_while_another_one_wakes_it_waits(then: str) -> None:
    two = Two()
    waking = threading.Thread(target=two.switch.on)
    waking.start()
    assert two.started.wait(30)
    other = threading.Thread(target=getattr(two.switch, then))
    other.start()
    other.join(0.1)
    assert other.is_alive()
    two.go_on.set()
    waking.join()
    other.join()
    assert two.switch.is_on == (then == "on")
    assert two.in_place == [then == "on"] * 2
    assert two.wraps == 1


FORK = """
import os, signal
from otelbpf_plugin.switch import Switch
switch = Switch()
switch._lock.acquire()  # as another thread may have it
pid = os.fork()
if pid == 0:
    signal.alarm(10)
    switch.on()
    os._exit(0 if switch.is_on else 1)
print(os.waitpid(pid, 0)[1])
"""


def test_a_process_forked_meanwhile_does_not_wait() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n", done.stderr


def test_threads_that_ask_at_a_time_find_ours_in_place_once_or_not_at_all(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Owner:
        def method(self) -> int:
            return 0

    original = Owner.method
    monkeypatch.setattr("otelbpf_plugin.watch.QUIET_S", 0.0)
    monkeypatch.setattr("otelbpf_plugin.watch.LINGER_S", 0.0)
    switch, seen = Switch(), Watch()
    switch.add(Patch(Owner, "method", lambda before: lambda self: before(self) + 1))
    seen.begin(switch)
    depths: set[int] = set()
    stop = threading.Event()

    def run(number: int) -> None:
        port = number + 1
        while not stop.is_set():
            seen.ask(port, port)
            depths.add(Owner().method())

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for on in (True, False) * 50:
        kernel.measured = None if on else set()
        wait_until(lambda on=on: switch.is_on is on, f"the switch is {on}")
    seen.end()
    stop.set()
    for thread in threads:
        thread.join()
    assert depths == {0, 1}
    assert Owner.method is original
