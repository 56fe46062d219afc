# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""It stays transparent: runs again, runs ahead, reboots, and what someone removed by hand."""

from __future__ import annotations

from functools import partial

import pytest
from lab import BACK, CLIENT, FULL, SERVERS, WWW, Lab, page, url

HOST_ONLY = [
    {
        "hosts": "haproxy_proxies",
        "tasks": [{"ansible.builtin.include_role": {"name": "clearproxy.haproxy.tproxy_host"}}],
    }
]
TPROXY = {family: url(family, WWW) for family in CLIENT}


def transparent(lab: Lab, family: str) -> bool:
    return page(lab.get(TPROXY[family])).get("peer") == CLIENT[family]


def test_a_run_ahead_on_a_finished_site_reports_no_change(lab: Lab) -> None:
    run = lab.play("clearproxy.haproxy.site", "--check", "--diff")
    assert run.code == 0, run.output
    assert set(run.recap) == {"proxy", *SERVERS}
    assert run.changed == 0, run.output
    assert "+++" not in run.output


def test_the_playbook_ends_with_connections_and_names_a_dead_path(lab: Lab) -> None:
    """What only a server of others' does, no role repairs; HAProxy's own checks are green all the time."""
    # Those of the configuration, from the address that nobody has.
    lab.run("app1", "ip route add blackhole 192.0.2.77")
    try:
        run = lab.play(
            "clearproxy.haproxy.site",
            "--start-at-task=See whether the proxy holds the servers' gateway",
        )
    finally:
        lab.run("app1", "ip route del blackhole 192.0.2.77")
    assert run.code != 0
    assert set(run.recap) == {"proxy"}
    assert run.changed == 0
    message = " ".join(run.output.split())
    assert "proxy: the way to a server and back is broken" in message, run.output
    assert f"{BACK}.11" in message, run.output
    assert f"{BACK}.12:80: " not in message, run.output

    well = lab.play(
        "clearproxy.haproxy.site",
        "--start-at-task=See whether the proxy holds the servers' gateway",
    )
    assert well.code == 0, well.output


def test_rebooted_hosts_are_transparent_again(lab: Lab) -> None:
    """With no Ansible run: only what the roles have made persistent brings it back."""
    lab.restart("proxy", *SERVERS)
    for family in TPROXY:
        lab.wait(partial(transparent, lab, family), f"{family} after the reboot")
    # Every server: one that answers past the proxy would be seen only now and then.
    for server in SERVERS:
        assert lab.run(server, "ip route get 10.255.0.1").split()[2] == f"{BACK}.2"


# By hand: the command that removes one prerequisite, the client it hurts, and what the run must call it.
# tests/kernel does so with every single one; here the roles do, on a booted host.
DRIFTS = {
    "rule": ("ip rule del pref 101", "ipv4", "ipv4 rule 101 on back: missing"),
    "route": ("ip -6 route flush table 100", "ipv6", "ipv6 route"),
    "jump": ("iptables -t mangle -F PREROUTING", "ipv4", "PREROUTING"),
    "chain": (
        "iptables -t mangle -F PREROUTING; iptables -t mangle -F DIVERT; iptables -t mangle -X DIVERT",
        "ipv4",
        "DIVERT",
    ),
}
if FULL:
    DRIFTS |= {
        "rule of IPv6": ("ip -6 rule del pref 101", "ipv6", "ipv6 rule 101 on back: missing"),
        "route of IPv4": ("ip route flush table 100", "ipv4", "ipv4 route"),
        "jump of IPv6": ("ip6tables -t mangle -F PREROUTING", "ipv6", "PREROUTING"),
    }


@pytest.mark.parametrize("drift", DRIFTS)
def test_what_was_removed_is_named_and_repaired(lab: Lab, drift: str) -> None:
    remove, family, name = DRIFTS[drift]
    lab.run("proxy", remove)
    assert not transparent(lab, family), "the prerequisite was not needed: the test shows nothing"

    ahead = lab.play(HOST_ONLY, "--check")
    assert ahead.code == 0, ahead.output
    assert ahead.changed == 1, ahead.output
    assert name in ahead.output
    assert not transparent(lab, family), "check mode changed something"

    repair = lab.play(HOST_ONLY)
    assert repair.code == 0, repair.output
    assert repair.changed == 1, repair.output
    assert name in repair.output
    assert transparent(lab, family)
