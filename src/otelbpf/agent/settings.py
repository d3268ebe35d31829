# SPDX-License-Identifier: Apache-2.0
"""What is measured, and how, as the programs are told."""

from __future__ import annotations

from collections.abc import Collection

from otelbpf.kernel.records import ForwardedHeader, UpstreamPort
from otelbpf.kernel.settings import Part, Settings
from otelbpf.ledger.ids import Ids
from otelbpf.policy.proxies import Forwarding, Network, packed
from otelbpf.policy.sampler import Sampler
from otelbpf.policy.upstreams import Upstreams

_NO_UPSTREAMS = Upstreams()
_NO_FORWARDING = Forwarding()
_KEEP_ALL = Sampler()


def settings(
    netns_cookie: int,
    ports: Collection[int] = (),
    *,
    upstreams: Upstreams = _NO_UPSTREAMS,
    sampler: Sampler = _KEEP_ALL,
    ids: Ids | None = None,
    parts: Collection[Part] = (),
    proxies: Collection[Network] = (),
    forwarding: Forwarding = _NO_FORWARDING,
) -> Settings:
    """What Programs are to be told.

    Args:
        netns_cookie: of the measured network namespace.
        ports: the measured server ports.
        upstreams: whose requests are measured as a client's.
        sampler: decides which requests are kept.
        ids: names the traces that start here; the sampler looks at that.
        parts: of bpf/ that not every run needs, beside the roles'.
        proxies: from where connections may begin with a header of the PROXY protocol.
        forwarding: who says in a request's header for whom it was forwarded.
    """
    of_roles = {Part.SERVERS: bool(ports), Part.CLIENTS: bool(upstreams)}
    return Settings(
        frozenset(parts).union(part for part, is_there in of_roles.items() if is_there),
        {
            "netns_cookie": netns_cookie,
            "id_key": (ids or Ids()).key,
            **sampler.settings(),
        },
        frozenset(ports),
        {
            **{port: UpstreamPort.BY_ADDRESS for _, port in upstreams.endpoints},
            **dict.fromkeys(upstreams.ports, UpstreamPort.ANYWHERE),
        },
        frozenset(upstreams.endpoints),
        tuple(map(packed, proxies)),
        ForwardedHeader[forwarding.header.name] if forwarding else ForwardedHeader.NONE,
    )
