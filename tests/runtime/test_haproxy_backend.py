# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_backend's real code against real HAProxy processes."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
import time
import typing as t
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import (
    Haproxy,
    Relay,
    cells,
    four_steps,
    run_module,
    since,
    until,
)

MODULE = "haproxy_backend"
Start = Callable[..., Haproxy]
MakeRelay = Callable[..., Relay]

BACKENDS = """
backend app
    cookie SRV insert indirect nocache
    dynamic-cookie-key first
    server s1 127.0.0.1:1 cookie c1
    server s2 127.0.0.1:2
backend dyn
    cookie SRV insert indirect nocache dynamic
    dynamic-cookie-key first
    server s1 127.0.0.1:1
backend keyless
    cookie SRV insert indirect nocache
    server s1 127.0.0.1:1
backend fixed
    cookie SRV insert indirect nocache
    server s1 127.0.0.1:1 cookie c1
backend empty
backend off
    disabled
    server s1 127.0.0.1:1
listen both
    bind unix@{path}/both.sock
    server s1 127.0.0.1:1
"""
# What 3.4 adds backends from.
DEFAULTS = """
defaults web
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    http-request wait-for-body time 30s
defaults bare
    timeout connect 2s
    timeout client 60s
    timeout server 60s
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """What the task says, and what is returned and sent for it."""

    args: dict[str, t.Any]
    commands: list[str]
    sent: list[str] | None = None
    # What the server s1 or s2 shows afterwards: another cookie than before, none, or the same.
    cookie: str | None = None
    setup: tuple[str, ...] = ()
    always: bool = False
    since: tuple[int, int] = (2, 2)


def enable(backend: str) -> str:
    return f"enable dynamic-cookie backend {backend}"


def disable(backend: str) -> str:
    return f"disable dynamic-cookie backend {backend}"


def key(backend: str, text: str = "(hidden)") -> str:
    return f"set dynamic-cookie-key backend {backend} {text}"


ADDED = ("add backend b from web", "publish backend b")
CASES = {
    "enable": Case({"dynamic_cookie": "enabled"}, [enable("app")], cookie="other"),
    "disable": Case(
        {"backend": "dyn", "dynamic_cookie": "disabled"}, [disable("dyn")], cookie="none"
    ),
    "key": Case(
        {"backend": "dyn", "dynamic_cookie_key": "second"},
        [key("dyn")],
        [key("dyn", "second")],
        cookie="other",
        always=True,
    ),
    "key-escaped": Case(
        {"backend": "dyn", "dynamic_cookie_key": "a b;\\<<"},
        [key("dyn")],
        [key("dyn", r"a\ b\;\\\<\<")],
        cookie="other",
        always=True,
    ),
    "key-on-change": Case(
        {
            "backend": "keyless",
            "dynamic_cookie": "enabled",
            "dynamic_cookie_key": "second",
            "write_only": "on_change_only",
        },
        [key("keyless"), enable("keyless")],
        [key("keyless", "second"), enable("keyless")],
        cookie="other",
    ),
    "enable-unseen": Case(
        {"backend": "fixed", "dynamic_cookie": "enabled"}, [enable("fixed")], always=True
    ),
    "disable-unseen": Case(
        {"backend": "empty", "dynamic_cookie": "disabled"}, [disable("empty")], always=True
    ),
    "disabled-backend": Case(
        {"backend": "off", "dynamic_cookie": "enabled"}, [enable("off")], always=True
    ),
    "error-where-seen": Case(
        {"dynamic_cookie": "enabled", "write_only": "error"}, [enable("app")], cookie="other"
    ),
    "unpublish": Case({"published": False}, ["unpublish backend app"], since=(3, 4)),
    "publish": Case(
        {"published": True},
        ["publish backend app"],
        setup=("unpublish backend app",),
        since=(3, 4),
    ),
    "unpublish-listen": Case(
        {"backend": "both", "published": False}, ["unpublish backend both"], since=(3, 4)
    ),
    "add": Case({"backend": "b", "defaults": "web"}, ["add backend b from web"], since=(3, 4)),
    "add-mode": Case(
        {"backend": "b", "defaults": "bare", "mode": "tcp"},
        ["add backend b from bare mode tcp"],
        since=(3, 4),
    ),
    "add-guid": Case(
        {"backend": "b", "defaults": "web", "guid": "g:1"},
        ["add backend b from web guid g:1"],
        since=(3, 4),
    ),
    "add-published": Case(
        {"backend": "b", "defaults": "web", "published": True},
        ["add backend b from web", "publish backend b"],
        since=(3, 4),
    ),
    "add-with-cookies": Case(
        {
            "backend": "b",
            "defaults": "web",
            "dynamic_cookie": "enabled",
            "dynamic_cookie_key": "third",
            "write_only": "on_change_only",
        },
        ["add backend b from web", key("b"), enable("b")],
        ["add backend b from web", key("b", "third"), enable("b")],
        since=(3, 4),
    ),
    "absent": Case(
        {"backend": "b", "state": "absent"},
        ["unpublish backend b", "del backend b"],
        setup=ADDED,
        since=(3, 4),
    ),
    "absent-unpublished": Case(
        {"backend": "b", "state": "absent", "wait": False},
        ["del backend b"],
        setup=ADDED[:1],
        since=(3, 4),
    ),
    "absent-configured": Case(
        {"backend": "empty", "state": "absent", "wait_timeout": 5},
        ["unpublish backend empty", "del backend empty"],
        since=(3, 4),
    ),
}


def number(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


def column(hap: Haproxy, backend: str, server: str, name: str) -> str:
    lines = hap.ask("show stat").splitlines()
    names = lines[0][2:].split(",")
    for line in lines[1:]:
        row = dict(zip(names, line.split(",")))
        if (row.get("pxname"), row.get("svname")) == (backend, server):
            return row[name]
    raise AssertionError(f"no {backend}/{server}")


def do(target: Haproxy | Relay, *, preview: bool = False, **args: t.Any) -> dict[str, t.Any]:
    where = target.address if isinstance(target, Relay) else str(target.admin)
    return run_module(MODULE, {"socket": where, "backend": "app", **args}, check=preview)


@pytest.fixture
def hap(start_haproxy: Start, short_path: Path, version: str) -> Haproxy:
    more = DEFAULTS if version == "3.4" else ""
    return start_haproxy(BACKENDS.format(path=short_path) + more)


@cells(CASES)
def test_check_do_check_do(
    case: str, kind: str, hap: Haproxy, relay: MakeRelay, version: str
) -> None:
    told = CASES[case]
    wire = relay(hap, kind)
    args = {"backend": "app", **told.args}
    if number(version) < told.since:
        result = run_module(MODULE, {"socket": wire.address, **wire.options, **args})
        assert result["failed"] is True
        assert "exists since HAProxy 3.4" in result["msg"]
        assert wire.changes() == []
        return
    for command in told.setup:
        assert hap.ask(command).strip().endswith("ed.")
    backend, server = args["backend"], "s2" if args["backend"] == "app" else "s1"
    before = column(hap, backend, server, "cookie") if told.cookie else ""
    check, done = four_steps(
        MODULE, args, wire, commands=told.commands, sent=told.sent, always=told.always
    )
    if told.cookie:
        now = column(hap, backend, server, "cookie")
        assert (now == "") is (told.cookie == "none")
        assert now != before
    listed = hap.ask("show backend").split()
    if args.get("state") == "absent":
        assert backend not in listed
        assert check["backends"] == done["backends"] == []
        return
    assert backend in listed
    if "published" in args:
        unpublished = "(UNPUB)" in column(hap, backend, "BACKEND", "status")
        assert unpublished is not args["published"]
    if "mode" in args:
        assert column(hap, backend, "BACKEND", "mode") == args["mode"]
    for result in (check["backends"][0], done["backends"][0]):
        assert result["name"] == backend
        for name in ("published", "mode"):
            assert result[name] == args.get(name, result[name])


def test_key_before_cookies(hap: Haproxy, version: str) -> None:
    """The key makes the cookies that servers get; the same key and address, the same cookie."""
    do(hap, backend="keyless", dynamic_cookie="enabled", dynamic_cookie_key="first")
    assert column(hap, "keyless", "s1", "cookie") == column(hap, "dyn", "s1", "cookie")


def test_enabled_without_a_key(hap: Haproxy, version: str) -> None:
    """HAProxy accepts it and makes no cookies."""
    result = do(hap, backend="keyless", dynamic_cookie="enabled")
    assert result["failed"] is True
    assert "because it has no key: give dynamic_cookie_key" in result["msg"]
    assert result["msg"].endswith("they were disabled again")
    assert result["commands"] == [enable("keyless"), disable("keyless")]
    # A key alone would make cookies if they were still enabled.
    hap.ask(key("keyless", "first"))
    hap.ask("set server keyless/s1 addr 127.0.0.2")
    assert column(hap, "keyless", "s1", "cookie") == ""


SECRET = "s3cret 'x';y"


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"backend": "nope"},
        {"socket": "/nowhere/at/all"},
        {"dynamic_cookie_key": f"{SECRET}\n"},
        {"dynamic_cookie_key": SECRET * 200},
        {"dynamic_cookie_key": SECRET, "write_only": "error"},
    ],
)
def test_the_key_is_never_shown(hap: Haproxy, version: str, args: dict[str, t.Any]) -> None:
    for preview in (True, False):
        result = do(hap, preview=preview, **{"dynamic_cookie_key": SECRET, **args})
        text = json.dumps({name: result[name] for name in result if name != "invocation"})
        assert "s3cret" not in text
        assert "s3cret" not in json.dumps(result.get("invocation", ""))


def test_the_key_is_not_shown_when_haproxy_goes_away(
    hap: Haproxy, relay: MakeRelay, version: str
) -> None:
    wire = relay(hap)

    def end(data: bytes) -> None:
        if b"dynamic-cookie-key" in data:
            hap.process.kill()
            hap.process.wait(5)

    wire.meanwhile = end
    result = do(wire, dynamic_cookie_key=SECRET)
    assert result["failed"] is True
    assert result["unknown"] == [key("app")]
    assert "s3cret" not in json.dumps(result)


@pytest.mark.parametrize(
    ("args", "words", "since"),
    [
        ({"backend": "ap"}, "no backend 'ap'; there is app", (2, 2)),
        ({"backend": "front"}, "no backend 'front'", (2, 2)),
        (
            {"backend": "fixed", "dynamic_cookie": "enabled", "write_only": "error"},
            "refuses",
            (2, 2),
        ),
        ({"mode": "tcp", "defaults": "web"}, "exists with mode http", (2, 2)),
        ({"backend": "off", "published": True}, "is disabled", (3, 4)),
        ({"backend": "off", "state": "absent"}, "is disabled", (3, 4)),
        ({"state": "absent"}, "has servers (s1, s2)", (3, 4)),
        ({"backend": "b", "state": "absent", "mode": "tcp"}, "mode: goes", (2, 2)),
    ],
)
@pytest.mark.parametrize("preview", [False, True], ids=["do", "check"])
def test_refused_before_anything_is_sent(
    hap: Haproxy,
    relay: MakeRelay,
    version: str,
    args: dict[str, t.Any],
    words: str,
    since: tuple[int, int],
    preview: bool,
) -> None:
    wire = relay(hap)
    result = do(wire, preview=preview, **args)
    assert result["failed"] is True
    assert result["changed"] is False
    assert (words if number(version) >= since else "exists since HAProxy 3.4") in result["msg"]
    assert "\n" not in result["msg"]
    assert wire.changes() == []


def test_on_change_only_sends_no_key_alone(hap: Haproxy, relay: MakeRelay, version: str) -> None:
    wire = relay(hap)
    args: dict[str, t.Any] = {"dynamic_cookie_key": "second", "write_only": "on_change_only"}
    assert do(wire, backend="dyn", **args)["changed"] is False
    assert do(wire, backend="dyn", dynamic_cookie="enabled", **args)["changed"] is False
    assert do(wire, backend="fixed", dynamic_cookie="enabled", **args)["changed"] is False
    assert wire.changes() == []


@pytest.mark.parametrize("level", ["user", "operator"])
def test_level(hap: Haproxy, version: str, level: str) -> None:
    result = do(
        hap, socket=str(hap.directory / f"{level}.sock"), backend="dyn", dynamic_cookie="disabled"
    )
    assert f"has level {level}" in result["msg"]
    assert column(hap, "dyn", "s1", "cookie") != ""


def test_several_sockets(start_haproxy: Start, relay: MakeRelay, version: str) -> None:
    config = "\nbackend app\n    cookie S insert\n    {}\n    server s1 127.0.0.1:1\n"
    both = [start_haproxy(config.format("dynamic-cookie-key k")) for _number in range(2)]
    wires = [relay(one) for one in both]
    both[1].ask(enable("app"))
    sockets = [wire.address for wire in wires]
    result = do(both[0], socket=sockets, dynamic_cookie="enabled")
    assert result["commands"] == [enable("app")]
    assert [row["dynamic_cookie"] for row in result["backends"]] == ["enabled"] * 2
    assert [row["socket"] for row in result["backends"]] == sockets
    assert wires[1].changes() == []


@until("3.2", "such a configuration is refused later")
def test_a_frontend_of_the_same_name(start_haproxy: Start, version: str) -> None:
    """Up to 3.2 both may exist; `show stat NAME` would mean the frontend."""
    hap = start_haproxy(
        "\nbackend front\n    cookie S insert\n    dynamic-cookie-key k\n    server s1 127.0.0.1:1\n",
        default="front",
    )
    assert do(hap, backend="front", dynamic_cookie="enabled")["changed"] is True
    assert do(hap, backend="front", dynamic_cookie="enabled")["changed"] is False


def test_a_name_like_an_id(start_haproxy: Start, version: str) -> None:
    hap = start_haproxy(
        "\nbackend app\n    cookie S insert\n    dynamic-cookie-key k\n    server s1 127.0.0.1:1\n"
        "backend 3\n    cookie S insert\n    dynamic-cookie-key k\n    server s1 127.0.0.1:1\n"
    )
    assert column(hap, "app", "BACKEND", "iid") == "3"
    assert do(hap, backend="3", dynamic_cookie="enabled")["changed"] is True
    assert column(hap, "3", "s1", "cookie") != ""
    assert column(hap, "app", "s1", "cookie") == ""
    assert do(hap, backend="app", dynamic_cookie="enabled")["changed"] is True


@since("2.6", "dynamic servers")
def test_added_servers_of_2_6(start_haproxy: Start, version: str) -> None:
    """2.6 gives servers that are added at run time no dynamic cookie, until it is enabled again."""
    hap = start_haproxy(
        "\nbackend app\n    cookie S insert dynamic\n    dynamic-cookie-key k\n"
        "    server s1 127.0.0.1:1\n"
    )
    hap.ask("add server app/n1 127.0.0.1:2")
    assert (column(hap, "app", "n1", "cookie") == "") is (version == "2.6")
    assert do(hap, dynamic_cookie="enabled")["changed"] is False


# --- HAProxy 3.4 ----------------------------------------------------------------------------


@since("3.4", "dynamic backends")
@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"backend": "b", "defaults": "nope"}, "Cannot find default proxy 'nope'."),
        ({"backend": "b", "defaults": "bare"}, "Mode is required"),
        ({"backend": "front", "defaults": "web"}, "name is already used by other proxy"),
        ({"backend": "b", "defaults": "web", "guid": "a b"}, "invalid character ' '"),
    ],
)
def test_refused_additions(hap: Haproxy, args: dict[str, t.Any], words: str) -> None:
    before = hap.ask("show backend")
    result = do(hap, published=True, **args)
    assert result["failed"] is True
    assert result["changed"] is False
    assert words in result["msg"]
    assert hap.ask("show backend") == before


@since("3.4", "dynamic backends")
def test_nothing_follows_a_refused_addition(hap: Haproxy, relay: MakeRelay) -> None:
    wire = relay(hap)
    done: list[str] = []

    def rival(data: bytes) -> None:
        if b"add backend" in data and not done:
            done.append(hap.ask("add backend b from web"))

    wire.meanwhile = rival
    result = do(wire, backend="b", defaults="web", published=True)
    assert "already used" in result["msg"]
    assert wire.changes() == ["add backend b from web"]
    assert "(UNPUB)" in column(hap, "b", "BACKEND", "status")


@since("3.4", "dynamic backends")
def test_backends_that_stay_are_published_again(hap: Haproxy) -> None:
    """HAProxy tells only when it refuses that its configuration names the backend."""
    hap.ask("set server app/s1 state maint;set server app/s2 state maint")
    assert hap.ask("del server app/s1;del server app/s2").count("Server deleted.") == 2
    result = do(hap, state="absent")
    assert "other configuration elements pointing to it" in result["msg"]
    assert result["msg"].endswith("it was published again")
    assert result["commands"] == ["unpublish backend app", "publish backend app"]
    assert "(UNPUB)" not in column(hap, "app", "BACKEND", "status")
    hap.ask("unpublish backend app")
    result = do(hap, state="absent")
    assert result["msg"].endswith("it is as it was")
    assert result["changed"] is False


@since("3.4", "dynamic backends")
def test_a_reply_after_leaked_messages(hap: Haproxy) -> None:
    """3.4 says at `del backend` what it kept to itself at earlier commands."""
    hap.ask("add backend b from web")
    hap.ask("add server b/s1 127.0.0.1:1;set server b/s1 state ready")
    hap.ask("set server b/s1 state maint;del server b/s1")
    result = do(hap, backend="b", state="absent")
    assert not result.get("failed"), result
    assert "b" not in hap.ask("show backend").split()


@since("3.4", "dynamic backends")
@pytest.mark.parametrize("kind", ["unix", "master"])
def test_waits_for_streams(
    start_haproxy: Start, relay: MakeRelay, version: str, short_path: Path, kind: str
) -> None:
    path = f"{short_path}/http.sock"
    hap = start_haproxy(
        BACKENDS.format(path=short_path)
        + DEFAULTS
        + f"frontend chooser\n    mode http\n    bind unix@{path}\n"
        + "    use_backend %[req.hdr(x-backend)]\n"
    )
    for command in ADDED:
        hap.ask(command)
    wire = relay(hap, kind)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        # The backend waits for the rest of the body.
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nX-Backend: b\r\nContent-Length: 9\r\n\r\nabc"
        )
        hap.until(lambda: column(hap, "b", "BACKEND", "scur") == "1")
        result = do(wire, backend="b", state="absent", wait_timeout=0.3)
        assert result["failed"] is True
        assert "after 0.3 s the backend b" in result["msg"]
        assert "still has streams" in result["msg"]
        assert result["msg"].endswith("it was published again")
        assert "(UNPUB)" not in column(hap, "b", "BACKEND", "status")
        began = time.monotonic()
        assert do(wire, backend="b", state="absent", wait=False)["failed"] is True
        assert time.monotonic() - began < 2
        wire.commands()
        timer = threading.Timer(0.5, client.shutdown, [socket.SHUT_RDWR])
        timer.start()
        began = time.monotonic()
        result = do(wire, backend="b", state="absent", wait_timeout=20)
        timer.join()
        assert not result.get("failed"), result
        assert 0.4 < time.monotonic() - began < 5
    lines = wire.commands()
    assert any("be-removable" in line for line in lines) is (kind == "unix")
    assert sum("del backend" in line for line in lines) < 15
    assert "b" not in hap.ask("show backend").split()


@since("3.4", "dynamic backends")
@pytest.mark.parametrize("lost", [False, True], ids=["idle", "lost"])
def test_published_again_whatever_becomes_of_the_connection(
    start_haproxy: Start, relay: MakeRelay, version: str, short_path: Path, lost: bool
) -> None:
    """Pauses between attempts outlast a short `stats timeout`; and connections break."""
    path = f"{short_path}/http.sock"
    hap = start_haproxy(
        "\nbackend app\n"
        + DEFAULTS
        + f"frontend chooser\n    mode http\n    bind unix@{path}\n"
        + "    use_backend %[req.hdr(x-backend)]\n"
        + "global\n    stats timeout 300ms\n"
    )
    for command in ADDED:
        hap.ask(command)
    wire = relay(hap)
    done: list[bool] = []

    def cut(data: bytes) -> None:
        if lost and b"del backend" in data and not done:
            done.append(True)
            raise OSError

    wire.meanwhile = cut
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nX-Backend: b\r\nContent-Length: 9\r\n\r\nabc"
        )
        hap.until(lambda: column(hap, "b", "BACKEND", "scur") == "1")
        result = do(wire, backend="b", state="absent", wait_timeout=2)
    assert result["failed"] is True
    assert ("after 2 s the backend b" in result["msg"]) is not lost
    assert result["msg"].endswith("it was published again")
    assert "(UNPUB)" not in column(hap, "b", "BACKEND", "status")
