# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real transparent connections: what breaks them, what the module says about it, what repairs them."""

from __future__ import annotations

import contextlib
import re
import typing as t
from pathlib import Path

import pytest
from hosts import COMMENT, Host, Network, items

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


TABLE = "inet haproxy_tproxy"
CHAIN = "nft haproxy_tproxy chain DIVERT"
RULE4, RULE6 = "ipv4 nft haproxy_tproxy DIVERT tcp", "ipv6 nft haproxy_tproxy DIVERT tcp"
PMTU4, PMTU6 = "ipv4 nft haproxy_tproxy DIVERT icmp", "ipv6 nft haproxy_tproxy DIVERT icmpv6"
EVERY_RULE = [RULE4, PMTU4, RULE6, PMTU6]
BOTH = {"ipv4", "ipv6"}


def edited(change: str) -> str:
    """Loads our table again after sed has changed it, as a hand might."""
    return f"sed '{change}' /etc/tproxy-host/nftables.rules | nft -f -"


# The same for nft. What concerns routes, sysctls and files does not depend on the firewall.
NFT_BREAKAGES: dict[str, tuple[str, list[str], set[str]]] = {
    "table gone": (f"nft delete table {TABLE}", [CHAIN, *EVERY_RULE], BOTH),
    "ruleset flushed": ("nft flush ruleset", [CHAIN, *EVERY_RULE], BOTH),
    "table emptied": (f"nft flush table {TABLE}", EVERY_RULE, BOTH),
    "rule": (edited("/nfproto ipv4/d"), [RULE4], {"ipv4"}),
    "rule, IPv6": (edited("/nfproto ipv6/d"), [RULE6], {"ipv6"}),
    "ICMP rule": (edited("/l4proto icmp /d"), [PMTU4], set()),
    "ICMPv6 rule": (edited("/l4proto icmpv6 /d"), [PMTU6], set()),
    "wrong mark": (edited("/nfproto ipv4/s/| 0x1/| 0x2/"), [RULE4], {"ipv4"}),
    "without accept": (edited("/nfproto ipv4/s/ accept / /"), [RULE4], set()),
    "bound to an interface that leads elsewhere": (
        edited('/nfproto ipv6/s/meta l4proto/iifname "front" meta l4proto/'),
        [RULE6],
        {"ipv6"},
    ),
    "other order": (
        edited("/nfproto ipv4/{h;d};/nfproto ipv6/G"),
        ["nft haproxy_tproxy rules"],
        set(),
    ),
    "twice": (
        f"nft add rule {TABLE} DIVERT meta nfproto ipv4 meta l4proto tcp socket transparent 1 counter"
        ' meta mark set mark or 1 accept comment \\"clearproxy-tproxy-host\\"',
        [RULE4],
        set(),
    ),
    "other hook": (edited("s/hook prerouting/hook input/"), [CHAIN], BOTH),
    "other priority": (edited("s/priority -149/priority 300/"), [CHAIN], set()),
    "policy drop": (edited("s/policy accept/policy drop/"), [CHAIN], BOTH),
    "rule of others before": (
        f"nft insert rule {TABLE} DIVERT meta nfproto ipv4 return",
        ["nft haproxy_tproxy DIVERT rule of others"],
        {"ipv4"},
    ),
    "chain of others": (f"nft add chain {TABLE} more", ["nft haproxy_tproxy chain more"], set()),
    "set of others": (
        f"nft 'add set {TABLE} names {{ type ifname; }}'",
        ["nft table haproxy_tproxy"],
        set(),
    ),
    "asleep": (
        f"nft 'add table {TABLE} {{ flags dormant; }}'",
        ["nft table haproxy_tproxy"],
        BOTH,
    ),
    "boot file": (
        "rm /etc/tproxy-host/nftables.rules",
        ["file /etc/tproxy-host/nftables.rules"],
        set(),
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_each_breakage_is_named_exactly_and_repaired(network: Network, name: str) -> None:
    script, expected, broken = BREAKAGES[name]
    named_and_repaired(network, {}, script, expected, broken)


@pytest.fixture(scope="module")
def nft_network(network: Network) -> t.Iterator[Network]:
    network.proxy.module(firewall="nftables")
    yield network
    network.proxy.module()


@pytest.mark.parametrize("name", NFT_BREAKAGES)
def test_each_breakage_of_nft_is_named_exactly_and_repaired(
    nft_network: Network, name: str
) -> None:
    script, expected, broken = NFT_BREAKAGES[name]
    named_and_repaired(nft_network, {"firewall": "nftables"}, script, expected, broken)


def named_and_repaired(
    network: Network,
    options: dict[str, t.Any],
    script: str,
    expected: list[str],
    broken: set[str],
) -> None:
    network.proxy.sh(script)
    found = network.proxy.module(check=True, **options)
    assert items(found) == expected
    for family in ("ipv4", "ipv6") if broken else ():
        alive = family not in broken
        assert network.works(family, alive) == alive, family

    repaired, again = network.proxy.modules(
        ("tproxy_rules", options), ("tproxy_rules", {**options, "check": True})
    )
    assert repaired["changes"] == found["changes"]
    assert items(again) == []
    for family in broken:
        assert network.works(family), family


# Every improvement over the classic recipe: with the classic value the same traffic dies.

BACKENDS = ["iptables", "nftables"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.contextmanager
def proc(host: Host, *keys: str) -> t.Iterator[None]:
    """The sysctls below net are 1 meanwhile."""
    host.sh("".join(f"echo 1 >/proc/sys/net/{key}\n" for key in keys))
    try:
        yield
    finally:
        host.sh("".join(f"echo 0 >/proc/sys/net/{key}\n" for key in keys))


@contextlib.contextmanager
def nft_table_of_others(host: Host, chain: str) -> t.Iterator[None]:
    host.run("nft", "-f", "-", text=f"table inet theirs {{ chain prerouting {{ {chain}; }}; }}")
    try:
        yield
    finally:
        host.sh("nft delete table inet theirs")


def test_a_plain_socket_match_locks_out_local_services(network: Network, backend: str) -> None:
    network.proxy.start("python3", "-c", LISTENER.replace("2222", "22"))
    call = CALLER.replace("2222", "22")
    with proc(network.proxy, "ipv4/conf/all/src_valid_mark"):
        network.proxy.module(firewall=backend, guard_rule=False)
        assert network.client.run("python3", "-c", call) == "hello"
        network.proxy.module(firewall=backend, guard_rule=False, socket_match="any")
        assert network.client.run("python3", "-c", call, check=False) == ""
        # Each of the other two improvements helps as well.
        network.proxy.module(firewall=backend, socket_match="any")
        assert network.client.run("python3", "-c", call) == "hello"
    network.proxy.stop_children(1)


def test_an_unguarded_rule_dies_of_source_validation(network: Network, backend: str) -> None:
    with proc(network.proxy, "ipv4/conf/all/src_valid_mark"):
        network.proxy.module(firewall=backend, guard_rule=False)
        assert not network.works("ipv4", expected=False)
        network.proxy.module(firewall=backend)
        assert network.works("ipv4")
        network.proxy.module(firewall=backend, guard_rule=False, interfaces=["back"])
        assert network.works("ipv4")


def test_an_unguarded_rule_dies_of_firewalls_that_look_up_sources_by_mark(
    network: Network, backend: str
) -> None:
    """What firewalld's IPv6_rpfilter is."""
    with nft_table_of_others(
        network.proxy,
        "type filter hook prerouting priority 10; meta nfproto ipv6 fib saddr . mark . iif oif missing drop",
    ):
        network.proxy.module(firewall=backend, guard_rule=False)
        assert not network.works("ipv6", expected=False)
        network.proxy.module(firewall=backend)
        assert network.works("ipv6")
        network.proxy.module(firewall=backend, guard_rule=False, interfaces=["back"])
        assert network.works("ipv6")


def test_an_unguarded_rule_dies_of_accepted_marks(network: Network, backend: str) -> None:
    """A service that listens transparently inherits the mark of the first packet, and answers with it."""
    network.proxy.start(
        "python3",
        "-c",
        LISTENER.replace("2222", "23").replace("# ", "").replace("0.0.0.0", "10.9.1.2"),
    )
    call = CALLER.replace("2222", "23")
    with proc(network.proxy, "ipv4/tcp_fwmark_accept"):
        network.proxy.module(firewall=backend, guard_rule=False)
        assert network.client.run("python3", "-c", call, check=False) == ""
        network.proxy.module(firewall=backend)
        assert network.client.run("python3", "-c", call) == "hello"
    network.proxy.stop_children(1)


def test_a_mark_without_a_mask_dies_of_the_bits_of_others(network: Network, backend: str) -> None:
    everything = {"firewall": backend, "mask": "0xffffffff"}
    assert items(network.proxy.module(**everything))
    assert network.works("ipv4")
    with nft_table_of_others(
        network.proxy,
        "type filter hook prerouting priority 0; meta mark set meta mark | 0x10000",
    ):
        assert not network.works("ipv4", expected=False)
        refusal = network.proxy.module(check=True, **everything)
        assert refusal["option"] == "mark"
        assert "inet theirs prerouting" in refusal["msg"]
        network.proxy.module(firewall=backend)
        assert network.works("ipv4")
        assert network.works("ipv6")


def test_rules_behind_those_of_others_are_never_reached(network: Network) -> None:
    network.proxy.sh("iptables -t mangle -I PREROUTING -i back -j ACCEPT")
    try:
        network.proxy.module(position="last")
        assert not network.works("ipv4", expected=False)
        for options in ({}, {"firewall": "nftables"}):
            network.proxy.module(**options)
            assert network.works("ipv4"), options
    finally:
        network.proxy.sh("iptables -t mangle -D PREROUTING -i back -j ACCEPT")


@pytest.mark.parametrize("options", [{}, {"firewall": "nftables"}], ids=BACKENDS)
@pytest.mark.parametrize(
    "chain",
    [
        "type filter hook prerouting priority -160; meta mark set 0x4000 accept",
        "type filter hook prerouting priority -160; meta mark set ct mark accept",
        "type filter hook prerouting priority 0; meta mark set meta mark & 0xff | 0x4000 accept",
    ],
)
def test_native_rules_of_others_that_mark_and_accept(
    network: Network, options: dict[str, t.Any], chain: str
) -> None:
    """What accepts before us spares packets nothing, and our bit is set last, or kept."""
    with nft_table_of_others(network.proxy, chain):
        assert "changes" in network.proxy.module(**options)
        assert network.works("ipv4")
        assert network.works("ipv6")


def test_who_overwrites_the_mark_after_us_is_refused_with_good_reason(
    network: Network, backend: str
) -> None:
    network.proxy.module(firewall=backend)
    # At mangle itself ours comes later with nft; with iptables the order is that of loading.
    at = {"iptables": -150, "nftables": -149}[backend]
    chain = f"type filter hook prerouting priority {at}; meta mark set ct mark"
    with nft_table_of_others(network.proxy, chain.replace(str(at), "0")):
        assert not network.works("ipv4", expected=False)
        refusal = network.proxy.module(firewall=backend, check=True)
        assert refusal["option"] == "mark"
        assert "overwrites, after they are set, bits of the mask 0x1" in refusal["msg"]
    with nft_table_of_others(network.proxy, chain):
        assert network.proxy.module(firewall=backend, check=True)["option"] == "mark"
    with nft_table_of_others(network.proxy, chain.replace(str(at), str(at - 1))):
        assert items(network.proxy.module(firewall=backend, check=True)) == []
        assert network.works("ipv4")


def test_redirects_make_a_server_bypass_the_proxy(tmp_path: Path) -> None:
    """Router, proxy and server in one subnet: whatever the proxy forwards there may be answered by a redirect."""
    with contextlib.closing(OneArm(tmp_path)) as network:
        network.proxy.module()
        for send, alive in ((False, True), (True, False)):
            network.proxy.module(send_redirects=send)
            # The router knows the way, so only the answer passes the proxy, which forwards it.
            for _number in range(2):
                network.client.run("python3", "-c", PING)
            cached = network.server.sh("ip route get 10.9.1.11")
            assert ("<redirected>" in cached) == send, cached
            assert network.works("ipv4", expected=alive) == alive


# An echo (RFC 792) with its checksum.
PING = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
    s.settimeout(5)
    s.sendto(bytes.fromhex("0800 f7f8 0007 0000"), ("10.9.5.11", 0))
    assert s.recv(100)[20] == 0
"""


class OneArm(Network):
    """The client's router is also a switch, to which proxy and server are connected."""

    def __init__(self, directory: Path) -> None:
        self.hosts: list[Host] = []
        self.client, self.router, self.proxy, self.server = (
            self.host(name, directory) for name in ("client", "router", "proxy", "server")
        )
        self.link(self.client, "front", "10.9.1.11", self.router, "front", "10.9.1.1", "1")
        self.router.sh(
            "ip link add lan type bridge; ip link set lan up; ip address add 10.9.5.254/24 dev lan;"
            "echo 1 >/proc/sys/net/ipv4/conf/all/forwarding"
        )
        for host, address in ((self.proxy, "10.9.5.2"), (self.server, "10.9.5.11")):
            host.sh(
                f"ip link add lan type veth peer name {host.name} netns {self.router.holder.pid};"
                f"ip address add {address}/24 dev lan; ip link set lan up"
            )
            self.router.sh(f"ip link set {host.name} master lan up")
        self.client.sh("ip route add 10.9.5.0/24 via 10.9.1.1")
        self.proxy.sh("ip route add default via 10.9.5.254")
        self.server.sh(
            "ip route add default via 10.9.5.2; echo 1 | tee /proc/sys/net/ipv4/conf/*/accept_redirects"
        )
        self.serve("10.9.5.11")

    def ask(self, family: str, *, size: int = 10, seconds: float = 5) -> str | None:
        return self.ask_at("10.9.5.2", size, seconds)


def test_no_moment_without_diversion(network: Network) -> None:
    """One connection talks all the time while everything is changed under it."""
    network.proxy.module()
    network.proxy.run("nft", "-f", "-", text=ARRIVED_AND_DELIVERED)
    # Otherwise the kernel finds the socket without a mark and a rule while its route is remembered.
    early = "/proc/sys/net/ipv4/ip_early_demux"
    network.proxy.sh(f"echo 0 >{early}")
    network.server.start("python3", "-c", ECHO)
    network.proxy.start("python3", "-c", STREAM)
    network.client.start("python3", "-c", TALK)
    for options in SWITCHES:
        assert items(network.proxy.module(**options)), options
    assert network.client.children[-1].poll() is None
    network.client.sh("touch /var/enough")
    talked = network.client.children[-1].communicate(timeout=10)[0]
    assert talked.startswith("still talking after"), talked
    assert int(talked.split()[3]) > 100
    # A packet of the server that is not diverted is forwarded to the client, or lost.
    arrived, delivered = map(
        int, re.findall(r"packets (\d+)", network.proxy.sh("nft list table ip counted"))
    )
    assert arrived == delivered > 100
    network.proxy.sh(f"nft delete table ip counted; echo 1 >{early}")
    network.proxy.module()


ARRIVED_AND_DELIVERED = """
table ip counted {
    chain arrived {
        type filter hook prerouting priority -310;
        tcp sport 8081 counter
    }
    chain delivered {
        type filter hook input priority 310;
        tcp sport 8081 counter
    }
}
"""
SWITCHES: list[dict[str, t.Any]] = [
    {"firewall": "nftables"},
    {"firewall": "iptables-legacy"},
    {"firewall": "iptables-nft"},
    {"firewall": "nftables", "interfaces": ["back"], "mark": "0x100", "mask": "0x300"},
    {
        "firewall": "nftables",
        "nft_table": "other",
        "chain": "other",
        "table": 4100,
        "table_name": "x",
    },
    {"chain": "OTHER", "rule_priority": 7000},
    {"mark": "0x4", "mask": "0xf", "interfaces": ["front", "back"], "position": "last"},
    {"families": ["ipv4"], "socket_match": "any", "icmp": False, "guard_rule": False},
]
ECHO = """
import socket
s = socket.create_server(("0.0.0.0", 8081))
print("ready", flush=True)
c, peer = s.accept()
while data := c.recv(100):
    c.sendall(data)
"""
STREAM = """
import socket, threading
s = socket.create_server(("0.0.0.0", 81))
print("ready", flush=True)
c, peer = s.accept()
u = socket.socket()
u.setsockopt(socket.IPPROTO_IP, 19, 1)
u.bind((peer[0], 0))
u.connect(("10.9.2.11", 8081))
def copy(a, b):
    while data := a.recv(100):
        b.sendall(data)
threading.Thread(target=copy, args=(u, c), daemon=True).start()
copy(c, u)
"""
TALK = """
import os, socket, time
c = socket.create_connection(("10.9.1.2", 81), 5)
c.settimeout(5)
print("ready", flush=True)
count = 0
while not os.path.exists("/var/enough"):
    c.sendall(b"x")
    assert c.recv(1) == b"x"
    count += 1
    time.sleep(0.001)
print(f"still talking after {count} words", flush=True)
"""


def test_the_server_sees_the_clients_own_addresses(network: Network, backend: str) -> None:
    network.proxy.module(firewall=backend)
    assert network.ask("ipv4") == "10.9.1.11 10"
    assert network.ask("ipv6") == "fd09:1::11 10"


def test_rules_of_others_that_come_first_are_overtaken(network: Network) -> None:
    network.proxy.module()
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
    network.proxy.module()
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
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
# s.setsockopt(socket.IPPROTO_IP, 19, 1)
s.bind(("0.0.0.0", 2222))
s.listen()
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


def test_the_boot_files_do_what_the_module_does(network: Network, backend: str) -> None:
    """The loader is what runs at boot: from nothing it must reach the very state that the module wants."""
    options = {"firewall": backend}
    network.proxy.module(**options)
    network.proxy.sh("tproxy-host stop")
    assert "DIVERT" not in network.proxy.sh(
        "iptables-save; ip6tables-save; nft list ruleset; ip rule; ip -6 rule"
    )
    assert not network.works("ipv4", expected=False)
    network.proxy.sh("echo 0 >/proc/sys/net/ipv4/conf/all/forwarding")
    network.proxy.sh("echo 1 | tee /proc/sys/net/ipv4/conf/*/send_redirects")
    for _again in range(2):
        network.proxy.sh("tproxy-host start")
        assert items(network.proxy.module(check=True, **options)) == []
    assert network.works("ipv4")
    assert network.works("ipv6")


def test_icmp_errors_reach_the_proxy(tmp_path: Path) -> None:
    """A hop with a smaller MTU says so to the client's address; large requests hang unless that is diverted too."""
    with contextlib.closing(Network(tmp_path, router_mtu=1400)) as network:
        network.server.module("tproxy_return_path", gateways=network.gateways)
        for options in ({}, {"firewall": "nftables"}):
            network.proxy.module(**options)
            assert network.ask("ipv4", size=14000) == "10.9.1.11 14000"
            assert network.ask("ipv6", size=14000) == "fd09:1::11 14000"
            network.proxy.module(icmp=False, **options)
            network.proxy.sh("ip route flush cache; ip -6 route flush cache")
            assert network.ask("ipv4", size=14000, seconds=1.2) is None
            assert network.ask("ipv6", size=14000, seconds=1.2) is None


def test_without_the_return_path_nothing_comes_back(network: Network) -> None:
    network.proxy.module()
    found = network.server.module("tproxy_return_path", state="absent")
    assert items(found)[:2] == ["ipv4 default route", "ipv6 default route"]
    assert not network.works("ipv4", expected=False)
    assert not network.works("ipv6", expected=False)
    network.server.module("tproxy_return_path", gateways=network.gateways)
    assert network.works("ipv4")
    assert network.works("ipv6")
