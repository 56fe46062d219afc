# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A proxy that is a bridge: packets come in at the bridge device, whichever of its ports they took."""

from __future__ import annotations

import contextlib
import os
import re
import typing as t
from pathlib import Path

import pytest
from hosts import Host, Network, items
from intercepted import Routed, ask, serve, start

REPO = Path(__file__).parents[2]
FIREWALLS = ["iptables", "nftables"]
CATCH: list[dict[str, t.Any]] = [{"ports": ["80"], "to_port": 3129}]
NETFILTER = "/proc/sys/net/bridge/bridge-nf-call-ip"


def bridge(host: Host, port: str, name: str) -> None:
    """Makes the interface a port of a new bridge, which gets its addresses."""
    host.sh(
        f"ip link add {name} type bridge\n"
        f"ip link add {name}-other type veth peer name {name}-end\n"
        f"addresses=$(ip -o address show dev {port} scope global | awk '{{print $4}}')\n"
        f"ip address flush dev {port} scope global\n"
        f"ip link set {port} master {name}; ip link set {name}-other master {name}\n"
        f"ip link set {name} up\n"
        f"for a in $addresses; do ip address add $a dev {name}; done"
    )


def netfilter(host: Host, value: int) -> None:
    """Whether bridged packets pass iptables' chains; each network namespace has its own switch."""
    if not os.path.exists(f"{NETFILTER}tables"):
        pytest.skip("this kernel has no br_netfilter")
    host.sh(f"echo {value} | tee {NETFILTER}tables {NETFILTER}6tables")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Network]:
    """Clients and servers behind a bridge of the proxy each."""
    if os.geteuid() != 0:
        pytest.fail("run as root: these tests make network namespaces")
    with contextlib.closing(Network(tmp_path_factory.mktemp("bridged"))) as made:
        made.server.sh("ip route add default via 10.9.2.2; ip route add default via fd09:2::2")
        bridge(made.proxy, "back", "br0")
        bridge(made.proxy, "front", "br1")
        yield made


@pytest.mark.parametrize(
    ("firewall", "called", "interfaces"),
    [
        ("iptables", 0, []),
        ("iptables", 1, ["br0"]),
        ("nftables", 0, ["br0"]),
        ("nftables", 1, []),
    ],
)
def test_servers_and_clients_behind_bridges(
    network: Network, firewall: str, called: int, interfaces: list[str]
) -> None:
    netfilter(network.proxy, called)
    assert items(network.proxy.module(firewall=firewall, interfaces=interfaces))
    assert network.works("ipv4")
    assert network.works("ipv6")
    # The control: it is these rules, and at this device.
    device = "iif br0" if interfaces else ""
    network.proxy.sh(f"ip rule del priority 101 {device}; ip -6 rule del priority 101 {device}")
    assert not network.works("ipv4", expected=False)
    assert not network.works("ipv6", expected=False)
    network.proxy.module(state="absent")


@pytest.mark.parametrize("check", [True, False])
def test_a_port_of_a_bridge_is_refused(network: Network, check: bool) -> None:
    """Rules bound to it would never match, and nothing would say so."""
    before = network.proxy.state()
    refused = network.proxy.module(interfaces=["br1", "back"], check=check)
    assert refused["msg"] == (
        "interfaces: 'back' is a port of the bridge 'br0', where its packets come in; give 'br0' instead"
    )
    assert refused["found"] == ["br0"]
    refused = network.proxy.module(
        intercepts=[*CATCH, {"ports": ["81"], "to_port": 3130, "interfaces": ["front"]}],
        check=check,
    )
    assert refused["msg"].startswith(
        "intercepts[1].interfaces: 'front' is a port of the bridge 'br1'"
    )
    assert network.proxy.state() == before


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_interception_where_clients_are_behind_a_bridge(tmp_path: Path, firewall: str) -> None:
    """bridge-nf-call passes packets through the chains below IP, where the socket that TPROXY gives them is lost."""
    with contextlib.closing(Routed(tmp_path)) as network:
        proxy, catch = network.proxy, [{**CATCH[0], "interfaces": ["br1"]}]
        bridge(proxy, "back", "br0")
        bridge(proxy, "front", "br1")
        serve(network.server, 80)
        running = start(proxy, tmp_path)
        try:
            netfilter(proxy, 1)
            for check in (True, False):
                refused = proxy.module(firewall=firewall, intercepts=catch, check=check)
                assert refused["msg"].startswith(
                    "intercepts[0].interfaces: packets that come in at the bridge 'br1' would be caught "
                    "but not delivered, because net.bridge.bridge-nf-call-iptables is 1"
                ), refused
            assert items(proxy.module(state="absent", check=True)) == []
            # The bridge need not be the way in, so this is only said.
            warned = proxy.module(firewall=firewall, intercepts=CATCH, check=True)
            assert [text for text in warned["warnings"] if "bridge-nf-call-iptables" in text]

            off = {f"net.bridge.bridge-nf-call-ip{which}tables": 0 for which in ("", "6")}
            assert items(proxy.module(firewall=firewall, intercepts=catch, sysctls=off))
            for address, client in (("10.9.2.11", "10.9.1.11"), ("fd09:2::11", "fd09:1::11")):
                assert ask(network.client, address, 80) == f"{client} {address} 80"
            assert len(running.expect(2)) == 2
            # The control: what was refused does not work.
            netfilter(proxy, 1)
            assert ask(network.client, "10.9.2.11", 80, seconds=1) is None
            assert ask(network.client, "fd09:2::11", 80, seconds=1) is None
            assert len(running.expect(2)) == 2
            found = proxy.module(firewall=firewall, intercepts=catch, sysctls=off, check=True)
            assert items(found) == [f"sysctl {name}" for name in off]
        finally:
            running.stop()


def test_a_bridge_between_clients_and_servers(tmp_path: Path) -> None:
    """One subnet, nobody's gateway: the bridge has to send the frames up first, which takes rules of the bridge family."""
    client, proxy, server = hosts = [Host(name, tmp_path) for name in ("client", "proxy", "server")]
    try:
        proxy.sh("ip link add br0 type bridge")
        for host, port, number in ((client, "front", 11), (server, "back", 21)):
            proxy.sh(
                f"ip link add {port} type veth peer name eth netns {host.holder.pid}\n"
                f"ip link set {port} master br0 up"
            )
            host.sh(
                f"ip address add 10.9.1.{number}/24 dev eth\n"
                f"ip address add fd09:1::{number}/64 dev eth nodad\nip link set eth up"
            )
        proxy.sh(
            "ip link set br0 up; ip address add 10.9.1.2/24 dev br0; ip address add fd09:1::2/64 dev br0"
        )
        serve(server, 80, 81)
        running = start(proxy, tmp_path)
        try:
            netfilter(proxy, 0)
            proxy.module(intercepts=[{**CATCH[0], "interfaces": ["br0"]}], interfaces=["br0"])
            # Without them the bridge passes everything on, and IP sees nothing of it.
            talk(client)
            assert running.expect(0) == []
            proxy.run("nft", "-f", "-", text=documented().replace("MAC", mac(proxy, "br0")))
            talk(client)
            assert running.expect(2) == [
                "any 10.9.1.11 10.9.1.21 80",
                "any6 fd09:1::11 fd09:1::21 80",
            ]
        finally:
            running.stop()
    finally:
        for host in hosts:
            host.close()


def documented() -> str:
    """The guide's rules that send frames up to IP."""
    guide = (REPO / "docs/docsite/rst/guide_transparent.rst").read_text(encoding="utf-8")
    (rules,) = re.findall(r"^   table bridge .*?^   \}$", guide, re.MULTILINE | re.DOTALL)
    return t.cast("str", rules)


def mac(host: Host, interface: str) -> str:
    return host.sh(f"ip -o link show {interface} | sed 's/.*link.ether \\([^ ]*\\).*/\\1/'").strip()


def talk(client: Host) -> None:
    for address, own in (("10.9.1.21", "10.9.1.11"), ("fd09:1::21", "fd09:1::11")):
        for port in (80, 81):
            assert ask(client, address, port) == f"{own} {address} {port}"
