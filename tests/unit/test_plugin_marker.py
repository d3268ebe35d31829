# SPDX-License-Identifier: Apache-2.0
"""The mark is the struct of bpf/mark.h; what this kernel answers where nobody listens."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from otelbpf_plugin import marker, spans

HEADER = Path(__file__).resolve().parents[2] / "bpf/mark.h"
# In the order of marker.MARK.
FIELDS = ("trace_id", "span_id", "parent_span_id", "peer_address", "local_address", "peer_port",
          "local_port", "trace_flags")
OWN_SOCKET = marker.MARK.pack(bytes(16), bytes(8), bytes(8), bytes(16), bytes(16), 0, 0, 0)
ADDRESSED = marker.MARK.pack(bytes(16), bytes(8), bytes(8), bytes(16), bytes(16), 7, 7, 0)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marker, "quiet_until", {})


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's and a server's end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        yield client, server


def test_the_mark_is_the_kernel_s_struct(tmp_path: Path) -> None:
    names = re.findall(r"^\t__u\w+ (\w+)", HEADER.read_text(), re.MULTILINE)
    assert tuple(names) == FIELDS
    program = "\n".join(
        ["#include <linux/types.h>", "#include <stdio.h>", "#include <stddef.h>",
         f'#include "{HEADER}"', "int main(void) {",
         *(f'printf("%zu\\n", offsetof(struct otelbpf_mark, {name}));' for name in FIELDS),
         'printf("%zu\\n", sizeof(struct otelbpf_mark)); }']
    )  # fmt: skip
    command = ["clang", "-x", "c", "-", "-o", tmp_path / "offsets"]
    subprocess.run(command, input=program, text=True, check=True, timeout=60)
    said = subprocess.run([tmp_path / "offsets"], capture_output=True, check=True, timeout=60)
    *offsets, size = map(int, said.stdout.split())
    assert size == marker.MARK.size
    assert sorted(offsets) == offsets
    values = [bytes([i]) * n for i, n in enumerate((16, 8, 8, 16, 16), start=1)]
    packed = marker.MARK.pack(*values, 0x0606, 0x0707, 0x08080808)
    for number, (start, end) in enumerate(zip(offsets, [*offsets[1:], size], strict=True), 1):
        assert packed[start:end] == bytes([number]) * (end - start), FIELDS[number - 1]


@pytest.mark.parametrize(("name", "value"), [
    ("LEVEL", marker.LEVEL), ("START", marker.START), ("END", marker.END),
])  # fmt: skip
def test_numbers_are_those_of_the_header(name: str, value: int) -> None:
    (found,) = re.findall(rf"#define OTELBPF_MARK_{name} (\w+)", HEADER.read_text())
    assert int(found, 0) == value


def test_a_server_that_is_not_measured_is_left_alone_for_a_while(
    connection: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marker.time, "monotonic", lambda: 100.0)
    assert marker.start("a", connection[1].fileno(), OWN_SOCKET) is False
    assert marker.quiet_until == {"a": 101.0}
    with socket.socket() as any_one:
        assert marker.start("b", any_one.fileno(), ADDRESSED) is False
    assert marker.quiet_until == {"a": 101.0, "b": 101.0}


def test_unix_sockets_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert marker.start("unix", ours.fileno(), OWN_SOCKET) is False
    assert "unix" in marker.quiet_until


def test_a_client_that_has_gone_says_nothing_of_the_server(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    """The kernel's answer is the same: its socket has no port any more."""
    client, server = connection
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    assert marker.start("a", server.fileno(), OWN_SOCKET) is False
    fd = server.fileno()
    server.close()
    assert marker.start("a", fd, OWN_SOCKET) is False
    assert marker.quiet_until == {}


@pytest.mark.parametrize("answer", [marker.JOINED, marker.UNKNOWN_REQUEST])
def test_a_measured_server_is_asked_for_each_request(
    monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    monkeypatch.setattr(marker, "tell", lambda *_: answer)
    assert marker.start("a", 0, ADDRESSED) is (answer == marker.JOINED)
    assert marker.quiet_until == {}


def test_what_clients_say_does_not_fill_the_memory() -> None:
    """A server's port is a header's, where a middleware believes in those."""
    with socket.socket() as any_one:
        for number in range(1000):
            marker.start(number, any_one.fileno(), ADDRESSED)
    assert len(marker.quiet_until) <= 256


def test_threads_share_the_one_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them may have one that is closed again."""
    for _ in range(50):
        monkeypatch.setattr(spans, "_sockets", {})
        barrier = threading.Barrier(8)
        answers: list[int] = []

        def tell(barrier: threading.Barrier = barrier, answers: list[int] = answers) -> None:
            barrier.wait()
            fd = spans._any_socket().fileno()
            barrier.wait()
            answers.append(fd)

        threads = [threading.Thread(target=tell) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(answers) == {spans._any_socket().fileno()}
