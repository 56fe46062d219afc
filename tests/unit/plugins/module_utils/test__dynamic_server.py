# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import typing as t

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _command,
    _dynamic_server,
    _parse,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    InputError,
    ParseError,
)

# Other work on the machine must not turn them red.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
PARAMS: dict[str, t.Any] = {
    **dict.fromkeys(_dynamic_server.SETTINGS),
    "socket": None,
    "backend": "app",
    "name": "n1",
    "state": "present",
    "address": "192.0.2.1",
    "options": None,
    "admin_state": None,
    "recreate": False,
    "wait": True,
    "wait_timeout": 300.0,
    "on_timeout": "fail",
}
SERVER: dict[str, t.Any] = {
    "address": "192.0.2.1",
    "port": 80,
    "weight": 1,
    "maxconn": 0,
    "maxqueue": 0,
    "id": 7,
    "cookie": None,
    "track": None,
    "backup": False,
    "ssl": False,
    "check": False,
    "check_port": 0,
    "check_address": None,
    "agent_check": False,
    "agent_port": 0,
    "agent_address": None,
    "admin_state": "ready",
}


def desired(**params: t.Any) -> _dynamic_server.Desired:
    return _dynamic_server.Desired.from_params({**PARAMS, **params})


def there(*, can: bool = True, **values: t.Any) -> _dynamic_server.Found:
    return _dynamic_server.Found(frozenset({"n1", "s1"}), {**SERVER, **values}, 3, can, can)


GONE = _dynamic_server.Found(frozenset({"s1"}), None, algorithm="roundrobin")


def plan(
    found: _dynamic_server.Found, wanted: _dynamic_server.Desired, version: tuple[int, int] = (3, 2)
) -> _dynamic_server.ServerChange:
    return _dynamic_server.plan_server(found, wanted, version, "/run/x")


def lines(change: _dynamic_server.ServerChange) -> list[str]:
    return [step.command for step in change.steps]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"backend": "a b"}, "backend 'a b'"),
        ({"name": "#1"}, "server '#1'"),
        ({"name": "a\nb"}, "server"),
        ({"address": None}, "address: is needed"),
        ({"address": "web.example"}, "address 'web.example'"),
        ({"address": "192.0.2.1:80"}, "address"),
        ({"address": "192.0.2.300"}, "address"),
        ({"address": "fe80::1%eth0"}, "address"),
        ({"check_address": "x"}, "check_address"),
        ({"agent_address": "x"}, "agent_address"),
        ({"port": 0}, "port 0: must be from 1 to 65535"),
        ({"port": 70000}, "port 70000"),
        ({"check_port": 65536}, "check_port"),
        ({"agent_port": -1}, "agent_port"),
        ({"weight": 257}, "weight 257"),
        ({"weight": -1}, "weight -1"),
        ({"maxconn": -1}, "maxconn -1"),
        ({"maxconn": 2**31}, "maxconn"),
        ({"maxqueue": -1}, "maxqueue"),
        ({"id": 0}, "id 0"),
        ({"weight": True}, "weight true: must be a number, not a boolean"),
        ({"port": True}, "port true"),
        ({"maxconn": False}, "maxconn false"),
        ({"maxqueue": True}, "maxqueue true"),
        ({"id": True}, "id true"),
        ({"check_port": True}, "check_port true"),
        ({"agent_port": True}, "agent_port true"),
        ({"cookie": ""}, "''"),
        ({"cookie": "a\nb"}, "line break"),
        ({"track": "a/b/c"}, "track"),
        ({"track": "a/"}, "track"),
        ({"track": "s1", "check": True}, "does not go with track"),
        ({"options": ["a\0"]}, "NUL"),
        ({"options": [""]}, "''"),
        ({"options": ["inter", "1s", "weight", "5"]}, "'weight' has an option of its own, weight"),
        ({"options": ["port", "5"]}, "check_port"),
        ({"options": ["disabled"]}, "admin_state"),
        ({"wait_timeout": -1.0}, "wait_timeout"),
        ({"wait_timeout": float("nan")}, "wait_timeout"),
        ({"state": "absent"}, "address: goes with state: present"),
        ({"state": "absent", "address": None, "options": []}, "options: goes"),
        ({"state": "absent", "address": None, "admin_state": "maint"}, "admin_state: goes"),
        ({"state": "absent", "address": None, "recreate": True}, "recreate: goes"),
    ],
)
def test_bad_input(params: dict[str, t.Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        desired(**params)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "normal"),
    [
        ("address", "2001:DB8::0:1", "2001:db8::1"),
        ("track", "s1", "app/s1"),
        ("track", "other/s1", "other/s1"),
        ("cookie", "a b", "a b"),
        ("weight", 256, 256),
    ],
)
def test_normal(name: str, value: t.Any, normal: t.Any) -> None:
    assert _dynamic_server.normal_setting(name, value, "app") == normal
    assert _dynamic_server.normal_setting(name, normal, "app") == normal


def test_wait_false_means_at_once() -> None:
    assert desired(wait=False).wait_timeout == 0
    assert desired().wait_timeout == 300


def test_adding() -> None:
    wanted = desired(port=80, check=True, backup=False, options=["inter", "1 s"])
    change = plan(GONE, wanted)
    assert lines(change) == [
        r"add server app/n1 192.0.2.1:80 check inter 1\ s",
        "enable health app/n1",
        "set server app/n1 state ready",
    ]
    assert change.before == {}
    assert change.after["app/n1"]["admin_state"] == "ready"
    (shown,) = change.result["servers"]
    assert shown["weight"] == 1
    assert shown["id"] is None


@pytest.mark.parametrize(
    ("found", "params", "words"),
    [
        ({"algorithm": None}, {}, "is disabled"),
        ({"algorithm": "static-rr"}, {}, "'balance static-rr'"),
        ({}, {"agent_check": True}, "needs agent_port"),
    ],
)
def test_not_added(found: dict[str, t.Any], params: dict[str, t.Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan(dataclasses.replace(GONE, **found), desired(**params))


def test_state_is_kept_unless_told() -> None:
    assert lines(plan(there(admin_state="drain"), desired())) == []
    change = plan(there(admin_state="drain"), desired(admin_state="ready"))
    assert lines(change) == ["set server app/n1 state ready"]
    again = plan(there(admin_state="drain"), desired(backup=True, recreate=True))
    assert lines(again)[-1] == "set server app/n1 state drain"


def test_address_and_port_are_one_command() -> None:
    change = plan(there(), desired(address="192.0.2.9", port=81))
    assert lines(change) == ["set server app/n1 addr 192.0.2.9 port 81"]
    assert change.steps[0].accepts("IP changed from '1' to '2' by 'stats socket command'")
    assert not change.steps[0].accepts("Invalid addr '2'")
    assert not plan(there(), desired(weight=2)).steps[0].accepts("IP changed")


@pytest.mark.parametrize(
    ("found", "params", "names"),
    [
        ({}, {"cookie": "c"}, ["cookie"]),
        ({}, {"id": 8, "ssl": True}, ["id", "ssl"]),
        ({"address": None}, {}, ["address"]),
        ({"address": None}, {"port": 81}, ["address", "port"]),
        ({"can": False}, {"check": True, "check_port": 5}, ["check", "check_port"]),
        ({"can": False}, {"agent_check": True}, ["agent_check"]),
        ({}, {"check_port": 5}, ["check_port"]),
        ({}, {"agent_address": "192.0.2.5"}, ["agent_address"]),
    ],
)
def test_what_cannot_be_changed(
    found: dict[str, t.Any], params: dict[str, t.Any], names: list[str]
) -> None:
    with pytest.raises(InputError, match="recreate: true") as caught:
        plan(there(**found), desired(**params))
    assert caught.value.details["differences"] == names
    change = plan(there(**found), desired(**params, recreate=True, agent_port=5))
    stages = [step.key for step in change.steps]
    assert stages[:2] == ["probe", "probe"]
    assert stages.index("delete") < stages.index("add")


ALL: dict[str, t.Any] = {
    "port": 443,
    "weight": 9,
    "maxconn": 5,
    "maxqueue": 6,
    "cookie": "c1",
    "check": True,
    "check_port": 81,
    "check_address": "192.0.2.8",
    "agent_check": True,
    "agent_port": 82,
    "agent_address": "192.0.2.7",
}


def test_recreation_keeps_what_the_task_does_not_name() -> None:
    change = plan(there(**ALL), desired(backup=True, recreate=True))
    assert (
        "add server app/n1 192.0.2.1:443 weight 9 maxconn 5 maxqueue 6 id 7 cookie c1 backup check "
        "port 81 addr 192.0.2.8 agent-check agent-port 82 agent-addr 192.0.2.7"
    ) in lines(change)
    assert lines(change)[-3:] == [
        "enable health app/n1",
        "enable agent app/n1",
        "set server app/n1 state ready",
    ]
    before, after = change.before["app/n1"], change.after["app/n1"]
    assert {name for name in after if before[name] != after[name]} == {"backup"}
    tracking = plan(there(can=False, track="app/s1"), desired(backup=True, recreate=True))
    assert "add server app/n1 192.0.2.1:80 id 7 track app/s1 backup" in lines(tracking)


def test_recreation_keeps_checks_that_are_switched_off() -> None:
    change = plan(there(), desired(backup=True, recreate=True, check=False))
    assert "add server app/n1 192.0.2.1:80 id 7 backup check agent-check" in lines(change)
    assert not [line for line in lines(change) if line.startswith("enable ")]


def test_the_diff_shows_what_a_recreation_changes_besides() -> None:
    """A dynamic cookie is not given: HAProxy makes it of the address."""
    found = there(can=False, cookie="0123456789abcdef", track="app/s1")
    change = plan(found, desired(check=True, recreate=True))
    assert "add server app/n1 192.0.2.1:80 id 7 check" in lines(change)
    assert change.before["app/n1"]["cookie"] == "0123456789abcdef"
    assert change.after["app/n1"]["cookie"] is None
    assert change.before["app/n1"]["track"] == "app/s1"
    assert change.after["app/n1"]["track"] is None


@pytest.mark.parametrize(
    ("values", "params", "version", "words"),
    [
        ({"ssl": True}, {}, (3, 2), "does not tell how it verifies"),
        ({"ssl": True}, {"ssl": True}, (3, 2), ""),
        ({"ssl": True}, {"ssl": False}, (3, 2), ""),
        ({"ssl": True}, {"options": ["verify", "none"]}, (3, 2), ""),
        ({"cookie": "c1"}, {}, (2, 6), "which HAProxy before 3.0 gives"),
        ({"cookie": "c1"}, {}, (3, 0), ""),
        ({"cookie": "0123456789abcdef"}, {}, (2, 6), ""),
    ],
)
def test_what_cannot_be_kept(
    values: dict[str, t.Any], params: dict[str, t.Any], version: tuple[int, int], words: str
) -> None:
    wanted = desired(backup=True, recreate=True, **params)
    if words:
        with pytest.raises(InputError, match=words):
            plan(there(**values), wanted, version)
    else:
        (line,) = [
            text for text in lines(plan(there(**values), wanted, version)) if " id 7" in text
        ]
        assert (" ssl" in line) is bool(values.get("ssl") and params.get("ssl", True))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"disabled": True}, "the backend app at /run/x is disabled"),
        ({"trackers": ("b/s1", "b/s2")}, "app/n1 at /run/x is tracked by b/s1, b/s2, and"),
    ],
)
@pytest.mark.parametrize(
    "params", [{"address": None, "state": "absent"}, {"backup": True, "recreate": True}]
)
def test_servers_that_stay(values: dict[str, t.Any], words: str, params: dict[str, t.Any]) -> None:
    found = dataclasses.replace(there(), **values)
    with pytest.raises(InputError, match=words):
        plan(found, desired(**params))


def test_tracked_servers_are_changed() -> None:
    found = dataclasses.replace(there(), trackers=("b/s1",))
    assert lines(plan(found, desired(weight=5))) == ["set server app/n1 weight 5"]


def test_rows_have_the_names_of_haproxy_server_too() -> None:
    (row,) = plan(there(check=True, admin_state="drain"), desired()).result["servers"]
    assert (row["state"], row["health_checks"], row["agent_checks"]) == ("drain", True, False)


def test_check_address_in_3_4() -> None:
    found, wanted = there(check=True), desired(check_address="192.0.2.5")
    assert lines(plan(found, wanted, (3, 2))) == ["set server app/n1 check-addr 192.0.2.5"]
    with pytest.raises(InputError):
        plan(found, wanted, (3, 4))


@pytest.mark.parametrize(
    ("reply", "deleted"),
    [
        ("Server deleted.", True),
        ("Server app/n1 is going DOWN for maintenance. 0 active.\nServer deleted.", True),
        ("Server still has connections attached to it, cannot remove it.", False),
        ("Server deleted. Not.", False),
        ("", False),
    ],
)
def test_replies(reply: str, deleted: bool) -> None:
    change = plan(there(), desired(address=None, state="absent"))
    assert change.steps[-1].accepts(reply) is deleted
    text = reply.replace("Server deleted", "New server registered")
    assert plan(GONE, desired()).steps[0].accepts(text) is deleted


@pytest.mark.parametrize("version", ["2.2", "2.6", "3.0", "3.2", "3.4"])
def test_real_replies(version: str) -> None:
    """Of every server of a real HAProxy, which names it as the other parsers do."""
    state = (FIXTURES / f"haproxy-{version}" / "show_servers_state.txt").read_text()
    rows = _parse.stat((FIXTURES / f"haproxy-{version}" / "show_stat.txt").read_text())
    stats = {(row["pxname"], row["svname"]): row for row in rows}
    servers = _parse.servers_state(state)
    assert servers
    for server in servers:
        found = _dynamic_server.server_of(state, server.backend, server.name)
        assert found is not None
        assert found[0] == server
        settings = _dynamic_server.settings_of(*found, stats.get(server.key, {}))
        assert set(settings) == set(SERVER)
        assert settings["id"] == server.id
    assert _dynamic_server.server_of(state, "app", "nobody") is None


HEADER = (
    "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight "
    "srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health "
    "srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord "
    "srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n"
)


@PATIENT
@given(st.text() | st.text(alphabet="0123456789 -an\n").map(lambda text: HEADER + text))
def test_parser_raises_nothing_else(text: str) -> None:
    with contextlib.suppress(ParseError):
        found = _dynamic_server.server_of(text, "a", "n")
        if found is not None:
            _dynamic_server.settings_of(*found, {})


@PATIENT
@given(
    st.sampled_from(["slim", "qlimit", "cookie", "tracked", "bck"]),
    st.text() | st.integers().map(str),
)
def test_figures_raise_nothing_else(column: str, text: str) -> None:
    row = "3 app 1 n1 192.0.2.1 2 0 1 1 5 1 0 2 6 0 0 0 - 80 - 0 0 - - 0\n"
    found = _dynamic_server.server_of(HEADER + row, "app", "n1")
    assert found is not None
    with contextlib.suppress(ParseError):
        _dynamic_server.settings_of(*found, {column: text})


# --- properties -----------------------------------------------------------------------------

ADDRESSES = st.ip_addresses().map(str)
PORTS = st.integers(1, 65535)
WORDS = st.text(
    st.characters(blacklist_characters="\n\r\0", blacklist_categories=["Cs"]), min_size=1
)
VALUES: dict[str, t.Any] = {
    "address": ADDRESSES,
    "port": PORTS,
    "weight": st.integers(0, 256),
    "maxconn": st.integers(0, 2**31 - 1),
    "maxqueue": st.integers(0, 2**31 - 1),
    "id": st.integers(1, 2**31 - 1),
    "cookie": WORDS,
    "track": st.sampled_from(["s1", "app/s2"]),
    "backup": st.booleans(),
    "ssl": st.booleans(),
    "check": st.booleans(),
    "check_port": PORTS,
    "check_address": ADDRESSES,
    "agent_check": st.booleans(),
    "agent_port": PORTS,
    "agent_address": ADDRESSES,
}
STATES = st.sampled_from(["ready", "drain", "maint"])


@st.composite
def wanted(draw: t.Any) -> dict[str, t.Any]:
    """A task that can be carried out, and may recreate."""
    names = draw(st.sets(st.sampled_from(sorted(VALUES))))
    params = {name: draw(VALUES[name]) for name in names | {"address"}}
    if params.get("check"):
        params.pop("track", None)
    if params.get("agent_check"):
        params.setdefault("agent_port", 1)
    options = [
        word
        for word in draw(st.lists(WORDS, max_size=3))
        if word not in _dynamic_server._KEYWORDS.values() and word not in ("enabled", "disabled")
    ]
    state = draw(st.none() | STATES)
    return {**params, "options": options, "admin_state": state, "recreate": True}


@st.composite
def founds(draw: t.Any) -> _dynamic_server.Found:
    if draw(st.booleans()):
        return GONE
    values = {name: draw(VALUES[name]) for name in VALUES if draw(st.booleans())}
    if "track" in values:
        values["track"] = "app/s1"
    return there(can=draw(st.booleans()), **{**values, "admin_state": draw(STATES)})


@PATIENT
@given(founds(), wanted(), st.sampled_from([(2, 6), (3, 2), (3, 4)]))
def test_plan_applied_is_empty(
    found: _dynamic_server.Found, params: dict[str, t.Any], version: tuple[int, int]
) -> None:
    with contextlib.suppress(InputError):
        change = plan(found, desired(**params), version)
        for step in change.steps:
            _command.encode(step.wire)
        (now,) = change.result["servers"]
        after = _dynamic_server.Found(frozenset({"n1"}), now, 3, True, True)
        again = plan(after, desired(**params), version)
        assert again.steps == ()
        assert again.before == again.after
        # What a recreation changes besides is in its diff only.
        assert again.after["app/n1"].items() <= change.after["app/n1"].items()


@PATIENT
@given(founds())
def test_absent_is_idempotent(found: _dynamic_server.Found) -> None:
    change = plan(found, desired(address=None, state="absent"))
    assert bool(change.steps) is (found.server is not None)
    assert change.after == {}


@PATIENT
@given(st.text(), st.text())
def test_no_text_escapes(name: str, text: str) -> None:
    """Every text either goes out as one command, or is refused as input."""
    for params in ({"name": name}, {"backend": name}, {"cookie": text}, {"options": [name, text]}):
        with contextlib.suppress(InputError):
            for step in plan(GONE, desired(**params)).steps:
                assert _command.encode(step.wire).count(b"\n") == 1
