# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One thing is broken on each host: tproxy_info names it, check mode names it, a run repairs it, traffic flows again.

tests/kernel has every single piece; here are booted hosts, the roles, and what only such hosts have: services, packages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
from lab import FULL, Lab, through

FAMILIES = {"ipv4": "10.99.1.11", "ipv6": "fd00:99:1::11"}
BOTH = frozenset(FAMILIES)
NOBODY: frozenset[str] = frozenset()
COMMENT = "-m comment --comment clearproxy-tproxy-host"
BINARY = "/usr/sbin/haproxy"
INFO = {
    "hosts": "tproxy_hosts",
    "gather_facts": False,
    "tasks": [
        {
            "name": "Ask",
            "clearproxy.haproxy.tproxy_info": {"probe": {}},
        }
    ],
}


@dataclass(frozen=True)
class Breakage:
    """What a hand does to a host, and what is then said of it."""

    does: str
    # The checks of tproxy_info that fail because of it, apart from the probe.
    checks: tuple[str, ...]
    # Patterns of the changes that check mode foresees: these and no others; none where only a person can mend it.
    changes: tuple[str, ...] = ()
    # Families in which no client is served as itself any more.
    hurts: frozenset[str] = BOTH
    # What the person does, where a run cannot; or what is left to tidy up.
    mend: str = ""
    # What the run says when it refuses.
    refusal: str = ""


def service(setting: str) -> str:
    return (
        "mkdir -p /etc/systemd/system/haproxy.service.d; printf '[Service]\\n%b\\n' "
        f"'{setting}' >/etc/systemd/system/haproxy.service.d/zz-broken.conf;"
        " systemctl daemon-reload; systemctl restart haproxy"
    )


UNSERVICE = (
    "rm /etc/systemd/system/haproxy.service.d/zz-broken.conf;"
    " systemctl daemon-reload; systemctl restart haproxy"
)

# debian11: iptables, no interface named. debian12: nftables, interface named. debian13: iptables, a guard, which would
# repair what a hand does to rules, so there it is other things that break.
ROUNDS: dict[str, dict[str, Breakage]] = {
    "rule gone; table flushed; unit disabled": {
        "debian11": Breakage(
            "ip rule del priority 101", ("ip_rule",), ("ipv4 rule 101",), frozenset({"ipv4"})
        ),
        "debian12": Breakage(
            "nft flush table inet haproxy_tproxy",
            ("divert_jump",),
            ("ipv[46] nft haproxy_tproxy DIVERT (tcp|icmp|icmpv6)",),
        ),
        "debian13": Breakage(
            "systemctl disable tproxy-host",
            ("unit_enabled",),
            ("Enable and start the unit",),
            NOBODY,
        ),
    },
    "wrong mark; table empty; server's gateway wrong": {
        "debian11": Breakage(
            f"iptables -t mangle -R DIVERT 1 {COMMENT} -j MARK --set-xmark 0x2/0x2",
            ("mark",),
            ("ipv4 mangle chain DIVERT",),
            frozenset({"ipv4"}),
        ),
        "debian12": Breakage(
            "ip -6 route flush table 100",
            ("local_route",),
            ("ipv6 route in table 100",),
            frozenset({"ipv6"}),
        ),
        "debian13": Breakage(
            "ip -n server route replace default via 10.99.2.77",
            (),
            (),
            frozenset({"ipv4"}),
            mend="ip -n server route replace default via 10.99.2.2",
        ),
    },
    "ACCEPT of others first; mask taken; servers' side masked": {
        "debian11": Breakage(
            "iptables -t mangle -I PREROUTING -i back -j ACCEPT",
            ("divert_jump",),
            ("ipv4 mangle PREROUTING tcp", "ipv4 mangle PREROUTING icmp"),
            frozenset({"ipv4"}),
            mend="iptables -t mangle -D PREROUTING -i back -j ACCEPT",
        ),
        "debian12": Breakage(
            "nft add table inet clash; nft add chain inet clash c '{ type filter hook prerouting priority 0; }';"
            " nft add rule inet clash c ip saddr 10.99.2.99 meta mark set 0x1",
            ("mark",),
            hurts=NOBODY,
            mend="nft delete table inet clash",
            refusal="sets bits of the mask 0x1",
        ),
        "debian13": Breakage(
            "iptables -t nat -A POSTROUTING -o back -j MASQUERADE",
            ("masquerade",),
            (),
            frozenset({"ipv4"}),
            mend="iptables -t nat -D POSTROUTING -o back -j MASQUERADE",
        ),
    },
    "half of IPv6; forwarding off; NOTRACK one way": {
        "debian11": Breakage(
            "ip -6 rule del priority 101; ip -6 rule del priority 100; ip -6 route flush table 100",
            ("ip_rule", "guard_rule", "local_route"),
            ("ipv6 route in table 100", r"ipv6 rule 100 \(guard\)", "ipv6 rule 101"),
            frozenset({"ipv6"}),
        ),
        "debian12": Breakage(
            "echo 0 >/proc/sys/net/ipv4/conf/all/forwarding",
            ("forwarding",),
            ("sysctl net.ipv4.conf.(all|default|back).forwarding.*",),
            NOBODY,
        ),
        "debian13": Breakage(
            "iptables -t raw -A PREROUTING -i back -j NOTRACK; iptables -P INPUT DROP;"
            " iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT;"
            " iptables -A INPUT -i front -j ACCEPT; iptables -A INPUT -i mgmt -j ACCEPT",
            ("notrack",),
            (),
            frozenset({"ipv4"}),
            mend="iptables -t raw -D PREROUTING -i back -j NOTRACK; iptables -P INPUT ACCEPT;"
            " iptables -D INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT;"
            " iptables -D INPUT -i front -j ACCEPT; iptables -D INPUT -i mgmt -j ACCEPT",
        ),
    },
    "order of rules; strict source check; a boot file": {
        "debian11": Breakage(
            "ip rule del priority 101; ip rule add priority 32767 fwmark 0x1/0x1 lookup 100 protocol kernel",
            ("ip_rule",),
            ("ipv4 rule 101",),
            frozenset({"ipv4"}),
        ),
        "debian12": Breakage(
            "echo 1 >/proc/sys/net/ipv4/conf/back/rp_filter",
            ("rp_filter",),
            ("sysctl net.ipv4.conf.back.rp_filter.*",),
            NOBODY,
        ),
        "debian13": Breakage(
            "echo '# somebody was here' >>/etc/tproxy-host/ip4.batch",
            ("boot_files",),
            ("file /etc/tproxy-host/ip4.batch",),
            NOBODY,
        ),
    },
    "no right; configuration without usesrc; HAProxy without TPROXY": {
        "debian11": Breakage(
            service("AmbientCapabilities=\\nAmbientCapabilities=CAP_NET_BIND_SERVICE"),
            ("worker_capability",),
            mend=UNSERVICE,
        ),
        "debian12": Breakage(
            "sed -i /usesrc/d /etc/haproxy/haproxy.cfg; systemctl reload haproxy",
            ("config_usesrc",),
            ("Write haproxy.cfg", ".*[Rr]eload.*"),
        ),
        # The real binary, and what it says of itself is changed: a build of its own would take minutes.
        "debian13": Breakage(
            f"cp -a {BINARY} {BINARY}.kept; sed -i s/+LINUX_TPROXY/-LINUX_TPROXY/ {BINARY}",
            ("haproxy_binary",),
            (),
            NOBODY,
            mend=f"mv {BINARY}.kept {BINARY}",
        ),
    },
}


def state(lab: Lab) -> dict[str, dict[str, Any]]:
    return {host: dict(tasks)["Ask"] for host, tasks in lab.results([INFO]).items()}


Results = list[tuple[str, dict[str, Any]]]


def changes(results: Results) -> list[str]:
    """What the run changed or would change: items of the rules, and other tasks by their names."""
    found = []
    for name, result in results:
        if result.get("changed"):
            found += [change["item"] for change in result.get("changes", [])] or [name]
    return found


def refusal(results: Results) -> str:
    return " ".join(str(result.get("msg")) for _name, result in results if result.get("failed"))


def served(lab: Lab, host: str) -> frozenset[str]:
    """The families in which a client is served as itself."""
    return frozenset(
        family for family, client in FAMILIES.items() if through(lab, host, family) == client
    )


# A round takes two minutes, most of them Ansible's: the other half is part of scripts/test --full.
@pytest.mark.parametrize("names", ROUNDS if FULL else list(ROUNDS)[:3])
def test_each_breakage_is_named_exactly_and_repaired(lab: Lab, names: str) -> None:
    broken = ROUNDS[names]
    # The role haproxy_affinity takes its time, and is needed only where its own things break.
    roles = ["tproxy_host"]
    if any("haproxy" in breakage.does for breakage in broken.values()):
        roles.append("haproxy_affinity")
    play = [
        {
            "hosts": "tproxy_hosts",
            "tasks": [
                {"ansible.builtin.include_role": {"name": f"clearproxy.haproxy.{role}"}}
                for role in roles
            ],
        }
    ]
    for host, breakage in broken.items():
        lab.run(host, breakage.does)
    try:
        for host, said in state(lab).items():
            failed = tuple(name for name in said["failed_checks"] if name != "probe")
            assert failed == broken[host].checks, (host, said["checks"])
            assert ("probe" in said["failed_checks"]) == bool(broken[host].hurts), (
                host,
                said["checks"],
            )
            assert served(lab, host) == BOTH - broken[host].hurts, host

        ahead = lab.results([*play], "--check", may_fail=True)
        for host, breakage in broken.items():
            found = changes(ahead[host])
            matching = [[p for p in breakage.changes if re.fullmatch(p, item)] for item in found]
            assert all(matching), (host, found)
            assert {p for ps in matching for p in ps} == set(breakage.changes), (host, found)
            assert served(lab, host) == BOTH - breakage.hurts, "check mode changed something"
            if breakage.refusal:
                assert breakage.refusal in refusal(ahead[host])
    finally:
        for host, breakage in broken.items():
            if breakage.mend:
                lab.run(host, breakage.mend)
    repaired = lab.results([*play])
    for host, breakage in broken.items():
        if not breakage.mend:
            assert changes(repaired[host]) == changes(ahead[host]), host
    for host, said in state(lab).items():
        assert said["failed_checks"] == [], (host, said["checks"])
        assert served(lab, host) == BOTH, host
