# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _transport
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    InputError,
    ProtocolError,
    SocketError,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/run/a.sock", ("unix", "/run/a.sock", "", 0)),
        ("unix:///run/a.sock", ("unix", "/run/a.sock", "", 0)),
        ("tcp://lb1:9999", ("tcp", "", "lb1", 9999)),
        ("tcp://192.0.2.1:1", ("tcp", "", "192.0.2.1", 1)),
        ("tcp://[::1]:65535", ("tcp", "", "::1", 65535)),
        ("tcp://[fe80::1%eth0]:80", ("tcp", "", "fe80::1%eth0", 80)),
        ("tls://lb1:9999", ("tls", "", "lb1", 9999)),
        ("master:///run/m.sock", ("unix", "/run/m.sock", "", 0)),
        ("master://lb1:9999", ("tcp", "", "lb1", 9999)),
    ],
)
def test_address(text: str, expected: tuple[str, str, str, int]) -> None:
    address = _transport.parse_address(text)
    assert (address.kind, address.path, address.host, address.port) == expected
    assert address.text == text
    assert address.master is text.startswith("master:")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "run/a.sock",
        "unix://a.sock",
        "/run/a\0b",
        "/run/\ud800",
        "/" + "x" * 107,
        "tcp://lb1",
        "tcp://lb1:0",
        "tcp://lb1:65536",
        "tcp://::1:80",
        "tcp://[::1]",
        "tcp://a b:80",
        "http://lb1:80",
        "master://",
        "master://run/m.sock",
        "master://lb1",
    ],
)
def test_bad_address(text: str) -> None:
    with pytest.raises(InputError, match="socket"):
        _transport.parse_address(text)


def test_usual_address(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    second.write_text("")
    assert _transport.usual_address([str(first), str(second)]).path == str(second)
    second.unlink()
    with pytest.raises(SocketError, match=re.escape(f"tried {first}, {second}")):
        _transport.usual_address([str(first), str(second)])


# --- a conversation with a real socket ------------------------------------------------------


class Peer:
    """The other end: answers each line by `reply(line)`, or closes when that is None."""

    def __init__(self, path: Path, reply: t.Callable[[str], bytes | None]) -> None:
        self.lines: list[str] = []
        self.most_unanswered = 0
        self._reply = reply
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self.sock, _addr = self._listener.accept()
            with self.sock as sock:
                for line in sock.makefile("rb"):
                    text = line.decode().rstrip("\n")
                    self.lines.append(text)
                    answer = b"\n> " if text == "prompt" else self._reply(text)
                    if answer is None:
                        return
                    sock.sendall(answer)

    def close(self) -> None:
        self._listener.close()


@contextlib.contextmanager
def talking(path: Path, reply: t.Callable[[str], bytes | None]) -> Iterator[t.Any]:
    peer = Peer(path, reply)
    connection = _transport.Connection(_transport.parse_address(str(path)), 2)
    try:
        yield connection, peer
    finally:
        connection.close()
        peer.close()


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="clp-", dir="/tmp") as name:
        yield Path(name) / "s"


def test_replies_belong_to_their_commands(path: Path) -> None:
    with talking(path, lambda line: f"{line}!\n\n> ".encode()) as (connection, peer):
        commands = [f"show {n}" for n in range(1000)]
        assert connection.exchange(commands) == [f"{line}!\n" for line in commands]
        assert connection.exchange(["one more"]) == ["one more!\n"]
        assert peer.lines == ["prompt", *commands, "one more"]


def test_a_prompt_inside_a_lone_reply_is_text(path: Path) -> None:
    text = "key a\n> b\n> c\n"
    with talking(path, lambda line: f"{text}\n> ".encode()) as (connection, _peer):
        assert connection.exchange(["show map x"]) == [text]


def test_stops_after_a_refusal(path: Path) -> None:
    with talking(path, lambda line: b"no\n\n> ") as (connection, peer):
        commands = [f"set {n}" for n in range(1000)]
        replies = connection.exchange(commands, accept=lambda _c, reply: False)
        assert 1 <= len(replies) <= _transport.WINDOW
        assert peer.lines == ["prompt", *commands[: len(replies)]]


def test_nothing_is_sent_when_one_command_is_bad(path: Path) -> None:
    with talking(path, lambda line: b"\n> ") as (connection, peer):
        with pytest.raises(InputError):
            connection.exchange(["set a", "set b;c"])
        assert peer.lines == []


def test_broken_off_says_how_far_it_came(path: Path) -> None:
    def reply(line: str) -> bytes | None:
        return None if line == "set 3" else b"\n> "

    with talking(path, reply) as (connection, _peer):
        with pytest.raises(_transport.BrokenOff) as caught:
            connection.exchange([f"set {n}" for n in range(10)])
        assert caught.value.replies == ["", "", ""]
        assert 4 <= caught.value.started <= 10


def test_unasked_text_is_not_taken_for_a_reply(path: Path) -> None:
    """What follows the last reply belongs to it; what comes later is nobody's reply."""

    def reply(line: str) -> bytes:
        return b"b\n> set server x\n> " if line == "show b" else b"a\n> "

    with talking(path, reply) as (connection, peer):
        assert connection.exchange(["show a", "show b"]) == ["a", "b\n> set server x"]
        peer.sock.sendall(b"unasked\n> ")
        with pytest.raises(ProtocolError, match="more than it was asked for"):
            connection.exchange(["show a"])
        # The conversation is over; the next one begins anew and with a reply of its own.
        assert peer.lines == ["prompt", "show a", "show b"]


def test_the_master_is_not_asked_for_another_worker(path: Path) -> None:
    connection = _transport.Connection(_transport.parse_address(f"master://{path}"), 1)
    with pytest.raises(InputError, match="leave the worker"):
        connection.exchange(["show info", " @1 show info"])


@pytest.mark.parametrize(
    "text",
    ["tcp://a..b:80", "tls://.b:80", "tcp://\ud800:80", f"tcp://{'x' * 64}.b:80", "tcp://a\0b:80"],
)
def test_what_no_host_can_be(text: str) -> None:
    connection = _transport.Connection(_transport.parse_address(text), 1)
    with pytest.raises(SocketError, match="cannot find the address"):
        connection.exchange(["show info"])


# --- framing, however the octets come ------------------------------------------------------


class Chopped(_transport.Connection):
    """A conversation whose other side has said everything already, in these pieces."""

    def __init__(self, pieces: list[bytes], master: bool = False) -> None:
        address = "master:///run/m" if master else "/run/a"
        super().__init__(_transport.parse_address(address), 1)
        self.pieces = iter(pieces)

    def open(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        if self.address.master:
            self._prompt = b"\n77> "

    def _expect_silence(self) -> None:
        pass

    def _move(self, out: bytearray, deadline: float, waiting_for: str) -> None:
        out.clear()
        piece = next(self.pieces, None)
        if piece is None:
            raise SocketError("the end")
        self._buffer += piece


def chopped(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in zip(edges, edges[1:])]


replies = st.lists(
    st.text(max_size=30).filter(lambda text: "\n> " not in f"\n{text}\n"), min_size=1, max_size=20
)


@given(texts=replies, cuts=st.lists(st.integers(min_value=0), max_size=30))
def test_replies_do_not_depend_on_how_they_are_cut(texts: list[str], cuts: list[int]) -> None:
    data = b"".join(f"{text}\n> ".encode() for text in texts)
    connection = Chopped(chopped(data, cuts))
    assert connection.exchange([f"show {n}" for n in range(len(texts))]) == texts
    connection.close()


@given(text=st.text(max_size=60), cuts=st.lists(st.integers(min_value=0), max_size=8))
def test_through_the_master_only_its_prompt_ends_a_reply(text: str, cuts: list[int]) -> None:
    """A worker's prompt holds its process id."""
    if "\n77> " in f"\n{text}\n":
        return
    connection = Chopped(chopped(f"{text}\n77> ".encode(), cuts), master=True)
    assert connection.exchange(["show map x"]) == [text]
    connection.close()


@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(min_value=0), max_size=8))
def test_noise_ends_with_a_sentence(data: bytes, cuts: list[int]) -> None:
    connection = Chopped(chopped(data, cuts))
    with contextlib.suppress(SocketError):
        said = connection.exchange(["show a", "show b", "show c"])
        assert len(said) == 3
    connection.close()


@given(data=st.binary(max_size=200))
def test_a_noisy_beginning_ends_with_a_sentence(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    connection = _transport.Connection(_transport.parse_address("/run/a"), 0.2)
    connection._connect = lambda deadline: ours  # type: ignore[method-assign]
    ours.setblocking(False)
    with theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.suppress(SocketError):
            connection.open()
            assert data.startswith(b"\n> ")
    connection.close()


def test_the_deadline_is_for_the_whole_reply(path: Path) -> None:
    """However often a little of it comes."""

    def reply(line: str) -> bytes | None:
        for _n in range(100):
            peer.sock.sendall(b"x")
            time.sleep(0.02)
        return b"\n> "

    with talking(path, reply) as (connection, peer):
        connection.timeout = 0.2
        start = time.monotonic()
        with pytest.raises(SocketError, match="bytes of its reply"):
            connection.exchange(["show info"])
        assert time.monotonic() - start < 1
