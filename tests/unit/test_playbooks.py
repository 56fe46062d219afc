# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The order of what the playbook site does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

PLAYBOOKS = Path(__file__).resolve().parent.parent.parent / "playbooks"
SITE: list[dict[str, Any]] = yaml.safe_load((PLAYBOOKS / "site.yml").read_text())


def roles(play: dict[str, Any]) -> list[str]:
    return [role["role"].rpartition(".")[2] for role in play.get("roles", [])]


def test_the_first_host_that_fails_ends_the_run() -> None:
    assert all(play["any_errors_fatal"] is True for play in SITE)


def test_nothing_changes_before_every_host_was_looked_at() -> None:
    names = []
    for task in SITE[0]["tasks"]:
        names += [inner["ansible.builtin.include_role"] for inner in task.get("block", [task])]
    assert {name["tasks_from"] for name in names} == {"preflight"}
    later = {role for play in SITE[1:] for role in roles(play)}
    assert {name["name"].rpartition(".")[2] for name in names} == later
    assert not roles(SITE[0])


def test_the_proxy_forwards_before_it_is_the_servers_way_out() -> None:
    """And clients are served as themselves only when the servers' answers come back."""
    order = [role for play in SITE for role in roles(play)]
    assert order == ["haproxy_build", "tproxy_host", "tproxy_backend", "haproxy_affinity"]
    # One play a host at a time: with two roles' hosts in one play they would run side by side.
    hosts = [play["hosts"] for play in SITE[1:]]
    assert ["proxies" in host for host in hosts] == [True, False, True, True]


def test_connections_are_tried_at_the_end_and_not_before_the_servers_have_a_way_back() -> None:
    (host,) = [
        role
        for play in SITE
        for role in play.get("roles", [])
        if role["role"] == "clearproxy.haproxy.tproxy_host"
    ]
    assert host["vars"] == {"__tproxy_host_connect_to": "nobody"}
    (last,) = SITE[-1]["tasks"]
    assert last["ansible.builtin.include_role"]["tasks_from"] == "verify"
    assert last["vars"]["__tproxy_host_connect_to"] == "everybody"
    assert last["when"] == "not ansible_check_mode"
