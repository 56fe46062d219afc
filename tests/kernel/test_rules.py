# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""tproxy_rules on a real kernel: check mode, idempotence, guests' manners, refusals, what is left behind."""

from __future__ import annotations

import re
import typing as t

import pytest
from hosts import COMMENT, Host, items

# A host that has lived: rules, marks, tables, chains and sysctls of others, in everybody's way but nobody's.
NEIGHBOURS = """
iptables -t mangle -N THEIRS
iptables -t mangle -A THEIRS -j MARK --set-xmark 0x4000/0x4000
iptables -t mangle -A PREROUTING -i front -p udp -m comment --comment "not ours" -j THEIRS
iptables -t nat -A POSTROUTING -o front -j MASQUERADE
iptables -A INPUT -m mark --mark 0x1/0x1 -j ACCEPT
ip6tables -t mangle -A PREROUTING -p tcp -j CONNMARK --restore-mark
ip rule add priority 50 from 203.0.113.9 lookup 300
ip rule add priority 5000 not fwmark 0xca6c lookup 51820
ip -6 rule add priority 60 fwmark 0x4000/0x4000 lookup 301
ip route add 203.0.113.0/24 dev front
ip route add default dev front table 300
ip -6 route add 2001:db8:1::/64 dev front table 301
echo 0 >/proc/sys/net/ipv4/conf/front/send_redirects
echo 0 >/proc/sys/net/ipv4/conf/all/accept_redirects
echo 1 >/proc/sys/net/ipv4/conf/back/forwarding
"""

OPTIONS: list[dict[str, t.Any]] = [
    {},
    {"interfaces": ["back"]},
    {"mark": "0x100", "mask": "0x300"},
    {"table": 4100, "table_name": "elsewhere"},
    {"rule_priority": 7000},
    {"chain": "TO_HAPROXY"},
    {"families": ["ipv4"]},
    {"families": ["ipv6"], "interfaces": ["front", "back"]},
    {"forwarding": None, "send_redirects": None},
    {"forwarding": False, "send_redirects": True},
    {"sysctls": {"net.ipv4.conf.back.rp_filter": 2, "net.ipv4.tcp_mtu_probing": True}},
    {
        "interfaces": ["back"],
        "mark": "2",
        "mask": "2",
        "table": 7,
        "chain": "D",
        "rule_priority": 1,
    },
]


def own(text: str) -> list[str]:
    return [line for line in text.splitlines() if "clearproxy-tproxy-host" in line]


@pytest.mark.parametrize("neighbours", ["", NEIGHBOURS], ids=["fresh", "lived-in"])
def test_check_apply_again_absent(host: Host, neighbours: str) -> None:
    host.sh(neighbours)
    before = host.state()
    predicted = host.module(check=True)
    assert host.state() == before
    done = host.module()
    assert done["changes"] == predicted["changes"]
    assert done["diff"] == predicted["diff"]
    after = host.state()
    assert items(host.module()) == []
    assert items(host.module(check=True)) == []
    assert host.state() == after

    assert items(host.module(state="absent", check=True))
    assert host.state() == after
    assert items(host.module(state="absent"))
    assert host.state() == before
    assert items(host.module(state="absent")) == []


def test_switching_any_option_cleans_up(host: Host) -> None:
    """Every option set after every other; what is there afterwards does not depend on the way there."""
    host.sh(NEIGHBOURS)
    before = host.state()
    for number, options in enumerate([*OPTIONS, *reversed(OPTIONS)]):
        host.module(**options)
        assert items(host.module(**options)) == [], options
        if number < len(OPTIONS):
            reached = host.state()
            host.module(state="absent")
            assert host.state() == before, options
            host.module(**options)
            assert host.state() == reached, options
    assert items(host.module(state="absent"))
    assert host.state() == before


def test_a_lost_record_costs_only_the_old_sysctls(host: Host) -> None:
    host.module(interfaces=["back"])
    host.sh("rm -r /var/lib/tproxy-host")
    assert items(host.module(state="absent"))
    left = host.state()
    assert own(left) == []
    assert "lookup haproxy_tproxy" not in left
    assert "table 100" not in left
    assert "/etc/sysctl.d/99-tproxy-host.conf" not in left


def test_both_variants_of_iptables(host: Host) -> None:
    """The legacy variant keeps its rules elsewhere; which one `iptables` is, is the host's choice."""
    host.sh(
        "for i in iptables ip6tables; do for s in '' -save -restore; do"
        " ln -s /usr/sbin/xtables-legacy-multi /usr/local/sbin/$i$s; done; done"
    )
    assert "legacy" in host.sh("iptables --version")
    assert items(host.module())
    assert items(host.module()) == []
    assert len(own(host.sh("iptables-legacy-save -t mangle; ip6tables-legacy-save -t mangle"))) == 8
    assert own(host.sh("iptables-nft-save; ip6tables-nft-save")) == []
    host.sh("tproxy-host stop; tproxy-host start; tproxy-host start")
    assert items(host.module(check=True)) == []
    assert items(host.module(state="absent"))
    assert own(host.sh("iptables-legacy-save; ip6tables-legacy-save")) == []


def test_interfaces_that_use_router_advertisements_keep_them(host: Host) -> None:
    """The route is what the kernel makes of an advertisement; with forwarding and accept_ra=1 it would go."""
    host.sh("ip -6 route add default via fe80::1 dev front proto ra expires 900")
    before = host.state()
    result = host.module()
    assert "sysctl net.ipv6.conf.front.accept_ra" in items(result)
    assert host.sh("cat /proc/sys/net/ipv6/conf/front/accept_ra") == "2\n"
    assert host.sh("cat /proc/sys/net/ipv6/conf/back/accept_ra") == "1\n"
    assert "proto ra" in host.sh("ip -6 route show default")
    # The router is away for a moment: no drift.
    host.sh("ip -6 route del default dev front proto ra")
    assert items(host.module()) == []
    host.module(state="absent")
    host.sh("ip -6 route add default via fe80::1 dev front proto ra expires 900")
    assert _without_expiry(host.state()) == _without_expiry(before)


def _without_expiry(text: str) -> list[str]:
    return [line.split(" expires ")[0] for line in text.splitlines()]


def test_interfaces_that_come_later(host: Host) -> None:
    host.module()
    host.sh("ip link add later type veth peer name end; ip link set later up")
    assert host.sh("cat /proc/sys/net/ipv4/conf/later/send_redirects") == "0\n"
    assert items(host.module(check=True)) == []


# What stands in the way; options; the option that the refusal names; what it must have found.
CONFLICTS: dict[str, tuple[str, dict[str, t.Any], str, str]] = {
    "classic chain": (
        "iptables -t mangle -N DIVERT; iptables -t mangle -A DIVERT -j MARK --set-mark 1",
        {},
        "chain",
        "-j MARK --set-xmark 0x1/0xffffffff",
    ),
    "empty chain in use": (
        "ip6tables -t mangle -N DIVERT; ip6tables -t mangle -A PREROUTING -p udp -j DIVERT",
        {},
        "chain",
        "-A PREROUTING -p udp -j DIVERT",
    ),
    "mark set by others": (
        "iptables -t mangle -A PREROUTING -p tcp --dport 15001 -j MARK --set-mark 1337",
        {},
        "mark",
        "0x539/0xffffffff",
    ),
    "mark set by TPROXY of others": (
        "iptables -t mangle -A PREROUTING -p tcp -j TPROXY --on-port 3129 --tproxy-mark 0x1/0x1",
        {},
        "mark",
        "TPROXY",
    ),
    "mark looked up by others": ("ip rule add fwmark 0x539 lookup 44", {}, "mark", "fwmark 0x539"),
    "classic rule": ("ip rule add fwmark 1 lookup 100", {}, "mark", "lookup 100"),
    "classic rule, to the same meaning": (
        "ip rule add pref 50 fwmark 0x1/0x1 lookup 100",
        {},
        "mark",
        "priority 50 fwmark 0x1/0x1 lookup 100",
    ),
    "classic route": (
        "ip -6 route add local default dev lo table 100",
        {},
        "table",
        "local default dev lo",
    ),
    "table looked up by others": (
        "ip -6 rule add from ::2 lookup 100",
        {},
        "table",
        "from ::2 lookup 100",
    ),
    "table filled by others": (
        "ip route add 203.0.113.0/24 dev front table 100",
        {},
        "table",
        "203.0.113.0/24 dev front",
    ),
    "table number taken": (
        "mkdir -p /etc/iproute2/rt_tables.d; echo '100 vpn' >/etc/iproute2/rt_tables.d/vpn.conf",
        {},
        "table",
        "vpn",
    ),
    "table name taken": (
        "mkdir -p /etc/iproute2/rt_tables.d; echo '7 haproxy_tproxy' >/etc/iproute2/rt_tables.d/x.conf",
        {},
        "table_name",
        "table 7",
    ),
    "no such interface": (
        "true",
        {"interfaces": ["back", "eth9"]},
        "interfaces",
        "there are: lo, ",
    ),
    "no such sysctl": (
        "true",
        {"sysctls": {"net.ipv4.no_such_thing": 1}},
        "sysctls",
        "no_such_thing",
    ),
    "file of others": (
        "mkdir -p /usr/local/sbin; echo '#!/bin/sh' >/usr/local/sbin/tproxy-host",
        {},
        "files",
        "/usr/local/sbin/tproxy-host",
    ),
    "IPv6 switched off": (
        "echo 1 >/proc/sys/net/ipv6/conf/lo/disable_ipv6",
        {},
        "families",
        "net.ipv6.conf.lo.disable_ipv6",
    ),
}


def test_a_family_that_is_not_proxied_belongs_to_others(host: Host) -> None:
    host.sh(
        "ip -6 rule add pref 50 fwmark 0x1/0x1 lookup 100; ip6tables -t mangle -N DIVERT;"
        "ip -6 route add local default dev lo table 100"
    )
    theirs = "ip -6 -N rule; ip -6 route show table 100; ip6tables-save -t mangle | grep -v '^#'"
    before, untouched = host.state(), host.sh(theirs)
    for _again in range(3):
        assert "msg" not in host.module(families=["ipv4"])
    assert items(host.module(families=["ipv4"])) == []
    assert host.sh(theirs) == untouched
    host.module(families=["ipv4"], state="absent")
    assert host.state() == before


def test_what_others_put_into_the_mangle_table_stays(host: Host) -> None:
    host.module()
    host.sh("iptables -t mangle -N THEIRS; ip6tables -t mangle -P FORWARD DROP")
    host.module(state="absent")
    assert ":THEIRS - " in host.sh("iptables-save")
    assert ":FORWARD DROP " in host.sh("ip6tables-save")


@pytest.mark.parametrize("check", [True, False], ids=["check", "run"])
@pytest.mark.parametrize("name", CONFLICTS)
def test_refused_before_any_change(host: Host, name: str, check: bool) -> None:
    script, options, option, found = CONFLICTS[name]
    host.sh(script)
    before = host.state()
    refusal = host.module(check=check, **options)
    assert refusal.get("option") == option, refusal
    assert found in refusal["msg"]
    assert host.state() == before


def test_a_vpns_rule_before_ours_is_warned_of(host: Host) -> None:
    host.sh("ip rule add priority 98 not fwmark 0xca6c lookup 51820")
    assert "rule_priority below 97" in host.module(check=True)["warnings"][0]
    assert host.module(check=True, rule_priority=90)["warnings"] == []


def test_what_iptables_lacks_is_named(host: Host) -> None:
    """The real program with one of its own libraries missing."""
    host.sh(
        "mkdir /usr/local/lib/xtables; cp -r $(dirname $(find /usr/lib -name libxt_socket.so | head -1))/. /usr/local/lib/xtables;"
        "rm /usr/local/lib/xtables/libxt_socket.so;"
        "for s in '' -save -restore; do"
        ' printf \'#!/bin/sh\\nXTABLES_LIBDIR=/usr/local/lib/xtables exec /usr/sbin/iptables%s "$@"\\n\' "$s"'
        " >/usr/local/sbin/iptables$s; chmod +x /usr/local/sbin/iptables$s; done"
    )
    before = host.state()
    for check in (True, False):
        refusal = host.module(check=check)
        assert refusal.get("missing") == "NETFILTER_XT_MATCH_SOCKET", refusal
        assert "the iptables program of this host lacks the socket match" in refusal["msg"]
    assert host.state() == before


def test_missing_programs(host: Host) -> None:
    """Check mode comes before the packages and says what it could not look at; a run refuses."""
    host.sh(
        "mkdir /usr/local/empty; mount --bind /usr/local/empty /usr/sbin; ln -s /usr/bin/ip /usr/local/sbin/ip || :"
    )
    predicted = host.module(check=True)
    assert "ipv4 mangle chain DIVERT" in items(predicted)
    assert any("iptables-save is not installed" in line for line in predicted["unseen"])
    assert any("not probed" in line for line in predicted["warnings"])
    assert "iptables-save is not installed" in host.module()["msg"]


def test_without_rights_it_says_so(host: Host) -> None:
    host.command_prefix = ("setpriv", "--bounding-set=-net_admin,-net_raw", "--inh-caps=-all")
    answer = host.module(check=True)
    assert "msg" in answer
    assert "not permitted" in answer["msg"] or "Permission denied" in answer["msg"]


def test_the_loader_copes_with_whatever_it_finds(host: Host) -> None:
    host.module(interfaces=["back"])
    wanted = host.state()
    for script in (
        "tproxy-host start",
        "tproxy-host stop; tproxy-host stop; tproxy-host start",
        "iptables -t mangle -F; iptables -t mangle -X; tproxy-host start",
        f"iptables -t mangle -A PREROUTING -p tcp {COMMENT} -j DIVERT; tproxy-host start",
        "iptables -t mangle -F; iptables -t mangle -X; tproxy-host stop; tproxy-host start",
        "ip link del back; tproxy-host stop; tproxy-host start; ip link add back type veth peer name back-end; ip link set back up;"
        "echo 0 >/proc/sys/net/ipv4/conf/back/send_redirects",
    ):
        host.sh(script)
        assert items(host.module(check=True, interfaces=["back"])) == [], script
    assert own(host.state()) == own(wanted)
    host.sh("tproxy-host nonsense && exit 1 || [ $? = 2 ]")


def test_the_units_are_understood_by_systemd(host: Host) -> None:
    host.module()
    host.sh("ip address add 10.9.2.2/24 dev back")
    host.module("tproxy_return_path", gateways=["10.9.2.1"])
    # On a host that has none of the units that flush.
    host.sh(
        "mkdir -p /var/alternate/etc/systemd/system; cp /etc/systemd/system/tproxy-host.service /var/alternate/etc/systemd/system;"
        "systemctl --root=/var/alternate enable tproxy-host"
    )
    for flusher in ("nftables", "netfilter-persistent", "firewalld"):
        link = f"/var/alternate/etc/systemd/system/{flusher}.service.wants/tproxy-host.service"
        assert host.sh(f"readlink {link}").endswith("/etc/systemd/system/tproxy-host.service\n")
        unit = host.sh("cat /etc/systemd/system/tproxy-host.service")
        for setting in ("After", "PartOf", "ReloadPropagatedFrom"):
            assert re.search(rf"^{setting}=.*\b{flusher}\.service", unit, re.MULTILINE)
    for unit in ("tproxy-host", "tproxy-backend"):
        said = host.sh(f"systemd-analyze verify /etc/systemd/system/{unit}.service 2>&1")
        assert unit not in said
