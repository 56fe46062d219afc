# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_dynamic_server's real code against real HAProxy processes."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
import typing as t
from collections.abc import Callable, Iterator

import pytest
from harness import (
    Haproxy,
    Relay,
    cells,
    four_steps,
    run_module,
    since,
)

MODULE = "haproxy_dynamic_server"
Start = Callable[..., Haproxy]
MakeRelay = Callable[..., Relay]

BACKENDS = """
backend app
    cookie SRV insert indirect nocache
    server s1 127.0.0.1:1 check
    server s2 127.0.0.1:2
    server s3 127.0.0.1:3 track app/s1
backend empty
backend static
    balance static-rr
    server s1 127.0.0.1:1
backend hashed
    balance source
    server s1 127.0.0.1:1
backend off
    disabled
    server s1 127.0.0.1:1
backend stream
    mode tcp
    server s1 127.0.0.1:1
"""
ADDRESS: dict[str, t.Any] = {"address": "127.0.0.9"}
ADD = "add server app/n1"
READY = "set server app/n1 state ready"


@dataclasses.dataclass(frozen=True)
class Case:
    """What is there, what the task says, what is sent, and what HAProxy tells afterwards."""

    args: dict[str, t.Any]
    commands: list[str]
    state: dict[str, str] = dataclasses.field(default_factory=dict)
    stat: dict[str, str] = dataclasses.field(default_factory=dict)
    setup: tuple[str, ...] = ()
    since: tuple[int, int] = (2, 6)
    before: tuple[int, int] = (9, 9)


def added(line: str, *more: str) -> list[str]:
    return [f"{ADD} 127.0.0.9{line}", *more, READY]


def changed(args: dict[str, t.Any], commands: list[str], **values: t.Any) -> Case:
    """A case that begins with a server that the module adds with nothing but these words."""
    words = values.pop("words", "")
    more = values.pop("more", ())
    setup = (f"{ADD} 127.0.0.9:80{words}", *more)
    return Case({**ADDRESS, **args}, commands, setup=setup, **values)


CHECKED: dict[str, t.Any] = {"words": " check", "more": ("enable health app/n1",)}
ASKED: dict[str, t.Any] = {
    "words": " agent-check agent-port 9",
    "more": ("enable agent app/n1",),
}
CASES = {
    "add": Case(
        {**ADDRESS},
        added(""),
        {"srv_addr": "127.0.0.9", "srv_port": "0", "srv_admin_state": "0", "srv_check_state": "0"},
    ),
    "add-port": Case({**ADDRESS, "port": 80}, added(":80"), {"srv_port": "80"}),
    "add-v6": Case(
        {"address": "2001:DB8::0:1", "port": 80},
        [f"{ADD} [2001:db8::1]:80", READY],
        {"srv_addr": "2001:db8::1", "srv_port": "80"},
    ),
    "add-v6-without-port": Case(
        {"address": "::1"},
        [f"{ADD} [::1]", READY],
        {"srv_addr": "::1", "srv_port": "0"},
    ),
    "add-weight": Case({**ADDRESS, "weight": 0}, added(" weight 0"), {"srv_uweight": "0"}),
    "add-maxconn": Case({**ADDRESS, "maxconn": 5}, added(" maxconn 5"), stat={"slim": "5"}),
    "add-maxqueue": Case({**ADDRESS, "maxqueue": 6}, added(" maxqueue 6"), stat={"qlimit": "6"}),
    "add-id": Case({**ADDRESS, "id": 77}, added(" id 77"), {"srv_id": "77"}),
    "add-cookie": Case(
        {**ADDRESS, "cookie": "c;1 <x>"},
        added(r" cookie c\;1\ \<x>"),
        stat={"cookie": "c;1 <x>"},
        since=(3, 0),
    ),
    "add-track": Case(
        {**ADDRESS, "track": "s1"}, added(" track app/s1"), stat={"tracked": "app/s1"}
    ),
    "add-backup": Case(
        {**ADDRESS, "backup": True}, added(" backup"), stat={"bck": "1", "act": "0"}
    ),
    "add-ssl": Case(
        {**ADDRESS, "ssl": True, "options": ["verify", "none"]},
        added(" ssl verify none"),
        {"srv_use_ssl": "1"},
    ),
    "add-check": Case(
        {**ADDRESS, "port": 80, "check": True},
        added(":80 check", "enable health app/n1"),
        {"srv_check_state": "6"},
    ),
    "add-check-port": Case(
        {**ADDRESS, "check": True, "check_port": 81},
        added(" check port 81", "enable health app/n1"),
        {"srv_check_port": "81", "srv_check_state": "6"},
    ),
    "add-check-address": Case(
        {**ADDRESS, "port": 80, "check": True, "check_address": "127.0.0.8"},
        added(":80 check addr 127.0.0.8", "enable health app/n1"),
        {"srv_check_addr": "127.0.0.8"},
    ),
    "add-agent-check": Case(
        {**ADDRESS, "agent_check": True, "agent_port": 82},
        added(" agent-check agent-port 82", "enable agent app/n1"),
        {"srv_agent_port": "82", "srv_agent_state": "22"},
    ),
    "add-agent-address": Case(
        {**ADDRESS, "agent_check": True, "agent_port": 82, "agent_address": "127.0.0.7"},
        added(" agent-check agent-port 82 agent-addr 127.0.0.7", "enable agent app/n1"),
        {"srv_agent_addr": "127.0.0.7"},
    ),
    # `port` and `addr` would count for the agent too, if they came behind its own.
    "add-both-checks": Case(
        {
            **ADDRESS,
            "check": True,
            "check_port": 81,
            "check_address": "127.0.0.8",
            "agent_check": True,
            "agent_port": 82,
            "agent_address": "127.0.0.7",
        },
        added(
            " check port 81 addr 127.0.0.8 agent-check agent-port 82 agent-addr 127.0.0.7",
            "enable health app/n1",
            "enable agent app/n1",
        ),
        {
            "srv_check_port": "81",
            "srv_check_addr": "127.0.0.8",
            "srv_agent_port": "82",
            "srv_agent_addr": "127.0.0.7",
        },
    ),
    "add-options": Case(
        {**ADDRESS, "port": 80, "check": True, "options": ["rise", "7", "fall", "9"]},
        added(":80 check rise 7 fall 9", "enable health app/n1"),
        stat={"check_rise": "7", "check_fall": "9"},
    ),
    "add-options-escaped": Case(
        {**ADDRESS, "options": ["agent-send", "a b;\\<<"]},
        added(r" agent-send a\ b\;\\\<\<"),
    ),
    "add-drain": Case(
        {**ADDRESS, "admin_state": "drain"},
        [f"{ADD} 127.0.0.9", "set server app/n1 state drain"],
        {"srv_admin_state": "8"},
    ),
    "add-maint": Case(
        {**ADDRESS, "admin_state": "maint"}, [f"{ADD} 127.0.0.9"], {"srv_admin_state": "1"}
    ),
    "add-to-empty": Case(
        {**ADDRESS, "backend": "empty"},
        ["add server empty/n1 127.0.0.9", "set server empty/n1 state ready"],
        {"srv_addr": "127.0.0.9", "srv_admin_state": "0"},
    ),
    "change-address": changed(
        {"address": "127.0.0.7"},
        ["set server app/n1 addr 127.0.0.7"],
        state={"srv_addr": "127.0.0.7", "srv_port": "80", "srv_admin_state": "1"},
    ),
    "change-family": changed(
        {"address": "::1"}, ["set server app/n1 addr ::1"], state={"srv_addr": "::1"}
    ),
    "change-port": changed(
        {"port": 81},
        ["set server app/n1 addr 127.0.0.9 port 81"],
        state={"srv_addr": "127.0.0.9", "srv_port": "81"},
    ),
    "change-both": changed(
        {"address": "127.0.0.7", "port": 81},
        ["set server app/n1 addr 127.0.0.7 port 81"],
        state={"srv_addr": "127.0.0.7", "srv_port": "81"},
    ),
    "change-weight": changed(
        {"weight": 9}, ["set server app/n1 weight 9"], state={"srv_uweight": "9"}
    ),
    "change-maxconn": changed(
        {"maxconn": 9}, ["set maxconn server app/n1 9"], stat={"slim": "9"}, words=" maxconn 5"
    ),
    "change-maxconn-none": changed(
        {"maxconn": 0}, ["set maxconn server app/n1 0"], stat={"slim": ""}, words=" maxconn 5"
    ),
    "change-check-on": changed(
        {"check": True},
        ["enable health app/n1"],
        state={"srv_check_state": "6"},
        words=" check",
    ),
    "change-check-off": changed(
        {"check": False}, ["disable health app/n1"], state={"srv_check_state": "2"}, **CHECKED
    ),
    "change-check-port": changed(
        {"check_port": 81},
        ["set server app/n1 check-port 81"],
        state={"srv_check_port": "81"},
        **CHECKED,
    ),
    "change-check-on-and-port": changed(
        {"check": True, "check_port": 81},
        ["enable health app/n1", "set server app/n1 check-port 81"],
        state={"srv_check_port": "81"},
        words=" check",
    ),
    "change-check-off-and-port": changed(
        {"check": False, "check_port": 81},
        ["set server app/n1 check-port 81", "disable health app/n1"],
        state={"srv_check_port": "81"},
        **CHECKED,
    ),
    "change-check-address": changed(
        {"check_address": "127.0.0.8"},
        ["set server app/n1 check-addr 127.0.0.8"],
        state={"srv_check_addr": "127.0.0.8"},
        before=(3, 4),
        **CHECKED,
    ),
    "change-agent-on": changed(
        {"agent_check": True},
        ["enable agent app/n1"],
        state={"srv_agent_state": "22"},
        words=" agent-check agent-port 9",
    ),
    "change-agent-off": changed(
        {"agent_check": False},
        ["disable agent app/n1"],
        state={"srv_agent_state": "18"},
        **ASKED,
    ),
    "change-agent-port": changed(
        {"agent_port": 82},
        ["set server app/n1 agent-port 82"],
        state={"srv_agent_port": "82"},
        **ASKED,
    ),
    "change-agent-address": changed(
        {"agent_address": "127.0.0.7"},
        ["set server app/n1 agent-addr 127.0.0.7"],
        state={"srv_agent_addr": "127.0.0.7"},
        **ASKED,
    ),
    "change-state": changed(
        {"admin_state": "drain"},
        ["set server app/n1 state drain"],
        state={"srv_admin_state": "8"},
    ),
    "configured": Case(
        {"name": "s2", "address": "127.0.0.5", "port": 2, "weight": 7},
        ["set server app/s2 addr 127.0.0.5 port 2", "set server app/s2 weight 7"],
    ),
    "recreate": changed(
        {"port": 80, "backup": True, "recreate": True},
        [
            "add server app/n1:0 127.0.0.9:80 backup agent-check agent-port 9",
            "del server app/n1:0",
            "disable agent app/n1",
            "set server app/n1 state maint",
            "del server app/n1",
            f"{ADD} 127.0.0.9:80 id 4 backup agent-check agent-port 9",
            "enable agent app/n1",
            "set server app/n1 state drain",
        ],
        state={"srv_admin_state": "8", "srv_agent_state": "22", "srv_agent_port": "9"},
        stat={"bck": "1"},
        words=ASKED["words"],
        more=(*ASKED["more"], "set server app/n1 state drain"),
    ),
    "recreate-keeps": changed(
        {"backup": True, "recreate": True},
        [
            "add server app/n1:0 127.0.0.9:80 weight 9 maxconn 5 maxqueue 6 backup check port 81 "
            "agent-port 82",
            "del server app/n1:0",
            "del server app/n1",
            f"{ADD} 127.0.0.9:80 weight 9 maxconn 5 maxqueue 6 id 4 backup check port 81 "
            "agent-port 82",
        ],
        state={"srv_uweight": "9", "srv_check_port": "81", "srv_check_state": "2"},
        stat={"slim": "5", "qlimit": "6", "bck": "1"},
        words=" weight 9 maxconn 5 maxqueue 6 check port 81 agent-port 82",
    ),
    # The number is taken until the old server is gone, and another trial name is free.
    "recreate-id": changed(
        {"port": 80, "id": 77, "ssl": True, "options": ["verify", "none"], "recreate": True},
        [
            "add server app/n1:1 127.0.0.9:80 ssl verify none",
            "del server app/n1:1",
            "del server app/n1",
            f"{ADD} 127.0.0.9:80 id 77 ssl verify none",
        ],
        state={"srv_id": "77", "srv_use_ssl": "1", "srv_admin_state": "1"},
        words=" id 77",
        more=("add server app/n1:0 127.0.0.9",),
    ),
    "absent": Case(
        {"state": "absent"},
        ["set server app/n1 state maint", "del server app/n1"],
        setup=(f"{ADD} 127.0.0.9:80", READY),
    ),
    "absent-in-maintenance": Case(
        {"state": "absent"}, ["del server app/n1"], setup=(f"{ADD} 127.0.0.9:80",)
    ),
    "absent-checked": Case(
        {"state": "absent", "wait": False},
        ["disable agent app/n1", "set server app/n1 state maint", "del server app/n1"],
        setup=(
            f"{ADD} 127.0.0.9:80 check agent-check agent-port 9",
            "enable health app/n1",
            "enable agent app/n1",
            READY,
        ),
    ),
    "absent-configured": Case(
        {"state": "absent", "name": "s2"},
        ["set server app/s2 state maint", "del server app/s2"],
    ),
    "absent-tracking": Case(
        {"state": "absent", "name": "s3", "wait_timeout": 5, "on_timeout": "rollback"},
        ["set server app/s3 state maint", "del server app/s3"],
    ),
}


def number(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


def stat(hap: Haproxy, backend: str, server: str) -> dict[str, str]:
    lines = hap.ask("show stat").splitlines()
    names = lines[0][2:].split(",")
    for line in lines[1:]:
        row = dict(zip(names, line.split(",")))
        if (row.get("pxname"), row.get("svname")) == (backend, server):
            return row
    raise AssertionError(f"no {backend}/{server}")


def names_of(hap: Haproxy, backend: str = "app") -> list[str]:
    lines = hap.ask(f"show servers state {backend}").splitlines()[2:]
    return [line.split()[3] for line in lines if line]


def do(target: Haproxy | Relay, *, preview: bool = False, **args: t.Any) -> dict[str, t.Any]:
    where = target.address if isinstance(target, Relay) else str(target.admin)
    full = {"socket": where, "backend": "app", "name": "n1", **args}
    return run_module(MODULE, full, check=preview)


@cells(CASES)
def test_check_do_check_do(
    case: str, kind: str, start_haproxy: Start, relay: MakeRelay, version: str
) -> None:
    told, this = CASES[case], number(version)
    hap = start_haproxy(BACKENDS)
    wire = relay(hap, kind)
    args = {"backend": "app", "name": "n1", **told.args}
    if this < told.since:
        result = run_module(MODULE, {"socket": wire.address, **wire.options, **args})
        assert result["failed"] is True
        dotted = "2.6" if this < (2, 6) else ".".join(map(str, told.since))
        assert f"exists since HAProxy {dotted}" in result["msg"]
        assert wire.changes() == []
        return
    for command in told.setup:
        assert hap.ask(command).strip() in ("", "New server registered."), command
    if this >= told.before:
        result = run_module(MODULE, {"socket": wire.address, **wire.options, **args})
        assert "does not change at run time" in result["msg"]
        assert wire.changes() == []
        return
    check, done = four_steps(MODULE, args, wire, commands=told.commands)
    backend, name = args["backend"], args["name"]
    if args.get("state") == "absent":
        assert name not in names_of(hap, backend)
        assert check["servers"] == done["servers"] == []
        return
    row = hap.row(backend, name)
    assert {column: row[column] for column in told.state} == told.state
    figures = stat(hap, backend, name)
    assert {column: figures[column] for column in told.stat} == told.stat
    predicted, real = check["servers"][0], done["servers"][0]
    if predicted["id"] is None:
        predicted["id"] = real["id"]
    assert predicted == real


# --- refused before anything is sent --------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"backend": "ap", **ADDRESS}, "no backend 'ap'; there is app"),
        ({"backend": "front", **ADDRESS}, "no backend 'front'"),
        ({"backend": "static", **ADDRESS}, "has 'balance static-rr'"),
        ({"backend": "off", **ADDRESS}, "is disabled in HAProxy's configuration"),
        ({**ADDRESS, "agent_check": True}, "agent_check: needs agent_port"),
        ({"name": "s2", **ADDRESS, "check": True}, "check true instead of false"),
        (
            {"name": "s2", **ADDRESS, "backup": True, "maxqueue": 3, "weight": 5},
            "maxqueue 3 instead of 0 and backup true instead of false",
        ),
        ({"name": "s2", **ADDRESS, "track": "s1"}, "track app/s1 instead of none"),
        ({"backend": "off", "name": "s1", "address": "127.0.0.1", "port": 1}, "is disabled in"),
        ({"backend": "off", "name": "s1", "state": "absent"}, "is disabled in HAProxy's"),
        ({"name": "s1", "state": "absent"}, "app/s1 at"),
        ({"name": "s1", "state": "absent"}, "is tracked by app/s3, and HAProxy does not delete"),
        (
            {"name": "s1", "address": "127.0.0.1", "backup": True, "recreate": True},
            "is tracked by app/s3",
        ),
        ({**ADDRESS, "weight": True}, "weight true: must be a number, not a boolean"),
        # Without checks HAProxy does not change what belongs to them.
        ({"name": "s2", **ADDRESS, "check_port": 7}, "check_port 7 instead of 0"),
        ({"name": "s2", **ADDRESS, "agent_port": 7}, "agent_port 7 instead of 0"),
    ],
)
@pytest.mark.parametrize("preview", [False, True], ids=["do", "check"])
def test_refused_before_anything_is_sent(
    start_haproxy: Start,
    relay: MakeRelay,
    version: str,
    args: dict[str, t.Any],
    words: str,
    preview: bool,
) -> None:
    wire = relay(start_haproxy(BACKENDS))
    result = do(wire, preview=preview, **args)
    assert result["failed"] is True
    assert result["changed"] is False
    words = "exists since HAProxy 2.6" if version == "2.2" and "boolean" not in words else words
    assert words in result["msg"]
    assert "\n" not in result["msg"]
    assert wire.changes() == []


@since("2.6", "dynamic servers")
def test_unix_sockets_are_not_moved(start_haproxy: Start, relay: MakeRelay, version: str) -> None:
    """HAProxy tells no address of them, and may bring one up with none (2.6)."""
    hap = start_haproxy("\nbackend app\n    server u1 unix@/nowhere.sock\n")
    wire = relay(hap)
    result = do(wire, name="u1", **ADDRESS)
    assert "address 127.0.0.9 instead of none" in result["msg"]
    assert result["differences"] == ["address"]
    assert wire.changes() == []


@since("3.4", "the fault is there")
def test_check_address_in_3_4(start_haproxy: Start, relay: MakeRelay, version: str) -> None:
    """3.4 refuses every `check-addr`, so the server has to be added anew."""
    hap = start_haproxy(BACKENDS)
    wire = relay(hap)
    args: dict[str, t.Any] = {**ADDRESS, "port": 80, "check": True}
    do(wire, **args)
    wire.commands()
    args["check_address"] = "127.0.0.8"
    assert do(wire, **args)["differences"] == ["check_address"]
    assert wire.changes() == []
    assert do(wire, recreate=True, **args)["changed"] is True
    assert hap.row("app", "n1")["srv_check_addr"] == "127.0.0.8"


@pytest.mark.parametrize("level", ["user", "operator"])
def test_level(start_haproxy: Start, version: str, level: str) -> None:
    hap = start_haproxy(BACKENDS)
    result = do(hap, socket=str(hap.directory / f"{level}.sock"), **ADDRESS)
    assert f"has level {level}" in result["msg"]
    assert "n1" not in names_of(hap)


@since("2.6", "dynamic servers")
def test_several_sockets(start_haproxy: Start, relay: MakeRelay, version: str) -> None:
    first, second = start_haproxy(BACKENDS), start_haproxy(BACKENDS)
    wires = [relay(first), relay(second)]
    second.ask(f"{ADD} 127.0.0.9:80 backup")
    args = {"socket": [wire.address for wire in wires], **ADDRESS, "port": 80, "backup": False}
    # What the second cannot do keeps the first untouched.
    result = do(first, **args)
    assert result["failed"] is True
    assert [wire.changes() for wire in wires] == [[], []]
    args["backup"] = True
    result = do(first, **args)
    assert result["commands"] == [f"{ADD} 127.0.0.9:80 backup", READY]
    assert [row["admin_state"] for row in result["servers"]] == ["ready", "maint"]
    assert do(first, **args)["changed"] is False
    for wire in wires:
        wire.commands()
    gone = do(first, socket=args["socket"], state="absent")
    # The second may be idle for as long as the first has sessions.
    kept = [[line for line in wire.commands() if "timeout cli" in line] for wire in wires]
    assert [lines[0] for lines in kept] == ["set timeout cli 625"] * 2
    assert gone["commands"] == [
        "set server app/n1 state maint",
        "del server app/n1",
        "del server app/n1",
    ]


# --- refused by HAProxy ---------------------------------------------------------------------


@since("2.6", "dynamic servers")
@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"backend": "hashed"}, "dynamic"),
        ({"options": ["frobnicate"]}, "unknown keyword 'frobnicate'."),
        ({"id": 1}, "custom id 1 already used"),
        ({"check": True}, "has neither service port nor check port"),
        ({"ssl": True}, "verify is enabled by default but no CA file specified"),
        ({"options": ["init-addr", "none"]}, "init-addr"),
    ],
)
def test_refused_by_haproxy(
    start_haproxy: Start, version: str, args: dict[str, t.Any], words: str
) -> None:
    hap = start_haproxy(BACKENDS)
    result = do(hap, **{**ADDRESS, **args})
    assert result["failed"] is True
    assert result["changed"] is False
    assert words in result["msg"]
    assert "refused 'add server " in result["msg"]
    assert "n1" not in names_of(hap, args.get("backend", "app"))


@since("3.0", "cookies of dynamic servers")
def test_a_warning_before_success(start_haproxy: Start, version: str) -> None:
    """3.0 and later warn of a cookie in a backend of mode tcp, and add the server all the same."""
    hap = start_haproxy(BACKENDS)
    line = "add server stream/n2 127.0.0.9 cookie c1"
    assert hap.ask(line).strip() != "New server registered."
    result = do(hap, backend="stream", cookie="c1", **ADDRESS)
    assert result["commands"] == [
        "add server stream/n1 127.0.0.9 cookie c1",
        "set server stream/n1 state ready",
    ]


def once(wire: Relay, trigger: str, act: Callable[[], t.Any]) -> None:
    """Let something happen when a client's command is on its way."""
    done: list[bool] = []

    def look(data: bytes) -> None:
        if trigger.encode() in data and not done:
            done.append(True)
            act()

    wire.meanwhile = look


@since("2.6", "dynamic servers")
def test_taken_back(start_haproxy: Start, relay: MakeRelay, version: str) -> None:
    """What cannot be finished is deleted again: here somebody put another one in its place."""
    hap = start_haproxy(BACKENDS)
    wire = relay(hap)
    once(
        wire,
        "enable health app/n1",
        lambda: (hap.ask("del server app/n1"), hap.ask(f"{ADD} 127.0.0.9:80")),
    )
    result = do(wire, **ADDRESS, port=80, check=True)
    assert result["failed"] is True
    assert "refused 'enable health app/n1'" in result["msg"]
    assert "was added before that, and has been deleted again" in result["msg"]
    assert "n1" not in names_of(hap)
    assert result["commands"][0] == f"{ADD} 127.0.0.9:80 check"
    assert result["commands"][-1] == "del server app/n1"
    assert result["changed"] is True


@since("2.6", "dynamic servers")
def test_not_taken_back(start_haproxy: Start, relay: MakeRelay, version: str) -> None:
    """Where even that fails, the sentence says so."""
    hap = start_haproxy(BACKENDS)
    wire = relay(hap)
    once(wire, "enable health app/n1", lambda: hap.ask("del server app/n1"))
    result = do(wire, **ADDRESS, port=80, check=True)
    assert "could not be deleted again" in result["msg"]
    assert "No such server." in result["msg"]


@since("2.6", "dynamic servers")
def test_not_somebody_elses(start_haproxy: Start, relay: MakeRelay, version: str) -> None:
    """Nothing follows a refused addition: the server of that name is not ours."""
    hap = start_haproxy(BACKENDS)
    wire = relay(hap)
    once(wire, ADD, lambda: hap.ask(f"{ADD} 127.0.0.8:80"))
    result = do(wire, **ADDRESS)
    assert "Already exists a server" in result["msg"]
    assert wire.changes() == [f"{ADD} 127.0.0.9"]
    assert hap.state("app", "n1") == "maint"


@since("2.6", "dynamic servers")
def test_lost_in_the_middle(start_haproxy: Start, relay: MakeRelay, version: str) -> None:
    hap = start_haproxy(BACKENDS)
    wire = relay(hap)

    def end() -> None:
        hap.process.kill()
        hap.process.wait(5)

    once(wire, READY, end)
    result = do(wire, **ADDRESS)
    assert result["failed"] is True
    assert "may still be in maintenance: 'admin_state: ready' changes that" in result["msg"]
    assert result["unknown"] == [READY]
    assert result["commands"] == [f"{ADD} 127.0.0.9"]


@since("2.6", "dynamic servers")
def test_a_bad_recreation_costs_nothing(
    start_haproxy: Start, relay: MakeRelay, version: str
) -> None:
    hap = start_haproxy(BACKENDS)
    wire = relay(hap)
    args: dict[str, t.Any] = {**ADDRESS, "port": 80}
    do(wire, **args)
    before = hap.row("app", "n1")["srv_id"]
    result = do(wire, backup=True, recreate=True, options=["frobnicate"], **args)
    assert "unknown keyword 'frobnicate'." in result["msg"]
    assert result["changed"] is False
    assert names_of(hap) == ["s1", "s2", "s3", "n1"]
    assert hap.row("app", "n1")["srv_id"] == before
    assert hap.state("app", "n1") == "ready"


@since("2.6", "dynamic servers")
def test_named_servers_stay(start_haproxy: Start, version: str) -> None:
    """HAProxy tells only when it refuses; then the server gets its state back."""
    hap = start_haproxy("\nbackend app\n    use-server s1 if FALSE\n    server s1 127.0.0.1:1\n")
    hap.ask("set server app/s1 state drain")
    result = do(hap, name="s1", state="absent")
    assert "other configuration elements pointing to it" in result["msg"]
    assert "it was set back to drain" in result["msg"]
    assert hap.state("app", "s1") == "drain"
    hap.ask("set server app/s1 state maint")
    result = do(hap, name="s1", state="absent")
    assert "it is as it was" in result["msg"]
    assert result["changed"] is False


@since("2.6", "dynamic servers")
def test_tls_is_not_kept_blindly(start_haproxy: Start, relay: MakeRelay, version: str) -> None:
    hap = start_haproxy(BACKENDS)
    wire = relay(hap)
    args: dict[str, t.Any] = {**ADDRESS, "port": 443, "backup": True, "recreate": True}
    hap.ask(f"{ADD} 127.0.0.9:443 ssl verify none")
    result = do(wire, **args)
    assert "does not tell how it verifies" in result["msg"]
    assert wire.changes() == []
    assert do(wire, options=["verify", "none"], **args)["changed"] is True
    assert hap.row("app", "n1")["srv_use_ssl"] == "1"


@since("2.6", "dynamic servers")
def test_the_diff_of_a_recreation(start_haproxy: Start, version: str) -> None:
    """Check mode and the real run show what the task does not name."""
    hap = start_haproxy(BACKENDS)
    hap.ask(f"{ADD} 127.0.0.9:80 track app/s1")
    args: dict[str, t.Any] = {**ADDRESS, "check": True, "recreate": True}
    for preview in (True, False):
        diff = do(hap, preview=preview, **args)["diff"]
        assert diff["before"]["app/n1"]["track"] == "app/s1"
        assert diff["after"]["app/n1"]["track"] is None


# --- with traffic ---------------------------------------------------------------------------


@contextlib.contextmanager
def client_of(hap: Haproxy) -> Iterator[socket.socket]:
    """A client that is served by the only usable server, for as long as it likes."""
    with socket.create_connection(("127.0.0.1", hap.port), timeout=5) as sock:
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"
        yield sock


@pytest.fixture
def busy(start_haproxy: Start, version: str, echo: int) -> tuple[Haproxy, int]:
    hap = start_haproxy("\nbackend app\n    balance roundrobin\n", mode="tcp")
    assert do(hap, address="127.0.0.1", port=echo)["changed"] is True
    return hap, echo


@since("2.6", "dynamic servers")
@pytest.mark.parametrize("kind", ["unix", "master"])
def test_waits_for_sessions(
    start_haproxy: Start, relay: MakeRelay, version: str, echo: int, kind: str
) -> None:
    """The master takes HAProxy's own `wait` for interrupted, so there it is tried again."""
    hap = start_haproxy("\nbackend app\n    balance roundrobin\n", mode="tcp")
    assert do(hap, address="127.0.0.1", port=echo)["changed"] is True
    wire = relay(hap, kind)
    with client_of(hap) as sock:
        timer = threading.Timer(0.6, sock.shutdown, [socket.SHUT_RDWR])
        timer.start()
        began = time.monotonic()
        result = do(wire, state="absent", wait_timeout=20)
        took = time.monotonic() - began
        timer.join()
    assert not result.get("failed"), result
    assert names_of(hap) == []
    commands = wire.commands()
    assert any("wait " in line for line in commands) is (version >= "3.0" and kind == "unix")
    # No busy loop, and no needless wait.
    assert 2 < sum("del server" in line for line in commands) < 12
    assert 0.5 < took < 4
    assert result["commands"] == ["set server app/n1 state maint", "del server app/n1"]


@since("2.6", "dynamic servers")
def test_deadline_fails(busy: tuple[Haproxy, int]) -> None:
    hap, _port = busy
    with client_of(hap) as sock:
        began = time.monotonic()
        result = do(hap, state="absent", wait_timeout=0.4)
        assert 0.4 <= time.monotonic() - began < 3
        assert result["failed"] is True
        assert "after 0.4 s app/n1" in result["msg"]
        assert "still has 1 streams" in result["msg"]
        assert result["msg"].endswith("it is in maintenance")
        assert result["commands"] == ["set server app/n1 state maint"]
        assert result["waiting_for"][0]["server"] == "n1"
        assert hap.state("app", "n1") == "maint"
        sock.sendall(b"still")
        assert sock.recv(5) == b"still"


@since("2.6", "dynamic servers")
def test_deadline_at_once(busy: tuple[Haproxy, int]) -> None:
    hap, _port = busy
    with client_of(hap):
        began = time.monotonic()
        result = do(hap, state="absent", wait=False)
        assert time.monotonic() - began < 2
        assert "after 0 s" in result["msg"]
        assert names_of(hap) == ["n1"]


@since("2.6", "dynamic servers")
def test_deadline_rolls_back(busy: tuple[Haproxy, int]) -> None:
    hap, port = busy
    hap.ask("set server app/n1 state drain")
    hap.ask("set server app/n1 state ready")
    with client_of(hap):
        result = do(hap, state="absent", wait_timeout=0.2, on_timeout="rollback")
        assert result["failed"] is True
        assert result["msg"].endswith("it was set back to ready")
        assert hap.state("app", "n1") == "ready"
        # A recreation that does not come to its end leaves the old server as it was.
        result = do(
            hap,
            address="127.0.0.1",
            port=port,
            backup=True,
            recreate=True,
            wait=False,
            on_timeout="rollback",
        )
        assert result["msg"].endswith("it was set back to ready")
        assert names_of(hap) == ["n1"]
        assert stat(hap, "app", "n1")["bck"] == "0"


@since("2.6", "dynamic servers")
def test_rolls_back_whatever_the_timeout_of_the_socket(
    start_haproxy: Start, version: str, echo: int
) -> None:
    """Pauses of up to a second between attempts must not lose the connection."""
    timeout = "global\n    stats timeout 300ms\n"
    hap = start_haproxy(f"\nbackend app\n    balance roundrobin\n{timeout}", mode="tcp")
    do(hap, address="127.0.0.1", port=echo)
    with client_of(hap):
        result = do(hap, state="absent", wait_timeout=2, on_timeout="rollback")
        assert "after 2 s app/n1" in result["msg"]
        assert result["msg"].endswith("it was set back to ready")
        assert hap.state("app", "n1") == "ready"


@since("2.6", "dynamic servers")
@pytest.mark.parametrize("rival", [False, True])
def test_set_back_when_the_connection_is_lost(
    busy: tuple[Haproxy, int], relay: MakeRelay, rival: bool
) -> None:
    hap, _port = busy
    wire = relay(hap)
    done: list[bool] = []

    def cut(data: bytes) -> None:
        if b"del server" in data and not done:
            done.append(True)
            if rival:
                hap.process.kill()
                hap.process.wait(5)
            raise OSError

    wire.meanwhile = cut
    with client_of(hap):
        result = do(wire, state="absent", wait_timeout=5, on_timeout="rollback")
    assert result["failed"] is True
    if rival:
        assert "it may be in maintenance, and could not be set back to ready" in result["msg"]
    else:
        assert result["msg"].endswith("it was set back to ready")
        assert hap.state("app", "n1") == "ready"


@since("2.6", "dynamic servers")
def test_deadline_ends_sessions(busy: tuple[Haproxy, int], relay: MakeRelay) -> None:
    hap, _port = busy
    wire = relay(hap)
    with client_of(hap) as sock:
        result = do(wire, state="absent", wait_timeout=0.2, on_timeout="shutdown_sessions")
        assert not result.get("failed"), result
        assert "shutdown sessions server app/n1" in result["commands"]
        assert names_of(hap) == []
        assert sock.recv(1) == b""


@since("2.6", "dynamic servers")
def test_recreated_with_traffic(busy: tuple[Haproxy, int]) -> None:
    hap, port = busy
    with client_of(hap):
        result = do(
            hap,
            address="127.0.0.1",
            port=port,
            maxqueue=4,
            recreate=True,
            wait=False,
            on_timeout="shutdown_sessions",
        )
        assert not result.get("failed"), result
    assert hap.state("app", "n1") == "ready"
    with client_of(hap):
        assert stat(hap, "app", "n1")["qlimit"] == "4"


@since("2.6", "dynamic servers")
@pytest.mark.parametrize("reuse", ["safe", "never"])
def test_idle_connections_do_not_count(
    start_haproxy: Start, version: str, origin: int, reuse: str
) -> None:
    """Whatever is kept for reuse, the server can go, and its idle clients live on."""
    hap = start_haproxy(f"\nbackend app\n    http-reuse {reuse}\n")
    args: dict[str, t.Any] = {"address": "127.0.0.1", "port": origin}
    do(hap, **args)
    with socket.create_connection(("127.0.0.1", hap.port), timeout=5) as sock:

        def get() -> bytes:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            data = sock.recv(4096)
            while data and not data.endswith(b"web"):
                data += sock.recv(4096)
            return data

        assert get().startswith(b"HTTP/1.1 200")
        # The stream ends a moment after the response.
        hap.until(lambda: stat(hap, "app", "n1")["scur"] == "0")
        began = time.monotonic()
        result = do(hap, state="absent")
        assert not result.get("failed"), result
        assert time.monotonic() - began < 3
        do(hap, **args)
        assert get().startswith(b"HTTP/1.1 200")


@since("2.6", "dynamic servers")
def test_checked_and_ready_means_up(start_haproxy: Start, version: str, origin: int) -> None:
    """What an operator expects of an added server: checked, in use, and serving."""
    hap = start_haproxy("\nbackend app\n    option httpchk GET /\n")
    options = ["inter", "50ms", "rise", "2", "fall", "2"]
    do(hap, address="127.0.0.1", port=origin, check=True, options=options)
    hap.until_up("app/n1")
    result = do(hap, address="127.0.0.1", port=origin, check=True, options=options)
    assert result["changed"] is False
