# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real transparent connections: what breaks them, what the module says about it, what repairs them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hosts import COMMENT, Network, items

TCP = f"PREROUTING -p tcp -m socket --transparent {COMMENT} -j DIVERT"
ICMP = f"PREROUTING -p icmp -m socket --transparent {COMMENT} -j DIVERT"
ICMPV6 = f"PREROUTING -p icmpv6 -m socket --transparent {COMMENT} -j DIVERT"
MARK = f"DIVERT {COMMENT} -j MARK --set-xmark"

# What a hand may do to the proxy; the items that then are not as wanted; the families that then fail.
BREAKAGES = {
    "rule": (f"iptables -t mangle -D {TCP}", ["ipv4 mangle PREROUTING tcp"], {"ipv4"}),
    "rule, IPv6": (f"ip6tables -t mangle -D {TCP}", ["ipv6 mangle PREROUTING tcp"], {"ipv6"}),
    "ICMP rule": (f"iptables -t mangle -D {ICMP}", ["ipv4 mangle PREROUTING icmp"], set()),
    "ICMPv6 rule": (f"ip6tables -t mangle -D {ICMPV6}", ["ipv6 mangle PREROUTING icmpv6"], set()),
    "chain emptied": ("iptables -t mangle -F DIVERT", ["ipv4 mangle chain DIVERT"], {"ipv4"}),
    "chain emptied, IPv6": (
        "ip6tables -t mangle -F DIVERT",
        ["ipv6 mangle chain DIVERT"],
        {"ipv6"},
    ),
    "wrong mark": (
        f"iptables -t mangle -R DIVERT 1 {COMMENT} -j MARK --set-xmark 0x2/0x2",
        ["ipv4 mangle chain DIVERT"],
        {"ipv4"},
    ),
    "chain without ACCEPT": (
        f"iptables -t mangle -D DIVERT {COMMENT} -j ACCEPT",
        ["ipv4 mangle chain DIVERT"],
        set(),
    ),
    "foreign rule in the chain": (
        "iptables -t mangle -I DIVERT -j RETURN",
        ["ipv4 mangle chain DIVERT"],
        {"ipv4"},
    ),
    "table flushed": (
        "iptables -t mangle -F",
        ["ipv4 mangle chain DIVERT", "ipv4 mangle PREROUTING tcp", "ipv4 mangle PREROUTING icmp"],
        {"ipv4"},
    ),
    "ruleset flushed": (
        "nft flush ruleset",
        [
            f"{family} mangle {what}"
            for family, icmp in (("ipv4", "icmp"), ("ipv6", "icmpv6"))
            for what in ("chain DIVERT", "PREROUTING tcp", f"PREROUTING {icmp}")
        ],
        {"ipv4", "ipv6"},
    ),
    "twice": (f"iptables -t mangle -A {TCP}", ["ipv4 mangle PREROUTING tcp"], set()),
    "ip rule": ("ip rule del priority 101", ["ipv4 rule 101"], {"ipv4"}),
    "ip rule, IPv6": ("ip -6 rule del priority 101", ["ipv6 rule 101"], {"ipv6"}),
    "guard rule": ("ip rule del priority 100", ["ipv4 rule 100 (guard)"], set()),
    "rule of another protocol": (
        "ip rule del priority 101; ip rule add priority 101 fwmark 0x1/0x1 lookup 100 protocol static",
        ["ipv4 rule 101"],
        set(),
    ),
    "rule behind main": (
        "ip rule del priority 101; ip rule add priority 32767 fwmark 0x1/0x1 lookup 100 protocol kernel",
        ["ipv4 rule 101"],
        {"ipv4"},
    ),
    "table": ("ip route flush table 100", ["ipv4 route in table 100"], {"ipv4"}),
    "table, IPv6": ("ip -6 route flush table 100", ["ipv6 route in table 100"], {"ipv6"}),
    "route of another protocol": (
        "ip -6 route replace local default dev lo table 100 proto static",
        ["ipv6 route in table 100"],
        set(),
    ),
    "forwarding": (
        "echo 0 >/proc/sys/net/ipv4/conf/all/forwarding",
        ["sysctl net.ipv4.conf.all.forwarding"],
        set(),
    ),
    "forwarding, IPv6": (
        "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
        ["sysctl net.ipv6.conf.all.forwarding"],
        set(),
    ),
    "redirects": (
        "echo 1 >/proc/sys/net/ipv4/conf/back/send_redirects",
        ["sysctl net.ipv4.conf.back.send_redirects"],
        set(),
    ),
    "boot file": ("rm /etc/tproxy-host/ip6.batch", ["file /etc/tproxy-host/ip6.batch"], set()),
    "boot file edited": (
        "sed -i s/100/200/ /etc/tproxy-host/ip4.batch",
        ["file /etc/tproxy-host/ip4.batch"],
        set(),
    ),
    "loader": ("rm /usr/local/sbin/tproxy-host", ["file /usr/local/sbin/tproxy-host"], set()),
    "record": (
        "rm /var/lib/tproxy-host/state.json",
        ["file /var/lib/tproxy-host/state.json"],
        set(),
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_each_breakage_is_named_exactly_and_repaired(network: Network, name: str) -> None:
    script, expected, broken = BREAKAGES[name]
    assert items(network.proxy.module(check=True)) == []

    network.proxy.sh(script)
    found = network.proxy.module(check=True)
    assert items(found) == expected
    for family in ("ipv4", "ipv6") if broken else ():
        alive = family not in broken
        assert network.works(family, alive) == alive, family

    repaired = network.proxy.module()
    assert repaired["changes"] == found["changes"]
    assert items(network.proxy.module()) == []
    for family in broken:
        assert network.works(family), family


def test_the_server_sees_the_clients_own_addresses(network: Network) -> None:
    assert network.ask("ipv4") == "10.9.1.11 10"
    assert network.ask("ipv6") == "fd09:1::11 10"


def test_rules_of_others_that_come_first_are_overtaken(network: Network) -> None:
    network.proxy.sh("iptables -t mangle -I PREROUTING -i back -j ACCEPT")
    try:
        assert not network.works("ipv4", expected=False)
        found = network.proxy.module(check=True)
        assert items(found) == ["ipv4 mangle PREROUTING tcp", "ipv4 mangle PREROUTING icmp"]
        assert "behind '-A PREROUTING -i back -j ACCEPT'" in found["changes"][0]["found"]
        network.proxy.module()
        assert network.works("ipv4")
        order = network.proxy.sh("iptables-save -t mangle | grep '^-A PREROUTING'").splitlines()
        assert [line.endswith("DIVERT") for line in order] == [True, True, False]
    finally:
        network.proxy.sh("iptables -t mangle -D PREROUTING -i back -j ACCEPT")


@pytest.mark.parametrize("interfaces", [[], ["back"]], ids=["guard", "bound"])
def test_other_softwares_mark_sysctls_do_no_harm(network: Network, interfaces: list[str]) -> None:
    """src_valid_mark is what VPNs set; without the guard or the interface it kills every connection."""
    keys = ("ipv4/conf/all/src_valid_mark", "ipv4/tcp_fwmark_accept")
    network.proxy.module(interfaces=interfaces)
    network.proxy.sh("".join(f"echo 1 >/proc/sys/net/{key}\n" for key in keys))
    try:
        assert network.works("ipv4")
        assert network.works("ipv6")
        if not interfaces:
            network.proxy.sh("ip rule del priority 100")
            assert not network.works("ipv4", expected=False)
    finally:
        network.proxy.sh("".join(f"echo 0 >/proc/sys/net/{key}\n" for key in keys))
        network.proxy.module()


def test_local_services_are_not_marked(network: Network) -> None:
    """A plain socket match would mark them; with src_valid_mark that locks SSH out."""
    network.proxy.start("python3", "-c", LISTENER)
    assert network.client.run("python3", "-c", CALLER) == "hello"
    counters = network.proxy.sh("iptables -t mangle -nvxL DIVERT | awk '/MARK/ {print $1}'")
    before = int(counters)
    assert network.client.run("python3", "-c", CALLER) == "hello"
    assert (
        int(network.proxy.sh("iptables -t mangle -nvxL DIVERT | awk '/MARK/ {print $1}'")) == before
    )
    assert network.works("ipv4")
    assert (
        int(network.proxy.sh("iptables -t mangle -nvxL DIVERT | awk '/MARK/ {print $1}'")) > before
    )


LISTENER = """
import socket
s = socket.create_server(("0.0.0.0", 2222))
print("ready", flush=True)
while True:
    c, _ = s.accept()
    c.sendall(b"hello")
    c.close()
"""
CALLER = """
import socket
print(socket.create_connection(("10.9.1.2", 2222), 2).recv(9).decode(), end="")
"""


def test_the_boot_files_do_what_the_module_does(network: Network) -> None:
    """The loader is what runs at boot: from nothing it must reach the very state that the module wants."""
    network.proxy.sh("tproxy-host stop")
    assert "DIVERT" not in network.proxy.sh("iptables-save; ip6tables-save; ip rule; ip -6 rule")
    assert not network.works("ipv4", expected=False)
    network.proxy.sh("echo 0 >/proc/sys/net/ipv4/conf/all/forwarding")
    network.proxy.sh("echo 1 | tee /proc/sys/net/ipv4/conf/*/send_redirects")
    for _again in range(3):
        network.proxy.sh("tproxy-host start")
        assert items(network.proxy.module(check=True)) == []
    assert network.works("ipv4")
    assert network.works("ipv6")


def test_icmp_errors_reach_the_proxy(tmp_path: Path) -> None:
    """A hop with a smaller MTU says so to the client's address; large requests hang unless that is diverted too."""
    with contextlib.closing(Network(tmp_path, router_mtu=1400)) as network:
        network.server.module("tproxy_return_path", gateways=network.gateways)
        network.proxy.module()
        assert network.ask("ipv4", size=14000) == "10.9.1.11 14000"
        assert network.ask("ipv6", size=14000) == "fd09:1::11 14000"
        # The control: without the ICMP rules both hang.
        network.proxy.sh(
            f"iptables -t mangle -D {ICMP}; ip6tables -t mangle -D {ICMPV6}; ip route flush cache; ip -6 route flush cache"
        )
        assert network.ask("ipv4", size=14000, seconds=1.2) is None
        assert network.ask("ipv6", size=14000, seconds=1.2) is None
        network.proxy.module()
        assert network.ask("ipv4", size=14000) == "10.9.1.11 14000"
        assert network.ask("ipv6", size=14000) == "fd09:1::11 14000"


def test_without_the_return_path_nothing_comes_back(network: Network) -> None:
    found = network.server.module("tproxy_return_path", state="absent")
    assert items(found)[:2] == ["ipv4 default route", "ipv6 default route"]
    assert not network.works("ipv4", expected=False)
    assert not network.works("ipv6", expected=False)
    network.server.module("tproxy_return_path", gateways=network.gateways)
    assert network.works("ipv4")
    assert network.works("ipv6")
