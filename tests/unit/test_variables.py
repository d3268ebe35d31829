# SPDX-License-Identifier: Apache-2.0
"""No value of any OTEL_* variable ends in a traceback: it is taken, left aside, or refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from demo.receiver import Receiver
from support.misbehaving import Certificate

from otelbpf.errors import UsageError
from otelbpf.export.variables import require_otlp, settle

OF_OTLP = (
    "ENDPOINT",
    "PROTOCOL",
    "HEADERS",
    "TIMEOUT",
    "COMPRESSION",
    "CERTIFICATE",
    "CLIENT_KEY",
    "CLIENT_CERTIFICATE",
    "INSECURE",
)
KNOWN = (
    *(f"OTEL_EXPORTER_OTLP_{what}" for what in OF_OTLP),
    *(f"OTEL_EXPORTER_OTLP_TRACES_{what}" for what in OF_OTLP),
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_TRACES_EXPORTER",
    "OTEL_METRICS_EXPORTER",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_METRIC_EXPORT_TIMEOUT",
)
#: What an SDK would read; and one that nothing does.
OTHERS = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS",
    "OTEL_LOG_LEVEL",
    "OTEL_PROPAGATORS",
    "OTEL_PYTHON_CONTEXT",
    "OTEL_PYTHON_ID_GENERATOR",
    "OTEL_PYTHON_TRACER_PROVIDER",
    "OTEL_SDK_DISABLED",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
    "OTEL_NO_SUCH_THING",
)
#: Numbers that are none or too many, text that is none or too long, addresses that are none.
HOSTILE = (
    "-1",
    "9" * 400,
    "nan",
    "a" * 100_000,
    "\udcff",
    "é=\u2028\x1b[31m,;%zz%00\nX: y",
    "http://[::1",
)

Run = Callable[..., list[tuple[int, str]]]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs agents without a kernel, one for each of several environments, side by side."""
    environment = {name: value for name, value in os.environ.items() if name[:5] != "OTEL_"}
    with (
        Receiver() as receiver,
        subprocess.Popen(
            [sys.executable, Path(__file__).with_name("kernelless.py")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as server,
    ):
        base = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_endpoint,
            "OTEL_BSP_EXPORT_TIMEOUT": "200",
        }

        def run(*environments: dict[str, str]) -> list[tuple[int, str]]:
            assert server.stdin and server.stdout
            print(json.dumps([base | each for each in environments]), file=server.stdin, flush=True)
            return [(code, said) for code, said in json.loads(server.stdout.readline())]

        yield run
        server.stdin.close()


#: Where all is exported a busy machine may take its time for it.
PATIENT = {"OTEL_BSP_EXPORT_TIMEOUT": "20000"}


def assert_exported(code: int, said: str) -> None:
    assert (code, said.splitlines()[-1]) == (
        0,
        "otelbpf: seen 1 = exported 1 + sampled out 0 + lost 0",
    ), said


def assert_taken_or_refused(code: int, said: str) -> None:
    """Refused in one sentence, or taken: what cannot be exported then is counted."""
    assert "Traceback" not in said
    assert code in (0, 2), said
    *others, last = said.splitlines()
    if code == 0:
        assert last.startswith("otelbpf: seen 1 = "), said
        return
    assert not others, said
    assert last.startswith("otelbpf: ")
    assert last.isprintable()
    assert len(last) < 5_000


def test_it_runs_without_a_kernel(run: Run) -> None:
    ((code, said),) = run(PATIENT)
    assert_exported(code, said)


@pytest.mark.parametrize("variable", KNOWN)
def test_what_it_knows(run: Run, variable: str) -> None:
    for code, said in run(*({variable: value} for value in HOSTILE)):
        assert_taken_or_refused(code, said)


def test_what_it_has_no_use_for(run: Run) -> None:
    """All of them at once are left aside."""
    for code, said in run(*(dict.fromkeys(OTHERS, value) | PATIENT for value in HOSTILE)):
        assert_exported(code, said)


def test_what_is_empty_is_not_set(run: Run) -> None:
    names = {*KNOWN, *OTHERS} - {"OTEL_EXPORTER_OTLP_ENDPOINT"}
    for code, said in run(*(dict.fromkeys(names, value) | PATIENT for value in ("", " \t"))):
        assert_exported(code, said)


def test_only_what_is_known_is_left() -> None:
    environment = {name: "x" for name in (*KNOWN, *OTHERS, "PATH", "HOTEL_SERVICE_NAME")}
    settle(environment)
    assert environment == {name: "x" for name in (*KNOWN, "PATH", "HOTEL_SERVICE_NAME")}


def test_exporters_of_others_keep_their_variables() -> None:
    environment = {"OTEL_EXPORTER_ZIPKIN_ENDPOINT": "http://zipkin:9411"}
    settle(environment)
    assert environment == {"OTEL_EXPORTER_ZIPKIN_ENDPOINT": "http://zipkin:9411"}


@pytest.mark.parametrize(
    ("of_both", "of_spans", "left"),
    [
        ("none", None, {}),
        (" None ", None, {}),
        ("none", "gzip", {"TRACES_": "gzip"}),
        ("gzip", "none", {"METRICS_": "gzip"}),
        (None, "none", {}),
        ("gzip", None, {"": "gzip"}),
        ("gzip", "deflate", {"": "gzip", "TRACES_": "deflate"}),
    ],
)
def test_no_compression_is_as_if_it_were_not_set(
    of_both: str | None, of_spans: str | None, left: dict[str, str]
) -> None:
    """OTLP has `none` for it, which gRPC's exporter refuses."""
    environment = {
        f"OTEL_EXPORTER_OTLP_{whose}COMPRESSION": value
        for whose, value in (("", of_both), ("TRACES_", of_spans))
        if value is not None
    }
    settle(environment)
    assert environment == {
        f"OTEL_EXPORTER_OTLP_{whose}COMPRESSION": value for whose, value in left.items()
    }


def test_what_is_not_utf8_is_refused_where_it_would_be_exported() -> None:
    with pytest.raises(UsageError, match="OTEL_SERVICE_NAME is not UTF-8"):
        settle({"OTEL_SERVICE_NAME": "caf\udce9"})
    settle({"OTEL_LOG_LEVEL": "caf\udce9"})


@pytest.mark.impure
@pytest.mark.parametrize("kind", ["CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"])
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "pem"
    names = (f"OTEL_EXPORTER_OTLP_{kind}", f"OTEL_EXPORTER_OTLP_METRICS_{kind}")
    for name in names:
        with pytest.raises(UsageError, match=f"cannot read {file}, which {name} names"):
            require_otlp({name: str(file)}, "metrics", grpc=True)
    with pytest.raises(UsageError, match="Is a directory"):
        require_otlp({names[0]: str(tmp_path)}, "metrics", grpc=True)
    require_otlp({names[1]: str(file)}, "traces", grpc=True)
    there = Certificate.make(tmp_path, "localhost").certificate
    require_otlp(dict.fromkeys(names, str(there)), "metrics", grpc=True)


@pytest.mark.impure
@pytest.mark.parametrize("grpc", [True, False])
def test_authorities_that_are_none_are_refused(tmp_path: Path, grpc: bool) -> None:
    """A key, for example."""
    variable, made = "OTEL_EXPORTER_OTLP_CERTIFICATE", Certificate.make(tmp_path, "localhost")
    with pytest.raises(UsageError, match=r"NO_CERTIFICATE_OR_CRL_FOUND.*in PEM format"):
        require_otlp({variable: str(made.key)}, "traces", grpc=grpc)


def test_authorities_in_a_directory_will_do_over_http(tmp_path: Path) -> None:
    variables = {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path)}
    require_otlp(variables, "traces", grpc=False)
    with pytest.raises(UsageError, match="Is a directory"):
        require_otlp(variables, "traces", grpc=True)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e9", "soon"])
def test_no_time_to_export_in_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"_TIMEOUT={text} is no number of seconds above 0"):
        require_otlp({"OTEL_EXPORTER_OTLP_TIMEOUT": text}, "traces", grpc=True)
    require_otlp({"OTEL_EXPORTER_OTLP_TIMEOUT": "0.5"}, "traces", grpc=True)


@pytest.mark.parametrize("grpc", [True, False])
@pytest.mark.parametrize(
    "headers",
    [
        "no-value",
        "=value",
        "ключ=value",
        "a=b,two words=c",
        "authorization=Bearer%20%D0%BA",
        "a=line%0D%0Abreak",
    ],
)
def test_headers_that_cannot_be_sent_are_refused(headers: str, grpc: bool) -> None:
    name = "OTEL_EXPORTER_OTLP_HEADERS"
    with pytest.raises(UsageError, match=f"^{name} has .* which cannot be sent: write NAME=VALUE"):
        require_otlp({name: headers}, "traces", grpc=grpc)


@pytest.mark.parametrize("grpc", [True, False])
def test_headers_that_can_be_sent(grpc: bool) -> None:
    headers = "authorization=Bearer%20x==, X-Scope-OrgID=tenant 1,, api-key = a;b"
    require_otlp({"OTEL_EXPORTER_OTLP_TRACES_HEADERS": headers}, "traces", grpc=grpc)


def test_latin_letters_in_headers_go_over_http() -> None:
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": "name=caf%C3%A9"}
    require_otlp(headers, "metrics", grpc=False)
    with pytest.raises(UsageError, match="cannot be sent"):
        require_otlp(headers, "metrics", grpc=True)


def test_two_words_about_tls_are_refused() -> None:
    """The exporter over gRPC would heed the wrong one."""
    endpoint, insecure = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_INSECURE"
    for variables in (
        {insecure: "False"},
        {insecure: "false", endpoint: "http://here:4317"},
        {insecure: "false", endpoint: "HTTP://here:4317"},
        {insecure: "true", "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "false"},
    ):
        with pytest.raises(UsageError, match="=false asks for TLS"):
            require_otlp(variables, "traces", grpc=True)
        require_otlp(variables, "traces", grpc=False)
    with pytest.raises(UsageError, match="OTEL_EXPORTER_OTLP_INSECURE=yes is neither true nor"):
        require_otlp({insecure: "yes"}, "traces", grpc=False)
    for variables in (
        {insecure: "false", endpoint: "https://here:4317"},
        {insecure: "true"},
        {insecure: "true", endpoint: "here:4317"},
    ):
        require_otlp(variables, "traces", grpc=True)
