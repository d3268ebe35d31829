# SPDX-License-Identifier: Apache-2.0
"""Real requests, recorded by the agent, looked at in a real browser."""

from __future__ import annotations

import itertools
import json
import socket
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser import NARROW, WIDE, Opened, browser, opened
from client import Client
from collectors import spans_of_json_lines
from demo.ledgers import quantile
from demo.otlp import Kind, Span
from playwright.sync_api import Browser, Locator, expect
from servers import python_server
from stack import COUNT, agent, otelbpf
from support.namespaces import Network

pytestmark = pytest.mark.heavy

PORT, BEHIND = 8080, 9090
#: No space, as it is a request's target; and what ends scripts, comments and attributes.
NASTY_PATH = "/</script><script>owned=1</script><img/src=x:/onerror=owned=1>'\"&lt;<!--"
NASTY_AGENT = '"><svg/onload=owned=1>\u2028</script><!--&amp;'
MISSING = 3


@dataclass(frozen=True)
class Recorded:
    """A recording of 28 requests to a gateway, and of the 27 that it sent on; and its page."""

    page: Path
    without_sums: Path
    spans: list[Span]
    sums: dict[str, Any]

    @property
    def requests(self) -> dict[str, Span]:
        return {
            span.span_id: span for span in self.spans if span.kind in (Kind.SERVER, Kind.CLIENT)
        }

    def of_route(self, kind: Kind, path: str) -> list[Span]:
        """Requests to a path, or below it."""

        def path_of(span: Span) -> str:
            url = str(span.attributes.get("url.full", ""))
            return str(span.attributes.get("url.path") or "/" + url.split("/", 3)[-1])

        return [
            span
            for span in self.requests.values()
            if span.kind is kind and path_of(span).startswith(path)
        ]

    def stages(self, request: Span) -> dict[str, int]:
        """Its stages' durations, in order; in both styles."""
        prefix = "otelbpf.stage."
        told = {
            name.removeprefix(prefix): value
            for name, value in request.attributes.items()
            if name.startswith(prefix)
        }
        told = told or {
            span.name: span.end_unix_ns - span.start_unix_ns
            for span in self.spans
            if span.parent_span_id == request.span_id and span.kind is Kind.INTERNAL
        }
        # Neither attributes nor spans have an order: each stage begins with the stamp that the one
        # before it ends with.
        after = {name.partition("_to_")[0]: name for name in told}
        stamp = (after.keys() - {name.partition("_to_")[2] for name in told}).pop()
        ordered = {}
        while stamp in after:
            ordered[after[stamp]] = told[after[stamp]]
            stamp = after[stamp].partition("_to_")[2]
        return ordered


def ask_nastily(net: Network) -> None:
    """What no client library sends."""
    with net.client.connect(net.server.ipv4, PORT) as sock:
        head = (
            f"GET {NASTY_PATH} HTTP/1.1\r\nHost: x\r\nUser-Agent: {NASTY_AGENT}\r\n"
            "Connection: close\r\n\r\n"
        )
        sock.sendall(head.encode())
        answer = b""
        while piece := sock.recv(1 << 16):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200"), answer


@pytest.fixture(scope="module", params=["spans", "attributes"])
def recorded(
    net: Network, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Recorded:
    directory = tmp_path_factory.mktemp("recorded")
    output = directory / "spans.jsonl"
    with (
        python_server(net, directory, "threading_server", BEHIND),
        python_server(net, directory, "threading_gateway", PORT, str(BEHIND)),
        agent(
            directory, "--netns", net.server.netns, "--interface", net.server.interface,
            "--interface", "lo", "--port", PORT, "--upstream", f"127.0.0.1:{BEHIND}",
            "--stages", request.param, "--output", output,
            environment={"OTEL_TRACES_EXPORTER": "otlp_json_file"},
        ) as running,
    ):  # fmt: skip
        running.wait_ready()
        with Client.of(net, PORT) as client:
            for number in range(COUNT):
                client.ask(f"/items/{number}")
            for _ in range(MISSING):
                client.ask("/missing")
        with Client.of(net, PORT) as client:
            assert client.ask("/items/1", "PATCH").status == 501
        ask_nastily(net)
        ended = running.stop()
    seen = 2 * (COUNT + MISSING + 1) + 1
    ended.assert_clean(seen=seen)
    assert ended.sums is not None
    (sums := directory / "sums.json").write_text(json.dumps(ended.sums))
    pages = directory / "page.html", directory / "without-sums.html"
    for page, options in zip(pages, (("--sums", sums), ()), strict=True):
        made = otelbpf(directory, "report", page, "--spans", output, *options)
        assert (made.code, made.stdout, made.stderr) == (0, "", "")
    return Recorded(*pages, spans_of_json_lines(output.read_text()), ended.sums)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as running:
        yield running


@pytest.fixture
def shown(recorded: Recorded, chromium: Browser) -> Iterator[Opened]:
    """The page; in the end it has asked for nothing but itself, and complained of nothing."""
    with opened(chromium, recorded.page) as made:
        yield made
        assert {url.partition("#")[0] for url in made.requests} == {recorded.page.as_uri()}
        assert made.complaints == []


def plain(text: str | None) -> str:
    return (text or "").replace("\u00a0", " ").strip()


def cells(row: Locator) -> list[str]:
    return [plain(cell.text_content()) for cell in row.locator("th, td").all()]


def exact(row: Locator) -> list[int]:
    """The durations of a row's figures, to the nanosecond."""
    titles = [cell.get_attribute("title") for cell in row.locator("td.num[title]").all()]
    return [int(title.removesuffix("\u00a0ns").replace(",", "")) for title in titles if title]


def figures(durations: list[int]) -> list[int]:
    return [quantile(durations, percent) for percent in (50, 90, 99)]


def open_route(shown: Opened, name: str, kind: Kind = Kind.SERVER) -> None:
    rows = shown.page.locator(
        "#routes tbody tr", has=shown.page.get_by_role("link", name=name, exact=True)
    )
    row = rows.filter(has_not_text="upstream") if kind is Kind.SERVER else rows
    row.get_by_role("link").click()
    expect(shown.page.locator("#route-title")).to_be_focused()


def total_ns(span: Span) -> int:
    return span.end_unix_ns - span.start_unix_ns


def ack_ns(span: Span) -> int:
    """From its end until its client acknowledged it; 0: a client's own have none."""
    told = span.attributes.get("otelbpf.tcp.ack.duration_ns", 0)
    assert isinstance(told, int)
    return told


def test_the_routes_are_those_that_were_asked(recorded: Recorded, shown: Opened) -> None:
    rows = {cells(row)[0]: row for row in shown.page.locator("#routes tbody tr").all()}
    upstream = "to an upstream"
    assert rows.keys() == {
        "GET /items/{id}", "GET /missing", "PATCH /items/{id}", f"GET {NASTY_PATH}",
        *(f"GET 127.0.0.1:{BEHIND}{path}{upstream}"
          for path in ("/items/{id}", "/missing", NASTY_PATH)),
    }  # fmt: skip
    for name, kind, path, errors in (
        ("GET /items/{id}", Kind.SERVER, "/items", "0"),
        (f"GET 127.0.0.1:{BEHIND}/items/{{id}}{upstream}", Kind.CLIENT, "/items", "0"),
        (f"GET 127.0.0.1:{BEHIND}/missing{upstream}", Kind.CLIENT, "/missing", "3 (100%)"),
    ):
        spans = [
            span
            for span in recorded.of_route(kind, path)
            if span.attributes["http.request.method"] == "GET"
        ]
        assert len(spans) == (COUNT if path == "/items" else MISSING)
        assert exact(rows[name]) == figures([total_ns(span) for span in spans])
        told = cells(rows[name])
        assert (told[2], told[4]) == (str(len(spans)), errors)
    p99 = [exact(row)[2] for row in shown.page.locator("#routes tbody tr").all()]
    assert p99 == sorted(p99, reverse=True)
    assert cells(rows["PATCH /items/{id}"])[4] == "1 (100%)"


def test_a_routes_stages(recorded: Recorded, shown: Opened) -> None:
    for kind, name in (
        (Kind.SERVER, "GET /items/{id}"),
        (Kind.CLIENT, f"GET 127.0.0.1:{BEHIND}/items/{{id}}"),
    ):
        open_route(shown, name, kind)
        durations: dict[str, list[int]] = defaultdict(list)
        acked = []
        for span in recorded.of_route(kind, "/items"):
            if span.attributes["http.request.method"] == "GET":
                durations["whole"].append(total_ns(span))
                acked.append(ack_ns(span))
                for stage, ns in recorded.stages(span).items():
                    durations[stage].append(ns)
        rows = shown.page.locator("#route .distributions tbody tr").all()
        told = {row.get_attribute("data-stage"): row for row in rows}
        # What comes after the end of a server's requests is the last, and no stage.
        if kind is Kind.SERVER:
            after = told.pop(None)
            assert rows[-1].get_attribute("data-after") == "acked"
            assert exact(after) == figures(acked)
            assert cells(after)[-2:] == ["\u2013", str(len(acked))]
        assert told.keys() == durations.keys()
        for stage, row in told.items():
            assert exact(row) == figures(durations[str(stage)]), stage
            assert cells(row)[-1] == str(len(durations[str(stage)]))
        # Along the way: what a server does first a client does last. A client that reads its
        # response in pieces is at work in between: its application's turn is the first.
        first = "nic_to_tc" if kind is Kind.SERVER else "write_to_tc_out"
        assert [stage for stage in told if stage != "read_to_read_last"][:2] == ["whole", first]


def test_a_requests_ledger(recorded: Recorded, shown: Opened) -> None:
    open_route(shown, "GET /items/{id}")
    page = shown.page
    rows = page.locator("#route table.cards").first.locator("tbody tr")
    assert rows.count() == 20
    slowest = sorted(
        (
            span
            for span in recorded.of_route(Kind.SERVER, "/items")
            if span.attributes["http.request.method"] == "GET"
        ),
        key=total_ns,
    )[-1]
    assert rows.first.get_attribute("data-request") == slowest.span_id
    rows.first.get_by_role("link").click()
    expect(page.locator("#request-title")).to_be_focused()

    ledger = {
        row.get_attribute("data-stamp"): cells(row)[1]
        for row in page.locator("#request .ledger tbody tr").all()
    }
    present = {stamp: int(at.replace(",", "")) for stamp, at in ledger.items() if at != "absent"}
    assert list(ledger)[-1] == "acked"
    assert present.pop("acked") == total_ns(slowest) + ack_ns(slowest)
    assert [stamp for stamp in ledger if ledger[stamp] == "absent"] == (
        slowest.attributes["otelbpf.ledger.absent"]
    )
    stamps = list(present)
    assert {
        f"{first}_to_{second}": present[second] - present[first]
        for first, second in itertools.pairwise(stamps)
    } == recorded.stages(slowest)
    assert (present[stamps[0]], present[stamps[-1]]) == (0, total_ns(slowest))

    attributes = {
        row.get_attribute("data-attribute"): cells(row)[1]
        for row in page.locator("#request .facts-table tbody tr").all()
    }
    for name in ("url.path", "http.request.method", "user_agent.original", "network.peer.address"):
        assert attributes[name] == slowest.attributes[name]
    for name in ("network.peer.port", "thread.id", "http.response.size"):
        assert attributes[name] == str(slowest.attributes[name])
    assert attributes["service.name"] == slowest.resource["service.name"]
    assert "otelbpf.ledger.complete" in attributes

    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the trace id").click()
    expect(page.get_by_role("status")).to_have_text("trace id copied")
    assert page.evaluate("navigator.clipboard.readText()") == slowest.trace_id
    assert "the request starts its trace" in plain(page.locator(".ids").text_content())


def test_what_it_asked_of_others_is_below(recorded: Recorded, shown: Opened) -> None:
    open_route(shown, "GET /items/{id}")
    page = shown.page
    link = page.locator("#route table.cards").first.locator("tbody tr").nth(4)
    asked = recorded.requests[link.get_attribute("data-request") or ""]
    (call,) = [span for span in recorded.requests.values() if span.parent_span_id == asked.span_id]
    link.get_by_role("link").click()
    # Else the request that an earlier test looked at may still be shown.
    expect(page.locator("[data-id='span id'] .mono")).to_have_text(asked.span_id)
    waterfall = page.locator("#request .waterfall")
    below = waterfall.locator(f"[data-below='{call.span_id}']")
    assert exact(below) == [total_ns(call)]
    rows = waterfall.locator("tbody tr[data-stage]").all()
    names = [row.get_attribute("data-stage") for row in rows]
    mine, its = recorded.stages(asked), recorded.stages(call)
    assert names[: len(mine)] == list(mine)
    assert names[len(mine) :] == list(its)
    assert names[len(mine)] == "write_to_tc_out"

    acked = waterfall.locator("tbody tr[data-after='acked']")
    assert exact(acked) == [ack_ns(asked)]

    # It lies where it was: to a pixel of the drawing.
    track, bar = below.locator(".track").bounding_box(), below.locator(".tiled").bounding_box()
    assert track and bar
    scale = track["width"] / (total_ns(asked) + ack_ns(asked))
    assert abs(bar["x"] - track["x"] - (call.start_unix_ns - asked.start_unix_ns) * scale) < 1.5
    assert abs(bar["width"] - total_ns(call) * scale) < 2.5

    toggle = below.get_by_role("button", name="stages")
    expect(toggle).to_have_attribute("aria-expanded", "true")
    toggle.click()
    expect(toggle).to_have_attribute("aria-expanded", "false")
    expect(waterfall.locator("tbody tr[data-stage]:visible")).to_have_count(len(mine))

    below.get_by_role("link").click()
    expect(page.locator("[data-id='span id'] .mono")).to_have_text(call.span_id)
    page.locator("[data-id='parent id']").get_by_role("link").click()
    expect(page.locator("[data-id='span id'] .mono")).to_have_text(asked.span_id)
    page.go_back()
    expect(page.locator("[data-id='span id'] .mono")).to_have_text(call.span_id)


def test_the_losses(recorded: Recorded, shown: Opened, chromium: Browser) -> None:
    seen = recorded.sums["seen"]
    assert seen == len(recorded.requests) == 55
    equation = plain(shown.page.locator("#equation").text_content())
    assert equation == f"seen {seen}=exported {seen}+sampled out 0+lost 0"
    assert "read here" not in plain(shown.page.locator("#losses").text_content())
    with opened(chromium, recorded.without_sums) as other:
        assert "The sums were not given" in plain(other.page.locator("#losses").text_content())
        assert other.complaints == []


def test_what_clients_wrote_is_only_text(recorded: Recorded, shown: Opened) -> None:
    page = shown.page
    (nasty,) = [span for span in recorded.of_route(Kind.SERVER, "/<")]
    assert nasty.attributes["url.path"] == NASTY_PATH
    assert nasty.attributes["user_agent.original"] == NASTY_AGENT
    open_route(shown, f"GET {NASTY_PATH}")
    assert page.locator("#route-title").inner_text().startswith(f"GET {NASTY_PATH}")
    page.locator(f"[data-request='{nasty.span_id}'] a").click()
    agent_row = page.locator("[data-attribute='user_agent.original'] td")
    assert agent_row.text_content() == NASTY_AGENT
    assert page.evaluate("typeof owned") == "undefined"
    # Text and drawings of its own, and of nobody else.
    assert page.locator("script").count() == 2
    assert page.locator("img, iframe, object, embed").count() == 0
    assert page.locator("[onload], [onerror], svg:not(.strip):not(.legend svg)").count() == 0


def test_what_got_in_nevertheless_could_do_nothing(recorded: Recorded, chromium: Browser) -> None:
    """The policy alone: no script but its own runs, and nothing is fetched or sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with opened(chromium, recorded.page) as made:
            refused = made.page.evaluate(
                """async (url) => {
                    const refused = [];
                    const enough = new Promise((done) => {
                        addEventListener('securitypolicyviolation', (event) => {
                            refused.push(event.effectiveDirective);
                            if (refused.length === 5) done();
                        });
                    });
                    const script = document.createElement('script');
                    script.textContent = 'window.owned = 1';
                    const image = document.createElement('img');
                    image.src = url;
                    const button = document.createElement('button');
                    button.setAttribute('onclick', 'window.owned = 1');
                    const link = document.createElement('link');
                    Object.assign(link, {rel: 'stylesheet', href: url});
                    document.body.append(script, image, button, link);
                    button.click();
                    const signal = AbortSignal.timeout(5000);
                    await fetch(url, {signal}).catch(() => null);
                    // Only where the policy is broken does it come to the time.
                    await Promise.race([enough, new Promise((done) => setTimeout(done, 5000))]);
                    return refused.sort();
                }""",
                url,
            )
            assert refused == [
                "connect-src",
                "img-src",
                "script-src-attr",
                "script-src-elem",
                "style-src-elem",
            ]
            assert made.page.evaluate("typeof owned") == "undefined"
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_by_keyboard(recorded: Recorded, shown: Opened) -> None:
    page = shown.page
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#routes")).to_be_focused()
    # Through the columns' buttons to the first route, whose requests follow its heading.
    for _ in range(8):
        page.keyboard.press("Tab")
    expect(page.locator("#routes tbody a").first).to_be_focused()
    page.keyboard.press("Tab")
    second = page.locator("#routes tbody tr").nth(1)
    expect(second.get_by_role("link")).to_be_focused()
    name = second.get_by_role("link").text_content() or ""
    page.keyboard.press("Enter")
    expect(page.locator("#route-title")).to_be_focused()
    expect(page.locator("#route-title")).to_contain_text(name)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#request-title")).to_be_focused()
    assert recorded.requests[page.url.rpartition("-")[2]]


def test_routes_in_another_order(shown: Opened) -> None:
    page = shown.page
    down, up = "descending", "ascending"
    for key, column, directions in (
        ("count", 2, (down, up)),
        ("p99", 7, (down, up, down)),
        ("route", 0, (up, down)),
    ):
        button = page.locator(f"#routes [data-key='{key}']")
        for direction in directions:
            button.click()
            expect(page.locator("#routes th[aria-sort]")).to_have_count(1)
            expect(button.locator("..")).to_have_attribute("aria-sort", direction)
            expect(button).to_be_focused()
            rows = page.locator("#routes tbody tr").all()
            if key == "route":
                values: list[Any] = [row.get_by_role("link").text_content() for row in rows]
            else:
                values = [
                    exact(row)[2] if key == "p99" else int(cells(row)[column]) for row in rows
                ]
            assert values == sorted(values, reverse=direction == down), (key, direction)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_it_fits_light_and_dark(
    recorded: Recorded, chromium: Browser, size: tuple[int, int], dark: bool
) -> None:
    with opened(chromium, recorded.page, size, dark=dark) as made:
        page = made.page
        open_route(made, "GET /items/{id}")
        page.locator("#route table.cards a").first.click()
        expect(page.locator("#request-title")).to_be_in_viewport()
        assert page.evaluate("document.documentElement.scrollWidth") == size[0]
        colours = page.evaluate(
            "['backgroundColor', 'color'].map((name) => getComputedStyle(document.body)[name])"
        )
        sums = [sum(int(part) for part in colour[4:-1].split(",")) for colour in colours]
        assert (sums[0] < sums[1]) is dark, colours
        # Figures are there at each size, and none is cut off.
        for cell in page.locator("#route .distributions tbody tr").first.locator("td.num").all():
            box = cell.bounding_box()
            assert box and box["x"] >= 0 and box["x"] + box["width"] <= size[0]
        assert made.complaints == []
