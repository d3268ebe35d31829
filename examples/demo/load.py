# SPDX-License-Identifier: Apache-2.0
"""The load: sends the plan over a few keep-alive connections and prints what came back.

It runs as ``python -m demo.load`` inside the client's namespace and prints one JSON object,
which ``Summary.from_json`` reads.
"""

import argparse
import asyncio
import json
import secrets
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import aiohttp

from demo.plan import LANES, MAX_REQUESTS, Outcome, Planned, outcomes, plan


@dataclass(frozen=True)
class Summary:
    """What the load saw.

    Attributes:
        sent: requests that were sent.
        completed: those whose response came whole.
        outcomes: how many of those for each (method, path, status).
        owed: what the plan says the gateway owes.
        traceparents: (trace id, span id) of those that were sent with one and completed.
        connections: TCP connections that were opened.
        over_ipv6: how many of the completed went over IPv6.
        seconds: from the first request to the last response.
        errors: why requests did not complete, each reason once.
    """

    sent: int
    completed: int
    outcomes: Counter[Outcome]
    owed: Counter[Outcome]
    traceparents: frozenset[tuple[str, str]]
    connections: int
    over_ipv6: int
    seconds: float
    errors: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """As JSON's types."""
        return {
            "sent": self.sent,
            "completed": self.completed,
            "counts": _rows(self.outcomes),
            "owed": _rows(self.owed),
            "traceparents": sorted(self.traceparents),
            "connections": self.connections,
            "over_ipv6": self.over_ipv6,
            "seconds": self.seconds,
            "errors": list(self.errors),
        }

    @classmethod
    def from_json(cls, text: str) -> "Summary":
        """Read what the load printed.

        Raises:
            ValueError: it is not that.
        """
        try:
            found = json.loads(text)
            return cls(
                found["sent"],
                found["completed"],
                _counter(found["counts"]),
                _counter(found["owed"]),
                frozenset((trace_id, span_id) for trace_id, span_id in found["traceparents"]),
                found["connections"],
                found["over_ipv6"],
                found["seconds"],
                tuple(found["errors"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a summary of the load: {error!r}") from error


def _rows(counts: Counter[Outcome]) -> list[dict[str, object]]:
    return [
        {"method": method, "path": path, "status": status, "count": count}
        for (method, path, status), count in sorted(counts.items())
    ]


def _counter(rows: Iterable[dict[str, object]]) -> Counter[Outcome]:
    return Counter({(row["method"], row["path"], row["status"]): row["count"] for row in rows})  # type: ignore[misc]


@dataclass
class _Tally:
    """What the lanes add up while they run."""

    sent: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    traceparents: set[tuple[str, str]] = field(default_factory=set)
    connections: int = 0
    over_ipv6: int = 0
    errors: set[str] = field(default_factory=set)

    async def connected(self, *_arguments: object) -> None:
        self.connections += 1


async def run(bases: dict[int, str], count: int, timeout_s: float) -> Summary:
    """Send the plan's first ``count`` requests.

    Args:
        bases: IP version (4, 6) -> the gateway's URL.
        timeout_s: after this the requests still under way are given up.
    """
    planned = plan(count)
    tally = _Tally()
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
            for lane, version in enumerate(LANES):
                requests = list(enumerate(planned))[lane :: len(LANES)]
                group.create_task(_lane(version, bases[version], requests, tally))
    except TimeoutError:
        tally.errors.add(f"the load was not done after {timeout_s:g} s")
    return Summary(
        sent=tally.sent,
        completed=tally.outcomes.total(),
        outcomes=tally.outcomes,
        owed=outcomes(planned),
        traceparents=frozenset(tally.traceparents),
        connections=tally.connections,
        over_ipv6=tally.over_ipv6,
        seconds=loop.time() - start,
        errors=tuple(sorted(tally.errors)),
    )


async def _lane(
    version: int, base: str, requests: list[tuple[int, Planned]], tally: _Tally
) -> None:
    """Send requests one after the other on one connection."""
    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(tally.connected)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=1, keepalive_timeout=60),
        headers={"User-Agent": "otelbpf-demo"},
        trace_configs=[trace],
    ) as session:
        for index, request in requests:
            headers = dict(request.headers)
            caller = None
            # Half of the requests come from a caller that traces. The index counts whole rounds
            # of the lanes too, so that every lane has both kinds.
            if (index + index // len(LANES)) % 2 == 0:
                caller = secrets.token_hex(16), secrets.token_hex(8)
                headers["traceparent"] = f"00-{caller[0]}-{caller[1]}-01"
            tally.sent += 1
            try:
                async with session.request(
                    request.method, base + request.path, data=request.body or None, headers=headers
                ) as response:
                    await response.read()
            except aiohttp.ClientError as error:
                tally.errors.add(f"{request.method} {request.path}: {error!r}")
                continue
            tally.outcomes[request.method, request.path, response.status] += 1
            tally.over_ipv6 += version == 6
            if caller is not None:
                tally.traceparents.add(caller)


def requests_option(text: str) -> int:
    """A number of requests that the plan can give.

    Raises:
        argparse.ArgumentTypeError: it is not one.
    """
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_REQUESTS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_REQUESTS}")
    return int(text)


def main() -> int:
    """Run the load that the command line asks for; print its summary as JSON."""
    parser = argparse.ArgumentParser(description="Send the demo's requests and count the answers.")
    parser.add_argument("--ipv4", metavar="URL", required=True, help="the gateway over IPv4")
    parser.add_argument("--ipv6", metavar="URL", required=True, help="the gateway over IPv6")
    parser.add_argument(
        "--requests", type=requests_option, default=230, metavar="N", help="(%(default)s)"
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="(%(default)s)"
    )
    args = parser.parse_args()
    summary = asyncio.run(run({4: args.ipv4, 6: args.ipv6}, args.requests, args.timeout))
    json.dump(summary.as_json(), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
