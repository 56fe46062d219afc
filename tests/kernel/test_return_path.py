# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""tproxy_return_path on a real kernel."""

from __future__ import annotations

import pytest
from hosts import Host, items

ADDRESSES = """
ip address add 10.9.2.11/24 dev back
ip address add fd09:2::11/64 dev back nodad
ip address add 10.9.5.11/24 dev front
ip address add fd09:5::11/64 dev front nodad
"""
GATEWAYS = ["10.9.2.2", "fd09:2::2"]


def next_hop(host: Host, destination: str) -> str:
    words = host.sh(f"ip route get {destination}").split()
    return words[words.index("via") + 1]


# What another default route may look like.
BEFORE = {
    "none": "true",
    "same metric": "ip route add default via 10.9.5.1 dev front",
    "dhcp": "ip route add default via 10.9.5.1 dev front proto dhcp src 10.9.5.11 metric 100",
    "several": "ip route add default via 10.9.5.1 dev front proto static;"
    "ip route append default via 10.9.2.9 dev back; ip route add default via 10.9.5.7 dev front metric 50",
    "several next hops": "ip route add default proto static"
    " nexthop via 10.9.5.1 dev front nexthop via 10.9.2.9 dev back weight 3",
    "IPv6": "ip -6 route add default via fd09:5::1 dev front",
    "IPv6, same next hop": "ip -6 route add default via fd09:2::2 dev back metric 1",
    "IPv6, with and without next hop": "ip -6 route add default dev front metric 1;"
    "ip -6 route append default via fd09:5::1 dev front metric 1",
    "same next hop": "ip route add default via 10.9.5.1 dev front;"
    "ip route append default via 10.9.2.2 dev back",
    "IPv6, metric 1": "ip -6 route add default via fd09:5::1 dev front metric 1 mtu 1400",
}


@pytest.mark.parametrize("name", BEFORE)
def test_check_apply_again_absent(host: Host, name: str) -> None:
    host.sh(ADDRESSES + BEFORE[name])
    before = host.state()
    predicted = host.module("tproxy_return_path", check=True, gateways=GATEWAYS)
    assert host.state() == before
    done = host.module("tproxy_return_path", gateways=GATEWAYS)
    assert done["changes"] == predicted["changes"]
    assert items(done)[:2] == ["ipv4 default route", "ipv6 default route"]
    assert next_hop(host, "192.0.2.1") == "10.9.2.2"
    assert next_hop(host, "2001:db8::1") == "fd09:2::2"
    after = host.state()
    assert items(host.module("tproxy_return_path", gateways=GATEWAYS)) == []
    assert host.state() == after

    assert items(host.module("tproxy_return_path", state="absent"))
    assert host.state() == before
    assert items(host.module("tproxy_return_path", state="absent")) == []


def test_a_refused_route_leaves_the_old_one(host: Host) -> None:
    """More than one rival, and the interface goes down between looking and setting."""
    host.sh(ADDRESSES + BEFORE["several"])
    host.sh(
        "mkdir -p /usr/local/sbin; cat >/usr/local/sbin/ip <<'EOF'\n#!/bin/sh\n"
        '[ "$2" = -batch ] && /sbin/ip link set back down\nexec /sbin/ip "$@"\nEOF\n'
        "chmod +x /usr/local/sbin/ip"
    )
    refusal = host.module("tproxy_return_path", gateways=GATEWAYS)
    assert "refused" in refusal["msg"], refusal
    host.sh("rm /usr/local/sbin/ip")
    assert next_hop(host, "192.0.2.1") == "10.9.5.1"


def test_an_interface_that_is_down_is_refused_before_any_change(host: Host) -> None:
    host.sh(ADDRESSES + BEFORE["same metric"] + "\nip link set back down")
    before = host.state()
    for check in (True, False):
        refusal = host.module("tproxy_return_path", check=check, gateways=GATEWAYS[:1])
        assert refusal.get("option") == "gateways", refusal
        assert "the subnet of back, which is down" in refusal["msg"]
    assert host.state() == before


def test_absent_ends_even_if_an_old_route_can_not_come_back(host: Host) -> None:
    host.sh(ADDRESSES)
    before = host.state()
    host.sh(BEFORE["several"])
    host.module("tproxy_return_path", gateways=GATEWAYS)
    host.sh("ip address del 10.9.5.11/24 dev front")
    done = host.module("tproxy_return_path", state="absent")
    (warning,) = done["warnings"]
    assert "the old ipv4 route 'default via 10.9.5.1 dev front proto static" in warning
    # The one whose subnet is still there.
    assert next_hop(host, "192.0.2.1") == "10.9.2.9"
    assert items(host.module("tproxy_return_path", state="absent")) == []
    host.sh("ip address add 10.9.5.11/24 dev front; ip route del default")
    assert host.state() == before


def test_another_gateway_replaces_ours(host: Host) -> None:
    host.sh(ADDRESSES + BEFORE["same metric"])
    before = host.state()
    host.module("tproxy_return_path", gateways=GATEWAYS)
    changes = host.module("tproxy_return_path", gateways=["10.9.2.3"])["changes"]
    assert changes[0]["found"].startswith("default via 10.9.2.2")
    assert changes[0]["wanted"].startswith("default via 10.9.2.3")
    assert changes[1]["item"] == "ipv6 default route"
    assert changes[1]["wanted"] == ""
    assert next_hop(host, "192.0.2.1") == "10.9.2.3"
    host.module("tproxy_return_path", state="absent")
    assert host.state() == before


BREAKAGES = {
    "route": ("ip route del default via 10.9.2.2", ["ipv4 default route"]),
    "route, IPv6": ("ip -6 route del default via fd09:2::2", ["ipv6 default route"]),
    "route replaced": ("ip route replace default via 10.9.5.1 dev front", ["ipv4 default route"]),
    "boot file": ("rm /etc/tproxy-backend/ip.batch", ["file /etc/tproxy-backend/ip.batch"]),
    "unit": (
        "sed -i s/oneshot/simple/ /etc/systemd/system/tproxy-backend.service",
        ["file /etc/systemd/system/tproxy-backend.service"],
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_each_breakage_is_named_exactly_and_repaired(host: Host, name: str) -> None:
    script, expected = BREAKAGES[name]
    host.sh(ADDRESSES)
    host.module("tproxy_return_path", gateways=GATEWAYS)
    after = host.state()
    host.sh(script)
    assert items(host.module("tproxy_return_path", check=True, gateways=GATEWAYS)) == expected
    assert items(host.module("tproxy_return_path", gateways=GATEWAYS)) == expected
    assert host.state() == after


def test_the_boot_file_does_what_the_module_does(host: Host) -> None:
    host.sh(ADDRESSES)
    host.module("tproxy_return_path", gateways=GATEWAYS)
    after = host.state()
    host.sh("ip route del default; ip -6 route del default")
    for _again in range(2):
        host.sh("/sbin/ip -force -batch /etc/tproxy-backend/ip.batch")
        assert host.state() == after


@pytest.mark.parametrize(
    ("gateways", "said"),
    [
        ([], "none given"),
        (["10.9.2.300"], "not an IP address"),
        (["proxy.example"], "not an IP address"),
        (["10.9.99.1"], "on no subnet that this host is connected to (it has 10.9"),
        (["10.9.2.11"], "an address of this host itself"),
        (["fe80::1"], "link-local"),
        (["10.9.2.2", "10.9.2.3"], "both ipv4"),
        (["0.0.0.0"], "cannot be a gateway"),
    ],
)
def test_refused_before_any_change(host: Host, gateways: list[str], said: str) -> None:
    host.sh(ADDRESSES)
    before = host.state()
    for check in (True, False):
        refusal = host.module("tproxy_return_path", check=check, gateways=gateways)
        assert refusal.get("option") == "gateways", refusal
        assert said in refusal["msg"]
    assert host.state() == before
