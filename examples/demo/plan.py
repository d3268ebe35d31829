# SPDX-License-Identifier: Apache-2.0
"""What the load asks: the same requests in the same order in every run."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

MAX_REQUESTS = 100_000
# One connection each; a request's place in the plan says which it takes.
LANES: tuple[Literal[4, 6], ...] = (4, 4, 6, 4, 4, 6)

KEY = "demo-key"
# The gateway is started so that this key may ask SMALL_LIMIT times while the demo runs.
SMALL_KEY = "demo-small"
SMALL_LIMIT = 3

EMBEDDINGS = "/v1/embeddings"
CHAT = "/v1/chat/completions"
HEALTH = "/healthz"


@dataclass(frozen=True)
class Planned:
    """One request and the status that the gateway owes it."""

    method: str
    path: str
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


Outcome = tuple[str, str, int]  # method, path, status


def _post(path: str, status: int, body: object, key: str | None = KEY, **demo: str) -> Planned:
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    headers.update({f"X-Demo-{name.capitalize()}": value for name, value in demo.items()})
    return Planned("POST", path, status, headers, json.dumps(body).encode())


_TEXT = {"input": "where did the time go?"}
# Several segments long, so that its first and its last byte arrive in different packets.
_BATCH = {"input": [f"line {i} of a document that wants to be found again" for i in range(120)]}
_TALK = {"messages": [{"role": "user", "content": "where did the time go?"}], "max_tokens": 12}

_EMBED = _post(EMBEDDINGS, 200, _TEXT)
_EMBED_BATCH = _post(EMBEDDINGS, 200, _BATCH)
_EMBED_SLOW = _post(EMBEDDINGS, 200, _TEXT, delay="40")
_EMBED_FAIL = _post(EMBEDDINGS, 503, _TEXT, fail="503")
_SMALL_ALLOWED = _post(EMBEDDINGS, 200, _TEXT, key=SMALL_KEY)
_SMALL_REFUSED = _post(EMBEDDINGS, 429, _TEXT, key=SMALL_KEY)
_CHAT = _post(CHAT, 200, _TALK)
_NO_KEY = _post(EMBEDDINGS, 401, _TEXT, key=None)
_WRONG_KEY = _post(CHAT, 401, _TALK, key="stolen")
_HEALTHZ = Planned("GET", HEALTH, 200)

# 23 is odd and shares no divisor with the lanes: every kind of request meets every lane.
_CYCLE = (
    *(
        _EMBED,
        _CHAT,
        _HEALTHZ,
        _EMBED,
        _NO_KEY,
        _EMBED,
        _CHAT,
        _SMALL_ALLOWED,
        _EMBED,
        _EMBED_BATCH,
    ),
    *(
        _HEALTHZ,
        _EMBED_SLOW,
        _CHAT,
        _EMBED,
        _WRONG_KEY,
        _EMBED,
        _CHAT,
        _HEALTHZ,
        _EMBED,
        _EMBED,
        _CHAT,
    ),
    *(_EMBED, _HEALTHZ),
)
_FAILS_AT = 21


def plan(count: int) -> list[Planned]:
    """The first ``count`` requests.

    One fails (503) if there are at least 22, and the small key is allowed SMALL_LIMIT times.

    Raises:
        ValueError: ``count`` is not from 1 to MAX_REQUESTS.
    """
    if not 1 <= count <= MAX_REQUESTS:
        raise ValueError(f"the load wants 1 to {MAX_REQUESTS} requests, not {count}")
    planned = [_CYCLE[i % len(_CYCLE)] for i in range(count)]
    # Which of them come too late depends on the lanes' race, how many does not: so the
    # outcomes are counted, not compared one by one.
    small = (i for i, request in enumerate(planned) if request is _SMALL_ALLOWED)
    for i in islice(small, SMALL_LIMIT, None):
        planned[i] = _SMALL_REFUSED
    if count > _FAILS_AT:
        planned[_FAILS_AT] = _EMBED_FAIL
    return planned


def reaches_a_model(method: str, path: str, status: int | None) -> bool:
    """Whether the gateway asks a model, by what it answers: 401 and 429 are its own."""
    return method == "POST" and path in (EMBEDDINGS, CHAT) and status not in (401, 429)


def outcomes(planned: Iterable[Planned]) -> Counter[Outcome]:
    """How often each outcome is owed."""
    return Counter((request.method, request.path, request.status) for request in planned)
