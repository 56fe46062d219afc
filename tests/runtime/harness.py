# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the runtime tests work with: servers, HAProxy processes, a recording relay, module runs."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import importlib
import io
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
VERSIONS = os.environ.get("CLEARPROXY_HAPROXY_VERSIONS", "2.2 2.6 3.0 3.2 3.4").split()
MODULES = "ansible_collections.clearproxy.haproxy.plugins.modules"


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


def ask(path: Path | str, command: str) -> str:
    """HAProxy's reply, by a client that shares no code with the collection's."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(command.encode() + b"\n")
        chunks = []
        while chunk := sock.recv(65536):
            chunks.append(chunk)
    return b"".join(chunks).decode()


@dataclasses.dataclass
class Haproxy:
    """A running HAProxy: `admin` and `user` are its sockets, `port` its frontend's."""

    version: str
    directory: Path
    admin: Path
    user: Path
    port: int
    process: subprocess.Popen[bytes]

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

    def until_up(self, *labels: str) -> None:
        for label in labels:
            backend, server = label.split("/")
            self.until(lambda b=backend, s=server: self.status(b, s) == "UP")  # type: ignore[misc]


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


class Relay:
    """A socket before HAProxy's that lets everything pass and records what clients sent."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self._target = target
        self._seen = bytearray()
        self.connections = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _addr = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            upstream = socket.socket(socket.AF_UNIX)
            upstream.connect(str(self._target))
            for source, sink, record in ((client, upstream, True), (upstream, client, False)):
                threading.Thread(
                    target=self._pump, args=(source, sink, record), daemon=True
                ).start()

    def _pump(self, source: socket.socket, sink: socket.socket, record: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if record:
                    self._seen += data
                sink.sendall(data)
        for sock in (sink, source):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def commands(self) -> list[str]:
        """Every line since the last call."""
        lines = bytes(self._seen).decode().split("\n")
        self._seen.clear()
        return [line for line in lines if line]

    def changes(self) -> list[str]:
        """The lines since the last call that may change something."""
        harmless = ("show ", "prompt", "set timeout cli ", "get ", "quit")
        return [line for line in self.commands() if not line.startswith(harmless)]

    def close(self) -> None:
        self._listener.close()


# --- running modules ------------------------------------------------------------------------


def run_module(
    name: str, args: dict[str, t.Any], *, check: bool = False, diff: bool = True
) -> dict[str, t.Any]:
    """Run a module's main() with these arguments, and return what it printed."""
    from ansible.module_utils import testing

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
