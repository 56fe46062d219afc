# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import dataclasses
import re
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _command,
    _server_desired,
    _server_plan,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    FloorError,
    InputError,
    NotFoundError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_model import (
    Check,
    Server,
    parse_weight,
)

PARAMS: dict[str, t.Any] = {
    "servers": ["web1"],
    "backend": None,
    "state": None,
    "weight": None,
    "missing": "fail",
    "min_ready": None,
    "drain_first": False,
    "wait": False,
    "on_timeout": "fail",
}


def desired(**params: t.Any) -> _server_desired.Desired:
    return _server_desired.Desired.from_params({**PARAMS, **params})


def planned(
    servers: list[Server], wanted: _server_desired.Desired, **facts: t.Any
) -> _server_plan.Plan:
    targets = [_server_plan.Target(server, wanted.entries[0].wanted) for server in servers]
    return _server_plan.plan_servers(targets, wanted, _server_plan.Facts(**facts))


def srv(name: str = "web1", backend: str = "app", **values: t.Any) -> Server:
    base: dict[str, t.Any] = {
        "backend_id": 3,
        "id": 1,
        "address": "192.0.2.1",
        "port": 80,
        "fqdn": None,
        "operational": "running",
        "admin": 0,
        "weight": 10,
        "initial_weight": 10,
        "last_change": 5,
        "check_health": 4,
        "check_state": 6,
        "agent_state": 0,
    }
    return Server(backend=backend, name=name, **{**base, **values})


MAINT: dict[str, t.Any] = {"admin": 1, "operational": "stopped"}
DRAIN: dict[str, t.Any] = {"admin": 8}


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"servers": []}, "servers"),
        ({"servers": ["a b"]}, "server 'a b'"),
        ({"servers": ["a\nb"]}, "server"),
        ({"servers": ["#1"]}, "server '#1': an id means something in a backend only"),
        ({"servers": ["#0"], "backend": "app"}, "server '#0'"),
        ({"backend": "a;b"}, "backend"),
        ({"backend": "app*"}, "backend"),
        ({"weight": "300"}, "weight"),
        ({"min_ready": "101%"}, "min_ready"),
        ({"drain_first": True}, "drain_first"),
        ({"drain_first": True, "state": "drain"}, "drain_first"),
        ({"wait": True}, "wait"),
        ({"on_timeout": "shutdown_sessions", "state": "ready"}, "on_timeout"),
    ],
)
def test_bad_input(params: dict[str, t.Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        desired(**params)


# --- targets --------------------------------------------------------------------------------

KNOWN = [srv("web1"), srv("web2"), srv("db1"), srv("web1", "other"), srv("x", "off", id=0)]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["web1"], ["app/web1", "other/web1"]),
        (["web*"], ["app/web1", "app/web2", "other/web1"]),
        (["*"], ["app/db1", "app/web1", "app/web2", "other/web1"]),
        (["web[12]", "web1"], ["app/web1", "app/web2", "other/web1"]),
        (["d?1"], ["app/db1"]),
    ],
)
def test_resolve(names: list[str], found: list[str]) -> None:
    targets = _server_plan.resolve(KNOWN, desired(servers=names), "here")
    assert sorted(target.server.label for target in targets) == found


def test_every_name_must_match() -> None:
    with pytest.raises(NotFoundError, match=r"'web9' or 'z\*'; there is web1, web2") as caught:
        _server_plan.resolve(KNOWN, desired(servers=["web1", "web9", "z*"]), "here")
    assert caught.value.details["not_found"] == ["web9", "z*"]
    wanted = desired(servers=["db1", "web9"], missing="ignore")
    found = _server_plan.resolve(KNOWN, wanted, "here")
    assert [target.server.label for target in found] == ["app/db1"]


def test_names_are_matched_by_case() -> None:
    with pytest.raises(NotFoundError):
        _server_plan.resolve(KNOWN, desired(servers=["WEB*"]), "here")


def test_disabled_backend() -> None:
    with pytest.raises(NotFoundError, match="off at here is disabled"):
        _server_plan.resolve([KNOWN[-1]], desired(servers=["x"], backend="off"), "here")


# --- commands -------------------------------------------------------------------------------

CHECKS = {("app", "web1"): Check(rise=2, fall=3, tracked="")}
FALL_1 = {("app", "web1"): Check(rise=2, fall=1, tracked="")}


@pytest.mark.parametrize(
    ("now", "params", "checks", "commands"),
    [
        ({}, {"state": "ready"}, {}, []),
        ({}, {"state": "drain"}, {}, ["state drain"]),
        (DRAIN, {"state": "drain"}, {}, []),
        (DRAIN, {"state": "maint"}, {}, ["state maint"]),
        (MAINT, {"state": "disabled"}, {}, []),
        (MAINT, {"state": "enabled"}, {}, ["state ready"]),
        # Inherited and configured bits are no difference.
        ({"admin": 0x02}, {"state": "ready"}, {}, []),
        ({"admin": 0x04}, {"state": "ready"}, {}, []),
        ({"admin": 0x12}, {"state": "drain"}, {}, ["state drain"]),
        ({}, {"weight": "10"}, {}, []),
        ({}, {"weight": "100%"}, {}, []),
        ({"weight": 5}, {"weight": "50%"}, {}, []),
        ({}, {"weight": "50%"}, {}, ["weight 50%"]),
        ({}, {"weight": "0", "state": "drain"}, {}, ["weight 0", "state drain"]),
        ({}, {"state": "maint", "drain_first": True}, {}, ["state drain", "state maint"]),
        (DRAIN, {"state": "maint", "drain_first": True}, {}, ["state maint"]),
        (MAINT, {"state": "maint", "drain_first": True}, {}, []),
        # Ready in a way that lets a later check be told from an earlier one.
        (MAINT, {"state": "ready", "wait": True}, CHECKS, ["state ready"]),
        (DRAIN, {"state": "ready", "wait": True}, CHECKS, ["health stopping", "state ready"]),
        (DRAIN, {"state": "ready", "wait": False}, CHECKS, ["state ready"]),
        ({**DRAIN, "check_health": 3}, {"state": "ready", "wait": True}, CHECKS, ["state ready"]),
        (
            {**DRAIN, "operational": "stopped", "check_health": 0},
            {"state": "ready", "wait": True},
            CHECKS,
            ["state ready"],
        ),
        ({**DRAIN, "check_state": 0}, {"state": "ready", "wait": True}, CHECKS, ["state ready"]),
        (DRAIN, {"state": "ready", "wait": True}, FALL_1, ["health stopping", "state ready"]),
    ],
)
def test_commands(
    now: dict[str, t.Any],
    params: dict[str, t.Any],
    checks: dict[tuple[str, str], Check],
    commands: list[str],
) -> None:
    plan = planned([srv(**now)], desired(**params), checks=checks)
    assert plan.commands == [f"set server app/web1 {command}" for command in commands]


def test_drain_first_waits_only_for_those_not_in_maintenance() -> None:
    servers = [srv("a"), srv("b", **DRAIN), srv("c", **MAINT)]
    plan = planned(servers, desired(servers=["*"], state="maint", drain_first=True))
    first, second = plan.phases
    assert first.goals == {("app", "a"): "drained", ("app", "b"): "drained"}
    assert [step.command for step in first.steps] == ["set server app/a state drain"]
    assert [step.key[1] for step in second.steps] == ["a", "b"]
    assert second.goals == {}


def test_static_balance() -> None:
    wanted = desired(weight="50%")
    with pytest.raises(InputError, match="static-rr"):
        planned([srv()], wanted, algorithms={"app": "static-rr"})
    assert planned([srv()], wanted, algorithms={"app": "source"}).commands
    zero = desired(weight="0")
    assert planned([srv()], zero, algorithms={"app": "static-rr"}).commands


def test_view_shows_managed_values_of_changed_servers() -> None:
    servers = [srv("a"), srv("b", **DRAIN)]
    plan = planned(servers, desired(servers=["*"], state="drain"))
    assert plan.changed_keys == {("app", "a")}
    assert plan.view(plan.targets[0]) == {"state": "ready"}
    assert plan.view(plan.predicted[0]) == {"state": "drain"}


SERVERS = st.builds(
    srv,
    name=st.sampled_from(["a", "b", "c"]),
    backend=st.sampled_from(["app", "other"]),
    admin=st.integers(0, 0x7F),
    operational=st.sampled_from(["stopped", "starting", "running", "stopping"]),
    weight=st.integers(0, 256),
    initial_weight=st.integers(0, 256),
    check_health=st.integers(0, 6),
    check_state=st.sampled_from([0, 2, 6, 14]),
)
DESIRED: st.SearchStrategy[dict[str, t.Any]] = st.builds(
    dict,
    state=st.sampled_from(["ready", "drain", "maint", "enabled", "disabled"]),
    weight=st.one_of(
        st.none(), st.integers(0, 256).map(str), st.integers(0, 300).map("{}%".format)
    ),
    wait=st.booleans(),
    drain_first=st.booleans(),
)
CHECK = st.builds(Check, rise=st.integers(0, 3), fall=st.integers(0, 3), tracked=st.just(""))


def obey(server: Server, commands: list[str]) -> Server:
    """What HAProxy makes of the commands, as measured on 2.2 to 3.4."""
    for command in commands:
        match = re.fullmatch(r"set server ([^ /]+)/([^ /]+) (state|weight|health) ([^ ]+)", command)
        assert match, command
        if match.group(1, 2) != server.key:
            continue
        if match.group(3) == "state":
            bits = {"ready": 0, "drain": 8, "maint": 1}[match.group(4)]
            server = dataclasses.replace(server, admin=server.admin & ~0x09 | bits)
        elif match.group(3) == "weight":
            weight = parse_weight(match.group(4)).of(server.initial_weight)
            server = dataclasses.replace(server, weight=weight)
        else:
            server = dataclasses.replace(server, operational="stopped")
    return server


@given(st.lists(SERVERS, unique_by=lambda server: server.key, min_size=1), DESIRED, st.data())
def test_a_plan_reaches_what_it_predicts_and_then_rests(
    servers: list[Server], params: dict[str, t.Any], data: st.DataObject
) -> None:
    params["drain_first"] = params["drain_first"] and params["state"] in ("maint", "disabled")
    wanted = desired(servers=["*"], **params)
    checks = {server.key: data.draw(CHECK) for server in servers}
    plan = planned(servers, wanted, checks=checks)
    after = [obey(server, plan.commands) for server in servers]
    for is_, predicted in zip(after, plan.predicted):
        assert (is_.state, is_.weight) == (predicted.state, predicted.weight)
    assert planned(after, wanted, checks=checks).commands == []
    # And it can be taken back exactly.
    for before, now in zip(servers, after):
        undone = obey(
            now, [step.command for step in _server_plan.undo(before, now, ("state", "weight"))]
        )
        assert undone.weight == before.weight
        assert undone.state == before.state


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_name_breaks_a_command(backend: str, name: str) -> None:
    try:
        command = _server_plan.set_state((backend, name), "maint").command
    except InputError:
        return
    assert command == f"set server {backend}/{name} state maint"
    assert re.fullmatch(r"[A-Za-z0-9_.:-]+", backend)
    assert re.fullmatch(r"[A-Za-z0-9_.:-]+", name)


# --- the floor ------------------------------------------------------------------------------


def floor(servers: list[Server], min_ready: str, **params: t.Any) -> None:
    wanted = desired(servers=["web1"], min_ready=min_ready, **params)
    targets = [server for server in servers if server.name == "web1"]
    plan = planned(targets, wanted)
    _server_plan.check_floor(servers, plan.predicted, min_ready, "here")


def test_floor() -> None:
    three = [srv("web1"), srv("web2"), srv("web3")]
    floor(three, "2", state="drain")
    floor(three, "66%", state="maint")
    with pytest.raises(FloorError, match="2 of the 3 servers of app"):
        floor(three, "67%", state="drain")
    with pytest.raises(FloorError):
        floor(three, "3", weight="0")
    # Those that are not usable do not count.
    with pytest.raises(FloorError, match="1 of the 3"):
        floor([srv("web1"), srv("web2"), srv("web3", **DRAIN)], "2", state="drain")
    # What takes nothing away is never refused.
    floor([srv("web1", **DRAIN), srv("web2", **DRAIN)], "2", state="ready")
    floor([srv("web1", **DRAIN), srv("web2", **DRAIN)], "2", state="maint")


def test_floor_looked_at_again() -> None:
    before = [srv("web1"), srv("web2")]
    now = [srv("web1", **DRAIN), srv("web2", **DRAIN)]
    assert _server_plan.check_floor_now(before, now, {"app"}, "1")
    assert _server_plan.check_floor_now(before, now, {"other"}, "1") is None
    assert _server_plan.check_floor_now(before, [now[0], before[1]], {"app"}, "1") is None
    assert _server_plan.check_floor_now(now, now, {"app"}, "1") is None


# --- up -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "up"),
    [
        ({"check_health": 4}, True),
        ({"check_health": 2}, False),
        ({"check_health": 3}, False),
        ({"check_health": 4, "operational": "starting"}, True),
        ({"check_health": 0, "operational": "stopped"}, False),
        ({"check_health": 4, "operational": "stopping"}, False),
        ({"check_health": 4, "admin": 0x02}, False),
        ({"check_health": 4, "admin": 0x10}, False),
        ({"check_health": 4, "admin": 0x20}, False),
        ({"check_health": 4, "admin": 0x08}, False),
        ({"check_health": 0, "check_state": 0}, True),
    ],
)
def test_up(now: dict[str, t.Any], up: bool) -> None:
    server = srv(**now)
    assert _server_plan.is_up(server, {server.key: server}, CHECKS) is up
    if not up:
        assert _server_plan.why_not_up(server, CHECKS[server.key])


def test_hidden_rise_proves_nothing() -> None:
    server = srv(check_health=9)
    hidden = {server.key: Check(rise=0, fall=0, tracked="")}
    assert not _server_plan.is_up(server, {}, hidden)
    assert not _server_plan.is_up(server, {}, {})


def test_up_like_the_tracked_server() -> None:
    server = srv("t1", check_state=0, check_health=0)
    checks = {server.key: Check(0, 0, "main/web1"), ("main", "web1"): Check(2, 3, "")}
    for health, up in ((4, True), (2, False)):
        tracked = srv("web1", "main", check_health=health)
        assert _server_plan.is_up(server, {tracked.key: tracked}, checks) is up


@pytest.mark.parametrize("text", ["", "a\nb", "a\rb", "a\0b"])
def test_words_that_cannot_be_carried(text: str) -> None:
    with pytest.raises(InputError):
        _command.word(text)


# --- values ---------------------------------------------------------------------------------

VALUES: st.SearchStrategy[dict[str, t.Any]] = st.fixed_dictionaries(
    {},
    optional={
        "state": st.sampled_from(["ready", "drain", "maint"]),
        "weight": st.integers(0, 256).map(str),
        "maxconn": st.integers(0, 9),
        "address": st.sampled_from(["192.0.2.1", "192.0.2.2", "::1"]),
        "port": st.integers(1, 3),
        "check_address": st.sampled_from(["192.0.2.1", "0.0.0.0"]),
        "check_port": st.integers(0, 2),
        "agent_address": st.sampled_from(["192.0.2.1", "::"]),
        "agent_port": st.integers(1, 2),
        "ssl": st.booleans(),
        "health_checks": st.sampled_from(["enabled", "disabled"]),
        "agent_checks": st.sampled_from(["enabled", "disabled"]),
    },
)
FULL: dict[str, t.Any] = {"ssl": False, "check_port": 0, "agent_port": 0, "maxconn": 0}
FULL.update(agent_state=22, check_state=6)


def carried_out(server: Server, commands: list[str]) -> Server:
    """What HAProxy makes of commands for one server, refusing what it refuses."""
    for command in commands:
        if match := re.fullmatch(r"(enable|disable) (health|agent) app/web1", command):
            server = server.with_changes(**{f"{match[2]}_checks": match[1] == "enable"})
            continue
        if match := re.fullmatch(r"set maxconn server app/web1 ([0-9]+)", command):
            server = server.with_changes(maxconn=int(match[1]))
            continue
        match = re.fullmatch(
            r"set server app/web1 (state|weight|addr|check-addr|check-port|agent-addr|agent-port|ssl)"
            r" (\S+)(?: port ([0-9]+))?",
            command,
        )
        assert match, command
        what, value = match[1], match[2]
        if what.startswith(("check-", "agent-")):
            kind = "health" if what.startswith("check-") else "agent"
            assert getattr(server, f"{kind}_checks"), f"{command} while {kind} checks are off"
            name = what.replace("-", "_").replace("addr", "address")
            number = name.endswith("port")
            server = server.with_changes(
                **{name: int(value) if number else None if value == "0.0.0.0" else value}
            )
        elif what == "addr":
            server = server.with_changes(address=value)
            if match[3]:
                server = server.with_changes(port=int(match[3]))
        elif what == "ssl":
            server = server.with_changes(ssl=value == "on")
        else:
            server = obey(server, [command])
    return server


@given(VALUES)
def test_values_reach_what_is_foreseen_and_can_be_taken_back(params: dict[str, t.Any]) -> None:
    before = srv(**FULL)
    wanted = desired(**params)
    try:
        plan = planned([before], wanted)
    except InputError:
        # Values of checks that the same task leaves off, or an agent port while they are off.
        return
    assert sum(" addr " in command for command in plan.commands) <= 1
    after = carried_out(before, plan.commands)
    assert after == plan.predicted[0]
    assert planned([after], wanted).commands == []
    names = plan.changed.get(before.key, ())
    undone = _server_plan.undo(before, after, names)
    assert carried_out(after, [step.command for step in undone]) == before


@pytest.mark.parametrize(
    ("params", "commands"),
    [
        ({"address": "::1", "state": "maint"}, [["state maint", "addr ::1"]]),
        ({"address": "::1", "port": 81}, [["addr ::1 port 81"]]),
        ({"port": 81}, [["addr 192.0.2.1 port 81"]]),
        ({"address": "::1", "port": 80}, [["addr ::1"]]),
        # Proof for the new place, held until the old one's check cannot be mistaken for it.
        ({"address": "::1", "state": "ready", "wait": True}, [["addr ::1"], ["health stopping"]]),
        ({"address": "::1", "state": "ready"}, [["addr ::1"]]),
        (
            {"check_port": 9, "state": "ready", "wait": True},
            [["check-port 9"], ["health stopping"]],
        ),
        (
            {"address": "::1", "state": "maint", "drain_first": True},
            [["state drain"], ["state maint", "addr ::1"]],
        ),
    ],
)
def test_the_order_of_state_and_place(params: dict[str, t.Any], commands: list[list[str]]) -> None:
    plan = planned([srv(**FULL)], desired(**params))
    found = [[step.command for step in phase.steps] for phase in plan.phases]
    assert found == [[f"set server app/web1 {text}" for text in phase] for phase in commands]


@pytest.mark.parametrize(
    ("address", "port", "reply", "accepted"),
    [
        (True, False, "IP changed from '1.2.3.4' to '::1' by 'stats socket command'", True),
        (
            True,
            False,
            "IP changed from '1.2.3.4' to '::1', no need to change the port by 'stats socket command'",
            True,
        ),
        (True, False, "nothing changed", False),
        (True, False, "no need to change the addr by 'stats socket command'", False),
        (True, True, "IP changed from '1.2.3.4' to '::1' by 'stats socket command'", False),
        (
            True,
            True,
            "IP changed from '1' to '2', port changed from '+10' to '9' by 'stats socket command'",
            True,
        ),
        (False, True, "port changed from '80' to '81' by 'stats socket command'", True),
        (
            False,
            True,
            "no need to change the addr, port changed from '80' to '81' by 'stats socket command'",
            True,
        ),
        (
            False,
            True,
            "no need to change the addr, can't change <port> to port map because it is incompatible",
            False,
        ),
        (True, True, "Invalid addr 'x' by 'stats socket command'", False),
        (True, True, "Permission denied", False),
        (True, True, "", False),
    ],
)
def test_replies_about_addresses(address: bool, port: bool, reply: str, accepted: bool) -> None:
    """HAProxy says as much in failure as in success; only the whole change counts."""
    names = [name for name, given in (("address", address), ("port", port)) if given]
    wanted = desired(address="::1", port=81).entries[0].wanted
    (step,) = _server_plan.place_steps(srv(), wanted, names)
    assert step.accepts(reply) is accepted
