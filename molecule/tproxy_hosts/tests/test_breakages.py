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
# Said by a run that was given servers to connect to, as debian13's is.
DEAD_PATH = "the way to a server and back is broken"
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
    # Whether it is packets that die, which the probe sees, and not HAProxy's own doing.
    packets: bool = True
    # What the run says where it cannot mend it, and what the person then does; or only what is left to tidy up.
    says: str = ""
    mend: str = ""
    # Whether check mode says it too.
    foreseen: bool = False


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

# debian11: iptables, no interface named. debian12: nftables, interface named, intercepts. debian13: iptables, a guard, which would
# repair what a hand does to rules, so there it is other things that break.
ROUNDS: dict[str, dict[str, Breakage]] = {
    "rule gone; table flushed; unit disabled": {
        "debian11": Breakage(
            "ip rule del priority 101", ("ip_rule",), ("ipv4 rule 101",), frozenset({"ipv4"})
        ),
        "debian12": Breakage(
            "nft flush table inet haproxy_tproxy",
            ("divert_jump", "intercept"),
            (
                "ipv[46] nft haproxy_tproxy DIVERT (tcp|icmp|icmpv6|8082 of other hosts)",
                "ipv[46] intercept 8081 on front.*",
            ),
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
            # The proxy itself is still answered: else it would be the server that is down.
            "ip -n server route add 10.99.2.0/24 dev eth0 table 101;"
            " ip -n server route replace default via 10.99.2.77 dev eth0 table 101 proto kernel",
            (),
            (),
            frozenset({"ipv4"}),
            says=DEAD_PATH,
            mend="ip -n server route replace default via 10.99.2.2 dev eth0 table 101 proto kernel;"
            " ip -n server route del 10.99.2.0/24 dev eth0 table 101",
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
            says="sets bits of the mask 0x1",
            mend="nft delete table inet clash",
            foreseen=True,
        ),
        "debian13": Breakage(
            "iptables -t nat -A POSTROUTING -o back -j MASQUERADE",
            ("masquerade",),
            (),
            frozenset({"ipv4"}),
            says=DEAD_PATH,
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
            says=DEAD_PATH,
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
            ("Reload the service",),
            packets=False,
            says="CapEff",
            mend=UNSERVICE,
        ),
        "debian12": Breakage(
            "sed -i /usesrc/d /etc/haproxy/haproxy.cfg; systemctl reload haproxy",
            ("config_usesrc",),
            ("Write haproxy.cfg", ".*[Rr]eload.*"),
            packets=False,
        ),
        # The real binary, and what it says of itself is changed: a build of its own would take minutes.
        "debian13": Breakage(
            f"cp -a {BINARY} {BINARY}.kept; sed -i s/+LINUX_TPROXY/-LINUX_TPROXY/ {BINARY}",
            ("haproxy_binary",),
            (),
            NOBODY,
            says="LINUX_TPROXY",
            foreseen=True,
            mend=f"mv {BINARY}.kept {BINARY}",
        ),
    },
}


Results = dict[str, list[tuple[str, dict[str, Any]]]]


def roles(broken: dict[str, Breakage]) -> dict[str, Any]:
    """The role haproxy_affinity takes its time, and is needed only where its own things break."""
    names = ["tproxy_host"]
    if any("haproxy" in breakage.does for breakage in broken.values()):
        names.append("haproxy_affinity")
    tasks = [
        {"ansible.builtin.include_role": {"name": f"clearproxy.haproxy.{name}"}} for name in names
    ]
    return {"hosts": "tproxy_hosts", "gather_facts": False, "tasks": tasks}


def answers(results: Results) -> dict[str, dict[str, Any]]:
    return {host: dict(tasks)["Ask"] for host, tasks in results.items()}


def reasons(said: dict[str, Any]) -> str:
    return "; ".join(
        f"{check['name']} {check['subject']}: {check['observed']}"
        for check in said["checks"]
        if check["status"] == "failed"
    )


def changes(results: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What the run changed or would change: items of the rules, and other tasks by their names."""
    found = []
    for name, result in results:
        if result.get("changed"):
            found += [change["item"] for change in result.get("changes", [])] or [name]
    return found


def complaints(results: list[tuple[str, dict[str, Any]]]) -> str:
    return " ".join(str(result.get("msg")) for _name, result in results if result.get("failed"))


def served(lab: Lab, host: str) -> frozenset[str]:
    """The families in which a client is served as itself."""
    return frozenset(
        family for family, client in FAMILIES.items() if through(lab, host, family) == client
    )


# Most of a round's time is Ansible's: the other half is part of scripts/test --full.
@pytest.mark.parametrize("names", ROUNDS if FULL else list(ROUNDS)[:3])
def test_each_breakage_is_named_exactly_and_repaired(lab: Lab, names: str) -> None:
    broken = ROUNDS[names]
    play = roles(broken)
    for host, breakage in broken.items():
        lab.run(host, breakage.does)
    spoilt = True
    try:
        # tproxy_info changes nothing: it is asked in the same run that only looks ahead.
        ahead = lab.results([INFO, play], "--check", may_fail=True)
        for host, said in answers(ahead).items():
            breakage = broken[host]
            failed = tuple(name for name in said["failed_checks"] if name != "probe")
            assert failed == breakage.checks, (host, reasons(said))
            probed = "probe" in said["failed_checks"]
            assert probed == bool(breakage.hurts and breakage.packets), (host, reasons(said))

            found = changes(ahead[host])
            matching = [[p for p in breakage.changes if re.fullmatch(p, item)] for item in found]
            assert all(matching), (host, found)
            assert {p for ps in matching for p in ps} == set(breakage.changes), (host, found)
            assert (breakage.says in complaints(ahead[host])) == (
                breakage.foreseen or not breakage.says
            ), (host, complaints(ahead[host]))
            assert served(lab, host) == BOTH - breakage.hurts, (host, "after check mode")

        done = lab.results([play], may_fail=True)
        for host, breakage in broken.items():
            if breakage.says:
                assert breakage.says in complaints(done[host]), (host, complaints(done[host]))
            else:
                assert not complaints(done[host]), (host, complaints(done[host]))
                assert changes(done[host]) == changes(ahead[host]), host
        spoilt = False
    finally:
        for host, breakage in broken.items():
            if breakage.mend:
                lab.run(host, breakage.mend)
        if spoilt:
            # The next round is about something else.
            lab.results([play], may_fail=True)
    for host, said in answers(lab.results([INFO])).items():
        assert said["failed_checks"] == [], (host, reasons(said))
        assert served(lab, host) == BOTH, host
