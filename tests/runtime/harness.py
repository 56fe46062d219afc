# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the runtime tests work with: servers, HAProxy processes, a recording relay, module runs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.server
import importlib
import io
import json
import os
import re
import select
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
# Every combination instead of every pair.
FULL = os.environ.get("CLEARPROXY_FULL") == "1"
VERSIONS = os.environ.get("CLEARPROXY_HAPROXY_VERSIONS", "2.2 2.6 3.0 3.2 3.4").split()
MODULES = "ansible_collections.clearproxy.haproxy.plugins.modules"


# --- versions that have it -------------------------------------------------------------------


def since(version: str, what: str) -> pytest.MarkDecorator:
    """For a test of what HAProxy has since `version`: older ones are not asked (tests/runtime/conftest.py)."""
    return pytest.mark.versions(since=version, what=what)


def until(version: str, what: str) -> pytest.MarkDecorator:
    """For a test of what HAProxy had up to `version`."""
    return pytest.mark.versions(until=version, what=what)


# --- servers behind HAProxy -----------------------------------------------------------------


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.server.server_name_of_mine.encode()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: t.Any) -> None:
        """Be quiet."""


class _Quiet:
    def handle_error(self, request: t.Any, client_address: t.Any) -> None:
        """Health checks cut their connections off; that is no news."""


class _HttpServer(_Quiet, socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 64


class _EchoHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while True:
            data = self.request.recv(4096)
            if not data:
                return
            self.request.sendall(data)


class _EchoServer(_Quiet, socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64


@contextlib.contextmanager
def _serving(server: socketserver.TCPServer) -> Iterator[socketserver.TCPServer]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def http_origin(port: int = 0, name: str = "web") -> Iterator[int]:
    """An HTTP server on loopback; its port."""
    server = _HttpServer(("127.0.0.1", port), _Handler)
    server.server_name_of_mine = name  # type: ignore[attr-defined]
    with _serving(server):
        yield server.server_address[1]


@contextlib.contextmanager
def echo_origin() -> Iterator[int]:
    """A TCP server that answers what it is sent, as long as the client likes."""
    with _serving(_EchoServer(("127.0.0.1", 0), _EchoHandler)) as server:
        yield int(server.socket.getsockname()[1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- HAProxy --------------------------------------------------------------------------------


def octets(path: Path | str, command: str) -> bytes:
    """HAProxy's reply, by a client that shares no code with the collection's."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(command.encode() + b"\n")
        chunks = []
        while chunk := sock.recv(65536):
            chunks.append(chunk)
    return b"".join(chunks)


def ask(path: Path | str, command: str) -> str:
    return octets(path, command).decode()


@dataclasses.dataclass
class Haproxy:
    """A running HAProxy: `admin` and `user` are its sockets, `port` its frontend's.

    `process` is the master and `master` its socket, if there is one.
    """

    version: str
    directory: Path
    admin: Path
    user: Path
    port: int
    process: subprocess.Popen[bytes]
    master: Path | None = None

    def ask(self, command: str) -> str:
        return ask(self.admin, command)

    def row(self, backend: str, server: str) -> dict[str, str]:
        """One line of `show servers state`, by column names."""
        lines = self.ask(f"show servers state {backend}").splitlines()
        names = lines[1][2:].split()
        for line in lines[2:]:
            row = dict(zip(names, line.split()))
            if row.get("srv_name") == server:
                return row
        raise AssertionError(f"no {backend}/{server} in {lines}")

    def state(self, backend: str, server: str) -> str:
        admin = int(self.row(backend, server)["srv_admin_state"])
        return "maint" if admin & 1 else "drain" if admin & 8 else "ready"

    def weight(self, backend: str, server: str) -> int:
        return int(self.row(backend, server)["srv_uweight"])

    def status(self, backend: str, server: str) -> str:
        for line in self.ask("show stat").splitlines()[1:]:
            fields = line.split(",")
            if fields[:2] == [backend, server]:
                return fields[17]
        raise AssertionError(f"no {backend}/{server}")

    def until(self, what: Callable[[], bool], seconds: float = 8) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.02)

    @property
    def worker(self) -> int:
        """The process id of whoever answers."""
        return int(re.findall(r"^Pid: ([0-9]+)$", self.ask("show info"), re.M)[0])

    def until_up(self, *labels: str) -> None:
        for label in labels:
            backend, server = label.split("/")
            self.until(lambda b=backend, s=server: self.status(b, s) == "UP")  # type: ignore[misc]


def answers(master: Path | None) -> bool:
    """Whether a master has a worker to pass commands on to; true if there is no master."""
    with contextlib.suppress(OSError):
        return master is None or "Pid:" in ask(master, "@1 show info\nquit")
    return False


def reload(hap: Haproxy) -> None:
    """Have the master replace its worker; returns when the new one answers."""
    # One that is still starting loses the signal.
    hap.until(lambda: answers(hap.master))
    before = hap.worker
    hap.process.send_signal(signal.SIGUSR2)

    def another() -> bool:
        with contextlib.suppress(OSError, IndexError):
            return hap.worker != before
        return False

    hap.until(another)


BASE = """\
global
    stats socket {directory}/admin.sock mode 600 level admin
    stats socket {directory}/operator.sock mode 600 level operator
    stats socket {directory}/user.sock mode 600 level user
    stats timeout 30s
    maxconn 200
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout http-keep-alive 60s
    balance roundrobin
frontend front
    bind 127.0.0.1:{port}
    default_backend {default}
"""


# --- what goes over the wire ----------------------------------------------------------------


# Refused for its missing value, in every version; tells whether there is such a frontend.
_INCOMPLETE = re.compile(r"set maxconn frontend \S+")


class Relay:
    """A socket before HAProxy's that lets everything pass and records what clients sent.

    `kind` is what the client meets: unix, tcp, tls (which demands a client's certificate), or
    master, which is HAProxy's own master socket behind a unix socket.
    """

    def __init__(
        self,
        path: Path,
        target: Path,
        kind: str = "unix",
        certificates: Certificates | None = None,
    ) -> None:
        self.path = path
        # What a module's option `socket` takes, and what other options it needs then.
        self.address = f"master://{path}" if kind == "master" else str(path)
        self.options: dict[str, str] = {}
        self._context: ssl.SSLContext | None = None
        self._target = target
        self._seen = bytearray()
        # Called with what a client sent, before it is passed on.
        self.meanwhile: Callable[[bytes], None] = lambda data: None
        self.connections = 0
        # Why connections broke off; a client or HAProxy that closes its own is no news.
        self.broken: list[OSError] = []
        if kind in ("tcp", "tls"):
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.address = f"{kind}://127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen(16)
        if kind == "tls":
            assert certificates is not None
            self.options = certificates.options
            self._context = certificates.server_context()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _addr = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as upstream:
            try:
                upstream.connect(str(self._target))
                if self._context is None:
                    self._pump(client, upstream)
                else:
                    client.settimeout(10)
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    with self._context.wrap_socket(client, server_side=True) as secured:
                        self._pump(secured, upstream)
            except OSError as exc:
                self.broken.append(exc)

    def _pump(self, client: socket.socket, upstream: socket.socket) -> None:
        """Both ways in one thread: an SSLSocket must not be read and written at the same time."""
        waiting = {client: bytearray(), upstream: bytearray()}
        ended = False
        for sock in waiting:
            sock.setblocking(False)
        while not ended or any(waiting.values()):
            # Not select(), which ends at 1,024 open files.
            poller = select.poll()
            for sock, queue in waiting.items():
                if wanted := (0 if ended else select.POLLIN) | (select.POLLOUT if queue else 0):
                    poller.register(sock, wanted)
            ready = dict(poller.poll())
            can_read = [
                sock
                for sock in waiting
                if not ended and ready.get(sock.fileno(), 0) & ~select.POLLOUT
            ]
            can_write = [
                sock for sock, queue in waiting.items() if queue and sock.fileno() in ready
            ]
            for source, sink in ((client, upstream), (upstream, client)):
                if source in can_read:
                    with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                        # A record of TLS has 16 KiB at most, so nothing stays behind.
                        data = source.recv(262144)
                        ended = ended or not data
                        waiting[sink] += data
                        if source is client:
                            self._seen += data
                            self.meanwhile(data)
            for sock in can_write:
                with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
                    del waiting[sock][: sock.send(waiting[sock])]

    def commands(self) -> list[str]:
        """Every line since the last call, as a worker gets it."""
        lines = bytes(self._seen).decode().split("\n")
        self._seen.clear()
        return [line for line, _payload in _without_master(lines)]

    def changes(self) -> list[str]:
        """The lines since the last call that may change something; payloads with their command."""
        lines = bytes(self._seen).decode().split("\n")
        self._seen.clear()
        return [line for line, payload in _without_master(lines) if payload or is_change(line)]

    def close(self) -> None:
        # Closing alone leaves accept() waiting for ever, and a number of an open file with it.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def is_change(line: str) -> bool:
    """Whether a line may change something."""
    harmless = (
        "show ",
        "prompt",
        "set timeout cli ",
        "set severity-output ",
        "get ",
        "quit",
        "wait ",
        "help",
        "@",
    )
    return not (line.startswith(harmless) or _INCOMPLETE.fullmatch(line))


def _without_master(lines: list[str]) -> Iterator[tuple[str, bool]]:
    """Each line that is not empty, without the master's `@1`, and whether it is a payload's."""
    payload = False
    for line in lines:
        if payload:
            payload = bool(line)
            if line:
                yield line, True
        else:
            text = re.sub(r"^@+!?[0-9]+ ?", "", line)
            payload = text.endswith("<<")
            if text:
                yield text, False


# --- certificates ---------------------------------------------------------------------------


class Certificates:
    """An authority and what it signs, made by the openssl command when first asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @functools.cached_property
    def ca(self) -> Path:
        """The authority that servers and clients are checked against."""
        return self.authority("ca")

    @functools.cached_property
    def options(self) -> dict[str, str]:
        """Module options for a socket that wants a client's certificate."""
        cert, key = self.issue("client")
        return {"client_cert": str(cert), "client_key": str(key), "ca_path": str(self.ca)}

    def authority(self, name: str) -> Path:
        """Another authority's certificate; its key lies beside it."""
        path = self.directory / f"{name}.crt"
        self._openssl(
            *f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name}"
            f" -days 30 -keyout {path.with_suffix('.key')} -out {path}".split()
        )
        return path

    def issue(
        self, name: str, *, names: str = "", days: int = 30, authority: Path | None = None
    ) -> tuple[Path, Path]:
        """A certificate and its key. `names` are alternative ones, as `IP:127.0.0.1,DNS:lb1`."""
        signer = authority or self.ca
        path, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        request, more = self.directory / f"{name}.csr", self.directory / f"{name}.ext"
        more.write_text(f"subjectAltName={names}\n" if names else "")
        self._openssl(
            *"req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
            f" -subj /CN={name} -keyout {key} -out {request}".split()
        )
        self._openssl(
            *f"x509 -req -in {request} -CA {signer} -CAkey {signer.with_suffix('.key')}"
            f" -CAcreateserial -days {days} -extfile {more} -out {path}".split()
        )
        return path, key

    @functools.cached_property
    def server(self) -> Path:
        """A server's certificate for 127.0.0.1 and localhost and its key in one file."""
        cert, key = self.issue("server", names="IP:127.0.0.1,DNS:localhost")
        both = self.directory / "server.pem"
        both.write_text(cert.read_text() + key.read_text())
        return both

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server)
        context.load_verify_locations(self.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _openssl(self, *args: str) -> None:
        done = subprocess.run(["openssl", *args], capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode()


# --- running modules ------------------------------------------------------------------------


def run_module(
    name: str, args: dict[str, t.Any], *, check: bool = False, diff: bool = True
) -> dict[str, t.Any]:
    """Run a module's main() with these arguments, and return what it printed."""
    from ansible.module_utils import testing
    from ansible.module_utils.common import warnings

    # Kept for the life of a process, and returned by every module after the one that warned.
    warnings._global_warnings.clear()
    warnings._global_deprecations.clear()
    module = importlib.import_module(f"{MODULES}.{name}")
    full = {**args, "_ansible_check_mode": check, "_ansible_diff": diff}
    out = io.StringIO()
    patched, captured = testing.patch_module_args(full), contextlib.redirect_stdout(out)
    with patched, captured, contextlib.suppress(SystemExit):
        module.main()
    return t.cast("dict[str, t.Any]", json.loads(out.getvalue()))


def run_module_process(
    name: str, args: dict[str, t.Any], *, deadline: float, uid: int | None = None
) -> tuple[dict[str, t.Any], str, float]:
    """The same in a process of its own that is killed after the deadline: result, stderr, seconds."""
    payload = json.dumps({"ANSIBLE_MODULE_ARGS": args})
    code = (
        "import sys, json, time\n"
        "import ansible.module_utils.basic as b\n"
        "from ansible.module_utils.testing import patch_module_args\n"
        f"import {MODULES}.{name} as m\n"
        # What basic imports only when it is used: another user may not be able to read it.
        "from ansible.module_utils._internal._json._profiles import _module_legacy_c2m\n"
        "from ansible.module_utils._internal._json._profiles import _module_legacy_m2c\n"
        "args = json.loads(sys.argv[1])['ANSIBLE_MODULE_ARGS']\n"
        f"uid = {uid!r}\n"
        "import os\n"
        "if uid is not None: os.setgroups([]); os.setgid(uid); os.setuid(uid)\n"
        "start = time.monotonic()\n"
        "try:\n"
        "    with patch_module_args(args): m.main()\n"
        "finally: print(time.monotonic() - start, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, payload],
        capture_output=True,
        text=True,
        timeout=deadline + 30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
    )
    seconds = float(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout), done.stderr, seconds


# --- check, do, check, do -------------------------------------------------------------------

KINDS = ("unix", "tcp", "tls", "master")


def cells(cases: t.Iterable[str]) -> t.Any:
    """Parametrize a test with case, version and kind of socket: pairwise, or with --full all.

    With at least as many cases and versions as kinds, going through the kinds diagonally meets
    every pair of (case, version), (case, kind) and (version, kind).
    """
    found = []
    for number, case in enumerate(cases):
        for offset, version in enumerate(VERSIONS):
            kinds = KINDS if FULL else (KINDS[(number + offset) % len(KINDS)],)
            found += [
                pytest.param(case, version, kind, id=f"{case}-{version}-{kind}") for kind in kinds
            ]
    return pytest.mark.parametrize(("case", "version", "kind"), found)


def four_steps(
    module: str,
    args: dict[str, t.Any],
    wire: Relay,
    *,
    commands: list[str] | None = None,
    sent: list[str] | None = None,
    always: bool = False,
) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
    """Check mode, real run, check mode, real run; what check mode and the real run returned.

    `commands` are those that the module should return and, unless `sent` says otherwise (payloads,
    replies that decide on later commands), the lines that go over the wire. `always`: for what
    cannot be read back, the second run sends the same again.
    """
    full = {"socket": wire.address, **wire.options, **args}
    wire.commands()
    check = run_module(module, full, check=True)
    assert not check.get("failed"), (check, wire.broken, wire.connections)
    assert wire.changes() == []
    assert check["changed"] is True, check
    done = run_module(module, full)
    assert not done.get("failed"), done
    changes = wire.changes()
    assert done["changed"] is True
    if commands is not None:
        assert check["commands"] == done["commands"] == commands
        assert changes == (commands if sent is None else sent)
    assert changes
    assert done["diff"] == check["diff"]
    again = run_module(module, full, check=True), run_module(module, full)
    for result in again:
        assert not result.get("failed"), result
        assert result["changed"] is always
        if not always:
            assert result["commands"] == []
            assert result["diff"]["before"] == result["diff"]["after"]
    assert wire.changes() == (changes if always else [])
    return check, done
