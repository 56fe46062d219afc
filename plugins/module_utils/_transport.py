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
import ssl
import stat
import threading
import time
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import Command, encode
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

# So many commands may be on their way before a reply must have come back.
WINDOW = 256
# 10,000 servers are 0.7 MB of state and 3 MB of statistics; more than this is not HAProxy's.
REPLY_LIMIT = 64 * 1024 * 1024

# What is asked before the first command has replies of 1 or 2 KiB.
_LITTLE = 64 * 1024

_PROMPT = b"\n> "
# The master's prompt, which tells of a failed reload; between replies it follows an empty line.
_MASTER_START = b"master"
_MASTER_PROMPT = re.compile(rb"master(\[[A-Za-z]+\])?> ")
_MASTER_END = re.compile(rb"\nmaster(\[[A-Za-z]+\])?> \Z")
_ASK_WORKER = "@1 show info"
# Beyond this poll() refuses to wait.
_LONGEST_POLL = 10 * 86400
_NO_WORKER = b"Can't find the target PID"
_UNIX_PATH_LIMIT = 107


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a socket is: `text` as the user wrote it, and its parts.

    `kind` is unix, tcp or tls; `master` tells that HAProxy's master process listens there.
    """

    text: str
    kind: str
    path: str = ""
    host: str = ""
    port: int = 0
    master: bool = False

    def __str__(self) -> str:
        return self.path if self.kind == "unix" else self.text


def parse_address(text: str) -> Address:
    """Understand `/path`, `unix:///path`, `tcp://…`, `tls://…`, and `master://` with either."""
    scheme, sep, rest = text.partition("://")
    if not sep:
        scheme, rest = "unix", text
    master = scheme == "master"
    if master:
        scheme = "unix" if rest.startswith("/") else "tcp"
    if scheme == "unix":
        if not rest.startswith("/") or "\0" in rest:
            raise InputError(
                f"socket {text!r}: not an absolute path; write it as /run/haproxy/admin.sock, "
                "unix:///run/haproxy/admin.sock or tcp://host:port",
                socket=text,
            )
        try:
            length = len(os.fsencode(rest))
        except UnicodeEncodeError:
            raise InputError(f"socket {text!r}: the path is not valid text", socket=text) from None
        if length > _UNIX_PATH_LIMIT:
            raise InputError(
                f"socket {text!r}: the path has more than {_UNIX_PATH_LIMIT} bytes, "
                "which a unix socket cannot have",
                socket=text,
            )
        return Address(text, "unix", path=rest, master=master)
    if scheme in ("tcp", "tls"):
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:/\[\]]+)):([0-9]{1,5})", rest)
        if match is None or not 1 <= int(match.group(3)) <= 65535:
            shown = "master" if master else scheme
            raise InputError(
                f"socket {text!r}: write it as {shown}://host:port or {shown}://[ipv6]:port"
                + (" or master:///path" if master else ""),
                socket=text,
            )
        host = match.group(1) or match.group(2)
        return Address(text, scheme, host=host, port=int(match.group(3)), master=master)
    raise InputError(
        f"socket {text!r}: {scheme}:// is not supported; use a path, unix:///path, "
        "tcp://host:port, tls://host:port or master:///path",
        socket=text,
    )


@dataclasses.dataclass(frozen=True)
class Tls:
    """How a `tls://` socket is talked to; paths of PEM files on the host that connects."""

    client_cert: str | None = None
    client_key: str | None = None
    ca_path: str | None = None
    validate: bool = True

    def context(self) -> ssl.SSLContext:
        """Read the files; a wrong one is named."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if not self.validate:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        try:
            if self.ca_path is None:
                context.load_default_certs()
            elif os.path.isdir(self.ca_path):
                context.load_verify_locations(capath=self.ca_path)
            else:
                context.load_verify_locations(cafile=self.ca_path)
        except (OSError, ssl.SSLError) as exc:
            raise InputError(
                f"ca_path {self.ca_path}: cannot be read as PEM certificates "
                f"({exc.strerror or exc})"
            ) from None
        if self.client_cert is not None:
            try:
                # An encrypted key would ask at a terminal; the empty password fails at once.
                context.load_cert_chain(self.client_cert, self.client_key, password="")
            except (OSError, ssl.SSLError, ValueError) as exc:
                raise InputError(
                    f"client_cert {self.client_cert} and client_key "
                    f"{self.client_key or 'in the same file'}: cannot be read as a PEM certificate "
                    f"and its unencrypted key ({getattr(exc, 'strerror', None) or exc})"
                ) from None
        return context


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

    def __init__(self, address: Address, timeout: float, tls: Tls | None = None) -> None:
        self.address = address
        self.timeout = timeout
        self._tls = tls or Tls()
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        # How much of the buffer has been searched for a prompt.
        self._searched = 0
        self._prompt = _PROMPT
        # A worker behind the master is talked to in lock-step: what the master does with several
        # lines at once differs between versions.
        self._window = 1 if address.master else WINDOW
        # The process id of the worker that all conversations of the task are with.
        self._worker = b""
        # When the first conversation began; opening again does not change it.
        self.began: float | None = None

    def open(self) -> None:
        """Connect and switch to prompt mode, within one deadline."""
        deadline = time.monotonic() + self.timeout
        self._socket = self._connect(deadline)
        self._buffer.clear()
        self._searched = 0
        self._prompt = _PROMPT
        try:
            self._handshake(deadline)
            if self.address.master:
                self._choose_worker(deadline)
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
        commands: c.Sequence[str | Command],
        *,
        accept: t.Callable[[Command, str], bool] | None = None,
        patience: float = 0.0,
        lockstep: bool = False,
    ) -> list[str]:
        """Send the commands and return their replies, in order.

        `accept(command, reply)` looks at each reply as it comes; after it says False nothing more
        is sent, and the replies to what was already on its way are still collected; with `lockstep`
        nothing is. `patience` is what a reply may take longer than the timeout, in seconds.
        """
        window = 1 if lockstep else self._window
        asked = [Command(text) if isinstance(text, str) else text for text in commands]
        lines = [encode(command) for command in asked]
        for command in asked if self.address.master else ():
            if command.text.lstrip(" \t").startswith("@"):
                raise InputError(
                    f"the command {command.text!r} would leave the worker that was chosen; name "
                    "the socket of another process instead",
                    command=command.text,
                )
        allowed = self.timeout + patience
        if self._socket is None:
            self.open()
        self._expect_silence()
        replies: list[str] = []
        started = 0
        stopped = False
        out = bytearray()
        deadline = time.monotonic() + allowed
        try:
            while len(replies) < started or (started < len(lines) and not stopped):
                while started < len(lines) and started - len(replies) < window and not stopped:
                    out += lines[started]
                    started += 1
                self._move(out, deadline, asked[len(replies)].shown)
                for reply in self._take_replies(asked[len(replies) : started]):
                    deadline = time.monotonic() + allowed
                    if accept is not None and not accept(asked[len(replies)], reply):
                        stopped = True
                    replies.append(reply)
        except SocketError as exc:
            self.close()
            raise BrokenOff(exc, replies, started) from None
        return replies

    # --- connecting -------------------------------------------------------------------------

    def _connect(self, deadline: float) -> socket.socket:
        if self.address.kind == "unix":
            return self._connect_unix(deadline)
        if self.address.kind == "tls":
            # Before anything is sent, so that a wrong file is found first.
            context = self._tls.context()
            return self._encrypt(self._connect_tcp(deadline), context, deadline)
        return self._connect_tcp(deadline)

    def _encrypt(
        self, sock: socket.socket, context: ssl.SSLContext, deadline: float
    ) -> socket.socket:
        try:
            # No certificate holds a zone, the part of a link-local address after "%".
            name = self.address.host.partition("%")[0]
            sock = context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            sock.do_handshake()
            sock.setblocking(False)
        except (OSError, ValueError) as exc:
            sock.close()
            raise self._failure(self._tls_problem(exc)) from None
        return sock

    def _tls_problem(self, exc: OSError | ValueError) -> str:
        said = getattr(exc, "reason", None) or getattr(exc, "strerror", None) or str(exc)
        if isinstance(exc, ssl.SSLCertVerificationError):
            return (
                f"the certificate that {self.address} shows is not trusted "
                f"({exc.verify_message}): name its authority with ca_path, and connect to a name "
                "or address that the certificate has"
            )
        if isinstance(exc, socket.timeout):
            return f"{self.address} did not finish the TLS handshake within {self.timeout:g} s"
        if "WRONG_VERSION_NUMBER" in said:
            return (
                f"{self.address} speaks no TLS; HAProxy 2.6 and later ignore ssl on a 'stats "
                "socket' line without a word: put a 'listen' section of mode tcp, with ssl on its "
                "bind line, before the unix socket"
            )
        if "ALERT" in said:
            return (
                f"{self.address} refused the TLS conversation ({said}): {self._certificate_hint()}"
            )
        return (
            f"no TLS with {self.address} ({said}): does the bind line there say ssl crt …, and "
            "does it want a client_cert?"
        )

    def _certificate_hint(self) -> str:
        if self._tls.client_cert is None:
            return "does it want a client_cert?"
        return (
            f"does the ca-file of its bind line hold the authority of {self._tls.client_cert}, "
            "and is that certificate still valid?"
        )

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
        problem: list[str] = []

        def ask() -> None:
            try:
                found.extend(
                    (info[0], info[4])
                    for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                )
            except OSError as exc:
                problem.append(exc.strerror or str(exc))
            except ValueError:
                # What no name can be: an empty or an over-long label, a NUL.
                problem.append("not a host name")

        try:
            ipaddress.ip_address(host)
            ask()
        except ValueError:
            worker = threading.Thread(target=ask, daemon=True)
            worker.start()
            worker.join(max(deadline - time.monotonic(), 0.001))
        if not found:
            said = problem[0] if problem else f"no answer within {self.timeout:g} s"
            raise self._failure(
                f"cannot find the address of {host!r} in {self.address.text}: {said}"
            )
        return list(found)

    def _handshake(self, deadline: float) -> None:
        """Ask for the prompt. Nothing but HAProxy answers this with an empty line and `> `."""
        out = bytearray(b"prompt\n")
        master = False
        while True:
            self._move(out, deadline, "prompt")
            seen = bytes(self._buffer)
            if seen == _PROMPT and not self.address.master:
                self._buffer.clear()
                return
            master = _MASTER_PROMPT.fullmatch(seen) is not None
            if master and self.address.master:
                self._buffer.clear()
                return
            if master:
                raise ProtocolError(
                    f"{self.address} is the socket of HAProxy's master process: write it as "
                    f"master://{self.address.path or f'{self.address.host}:{self.address.port}'}, "
                    "or name the worker's own socket, the one of a 'stats socket' line",
                    socket=self.address.text,
                )
            if self.address.master and seen and _PROMPT.startswith(seen):
                # The first byte of a worker's prompt decides: the master's begins with its name.
                raise ProtocolError(
                    f"{self.address} is a worker's socket, not the one of HAProxy's master "
                    f"process (option -S): write it without master://",
                    socket=self.address.text,
                )
            if not (_PROMPT.startswith(seen) or _MASTER_START.startswith(seen[:6])):
                raise ProtocolError(
                    f"{self.address} does not speak HAProxy's runtime API (it answered "
                    f"{seen[:40]!r}): name "
                    "the socket of a 'stats socket' line",
                    socket=self.address.text,
                )

    def _choose_worker(self, deadline: float) -> None:
        """Have the master pass everything on to the current worker, whatever happens to it.

        By its process id: `@1` would be another worker after a reload.
        """
        out = bytearray(_ASK_WORKER.encode() + b"\n")
        while not (found := _MASTER_END.search(self._buffer)):
            self._move(out, deadline, _ASK_WORKER)
            self._expect_little(_ASK_WORKER)
        info = bytes(self._buffer[: found.start()])
        pid = re.search(rb"^Pid: ([0-9]{1,10})$", info, re.M)
        if pid is None:
            raise self._no_worker()
        self._buffer.clear()
        number = pid.group(1)
        if self._worker not in (b"", number):
            raise self._no_worker()
        self._worker = number
        out = bytearray(b"@!" + number + b"\n")
        while bytes(self._buffer) != number + b"> ":
            self._move(out, deadline, f"@!{number.decode()}")
            self._expect_little(f"@!{number.decode()}")
        self._buffer.clear()
        self._prompt = b"\n" + number + b"> "

    def _expect_little(self, asked: str) -> None:
        if len(self._buffer) > _LITTLE:
            raise ProtocolError(
                f"{self.address} does not speak HAProxy's runtime API: it answered '{asked}' with "
                f"{bytes(self._buffer[:40])!r}…",
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
        events = poller.poll(min(left, _LONGEST_POLL) * 1000) if left > 0 else []
        if not events:
            raise self._too_late(waiting_for)
        try:
            # Read first: a closing peer may have said why before it closed.
            if events[0][1] & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self._receive(sock, waiting_for)
            if out and events[0][1] & select.POLLOUT:
                del out[: sock.send(out)]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except ssl.SSLError as exc:
            raise self._failure(self._tls_problem(exc)) from None
        except OSError as exc:
            if exc.errno in (errno.EPIPE, errno.ECONNRESET):
                raise self._cut(waiting_for) from None
            raise self._failure(
                f"the connection to {self.address} failed during '{waiting_for}': "
                f"{exc.strerror or exc}"
            ) from None

    def _receive(self, sock: socket.socket, waiting_for: str) -> None:
        while True:
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
            # poll() does not see what TLS has decrypted already.
            if not (isinstance(sock, ssl.SSLSocket) and sock.pending()):
                break
        if self.address.master and self._buffer.startswith(_NO_WORKER):
            raise self._no_worker()

    def _take_replies(self, waiting: c.Sequence[Command]) -> list[str]:
        """The replies that are complete, of those that are on their way."""
        buffer, prompt = self._buffer, self._prompt
        if len(waiting) > 1:
            if buffer.find(prompt, max(self._searched - len(prompt), 0)) < 0:
                self._searched = len(buffer)
                return []
            *found, rest = bytes(buffer).split(prompt, len(waiting))
        else:
            found, rest = [], bytes(buffer) if buffer.endswith(prompt) else b""
        if rest and len(found) >= len(waiting) - 1:
            # A reply that is alone on its way ends where the data ends, so a prompt inside its text
            # is not mistaken for its end.
            if len(found) == len(waiting):
                rest = found.pop() + prompt + rest
            if rest.endswith(prompt):
                found.append(rest[: -len(prompt)])
                rest = b""
        if found:
            buffer[:] = rest
            self._searched = 0
        return [
            self._text(reply, command) if reply else "" for reply, command in zip(found, waiting)
        ]

    @staticmethod
    def _text(reply: bytes, command: Command) -> str:
        text = reply.decode("utf-8", "replace")
        if command.payload is not None:
            # HAProxy asks for the lines of a payload with this; since 3.2 only if it has to wait,
            # and then again and again, thousands of times.
            text = re.sub(r"\A(?:\+ )+", "", text)
        return text

    def _expect_silence(self) -> None:
        """Whatever arrives unasked would be taken for the reply to the next command."""
        sock = self._socket
        if sock is None:
            return
        try:
            data = sock.recv(60)
        except (BlockingIOError, ssl.SSLWantReadError):
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
            f"{self.address} closed the connection between two commands: HAProxy was stopped or "
            "reloaded, or its 'stats timeout' has passed",
            socket=self.address.text,
        )

    # --- sentences --------------------------------------------------------------------------

    def _failure(self, sentence: str) -> SocketError:
        return SocketError(sentence, socket=self.address.text)

    def _no_worker(self) -> SocketError:
        if self._worker:
            return self._failure(
                f"the worker behind {self.address} is gone: HAProxy was reloaded or stopped; run "
                "the task again to see what the new one has"
            )
        return self._failure(
            f"the master process at {self.address} has no worker to talk to: is HAProxy starting "
            "or stopping?"
        )

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
        if waiting_for == _ASK_WORKER and not got:
            return self._no_worker()
        how = (
            f"in the middle of its reply to '{waiting_for}'"
            if got
            else f"instead of answering '{waiting_for}'"
        )
        said = bytes(self._buffer).decode("utf-8", "replace")
        if "tune." in said:
            # HAProxy 3.0 and later name the setting that is too small before they close.
            return self._failure(
                f"{self.address} closed the connection {how}: {' '.join(said.split())[-200:]}"
            )
        why = "HAProxy was stopped or reloaded, or this is not its runtime API"
        if waiting_for == "prompt" and self.address.kind == "tls":
            # A client's certificate is looked at after the handshake is over for the client.
            why = f"{self._certificate_hint().rstrip('?')}, and is there a HAProxy behind it?"
        elif waiting_for == "prompt" and self.address.kind == "tcp":
            why += "; a port that speaks TLS is written as tls://host:port"
        return self._failure(f"{self.address} closed the connection {how}: {why}")


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
