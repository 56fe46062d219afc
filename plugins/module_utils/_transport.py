# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The only I/O: sockets, deadlines, framing of replies. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import errno
import getpass
import ipaddress
import os
import re
import select
import socket
import stat
import threading
import time
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    InputError,
    NoAnswerError,
    ProtocolError,
    SocketError,
)

# Where Debian, the old module's users and the Red Hat family put the admin socket.
USUAL_SOCKETS = (
    "/run/haproxy/admin.sock",
    "/run/haproxy.sock",
    "/var/run/haproxy.sock",
    "/var/lib/haproxy/stats",
    "/var/lib/haproxy/haproxy.sock",
)

# HAProxy 2.2 and 2.6 lose a connection for good when a line exceeds about 15 KiB.
LINE_LIMIT = 4096
# So many commands may be on their way before a reply must have come back.
WINDOW = 256
# 10,000 servers are 0.7 MB of state and 3 MB of statistics; more than this is not HAProxy's.
REPLY_LIMIT = 64 * 1024 * 1024

_PROMPT = b"\n> "
_UNIX_PATH_LIMIT = 107


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a socket is: `text` as the user wrote it, and its parts."""

    text: str
    kind: str
    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return self.path if self.kind == "unix" else self.text


def parse_address(text: str) -> Address:
    """Understand `/path`, `unix:///path`, `tcp://host:port` and `tcp://[v6]:port`."""
    scheme, sep, rest = text.partition("://")
    if not sep:
        scheme, rest = "unix", text
    if scheme == "unix":
        if not rest.startswith("/") or "\0" in rest:
            raise InputError(
                f"socket {text!r}: not an absolute path; write it as /run/haproxy/admin.sock, "
                "unix:///run/haproxy/admin.sock or tcp://host:port",
                socket=text,
            )
        if len(os.fsencode(rest)) > _UNIX_PATH_LIMIT:
            raise InputError(
                f"socket {text!r}: the path has more than {_UNIX_PATH_LIMIT} bytes, "
                "which a unix socket cannot have",
                socket=text,
            )
        return Address(text, "unix", path=rest)
    if scheme == "tcp":
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:/\[\]]+)):([0-9]{1,5})", rest)
        if match is None or not 1 <= int(match.group(3)) <= 65535:
            raise InputError(
                f"socket {text!r}: write a TCP address as tcp://host:port or tcp://[ipv6]:port",
                socket=text,
            )
        return Address(text, "tcp", host=match.group(1) or match.group(2), port=int(match.group(3)))
    raise InputError(
        f"socket {text!r}: {scheme}:// is not supported; use a path, unix:///path or "
        "tcp://host:port",
        socket=text,
    )


def usual_address(candidates: c.Iterable[str] = USUAL_SOCKETS) -> Address:
    """The first of the usual paths that exists."""
    tried = list(candidates)
    for path in tried:
        if os.path.exists(path):
            return parse_address(path)
    raise SocketError(
        f"no HAProxy socket was found; tried {', '.join(tried)}: is HAProxy running with a "
        "'stats socket' line? Name its path with the option socket",
        tried=tried,
    )


def encode_line(command: str) -> bytes:
    """The bytes of exactly one command: the last guard against one line becoming two commands.

    Refuses whatever would end the line early, start a second command, start a payload, or swallow
    the line's end. Words are made safe before, by whoever builds the command.
    """
    if not command.strip():
        raise InputError("an empty command cannot be sent", command=command)
    if re.search(r"[\n\r\0]", command):
        raise InputError(
            f"the command {command!r} contains a line break or a NUL, which HAProxy's grammar "
            "cannot carry",
            command=command,
        )
    # Escaped characters are plain text for HAProxy; what is left over is grammar.
    bare = re.sub(r"\\.", "", command)
    if bare.endswith("\\") or ";" in bare or "<<" in bare:
        raise InputError(
            f"the command {command!r} contains an unescaped ';', '<<' or final '\\'",
            command=command,
        )
    try:
        line = command.encode("utf-8") + b"\n"
    except UnicodeEncodeError:
        raise InputError(f"the command {command!r} is not valid text", command=command) from None
    if len(line) > LINE_LIMIT:
        raise InputError(
            f"the command {command[:60]!r}… has {len(line)} bytes; no line may exceed {LINE_LIMIT}",
            command=command[:200],
        )
    return line


class BrokenOff(SocketError):
    """The conversation ended in the middle of a batch; says how far it came."""

    def __init__(self, cause: SocketError, replies: list[str], started: int) -> None:
        super().__init__(str(cause), **cause.details)
        self.replies = replies
        self.started = started


class ClosedIdle(SocketError):
    """HAProxy closed the connection while nothing was asked; nothing was sent over it since."""


class Connection:
    """One conversation in HAProxy's prompt mode: a command a line, a reply a command."""

    def __init__(self, address: Address, timeout: float) -> None:
        self.address = address
        self.timeout = timeout
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        # When the first conversation began; opening again does not change it.
        self.began: float | None = None

    def open(self) -> None:
        """Connect and switch to prompt mode, within one deadline."""
        deadline = time.monotonic() + self.timeout
        self._socket = self._connect(deadline)
        self._buffer.clear()
        try:
            self._handshake(deadline)
        except SocketError:
            self.close()
            raise
        if self.began is None:
            self.began = time.monotonic()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def exchange(
        self,
        commands: c.Sequence[str],
        *,
        accept: t.Callable[[str, str], bool] | None = None,
    ) -> list[str]:
        """Send the commands and return their replies, in order.

        `accept(command, reply)` looks at each reply as it comes; after it says False nothing more
        is sent, and the replies to what was already on its way are still collected.
        """
        lines = [encode_line(command) for command in commands]
        if self._socket is None:
            self.open()
        self._expect_silence()
        replies: list[str] = []
        started = 0
        stopped = False
        out = bytearray()
        deadline = time.monotonic() + self.timeout
        try:
            while len(replies) < started or (started < len(lines) and not stopped):
                while started < len(lines) and started - len(replies) < WINDOW and not stopped:
                    out += lines[started]
                    started += 1
                self._move(out, deadline, commands[len(replies)])
                while len(replies) < started:
                    # A reply that is alone on its way ends where the data ends, so a prompt inside
                    # its text is not mistaken for its end.
                    reply = self._take_reply(alone=len(lines) == 1)
                    if reply is None:
                        break
                    deadline = time.monotonic() + self.timeout
                    if accept is not None and not accept(commands[len(replies)], reply):
                        stopped = True
                    replies.append(reply)
        except SocketError as exc:
            self.close()
            raise BrokenOff(exc, replies, started) from None
        if self._buffer:
            self.close()
            raise ProtocolError(
                f"{self.address} sent more than it was asked for: {bytes(self._buffer[:60])!r}",
                socket=self.address.text,
            )
        return replies

    # --- connecting -------------------------------------------------------------------------

    def _connect(self, deadline: float) -> socket.socket:
        if self.address.kind == "unix":
            return self._connect_unix(deadline)
        return self._connect_tcp(deadline)

    def _connect_unix(self, deadline: float) -> socket.socket:
        path = self.address.path
        pause = 0.01
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                # connect() says "refused" for a plain file too, so look at what is there.
                if not stat.S_ISSOCK(os.stat(path).st_mode):
                    raise self._failure(
                        f"{path} is not a socket: name the path of HAProxy's 'stats socket' line"
                    )
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                sock.connect(path)
                sock.setblocking(False)
                return sock
            except SocketError:
                sock.close()
                raise
            except OSError as exc:
                sock.close()
                # The queue of waiting connections is full; nothing was sent yet, so try again.
                if exc.errno in (errno.EAGAIN, errno.EINPROGRESS) or isinstance(
                    exc, socket.timeout
                ):
                    if time.monotonic() + pause < deadline:
                        time.sleep(pause)
                        pause = min(pause * 2, 0.25)
                        continue
                    raise NoAnswerError(
                        f"{path} accepted no connection within {self.timeout:g} s: HAProxy is "
                        "stuck or its "
                        "queue of waiting connections is full; look at the process and its 'stats "
                        "maxconn'",
                        socket=self.address.text,
                    ) from None
                raise self._failure(_unix_problem(path, exc)) from None

    def _connect_tcp(self, deadline: float) -> socket.socket:
        host, port = self.address.host, self.address.port
        problem = "no address"
        for family, sockaddr in self._resolve(host, port, deadline):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                sock.connect(sockaddr)
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
            except OSError as exc:
                sock.close()
                problem = (
                    "no answer" if isinstance(exc, socket.timeout) else (exc.strerror or str(exc))
                )
        raise self._failure(
            f"cannot connect to {self.address.text} within {self.timeout:g} s ({problem}): is "
            "HAProxy running "
            f"there with 'stats socket ipv4@…:{port}', and does the firewall let this host in?"
        )

    def _resolve(self, host: str, port: int, deadline: float) -> list[tuple[int, t.Any]]:
        """getaddrinfo knows no deadline of its own, so it is left behind when ours passes."""
        found: list[tuple[int, t.Any]] = []
        problem: list[OSError] = []

        def ask() -> None:
            try:
                found.extend(
                    (info[0], info[4])
                    for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                )
            except OSError as exc:
                problem.append(exc)

        try:
            ipaddress.ip_address(host)
            ask()
        except ValueError:
            worker = threading.Thread(target=ask, daemon=True)
            worker.start()
            worker.join(max(deadline - time.monotonic(), 0.001))
        if not found:
            said = (
                (problem[0].strerror or str(problem[0]))
                if problem
                else f"no answer within {self.timeout:g} s"
            )
            raise self._failure(
                f"cannot find the address of {host!r} in {self.address.text}: {said}"
            )
        return list(found)

    def _handshake(self, deadline: float) -> None:
        """Ask for the prompt. Nothing but HAProxy answers this with an empty line and `> `."""
        out = bytearray(b"prompt\n")
        while True:
            self._move(out, deadline, "prompt")
            seen = bytes(self._buffer)
            if seen == _PROMPT:
                self._buffer.clear()
                return
            if seen.startswith(b"\nmaster"):
                raise ProtocolError(
                    f"{self.address} is the socket of HAProxy's master process: name the worker's "
                    "own "
                    "socket, the one of a 'stats socket' line",
                    socket=self.address.text,
                )
            if not _PROMPT.startswith(seen):
                raise ProtocolError(
                    f"{self.address} does not speak HAProxy's runtime API (it answered "
                    f"{seen[:40]!r}): name "
                    "the socket of a 'stats socket' line",
                    socket=self.address.text,
                )

    # --- moving bytes -----------------------------------------------------------------------

    def _move(self, out: bytearray, deadline: float, waiting_for: str) -> None:
        """Wait until bytes can go or come, and move them; raises when the deadline passes first."""
        sock = self._socket
        if sock is None:
            raise self._failure(f"the connection to {self.address} is closed")
        wanted = select.POLLIN | (select.POLLOUT if out else 0)
        poller = select.poll()
        poller.register(sock, wanted)
        left = deadline - time.monotonic()
        events = poller.poll(max(left, 0) * 1000) if left > 0 else []
        if not events:
            raise self._too_late(waiting_for)
        try:
            # Read first: a closing peer may have said why before it closed.
            if events[0][1] & (select.POLLIN | select.POLLHUP | select.POLLERR):
                data = sock.recv(262144)
                if not data:
                    raise self._cut(waiting_for)
                self._buffer += data
                if len(self._buffer) > REPLY_LIMIT:
                    raise ProtocolError(
                        f"{self.address} sent more than {REPLY_LIMIT // 1048576} MiB in reply to "
                        f"'{waiting_for}', which HAProxy does not",
                        socket=self.address.text,
                    )
            if out and events[0][1] & select.POLLOUT:
                del out[: sock.send(out)]
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno in (errno.EPIPE, errno.ECONNRESET):
                raise self._cut(waiting_for) from None
            raise self._failure(
                f"the connection to {self.address} failed during '{waiting_for}': "
                f"{exc.strerror or exc}"
            ) from None

    def _take_reply(self, *, alone: bool) -> str | None:
        buffer = self._buffer
        if alone:
            end = len(buffer) - len(_PROMPT) if buffer.endswith(_PROMPT) else -1
        else:
            end = buffer.find(_PROMPT)
        if end < 0:
            return None
        text = buffer[:end].decode("utf-8", "replace")
        del buffer[: end + len(_PROMPT)]
        return text

    def _expect_silence(self) -> None:
        """Whatever arrives unasked would be taken for the reply to the next command."""
        sock = self._socket
        if sock is None:
            return
        try:
            data = sock.recv(60)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.close()
        if data:
            raise ProtocolError(
                f"{self.address} sent more than it was asked for: {data!r}",
                socket=self.address.text,
            )
        raise ClosedIdle(
            f"{self.address} closed the connection between two commands: HAProxy was stopped, or "
            "its 'stats timeout' has passed",
            socket=self.address.text,
        )

    # --- sentences --------------------------------------------------------------------------

    def _failure(self, sentence: str) -> SocketError:
        return SocketError(sentence, socket=self.address.text)

    def _too_late(self, waiting_for: str) -> NoAnswerError:
        got = len(self._buffer)
        if got:
            sentence = (
                f"{self.address} sent only {got} bytes of its reply to '{waiting_for}' within "
                f"{self.timeout:g} s: HAProxy is overloaded, or this is not its socket; raise "
                "timeout "
                "if the machine is that slow"
            )
        else:
            sentence = (
                f"{self.address} did not answer '{waiting_for}' within {self.timeout:g} s: HAProxy "
                "is stuck, "
                "all connections of its 'stats maxconn' are taken, or this is not its socket"
            )
        return NoAnswerError(sentence, socket=self.address.text)

    def _cut(self, waiting_for: str) -> SocketError:
        got = len(self._buffer)
        how = (
            f"in the middle of its reply to '{waiting_for}'"
            if got
            else f"instead of answering '{waiting_for}'"
        )
        return self._failure(
            f"{self.address} closed the connection {how}: HAProxy was stopped, or this is not its "
            "runtime API"
        )


def _unix_problem(path: str, exc: OSError) -> str:
    if exc.errno in (errno.ENOENT, errno.ENOTDIR):
        return (
            f"the socket {path} does not exist: is HAProxy running, and does its configuration say "
            f"'stats socket {path} level admin'?"
        )
    if exc.errno in (errno.EACCES, errno.EPERM):
        return (
            f"no permission to use the socket {path} as user {_user()}: run the task with become, "
            "or give "
            "the user the socket's group"
        )
    if exc.errno == errno.ECONNREFUSED:
        return (
            f"nothing listens on the socket {path}: HAProxy is not running, or it left this path "
            "behind and "
            "uses another one now"
        )
    if exc.errno == errno.EPROTOTYPE:
        return f"{path} is a socket of another kind: name the path of HAProxy's 'stats socket' line"
    return f"cannot connect to the socket {path}: {exc.strerror or exc}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.geteuid())
