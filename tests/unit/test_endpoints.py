# SPDX-License-Identifier: Apache-2.0
"""Where to send to: what cannot be understood is refused at the start, and all else is taken."""

from __future__ import annotations

import pytest
import requests

from otelbpf.agent.run import require_variables
from otelbpf.errors import UsageError
from otelbpf.export.exporters import Signal, require_endpoint

GRPC, HTTP = "otlp_proto_grpc", "otlp_proto_http"
OF_ALL = "OTEL_EXPORTER_OTLP_ENDPOINT"
INSECURE = {"OTEL_EXPORTER_OTLP_INSECURE": "true"}

#: By what is said of them.
NOT_UNDERSTOOD = {
    "is no URL": ("http://a\nb:1", "http://a b:1", "http://\x1b[31m:1"),
    "has no host and port": ("http://[::1", "http://::1:4317", "http://a:b:1", "http://a:port"),
    "has no host:": ("http://", "http://:4318", "https:///v1/traces", "http://?a", "http://[]:1"),
    "has no TCP port": ("http://127.0.0.1:99999", "http://[::1]:65536", "http://a:0",
                        f"http://a:{'9' * 5000}", "http://a:0065536"),
    "has no IPv6 address": ("http://[v1.x]:1", "http://[127.0.0.1]:1", "http://[::1::]:1"),
    "has a host that cannot": ("http://*:1", "http://.a:1", "http://a..b:1", "http://a\\b:1",
                               f"http://{'a' * 64}:1", "http://a%zz:1", "http://{host}:1"),
    "whether to use TLS": ("ftp://x", "unix:///run/collector", "unix://host/a", "://x"),
}  # fmt: skip
UNDERSTOOD = (
    "http://127.0.0.1:1", "https://collector:4317", "HTTP://collector:4317", "hTTps://a.b.:65535",
    "http://[::1]:4317", "http://[fe80::1%eth0]:4317", "http://collector", "http://collector:",
    "http://a_b.svc-1.cluster.local:4317/", "http://a:1/base/path", "http://xn--tda:1",
)  # fmt: skip


@pytest.mark.parametrize("name", [GRPC, HTTP])
@pytest.mark.parametrize("variable", [OF_ALL, "OTEL_EXPORTER_OTLP_{}_ENDPOINT"])
@pytest.mark.parametrize("signal", list(Signal))
def test_what_is_not_understood(name: str, variable: str, signal: Signal) -> None:
    variable = variable.format(signal.upper())
    for sentence, endpoints in NOT_UNDERSTOOD.items():
        for endpoint in endpoints:
            with pytest.raises(UsageError) as refusal:
                require_endpoint({variable: endpoint}, name, signal)
            said = str(refusal.value)
            assert said.startswith(f"{variable}="), endpoint
            assert sentence in said


@pytest.mark.parametrize("name", [GRPC, HTTP])
def test_what_is_understood(name: str) -> None:
    for endpoint in UNDERSTOOD:
        require_endpoint({OF_ALL: endpoint}, name)


def test_what_is_understood_can_be_sent_to_over_http() -> None:
    """By the library that does it."""
    for endpoint in (*UNDERSTOOD, "http://ü:1"):
        require_endpoint({OF_ALL: endpoint}, HTTP)
        assert requests.Request("POST", endpoint).prepare().url


def test_all_that_the_library_refuses_is_not_understood() -> None:
    """So that nothing is lost later, one request after the other."""
    others = "a_ü", "-ü", "ü..a", "ü" * 60, "xn--ü"
    for name in (*map(chr, range(0x21, 0x7F)), *others):
        for url in (f"http://{name}:1", f"http://a{name}b:1", f"http://a:{name}"):
            try:
                requests.Request("POST", url).prepare()
            except ValueError:
                with pytest.raises(UsageError):
                    require_endpoint({OF_ALL: url}, HTTP)


@pytest.mark.parametrize(
    "endpoint",
    [
        "collector:4317",
        "collector",
        "127.0.0.1:4317",
        "[::1]:4317",
        "::1",
        "unix:/a/b",
        "unix:///a/b",
        "dns:///collector:4317",
        "dns:collector:4317",
    ],
)
def test_grpc_takes_a_host_and_a_port_where_tls_is_settled(endpoint: str) -> None:
    require_endpoint({OF_ALL: endpoint, **INSECURE}, GRPC)
    plain = "write http://.*, or https:// for TLS"
    settled = "without it, set OTEL_EXPORTER_OTLP_INSECURE=true"
    of_resolver = endpoint.startswith(("unix:", "dns:"))
    for name, others, remedy in (
        (GRPC, {}, settled if of_resolver else plain), (HTTP, INSECURE, plain),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=rf"to use TLS: {remedy}$"):
            require_endpoint({OF_ALL: endpoint, **others}, name)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:99999", "collector:0", ":4317", "[::1", "a:b:c"])
def test_a_host_and_a_port_that_are_none(endpoint: str) -> None:
    with pytest.raises(UsageError, match=f"^{OF_ALL}=.* has no "):
        require_endpoint({OF_ALL: endpoint, **INSECURE}, GRPC)


def test_what_only_http_can_send_to() -> None:
    for endpoint, sentence in (
        ("http://me:secret@a:1", "has a user before its host"),
        ("http://ü:1", "has a host that cannot be looked up"),
    ):
        require_endpoint({OF_ALL: endpoint}, HTTP)
        with pytest.raises(UsageError, match=sentence):
            require_endpoint({OF_ALL: endpoint}, GRPC)


@pytest.mark.parametrize("behind", ["?a=b", "/x?a", "#a"])
def test_the_path_of_each_signal_has_to_come_last(behind: str) -> None:
    endpoint = f"http://a:1{behind}"
    with pytest.raises(UsageError, match="the path of each signal would come after it"):
        require_endpoint({OF_ALL: endpoint}, HTTP)
    require_endpoint({OF_ALL: endpoint}, GRPC)
    require_endpoint({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint}, HTTP)


def test_no_password_is_told() -> None:
    for endpoint in (
        "http://me:secret@a:99999", "http://me:se@cret@[a", "ftp://me:secret@a", "me:secret@a"
    ):  # fmt: skip
        for name in (GRPC, HTTP):
            with pytest.raises(UsageError, match="me:…@") as refusal:
                require_endpoint({OF_ALL: endpoint}, name)
            assert "cret" not in str(refusal.value)


def test_other_exporters_have_none() -> None:
    require_endpoint({OF_ALL: "localhost:4317"}, "console")


@pytest.mark.parametrize("signal", list(Signal))
def test_both_signals_are_looked_at(signal: Signal, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `otelbpf check` does it."""
    variable = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"
    monkeypatch.setenv(variable, "http://127.0.0.1:99999")
    with pytest.raises(UsageError, match=f"^{variable}=http://127.0.0.1:99999 has no TCP port"):
        require_variables({variable: "http://127.0.0.1:99999"})


def test_the_one_for_all_is_not_looked_at_where_none_uses_it() -> None:
    environment = {OF_ALL: "junk", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4317"}
    require_endpoint(environment, GRPC, Signal.TRACES)
    with pytest.raises(UsageError, match=f"^{OF_ALL}=junk "):
        require_endpoint(environment, GRPC, Signal.METRICS)
