# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""tproxy_rules on a real kernel: check mode, idempotence, guests' manners, refusals, what is left behind."""

from __future__ import annotations

import random
import re
import typing as t
from concurrent.futures import ThreadPoolExecutor

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
iptables-legacy -t mangle -A FORWARD -p udp -j MARK --set-xmark 0x8000/0x8000
ip6tables-legacy -t mangle -A FORWARD -p udp -j MARK --set-xmark 0x8000/0x8000
nft 'table inet theirs {
  set networks { type ipv4_addr; flags interval; elements = { 192.0.2.0/24, 198.51.100.7 }; }
  chain early { type filter hook prerouting priority -160; policy accept; meta mark set ct mark & 0xff00; jump more; }
  chain more { ip saddr @networks meta mark set meta mark | 0x2000 counter accept comment "not ours"; }
}'
nft 'table netdev theirs { }; table ip haproxy_tproxy { chain DIVERT { counter; }; }'
echo 0 >/proc/sys/net/ipv4/conf/front/send_redirects
echo 0 >/proc/sys/net/ipv4/conf/all/accept_redirects
echo 1 >/proc/sys/net/ipv4/conf/back/forwarding
"""


def own(text: str) -> list[str]:
    return [line for line in text.splitlines() if "clearproxy-tproxy-host" in line]


@pytest.mark.parametrize("firewall", ["iptables", "iptables-legacy", "nftables"])
@pytest.mark.parametrize("neighbours", ["", NEIGHBOURS], ids=["fresh", "lived-in"])
def test_check_apply_again_absent(host: Host, neighbours: str, firewall: str) -> None:
    host.sh(neighbours)
    before = host.state()
    predicted = host.module(check=True, firewall=firewall)
    assert host.state() == before
    done = host.module(firewall=firewall)
    assert done["changes"] == predicted["changes"]
    assert done["diff"] == predicted["diff"]
    after = host.state()
    assert items(host.module(firewall=firewall)) == []
    assert items(host.module(check=True, firewall=firewall)) == []
    assert host.state() == after

    assert items(host.module(state="absent", check=True))
    assert host.state() == after
    assert items(host.module(state="absent"))
    assert host.state() == before
    assert items(host.module(state="absent")) == []


CHOICES: dict[str, list[t.Any]] = {
    "firewall": ["iptables", "iptables-nft", "iptables-legacy", "nftables", "auto"],
    "families": [["ipv4"], ["ipv6"], ["ipv4", "ipv6"]],
    "mark": [("0x1", "0x1"), ("0x100", "0x300"), ("2", "2"), ("0x10", "0xf0")],
    "table": [(100, "haproxy_tproxy"), (4100, "elsewhere"), (7, "seven")],
    "rule_priority": [1, 100, 7000],
    "chain": ["DIVERT", "TO_HAPROXY", "D"],
    "nft_table": ["haproxy_tproxy", "another"],
    "position": ["first", "last"],
    "socket_match": ["transparent", "any"],
    "icmp": [True, False],
    "guard_rule": [True, False],
    "rule_protocol": ["kernel", "boot", "static"],
    "interfaces": [[], ["back"], ["front", "back"]],
    "forwarding": [None, True, False],
    "send_redirects": [None, True, False],
    "rp_filter": [None, 0, 1, 2],
    "guard": [True, False],
    "sysctls": [{}, {"net.ipv4.conf.back.rp_filter": 2, "net.ipv4.tcp_mtu_probing": True}],
    "intercepts": [[], [{"ports": ["80", "8000-8010"], "to_port": 3129, "destinations": []}]],
}


def wishes(count: int, seed: int) -> t.Iterator[dict[str, t.Any]]:
    """Option sets in which every value of every option comes up, and about half change each time."""
    chance = random.Random(seed)
    decks: dict[str, list[t.Any]] = {name: [] for name in CHOICES}
    options: dict[str, t.Any] = {}
    for _number in range(count):
        for name, values in CHOICES.items():
            if name in options and chance.random() < 0.5:
                continue
            if not decks[name]:
                decks[name] = chance.sample(values, len(values))
            options[name] = decks[name].pop()
        (mark, mask), (table, table_name) = options["mark"], options["table"]
        yield {**options, "mark": mark, "mask": mask, "table": table, "table_name": table_name}


def test_fifty_runs_in_a_row_leave_no_trace(host: Host) -> None:
    """What is there after each depends on its options only, and not on the way there."""
    host.sh(NEIGHBOURS)
    before = host.state()
    wanted = list(wishes(50, seed=4))
    for first in range(0, 50, 5):
        runs = [
            ("tproxy_rules", {**options, "check": check})
            for options in wanted[first : first + 5]
            for check in (False, True)
        ]
        for (_name, options), answer in zip(runs, host.modules(*runs)):
            assert "changes" in answer, (options, answer)
            assert not options["check"] or items(answer) == [], options
        options = wanted[first + 4]
        # What auto takes does depend on the way.
        if first % 10 and options["firewall"] != "auto":
            reached = host.state()
            assert items(host.module(state="absent"))
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
    "mark flipped by others": (
        "iptables -t mangle -A PREROUTING -p tcp --dport 15001 -j MARK --xor-mark 0x1",
        {},
        "mark",
        "--set-xmark 0x1/0x0",
    ),
    "mark restored from the connection's": (
        "iptables -t mangle -A FORWARD -j CONNMARK --set-mark 0x1/0x1;"
        "iptables -t mangle -A PREROUTING -j CONNMARK --restore-mark",
        {},
        "mark",
        "--restore-mark",
    ),
    "chain with the name of a target": (
        "true",
        {"chain": "NFQUEUE", "firewall": "iptables-nft"},
        "chain",
        "NFQUEUE",
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


NFT_MARK = (
    "nft 'table inet vpn { chain c { type filter hook output priority 0; meta mark set 0x539; }; }'"
)
CONFLICTS.update(
    {
        "mark set by nft rules of others": (
            NFT_MARK,
            {},
            "mark",
            "inet vpn c sets bits of the mask",
        ),
        "the same, with nftables": (NFT_MARK, {"firewall": "nftables"}, "mark", "0x539"),
        "mark set by nft rules of others, somehow": (
            "nft 'table ip6 vpn { chain c { meta mark set jhash ip6 saddr mod 256; }; }'",
            {},
            "mark",
            "ip6 vpn c sets bits",
        ),
        "connection marks of others": (
            "nft 'table ip vpn { chain c { type filter hook prerouting priority -160; meta mark set ct mark; };"
            " chain d { ct mark set 0x3; }; }'",
            {"firewall": "nftables"},
            "mark",
            "meta mark set ct mark",
        ),
        "mark overwritten by nft rules of others": (
            "nft 'table inet vpn { chain c { type filter hook prerouting priority 0; jump d; };"
            " chain d { meta mark set ct mark; }; }'",
            {"firewall": "nftables"},
            "mark",
            "inet vpn d overwrites, after they are set, bits of the mask",
        ),
        "mark set by others in the other variant": (
            "iptables-legacy -t mangle -A PREROUTING -j MARK --set-mark 1",
            {},
            "mark",
            "0x1/0xffffffff",
        ),
        "nft table of others": (
            "nft 'table inet haproxy_tproxy { chain DIVERT { counter; }; }'",
            {"firewall": "nftables"},
            "nft_table",
            "is there and not ours (counter)",
        ),
        "nft table of others, with a set": (
            "nft 'table inet mine { set s { type ipv4_addr; }; }'",
            {"firewall": "nftables", "nft_table": "mine"},
            "nft_table",
            "(set s)",
        ),
        "a word of nft as a chain": (
            "true",
            {"firewall": "nftables", "chain": "counter"},
            "chain",
            "'counter' is a word of nft's own language",
        ),
        "a word of nft as a table": (
            "true",
            {"firewall": "nftables", "nft_table": "table"},
            "nft_table",
            "'table' is a word of nft's own language",
        ),
        "native rules in iptables' table": (
            "iptables -t mangle -N X; nft add rule ip mangle X fib daddr type local counter",
            {},
            "firewall",
            "choose nftables",
        ),
    }
)


HARMLESS = {
    "before ours": "type filter hook prerouting priority -160; meta mark set 0x4000",
    "other bits": "type filter hook prerouting priority 0; meta mark set meta mark | 0x4000",
    "connection mark, before ours": "type filter hook prerouting priority -160; meta mark set ct mark",
    "connection mark, saved": "type filter hook postrouting priority 0; ct mark set meta mark",
    "other bits, turned around": "type filter hook prerouting priority 0; meta mark set meta mark ^ 0x4000",
    "bits kept": "type filter hook prerouting priority 0; meta mark set meta mark & 0xff | 0x700",
    "what comes in elsewhere": 'type filter hook prerouting priority 0; iifname "front" meta mark set 0x4000',
    "only looked at": "type filter hook prerouting priority 0; meta mark & 1 == 1 accept",
    "other hook": "type filter hook output priority 0; meta mark set ct mark",
    "numbers": "type filter hook prerouting priority -160; meta mark set numgen inc mod 8 offset 256",
}


@pytest.mark.parametrize("firewall", ["iptables", "nftables"])
def test_nft_rules_of_others_that_do_no_harm(host: Host, firewall: str) -> None:
    for name, chain in HARMLESS.items():
        host.sh(
            f"nft 'table inet {name.replace(' ', '_').replace(',', '')} {{ chain c {{ {chain}; }}; }}'"
        )
    options: dict[str, t.Any] = {
        "firewall": firewall,
        "mark": "8",
        "mask": "8",
        "interfaces": ["back"],
    }
    assert items(host.module(check=True, **options))


def test_strays_in_the_other_variant_are_removed(host: Host) -> None:
    """A host whose alternatives were switched, and that has lost the record."""
    host.module(firewall="iptables-legacy", chain="OLD")
    host.sh("rm -r /var/lib/tproxy-host")
    found = items(host.module(check=True))
    for family, icmp in (("ipv4", "icmp"), ("ipv6", "icmpv6")):
        for what in ("PREROUTING tcp", f"PREROUTING {icmp}", "chain OLD"):
            assert f"{family} legacy mangle {what}" in found
    assert items(host.module()) == found
    assert own(host.sh("iptables-legacy-save; ip6tables-legacy-save")) == []
    assert ":OLD" not in host.sh("iptables-legacy-save")
    host.sh("rm -r /var/lib/tproxy-host")
    switched = items(host.module(firewall="iptables-legacy"))
    assert "ipv4 nft mangle chain DIVERT" in switched
    assert own(host.sh("iptables-nft-save; ip6tables-nft-save")) == []


def test_a_lost_nft_table_is_found_by_its_comments(host: Host) -> None:
    host.module(firewall="nftables", nft_table="old")
    host.sh("rm -r /var/lib/tproxy-host")
    assert "nft table old" in items(host.module(firewall="nftables"))
    host.sh("rm -r /var/lib/tproxy-host")
    assert "nft table haproxy_tproxy" in items(host.module(state="absent"))
    assert host.sh("nft list ruleset") == ""


def test_auto_takes_what_the_host_uses_and_keeps_to_it(host: Host) -> None:
    def chosen(**options: t.Any) -> str:
        found = items(host.module(check=True, firewall="auto", **options))
        return "nftables" if "nft haproxy_tproxy chain DIVERT" in found else "iptables"

    assert chosen() == "iptables"
    host.sh("iptables -A INPUT -p udp -j ACCEPT")
    assert chosen() == "iptables"
    host.sh("nft 'table inet filter { chain input { counter; }; }'")
    assert chosen() == "nftables"
    host.sh("nft delete table inet filter")
    host.sh(
        "mkdir -p /etc/systemd/system/sysinit.target.wants;"
        "ln -s /lib/systemd/system/nftables.service /etc/systemd/system/sysinit.target.wants"
    )
    assert chosen() == "nftables"
    assert items(host.module(firewall="auto"))
    host.sh("rm /etc/systemd/system/sysinit.target.wants/nftables.service")
    assert items(host.module(firewall="auto")) == []
    # Who names one gets it, and from then on that is what the host uses.
    assert "nft table haproxy_tproxy" in items(host.module(firewall="iptables"))
    host.sh("nft 'table inet filter { chain input { counter; }; }'")
    assert items(host.module(firewall="auto")) == []


def test_a_missing_nft_program(host: Host) -> None:
    host.sh("mkdir /usr/local/empty; cp /usr/sbin/ip /usr/local/sbin/ip 2>/dev/null || :")
    host.sh(
        "for i in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do"
        " cp -L /usr/sbin/$i /usr/local/sbin/$i; done; mount --bind /usr/local/empty /usr/sbin"
    )
    predicted = host.module(check=True, firewall="nftables")
    assert "nft haproxy_tproxy chain DIVERT" in items(predicted)
    assert any("nft is not installed" in line for line in predicted["unseen"])
    assert any("Debian: nftables" in line for line in predicted["unseen"])
    assert "nft is not installed" in host.module(firewall="nftables")["msg"]
    assert items(host.module(firewall="auto"))
    assert items(host.module(check=True, firewall="iptables")) == []


def test_a_kernel_without_the_socket_expression_is_named(host: Host) -> None:
    """nft as it is, but for what the kernel says where it lacks the expression."""
    host.sh(
        'printf \'#!/bin/sh\\nif [ "$1" = -f ]; then text=$(cat); case $text in *"socket transparent"*)'
        ' echo "/dev/stdin:1:1-9: Error: Could not process rule: No such file or directory" >&2; exit 1 ;; esac;'
        ' echo "$text" | /usr/sbin/nft -f -; else exec /usr/sbin/nft "$@"; fi\\n\' >/usr/local/sbin/nft;'
        " chmod +x /usr/local/sbin/nft"
    )
    before = host.state()
    for check in (True, False):
        refusal = host.module(check=check, firewall="nftables")
        assert refusal.get("missing") == "NFT_SOCKET and NF_SOCKET_IPV4", refusal
        assert "CONFIG_NFT_SOCKET and NF_SOCKET_IPV4" in refusal["msg"]
    assert host.state() == before


def test_the_classic_recipe_can_be_had_to_the_letter(host: Host) -> None:
    """Its mangle table, rule and route as it was written down, but for the comment that says whose they are."""
    host.module(
        families=["ipv4"],
        mask="0xffffffff",
        socket_match="any",
        icmp=False,
        guard_rule=False,
        rule_protocol="boot",
        position="last",
        rule_priority=32764,
        send_redirects=True,
    )
    saved = host.sh("iptables-save -t mangle").replace(f" {COMMENT}", "")
    assert re.findall("^-.*", saved, re.MULTILINE) == [
        "-A PREROUTING -p tcp -m socket -j DIVERT",
        "-A DIVERT -j MARK --set-xmark 0x1/0xffffffff",
        "-A DIVERT -j ACCEPT",
    ]
    ours = host.sh("ip rule; ip route show table 100")
    for key in ("forwarding", "send_redirects"):
        assert host.sh(f"cat /proc/sys/net/ipv4/conf/all/{key}") == "1\n"
    host.module(state="absent")
    # The priority is the one that the kernel gives to a first rule without one.
    host.sh("ip rule add fwmark 1 lookup 100; ip route add local 0.0.0.0/0 dev lo table 100")
    assert ours.count("proto boot") == 1
    theirs = host.sh("ip rule; ip route show table 100")
    assert theirs == ours.replace("haproxy_tproxy", "100").replace(" proto boot", "")


@pytest.mark.parametrize("name", CONFLICTS)
def test_refused_before_any_change(host: Host, name: str) -> None:
    script, options, option, found = CONFLICTS[name]
    host.sh(script)
    before = host.state()
    for refusal in host.modules(
        ("tproxy_rules", {**options, "check": True}), ("tproxy_rules", options)
    ):
        assert refusal.get("option") == option, refusal
        assert found in refusal["msg"]
    assert host.state() == before


def test_connection_marks_of_other_bits_do_no_harm(host: Host) -> None:
    host.sh(
        "iptables -t mangle -A FORWARD -j CONNMARK --set-mark 0x4/0x4;"
        "iptables -t mangle -A PREROUTING -j CONNMARK --restore-mark"
    )
    assert "msg" not in host.module()


def test_two_first_runs_at_once(host: Host) -> None:
    """The second one finds what the first one made, and takes its sysctls for nobody's but ours."""
    before = host.state()
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: host.module(), range(2)))
    assert [run.get("msg") for run in runs] == [None, None]
    assert sorted(run["changed"] for run in runs) == [False, True]
    host.module(state="absent")
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


def test_the_loader_of_nft_copes_with_whatever_it_finds(host: Host) -> None:
    options: dict[str, t.Any] = {"firewall": "nftables", "interfaces": ["back"]}
    host.module(**options)
    wanted = host.sh("nft list ruleset")
    for script in (
        "tproxy-host start; tproxy-host start",
        "tproxy-host stop; tproxy-host stop; tproxy-host start",
        "nft flush ruleset; tproxy-host start",
        "nft flush ruleset; tproxy-host stop; tproxy-host start",
        "nft add rule inet haproxy_tproxy DIVERT drop; tproxy-host start",
        "ip link del back; tproxy-host stop; tproxy-host start; ip link add back type veth peer name back-end; ip link set back up;"
        "echo 0 >/proc/sys/net/ipv4/conf/back/send_redirects; echo 1 >/proc/sys/net/ipv4/conf/back/forwarding",
    ):
        host.sh(script)
        assert items(host.module(check=True, **options)) == [], script
        assert host.sh("nft list ruleset") == wanted
    host.sh("tproxy-host stop")
    assert host.sh("nft list ruleset") == ""


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
    for wanting in ("multi-user.target", "haproxy.service"):
        link = f"/var/alternate/etc/systemd/system/{wanting}.wants/tproxy-host.service"
        assert host.sh(f"readlink {link}").endswith("/etc/systemd/system/tproxy-host.service\n")
    unit = host.sh("cat /etc/systemd/system/tproxy-host.service")
    # It touches nothing of ours, and HAProxy need not wait for it.
    assert "docker" not in unit
    for flusher in ("nftables", "netfilter-persistent", "firewalld"):
        assert re.search(rf"^After=.*\b{flusher}\.service", unit, re.MULTILINE)
        drop_in = host.sh(f"cat /etc/systemd/system/{flusher}.service.d/tproxy-host.conf")
        for setting in ("ExecStartPost", "ExecStopPost"):
            assert f"{setting}=-/usr/local/sbin/tproxy-host restore\n" in drop_in
    for unit in ("tproxy-host", "tproxy-backend"):
        said = host.sh(f"systemd-analyze verify /etc/systemd/system/{unit}.service 2>&1")
        assert unit not in said
