# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What "drained" promises: the application can be stopped, whatever clients are still connected.

HAProxy's counters do not show the private idle connections of `http-reuse never`, so this is
decided by trying: under load, with idle keep-alive clients, the server is drained, its process is
ended with all its connections, and no request may be lost then. The requests are POSTs,
which HAProxy does not repeat on another server once they were sent.
"""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
import threading
import typing as t
from collections.abc import Iterator

import pytest
from harness import FULL, VERSIONS, Haproxy, run_module

Start = t.Callable[..., Haproxy]

# A process, because ending it ends its connections as well.
ORIGIN = """\
import http.server, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = sys.argv[1].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128
server = Server(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""

REUSE = ("never", "safe", "aggressive", "always")
LAST = ("", "    option prefer-last-server\n")
STATES = ("drain", "maint")


def _cells() -> list[t.Any]:
    """Every pair of values of any two columns, or with --full every combination."""
    found = []
    for row, reuse in enumerate(REUSE):
        for column, version in enumerate(VERSIONS):
            every = [(last, state) for last in LAST for state in STATES]
            some = every if FULL else [every[(row + column) % len(every)]]
            found += [
                pytest.param(reuse, version, last, state, id=f"{reuse}-{version}-{number}-{state}")
                for number, (last, state) in enumerate(some)
            ]
    return found


@contextlib.contextmanager
def origin(name: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    process = subprocess.Popen(
        [sys.executable, "-c", ORIGIN, name],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process
    finally:
        process.kill()
        process.wait(10)


class Client:
    """One keep-alive client; remembers who answered."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def post(self) -> str:
        self._connection.request("POST", "/", b"x" * 100)
        response = self._connection.getresponse()
        body = response.read().decode()
        return body if response.status == 200 else f"status {response.status}"

    def close(self) -> None:
        self._connection.close()


class Load:
    """Clients that post without a pause, until they are told to stop."""

    def __init__(self, port: int, count: int) -> None:
        self._stop = threading.Event()
        self.answers: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(port,)) for _n in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, port: int) -> None:
        client = Client(port)
        while not self._stop.is_set():
            try:
                self.answers.append(client.post())
            except (OSError, http.client.HTTPException) as exc:
                self.answers.append(f"lost: {exc!r}")
                client.close()
                client = Client(port)
            self._stop.wait(0.005)
        client.close()

    def stop(self) -> list[str]:
        self._stop.set()
        for thread in self._threads:
            thread.join(15)
        return self.answers


@pytest.mark.parametrize(("reuse", "version", "last", "state"), _cells())
def test_the_application_of_a_drained_server_can_be_stopped(
    start_haproxy: Start, reuse: str, version: str, last: str, state: str
) -> None:
    # HAProxy 2.2 counts the private connections of idle clients as used: they are waited for.
    counted = (version, reuse) == ("2.2", "never")
    with origin("one") as (first, process), origin("two") as (second, _other):
        hap = start_haproxy(
            f"backend app\n    http-reuse {reuse}\n{last}"
            f"    server s1 127.0.0.1:{first}\n    server s2 127.0.0.1:{second}\n"
        )
        idle = [Client(hap.port) for _n in range(8)]
        assert {client.post() for client in idle} == {"one", "two"}
        load = Load(hap.port, 3)
        try:
            hap.until(lambda: {"one", "two"} <= set(load.answers))
            done = run_module(
                "haproxy_server",
                {
                    "socket": str(hap.admin),
                    "servers": "s1",
                    "state": state,
                    "wait": True,
                    "wait_timeout": 0.5 if counted else 5,
                    "return": "all",
                },
            )
            if counted:
                assert "connections in use" in done["msg"]
                return
            assert not done.get("failed"), done
            (srv,) = done["servers"]
            assert (srv["streams"], srv["connections"]) == (0, 0)
            process.kill()
            process.wait(10)
            before = len(load.answers)
            assert [client.post() for client in idle] == ["two"] * len(idle)
            hap.until(lambda: len(load.answers) > before + 20)
        finally:
            answers = load.stop()
            for client in idle:
                client.close()
        assert set(answers) == {"one", "two"}


def test_this_test_can_fail(start_haproxy: Start) -> None:
    """The same without the module loses requests."""
    with origin("one") as (first, process), origin("two") as (second, _other):
        hap = start_haproxy(
            "backend app\n    http-reuse never\n"
            f"    server s1 127.0.0.1:{first}\n    server s2 127.0.0.1:{second}\n"
        )
        load = Load(hap.port, 3)
        try:
            hap.until(lambda: {"one", "two"} <= set(load.answers))
            process.kill()
            process.wait(10)
            hap.until(lambda: not set(load.answers) <= {"one", "two"})
        finally:
            load.stop()
