# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import re
import socket
import threading
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _plan, _transport
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
    ],
)
def test_address(text: str, expected: tuple[str, str, str, int]) -> None:
    address = _transport.parse_address(text)
    assert (address.kind, address.path, address.host, address.port) == expected
    assert address.text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "run/a.sock",
        "unix://a.sock",
        "/run/a\0b",
        "/" + "x" * 107,
        "tcp://lb1",
        "tcp://lb1:0",
        "tcp://lb1:65536",
        "tcp://::1:80",
        "tcp://[::1]",
        "tcp://a b:80",
        "http://lb1:80",
        "master:///run/m.sock",
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


@pytest.mark.parametrize(
    "command",
    [
        "",
        "   ",
        "a\nb",
        "a\rb",
        "a\0b",
        "a;b",
        "a\\\\;b",
        "a \\",
        "add map x <<",
        "a b<<EOF",
        "a \\<<x <<",
        "x" * 4096,
        "\ud800",
    ],
)
def test_encode_line_refuses(command: str) -> None:
    with pytest.raises(InputError):
        _transport.encode_line(command)


@pytest.mark.parametrize(
    "command", ["show stat", "set map m k a\\;b", "a\\\\", "a \\<\\<x", "x" * 4095, "é"]
)
def test_encode_line_carries(command: str) -> None:
    assert _transport.encode_line(command) == command.encode() + b"\n"


def haproxy_words(line: str) -> list[list[str]]:
    """HAProxy's own reading of a line: `;` separates commands, blanks words, a backslash escapes."""
    commands: list[list[str]] = [[]]
    word: list[str] | None = None
    chars = iter(line)
    for char in chars:
        if char == "\\":
            word = [*(word or []), next(chars)]
        elif char in " \t;":
            if word is not None:
                commands[-1].append("".join(word))
                word = None
            if char == ";":
                commands.append([])
        else:
            word = [*(word or []), char]
    if word is not None:
        commands[-1].append("".join(word))
    return commands


@given(st.text(min_size=1, max_size=200))
def test_a_word_arrives_unchanged_or_is_refused(text: str) -> None:
    try:
        line = _transport.encode_line(f"set map m k {_plan.word(text)}").decode()
    except InputError:
        return
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert "<<" not in line
    assert haproxy_words(line[:-1]) == [["set", "map", "m", "k", text]]


@given(st.text(alphabet="ab \t;\\<\n\r\0", min_size=1, max_size=12))
def test_only_line_breaks_and_nul_are_refused(text: str) -> None:
    carried = not set(text) & set("\n\r\0")
    try:
        _transport.encode_line(f"x {_plan.word(text)}")
    except InputError:
        assert not carried
    else:
        assert carried


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
            sock, _addr = self._listener.accept()
            with sock:
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
    def reply(line: str) -> bytes:
        return b"b\n> set server x\n> " if line == "show b" else b"a\n> "

    complains = pytest.raises(ProtocolError, match="more than it was asked for")
    with talking(path, reply) as (connection, _peer), complains:
        connection.exchange(["show a", "show b"])
