# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_server against sockets that do anything but behave: one sentence, inside the deadline.

The module runs in a process of its own, so a hang or a traceback is seen as what it is.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import run_module, run_module_process

TIMEOUT = 0.8
Behaviour = t.Callable[[socket.socket], None]

STATE = (
    "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight "
    "srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health "
    "srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord\n"
    "3 app 1 s1 127.0.0.1 2 0 1 1 5 1 0 0 0 0 0 0 - 80 -\n"
    "3 app 2 s2 127.0.0.1 2 0 1 1 5 1 0 0 0 0 0 0 - 80 -\n"
)


def silent(sock: socket.socket) -> None:
    time.sleep(30)


def closing(sock: socket.socket) -> None:
    sock.recv(100)


def one_byte_a_second(sock: socket.socket) -> None:
    talk(sock, {"show cli level": drip})


def drip(sock: socket.socket) -> None:
    for char in b"admin is what I would like to say":
        sock.sendall(bytes([char]))
        time.sleep(0.3)


def slow_from_the_start(sock: socket.socket) -> None:
    sock.recv(100)
    for char in b"\n> \n> \n> ":
        time.sleep(1)
        sock.sendall(bytes([char]))


def other_protocol(sock: socket.socket) -> None:
    sock.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n")
    time.sleep(30)


def http(sock: socket.socket) -> None:
    sock.recv(100)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def binary(sock: socket.socket) -> None:
    sock.recv(100)
    sock.sendall(bytes(range(255, 0, -1)) * 10)


def master(sock: socket.socket) -> None:
    sock.recv(100)
    sock.sendall(b"\nmaster> ")
    time.sleep(30)


def talk(sock: socket.socket, special: dict[str, t.Any]) -> None:
    """Play HAProxy, but for the commands in `special`."""
    stream = sock.makefile("rb")
    for line in stream:
        command = line.decode().strip()
        for prefix, reply in special.items():
            if command.startswith(prefix):
                if callable(reply):
                    reply(sock)
                    return
                sock.sendall(reply)
                break
        else:
            if command == "prompt":
                sock.sendall(b"\n> ")
            elif command == "show cli level":
                sock.sendall(b"admin\n\n> ")
            elif command.startswith("show servers state"):
                sock.sendall(STATE.encode() + b"\n> ")
            else:
                sock.sendall(b"\n> ")


def answering(**special: t.Any) -> Behaviour:
    table = {key.replace("_", " "): value for key, value in special.items()}
    return lambda sock: talk(sock, table)


def cut(sock: socket.socket) -> None:
    sock.sendall(STATE[:200].encode())


def flood(sock: socket.socket) -> None:
    block = b"x" * 1048576
    with contextlib.suppress(OSError):
        for _n in range(100):
            sock.sendall(block)


# What the socket does, and words that the one sentence must have.
CASES: dict[str, tuple[Behaviour, list[str]]] = {
    "silent": (silent, ["did not answer", "0.8 s"]),
    "closing at once": (closing, ["closed the connection"]),
    "one byte at a time": (one_byte_a_second, ["bytes of its reply to 'show cli level'"]),
    "slow from the start": (slow_from_the_start, ["did not answer 'prompt'"]),
    "another protocol": (other_protocol, ["does not speak HAProxy's runtime API", "SSH-2.0"]),
    "a web server": (http, ["does not speak HAProxy's runtime API", "HTTP/1.1"]),
    "binary": (binary, ["does not speak HAProxy's runtime API"]),
    "master": (master, ["master"]),
    "no level": (answering(show_cli_level=b"Unknown command\n\n> "), ["show cli level"]),
    "garbage for servers": (
        answering(show_servers_state=b"\xff\xfe\x00garbage\n\n> "),
        ["show servers state"],
    ),
    "another format": (answering(show_servers_state=b"2\n# a b\n\n> "), ["format version"]),
    "words for numbers": (
        answering(show_servers_state=STATE.replace(" 80 ", " http ").encode() + b"\n> "),
        ["a number was expected"],
    ),
    "cut in mid-reply": (
        answering(show_servers_state=cut),
        ["in the middle of its reply to 'show servers state app'"],
    ),
    "silent after the level": (
        answering(show_servers_state=silent),
        ["did not answer 'show servers state app'"],
    ),
    "100 MB": (answering(show_servers_state=flood), ["more than 64 MiB"]),
    "more than asked for": (
        answering(show_cli_level=b"admin\n\n> set server is what I say\n> "),
        ["level"],
    ),
}


@contextlib.contextmanager
def listening(path: Path, behaviour: Behaviour, backlog: int = 16) -> Iterator[list[bytes]]:
    """A unix socket that treats every connection this way."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(backlog)

    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            behaviour(sock)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _addr = listener.accept()
                threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield []
    finally:
        listener.close()


def args(path: Path | str, **more: t.Any) -> dict[str, t.Any]:
    given = {"socket": [str(path)], "backend": "app", "servers": ["s1", "s2"], "state": "drain"}
    return {**given, "timeout": TIMEOUT, **more}


def assert_one_sentence(result: dict[str, t.Any], stderr: str, words: list[str]) -> None:
    assert result["failed"] is True
    assert result["changed"] is False
    assert "exception" not in result
    assert "Traceback" not in stderr
    assert "\n" not in result["msg"]
    assert len(result["msg"]) < 400
    for word in words:
        assert word in result["msg"]


@pytest.mark.parametrize("case", CASES)
def test_misbehaving(short_path: Path, case: str) -> None:
    behaviour, words = CASES[case]
    path = short_path / "sock"
    with listening(path, behaviour):
        result, stderr, seconds = run_module_process("haproxy_server", args(path), deadline=20)
    assert_one_sentence(result, stderr, words)
    # Connecting, the level and one read: none may take longer than its own deadline. Reading
    # 64 MiB is the machine's time, not the other side's.
    assert seconds < (20 if case == "100 MB" else 2 * TIMEOUT + 1)
    if case != "more than asked for":
        assert str(path) in result["msg"] or "reply to" in result["msg"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, ["does not exist", "stats socket"]),
        (lambda path: path.write_text(""), ["is not a socket"]),
        (lambda path: path.mkdir(), ["is not a socket"]),
        (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), ["nothing listens"]),
        (lambda path: path.symlink_to("nowhere"), ["does not exist"]),
    ],
    ids=["missing", "file", "directory", "left behind", "dangling link"],
)
def test_no_socket(short_path: Path, make: t.Callable[[Path], t.Any], words: list[str]) -> None:
    path = short_path / "sock"
    make(path)
    result = run_module("haproxy_server", args(path))
    assert_one_sentence(result, "", [*words, str(path)])


def test_datagram_socket(short_path: Path) -> None:
    path = short_path / "sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        assert_one_sentence(
            run_module("haproxy_server", args(path)), "", ["of another kind", str(path)]
        )


def test_full_backlog(short_path: Path) -> None:
    """Nobody accepts, and the queue is full: the kernel refuses with EAGAIN."""
    path = short_path / "sock"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            for _n in range(5):
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))
        start = time.monotonic()
        result = run_module("haproxy_server", args(path))
        assert time.monotonic() - start < TIMEOUT + 1
        assert_one_sentence(result, "", ["accepted no connection", str(path)])


def test_silent_tcp_and_unknown_host() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        result = run_module("haproxy_server", args(f"tcp://127.0.0.1:{port}"))
        assert_one_sentence(result, "", ["did not answer", f"tcp://127.0.0.1:{port}"])
    result = run_module("haproxy_server", args(f"tcp://127.0.0.1:{port}"))
    assert_one_sentence(result, "", ["cannot connect", f"tcp://127.0.0.1:{port}"])
    result = run_module("haproxy_server", args("tcp://no-such-host.invalid:99"))
    assert_one_sentence(result, "", ["cannot find the address", "no-such-host.invalid"])


def test_defaults_name_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible_collections.clearproxy.haproxy.plugins.module_utils import _transport

    # This machine's own HAProxy, should it have one, is none of this test's business.
    monkeypatch.setattr(_transport.os.path, "exists", lambda path: False)
    result = run_module("haproxy_server", {"servers": ["s1"], "state": "drain"})
    assert_one_sentence(result, "", ["/run/haproxy/admin.sock", "/var/lib/haproxy/stats"])
    assert result["tried"] == list(_transport.USUAL_SOCKETS)


def test_gone_in_the_middle_of_a_batch(short_path: Path) -> None:
    """What was carried out, what may have been and what was not: all three are told."""
    rows = "".join(
        f"3 app {n} s{n} 127.0.0.1 2 0 1 1 5 1 0 0 0 0 0 0 - 80 -\n" for n in range(1, 601)
    )
    state = (STATE.split("3 app 1", 1)[0] + rows).encode() + b"\n> "
    seen: list[bytes] = []

    def play(sock: socket.socket) -> None:
        stream = sock.makefile("rb")
        for line in stream:
            if line.startswith(b"set server"):
                seen.append(line)
                if len(seen) == 5:
                    return
                sock.sendall(b"\n> ")
            elif line.startswith(b"show servers"):
                sock.sendall(state)
            elif line.startswith(b"show cli"):
                sock.sendall(b"admin\n\n> ")
            else:
                sock.sendall(b"\n> ")

    path = short_path / "sock"
    with listening(path, play):
        result = run_module("haproxy_server", args(path, servers=["*"]))
    assert result["failed"] is True
    assert result["changed"] is True
    assert "4 were carried out" in result["msg"]
    assert len(result["applied"]) == len(result["commands"]) == 4
    assert 1 <= len(result["unknown"]) <= 256 + 4
    assert len(result["applied"]) + len(result["unknown"]) + len(result["not_sent"]) == 600


def test_refusal_stops_the_batch(short_path: Path) -> None:
    """After the first refusal nothing new is sent; what was on its way is accounted for."""
    rows = "".join(
        f"3 app {n} s{n} 127.0.0.1 2 0 1 1 5 1 0 0 0 0 0 0 - 80 -\n" for n in range(1, 901)
    )
    state = (STATE.split("3 app 1", 1)[0] + rows).encode() + b"\n> "
    path = short_path / "sock"
    with listening(path, answering(show_servers_state=state, set_server=b"No such server.\n\n> ")):
        result = run_module("haproxy_server", args(path, servers=["*"]))
    assert result["failed"] is True
    assert result["changed"] is False
    assert "No such server." in result["msg"]
    assert 1 <= len(result["refused"]) <= 256
    assert len(result["refused"]) + len(result["not_sent"]) == 900
