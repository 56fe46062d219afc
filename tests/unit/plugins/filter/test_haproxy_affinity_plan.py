# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.clearproxy.haproxy.plugins.filter.haproxy_affinity_plan import FilterModule

make = FilterModule().filters()["haproxy_affinity_plan"]

VARIABLES = {
    "frontends": [{"name": "www", "binds": [{"port": 80}], "default_backend": "app"}],
    "backends": [{"name": "app", "servers_group": "apps", "server_defaults": {"port": 80}}],
}
FACTS = {
    "default_ipv4": {"address": "192.0.2.1"},
    "default_ipv6": {"address": "fe80::1", "scope": "link"},
}


def server_lines(hostvars: dict[str, t.Any]) -> list[str]:
    plan = make(
        VARIABLES,
        hostvars=hostvars,
        groups={"apps": list(hostvars)},
        version="HAProxy version 3.2.1",
    )
    json.dumps(plan)
    assert plan["problems"] == []
    backend = next(s for s in plan["sections"] if s["header"] == "backend app")
    return [line for line in backend["lines"] if line.startswith("server ")]


def test_addresses_from_variables_win_over_facts() -> None:
    hosts = {
        "web1.example.org": {"haproxy_affinity_address": "10.0.0.1", "ansible_facts": FACTS},
        "web2": {"ansible_facts": FACTS},
        "web3": {"haproxy_affinity_address_ipv6": "fd00::3", "ansible_facts": FACTS},
    }
    assert server_lines(hosts) == [
        "server web1.example.org 10.0.0.1:80",
        "server web2 192.0.2.1:80",
        "server web3 [fd00::3]:80",
    ]


def test_a_global_ipv6_default_address_counts() -> None:
    facts = {"default_ipv6": {"address": "2001:db8::7", "scope": "global"}}
    assert server_lines({"web": {"ansible_facts": facts}}) == ["server web [2001:db8::7]:80"]


def test_a_link_local_address_does_not() -> None:
    facts = {"default_ipv6": {"address": "fe80::1", "scope": "link"}}
    plan = make(VARIABLES, hostvars={"web": {"ansible_facts": facts}}, groups={"apps": ["web"]})
    assert len(plan["problems"]) == 1
    assert "a server without address" in plan["problems"][0]


def test_an_empty_address_is_no_address() -> None:
    host = {"haproxy_affinity_address": "", "ansible_facts": FACTS}
    plan = make(VARIABLES, hostvars={"web": host}, groups={"apps": ["web"]})
    assert len(plan["problems"]) == 1
    assert "has host web, a server without address" in plan["problems"][0]


def test_only_named_groups_are_looked_at() -> None:
    class Guard(dict[str, t.Any]):
        def __getitem__(self, key: str) -> t.Any:
            assert key == "web"
            return super().__getitem__(key)

    hostvars = Guard(web={"haproxy_affinity_address": "10.0.0.1"}, other={})
    plan = make(VARIABLES, hostvars=hostvars, groups={"apps": ["web"], "all": ["web", "other"]})
    assert plan["problems"] == []


def test_not_a_dictionary() -> None:
    with pytest.raises(AnsibleFilterError):
        make([])


def test_not_haproxy() -> None:
    with pytest.raises(AnsibleFilterError, match="not what 'haproxy -v' prints"):
        make(VARIABLES, version="nginx version: 1")
