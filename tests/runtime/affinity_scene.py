# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A network of one's own with applications, a HAProxy that the role's own code configured, and clients.

Everything lives in a new network namespace: a network namespace belongs to a thread, so the test's body
runs in a thread that made one, and what it starts (servers, HAProxy) is in there too. Ports are fixed.
Making a namespace needs root, as the lab does.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import secrets
import socket
import subprocess
import threading
import time
import typing as t
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _affinity_config as config

CLONE_NEWNET = 0x40000000
VIP4, VIP6 = "10.81.0.2", "fd81::2"
SERVERS = ("app1", "app2", "app3")
PORT = 8080


def in_namespace(body: Callable[[], None]) -> None:
    """Run the body in a thread with a network of its own; what it raises is raised here."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "a network namespace needs root")
            body()
        except BaseException as error:  # handed to the caller's thread
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if caught:
        raise caught[0]


class Application(BaseHTTPRequestHandler):
    """Tells who it is and what it saw. /session behaves like PHP: Set-Cookie on the first visit only."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = t.cast("Origin", self.server).name
        cookie = "; ".join(self.headers.get_all("Cookie") or [])
        answer = {
            "server": name,
            "client": self.client_address[0],
            "cookie": cookie,
            "path": self.path,
        }
        body = json.dumps(answer).encode()
        self.send_response(200)
        if self.path.startswith("/session") and "PHPSESSID=" not in cookie:
            self.send_header("Set-Cookie", "theme=dark")
            self.send_header("Set-Cookie", f"PHPSESSID={secrets.token_hex(13)}; path=/")
        if self.path.startswith("/asp") and "ASPSESSIONID" not in cookie:
            self.send_header("Set-Cookie", "theme=dark")
            self.send_header("Set-Cookie", f"ASPSESSIONIDQQ={secrets.token_hex(13)}; path=/")
        if self.path.startswith("/public"):
            self.send_header("Cache-Control", "max-age=600")
        if self.path.startswith("/own"):
            self.send_header("Set-Cookie", "SRV=own; path=/")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: t.Any) -> None:
        pass


class Origin(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, PORT), Application)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *_args: t.Any) -> None:
        """HAProxy may close a connection at any time."""

    def server_bind(self) -> None:
        # without HTTPServer's own look-up of the host's name, which waits for a resolver
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "", PORT


class Answer(t.NamedTuple):
    status: int
    server: str
    client: str
    cookie: str
    set_cookies: list[str]
    headers: http.client.HTTPMessage


class Scene:
    """Addresses, applications and one HAProxy."""

    def __init__(self, run: Path, version: str, directory: Path) -> None:
        self.run, self.version, self.directory = run, version, directory
        self.origins: dict[str, list[Origin]] = {}
        self.process: subprocess.Popen[bytes] | None = None
        ip("link", "set", "lo", "up")
        for address in (
            f"{VIP4}/8",
            f"{VIP6}/64",
            "fd81:0:0:1::7/64",
            "fd81:0:0:1::8/64",
            "2002:a51:1::1/64",
        ):
            ip("addr", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
        ip("route", "add", "local", "10.81.1.0/24", "dev", "lo")
        for number, name in enumerate(SERVERS, 11):
            ip("addr", "add", f"fd81::{number}/64", "dev", "lo", "nodad")
            ip("addr", "add", f"10.81.0.{number}/32", "dev", "lo")
            self.origins[name] = [
                Origin(name, f"10.81.0.{number}"),
                Origin(name, f"fd81::{number}"),
            ]

    def plan(self, **variables: t.Any) -> config.Plan:
        parsed = config.parse_version(f"HAProxy version {self.version}")
        variables = {
            "global": {"log": ["stderr format raw local0"], "user": "nobody", "group": "nogroup"},
            "admin_socket": {"path": str(self.directory / "admin.sock")},
            "frontends": [frontend(default_backend="app")],
            **variables,
        }
        plan = config.make_plan(variables, {}, parsed, {"dev_log": False, "state_file": ""})
        assert plan.problems == []
        return plan

    def start(self, plan: config.Plan) -> None:
        """Start; where a process runs already, replace it as a reload does."""
        path = self.directory / "haproxy.cfg"
        path.write_text(text_of(plan))
        self.log = self.directory / "log"
        old = self.process
        replace = ["-sf", str(old.pid)] if old and old.poll() is None else []
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [str(self.run), "-db", "-f", str(path), *replace], stdout=out, stderr=out
            )
        if old and replace:
            old.wait(10)
        end = time.monotonic() + 10
        while self.process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError):
                if self.ask("show info"):
                    return
            time.sleep(0.02)
        raise AssertionError(f"HAProxy {self.version} did not start: {self.log.read_text()}")

    def serve(self, **backend: t.Any) -> None:
        """Start with one backend, app, that has all servers."""
        self.start(self.plan(backends=[{**app(), **backend}]))

    def ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(self.directory / "admin.sock"))
            client.sendall(command.encode() + b"\n")
            answer = b""
            while part := client.recv(65536):
                answer += part
        return answer.decode()

    def get(
        self, path: str = "/", cookie: str = "", source: str = "", to: str = "", port: int = 80
    ) -> Answer:
        to = to or (VIP6 if ":" in source else VIP4)
        connection = http.client.HTTPConnection(
            to, port, timeout=5, source_address=(source, 0) if source else None
        )
        try:
            connection.request(
                "GET",
                path,
                headers={"Connection": "close", **({"Cookie": cookie} if cookie else {})},
            )
            reply = connection.getresponse()
            body = reply.read()
            seen = json.loads(body) if reply.status == 200 else {}
            return Answer(
                reply.status,
                seen.get("server", ""),
                seen.get("client", ""),
                seen.get("cookie", ""),
                reply.headers.get_all("Set-Cookie") or [],
                reply.headers,
            )
        finally:
            connection.close()

    def servers(self, times: int, **request: t.Any) -> Counter[str]:
        """Send the same request several times and count who answered."""
        return Counter(self.get(**request).server for _n in range(times))

    def entries(self, table: str = "app") -> int:
        return sum("key=" in line for line in self.ask(f"show table {table}").splitlines())

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        for origins in self.origins.values():
            for origin in origins:
                origin.shutdown()
                origin.server_close()


def frontend(**more: t.Any) -> dict[str, t.Any]:
    binds = [{"address": VIP4, "port": 80}, {"address": VIP6, "port": 80}]
    return {"name": "www", "binds": binds, **more}


def app(families: str = "4") -> dict[str, t.Any]:
    servers = []
    for number, name in enumerate(SERVERS, 11):
        server: dict[str, t.Any] = {"name": name}
        if "4" in families:
            server["address"] = f"10.81.0.{number}"
        if "6" in families:
            server["address_ipv6"] = f"fd81::{number}"
        servers.append(server)
    return {"name": "app", "servers": servers, "server_defaults": {"port": PORT, "check": False}}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=10)


def text_of(plan: config.Plan) -> str:
    """The file as the role's template lays it out."""
    out = []
    for section in plan.sections:
        out.append(section["header"])
        out += [f"    {line}" for line in section["lines"]]
    return "\n".join([*out, ""])


def check(run: Path, plan: config.Plan, path: Path) -> tuple[int, str]:
    """Let HAProxy validate the configuration."""
    path.write_text(text_of(plan))
    done = subprocess.run(
        [str(run), "-c", "-f", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout.decode()


@contextlib.contextmanager
def scene(run: Path, version: str, directory: Path) -> Iterator[Scene]:
    """Make a scene in the calling thread's namespace and take it down again."""
    made = Scene(run, version, directory)
    try:
        yield made
    finally:
        made.close()
