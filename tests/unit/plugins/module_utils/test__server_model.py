# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _command, _server_model
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError

SERVER = _server_model.Server(
    backend="app",
    backend_id=3,
    name="web1",
    id=1,
    address="192.0.2.1",
    port=80,
    fqdn=None,
    operational="running",
    admin=0,
    weight=10,
    initial_weight=10,
    last_change=5,
    check_health=4,
    check_state=6,
    agent_state=0,
)


@pytest.mark.parametrize(
    ("admin", "state", "usable"),
    [
        # Bits as HAProxy shows them after the commands of the same names, inherited ones included.
        (0x00, "ready", True),
        (0x01, "maint", False),
        (0x08, "drain", False),
        (0x02, "ready", False),
        (0x10, "ready", False),
        (0x04, "ready", True),
        (0x05, "maint", False),
        (0x0C, "drain", False),
        (0x0A, "drain", False),
        (0x12, "ready", False),
        (0x20, "ready", False),
        (0x28, "drain", False),
        (0x40, "ready", True),
    ],
)
def test_admin_bits(admin: int, state: str, usable: bool) -> None:
    server = dataclasses.replace(SERVER, admin=admin)
    assert (server.state, server.usable) == (state, usable)
    assert server.inherited_maint == bool(admin & 2)
    assert server.inherited_drain == bool(admin & 16)
    assert server.unresolved == bool(admin & 32)


@given(st.integers(0, 0x7F), st.sampled_from(["ready", "drain", "maint"]))
def test_a_state_leaves_all_other_bits_alone(admin: int, state: str) -> None:
    after = dataclasses.replace(SERVER, admin=admin).with_changes(state=state)
    assert after.state == state
    assert after.admin & ~0x09 == admin & ~0x09
    assert after.with_changes(state=state) == after


@pytest.mark.parametrize(
    ("change", "usable"),
    [
        ({"weight": 0}, False),
        ({"operational": "stopped"}, False),
        ({"operational": "stopping"}, False),
        ({"operational": "starting"}, True),
    ],
)
def test_usable(change: dict[str, object], usable: bool) -> None:
    assert dataclasses.replace(SERVER, **change).usable is usable  # type: ignore[arg-type]


def test_the_returned_shape_is_plain() -> None:
    shape = SERVER.as_dict()
    assert all(isinstance(value, (str, int, bool, type(None))) for value in shape.values())
    assert "admin" not in shape


@pytest.mark.parametrize(
    ("text", "expected"),
    [("ready", "ready"), ("enabled", "ready"), ("disabled", "maint"), ("drain", "drain")],
)
def test_normal_state(text: str, expected: str) -> None:
    assert _server_model.normal_state(text) == expected
    assert _server_model.normal_state(expected) == expected


@pytest.mark.parametrize("text", ["", "READY", "up", "ready "])
def test_bad_state(text: str) -> None:
    with pytest.raises(InputError, match="state"):
        _server_model.normal_state(text)


@pytest.mark.parametrize(
    ("text", "initial", "becomes"),
    [
        ("0", 10, 0),
        ("256", 10, 256),
        ("007", 10, 7),
        (" 5 ", 10, 5),
        ("100%", 10, 10),
        ("33%", 10, 3),
        ("200%", 200, 256),
        ("50%", 0, 0),
        ("0%", 10, 0),
    ],
)
def test_weight(text: str, initial: int, becomes: int) -> None:
    weight = _server_model.parse_weight(text)
    assert weight.of(initial) == becomes
    assert _server_model.parse_weight(weight.text) == weight


@pytest.mark.parametrize(
    "text", ["", "257", "-1", "1.5", "abc", "5x", "%", "50 %", "1e2", "٣", "999999%", "5\n6", "+5"]
)
def test_bad_weight(text: str) -> None:
    with pytest.raises(InputError, match="weight"):
        _server_model.parse_weight(text)


@pytest.mark.parametrize(
    ("text", "total", "needed"),
    [("2", 3, 2), ("50%", 3, 2), ("50%", 4, 2), ("0%", 4, 0), ("100%", 3, 3), ("1%", 3, 1)],
)
def test_floor(text: str, total: int, needed: int) -> None:
    assert _server_model.floor_of(text, total) == needed


@pytest.mark.parametrize("text", ["", "-1", "101%", "half", "1.5"])
def test_bad_floor(text: str) -> None:
    with pytest.raises(InputError, match="min_ready"):
        _server_model.floor_of(text, 3)


@pytest.mark.parametrize("text", ["web1", "a.b:c-d_e", "3", "FRONTEND"])
def test_name(text: str) -> None:
    assert _command.normal_name(text, "server") == text


@pytest.mark.parametrize("text", ["", "a b", "a/b", "a;b", "a\n", "#1", "*", "é", "a\\"])
def test_bad_name(text: str) -> None:
    with pytest.raises(InputError, match="server"):
        _command.normal_name(text, "server")
