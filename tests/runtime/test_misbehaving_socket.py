# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets that do anything but behave: one sentence, inside the deadline.

haproxy_server runs in a process of its own, so a hang or a traceback is seen as what it is.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
import typing as t
from collections.abc import Iterator
from pathlib import Path

import every_module
import pytest
from harness import (
    FULL,
    VERSIONS,
    Certificates,
    Haproxy,
    Relay,
    free_port,
    is_change,
    reload,
    run_module,
    run_module_process,
)

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
    assert result.get("changed", False) is False
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
    assert len(result["commands"]) == 4
    assert 1 <= len(result["unknown"]) <= 256 + 4
    assert len(result["commands"]) + len(result["unknown"]) + len(result["not_sent"]) == 600


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


# --- every module ---------------------------------------------------------------------------

# Modules whose work is to pass on what HAProxy says, whatever that is.
SHOW = {"haproxy_command", "haproxy_info"}
SHORT = 0.3
INFO = (
    "Name: HAProxy\nVersion: 3.2.26-1\nNbthread: 2\nPid: 4\nUptime: 0d 0h01m00s\nUptime_sec: 60\n"
    "Maxconn: 200\nHard_maxconn: 200\nStopping: 0\n"
)


def tls_hello(sock: socket.socket) -> None:
    sock.recv(100)
    # The alert with which TLS answers what is no TLS.
    sock.sendall(b"\x15\x03\x01\x00\x02\x02\x16")


def stream(sock: socket.socket) -> None:
    """Never a prompt, and never a pause."""
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(b"x" * 4096 + b"\n")
            time.sleep(0.001)


def half_a_letter(sock: socket.socket) -> None:
    sock.sendall("é".encode()[:1])


def afterwards(reply: t.Any) -> Behaviour:
    """HAProxy as far as a task's first questions go."""
    known = {"prompt": b"\n> ", "show cli level": b"admin\n\n> "}
    known["show info"] = INFO.encode() + b"\n> "
    known["set severity-output"] = b"\n> "
    return lambda sock: talk(sock, {**known, "": reply})


FROM_THE_START: dict[str, tuple[Behaviour, str]] = {
    "silent": (silent, "did not answer"),
    "closing": (closing, "closed the connection"),
    "an SSH server": (other_protocol, "does not speak HAProxy's runtime API"),
    "a web server": (http, "does not speak HAProxy's runtime API"),
    "a TLS server": (tls_hello, "does not speak HAProxy's runtime API"),
    "binary": (binary, "does not speak HAProxy's runtime API"),
    "a stream": (stream, "does not speak HAProxy's runtime API"),
}
AFTERWARDS: dict[str, tuple[t.Any, str]] = {
    "silent": (silent, "did not answer"),
    "dripping": (drip, "bytes of its reply"),
    "cut": (cut, "in the middle of its reply"),
    "closing": (lambda sock: None, "closed the connection"),
    "a stream": (stream, "bytes of its reply"),
    "half a letter": (half_a_letter, "in the middle of its reply"),
}
# Answers that end as HAProxy's do, so that a task has to make sense of them.
NONSENSE: dict[str, bytes] = {
    "binary": b"\xff\xfe\x00garbage\r\n\n> ",
    "half a letter": b"\xc3\n> ",
    "words": b"I beg your pardon?\n\n> ",
    "unknown": b"Unknown command: 'show', but maybe one of the following ones is better:\n\n> ",
    "denied": b"Permission denied\n\n> ",
    "a web page": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\n> ",
    "a header alone": b"# be_id be_name\n\n> ",
    "numbers": b"1\n2 3 4 5\n6\n\n> ",
    "control characters": b"\x1b[31m\x07\x9b\x85\xe2\x80\xa8\n\n> ",
    "too many": b"a\n> b\n> c\n> ",
}


def least(module: str, directory: Path, certificates: Certificates) -> dict[str, t.Any]:
    return every_module.scene(directory, certificates).arguments(module)


def seconds_of(start: float, limit: float) -> None:
    assert time.monotonic() - start < limit


@pytest.mark.parametrize("case", FROM_THE_START)
@pytest.mark.parametrize("module", every_module.NAMES)
def test_every_module_from_the_start(
    short_path: Path, certificates: Certificates, module: str, case: str
) -> None:
    behaviour, words = FROM_THE_START[case]
    path = short_path / "sock"
    given = {**least(module, short_path, certificates), "socket": [str(path)], "timeout": SHORT}
    with listening(path, behaviour):
        start = time.monotonic()
        result = run_module(module, given)
        seconds_of(start, SHORT + 1)
    assert_one_sentence(result, "", [words, str(path)])


@pytest.mark.parametrize("case", AFTERWARDS)
@pytest.mark.parametrize("module", every_module.NAMES)
def test_every_module_afterwards(
    short_path: Path, certificates: Certificates, module: str, case: str
) -> None:
    reply, words = AFTERWARDS[case]
    path = short_path / "sock"
    given = {**least(module, short_path, certificates), "socket": [str(path)], "timeout": SHORT}
    with listening(path, afterwards(reply)):
        start = time.monotonic()
        result = run_module(module, given)
        seconds_of(start, 2 * SHORT + 1)
    assert_one_sentence(result, "", [words, str(path)])


@pytest.mark.parametrize("case", NONSENSE)
@pytest.mark.parametrize("module", every_module.NAMES)
def test_every_module_and_nonsense(
    short_path: Path, certificates: Certificates, module: str, case: str
) -> None:
    """Nobody who talks nonsense is believed to have changed anything."""
    path = short_path / "sock"
    given = {**least(module, short_path, certificates), "socket": [str(path)], "timeout": SHORT}
    with listening(path, afterwards(NONSENSE[case])):
        start = time.monotonic()
        result = run_module(module, given)
        seconds_of(start, 4)
    if module not in SHOW or result.get("failed"):
        assert_one_sentence(result, "", [])


def stopped(pid: int) -> bool:
    states = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(text.rpartition(")")[2].split()[0] == "T" for text in states)


CELLS = [
    pytest.param(module, version, id=f"{module}-{version}")
    for number, module in enumerate(every_module.NAMES)
    for offset, version in enumerate(VERSIONS)
    if FULL or offset == number % len(VERSIONS)
]


@pytest.mark.parametrize("event", ["killed", "stuck", "reloaded"])
@pytest.mark.parametrize(("module", "version"), CELLS)
def test_every_module_at_its_first_change(
    start_haproxy: t.Callable[..., Haproxy],
    relay: t.Callable[..., Relay],
    short_path: Path,
    certificates: Certificates,
    module: str,
    version: str,
    event: str,
) -> None:
    """A real HAProxy that dies, hangs or is replaced just as the first changing command arrives."""
    scene = every_module.scene(short_path, certificates)
    hap = start_haproxy(scene.config(free_port()), master=event == "reloaded")
    wire = relay(hap)
    happened: list[bytes] = []

    def meanwhile(data: bytes) -> None:
        changes = [line for line in data.split(b"\n") if line and is_change(line.decode())]
        if changes and not happened:
            happened.extend(changes)
            if event == "killed":
                hap.process.kill()
                hap.process.wait(5)
            elif event == "stuck":
                hap.process.send_signal(signal.SIGSTOP)
                # The process goes on until each of its threads has noticed.
                hap.until(lambda: stopped(hap.process.pid))
            else:
                reload(hap)

    wire.meanwhile = meanwhile
    # A reload takes its time, and is over when the command is passed on.
    allowed = 5 if event == "reloaded" else SHORT * 2
    start = time.monotonic()
    result = run_module(
        module, {**scene.arguments(module), "socket": [wire.address], "timeout": allowed}
    )
    seconds_of(start, 20 if event == "reloaded" else 6)
    if module == "haproxy_info":
        assert not happened
        return
    if (module, version) == ("haproxy_dynamic_server", "2.2"):
        assert "exists since HAProxy 2.6" in result["msg"]
        assert not happened
        return
    assert happened
    assert result["failed"] is True, result
    assert "exception" not in result
    assert "\n" not in result["msg"]
    assert result["changed"] is bool(result["commands"])
    if event == "reloaded":
        # The escape hatch passes on what the old process says.
        assert ("refused" if module in SHOW else "reloaded") in result["msg"]
    else:
        assert str(wire.path) in result["msg"]
        assert result["commands"] == []
        assert len(result["unknown"]) >= 1
