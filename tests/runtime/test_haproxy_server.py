# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_server against real HAProxy processes: what it does, and what it sends."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import threading
import time
import typing as t
from collections.abc import Iterator

import pytest
from harness import (
    Haproxy,
    Relay,
    free_port,
    http_origin,
    run_module,
    run_module_process,
    since,
)

Start = t.Callable[..., Haproxy]
MakeRelay = t.Callable[[Haproxy], Relay]


def server(args: dict[str, t.Any], *, check: bool = False) -> dict[str, t.Any]:
    return run_module("haproxy_server", args, check=check)


def app(origin: int, count: int = 3, options: str = "check inter 150ms") -> str:
    lines = "".join(f"    server s{n} 127.0.0.1:{origin} {options}\n" for n in range(1, count + 1))
    return f"backend app\n{lines}"


@pytest.fixture
def hap(start_haproxy: Start, origin: int) -> Haproxy:
    """Three healthy servers in one backend, two of them also in another."""
    other = app(origin, 2).replace("backend app", "backend other")
    hap = start_haproxy(app(origin) + other)
    hap.until_up("app/s1", "app/s2", "app/s3", "other/s1", "other/s2")
    return hap


@contextlib.contextmanager
def session(port: int) -> Iterator[socket.socket]:
    """A client with a TCP session through HAProxy that is known to have reached a server."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b"hello\n")
        assert sock.recv(100) == b"hello\n"
        yield sock


# --- check, do, check, do for each option ---------------------------------------------------

FOUR_STEPS: dict[str, tuple[list[str], dict[str, t.Any], list[str]]] = {
    # name: (commands that prepare, arguments, commands expected)
    "drain": ([], {"servers": "s1", "state": "drain"}, ["set server app/s1 state drain"]),
    "maint": ([], {"servers": "s1", "state": "maint"}, ["set server app/s1 state maint"]),
    "disabled": ([], {"host": "s1", "state": "disabled"}, ["set server app/s1 state maint"]),
    "ready": (
        ["set server app/s1 state maint"],
        {"server": "s1", "state": "ready"},
        ["set server app/s1 state ready"],
    ),
    "enabled from drain": (
        ["set server app/s1 state drain"],
        {"servers": ["s1"], "state": "enabled"},
        ["set server app/s1 state ready"],
    ),
    "drain from maint": (
        ["set server app/s1 state maint"],
        {"servers": ["s1"], "state": "drain"},
        ["set server app/s1 state drain"],
    ),
    "weight": ([], {"servers": "s1", "weight": "7"}, ["set server app/s1 weight 7"]),
    "weight 0": ([], {"servers": "s1", "weight": 0}, ["set server app/s1 weight 0"]),
    "weight percent": (
        ["set server app/s2 weight 10"],
        {"servers": ["s1", "s2"], "weight": "200%"},
        ["set server app/s1 weight 200%", "set server app/s2 weight 200%"],
    ),
    "state and weight": (
        ["set server app/s2 state drain"],
        {"servers": ["s2"], "state": "ready", "weight": "3"},
        ["set server app/s2 weight 3", "set server app/s2 state ready"],
    ),
    "several, some there already": (
        ["set server app/s2 state drain"],
        {"servers": ["s3", "s2", "s1"], "state": "drain"},
        ["set server app/s1 state drain", "set server app/s3 state drain"],
    ),
    "all": (
        [],
        {"servers": "*", "state": "drain"},
        [f"set server app/s{n} state drain" for n in (1, 2, 3)],
    ),
    "pattern": (
        [],
        {"servers": "s[12]", "state": "maint"},
        ["set server app/s1 state maint", "set server app/s2 state maint"],
    ),
    "drain waited for": (
        [],
        {"servers": "s1", "state": "drain", "wait": True},
        ["set server app/s1 state drain"],
    ),
    "maint waited for": (
        [],
        {"servers": "s1", "state": "maint", "wait": True, "wait_interval": 0.1},
        ["set server app/s1 state maint"],
    ),
    "maint after drain": (
        [],
        {"servers": "s1", "state": "maint", "drain_first": True},
        ["set server app/s1 state drain", "set server app/s1 state maint"],
    ),
    "ready waited for": (
        ["set server app/s1 state maint"],
        {"servers": "s1", "state": "ready", "wait": True, "wait_timeout": 8},
        ["set server app/s1 state ready"],
    ),
    "ready from drain, proven by a check": (
        ["set server app/s1 state drain"],
        {"servers": "s1", "state": "ready", "wait": True, "wait_timeout": 8},
        ["set server app/s1 health stopping", "set server app/s1 state ready"],
    ),
    "enough stay": (
        [],
        {"servers": "s1", "state": "drain", "min_ready": 2, "on_timeout": "rollback"},
        ["set server app/s1 state drain"],
    ),
    "missing ignored": (
        [],
        {"servers": ["s1", "gone", "x*"], "state": "drain", "missing": "ignore"},
        ["set server app/s1 state drain"],
    ),
}


@pytest.mark.parametrize("case", FOUR_STEPS)
def test_check_do_check_do(hap: Haproxy, relay: MakeRelay, case: str) -> None:
    prepare, args, expected = FOUR_STEPS[case]
    for command in prepare:
        assert hap.ask(command).strip() == ""
    wire = relay(hap)
    full = {"socket": str(wire.path), "backend": "app", "return": "all", **args}

    check = server(full, check=True)
    assert wire.changes() == []
    assert check["changed"] is True
    assert check["commands"] == expected

    connections = wire.connections
    done = server(full)
    assert wire.changes() == expected
    assert wire.connections == connections + 1
    assert done["changed"] is True
    assert done["commands"] == expected
    assert done["diff"] == check["diff"]
    assert done["diff"]["before"] != done["diff"]["after"]
    for key in ("backend", "name", "state", "weight"):
        assert [srv[key] for srv in done["servers"]] == [srv[key] for srv in check["servers"]]
    for srv in done["servers"]:
        assert hap.state("app", srv["name"]) == srv["state"]
        assert hap.weight("app", srv["name"]) == srv["weight"]

    for again in (server(full, check=True), server(full)):
        assert wire.changes() == []
        assert again["changed"] is False
        assert again["commands"] == []
        assert again["diff"]["before"] == again["diff"]["after"]


def test_return(hap: Haproxy) -> None:
    args = {"socket": str(hap.admin), "backend": "app", "servers": "*", "state": "drain"}
    hap.ask("set server app/s1 state drain")
    changed = server({**args, "return": "changed"}, check=True)
    assert [srv["name"] for srv in changed["servers"]] == ["s2", "s3"]
    every = server({**args, "return": "all"}, check=True)
    assert [srv["name"] for srv in every["servers"]] == ["s1", "s2", "s3"]
    assert server({**args, "return": "none"}, check=True)["servers"] == []
    srv = every["servers"][0]
    assert (srv["address"], srv["health_checks"], srv["usable"]) == ("127.0.0.1", True, False)
    assert isinstance(srv["port"], int)
    assert isinstance(srv["weight"], int)


def test_backend_found(hap: Haproxy, relay: MakeRelay) -> None:
    """Without a backend, every backend that has the server is meant; still one conversation."""
    wire = relay(hap)
    done = server({"socket": str(wire.path), "servers": ["s1", "s3"], "state": "drain"})
    assert wire.changes() == [
        "set server app/s1 state drain",
        "set server app/s3 state drain",
        "set server other/s1 state drain",
    ]
    assert wire.connections == 1
    assert [(srv["backend"], srv["name"]) for srv in done["servers"]] == [
        ("app", "s1"),
        ("app", "s3"),
        ("other", "s1"),
    ]


def test_no_op_reads_only_what_it_needs(hap: Haproxy, relay: MakeRelay) -> None:
    wire = relay(hap)
    server({"socket": str(wire.path), "backend": "app", "servers": "*", "state": "ready"})
    assert wire.commands() == ["prompt", "show cli level", "show servers state app"]


def test_weight_percent_is_compared_with_the_configured_weight(
    start_haproxy: Start, origin: int
) -> None:
    hap = start_haproxy(f"backend app\n    server s1 127.0.0.1:{origin} weight 10\n")
    args = {"socket": str(hap.admin), "servers": "s1", "weight": "33%"}
    assert server(args)["changed"] is True
    assert hap.weight("app", "s1") == 3
    assert server(args)["changed"] is False
    assert server({**args, "weight": "3"})["changed"] is False
    assert server({**args, "weight": "100%"})["servers"][0]["weight"] == 10


def test_many_servers(start_haproxy: Start, origin: int, relay: MakeRelay) -> None:
    """More commands than fit in the window, one connection, every reply attributed."""
    hap = start_haproxy(app(origin, 700, ""))
    wire = relay(hap)
    args = {"socket": str(wire.path), "backend": "app", "servers": "*", "state": "drain"}
    done = server(args)
    assert len(done["commands"]) == len(wire.changes()) == 700
    assert wire.connections == 1
    assert all(srv["state"] == "drain" for srv in done["servers"])
    assert server(args)["changed"] is False
    assert wire.changes() == []


# --- waiting for ready ----------------------------------------------------------------------


@pytest.mark.parametrize("old", ["maint", "drain"])
@pytest.mark.parametrize("options", ["fall 3 rise 2", "fall 1 rise 1", "fall 4 rise 1"])
def test_dead_server_is_never_up(
    start_haproxy: Start, closed_port: int, old: str, options: str
) -> None:
    """HAProxy says UP 1/3 until the first check; the check has not run when the time is over."""
    port = closed_port
    hap = start_haproxy(
        f"backend app\n    server s1 127.0.0.1:{port} check inter 1500ms fastinter 1500ms {options}\n"
    )
    hap.ask(f"set server app/s1 state {old}")
    result = server(
        {
            "socket": str(hap.admin),
            "servers": "s1",
            "state": "ready",
            "wait": True,
            "wait_timeout": 0.4,
        }
    )
    assert result["failed"] is True
    assert "app/s1" in result["msg"]
    assert result["changed"] is True
    assert result["waiting_for"][0]["server"] == "s1"


@pytest.mark.parametrize("options", ["fall 3 rise 2", "fall 1 rise 2"])
def test_server_that_died_in_drain_is_not_up(
    start_haproxy: Start, short_path: t.Any, options: str
) -> None:
    """The counter is full from before; only a check after the change counts."""
    port = free_port()
    with http_origin(port):
        hap = start_haproxy(
            f"backend app\n    server s1 127.0.0.1:{port} check inter 1s fastinter 1s {options}\n"
        )
        hap.until_up("app/s1")
        hap.ask("set server app/s1 state drain")
        hap.until(lambda: hap.status("app", "s1") == "DRAIN")
    # The application is gone now, and HAProxy does not know yet.
    assert hap.row("app", "s1")["srv_op_state"] == "2"
    args = {"socket": str(hap.admin), "servers": "s1", "state": "ready", "wait": True}
    result = server({**args, "wait_timeout": 0.3})
    assert result.get("failed") is True, "believed a check from before the change"
    # And once it is back, the same task ends well.
    with http_origin(port):
        again = server({**args, "wait_timeout": 10})
        assert again.get("failed") is None, again
        assert hap.status("app", "s1") == "UP"


def test_up_is_waited_for(start_haproxy: Start) -> None:
    """A server whose application comes back during the wait."""
    port = free_port()
    hap = start_haproxy(
        f"backend app\n    server s1 127.0.0.1:{port} check inter 150ms fall 2 rise 2\n"
    )
    hap.until(lambda: hap.status("app", "s1") == "DOWN")
    hap.ask("set server app/s1 state maint")
    stack = contextlib.ExitStack()
    timer = threading.Timer(0.7, lambda: stack.enter_context(http_origin(port)))
    timer.start()
    with stack:
        result = server(
            {
                "socket": str(hap.admin),
                "servers": "s1",
                "state": "ready",
                "wait": True,
                "wait_timeout": 10,
            }
        )
        timer.join()
        assert result.get("failed") is None, result
        assert 0.5 < result["waited"] < 8
        assert hap.status("app", "s1") == "UP"


def test_rollback_of_ready(start_haproxy: Start, closed_port: int) -> None:
    hap = start_haproxy(
        f"backend app\n    server s1 127.0.0.1:{closed_port} check inter 100ms weight 10\n"
    )
    hap.ask("set server app/s1 state maint")
    result = server(
        {
            "socket": str(hap.admin),
            "servers": "s1",
            "state": "ready",
            "weight": "5",
            "wait": True,
            "wait_timeout": 0.5,
            "on_timeout": "rollback",
        }
    )
    assert result["failed"] is True
    assert "set back" in result["msg"]
    assert result["undone"] == ["set server app/s1 weight 10", "set server app/s1 state maint"]
    assert (hap.state("app", "s1"), hap.weight("app", "s1")) == ("maint", 10)


def test_without_checks_and_tracking(start_haproxy: Start, origin: int) -> None:
    """A server without checks is up at once; one that tracks is up when the tracked one is."""
    hap = start_haproxy(
        f"backend app\n    server s1 127.0.0.1:{origin}\n"
        f"    server t1 127.0.0.1:{origin} track main/s1\n"
        f"backend main\n    server s1 127.0.0.1:{origin} check inter 150ms\n"
    )
    hap.until_up("main/s1")
    for command in ("app/s1 state maint", "app/t1 state maint"):
        hap.ask(f"set server {command}")
    args = {"socket": str(hap.admin), "backend": "app", "state": "ready", "wait": True}
    done = server({**args, "servers": ["s1", "t1"], "wait_timeout": 0.5})
    assert done.get("failed") is None, done
    assert done["waited"] < 0.4
    assert len(done["commands"]) == 2
    # Inherited maintenance is neither ours to end nor up.
    hap.ask("set server main/s1 state maint")
    failed = server({**args, "servers": "t1", "wait_timeout": 0.3})
    assert failed["failed"] is True
    assert "follows main/s1" in failed["msg"]
    assert failed["changed"] is False


@since("3.2", "init-state")
def test_fully_up_is_not_believed(
    start_haproxy: Start, closed_port: int, version: str, origin: int
) -> None:
    """`init-state fully-up` fills the counter with nothing behind it."""
    slow = "check inter 1500ms fastinter 1500ms downinter 200ms init-state fully-up"
    hap = start_haproxy(
        f"backend app\n    server dead 127.0.0.1:{closed_port} {slow}\n"
        f"    server good 127.0.0.1:{origin} {slow}\n"
    )
    args = {"socket": str(hap.admin), "state": "ready", "wait": True}
    for old in ("maint", "drain"):
        hap.ask(f"set server app/dead state {old}")
        failed = server({**args, "servers": "dead", "wait_timeout": 0.5})
        assert failed.get("failed") is True, f"believed a server that came from {old}"
        hap.ask(f"set server app/good state {old}")
        done = server({**args, "servers": "good", "wait_timeout": 10})
        assert done.get("failed") is None, done
        assert done["waited"] > 0.1


def test_quick_checks_need_no_proof(
    start_haproxy: Start, origin: int, relay: MakeRelay, version: str
) -> None:
    """A check that passes at once, before the look: seen as such where nothing else fills it."""
    hap = start_haproxy(app(origin, 1, "check inter 5ms fastinter 5ms"))
    hap.until_up("app/s1")
    wire = relay(hap)
    args = {"socket": str(wire.path), "servers": "s1"}
    for _n in range(15):
        server({**args, "state": "maint"})
        done = server({**args, "state": "ready", "wait": True, "wait_timeout": 10})
        assert done.get("failed") is None, done
    extra = [line for line in wire.changes() if " state " not in line]
    if version in ("2.2", "2.6", "3.0"):
        assert extra == []
    else:
        assert set(extra) <= {"set server app/s1 health stopping"}


def test_long_pauses_survive_stats_timeout(start_haproxy: Start, closed_port: int) -> None:
    """The conversation stays open although the configuration closes idle ones sooner."""
    hap = start_haproxy(
        f"global\n    stats timeout 2s\nbackend app\n    server s1 127.0.0.1:{closed_port} check\n"
    )
    hap.until(lambda: hap.row("app", "s1")["srv_op_state"] == "0")
    args = {"socket": str(hap.admin), "servers": "s1", "state": "ready", "wait": True}
    failed = server({**args, "wait_interval": 5.5, "wait_timeout": 2.6})
    assert failed["failed"] is True
    assert "is down" in failed["msg"]


def test_haproxy_dies_during_the_wait(start_haproxy: Start, closed_port: int) -> None:
    hap = start_haproxy(f"backend app\n    server s1 127.0.0.1:{closed_port} check\n")
    hap.ask("set server app/s1 state maint")
    timer = threading.Timer(0.4, hap.process.kill)
    timer.start()
    args = {"socket": str(hap.admin), "servers": "s1", "state": "ready", "wait": True}
    failed = server({**args, "wait_timeout": 10})
    timer.join()
    assert failed["failed"] is True
    assert failed["changed"] is True
    assert "closed the connection" in failed["msg"]


# --- putting back cuts and moves nobody -----------------------------------------------------


@pytest.mark.parametrize("options", ["fall 3", "fall 1", "fall 1 rise 1"])
def test_ready_cuts_no_session(start_haproxy: Start, echo: int, options: str) -> None:
    """What is open at a drained server outlives `ready`, although `on-marked-down` is set."""
    hap = start_haproxy(
        f"backend app\n    server s1 127.0.0.1:{echo} check inter 300ms {options} "
        "on-marked-down shutdown-sessions\n",
        mode="tcp",
    )
    hap.until_up("app/s1")
    with session(hap.port) as client:
        hap.ask("set server app/s1 state drain")
        args = {"socket": str(hap.admin), "servers": "s1", "state": "ready", "wait": True}
        done = server({**args, "wait_timeout": 10})
        assert done.get("failed") is None, done
        assert hap.status("app", "s1") == "UP"
        client.sendall(b"alive\n")
        assert client.recv(100) == b"alive\n"


@pytest.mark.parametrize("options", ["fall 3", "fall 1"])
def test_ready_moves_no_sticky_client(start_haproxy: Start, options: str) -> None:
    """A client pinned to a drained server stays with it while and after it is put back."""
    with http_origin(name="s1") as first, http_origin(name="s2") as second:
        hap = start_haproxy(
            "backend app\n    option redispatch\n    stick-table type ip size 1k expire 1m\n"
            f"    stick on src\n    default-server check inter 700ms fastinter 700ms {options}\n"
            f"    server s1 127.0.0.1:{first}\n    server s2 127.0.0.1:{second}\n"
        )
        hap.until_up("app/s1", "app/s2")

        def served() -> str:
            client = http.client.HTTPConnection("127.0.0.1", hap.port, timeout=10)
            with contextlib.closing(client):
                client.request("GET", "/")
                return client.getresponse().read().decode()

        name = served()
        hap.ask(f"set server app/{name} state drain")
        assert served() == name
        seen: list[str] = []
        args = {"socket": str(hap.admin), "servers": name, "state": "ready", "wait": True}
        results: list[dict[str, t.Any]] = []
        worker = threading.Thread(target=lambda: results.append(server(args)))
        worker.start()
        while worker.is_alive():
            seen.append(served())
            time.sleep(0.01)
        worker.join()
        assert results[0].get("failed") is None, results
        assert seen
        assert {*seen, served()} == {name}
        assert hap.status("app", name) == "UP"


def test_maint_ends_sessions_only_where_configured(start_haproxy: Start, echo: int) -> None:
    """The exception that the option's documentation names."""
    for option, alive in (("", True), (" on-marked-down shutdown-sessions", False)):
        hap = start_haproxy(f"backend app\n    server s1 127.0.0.1:{echo}{option}\n", mode="tcp")
        with session(hap.port) as client:
            server({"socket": str(hap.admin), "servers": "s1", "state": "maint"})
            with contextlib.suppress(ConnectionError):
                client.sendall(b"alive\n")
                assert (client.recv(100) == b"alive\n") is alive


# --- waiting for drained --------------------------------------------------------------------


@pytest.fixture
def tcp(start_haproxy: Start, echo: int) -> Haproxy:
    lines = "".join(f"    server s{n} 127.0.0.1:{echo}\n" for n in (1, 2))
    hap = start_haproxy(f"backend app\n{lines}", mode="tcp")
    hap.ask("set server app/s2 state maint")
    return hap


@pytest.mark.parametrize("state", ["drain", "maint"])
def test_drain_waits_for_a_live_session(tcp: Haproxy, state: str) -> None:
    with session(tcp.port) as client:
        ends: list[float] = []

        def leave() -> None:
            time.sleep(0.8)
            client.sendall(b"still here\n")
            assert client.recv(100) == b"still here\n"
            client.shutdown(socket.SHUT_WR)
            ends.append(time.monotonic())

        leaver = threading.Thread(target=leave)
        leaver.start()
        args = {"socket": str(tcp.admin), "servers": "s1", "state": state, "wait": True}
        done = server({**args, "wait_timeout": 10})
        ended = time.monotonic()
        leaver.join()
    assert done.get("failed") is None, done
    assert ended >= ends[0]
    assert done["waited"] >= 0.7
    assert (done["servers"][0]["streams"], done["servers"][0]["connections"]) == (0, 0)


def test_drain_timeout_fails_and_says_so(tcp: Haproxy) -> None:
    with session(tcp.port) as client:
        args = {"socket": str(tcp.admin), "servers": "s1", "state": "drain", "wait": True}
        failed = server({**args, "wait_timeout": 0.4})
        assert failed["failed"] is True
        assert "app/s1 still has 1 streams" in failed["msg"]
        assert "stay in state drain" in failed["msg"]
        assert tcp.state("app", "s1") == "drain"
        client.sendall(b"alive\n")
        assert client.recv(100) == b"alive\n"


def test_drain_rollback(tcp: Haproxy) -> None:
    """All servers of the task go back, the one that had drained in time included."""
    tcp.ask("set server app/s2 weight 0")
    tcp.ask("set server app/s2 state ready")
    with session(tcp.port) as client:
        args = {"socket": str(tcp.admin), "servers": "*", "state": "drain", "wait": True}
        failed = server({**args, "wait_timeout": 0.4, "on_timeout": "rollback"})
        assert failed["failed"] is True
        assert len(failed["undone"]) == 2
        assert tcp.state("app", "s1") == tcp.state("app", "s2") == "ready"
        client.sendall(b"alive\n")
        assert client.recv(100) == b"alive\n"


@pytest.mark.parametrize("state", ["drain", "maint"])
def test_shutdown_sessions_after_the_deadline(tcp: Haproxy, state: str) -> None:
    with session(tcp.port) as client:
        done = server(
            {
                "socket": str(tcp.admin),
                "servers": "s1",
                "state": state,
                "wait": True,
                "wait_timeout": 0.4,
                "on_timeout": "shutdown_sessions",
            }
        )
        assert done.get("failed") is None, done
        assert done["commands"][-1] == "shutdown sessions server app/s1"
        assert done["waited"] >= 0.4
        assert done["servers"][0]["streams"] == 0
        with contextlib.suppress(ConnectionError):
            assert client.recv(100) == b""


def test_drain_first(tcp: Haproxy, relay: MakeRelay) -> None:
    """Maintenance only after the last session has gone; otherwise drain is as far as it goes."""
    wire = relay(tcp)
    args = {
        "socket": str(wire.path),
        "servers": "s1",
        "state": "maint",
        "drain": True,
        "wait_timeout": 0.4,
    }
    with session(tcp.port):
        failed = server(args)
        assert failed["failed"] is True
        assert wire.changes() == ["set server app/s1 state drain"]
        assert tcp.state("app", "s1") == "drain"
        assert "not put into maint" in failed["msg"]
    done = server({**args, "wait_timeout": 10})
    assert done.get("failed") is None, done
    assert wire.changes() == ["set server app/s1 state maint"]
    assert tcp.state("app", "s1") == "maint"


def test_idle_keep_alive_clients_do_not_reach_a_drained_server(
    start_haproxy: Start, version: str
) -> None:
    """What "drained" promises: the application can be stopped although clients stay connected."""
    with http_origin(name="one") as first, http_origin(name="two") as second:
        hap = start_haproxy(
            "backend app\n    http-reuse always\n"
            f"    server s1 127.0.0.1:{first}\n    server s2 127.0.0.1:{second} disabled\n"
        )
        clients = []
        for _n in range(5):
            client = http.client.HTTPConnection("127.0.0.1", hap.port, timeout=10)
            client.request("GET", "/")
            assert client.getresponse().read() == b"one"
            clients.append(client)
        server({"socket": str(hap.admin), "servers": "s2", "state": "ready", "wait": True})
        args = {"socket": str(hap.admin), "servers": "s1", "state": "drain", "wait": True}
        done = server({**args, "wait_timeout": 5})
        assert done.get("failed") is None, done
        for client in clients:
            client.request("GET", "/")
            assert client.getresponse().read() == b"two"
            client.close()


def test_names_that_mean_something_else_too(start_haproxy: Start, echo: int, version: str) -> None:
    """A backend named like another's id, a server named like a row, a frontend of the same name."""
    namesake = f"frontend b3\n    bind 127.0.0.1:{free_port()}\n    default_backend 2\n"
    hap = start_haproxy(
        # Since 3.3 HAProxy refuses equal names.
        ("" if version == "3.4" else namesake)
        + f"backend 2\n    server FRONTEND 127.0.0.1:{echo}\n"
        + f"backend b3\n    server BACKEND 127.0.0.1:{echo}\n",
        default="b3",
        mode="tcp",
    )
    args = {"socket": str(hap.admin), "state": "drain", "wait": True, "wait_timeout": 0.3}
    with session(hap.port):
        busy = server({**args, "backend": "b3", "servers": "BACKEND"})
        assert busy["failed"] is True
        assert "1 streams" in busy["msg"]
        done = server({**args, "backend": "2", "servers": "FRONTEND"})
        assert done["commands"] == ["set server 2/FRONTEND state drain"]


def test_reload_during_the_wait(tcp: Haproxy) -> None:
    """The old process goes on for its sessions, and its word is worth nothing any more."""
    with session(tcp.port) as client:

        def reload_and_leave() -> None:
            time.sleep(0.3)
            tcp.process.send_signal(signal.SIGUSR1)
            time.sleep(0.3)
            client.close()

        other = threading.Thread(target=reload_and_leave)
        other.start()
        args = {"socket": str(tcp.admin), "servers": "s1", "state": "drain", "wait": True}
        failed = server({**args, "wait_timeout": 3})
        other.join()
    assert failed.get("failed") is True, failed
    assert "reloaded" in failed["msg"] or "closed the connection" in failed["msg"]


def test_many_backends(start_haproxy: Start, origin: int, relay: MakeRelay) -> None:
    """One unfiltered read for a look at many backends, and the same results."""
    body = "".join(
        f"backend b{n:02}\n    server s1 127.0.0.1:{origin} check inter 100ms\n" for n in range(20)
    )
    hap = start_haproxy(body, default="b00")
    hap.until_up(*(f"b{n:02}/s1" for n in range(20)))
    wire = relay(hap)
    args = {"socket": str(wire.path), "servers": "s1", "wait": True, "wait_timeout": 10}
    drained = server({**args, "state": "drain"})
    assert drained.get("failed") is None, drained
    assert len(drained["servers"]) == 20
    assert all(srv["streams"] == 0 for srv in drained["servers"])
    seen = wire.commands()
    assert len([line for line in seen if line.startswith("set server")]) == 20
    assert len([line for line in seen if line.startswith("show")]) < 12
    back = server({**args, "state": "ready"})
    assert back.get("failed") is None, back
    assert hap.status("b19", "s1") == "UP"


# --- the floor ------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("floor", ["2", 2, "60%", "100%"])
def test_min_ready_refuses(hap: Haproxy, relay: MakeRelay, check: bool, floor: str | int) -> None:
    wire = relay(hap)
    args = {"socket": str(wire.path), "backend": "app", "servers": ["s1", "s2"]}
    refused = server({**args, "state": "drain", "min_ready": floor}, check=check)
    assert refused["failed"] is True
    assert "1 of the 3 servers of app" in refused["msg"]
    assert refused["changed"] is False
    assert wire.changes() == []


def test_min_ready_counts_only_usable_servers(hap: Haproxy) -> None:
    hap.ask("set server app/s3 weight 0")
    args = {"socket": str(hap.admin), "backend": "app", "servers": "s1", "min_ready": "34%"}
    assert server({**args, "state": "drain"})["failed"] is True
    assert server({**args, "weight": "0"})["failed"] is True
    assert server({**args, "servers": "s3", "state": "drain"}).get("failed") is None
    # Taking nothing away is never refused, however few there are.
    assert server({**args, "servers": "s3", "state": "ready"}).get("failed") is None


def test_two_operators(hap: Haproxy, short_path: t.Any) -> None:
    """The other one takes servers out between our look and our change."""

    def rival(data: bytes) -> None:
        if data.startswith(b"set server app/s1 state drain"):
            hap.ask("set server app/s2 state drain")

    wire = Relay(short_path / "rival", hap.admin)
    wire.meanwhile = rival
    args = {"socket": str(wire.path), "backend": "app", "servers": "s1", "state": "drain"}
    failed = server({**args, "min_ready": 2})
    assert failed["failed"] is True
    assert failed["undone"] == ["set server app/s1 state ready"]
    assert hap.state("app", "s1") == "ready"
    assert hap.state("app", "s2") == "drain"


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["user", "operator"])
@pytest.mark.parametrize("check", [True, False])
def test_level_too_low(hap: Haproxy, short_path: t.Any, check: bool, level: str) -> None:
    wire = Relay(short_path / "low", hap.directory / f"{level}.sock")
    result = server({"socket": str(wire.path), "servers": "s1", "state": "drain"}, check=check)
    assert result["failed"] is True
    assert f"has level {level}" in result["msg"]
    assert "level admin" in result["msg"]
    assert result["changed"] is False
    assert wire.changes() == []
    assert hap.state("app", "s1") == "ready"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"backend": "app", "servers": ["s1", "s9"]}, ["no server 's9'", "there is s1, s2, s3"]),
        ({"backend": "app", "servers": ["web*"]}, ["'web*'"]),
        ({"servers": ["s1", "s9"]}, ["no backend", "'s9'"]),
        ({"backend": "apps", "servers": ["s1"]}, ["no backend 'apps'", "there is app"]),
        ({"backend": "front", "servers": ["s1"]}, ["no backend 'front'"]),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_unknown_names(
    hap: Haproxy, relay: MakeRelay, args: dict[str, t.Any], words: list[str], check: bool
) -> None:
    wire = relay(hap)
    result = server({"socket": str(wire.path), "state": "drain", **args}, check=check)
    assert result["failed"] is True
    for word in words:
        assert word in result["msg"]
    assert wire.changes() == []
    assert hap.state("app", "s1") == "ready"


def test_unknown_backend_ignored(hap: Haproxy) -> None:
    args = {"socket": str(hap.admin), "servers": "s1", "backend": "gone", "state": "drain"}
    result = server({**args, "missing": "ignore"})
    assert (result["changed"], result["commands"]) == (False, [])


def test_static_balance(start_haproxy: Start, origin: int, relay: MakeRelay) -> None:
    hap = start_haproxy(
        f"backend app\n    balance static-rr\n    server s1 127.0.0.1:{origin} weight 10\n"
        f"backend hash\n    balance source\n    server s1 127.0.0.1:{origin} weight 10\n"
    )
    wire = relay(hap)
    args = {"socket": str(wire.path), "servers": "s1"}
    known = server({**args, "backend": "app", "weight": "50%"})
    assert known["failed"] is True
    assert "static-rr" in known["msg"]
    assert wire.changes() == []
    assert server({**args, "backend": "app", "weight": "0%"})["changed"] is True
    wire.changes()
    # The hash type cannot be read; HAProxy's own refusal fails the task.
    refused = server({**args, "backend": "hash", "weight": "50%"})
    assert refused["failed"] is True
    assert "static LB algorithm" in refused["msg"]
    assert refused["refused"][0]["command"] == "set server hash/s1 weight 50%"
    assert refused["changed"] is False


def test_a_refusal_in_the_middle_says_what_was_done(start_haproxy: Start, origin: int) -> None:
    hap = start_haproxy(
        f"backend app\n    server s1 127.0.0.1:{origin} weight 10\n"
        f"backend hash\n    balance source\n    server s1 127.0.0.1:{origin} weight 10\n"
    )
    failed = server({"socket": str(hap.admin), "servers": "s1", "weight": "50%"})
    assert failed["failed"] is True
    assert failed["commands"] == ["set server app/s1 weight 50%"]
    assert failed["changed"] is True
    assert hap.weight("app", "s1") == 5


def test_backend_disabled_in_the_configuration(start_haproxy: Start, origin: int) -> None:
    hap = start_haproxy(
        f"backend app\n    server s1 127.0.0.1:{origin}\n"
        f"backend off\n    disabled\n    server s1 127.0.0.1:{origin}\n"
    )
    args = {"socket": str(hap.admin), "servers": "s1", "state": "drain"}
    failed = server({**args, "backend": "off"})
    assert failed["failed"] is True
    assert "off" in failed["msg"]
    assert "commands" in failed
    assert failed["commands"] == []
    assert server(args)["commands"] == ["set server app/s1 state drain"]


HOSTILE = [
    "s1\nset server app/s2 state maint",
    "s1;set server app/s2 state maint",
    "s1 ; set server app/s2 state maint",
    "s1\\\nset server app/s2 state maint",
    "s1\x00set server app/s2 state maint",
    "s1\rset server app/s2 state maint",
    "s1 state maint",
    "s1\tx",
    "<<",
    "s1<<EOF",
    "s1\\",
    "s1\u2028x",
    "s1/../s2",
    "#s1",
    "#0",
    "#1;x",
    "@1",
    "",
    "s" * 5000,
    "\u0455\u0031",
    "$(reboot)",
    "`id`",
    "s1'",
    's1"',
]


@pytest.mark.parametrize("option", ["servers", "backend", "weight", "min_ready"])
def test_hostile_values(hap: Haproxy, relay: MakeRelay, option: str) -> None:
    """Nothing but our own reads reaches HAProxy, and its state stays what it was."""
    before = hap.ask("show servers state").split("\n")
    wire = relay(hap)
    for value in HOSTILE:
        args = {"servers": ["s1"], "backend": "app", "state": "drain", option: value}
        if option == "servers":
            args["servers"] = [value]
        result = server({"socket": str(wire.path), **args})
        assert result["failed"] is True, value
        assert "\n" not in result["msg"]
        seen = wire.commands()
        assert set(seen) <= {
            "prompt",
            "show cli level",
            "show servers state app",
            "show backend",
        } | {f"show servers state {'s' * 5000}"}, value
    after = hap.ask("show servers state").split("\n")
    admin = [[line.split()[6:7] for line in text[2:]] for text in (before, after)]
    assert admin[0] == admin[1]


# --- sockets --------------------------------------------------------------------------------


def test_several_sockets(start_haproxy: Start, origin: int) -> None:
    one, two = start_haproxy(app(origin, 2, "")), start_haproxy(app(origin, 2, ""))
    args = {"socket": [str(one.admin), f"unix://{two.admin}"], "servers": "s1", "state": "drain"}
    done = server(args)
    assert len(done["commands"]) == 2
    assert [srv["socket"] for srv in done["servers"]] == args["socket"]
    assert one.state("app", "s1") == two.state("app", "s1") == "drain"
    assert server(args)["changed"] is False
    # All are asked before anything is sent to any.
    two.process.terminate()
    two.process.wait(5)
    failed = server({**args, "state": "ready"})
    assert failed["failed"] is True
    assert one.state("app", "s1") == "drain"


IDLE = "global\n    stats timeout 1s\n"


def test_idle_socket_is_closed_meanwhile(start_haproxy: Start, echo: int, relay: MakeRelay) -> None:
    """Where there is nothing to wait for, HAProxy hangs up while another one is waited for."""
    one = start_haproxy(f"{IDLE}backend app\n    server s1 127.0.0.1:{echo}\n", mode="tcp")
    two = start_haproxy(f"backend app\n    server s1 127.0.0.1:{echo}\n", mode="tcp")
    one.ask("set server app/s1 state maint")
    one.ask("set server app/s1 weight 0")
    wire = relay(one)
    delays = iter([0.05])
    # HAProxy 2.2 and 2.6 never hang up if the first command is there when they first look.
    wire.meanwhile = lambda data: time.sleep(next(delays, 0))
    args = {
        "socket": [str(wire.path), str(two.admin)],
        "servers": "s1",
        "state": "maint",
        "weight": "1",
        "drain_first": True,
        "wait_timeout": 20,
    }
    with session(two.port) as client:
        timer = threading.Timer(2.5, client.close)
        timer.start()
        done = server(args)
        timer.join()
    assert done.get("failed") is None, done
    assert wire.changes() == ["set server app/s1 weight 1"]
    assert one.weight("app", "s1") == 1
    assert two.state("app", "s1") == "maint"
    assert wire.connections == 2


def test_rollback_reaches_an_idle_socket(start_haproxy: Start, echo: int) -> None:
    one = start_haproxy(f"{IDLE}backend app\n    server s1 127.0.0.1:{echo}\n", mode="tcp")
    two = start_haproxy(f"backend app\n    server s1 127.0.0.1:{echo}\n", mode="tcp")
    one.ask("set server app/s1 state maint")
    one.ask("set server app/s1 weight 0")
    args = {
        "socket": [str(one.admin), str(two.admin)],
        "servers": "s1",
        "state": "maint",
        "weight": "1",
        "drain_first": True,
        "wait_timeout": 2.5,
        "on_timeout": "rollback",
    }
    with session(two.port):
        failed = server(args)
    assert failed["failed"] is True
    assert "app/s1 still has 1 streams" in failed["msg"]
    assert "every server that this task had changed was set back" in failed["msg"]
    assert (one.weight("app", "s1"), two.state("app", "s1")) == (0, "ready")


def test_another_process_at_an_idle_socket(start_haproxy: Start, echo: int) -> None:
    """Behind the same path there is a new HAProxy, which knows nothing of the change."""
    one = start_haproxy(f"{IDLE}backend app\n    server s1 127.0.0.1:{echo}\n", mode="tcp")
    two = start_haproxy(f"backend app\n    server s1 127.0.0.1:{echo}\n", mode="tcp")
    args = {
        "socket": [str(one.admin), str(two.admin)],
        "servers": "s1",
        "state": "maint",
        "drain_first": True,
        "wait_timeout": 20,
    }
    one.ask("set server app/s1 state maint")
    one.ask("set server app/s1 weight 0")
    new: list[Haproxy] = []

    def replace(client: socket.socket) -> None:
        new.append(start_haproxy(f"backend app\n    server s1 127.0.0.1:{echo}\n", mode="tcp"))
        new[0].admin.rename(one.admin)
        # Its connections end with it; without this, one that was just used would still be answered.
        one.process.kill()
        one.process.wait()
        client.close()

    with session(two.port) as client:
        timer = threading.Timer(4, replace, [client])
        timer.start()
        failed = server({**args, "weight": "1"})
        timer.join()
    assert failed.get("failed") is True, failed
    assert "was reloaded" in failed["msg"]


@pytest.mark.parametrize("what", ["reloaded", "killed"])
def test_rollback_goes_on_without_one(start_haproxy: Start, echo: int, what: str) -> None:
    """One proxy that cannot be set back is told of, and all others are set back."""
    body = f"backend app\n    server s1 127.0.0.1:{echo}\n"
    idle = f"{IDLE}{body}"
    one, two = start_haproxy(idle, mode="tcp"), start_haproxy(body, mode="tcp")
    three = start_haproxy(body, mode="tcp")
    one.ask("set server app/s1 state maint")
    one.ask("set server app/s1 weight 0")
    args = {
        "socket": [str(one.admin), str(two.admin), str(three.admin)],
        "servers": "s1",
        "state": "maint",
        "weight": "2",
        "drain_first": True,
        "wait_timeout": 2.5,
        "on_timeout": "rollback",
    }
    with session(two.port), session(three.port):
        # A process that only finishes its sessions still answers; a killed one does not.
        victim = two if what == "reloaded" else one
        number = signal.SIGUSR1 if what == "reloaded" else signal.SIGKILL
        timer = threading.Timer(1.5, victim.process.send_signal, [number])
        timer.start()
        failed = server(args)
        timer.join()
    assert failed["failed"] is True
    assert "app/s1 still has 1 streams" in failed["msg"], "the first reason is lost"
    assert [point["socket"] for point in failed["not_undone"]] == [str(victim.admin)]
    reason = "was reloaded" if what == "reloaded" else "closed the connection"
    assert reason in failed["not_undone"][0]["reason"]
    assert str(victim.admin) in failed["msg"]
    assert (three.state("app", "s1"), three.weight("app", "s1")) == ("ready", 1)
    if what == "reloaded":
        assert one.weight("app", "s1") == 0
    else:
        assert two.state("app", "s1") == "ready"


def test_tcp_socket(start_haproxy: Start, origin: int) -> None:
    port = free_port()
    hap = start_haproxy(
        app(origin, 1, "") + f"global\n    stats socket ipv4@127.0.0.1:{port} level admin\n"
    )
    done = server({"socket": f"tcp://127.0.0.1:{port}", "servers": "s1", "state": "drain"})
    assert done["changed"] is True
    assert hap.state("app", "s1") == "drain"
    done = server({"socket": f"tcp://localhost:{port}", "servers": "s1", "state": "ready"})
    assert done.get("failed") is None, done


def test_permission_denied(hap: Haproxy) -> None:
    hap.directory.parent.chmod(0o755)
    hap.directory.chmod(0o755)
    result, stderr, _seconds = run_module_process(
        "haproxy_server",
        {"socket": [str(hap.admin)], "servers": ["s1"], "state": "drain"},
        deadline=10,
        uid=65534,
    )
    assert result["failed"] is True
    assert "no permission" in result["msg"]
    assert str(hap.admin) in result["msg"]
    assert "become" in result["msg"]
    assert "Traceback" not in stderr


def test_frozen_haproxy(hap: Haproxy) -> None:
    """A real process that does not run any more: the kernel still accepts the connection."""
    hap.process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    result = server({"socket": str(hap.admin), "servers": "s1", "state": "drain", "timeout": 0.7})
    assert time.monotonic() - start < 3
    assert result["failed"] is True
    assert "did not answer" in result["msg"]


def test_all_connections_of_stats_maxconn_taken(start_haproxy: Start, origin: int) -> None:
    hap = start_haproxy(app(origin, 1, "") + "global\n    stats maxconn 2\n")
    with contextlib.ExitStack() as stack:
        for _n in range(2):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(hap.admin))
            sock.sendall(b"prompt\n")
            assert sock.recv(10)
        args = {"socket": str(hap.admin), "servers": "s1", "state": "drain"}
        result = server({**args, "timeout": 0.5})
        assert result["failed"] is True
        assert "stats maxconn" in result["msg"]
        # A place that becomes free within the timeout is enough.
        timer = threading.Timer(0.4, stack.close)
        timer.start()
        assert server({**args, "timeout": 5})["changed"] is True
        timer.join()
