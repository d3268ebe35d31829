# SPDX-License-Identifier: Apache-2.0
"""What the programs make of bytes on the wire: the same that parsers do which others wrote."""

from __future__ import annotations

from collections.abc import Iterator

import judges
import pytest
import rfc9112
from conversations import Conversation, Turn
from host_programs import HostPrograms, build

from otelbpf.kernel.records import Counter

pytestmark = pytest.mark.impure  # gcc


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostPrograms]:
    programs = HostPrograms(build(tmp_path_factory.mktemp("host")))
    yield programs
    programs.close()


@pytest.mark.parametrize("of_client", [False, True])
@pytest.mark.parametrize("judge", [rfc9112, judges.H11, judges.Llhttp])
def test_a_request_and_its_response_are_what_a_judge_says(
    programs: HostPrograms, judge: type[judges.H11], of_client: bool
) -> None:
    asked = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nno"
    answered = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n"
    turns = Turn(True, asked), Turn(False, answered)
    outcome = programs.play(Conversation(turns, of_client=of_client))
    assert outcome.counts == {Counter.SEEN: 1, Counter.CONNECTIONS_OPENED: 1}
    (record,) = outcome.records
    asked_of, answered_of = (
        judge.request(asked, 0),
        judge.response(answered, 0, b"POST", closed=False),
    )
    assert record["http1"]["request_line"].startswith(asked_of.line + b"\r\n")
    assert record["request_bytes"] == asked_of.size == len(asked)
    assert record["request_body_bytes"] == asked_of.body == 2
    assert record["status"] == answered_of.status == 200
    assert record["response_bytes"] == answered_of.size == len(answered)
    assert record["response_body_bytes"] == answered_of.body == 3
