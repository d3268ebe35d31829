# SPDX-License-Identifier: Apache-2.0
"""The mark is the struct of bpf/abi/mark.h; what this kernel says where nobody listens."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from otelbpf_plugin import marker

HEADER = Path(__file__).resolve().parents[2] / "bpf/abi/mark.h"
# In the order of marker.MARK.
FIELDS = (
    "trace_id",
    "span_id",
    "parent_span_id",
    "peer_address",
    "local_address",
    "peer_port",
    "local_port",
    "trace_flags",
)


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's and a server's end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        yield client, server


@pytest.mark.impure
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
    ("ASK", marker.ASK),
])  # fmt: skip
def test_numbers_are_those_of_the_header(name: str, value: int) -> None:
    (found,) = re.findall(rf"#define OTELBPF_MARK_{name} (\w+)", HEADER.read_text())
    assert int(found, 0) == value


def test_nobody_answers_for_a_port_of_nobody() -> None:
    """This kernel itself; 7 is another protocol's."""
    assert marker.ask(marker.any_socket(), 7) is False


def test_the_port_of_a_socket(connection: tuple[socket.socket, socket.socket]) -> None:
    client, server = connection
    port = client.getpeername()[1]
    assert marker.local_port(server.fileno()) == port
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    assert marker.local_port(server.fileno()) == port
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as six:
        assert marker.local_port(six.fileno()) == six.getsockname()[1]


def test_what_has_no_port(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "app.sock"))
        assert marker.local_port(unix.fileno()) == 0
    assert marker.local_port(unix.fileno()) == 0


def test_threads_share_the_one_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them may have one that is closed again."""
    for _ in range(50):
        monkeypatch.setattr(marker, "_sockets", {})
        barrier = threading.Barrier(8)
        answers: list[int] = []

        def tell(barrier: threading.Barrier = barrier, answers: list[int] = answers) -> None:
            barrier.wait()
            fd = marker.any_socket()
            barrier.wait()
            answers.append(fd)

        threads = [threading.Thread(target=tell) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(answers) == {marker.any_socket()}
