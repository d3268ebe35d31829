# SPDX-License-Identifier: Apache-2.0
"""reader -> forwarded: who the client is of requests that named proxies have forwarded."""

from __future__ import annotations

import functools

import numpy as np

from otelbpf.kernel.records import FORWARDED_TEXT, RequestFlag
from otelbpf.policy.proxies import Forwarding, Header, packed
from otelbpf.protocols.forwarded import Node, forwarded, x_forwarded_for

# CLIENT_TOLD, bpf/abi/records.h.
_TOLD = 0x80
_NOBODY = Node(bytes(16), 0)
_NOTHING = b"", False
_MOST = FORWARDED_TEXT["text"].itemsize
_KEPT = 4_096
_READ = {Header.X_FORWARDED_FOR: x_forwarded_for, Header.FORWARDED: forwarded}


class Clients:
    """Finds them, by what the proxies say in the header that all of them write.

    Args:
        forwarding: who is believed.
    """

    def __init__(self, forwarding: Forwarding) -> None:
        self._networks = [
            (int.from_bytes(address), int.from_bytes(mask))
            for address, mask in map(packed, forwarding.networks)
        ]
        self._nodes = _READ[forwarding.header]
        self._is_proxy = functools.lru_cache(_KEPT)(self._is_named)
        self._client = functools.lru_cache(_KEPT)(self._found)

    def tell(self, records: np.ndarray, texts: np.ndarray, is_whole: np.ndarray) -> None:
        """Writes into servers' requests who their client is, where a proxy says so.

        It is nobody where one should say it, and it cannot be read or may not have been seen. Whom
        a header of the PROXY protocol tells is taken for whoever has sent the request.

        Args:
            records: (n,) REQUEST_RECORD.
            texts: (n,) FORWARDED_TEXT, in the places that the requests had.
            is_whole: (n,) bool: the request's whole head was read.
        """
        told = records["client_told"] != 0
        senders = np.where(told, records["client_address"], records["peer_address"]).tolist()
        is_client = records["flags"] & np.uint32(RequestFlag.CLIENT) != 0
        is_own = (texts["connection_id"] == records["connection_id"]) & (
            texts["ordinal"] == records["ordinal"]
        )
        rows, clients = [], []
        for row in np.flatnonzero(~is_client).tolist():
            if senders[row] == _NOBODY.address or not self._is_proxy(senders[row]):
                continue
            client: Node | None = _NOBODY
            if is_whole[row]:
                client = self._client(*(_last_bytes(texts[row]) if is_own[row] else _NOTHING))
            if client is not None:
                rows.append(row)
                clients.append(client)
        if rows:
            records["client_told"][rows] = _TOLD
            records["client_address"][rows] = np.frombuffer(
                b"".join(client.address for client in clients), "V16"
            )
            records["client_port"][rows] = [client.port for client in clients]

    def _is_named(self, address: bytes) -> bool:
        number = int.from_bytes(address)
        return any(number & mask == start for start, mask in self._networks)

    def _found(self, text: bytes, is_cut: bool) -> Node | None:
        """The last one that is no proxy, else the first one; None: the header tells none."""
        found = None
        for node in self._nodes(text.decode("latin-1"), is_cut=is_cut):
            found = node or _NOBODY
            if not node or not self._is_proxy(node.address):
                break
        return found


def _last_bytes(told: np.void) -> tuple[bytes, bool]:
    """A text, and was there more before it than there was room for?"""
    text, length = told["text"], int(told["length"])
    if length <= _MOST:
        return text[:length], False
    octets = text.ljust(_MOST, b"\0")  # numpy leaves zeros at the end out
    begin = length % _MOST
    return octets[begin:] + octets[:begin], True
