# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_server's addresses, limits and checks against real HAProxy processes."""

from __future__ import annotations

import http.client
import socket
import time
import typing as t

import pytest
from harness import Haproxy, Relay, cells, four_steps, http_origin, run_module

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _server_desired

Start = t.Callable[..., Haproxy]
MakeRelay = t.Callable[..., Relay]

BODY = """\
resolvers none
    nameserver n 127.0.0.1:{closed}
backend app
    server s1 127.0.0.1:{port} check inter 2s agent-check agent-port 9 agent-inter 30s
    server plain 127.0.0.1:{port}
    server limited 127.0.0.1:{port} maxconn 10
    server named localhost:{port} init-addr none resolvers none
    server known localhost:{port} init-addr libc
    server map 127.0.0.1:+10
    server unix unix@/nowhere
    server six [::1]:{port}
    server tls 127.0.0.1:{port} ssl verify none
    server follower 127.0.0.1:{port} track app/s1
"""


def server(args: dict[str, t.Any], *, check: bool = False) -> dict[str, t.Any]:
    return run_module("haproxy_server", {"backend": "app", **args}, check=check)


@pytest.fixture
def hap(start_haproxy: Start, origin: int, closed_port: int) -> Haproxy:
    hap = start_haproxy(BODY.format(port=origin, closed=closed_port))
    hap.until(lambda: hap.row("app", "s1")["srv_check_health"] == "4")
    return hap


class Case(t.NamedTuple):
    """Arguments, the commands expected, and what `show servers state` says afterwards."""

    args: dict[str, t.Any]
    commands: list[str]
    row: dict[str, str] = {}
    prepare: tuple[str, ...] = ()
    # The first version that can do it, and what is said before.
    since: str = "2.2"
    error: str = ""
    # HAProxy 2.2 does not tell it.
    newer: bool = False


S1, PLAIN = {"servers": "s1"}, {"servers": "plain"}

CASES: dict[str, Case] = {
    "address": Case(
        {**PLAIN, "address": "127.0.0.2"},
        ["set server app/plain addr 127.0.0.2"],
        {"srv_addr": "127.0.0.2"},
    ),
    "address of the other family": Case(
        {**PLAIN, "address": "0:0:0:0:0:0:0:1"},
        ["set server app/plain addr ::1"],
        {"srv_addr": "::1"},
    ),
    "address from IPv6": Case(
        {"servers": "six", "address": "127.0.0.2"},
        ["set server app/six addr 127.0.0.2"],
        {"srv_addr": "127.0.0.2"},
    ),
    "port": Case(
        {**PLAIN, "port": 8080},
        ["set server app/plain addr 127.0.0.1 port 8080"],
        {"srv_addr": "127.0.0.1", "srv_port": "8080"},
    ),
    "address and port": Case(
        {**PLAIN, "address": "127.0.0.2", "port": 65535},
        ["set server app/plain addr 127.0.0.2 port 65535"],
        {"srv_addr": "127.0.0.2", "srv_port": "65535"},
    ),
    "port instead of a map": Case(
        {"servers": "map", "port": 8080},
        ["set server app/map addr 127.0.0.1 port 8080"],
        {"srv_port": "8080"},
    ),
    "address before ready": Case(
        {**PLAIN, "address": "127.0.0.2", "state": "ready"},
        ["set server app/plain addr 127.0.0.2", "set server app/plain state ready"],
        {"srv_addr": "127.0.0.2", "srv_admin_state": "0"},
        prepare=("set server app/plain state maint",),
    ),
    "address after maint": Case(
        {**PLAIN, "address": "127.0.0.2", "state": "maint"},
        ["set server app/plain state maint", "set server app/plain addr 127.0.0.2"],
        {"srv_addr": "127.0.0.2", "srv_admin_state": "1"},
    ),
    "fqdn": Case(
        {"servers": "named", "fqdn": "Other.example."},
        ["set server app/named fqdn other.example"],
        {"srv_fqdn": "other.example"},
    ),
    "maxconn": Case({**PLAIN, "maxconn": 7}, ["set maxconn server app/plain 7"]),
    "no maxconn": Case({"servers": "limited", "maxconn": 0}, ["set maxconn server app/limited 0"]),
    "most maxconn": Case(
        {"servers": "limited", "maxconn": 2147483647},
        ["set maxconn server app/limited 2147483647"],
    ),
    "health checks off": Case(
        {**S1, "health_checks": "disabled"}, ["disable health app/s1"], {"srv_check_state": "2"}
    ),
    "health checks on": Case(
        {**S1, "health_checks": "enabled"},
        ["enable health app/s1"],
        prepare=("disable health app/s1",),
    ),
    "agent checks off": Case(
        {**S1, "agent_checks": "disabled"}, ["disable agent app/s1"], {"srv_agent_state": "18"}
    ),
    "agent checks on": Case(
        {**S1, "agent_checks": "enabled"},
        ["enable agent app/s1"],
        prepare=("disable agent app/s1",),
    ),
    "checks off with the old words": Case(
        {"host": "s1", "state": "disabled", "health": True, "agent": True},
        ["disable agent app/s1", "disable health app/s1", "set server app/s1 state maint"],
    ),
    "checks on with the old words": Case(
        {"host": "s1", "state": "enabled", "health": True, "agent": True},
        ["enable health app/s1", "enable agent app/s1", "set server app/s1 state ready"],
        prepare=("disable health app/s1", "disable agent app/s1", "disable server app/s1"),
    ),
    "checks and drain with the old words": Case(
        {"host": "s1", "state": "drain", "health": True, "agent": True},
        ["set server app/s1 state drain"],
    ),
    "check_address": Case(
        {**S1, "check_address": "127.0.0.9"},
        ["set server app/s1 check-addr 127.0.0.9"],
        {"srv_check_addr": "127.0.0.9"},
        since="2.4",
        error="setting check_address at run time exists since HAProxy 2.4",
    ),
    "check_port": Case(
        {**S1, "check_port": 92},
        ["set server app/s1 check-port 92"],
        {"srv_check_port": "92"},
        newer=True,
    ),
    "no check_port": Case(
        {**S1, "check_port": 0},
        ["set server app/s1 check-port 0"],
        {"srv_check_port": "0"},
        prepare=("set server app/s1 check-port 92",),
        newer=True,
    ),
    "agent_address": Case(
        {**S1, "agent_address": "127.0.0.9"},
        ["set server app/s1 agent-addr 127.0.0.9"],
        {"srv_agent_addr": "127.0.0.9"},
        newer=True,
    ),
    "no agent_address": Case(
        {**S1, "agent_address": "::"},
        ["set server app/s1 agent-addr 0.0.0.0"],
        {"srv_agent_addr": "0.0.0.0"},
        prepare=("set server app/s1 agent-addr 127.0.0.9",),
        newer=True,
    ),
    "agent_port": Case(
        {**S1, "agent_port": 93},
        ["set server app/s1 agent-port 93"],
        {"srv_agent_port": "93"},
        since="2.4",
        error="setting agent_port at run time exists since HAProxy 2.4",
    ),
    "values of checks that are switched on": Case(
        {**S1, "health_checks": "enabled", "check_port": 92},
        ["enable health app/s1", "set server app/s1 check-port 92"],
        prepare=("disable health app/s1",),
        newer=True,
    ),
    "values of checks that are switched off": Case(
        {**S1, "health_checks": "disabled", "check_port": 92},
        ["set server app/s1 check-port 92", "disable health app/s1"],
        newer=True,
    ),
    "ssl off": Case(
        {"servers": "tls", "ssl": False},
        ["set server app/tls ssl off"],
        {"srv_use_ssl": "0"},
        since="2.4",
        error="setting ssl at run time exists since HAProxy 2.4",
    ),
    "ssl on": Case(
        {"servers": "tls", "ssl": True},
        ["set server app/tls ssl on"],
        {"srv_use_ssl": "1"},
        prepare=("set server app/tls ssl off",),
        since="2.4",
        error="setting ssl at run time exists since HAProxy 2.4",
    ),
    "members": Case(
        {
            "members": [
                {"name": "s1", "state": "drain", "weight": "0"},
                {"name": "plain", "address": "127.0.0.2"},
                {"name": "limited", "maxconn": 5},
            ],
        },
        [
            "set maxconn server app/limited 5",
            "set server app/plain addr 127.0.0.2",
            "set server app/s1 weight 0",
            "set server app/s1 state drain",
        ],
    ),
    "aggregate over common values": Case(
        {
            "aggregate": [{"server": "s1", "weight": "0"}, {"host": "plain", "state": "maint"}],
            "servers": "limited",
            "state": "drain",
        },
        [
            "set server app/limited state drain",
            "set server app/plain state maint",
            "set server app/s1 weight 0",
            "set server app/s1 state drain",
        ],
    ),
    "ids": Case(
        {"servers": ["#2", "limited"], "backend": "#{backend_id}", "state": "drain"},
        ["set server app/limited state drain", "set server app/plain state drain"],
    ),
}


@cells(CASES)
def test_check_do_check_do(
    hap: Haproxy, relay: MakeRelay, version: str, kind: str, case: str
) -> None:
    args, commands, row, prepare, since, error, newer = CASES[case]
    for command in prepare:
        hap.ask(command)
    wire = relay(hap, kind)
    full = {"backend": "app", **args}
    full["backend"] = full["backend"].replace("{backend_id}", hap.row("app", "s1")["be_id"])
    if version < since:
        for check in (True, False):
            failed = run_module(
                "haproxy_server", {"socket": wire.address, **wire.options, **full}, check=check
            )
            assert failed["failed"] is True
            assert error in failed["msg"]
        assert wire.changes() == []
        return
    if case == "check_address" and version == "3.4":
        failed = run_module("haproxy_server", {"socket": wire.address, **wire.options, **full})
        assert failed["failed"] is True
        assert "refuses every address" in failed["msg"]
        assert wire.changes() == []
        return
    always = newer and version == "2.2"
    if always and len(commands) > 1:
        # The other one can be told and is not sent again.
        for name in ("health_checks",):
            full.pop(name)
            hap.ask("enable health app/s1")
        commands = [command for command in commands if " check-port " in command]
    four_steps("haproxy_server", full, wire, commands=commands, always=always)
    name = commands[0].partition("app/")[2].split()[0]
    found = hap.row("app", name)
    for column, value in row.items():
        assert found.get(column, value) == value
    for command in commands:
        if command.startswith("set maxconn server"):
            wanted = command.split()[-1]
            stat = stat_of(hap, command.split()[3].partition("/")[2])
            assert stat["slim"] == ("" if wanted == "0" else wanted)


def stat_of(hap: Haproxy, name: str) -> dict[str, str]:
    lines = hap.ask("show stat").splitlines()
    header = lines[0][2:].split(",")
    rows = [dict(zip(header, line.split(","))) for line in lines[1:]]
    return next(row for row in rows if (row.get("pxname"), row.get("svname")) == ("app", name))


def test_every_option_is_tried() -> None:
    tried = {name for case in CASES.values() for name in case.args}
    # Those of test_haproxy_server.py, of what is sent every time, and of what ends sessions.
    tried |= {"weight", "agent_send", "force_health", "force_agent", "shutdown_sessions"}
    assert set(_server_desired.MEMBER_VALUES) <= tried


# --- what cannot be compared ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "command"),
    [
        (
            {**S1, "agent_send": "hello; world\\<<"},
            r"set server app/s1 agent-send hello\;\ world\\\<\<",
        ),
        ({**PLAIN, "force_health": "down"}, "set server app/plain health down"),
        ({**PLAIN, "force_health": "stopping"}, "set server app/plain health stopping"),
        ({**PLAIN, "force_health": "up"}, "set server app/plain health up"),
        ({**S1, "force_agent": "down"}, "set server app/s1 agent down"),
        ({**S1, "force_agent": "up"}, "set server app/s1 agent up"),
    ],
)
def test_sent_every_time(
    hap: Haproxy, relay: MakeRelay, args: dict[str, t.Any], command: str
) -> None:
    full = {"backend": "app", **args}
    four_steps("haproxy_server", full, relay(hap), commands=[command], always=True)


def test_forced_health_has_the_effect_it_names(hap: Haproxy) -> None:
    args = {"socket": str(hap.admin), **PLAIN}
    for word, number in (("down", "0"), ("stopping", "3"), ("up", "2")):
        done = server({**args, "force_health": word})
        assert hap.row("app", "plain")["srv_op_state"] == number
        assert (
            done["servers"][0]["operational"] == ("stopped", "", "running", "stopping")[int(number)]
        )
        assert server({**args, "force_health": word}, check=True)["servers"] == done["servers"]
    server({**S1, "socket": str(hap.admin), "force_agent": "down"})
    assert hap.row("app", "s1")["srv_op_state"] == "0"


def test_force_health_counts_for_the_floor(hap: Haproxy, relay: MakeRelay) -> None:
    wire = relay(hap)
    usable = sum(
        srv["usable"]
        for srv in server({"socket": wire.address, "servers": "*", "return": "all"})["servers"]
    )
    for word in ("down", "stopping"):
        failed = server(
            {"socket": wire.address, **PLAIN, "force_health": word, "min_ready": usable}
        )
        assert failed.get("failed") is True
        assert "would stay usable" in failed["msg"]
    assert wire.changes() == []


def test_write_only(hap: Haproxy, relay: MakeRelay, version: str) -> None:
    wire = relay(hap)
    args = {"socket": wire.address, **S1, "agent_send": "x"}
    refused = server({**args, "write_only": "error"})
    assert refused["failed"] is True
    assert "write_only is error" in refused["msg"]
    quiet = {**args, "write_only": "on_change_only"}
    assert server(quiet)["changed"] is False
    assert wire.changes() == []
    both = server({**quiet, "weight": "5"})
    assert both["commands"] == wire.changes()
    assert both["commands"] == ["set server app/s1 weight 5", "set server app/s1 agent-send x"]
    assert server({**quiet, "weight": "5"})["changed"] is False
    port = server({"socket": wire.address, **S1, "check_port": 92, "write_only": "error"})
    assert port.get("failed", False) is (version == "2.2")


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"servers": "named", "address": "127.0.0.2"}, "has no address to change"),
        ({"servers": "named", "port": 80}, "has no address to change"),
        ({"servers": "unix", "address": "127.0.0.2"}, "has no address to change"),
        ({**PLAIN, "fqdn": "a.example"}, "has an address and no name"),
        ({**PLAIN, "check_port": 92}, "only while health checks are switched on"),
        ({**PLAIN, "agent_address": "127.0.0.2"}, "only while agent checks are switched on"),
        ({**PLAIN, "agent_send": "x"}, "only while agent checks are switched on"),
        ({**PLAIN, "force_agent": "up"}, "only while agent checks are switched on"),
        ({**PLAIN, "health_checks": "enabled"}, "has no health check"),
        ({**PLAIN, "agent_checks": "enabled"}, "has no agent check"),
        ({"servers": "follower", "health_checks": "enabled"}, "has no health check"),
        (
            {"members": [{"name": "s*", "state": "drain"}, {"name": "s1", "state": "ready"}]},
            "app/s1 is named twice, with state drain and state ready",
        ),
        ({"servers": "#99", "state": "drain"}, "no server '#99'"),
        ({"backend": "#99", "servers": "s1", "state": "drain"}, "no backend '#99'"),
    ],
)
def test_refused_before_anything_is_sent(
    hap: Haproxy, relay: MakeRelay, args: dict[str, t.Any], words: str, check: bool
) -> None:
    """2.2 and 2.6 would bring `named` up without an address, and 2.2 switch a check on that is none."""
    before = hap.ask("show servers state")
    wire = relay(hap)
    failed = server({"socket": wire.address, **args}, check=check)
    assert failed.get("failed") is True, failed
    assert words in failed["msg"]
    assert failed["changed"] is False
    assert wire.changes() == []
    columns = [
        [line.split()[4:9] for line in text.splitlines()]
        for text in (before, hap.ask("show servers state"))
    ]
    assert columns[0] == columns[1]


@pytest.mark.parametrize(
    ("args", "reply"),
    [
        ({"servers": "known", "fqdn": "a.example"}, "FQDN|no resolution"),
        ({"servers": "follower", "force_health": "up"}, "tracking server"),
        ({**PLAIN, "ssl": True}, "default-server should define ssl"),
    ],
)
def test_what_haproxy_refuses_fails(
    hap: Haproxy, args: dict[str, t.Any], reply: str, version: str
) -> None:
    failed = server({"socket": str(hap.admin), **args})
    assert failed.get("failed") is True
    assert failed["changed"] is False
    if version == "2.2" and "ssl" in args:
        assert "since HAProxy 2.4" in failed["msg"]
    else:
        assert any(
            word in failed["refused"][0]["reply"].replace("fqdn", "FQDN")
            for word in reply.split("|")
        )


def test_missing_names_with_the_old_word(hap: Haproxy) -> None:
    args = {"socket": str(hap.admin), "host": "gone", "state": "disabled"}
    assert server({**args, "fail_on_not_found": True})["failed"] is True
    assert server(args)["failed"] is True
    assert server({**args, "fail_on_not_found": False})["changed"] is False


# --- taking back ----------------------------------------------------------------------------


def test_rollback_of_every_value(start_haproxy: Start, closed_port: int, version: str) -> None:
    """Whatever the task has changed is as before, also where there was nothing before."""
    hap = start_haproxy(
        f"backend app\n    server s1 127.0.0.1:{closed_port} check inter 100ms agent-check agent-port 9 "
        "agent-inter 30s ssl verify none maxconn 3\n"
    )
    hap.ask("set server app/s1 state maint")
    before = {**hap.row("app", "s1"), **stat_of(hap, "s1")}
    values: dict[str, t.Any] = {
        "address": "127.0.0.2",
        "port": closed_port,
        "maxconn": 0,
        "agent_checks": "disabled",
        "weight": "7",
    }
    if version != "2.2":
        values.update(ssl=False, agent_address="127.0.0.3", agent_port=77, check_port=closed_port)
    if version not in ("2.2", "3.4"):
        values["check_address"] = "127.0.0.9"
    failed = server(
        {
            "socket": str(hap.admin),
            **S1,
            **values,
            "state": "ready",
            "wait": True,
            "wait_timeout": 0.4,
            "on_timeout": "rollback",
        }
    )
    assert failed["failed"] is True
    assert "every server that this task had changed was set back" in failed["msg"], failed
    after = {**hap.row("app", "s1"), **stat_of(hap, "s1")}
    columns = ["srv_addr", "srv_port", "srv_admin_state", "srv_uweight", "slim"]
    columns += ["srv_use_ssl", "srv_check_port", "srv_agent_port"]
    assert [after.get(name) for name in columns] == [before.get(name) for name in columns]
    assert int(after["srv_agent_state"]) & 4
    for name in ("srv_check_addr", "srv_agent_addr"):
        assert after.get(name) in (before.get(name), "0.0.0.0")


def test_rollback_of_a_port_map(start_haproxy: Start, echo: int, version: str) -> None:
    """HAProxy shows `+10` as 10; the reply to the change is the only one to tell."""
    hap = start_haproxy(
        f"backend app\n    server s1 127.0.0.1:{echo}\n    server map 127.0.0.1:+10\n", mode="tcp"
    )
    with socket.create_connection(("127.0.0.1", hap.port), timeout=10) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        failed = server(
            {
                "socket": str(hap.admin),
                "members": [{"name": "s1"}, {"name": "map", "port": 8080}],
                "state": "drain",
                "wait": True,
                "wait_timeout": 0.3,
                "on_timeout": "rollback",
            }
        )
    assert failed["failed"] is True
    assert hap.state("app", "s1") == hap.state("app", "map") == "ready"
    if version == "2.6":
        # It takes no port map at all at run time, whatever the checks.
        assert "can't change <port> to port map" in failed["not_undone"][0]["reason"]
        return
    assert "set server app/map addr 127.0.0.1 port +10" in failed["undone"]
    assert "from '+10'" in hap.ask("set server app/map addr 127.0.0.1 port 99")


def test_what_cannot_be_taken_back_is_told(start_haproxy: Start, closed_port: int) -> None:
    hap = start_haproxy(
        f"backend app\n    server s1 127.0.0.1:{closed_port} check inter 100ms agent-check agent-port 9 "
        "agent-inter 30s\n"
    )
    hap.ask("set server app/s1 state maint")
    args = {"socket": str(hap.admin), **S1, "agent_send": "x", "state": "ready", "wait": True}
    failed = server({**args, "wait_timeout": 0.3, "on_timeout": "rollback"})
    assert failed["failed"] is True
    assert hap.state("app", "s1") == "maint"
    assert [entry["reason"] for entry in failed["not_undone"]] == [
        "agent_send of app/s1 is not told by HAProxy, so it stays as it was set"
    ]


# --- truth ----------------------------------------------------------------------------------


def test_an_address_is_in_use_when_the_task_ends(start_haproxy: Start, origin: int) -> None:
    """2.9 and later change it a moment after the reply: 30 times back and forth, never stale."""
    hap = start_haproxy(f"backend app\n    server s1 127.0.0.1:{origin}\n")
    for number in range(30):
        address = f"127.0.0.{2 + number % 2}"
        done = server({"socket": str(hap.admin), **S1, "address": address, "port": 1000 + number})
        assert done.get("failed") is None, done
        row = hap.row("app", "s1")
        assert (row["srv_addr"], row["srv_port"]) == (address, str(1000 + number))


@pytest.mark.parametrize("old", ["ready", "drain", "maint"])
@pytest.mark.parametrize("option", ["port", "check_port"])
def test_a_new_place_must_pass_a_check(
    start_haproxy: Start, origin: int, closed_port: int, old: str, option: str, version: str
) -> None:
    """The counter is full from checks of the old port; they say nothing about the new one."""
    hap = start_haproxy(
        f"backend app\n    server s1 127.0.0.1:{origin} check inter 600ms fastinter 600ms\n"
    )
    hap.until_up("app/s1")
    hap.ask(f"set server app/s1 state {old}")
    args = {"socket": str(hap.admin), **S1, "state": "ready", "wait": True}
    failed = server({**args, option: closed_port, "wait_timeout": 0.4})
    assert failed.get("failed") is True, "believed a check of the old port"
    done = server({**args, option: origin, "wait_timeout": 10})
    assert done.get("failed") is None, done
    assert hap.status("app", "s1") == "UP"


def test_clients_see_the_new_address_only_with_ready(start_haproxy: Start) -> None:
    with http_origin(name="old") as first, http_origin(name="new") as second:
        hap = start_haproxy(f"backend app\n    server s1 127.0.0.1:{first}\n")
        hap.ask("set server app/s1 state maint")
        server({"socket": str(hap.admin), **S1, "port": second, "state": "ready"})
        client = http.client.HTTPConnection("127.0.0.1", hap.port, timeout=10)
        client.request("GET", "/")
        assert client.getresponse().read() == b"new"
        client.close()


def test_enabled_checks_are_not_enabled_again(hap: Haproxy, relay: MakeRelay) -> None:
    """3.2 and later start the check anew when it is switched on again."""
    wire = relay(hap)
    args = {"socket": wire.address, **S1, "health_checks": "enabled", "agent_checks": "enabled"}
    assert server(args)["changed"] is False
    assert wire.changes() == []


def test_wait_retries_are_a_deadline(start_haproxy: Start, closed_port: int) -> None:
    hap = start_haproxy(f"backend app\n    server s1 127.0.0.1:{closed_port} check inter 5s\n")
    hap.ask("set server app/s1 state maint")
    args = {"socket": str(hap.admin), **S1, "state": "enabled", "wait": True}
    started = time.monotonic()
    failed = server({**args, "wait_interval": 0.1, "wait_retries": 5})
    assert failed["failed"] is True
    assert "after 0.5 s" in failed["msg"]
    assert 0.4 < time.monotonic() - started < 3
    both = server({**args, "wait_timeout": 1, "wait_retries": 5})
    assert "contradict" in both["msg"]
