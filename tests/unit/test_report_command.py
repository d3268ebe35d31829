# SPDX-License-Identifier: Apache-2.0
"""`otelbpf report`: one page that is whole and safe, or one sentence and nothing written."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from recorded import export, request, write

from otelbpf.cli import commands as cli
from otelbpf.report import page

SUMS = {"seen": 23, "exported": 20, "sampled_out": 2, "lost": {"parser": 1}, "in_flight": 0,
        "connections": {"opened": 1}, "missed": {}, "joins": {}}  # fmt: skip
#: What may end a script element, open a comment in it, or end a line of JavaScript.
NASTY = "</script><script>alert(1)</script><!--<script>&lt;\u2028\u2029\"'\\{{data}}\ud800\0"


class Page(HTMLParser):
    """The elements of a page, and the text inside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[-1] += data

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [
            (attributes, text)
            for (name, attributes), text in zip(self.elements, self.texts, strict=True)
            if name == tag
        ]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["otelbpf", "report", *map(str, arguments)])
    return cli.main()


@pytest.fixture
def spans(tmp_path: Path) -> Path:
    return write(tmp_path / "spans.jsonl", export(request(1), request(2, path=f"/{NASTY}")))


def test_the_data_is_in_the_page_whatever_clients_wrote(
    spans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sums").write_text(json.dumps(SUMS))
    out = tmp_path / "page.html"
    assert call(monkeypatch, out, "--spans", spans, "--sums", tmp_path / "sums") == 0
    assert capsys.readouterr() == ("", "")
    text = out.read_bytes().decode("ascii")
    (data, told), (code, script) = Page(text).of("script")
    assert (data, code) == ({"id": "data", "type": "application/json"}, {})
    assert script.lstrip().startswith("// SPDX-License-Identifier: Apache-2.0")
    held = json.loads(told)
    assert held["requests_read"] == 2
    assert {each["path"] for each in held["requests"]} == {"/items/7", f"/{NASTY}"}
    assert {name: held["sums"][name] for name in SUMS} == SUMS
    assert not set("<>&\u2028\u2029") & set(told)


def test_only_its_own_script_and_style_may_run_and_nothing_be_fetched(spans: Path) -> None:
    made = Page(page.make([spans], None))

    def hash_of(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    (_, style), (_, script) = made.of("style")[0], made.of("script")[1]
    (policy,) = [
        attributes["content"]
        for attributes, _ in made.of("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == (
        f"default-src 'none'; style-src {hash_of(style)}; script-src {hash_of(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    tags = {name for name, _ in made.elements}
    assert tags.isdisjoint({"link", "img", "iframe", "object", "embed", "base", "form", "source"})
    for _, attributes in made.elements:
        assert attributes.keys().isdisjoint({"src", "style", "onclick", "onload"})
        assert (attributes.get("href") or "#").startswith("#")
    for text in (style, script):
        assert not re.search(r"url\(|@import|fetch\(|XMLHttp|WebSocket|innerHTML|eval\(", text)
        assert set(re.findall(r"https?://[^'\"\s]*", text)) <= {"http://www.w3.org/2000/svg"}


def test_the_pages_parts_state_their_licence_and_are_short() -> None:
    parts = list((files("otelbpf.report") / "assets").iterdir())
    assert len(parts) == 8
    for part in parts:
        lines = part.read_text(encoding="ascii").splitlines()
        assert "SPDX-License-Identifier: Apache-2.0" in "\n".join(lines[:2]), part
        assert len(lines) <= 400, part


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> str:
    """What it says when it refuses."""
    assert call(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("otelbpf: ")
    assert err.count("\n") == 1
    return err


def test_what_is_refused_leaves_the_page_as_it_was(
    spans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bad = tmp_path / "page.html", tmp_path / "bad"
    bad.write_bytes(b"\x00\xff")
    for arguments, said in (
        ((), "the following arguments are required: FILE.html, --spans"),
        ((out,), "the following arguments are required: --spans"),
        ((out, "--spans"), "argument --spans: expected one argument"),
        ((tmp_path, "--spans", spans), "argument FILE.html: "),
        ((tmp_path / "no" / "page", "--spans", spans), "its directory does not exist"),
        ((tmp_path / ("x" * 300), "--spans", spans), "cannot be written: File name too long"),
        (("/dev/null", "--spans", spans), "it is no ordinary file"),
        ((out, "--spans", bad), f"line 1 of {bad} is no JSON"),
        ((out, "--spans", spans, "--spans", bad), f"line 1 of {bad} is no JSON"),
        ((out, "--spans", tmp_path), "no ordinary file"),
        ((out, "--spans", spans, "--sums", spans), f"{spans} has no sums: --sums takes"),
        ((out, "--spans", spans, "--sums", bad), f"{bad} has no sums"),
        ((out, "--spans", spans, "--sums", tmp_path), "cannot read"),
        ((out, "--spans", spans, "--sums", tmp_path / "none"), "No such file or directory"),
    ):
        assert said in refused(monkeypatch, capsys, *arguments), arguments
        assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "spans.jsonl"]
    out.write_text("the page of yesterday")
    refused(monkeypatch, capsys, out, "--spans", bad)
    assert out.read_text() == "the page of yesterday"


def test_what_it_reads_is_never_written_over(
    spans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = spans.read_bytes()
    (tmp_path / "link").symlink_to(spans)
    (tmp_path / "sums").write_text(json.dumps(SUMS))
    for out in (spans, tmp_path / "link", tmp_path / "." / "sums"):
        arguments = (out, "--spans", spans, "--sums", tmp_path / "sums")
        assert "is read to make the page" in refused(monkeypatch, capsys, *arguments)
    assert spans.read_bytes() == before
    assert json.loads((tmp_path / "sums").read_text()) == SUMS


def test_where_nothing_can_be_written(
    spans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(monkeypatch, capsys, "/proc/page.html", "--spans", spans)
    assert said.startswith("otelbpf: cannot write /proc/page.html: ")


def test_a_full_disk_leaves_no_part_behind(
    spans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Path, *_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    said = refused(monkeypatch, capsys, tmp_path / "page.html", "--spans", spans)
    assert said == f"otelbpf: cannot write {tmp_path / 'page.html'}: No space left on device\n"
    assert [path.name for path in tmp_path.iterdir()] == ["spans.jsonl"]


@pytest.mark.parametrize(
    "change",
    [
        {"seen": "23"},
        {"seen": -1},
        {"seen": True},
        {"lost": 3},
        {"lost": {"parser": None}},
        {"joins": None},
        {"missed": []},
    ],
)
def test_sums_of_another_shape(
    change: dict[str, Any],
    spans: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (sums := tmp_path / "sums").write_text(json.dumps({**SUMS, **change}))
    out = tmp_path / "page.html"
    assert "has no sums" in refused(monkeypatch, capsys, out, "--spans", spans, "--sums", sums)
    sums.write_text("[" * 100_000)
    assert "has no sums" in refused(monkeypatch, capsys, out, "--spans", spans, "--sums", sums)


def test_the_same_file_twice_is_read_once(
    spans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "page.html"
    assert call(monkeypatch, out, "--spans", spans, "--spans", spans) == 0
    held = json.loads(Page(out.read_text()).of("script")[0][1])
    assert (held["files"], held["spans_read"]) == ([str(spans)], 16)


def test_as_a_command(spans: Path, tmp_path: Path) -> None:
    """In the plainest locale, and without what talks to the kernel."""
    program = (
        "import sys; sys.modules['bcc'] = None; from otelbpf.cli import main; code = main(); "
        "kernels = {'otelbpf.agent.run', 'otelbpf.kernel.loader'}; "
        "sys.exit(code or bool(kernels & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "report", "page.html", "--spans", spans],
        cwd=tmp_path,
        env={"LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "page.html").read_bytes().isascii()
