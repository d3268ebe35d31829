# SPDX-License-Identifier: Apache-2.0
"""The example gateway and the demo's load, on the loopback."""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "gateway"))

import gateway
import upstream_json
import upstream_stream
from demo import load, plan
from demo.processes import Process, running
from limits import Bucket, Plan, parse_plan

PLANS = [Plan(plan.KEY, 1_000_000, 1), Plan(plan.SMALL_KEY, plan.SMALL_LIMIT, 1_000_000)]
KEY = {"Authorization": f"Bearer {plan.KEY}"}


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """Serve on a free port of 127.0.0.1; gives the URL."""
    server = TestServer(app)
    await server.start_server()
    try:
        yield str(server.make_url("")).rstrip("/")
    finally:
        await server.close()


@asynccontextmanager
async def gateway_before(
    json_model: web.Application | str, stream_model: web.Application | str
) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """A gateway in front of these two; a model given as a URL is not served."""
    async with _url(json_model) as json_url, _url(stream_model) as stream_url:
        routes = {"/v1/embeddings": json_url, "/v1/chat/completions": stream_url}
        async with (
            serving(gateway.application(routes, PLANS, timeout_s=5)) as url,
            aiohttp.ClientSession() as session,
        ):
            yield session, url


@asynccontextmanager
async def _url(model: web.Application | str) -> AsyncIterator[str]:
    if isinstance(model, str):
        yield model
        return
    async with serving(model) as url:
        yield url


@asynccontextmanager
async def both_models() -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    models = upstream_json.application(), upstream_stream.application(chunk_ms=0)
    async with gateway_before(*models) as (session, url):
        yield session, url


@pytest.mark.parametrize("count", [1, 23, 230])
def test_the_load_gets_what_it_is_owed(count: int) -> None:
    async def run() -> load.Summary:
        async with both_models() as (_session, url):
            return await load.run({4: url, 6: url}, count, timeout_s=60)

    summary = asyncio.run(run())
    assert (summary.sent, summary.completed, summary.errors) == (count, count, ())
    assert summary.outcomes == summary.owed
    assert summary.connections == min(count, len(plan.LANES))
    assert len(summary.traceparents) == (count + 1) // 2 - (count == 23)
    assert load.Summary.from_json(json.dumps(summary.as_json())) == summary


def test_the_plan_for_230_requests() -> None:
    planned = plan.plan(230)
    assert plan.outcomes(planned) == {
        ("GET", "/healthz", 200): 40,
        ("POST", "/v1/chat/completions", 200): 50,
        ("POST", "/v1/chat/completions", 401): 10,
        ("POST", "/v1/embeddings", 200): 112,
        ("POST", "/v1/embeddings", 401): 10,
        ("POST", "/v1/embeddings", 429): 7,
        ("POST", "/v1/embeddings", 503): 1,
    }
    assert sum("X-Demo-Delay" in request.headers for request in planned) == 10
    assert plan.plan(230) == planned
    # Every lane has every kind of request that each round has.
    for lane in range(len(plan.LANES)):
        paths = {(r.method, r.path) for r in planned[lane :: len(plan.LANES)]}
        assert len(paths) == 3


@pytest.mark.parametrize("count", [0, -1, plan.MAX_REQUESTS + 1])
def test_there_is_no_plan_for(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 100000"):
        plan.plan(count)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", "", "100001", "١"])  # noqa: RUF001
def test_what_is_no_number_of_requests(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="1 to 100000"):
        load.requests_option(text)


def test_a_load_on_nothing_says_so() -> None:
    closed = {4: "http://127.0.0.1:1", 6: "http://127.0.0.1:1"}
    summary = asyncio.run(load.run(closed, 23, timeout_s=60))
    assert (summary.sent, summary.completed, summary.connections) == (23, 0, 0)
    assert summary.errors


def test_a_stream_is_passed_on_chunk_by_chunk() -> None:
    """The second chunk is only sent when the caller has the first."""

    async def run() -> list[bytes]:
        first_arrived = asyncio.Event()

        async def stream(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            response.enable_chunked_encoding()
            await response.prepare(request)
            await response.write(b"first")
            await first_arrived.wait()
            await response.write(b"second")
            return response

        app = web.Application()
        app.router.add_post("/v1/chat/completions", stream)
        async with (
            gateway_before("http://127.0.0.1:1", app) as (session, url),
            session.post(f"{url}/v1/chat/completions", headers=KEY) as response,
        ):
            chunks = [await asyncio.wait_for(response.content.readany(), 30)]
            first_arrived.set()
            chunks.append(await asyncio.wait_for(response.content.read(), 30))
        return chunks

    assert asyncio.run(run()) == [b"first", b"second"]


def test_a_stream_that_breaks_is_not_shown_as_whole() -> None:
    async def run() -> None:
        async def stream(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            response.enable_chunked_encoding()
            await response.prepare(request)
            await response.write(b"first")
            assert request.transport is not None
            request.transport.abort()
            return response

        app = web.Application()
        app.router.add_post("/v1/chat/completions", stream)
        async with (
            gateway_before("http://127.0.0.1:1", app) as (session, url),
            session.post(f"{url}/v1/chat/completions", headers=KEY) as response,
        ):
            await response.read()

    with pytest.raises(aiohttp.ClientError):
        asyncio.run(run())


def test_headers_reach_the_model_as_they_came_except_the_gateways_own() -> None:
    async def run() -> dict[str, str]:
        async def headers(request: web.Request) -> web.Response:
            return web.json_response(dict(request.headers))

        app = web.Application()
        app.router.add_post("/v1/embeddings", headers)
        traceparent = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "x=y"}
        async with gateway_before(app, "http://127.0.0.1:1") as (session, url):
            sent = {**KEY, **traceparent, "X-Demo-Delay": "1"}
            async with session.post(f"{url}/v1/embeddings", headers=sent) as response:
                found: dict[str, str] = await response.json()
                return found

    found = asyncio.run(run())
    assert found["traceparent"] == f"00-{'a' * 32}-{'b' * 16}-01"
    assert (found["tracestate"], found["X-Demo-Delay"]) == ("x=y", "1")
    assert "Authorization" not in found


@pytest.mark.impure
def test_under_opentelemetry_the_model_gets_the_sdks_traceparent_and_no_other(
    tmp_path: Path,
) -> None:
    """Started as the demo starts it; the model tells which headers came, each time they came."""
    trace_id, caller = "a" * 32, "b" * 16

    async def headers(request: web.Request) -> web.Response:
        return web.json_response(list(request.headers.items()))

    async def run(gateway_url: Callable[[str], str]) -> list[tuple[str, str]]:
        app = web.Application()
        app.router.add_post("/v1/embeddings", headers)
        async with serving(app) as model, aiohttp.ClientSession() as session:
            url = await asyncio.to_thread(gateway_url, model)
            sent = {**KEY, "traceparent": f"00-{trace_id}-{caller}-01", "tracestate": "x=y"}
            async with session.post(f"{url}/v1/embeddings", headers=sent) as response:
                return [(name.lower(), value) for name, value in await response.json()]

    with ExitStack() as stack:

        def gateway_url(model: str) -> str:
            instrument = Path(sys.executable).with_name("opentelemetry-instrument")
            command = [instrument, sys.executable, gateway.__file__, "--port", "0"]
            tracing = {
                "OTEL_PROPAGATORS": "tracecontext,baggage,otelbpf",
                **{f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")},
            }
            process = stack.enter_context(
                running("gateway", [*command, "--json-upstream", model], tmp_path, tracing)
            )
            process.wait_until(Process.printed_line, 60)
            return process.stdout.read_text().split()[-1]

        found = asyncio.run(run(gateway_url))
    (traceparent,) = (value for name, value in found if name == "traceparent")
    version, told_trace_id, parent, flags = traceparent.split("-")
    assert (version, told_trace_id, flags) == ("00", trace_id, "01")
    assert parent != caller
    assert [value for name, value in found if name == "tracestate"] == ["x=y"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("GET", "/healthz", {}, "", 200),
        ("POST", "/v1/embeddings", KEY, '{"input": "x"}', 200),
        ("POST", "/v1/embeddings", KEY, '{"input": ["x", "y"]}', 200),
        ("POST", "/v1/embeddings", KEY, '{"input": 7}', 400),
        ("POST", "/v1/embeddings", KEY, "[]", 400),
        ("POST", "/v1/embeddings", KEY, "no json", 400),
        ("POST", "/v1/embeddings", {}, '{"input": "x"}', 401),
        ("POST", "/v1/embeddings", {"Authorization": plan.KEY}, '{"input": "x"}', 401),
        ("POST", "/v1/embeddings", {"Authorization": "Bearer x"}, '{"input": "x"}', 401),
        ("GET", "/v1/embeddings", KEY, "", 405),
        ("GET", "/v1/nothing", KEY, "", 404),
        ("POST", "/v1/embeddings", {**KEY, "X-Demo-Fail": "503"}, '{"input": "x"}', 503),
        ("POST", "/v1/embeddings", {**KEY, "X-Demo-Fail": "200"}, '{"input": "x"}', 400),
        ("POST", "/v1/embeddings", {**KEY, "X-Demo-Delay": "-1"}, '{"input": "x"}', 400),
        ("POST", "/v1/embeddings", {**KEY, "X-Demo-Delay": "nan"}, '{"input": "x"}', 400),
        ("POST", "/v1/embeddings", {**KEY, "X-Demo-Delay": "1e9"}, '{"input": "x"}', 400),
        ("POST", "/v1/chat/completions", KEY, '{"messages": ["x"]}', 200),
        ("POST", "/v1/chat/completions", KEY, '{"messages": []}', 400),
        ("POST", "/v1/chat/completions", KEY, '{"messages": ["x"], "max_tokens": 0}', 400),
        ("POST", "/v1/chat/completions", KEY, "[]", 400),
        ("POST", "/v1/chat/completions", {**KEY, "X-Demo-Fail": "500"}, '{"messages": ["x"]}', 500),
    ],
)
def test_statuses(method: str, path: str, headers: dict[str, str], body: str, status: int) -> None:
    async def run() -> int:
        async with (
            both_models() as (session, url),
            session.request(method, url + path, headers=headers, data=body) as response,
        ):
            await response.read()
            return response.status

    assert asyncio.run(run()) == status


def test_a_model_that_is_away_is_a_bad_gateway() -> None:
    async def run() -> int:
        async with (
            gateway_before("http://127.0.0.1:1", "http://127.0.0.1:1") as (session, url),
            session.post(f"{url}/v1/embeddings", headers=KEY) as response,
        ):
            return response.status

    assert asyncio.run(run()) == 502


def test_the_limit_says_when_to_come_back() -> None:
    async def run() -> list[tuple[int, str | None]]:
        small = {"Authorization": f"Bearer {plan.SMALL_KEY}"}
        answers = []
        async with both_models() as (session, url):
            for _ in range(plan.SMALL_LIMIT + 2):
                async with session.get(f"{url}/v1/nothing", headers=small) as response:
                    answers.append((response.status, response.headers.get("Retry-After")))
        return answers

    answers = asyncio.run(run())
    assert answers[: plan.SMALL_LIMIT] == [(404, None)] * plan.SMALL_LIMIT
    assert {status for status, _ in answers[plan.SMALL_LIMIT :]} == {429}
    # A million seconds for three requests: the next is a third of that away.
    assert {int(wait or 0) for _, wait in answers[plan.SMALL_LIMIT :]} <= {333_333, 333_334}


def test_a_bucket_refills_with_time() -> None:
    now = 100.0
    bucket = Bucket(Plan("key", 2, 10), clock=lambda: now)
    assert [bucket.take(), bucket.take(), bucket.take()] == [0, 0, 5]
    now += 4
    assert bucket.take() == pytest.approx(1)
    now += 1
    assert [bucket.take(), bucket.take()] == [0, pytest.approx(5)]
    now += 1_000
    assert [bucket.take(), bucket.take(), bucket.take()] == [0, 0, 5]


def test_plans_are_read_from_the_command_line() -> None:
    assert parse_plan("alice=100/60") == Plan("alice", 100, 60)


@pytest.mark.parametrize(
    "text", ["", "alice", "alice=1", "=1/1", "a=0/1", "a=1/0", "a=1/inf", "a=1/nan", "a=b=1/1"]
)
def test_what_is_no_plan(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="KEY=REQUESTS/SECONDS"):
        parse_plan(text)
