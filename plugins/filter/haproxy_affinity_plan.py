# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filter haproxy_affinity_plan; the work is done in module_utils/_affinity_config.py."""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Mapping

from ansible.errors import AnsibleFilterError

from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_config import (
    make_plan,
    parse_version,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_model import Member
from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_rights import features


def haproxy_affinity_plan(
    variables: t.Any,
    hostvars: t.Any = None,
    groups: t.Any = None,
    version: str = "",
    dev_log: bool = True,
    state_file: str = "",
    unit: t.Any = None,
    config_mode: str = "0640",
    account_problem: str = "",
) -> dict[str, t.Any]:
    """Return the plan as plain data."""
    if not isinstance(variables, Mapping):
        raise AnsibleFilterError(
            "haproxy_affinity_plan needs a dictionary of the role's variables."
        )
    parsed = parse_version(version)
    if version and parsed is None:
        raise AnsibleFilterError(
            f"haproxy_affinity_plan: {version.splitlines()[0]!r} is not what 'haproxy -v' prints."
        )
    plan = make_plan(
        variables,
        _members(variables.get("backends"), hostvars or {}, groups or {}),
        parsed,
        {
            "dev_log": bool(dev_log),
            "state_file": state_file,
            "features": features(version),
            "unit": unit or None,
            "config_mode": config_mode,
            "account_problem": account_problem,
        },
    )
    return dataclasses.asdict(plan)


def _members(
    backends: t.Any, hostvars: t.Mapping[str, t.Any], groups: t.Mapping[str, t.Any]
) -> dict[str, list[Member]]:
    """Return the hosts of the groups that backends name; nothing else of hostvars is looked at."""
    found: dict[str, list[Member]] = {}
    for backend in backends if isinstance(backends, (list, tuple)) else ():
        group = backend.get("servers_group") if isinstance(backend, Mapping) else None
        if isinstance(group, str) and group in groups and group not in found:
            found[group] = [_member(name, hostvars[name]) for name in groups[group]]
    return found


def _member(name: str, host: t.Mapping[str, t.Any]) -> Member:
    given = [host.get(key) for key in ("haproxy_affinity_address", "haproxy_affinity_address_ipv6")]
    address, address_ipv6 = (value or None for value in given)
    # A variable that is there and empty says that there is no address; only silence asks the facts.
    if given == [None, None]:
        facts = host.get("ansible_facts") or {}
        address = (facts.get("default_ipv4") or {}).get("address")
        ipv6 = facts.get("default_ipv6") or {}
        # a link-local address means nothing without its interface
        address_ipv6 = ipv6.get("address") if ipv6.get("scope") == "global" else None
    return Member(str(name), address, address_ipv6, host.get("haproxy_affinity_server"))


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"haproxy_affinity_plan": haproxy_affinity_plan}
