# SPDX-License-Identifier: Apache-2.0
"""What the programs are told of what they are to measure, and to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from otelbpf.kernel.records import MAPS, FixedLength, ForwardedHeader, UpstreamPort

#: Of those that are told by address, too.
UPSTREAMS_MOST = MAPS["upstreams"].max_entries
#: Of those from where a header of the PROXY protocol is read.
PROXY_NETWORKS_MOST = int(FixedLength.PROXY_NETWORKS_MOST)


class Part(StrEnum):
    """What of bpf/ is there only where it is asked for."""

    SERVERS = "SERVERS"
    CLIENTS = "CLIENTS"
    HANDLERS = "HANDLERS"
    GO_HANDLERS = "GO_HANDLERS"


@dataclass(frozen=True)
class Settings:
    """All of it. Only the parts and the header are fixed once the programs are loaded.

    Attributes:
        parts: that there are.
        values: of fields of struct settings, bpf/abi/settings.h.
        ports: of the measured servers.
        upstream_ports: of the upstreams, and what each means.
        upstreams: (16 bytes of address, port) of each whose port is BY_ADDRESS; at most
            UPSTREAMS_MOST.
        proxy_networks: (address, mask), 16 bytes each: from where connections may begin with a
            header of the PROXY protocol; at most PROXY_NETWORKS_MOST.
        forwarded_header: that is kept of each request.
    """

    parts: frozenset[Part]
    values: Mapping[str, int | tuple[int, ...]]
    ports: frozenset[int]
    upstream_ports: Mapping[int, UpstreamPort]
    upstreams: frozenset[tuple[bytes, int]] = field(default_factory=frozenset)
    proxy_networks: tuple[tuple[bytes, bytes], ...] = ()
    forwarded_header: ForwardedHeader = ForwardedHeader.NONE

    def __post_init__(self) -> None:
        assert len(self.upstreams) <= UPSTREAMS_MOST
        assert len(self.proxy_networks) <= PROXY_NETWORKS_MOST
