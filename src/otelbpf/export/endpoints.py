# SPDX-License-Identifier: Apache-2.0
"""Where an exporter of OTLP is told to send to, understood before it is made.

What exporters do with an address that is none differs: they try for ever, refuse all that they are
given, or take a port above 65535 for another one, where somebody else may listen.
"""

from __future__ import annotations

import ipaddress
import re

from otelbpf.errors import UsageError

_PORT_MOST = 65_535
_SCHEMES = ("http", "https")
# What gRPC takes besides a host and a port: names of its own resolvers. Of what is behind two
# slashes the exporter would hand on no more than a host.
_RESOLVERS = re.compile(r"(?:dns|ipv4|ipv6|unix|unix-abstract|vsock|xds):(?!//[^/])")
_AUTHORITY = re.compile(
    r"(?:.*@)?(?:\[(?P<address>[^\[\]]*)\]|(?P<name>[^\[\]:@]*))(?::(?P<port>[0-9]*))?"
)
_NAME = re.compile(r"[\w-][\w.-]*")
# With letters that are not ASCII's: over HTTP it is encoded by IDNA's stricter rules.
_OTHER_NAME = re.compile(r"[^\W_]+(?:(?:-+|\.)[^\W_]+)*\.?")


def require_understood(
    variable: str, endpoint: str, *, grpc: bool, insecure: bool, is_base: bool
) -> None:
    """Refuses an endpoint that an exporter of OTLP could not send to, or not to there.

    Args:
        variable: which says it; for the error.
        grpc: is it for gRPC? Else for HTTP.
        insecure: does another variable say that it is without TLS? gRPC then takes HOST:PORT.
        is_base: is the path of each signal put behind it?
    Raises:
        UsageError: what is wrong with it.
    """
    what = f"{variable}={to_show(endpoint)}"
    if not endpoint.isprintable() or " " in endpoint:
        raise UsageError(f"{variable}={to_show(endpoint)!r} is no URL", _remedy(grpc=grpc))
    scheme, separator, rest = endpoint.partition("://")
    if separator and scheme.lower() in _SCHEMES:
        authority, behind = _split(rest)
    elif grpc and _RESOLVERS.match(endpoint):
        if insecure:
            return
        raise UsageError(
            f"{what} does not say whether to use TLS",
            "without it, set OTEL_EXPORTER_OTLP_INSECURE=true",
        )
    elif separator or not (grpc and insecure):
        plain = to_show(rest or endpoint).strip("\"'")
        raise UsageError(
            f"{what} does not say whether to use TLS",
            f"write http://{plain}, or https:// for TLS",
        )
    elif _is_ipv6(endpoint):
        return
    else:
        authority, behind = endpoint, ""
    _require_authority(what, authority, grpc=grpc)
    if is_base and any(mark in behind for mark in "?#"):
        raise UsageError(
            f"{what} has a `?` or a `#`, and the path of each signal would come after it",
            "leave that out, or give each signal an endpoint in a variable of its own",
        )


def to_show(endpoint: str) -> str:
    """The endpoint for people: without a password."""
    return re.sub(r"(^|//)([^/?#:@]*):[^/?#]*@", r"\1\2:…@", endpoint)


def _require_authority(what: str, authority: str, *, grpc: bool) -> None:
    parts = _AUTHORITY.fullmatch(authority)
    if grpc and "@" in authority:
        raise UsageError(
            f"{what} has a user before its host, which gRPC takes for a part of the host's name",
            "send it as a header: OTEL_EXPORTER_OTLP_HEADERS=authorization=Basic%20…",
        )
    if parts is None or not (parts["address"] or parts["name"]):
        why = "has no host" if parts is not None else "has no host and port that can be told apart"
        raise UsageError(f"{what} {why}", _remedy(grpc=grpc))
    if parts["port"] and not (len(parts["port"]) <= 5 and 1 <= int(parts["port"]) <= _PORT_MOST):
        raise UsageError(f"{what} has no TCP port", f"it is a number from 1 to {_PORT_MOST}")
    if parts["address"]:
        if not _is_ipv6(parts["address"]):
            raise UsageError(f"{what} has no IPv6 address in its brackets", _remedy(grpc=grpc))
    elif not _is_name(parts["name"], grpc=grpc):
        raise UsageError(f"{what} has a host that cannot be looked up", _remedy(grpc=grpc))


def _split(rest: str) -> tuple[str, str]:
    """(host and port, what is behind them) of what is behind a URL's scheme."""
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    return authority, rest[len(authority) :]


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _is_name(name: str, *, grpc: bool) -> bool:
    """Can it be looked up? gRPC does not encode what is not ASCII."""
    if not _NAME.fullmatch(name):
        return False
    if not name.isascii() and (grpc or not _OTHER_NAME.fullmatch(name)):
        return False
    try:
        name.encode("idna")  # labels of no letter, or of more than 63
    except UnicodeError:
        return False
    return True


def _remedy(*, grpc: bool) -> str:
    return f"write http://HOST:{4317 if grpc else 4318}, an IPv6 address in brackets"
