# SPDX-License-Identifier: Apache-2.0
"""Files of OTLP's JSON: what is read from them, and what is refused in one sentence."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recorded

from otelbpf.errors import UsageError
from otelbpf.report import otlp_json
from otelbpf.report.otlp_json import lines, lines_at
from otelbpf.report.recording import read


def test_every_field_of_a_span(tmp_path: Path) -> None:
    attributes = {"text": "a", "number": 7, "yes": True, "half": 0.5, "list": ["a", 1], "none": []}
    made = recorded.span(
        "GET", 0xABC, 1_000, 17, trace=5, parent=0xDEF, kind=2, attributes=attributes, failed=True
    )
    made["attributes"] += [
        {"key": "empty", "value": {}},
        {"key": "missing"},
        {"key": "bytes", "value": {"bytesValue": "Zm9v"}},
        {
            "key": "map",
            "value": {"kvlistValue": {"values": [{"key": "a", "value": {"intValue": 1}}]}},
        },
        {"key": "nothing", "value": {"arrayValue": {}}},
    ]
    made["traceId"] = made["traceId"].upper()
    path = recorded.write(tmp_path / "spans", recorded.export([made], service="till", scope="lib"))
    ((line,),) = [line.spans for line in lines(path)]
    assert line == otlp_json.Span(
        recorded.TRACE.format(5), "0000000000000abc", "0000000000000def", "GET", 2, 1_000, 1_017,
        True,
        attributes | {"empty": None, "missing": None, "bytes": "Zm9v", "map": {"a": 1},
                      "nothing": []},
        {"service.name": "till"}, "lib",
    )  # fmt: skip


def test_what_protobuf_leaves_out_is_its_default(tmp_path: Path) -> None:
    """Collectors leave out what is zero or empty, and write integers as numbers or as text."""
    bare = {
        "traceId": recorded.TRACE.format(1),
        "spanId": "0000000000000001",
        "startTimeUnixNano": 5,
        "endTimeUnixNano": "7",
    }
    path = recorded.write(
        tmp_path / "spans",
        {"resourceSpans": [{"scopeSpans": [{"spans": [bare]}, {"scope": {}}]}, {}]},
    )
    ((span,),) = [line.spans for line in lines(path)]
    assert span == otlp_json.Span(
        recorded.TRACE.format(1), "0000000000000001", "", "", 0, 5, 7, False, {}, {}, ""
    )


def test_lines_without_spans_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "spans"
    metrics, logs = '{"resourceMetrics":[{"scopeMetrics":[]}]}', '{"resourceLogs":[]}'
    span = json.dumps(recorded.export(recorded.request()))
    path.write_text(f"{metrics}\n\n{{}}\n  \n{logs}\n{span}\r\n" + '{"resourceSpans":[]}')
    assert [len(line.spans) for line in lines(path)] == [0, 0, 0, 8, 0]


def test_a_line_is_found_again(tmp_path: Path) -> None:
    exports = [recorded.export(recorded.request(n, path=f"/\u00e9{n}")) for n in range(1, 6)]
    path = recorded.write(tmp_path / "spans", *exports)
    every = list(lines(path))
    assert list(lines_at(path, [line.offset for line in every])) == every
    assert every[0].offset == 0


@pytest.mark.parametrize("key", ["otelbpf.stage.nic_to_tc", "otelbpf.tcp.ack.duration_ns"])
@pytest.mark.parametrize("value", [-1, 1 << 62, "7", 0.5, [7]])
def test_what_is_no_duration_is_refused(key: str, value: object, tmp_path: Path) -> None:
    span = recorded.request(as_attributes=True, **{key: value})
    if key.startswith("otelbpf.stage."):
        span[0]["attributes"] = recorded.pairs({"http.request.method": "GET", key: value})
    path = recorded.write(tmp_path / "spans", recorded.export(span))
    with pytest.raises(UsageError, match="is no number of ns") as refused:
        read([path])
    assert str(refused.value).startswith(f"{key} of span 0000000000000001 in {path}")


def broken(change: Callable[[dict[str, Any]], object]) -> str:
    """A whole export after one that is changed."""
    made = recorded.export(recorded.request())
    change(made)
    return json.dumps(recorded.export(recorded.request(2))) + "\n" + json.dumps(made) + "\n"


def first_span(export: dict[str, Any]) -> dict[str, Any]:
    return export["resourceSpans"][0]["scopeSpans"][0]["spans"][0]


def setting(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda export: first_span(export).update(fields)


OTHER_SHAPES = [
    (lambda export: export.update(resourceSpans=7), "'int' object is not iterable"),
    (lambda export: export.update(resourceSpans=["a"]), "'str' object has no attribute 'get'"),
    (lambda export: export.update(spans=export.pop("resourceSpans")), "it has no resourceSpans"),
    (lambda export: first_span(export).pop("traceId"), "'traceId' is missing"),
    (lambda export: first_span(export).pop("endTimeUnixNano"), "'endTimeUnixNano' is missing"),
    (setting(traceId="abc"), "'abc' is no id of 32 hex digits"),
    (setting(traceId="0" * 32), "is no id of 32 hex digits"),
    (setting(spanId="x" * 16), "invalid literal for int"),
    (setting(spanId=None), "object of type 'NoneType' has no len()"),
    (setting(parentSpanId="1"), "'1' is no id of 16 hex digits"),
    (setting(startTimeUnixNano="-5"), "'-5' is no time in nanoseconds since 1970"),
    (setting(startTimeUnixNano=str(1 << 63)), "is no time in nanoseconds since 1970"),
    (setting(startTimeUnixNano="soon"), "invalid literal for int"),
    (setting(startTimeUnixNano=None), "int() argument must be"),
    (setting(kind="SERVER"), "invalid literal for int"),
    (setting(status="bad"), "'str' object has no attribute 'get'"),
    (setting(attributes="bad"), "string indices must be integers"),
    (setting(attributes=[{"value": {}}]), "'key' is missing"),
    (setting(attributes=[{"key": "a", "value": {"intValue": "x"}}]), "invalid literal for int"),
    (setting(attributes=[{"key": "a", "value": {"colour": 1}}]), "no kind of value is called"),
    (
        setting(attributes=[{"key": "a", "value": {"intValue": 1, "boolValue": 1}}]),
        "too many values to unpack",
    ),
]


@pytest.mark.parametrize(("change", "said"), OTHER_SHAPES)
def test_json_that_is_not_otlp(
    change: Callable[[dict[str, Any]], object], said: str, tmp_path: Path
) -> None:
    (path := tmp_path / "spans").write_text(broken(change))
    with pytest.raises(UsageError) as refused:
        read([path])
    message = str(refused.value)
    assert message.startswith(f"line 2 of {path} is JSON, but not OTLP's: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            b"GET / HTTP/1.1\n",
            "line 1 of {} is no JSON, and no other is: --spans takes what OTEL_TRACES_EXPORTER=",
        ),
        (bytes(range(256)) * 100, "line 1 of {} is no JSON"),
        (b"[]\n", "line 1 of {} is JSON, but not OTLP's: it is no object"),
        (b"7\n", "line 1 of {} is JSON, but not OTLP's: it is no object"),
        (b"\n\n[" + b"[" * 100_000 + b"\n", "line 3 of {} is no JSON, and no other is: "),
        (b'{"resourceSp', "line 1 of {} is no JSON"),
        (b"", "no requests in {}: none of 0 spans there"),
        (b"\n\n", "no requests in {}: none of 0 spans there"),
    ],
)
def test_what_is_no_such_file(text: bytes, said: str, tmp_path: Path) -> None:
    (path := tmp_path / "spans").write_bytes(text)
    with pytest.raises(UsageError, match=f"^{re.escape(said.format(path))}"):
        read([path])


@pytest.mark.parametrize("kept", [1, 50, 700, -2])
def test_lines_that_are_not_whole_are_left_out_and_counted(
    kept: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a killed writer leaves at the end, and a full disk in the middle of another line."""
    whole = [json.dumps(recorded.export(recorded.request(n))).encode() for n in range(1, 6)]
    torn = whole[0][:kept]
    (path := tmp_path / "spans").write_bytes(
        whole[0] + b"\n" + torn + whole[1] + b"\n" + torn + b"\n\n" + whole[2] + b"\n" + torn
    )
    got = read([path])
    assert (len(got.requests), got.spans, got.torn_lines) == (2, 16, 3)
    assert caplog.messages == [
        f"3 lines of {path} are not whole, as a writer leaves that is killed or has no room: left "
        "out"
    ]
    # What is shown of them is read again, and found.
    assert [line.spans for line in lines_at(path, [place.offset for place in got.places])]


def test_each_file_says_how_many_of_its_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exports = [recorded.export(recorded.request(n)) for n in (1, 2)]
    paths = [recorded.write(tmp_path / name, exports[n]) for n, name in enumerate("ab")]
    with paths[1].open("a") as file:
        file.write('{"resourceSpans":[{')
    assert read(paths).torn_lines == 1
    assert caplog.messages == [
        f"1 line of {paths[1]} is not whole, as a writer leaves that is killed or has no room: "
        "left out"
    ]


def test_a_line_that_was_whole_and_is_no_more(tmp_path: Path) -> None:
    path = recorded.write(tmp_path / "spans", recorded.export(recorded.request()))
    path.write_text("changed\n")
    with pytest.raises(UsageError, match="was changed while it was read: try again"):
        list(lines_at(path, [0]))


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_json, "LONGEST_LINE", 1 << 20)
    (path := tmp_path / "spans").write_bytes(b'{"a":"' + bytes(2 << 20))
    with pytest.raises(UsageError, match=r"^line 1 of .* is longer than 1 MiB: it is no OTLP JSON"):
        read([path])


def test_no_spans_of_ours(tmp_path: Path) -> None:
    spans = recorded.request()
    path = recorded.write(tmp_path / "spans", recorded.export(spans, scope="another"))
    with pytest.raises(UsageError, match="none of 8 spans there is otelbpf's of a request"):
        read([path])


def test_stages_alone_are_no_requests(tmp_path: Path) -> None:
    path = recorded.write(tmp_path / "spans", recorded.export(recorded.request()[1:]))
    with pytest.raises(UsageError, match="none of 7 spans there is otelbpf's of a request"):
        read([path])


@pytest.mark.parametrize("index", [0, 3])
def test_spans_of_ours_never_end_before_they_begin(index: int, tmp_path: Path) -> None:
    spans = recorded.request()
    spans[index]["endTimeUnixNano"] = str(int(spans[index]["startTimeUnixNano"]) - 1)
    path = recorded.write(tmp_path / "spans", recorded.export(spans))
    with pytest.raises(UsageError, match=rf"^span {spans[index]['spanId']} in .* ends before it"):
        read([path])


@pytest.mark.parametrize("value", ["soon", -1, 0.5, [1]])
def test_a_stage_attribute_that_is_no_time(value: object, tmp_path: Path) -> None:
    spans = recorded.request(**{"otelbpf.stage.nic_to_tc": value})  # type: ignore[arg-type]
    path = recorded.write(tmp_path / "spans", recorded.export(spans))
    with pytest.raises(UsageError, match=r"^otelbpf\.stage\.nic_to_tc of span .* is no number of"):
        read([path])


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, said in (
        ("pipe", "it is no ordinary file, and is read twice"),
        ("", "no ordinary"),
        ("missing", "No such file or directory"),
        ("loop", "Too many levels"),
        ("x" * 300, "File name too long"),
    ):
        with pytest.raises(UsageError, match=f"^cannot read {tmp_path / name}: .*{said}"):
            read([tmp_path / name])
    with pytest.raises(UsageError, match=r"^cannot read a\0b: "):
        read([Path("a\0b")])
