# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_server and what becomes of clients: ended, forgotten, waited for by HAProxy itself."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
import time
import typing as t
from collections.abc import Iterator

import pytest
from harness import KINDS, Haproxy, Relay, four_steps, free_port, http_origin, run_module

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _server_operation

Start = t.Callable[..., Haproxy]
MakeRelay = t.Callable[..., Relay]


def server(args: dict[str, t.Any], *, check: bool = False) -> dict[str, t.Any]:
    return run_module("haproxy_server", {"backend": "app", **args}, check=check)


@contextlib.contextmanager
def session(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b"hello\n")
        assert sock.recv(100) == b"hello\n"
        yield sock


def closed(sock: socket.socket) -> bool:
    with contextlib.suppress(ConnectionError):
        return sock.recv(100) == b""
    return True


@pytest.fixture
def tcp(start_haproxy: Start, echo: int) -> Haproxy:
    return start_haproxy(f"backend app\n    server s1 127.0.0.1:{echo}\n", mode="tcp")


# --- ending sessions ------------------------------------------------------------------------

END = "shutdown sessions server app/s1"


@pytest.mark.parametrize("state", [None, "drain", "maint", "disabled"])
def test_shutdown_sessions(tcp: Haproxy, relay: MakeRelay, state: str | None) -> None:
    args = {"backend": "app", "servers": "s1", "shutdown_sessions": True}
    expected = [END]
    if state is not None:
        args["state"] = state
        expected.insert(0, f"set server app/s1 state {'drain' if state == 'drain' else 'maint'}")
    with session(tcp.port) as client:
        four_steps("haproxy_server", args, relay(tcp), commands=expected)
        assert closed(client)


def test_shutdown_sessions_means_nothing_where_servers_come_back(
    tcp: Haproxy, relay: MakeRelay
) -> None:
    wire = relay(tcp)
    args = {"socket": wire.address, "servers": "s1", "shutdown_sessions": True}
    with session(tcp.port) as client:
        assert server({**args, "state": "enabled"})["changed"] is False
        failed = server({**args, "state": "maint", "drain": True, "wait_timeout": 0.3})
        assert failed["failed"] is True
        assert wire.changes() == ["set server app/s1 state drain"]
        client.sendall(b"alive\n")
        assert client.recv(100) == b"alive\n"


def test_a_session_that_comes_meanwhile_is_ended_too(tcp: Haproxy, relay: MakeRelay) -> None:
    wire = relay(tcp)
    with contextlib.ExitStack() as stack:
        clients: list[socket.socket] = []

        def come(data: bytes) -> None:
            if data.startswith(b"set server app/s1 state maint"):
                clients.append(stack.enter_context(session(tcp.port)))

        wire.meanwhile = come
        args = {"socket": wire.address, "servers": "s1", "shutdown_sessions": True}
        done = server({**args, "state": "maint"})
        assert done.get("failed") is None, done
        assert done["commands"] == ["set server app/s1 state maint", END]
        assert closed(clients[0])


# --- forgetting clients ---------------------------------------------------------------------


@pytest.fixture
def origins() -> Iterator[list[int]]:
    with http_origin(name="s1") as one, http_origin(name="s2") as two:
        yield [one, two]


def sticky(origins: list[int], more: str = "", options: str = "") -> str:
    return (
        f"backend app\n{more}    stick-table type string size 1k expire 1h {options}\n"
        "    stick on req.hdr(x-user)\n"
        + "".join(f"    server s{n} 127.0.0.1:{port}\n" for n, port in enumerate(origins, 1))
    )


def served(hap: Haproxy, user: str, path: str = "/", headers: t.Any = None) -> str:
    client = http.client.HTTPConnection("127.0.0.1", hap.port, timeout=10)
    with contextlib.closing(client):
        client.request("GET", path, headers={"X-User": user, **(headers or {})})
        return client.getresponse().read().decode()


def pinned(hap: Haproxy, table: str = "app") -> dict[str, str]:
    """Keys of a table, and the ids of the servers that they are pinned to."""
    found = re.findall(r" key=((?:\\.|\S)*) .*server_id=([0-9]+)", hap.ask(f"show table {table}"))
    return dict(found)


FORGET = "clear table app data.server_id eq 1"


@pytest.mark.parametrize("state", ["drain", "maint"])
@pytest.mark.parametrize("kind", KINDS)
def test_forget_clients(
    start_haproxy: Start, origins: list[int], relay: MakeRelay, state: str, kind: str
) -> None:
    hap = start_haproxy(sticky(origins))
    users = {user: served(hap, user) for user in ("a", "b", "c d", "e")}
    mine = [user for user, name in users.items() if name == "s1"]
    assert len(mine) == 2
    args = {"backend": "app", "servers": "s1", "state": state, "forget_clients": True}
    expected = [f"set server app/s1 state {state}", FORGET]
    wire = relay(hap, kind)
    check, done = four_steps("haproxy_server", args, wire, commands=expected)
    assert check["forgotten"] == done["forgotten"]
    assert (done["forgotten"][0]["table"], done["forgotten"][0]["entries"]) == ("app", 2)
    assert done["pinning"] == []
    assert set(pinned(hap).values()) == {"2"}
    # What this is for: with drain, its clients go elsewhere at once.
    assert {served(hap, user) for user in mine} == {"s2"}


def test_drain_keeps_clients_without_it(start_haproxy: Start, origins: list[int]) -> None:
    hap = start_haproxy(sticky(origins))
    users = {user: served(hap, user) for user in "ab"}
    mine = next(user for user, name in users.items() if name == "s1")
    server({"socket": str(hap.admin), "servers": "s1", "state": "drain"})
    assert served(hap, mine) == "s1"


def test_forgetting_goes_on_while_peers_share(start_haproxy: Start, origins: list[int]) -> None:
    """What one learns the other gets; with both in the task nobody teaches it back."""
    ports = [free_port(), free_port()]
    peers = f"peers both\n    peer one 127.0.0.1:{ports[0]}\n    peer two 127.0.0.1:{ports[1]}\n"
    one, two = (
        start_haproxy(
            f"global\n    localpeer {name}\n{peers}" + sticky(origins, options="peers both")
        )
        for name in ("one", "two")
    )
    users = {user: served(one, user) for user in "abcd"}
    mine = sorted(user for user, name in users.items() if name == "s1")
    two.until(lambda: len(pinned(two)) == 4, 15)
    args = {"servers": "s1", "state": "drain", "forget_clients": True}
    done = server({**args, "socket": [str(one.admin), str(two.admin)]})
    assert done.get("failed") is None, done
    assert [row["entries"] for row in done["forgotten"]] == [2, 2]
    time.sleep(1)
    for hap in (one, two):
        assert "1" not in pinned(hap).values()
        assert {served(hap, user) for user in mine} == {"s2"}


def test_what_is_taught_again_fails(
    start_haproxy: Start, origins: list[int], relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_server_operation, "_GRACE", 0.4)
    hap = start_haproxy(sticky(origins))
    hap.ask("set table app key x data.server_id 1")
    wire = relay(hap)
    args = {"socket": wire.address, "servers": "s1", "state": "drain", "forget_clients": True}

    def teach(data: bytes) -> None:
        if data.startswith(b"show table app"):
            hap.ask("set table app key x data.server_id 1")

    wire.meanwhile = teach
    failed = server(args)
    assert failed["failed"] is True
    assert "still pins 1 clients to app/s1" in failed["msg"]
    assert failed["still_pinned"][0]["entries"] == 1
    assert wire.changes().count(FORGET) > 1
    wire.meanwhile = lambda data: None
    assert server(args).get("failed") is None
    assert pinned(hap) == {}


def test_entries_in_use_are_cleared_when_their_sessions_end(
    start_haproxy: Start, echo: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HAProxy leaves out what a session holds, without a word."""
    hap = start_haproxy(
        "backend app\n    stick-table type ip size 1k expire 1h store conn_cur\n    stick on src\n"
        f"    tcp-request content track-sc0 src\n    server s1 127.0.0.1:{echo}\n",
        mode="tcp",
    )
    args = {"socket": str(hap.admin), "servers": "s1", "state": "maint", "forget_clients": True}
    monkeypatch.setattr(_server_operation, "_GRACE", 0.3)
    with session(hap.port):
        failed = server(args)
        assert failed["failed"] is True
        assert "sessions that are still open use them" in failed["msg"]
    monkeypatch.undo()
    with session(hap.port) if hap.state("app", "s1") == "ready" else contextlib.nullcontext():
        done = server({**args, "wait": True})
    assert done.get("failed") is None, done
    assert pinned(hap) == {}


def test_cookies_are_told(start_haproxy: Start, origins: list[int]) -> None:
    body = sticky(origins, more="    cookie SRV insert\n").replace("server s1", "server s1")
    body = re.sub(r"(server (s\d) \S+)", r"\1 cookie \2c", body)
    hap = start_haproxy(body)
    args = {"socket": str(hap.admin), "servers": "s1", "forget_clients": True}
    for check in (True, False):
        done = server({**args, "state": "drain"}, check=check)
        assert [(row["kind"], row["name"]) for row in done["pinning"]] == [("cookie", "SRV=s1c")]
        assert "SRV=s1c" in str(done["warnings"])
    assert served(hap, "x", headers={"Cookie": "SRV=s1c"}) == "s1"
    # In maintenance a cookie leads nobody there.
    done = server({**args, "state": "maint"})
    assert done["pinning"] == []
    assert served(hap, "y", headers={"Cookie": "SRV=s1c"}) == "s2"


def test_tables_of_others_are_told_and_left_alone(
    start_haproxy: Start, origins: list[int], relay: MakeRelay
) -> None:
    hap = start_haproxy(
        f"peers shared\n    peer me 127.0.0.1:{free_port()}\n"
        "    table users type string size 1k expire 1h\n    table plain type ip size 1k\n"
        + "\n".join(
            line.replace("stick on req.hdr(x-user)", "stick on req.hdr(x-user) table shared/users")
            for line in sticky(origins).splitlines()
        )
        + "\nglobal\n    localpeer me\n"
    )
    users = {user: served(hap, user) for user in "ab"}
    assert set(users.values()) == {"s1", "s2"}
    hap.ask("set table shared/plain key 127.0.0.1")
    wire = relay(hap)
    args = {"socket": wire.address, "servers": "s1", "state": "drain", "forget_clients": True}
    done = server(args)
    assert wire.changes() == ["set server app/s1 state drain"]
    assert [(row["kind"], row["name"]) for row in done["pinning"]] == [("table", "shared/users")]
    assert "shared/users" in str(done["warnings"])
    assert len(pinned(hap, "shared/users")) == 2


def test_entries_are_attributed_as_haproxy_does(
    start_haproxy: Start, origins: list[int], relay: MakeRelay
) -> None:
    """Another backend's entries in the same table: those that lead clients of this one astray."""
    hap = start_haproxy(
        sticky(origins)
        + "backend other\n    stick on req.hdr(x-user) table app\n"
        + f"    server s2 127.0.0.1:{origins[1]}\n    server o2 127.0.0.1:{origins[0]} weight 0\n"
        + f"frontend second\n    bind 127.0.0.1:{(port := free_port())}\n    default_backend other\n"
    )
    second = Haproxy(hap.version, hap.directory, hap.admin, hap.user, port, hap.process)
    served(second, "theirs")
    assert pinned(hap) == {"theirs": "1"}
    # The number is that of s1 here, but the name is s2, and that is what HAProxy follows.
    wire = relay(hap)
    args = {"socket": wire.address, "servers": "s1", "state": "drain", "forget_clients": True}
    assert server(args, check=True)["forgotten"] == []
    assert server({**args, "servers": "s2"}, check=True)["forgotten"][0]["entries"] == 1
    assert wire.changes() == []
    assert served(hap, "theirs") == "s2"


def test_forget_clients_needs_a_server_that_goes(tcp: Haproxy) -> None:
    failed = server({"socket": str(tcp.admin), "servers": "s1", "forget_clients": True})
    assert "goes with state: drain or maint only" in failed["msg"]


# --- HAProxy's own word ---------------------------------------------------------------------


def waits(wire: Relay) -> list[str]:
    return [line for line in wire.commands() if line.startswith("wait ")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drain_first", [False, True])
def test_the_end_of_a_wait_is_an_event(
    start_haproxy: Start, echo: int, relay: MakeRelay, kind: str, version: str, drain_first: bool
) -> None:
    """Since 3.0 long pauses do not delay the end; through the master and before, it is polled."""
    hap = start_haproxy(f"backend app\n    server s1 127.0.0.1:{echo}\n", mode="tcp")
    wire = relay(hap, kind)
    event = version >= "3.0" and kind != "master"
    args = {"socket": wire.address, **wire.options, "servers": "s1", "state": "maint", "wait": True}
    with session(hap.port) as client:
        if not drain_first:
            timer = threading.Timer(0.5, client.close)
            timer.start()
            done = server({**args, "wait_interval": 4 if event else 0.3, "wait_timeout": 20})
            timer.join()
            assert done.get("failed") is None, done
            assert 0.3 < done["waited"] < 2
            assert bool(waits(wire)) is event
            assert done["servers"][0]["streams"] == 0
            return
        # In drain HAProxy does not know this, so it is not asked.
        failed = server({**args, "drain_first": True, "wait_timeout": 0.4})
    assert failed["failed"] is True
    assert waits(wire) == []


def test_deadlines_hold_during_haproxys_wait(tcp: Haproxy, relay: MakeRelay, version: str) -> None:
    wire = relay(tcp)
    args = {"socket": wire.address, "servers": "s1", "state": "maint", "wait": True}
    started = time.monotonic()
    with session(tcp.port):
        failed = server({**args, "wait_interval": 30, "wait_timeout": 0.6, "timeout": 0.4})
    assert failed["failed"] is True
    assert "app/s1 still has 1 streams" in failed["msg"]
    assert 0.5 < time.monotonic() - started < 3
    seen = waits(wire)
    assert len(seen) == (1 if version >= "3.0" else 0), seen


def test_two_sockets_are_waited_for_together(start_haproxy: Start, echo: int) -> None:
    """Each slice is short enough for the other one, and both are free in the end."""
    one, two = (
        start_haproxy(f"backend app\n    server s1 127.0.0.1:{echo}\n", mode="tcp")
        for _number in range(2)
    )
    args = {"socket": [str(one.admin), str(two.admin)], "servers": "s1", "state": "maint"}
    with session(one.port) as first, session(two.port) as second:
        timers = [threading.Timer(0.3, second.close), threading.Timer(0.7, first.close)]
        for timer in timers:
            timer.start()
        done = server({**args, "wait": True, "wait_timeout": 20})
        for timer in timers:
            timer.join()
    assert done.get("failed") is None, done
    assert [srv["streams"] for srv in done["servers"]] == [0, 0]
    assert 0.6 < done["waited"] < 4


def test_a_server_that_is_put_back_meanwhile(tcp: Haproxy, relay: MakeRelay) -> None:
    """HAProxy's wait fails at once then: the task goes on looking, without haste."""
    wire = relay(tcp)
    args = {"socket": wire.address, "servers": "s1", "state": "maint", "wait": True}
    with session(tcp.port):
        timer = threading.Timer(0.2, tcp.ask, ["set server app/s1 state ready"])
        timer.start()
        failed = server({**args, "wait_timeout": 1.5})
        timer.join()
    assert failed["failed"] is True
    assert len(wire.commands()) < 60


def test_haproxys_wait_outlives_stats_timeout(
    start_haproxy: Start, echo: int, version: str
) -> None:
    hap = start_haproxy(
        f"global\n    stats timeout 1s\nbackend app\n    server s1 127.0.0.1:{echo}\n", mode="tcp"
    )
    args = {"socket": str(hap.admin), "servers": "s1", "state": "maint", "wait": True}
    with session(hap.port) as client:
        timer = threading.Timer(1.6, client.close)
        timer.start()
        interval = 4 if version >= "3.0" else 1.1
        done = server({**args, "wait_interval": interval, "wait_timeout": 20})
        timer.join()
    assert done.get("failed") is None, done
    assert 1.5 < done["waited"] < 3
