# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role's probe: who listens where, which worker answers, and server states that survive a new process."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
import typing as t
from pathlib import Path

import pytest
from affinity_scene import Scene, app, frontend, in_namespace, scene, text_of

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _affinity_config as config

PROBE = (
    Path(__file__).resolve().parents[2] / "roles/haproxy_affinity/files/haproxy_affinity_probe.py"
)


def probe(command: str, options: t.Any) -> t.Any:
    """Run it as the role does."""
    done = subprocess.run(
        [sys.executable, str(PROBE), command, json.dumps(options)],
        check=True,
        stdout=subprocess.PIPE,
        timeout=60,
    )
    return json.loads(done.stdout)


def look(address: str, port: int) -> tuple[str, list[str]]:
    (seen,) = probe("listeners", [{"address": address, "port": port, "where": "x"}])
    return seen["state"], [each["address"] for each in seen["listeners"]]


def listen(address: str, port: int, v6only: bool = True) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ":" in address:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
    listener.bind((address, port))
    listener.listen()
    return listener


def with_loopback(body: t.Callable[[], None]) -> None:
    def inside() -> None:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=10)
        body()

    in_namespace(inside)


@pytest.mark.parametrize(
    ("held", "v6only", "wanted", "state"),
    [
        ("0.0.0.0", True, "127.0.0.1", "busy"),
        ("127.0.0.1", True, "0.0.0.0", "busy"),
        ("127.0.0.1", True, "127.0.0.2", "free"),
        ("::", True, "0.0.0.0", "free"),
        ("::", False, "0.0.0.0", "busy"),
        ("::", True, "::1", "busy"),
        ("0.0.0.0", True, "::", "free"),
        ("127.0.0.1", True, "192.0.2.1", "absent"),
    ],
)
def test_listeners(held: str, v6only: bool, wanted: str, state: str) -> None:
    """The kernel's own answer, for every way that two addresses can meet."""

    def body() -> None:
        with listen(held, 80, v6only):
            found, who = look(wanted, 80)
            assert found == state
            if state == "busy":
                assert who == [held]

    with_loopback(body)


def test_listeners_name_the_process() -> None:
    def body() -> None:
        with listen("127.0.0.1", 80):
            (seen,) = probe("listeners", [{"address": "127.0.0.1", "port": 80, "where": "x"}])
            assert seen["listeners"][0]["pid"] == os.getpid()
            assert seen["listeners"][0]["command"]
        assert look("127.0.0.1", 80) == ("free", [])

    with_loopback(body)


def test_a_file_that_is_closed_meanwhile_hides_no_other() -> None:
    """The walk's own directory is such a file: it is listed, and gone when its link is read."""
    with socket.socket() as listener:
        inode = str(os.fstat(listener.fileno()).st_ino)
        high = fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD, 900)
        listener.close()
        try:
            assert the_probe()._owners({inode})[inode]["pid"] == os.getpid()
        finally:
            os.close(high)


def site(it: Scene, port: int, state: Path) -> config.Plan:
    """The scene's site with a server state file, as the role has it."""
    variables = {
        "global": {"log": ["stderr format raw local0"], "user": "nobody", "group": "nogroup"},
        "admin_socket": {"path": str(it.directory / "admin.sock")},
        "frontends": [frontend(default_backend="app")],
        "backends": [{**app(), "server_defaults": {"port": port, "check": False}}],
    }
    parsed = config.parse_version(f"HAProxy version {it.version}")
    return config.make_plan(variables, {}, parsed, {"dev_log": False, "state_file": str(state)})


def admin_states(it: Scene) -> dict[str, tuple[str, str, str]]:
    """Return (admin state, run-time weight, port) of every server."""
    rows = [line.split() for line in it.ask("show servers state app").splitlines()]
    return {row[3]: (row[6], row[7], row[18]) for row in rows if len(row) >= 20 and row[0] != "#"}


def test_states_survive_but_configuration_wins(
    binaries: Path, version: str, short_path: Path
) -> None:
    """HAProxy takes ports from a state file even when the configuration changed, so the probe rewrites them."""
    state = short_path / "server-state"

    def body() -> None:
        with scene(binaries / version / "run", version, short_path) as it:
            state.write_text("1\n")
            it.start(site(it, 8080, state))
            assert "state file" not in it.log.read_text()
            it.ask(
                "set server app/app1 state drain;set server app/app2 state maint;set weight app/app3 0%"
            )
            options = {
                "socket": str(short_path / "admin.sock"),
                "config": str(short_path / "haproxy.cfg"),
            }
            plan = site(it, 9090, state)
            (short_path / "haproxy.cfg").write_text(text_of(plan))
            saved = probe("save", {**options, "file": str(state)})
            assert saved == {"saved": ["app/app1", "app/app2", "app/app3"], "error": ""}
            assert it.process
            it.process.terminate()
            it.process.wait(5)
            it.start(plan)
            assert admin_states(it) == {
                "app1": ("8", "1", "9090"),
                "app2": ("1", "1", "9090"),
                "app3": ("0", "0", "9090"),
            }
            it.ask(
                "set server app/app1 state ready;set server app/app2 state ready;set weight app/app3 1"
            )
            assert probe("save", {**options, "file": str(state)})["saved"] == []
            assert state.read_text() == "1\n"

    in_namespace(body)


def test_states_that_cannot_be_saved(binaries: Path, version: str, short_path: Path) -> None:
    """The socket's path changes: the running worker has the one of the configuration before."""
    state = short_path / "server-state"
    before, now = short_path / "before.cfg", short_path / "haproxy.cfg"
    options = {"socket": f"{short_path}/new.sock", "config": str(now), "file": str(state)}

    def body() -> None:
        with scene(binaries / version / "run", version, short_path) as it:
            it.start(site(it, 8080, state))
            it.ask("set server app/app1 state drain")
            before.write_text(now.read_text())
            time.sleep(0.1)
            now.write_text(now.read_text().replace("admin.sock", "new.sock"))
            silent = probe("save", options)
            assert silent["saved"] == []
            assert "new.sock" in silent["error"]
            assert not state.exists()
            seen = probe("worker", {**options, "previous": str(before)})
            assert it.process
            assert (seen["pid"], seen["stale"]) == (it.process.pid, True)
            saved = probe("save", {**options, "previous": str(before)})
            assert saved == {"saved": ["app/app1"], "error": ""}
            # A configuration without a socket had no states that anybody set.
            before.write_text("global\n    maxconn 10\n")
            assert probe("save", {**options, "previous": str(before)})["error"] == ""

    in_namespace(body)


def test_an_answer_that_is_no_state_is_told(short_path: Path) -> None:
    """What another program, or a HAProxy that refuses, says must not become an empty state."""
    path = short_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def refuse() -> None:
            client, _peer = listener.accept()
            with client:
                client.recv(100)
                client.sendall(b"Permission denied\n\n")

        other = threading.Thread(target=refuse)
        other.start()
        told = probe("save", {"socket": str(path), "config": "/dev/null", "file": "/dev/null/no"})
        other.join(5)
    assert told == {"saved": [], "error": f"{path}: Permission denied"}


def test_worker_and_wait(binaries: Path, version: str, short_path: Path) -> None:
    options: dict[str, t.Any] = {
        "socket": str(short_path / "admin.sock"),
        "config": str(short_path / "haproxy.cfg"),
    }
    silent = probe("worker", options)
    assert (silent["answers"], silent["pid"]) == (False, 0)
    assert silent["error"]
    assert not probe("wait", {**options, "pid": 0, "timeout": 0.3})["ready"]

    def body() -> None:
        with scene(binaries / version / "run", version, short_path) as it:
            it.serve()
            assert it.process
            seen = probe("worker", options)
            assert (seen["answers"], seen["pid"], seen["stale"]) == (True, it.process.pid, False)
            assert seen["version"].startswith(version)
            time.sleep(0.1)
            Path(options["config"]).touch()
            assert probe("worker", options)["stale"]
            # The old worker that answers late is not the new one, even when its number was not known.
            late = probe("wait", {**options, "pid": 0, "timeout": 0.3})
            assert not late["ready"]
            assert "started before" in late["error"]
            it.start(it.plan(backends=[app()]))
            assert probe("wait", {**options, "pid": 0, "timeout": 5})["ready"]
            assert probe("wait", {**options, "pid": 1, "timeout": 5})["ready"]
            assert not probe("wait", {**options, "pid": it.process.pid, "timeout": 0.3})["ready"]

    in_namespace(body)


def the_probe() -> t.Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("haproxy_affinity_probe", PROBE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_overlap_is_symmetric() -> None:
    module = the_probe()
    addresses = ("0.0.0.0", "10.0.0.1", "10.0.0.2", "::", "fd00::1")
    for one in addresses:
        for other in addresses:
            assert module._overlap(one, other) == module._overlap(other, one)
    assert not module._overlap("10.0.0.1", "10.0.0.2")
    assert not module._overlap("0.0.0.0", "fd00::1")
