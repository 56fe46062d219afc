# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The servers' way back with real connections, through two transparent proxies that share an address."""

from __future__ import annotations

import contextlib
import os
import sys
import typing as t
from pathlib import Path

import pytest
from hosts import HERE, Host, Network, items

FAMILIES = ("ipv4", "ipv6")
# What moves between the proxies.
SHARED = ["10.9.2.1", "fd09:2::1"]
PEER = str(HERE / "peer.py")


class Site(Network):
    """Clients in front of the proxies and on the servers' own subnet; a server with a second uplink.

    client ──┬── proxy ────┬── server ── router ── client
             └── standby ──┤
                           └── neighbour (a client on the servers' subnet)
    """

    def __init__(self, directory: Path) -> None:
        self.hosts: list[Host] = []
        names = ("client", "neighbour", "router", "proxy", "standby", "server")
        made = [self.host(name, directory) for name in names]
        self.client, self.neighbour, self.router, self.proxy, self.standby, self.server = made
        # Two of the hosts are switches too.
        for host, device, net, number in (
            (self.client, "front", "1", 11),
            (self.neighbour, "back", "2", 50),
        ):
            host.sh(f"ip link add {device} type bridge forward_delay 0")
            self.address(host, device, net, number)
        self.port(self.client, "front", self.proxy, "1", 2)
        self.port(self.client, "front", self.standby, "1", 3)
        self.port(self.client, "front", self.router, "1", 1)
        self.port(self.neighbour, "back", self.proxy, "2", 2)
        self.port(self.neighbour, "back", self.standby, "2", 3)
        self.port(self.neighbour, "back", self.server, "2", 11)
        self.link(self.router, "servers", "10.9.5.1", self.server, "uplink", "10.9.5.11", "5")
        self.router.sh(
            "echo 1 | tee /proc/sys/net/ipv4/conf/all/forwarding /proc/sys/net/ipv6/conf/all/forwarding"
        )
        self.client.sh(
            "ip route add 10.9.5.0/24 via 10.9.1.1; ip route add fd09:5::/64 via fd09:1::1"
        )
        self.server.sh(
            "ip route add default via 10.9.5.1; ip route add default via fd09:5::1\n"
            "echo 0 | tee /proc/sys/net/ipv4/conf/*/rp_filter"
        )
        self.move(self.proxy)
        for host in (self.server, self.router):
            host.start(sys.executable, PEER, "server", "8080")
        for host in (self.proxy, self.standby):
            host.start(sys.executable, PEER, "relay", "80", "8080", "10.9.2.11", "fd09:2::11")
            # Without forwarding, what a proxy gets beside its own connections is lost.
            assert items(host.module(forwarding=False))

    def address(self, host: Host, device: str, net: str, number: int) -> None:
        host.sh(
            f"ip address add 10.9.{net}.{number}/24 dev {device}\n"
            f"ip address add fd09:{net}::{number}/64 dev {device} nodad\n"
            f"ip link set {device} up"
        )

    def port(self, switch: Host, bridge: str, host: Host, net: str, number: int) -> None:
        end = f"{bridge}-{host.name}"
        switch.sh(
            f"ip link add {end} type veth peer name {bridge} netns {host.holder.pid}\n"
            f"ip link set {end} master {bridge} up"
        )
        self.address(host, bridge, net, number)

    def move(self, to: Host) -> None:
        """The shared addresses, and the announcement that VRRP makes of them."""
        for host in (self.proxy, self.standby):
            for address in SHARED:
                length = "64" if ":" in address else "24"
                if host is to:
                    # As keepalived has it: not the source of the host's own connections.
                    source = "preferred_lft 0" if ":" in address else ""
                    host.sh(f"ip address replace {address}/{length} dev back nodad {source}")
                else:
                    host.sh(f"ip address del {address}/{length} dev back", check=False)
        to.run(sys.executable, PEER, "announce", "back", *SHARED)

    def hears(self, host: Host, address: str, port: int, expected: bool = True) -> str | None:
        """What is answered to a request from the host; what shall fail is not waited for as long."""
        answer = host.run(
            *(sys.executable, PEER, "client", address, str(port), "10", "5" if expected else "0.7"),
            check=False,
        )
        return answer.strip().partition(" ")[0] or None

    def through(self, family: str, *, expected: bool, proxy: int = 2) -> bool:
        """Whether the client is served through the proxy and seen by its own address."""
        heard = self.hears(self.client, ip(family, 1, proxy), 80, expected)
        assert heard in (ip(family, 1, 11), None)
        return heard is not None

    def near(self, family: str, *, expected: bool) -> bool:
        """The same for the client on the servers' own subnet."""
        heard = self.hears(self.neighbour, ip(family, 2, 2), 80, expected)
        assert heard in (ip(family, 2, 50), None)
        return heard is not None

    def directly(self, family: str, *, expected: bool) -> bool:
        """Whether the client reaches the server's other address, not through a proxy."""
        return self.hears(self.client, ip(family, 5, 11), 8080, expected) is not None

    def rp_filter(self, value: int) -> None:
        self.server.sh(
            f"for i in all back uplink; do echo {value} >/proc/sys/net/ipv4/conf/$i/rp_filter; done"
        )


def ip(family: str, net: int, number: int) -> str:
    return f"10.9.{net}.{number}" if family == "ipv4" else f"fd09:{net}::{number}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Site]:
    if os.geteuid() != 0:
        pytest.fail("run as root: these tests make network namespaces")
    with contextlib.closing(Site(tmp_path_factory.mktemp("site"))) as made:
        yield made


@pytest.fixture
def server(site: Site) -> t.Iterator[Host]:
    """Without a way back, and again without one at the end."""
    site.rp_filter(0)
    before = site.server.state()
    yield site.server
    site.rp_filter(0)
    site.server.module("tproxy_return_path", state="absent")
    assert site.server.state() == before


def set_up(server: Host, mode: str, **options: t.Any) -> dict[str, t.Any]:
    done = server.module("tproxy_return_path", mode=mode, gateways=SHARED, **options)
    assert items(done), done
    return done


def test_without_a_way_back_nothing_works(site: Site, server: Host) -> None:
    for family in FAMILIES:
        assert not site.through(family, expected=False)
        assert not site.near(family, expected=False)
        assert site.directly(family, expected=True)


# mode -> rp_filter of the server -> through the proxy, for IPv4. IPv6 has no rp_filter.
MATRIX = {
    "default_gateway": {0: True, 1: True, 2: True},
    "source_address": {0: True, 1: True, 2: True},
    "connection_mark": {0: True, 1: False, 2: True},
}


@pytest.mark.parametrize("mode", MATRIX)
def test_modes_reverse_path_filters_and_families(site: Site, server: Host, mode: str) -> None:
    set_up(server, mode)
    policy = mode != "default_gateway"
    for rp_filter, expected in MATRIX[mode].items():
        site.rp_filter(rp_filter)
        assert site.through("ipv4", expected=expected) == expected, rp_filter
        assert site.near("ipv4", expected=policy) == policy, rp_filter
        assert site.directly("ipv4", expected=policy) == policy, rp_filter
    assert site.through("ipv6", expected=True)
    assert site.near("ipv6", expected=policy) == policy
    assert site.directly("ipv6", expected=policy) == policy


@pytest.mark.parametrize("mode", ["source_address", "connection_mark"])
def test_all_else_goes_where_it_went(site: Site, server: Host, mode: str) -> None:
    set_up(server, mode)
    for family in FAMILIES:
        # The server's own connections, to elsewhere and to a neighbour.
        assert site.hears(server, ip(family, 1, 1), 8080) == ip(family, 5, 11)
        # The health checks of the proxy that has the shared address.
        assert site.hears(site.proxy, ip(family, 2, 11), 8080) == ip(family, 2, 2)
        # Those of the other one: answered to the shared address, which does not forward.
        assert not site.hears(site.standby, ip(family, 2, 11), 8080, False)
    direct = [ip(family, 2, 3) for family in FAMILIES]
    names = items(server.module("tproxy_return_path", mode=mode, gateways=SHARED, direct=direct))
    assert names[:2] == [
        f"{family} route to {ip(family, 2, 3)} in table 101" for family in FAMILIES
    ]
    for family in FAMILIES:
        assert site.hears(site.standby, ip(family, 2, 11), 8080) == ip(family, 2, 3)
        assert site.through(family, expected=True)


@pytest.mark.parametrize("mode", MATRIX)
def test_the_shared_address_moves(site: Site, server: Host, mode: str) -> None:
    set_up(server, mode)
    after = server.state()
    try:
        for family in FAMILIES:
            assert site.through(family, expected=True)
        site.move(site.standby)
        for family in FAMILIES:
            assert site.through(family, expected=True, proxy=3)
            assert not site.through(family, expected=False, proxy=2)
        assert items(server.module("tproxy_return_path", mode=mode, gateways=SHARED)) == []
        # Nobody has it: that is no reason to refuse.
        site.standby.sh("ip link set back down")
        assert items(server.module("tproxy_return_path", mode=mode, gateways=SHARED)) == []
    finally:
        site.standby.sh("ip link set back up")
        site.standby.sh("ip -6 address replace fd09:2::3/64 dev back nodad")
        site.move(site.proxy)
    assert server.state() == after
    assert site.through("ipv4", expected=True)


def test_the_hardware_address_tells_the_proxy_from_others(site: Site, server: Host) -> None:
    """A neighbour's direct connection comes in by the same interface."""
    mac = site.proxy.sh("ip -o link show dev back | sed 's/.*ether \\([^ ]*\\) .*/\\1/'").strip()
    server.module("tproxy_return_path", mode="connection_mark", gateways=SHARED)
    for family in FAMILIES:
        assert not site.hears(site.neighbour, ip(family, 2, 11), 8080, False)
    names = items(
        server.module(
            "tproxy_return_path", mode="connection_mark", gateways=SHARED, mac_addresses=[mac]
        )
    )
    assert names == ["nftables chain prerouting", "file /etc/tproxy-backend/nft.rules"]
    for family in FAMILIES:
        assert site.hears(site.neighbour, ip(family, 2, 11), 8080) == ip(family, 2, 50)
        assert site.through(family, expected=True)
        assert site.near(family, expected=True)


def test_a_strict_filter_is_refused_or_set_loose(site: Site, server: Host) -> None:
    before = server.state()
    for everywhere, here, effective in ((1, 0, 1), (0, 1, 1), (1, 2, 2), (2, 1, 2)):
        server.sh(
            f"echo {everywhere} >/proc/sys/net/ipv4/conf/all/rp_filter\n"
            f"echo {here} >/proc/sys/net/ipv4/conf/back/rp_filter"
        )
        answer = server.module(
            "tproxy_return_path", check=True, mode="connection_mark", gateways=SHARED
        )
        assert (answer.get("option") == "loose_rp_filter") == (effective == 1), answer
    site.rp_filter(1)
    strict = server.state()
    done = set_up(server, "connection_mark", loose_rp_filter=True)
    assert "sysctl net.ipv4.conf.back.rp_filter" in items(done)
    assert site.through("ipv4", expected=True)
    server.module("tproxy_return_path", state="absent")
    assert server.state() == strict
    site.rp_filter(0)
    assert server.state() == before


def test_a_link_local_gateway(site: Site, server: Host) -> None:
    address = site.proxy.sh("ip -6 -o address show dev back scope link").split()[3].split("/")[0]
    for mode in MATRIX:
        gateways = [f"{address}%back"]
        assert items(server.module("tproxy_return_path", mode=mode, gateways=gateways))
        assert site.through("ipv6", expected=True)
        assert not site.through("ipv4", expected=False)
        assert items(server.module("tproxy_return_path", mode=mode, gateways=gateways)) == []


def test_an_address_of_another_interface(site: Site, server: Host) -> None:
    """The service address is not on the gateway's subnet: the application's own, on a bridge without ports."""
    server.sh("ip link add service type bridge; ip link set service up")
    try:
        server.sh(
            "ip address add 10.9.7.1/32 dev service; ip address add fd09:7::1/128 dev service"
        )
        done = set_up(server, "source_address", addresses=["10.9.7.1", "fd09:7::1"])
        assert "ipv4 rule 110 from 10.9.7.1" in items(done)
        # The proxies' relays go to another address, whose way is as before.
        assert not site.through("ipv4", expected=False)
        site.proxy.sh("ip route add 10.9.7.1 via 10.9.2.11; ip route add fd09:7::1 via fd09:2::11")
        for family, address in (("ipv4", "10.9.7.1"), ("ipv6", "fd09:7::1")):
            assert site.hears(site.proxy, address, 8080) == ip(family, 2, 2)
            hop = server.sh(f"ip route get {ip(family, 1, 11)} from {address}")
            assert f"via {SHARED[FAMILIES.index(family)]}" in hop
        server.module("tproxy_return_path", state="absent")
    finally:
        site.proxy.sh("ip route del 10.9.7.1; ip -6 route del fd09:7::1", check=False)
        server.sh("ip link del service")
