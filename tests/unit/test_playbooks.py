# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The order of what the playbook site does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

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
    last = SITE[-1]["tasks"][-1]
    assert last["ansible.builtin.include_role"]["tasks_from"] == "verify"
    assert last["vars"]["__tproxy_host_connect_to"] == "everybody"
    assert last["when"][0] == "not ansible_check_mode"


def value(expression: str, **variables: Any) -> Any:
    """Of an expression of the last play's last task."""
    last = {**SITE[-1]["vars"], **SITE[-1]["tasks"][-1]["vars"]}
    trusted = {name: trust_as_template(str(last[name])) for name in last}
    everything = {"groups": {}, "hostvars": {}, "ansible_check_mode": False, **variables}
    templar = Templar(DataLoader(), {**trusted, **everything})
    return templar.template(trust_as_template("{{ " + expression + " }}"))


# What ip says of an address of the host itself, of one that is not, and of one without a route.
OWN = "local fd00::1 from :: dev lo table local proto kernel src fd00::1 metric 0 pref medium"
FOREIGN = "10.0.0.1 dev back src 10.0.0.2 uid 0"


@pytest.mark.parametrize(
    ("said", "asked"), [([FOREIGN, OWN], True), ([FOREIGN, ""], False), ([], True)]
)
def test_of_two_proxies_the_one_with_the_servers_gateway_is_asked(
    said: list[str], asked: bool
) -> None:
    look, last = SITE[-1]["tasks"]
    assert look["ansible.builtin.command"]["argv"] == ["ip", "route", "get", "{{ item }}"]
    gateways = ["10.0.0.1", "fd00:0:0::1"][: len(said)]
    servers = {"app1": {"tproxy_backend_gateways": gateways}, "app2": {}}
    known = {"groups": {"app_servers": [*servers]}, "hostvars": servers}
    assert value(look["loop"].strip("{} "), **known) == gateways
    results = {look["register"]: {"results": [{"stdout": line} for line in said]}}
    assert value(last["when"][1], **known, **results) is asked
    assert value(last["when"][1], **known) is True, "nobody has looked"


@pytest.mark.parametrize(
    ("variables", "nothing"),
    [
        ({}, False),
        ({"haproxy_affinity_backends": [{"name": "web"}]}, False),
        ({"haproxy_affinity_backends": [{"name": "db", "mode": "tcp"}]}, True),
        ({"haproxy_affinity_defaults": {"mode": "tcp"}}, True),
        ({"haproxy_affinity_raw": [{"section": "listen db"}]}, True),
        ({"haproxy_affinity_raw": [{}], "tproxy_host_servers": ["10.0.0.9:80"]}, False),
    ],
)
def test_no_server_is_sent_http_that_may_not_speak_it(
    variables: dict[str, Any], nothing: bool
) -> None:
    assert value("__tproxy_host_send_nothing", **variables) is nothing
