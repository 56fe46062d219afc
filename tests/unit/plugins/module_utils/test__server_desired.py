# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _server_desired,
    _server_model,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError

PARAMS: dict[str, t.Any] = {
    "servers": ["web1"],
    "backend": "app",
    "missing": "fail",
    "min_ready": None,
    "drain_first": False,
    "wait": False,
    "on_timeout": "fail",
}


def desired(**params: t.Any) -> _server_desired.Desired:
    return _server_desired.Desired.from_params({**PARAMS, **params})


def wanted(**params: t.Any) -> _server_desired.Wanted:
    return desired(**params).entries[0].wanted


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"address": "localhost"}, "address 'localhost': must be an IPv4 or IPv6 address"),
        ({"address": "127.0.0.1:80"}, "address"),
        ({"address": "[::1]"}, "address"),
        ({"address": "fe80::1%eth0"}, "address"),
        ({"address": "127.0.0.1 port 1"}, "address"),
        ({"address": "0.0.0.0"}, "means no address"),
        ({"address": "::"}, "means no address"),
        ({"address": "127.1"}, "address"),
        # HAProxy would make 4464 of it.
        ({"port": 70000}, "port 70000: must be a whole number from 1 to 65535"),
        ({"port": 0}, "port 0"),
        ({"port": -1}, "port -1"),
        ({"check_port": 65536}, "check_port 65536: must be a whole number from 0"),
        ({"agent_port": 0}, "agent_port 0"),
        # HAProxy would make 4294967291 of it.
        ({"maxconn": -5}, "maxconn -5"),
        ({"maxconn": 2**31}, "maxconn 2147483648"),
        ({"fqdn": "bad name"}, "fqdn 'bad name'"),
        ({"fqdn": "a..b"}, "fqdn"),
        ({"fqdn": "x" * 64}, "fqdn"),
        ({"fqdn": "-a.b"}, "fqdn"),
        ({"fqdn": ""}, "fqdn"),
        ({"fqdn": "a.example", "address": "127.0.0.1"}, "contradict"),
        ({"check_address": "x"}, "check_address 'x'"),
        ({"agent_address": "x"}, "agent_address 'x'"),
        ({"agent_send": ""}, "agent_send"),
        ({"agent_send": "a\nb"}, "agent_send"),
        ({"agent_send": "a\0b"}, "agent_send"),
        ({"agent_send": "x" * 1025}, "agent_send"),
        ({"agent_send": "x", "write_only": "error"}, "write_only is error"),
        ({"health": True}, "health: goes with a state"),
        ({"agent": True}, "agent: goes with a state"),
        ({"health": True, "state": "ready", "health_checks": "disabled"}, "contradict"),
        ({"agent": True, "state": "maint", "agent_checks": "enabled"}, "contradict"),
        ({"force_agent": "up", "agent_checks": "disabled"}, "force_agent"),
        ({"forget_clients": True}, "forget_clients: goes with state"),
        ({"forget_clients": True, "state": "ready"}, "forget_clients: goes with state"),
        ({"fail_on_not_found": True, "missing": "ignore"}, "contradict"),
        ({"servers": None}, "both are missing or empty"),
        ({"servers": [], "members": []}, "both are missing or empty"),
        ({"members": [{"name": "a"}, {"name": "b", "port": 0}]}, r"member 2 \(b\): port 0"),
        ({"members": [{"name": "a b"}]}, "server 'a b'"),
        ({"members": [{"name": "a", "backend": "b;c"}]}, "backend"),
        ({"backend": "#0"}, "backend"),
        ({"backend": "#x"}, "backend"),
        (
            {"members": [{"name": "a", "state": "drain"}], "servers": None, "drain_first": True},
            "drain_first",
        ),
        ({"members": [{"name": "a"}], "servers": None, "wait": True}, "wait: needs"),
    ],
)
def test_bad_input(params: dict[str, t.Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        desired(**params)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("params", "name", "value"),
    [
        ({"address": "0:0:0:0:0:0:0:1"}, "address", "::1"),
        ({"address": "::FFFF:1.2.3.4"}, "address", "::ffff:1.2.3.4"),
        ({"fqdn": "App.Example."}, "fqdn", "app.example"),
        ({"fqdn": "_sip._tcp.example"}, "fqdn", "_sip._tcp.example"),
        ({"check_address": "::"}, "check_address", "0.0.0.0"),
        ({"health": True, "state": "enabled"}, "health_checks", True),
        ({"health": True, "state": "disabled"}, "health_checks", False),
        ({"health": True, "state": "drain"}, "health_checks", None),
        ({"health": False, "state": "disabled"}, "health_checks", None),
        ({"agent": True, "state": "maint", "agent_checks": "disabled"}, "agent_checks", False),
        ({"maxconn": 0}, "maxconn", 0),
    ],
)
def test_values(params: dict[str, t.Any], name: str, value: t.Any) -> None:
    assert getattr(wanted(**params), name) == value


def test_members_take_what_they_lack_from_the_task() -> None:
    members = [{"name": "a"}, {"name": "b", "state": "maint", "port": None, "backend": "other"}]
    found = desired(servers=["c"], members=members, state="drain", port=81).entries
    assert [(e.pattern, e.backend, e.wanted.state, e.wanted.port) for e in found] == [
        ("c", "app", "drain", 81),
        ("a", "app", "drain", 81),
        ("b", "other", "maint", 81),
    ]


def test_values_of_the_task_alone_are_not_checked_for_members() -> None:
    members = [{"name": "a", "state": "maint"}]
    assert (
        desired(servers=None, members=members, health=True).entries[0].wanted.health_checks is False
    )


def test_old_word_for_missing() -> None:
    assert desired(fail_on_not_found=False).missing == "ignore"
    assert desired(fail_on_not_found=True).missing == "fail"
    assert desired(missing="ignore").missing == "ignore"


SERVER = _server_model.Server(
    backend="app",
    backend_id=3,
    name="web1",
    id=1,
    address="192.0.2.1",
    port=80,
    fqdn="App.example",
    operational="running",
    admin=0,
    weight=10,
    initial_weight=10,
    last_change=5,
    check_health=4,
    check_state=6,
    agent_state=0,
    ssl=False,
    check_port=0,
    agent_port=0,
    maxconn=0,
)


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"address": "192.0.2.1", "port": 80, "maxconn": 0, "ssl": False}, {}),
        ({"fqdn": "app.EXAMPLE"}, {}),
        ({"check_address": "0.0.0.0", "agent_address": "::", "check_port": 0}, {}),
        ({"weight": "100%", "health_checks": "enabled", "agent_checks": "disabled"}, {}),
        ({"address": "192.0.2.2", "port": 80}, {"address": "192.0.2.2"}),
        ({"weight": "50%", "ssl": True}, {"weight": 5, "ssl": True}),
        ({"check_address": "::1"}, {"check_address": "::1"}),
    ],
)
def test_differences(params: dict[str, t.Any], found: dict[str, t.Any]) -> None:
    assert wanted(**params).differences(SERVER) == found


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "state": st.sampled_from(["ready", "drain", "maint", "enabled", "disabled"]),
            "weight": st.text(max_size=4) | st.integers(-5, 300).map(str),
            "address": st.text(max_size=8) | st.ip_addresses().map(str),
            "check_address": st.text(max_size=8) | st.ip_addresses().map(str),
            "port": st.integers(-1, 70000),
            "check_port": st.integers(-1, 70000),
            "agent_port": st.integers(-1, 70000),
            "maxconn": st.integers(-1, 2**33),
            "fqdn": st.text(max_size=12),
            "agent_send": st.text(max_size=12),
            "ssl": st.booleans(),
            "health_checks": st.sampled_from(["enabled", "disabled"]),
        },
    )
)
def test_what_is_foreseen_has_no_differences_left(params: dict[str, t.Any]) -> None:
    """And whatever is wrong is an InputError, nothing else."""
    with contextlib.suppress(InputError):
        want = wanted(**params)
        after = SERVER.with_changes(**want.differences(SERVER))
        assert want.differences(after) == {}
        names = tuple(want.differences(SERVER))
        back = _server_desired.Wanted.back_to(SERVER, names)
        restored = after.with_changes(**back.differences(after))
        assert restored == SERVER
