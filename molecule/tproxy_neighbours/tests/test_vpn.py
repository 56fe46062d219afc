# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Transparent beside a VPN's rule by mark with src_valid_mark=1; and the real wg-quick, which puts its rules before all others."""

from __future__ import annotations

import time

from beside import on_each, role, transparent
from lab import TPROXY_HOSTS, Lab

# As wg-quick makes it, but at a place of its own choice.
VPN = """
set -e
ip link add vpn type veth peer name vpn-end
ip link set vpn up
for family in -4 -6; do
  ip $family route add default dev vpn table 51820
  ip $family rule add priority 199 lookup main suppress_prefixlength 0
  ip $family rule add priority 200 not fwmark 0xca6c lookup 51820
done
sysctl -q -w net.ipv4.conf.all.src_valid_mark=1
"""
NO_VPN = """
for family in -4 -6; do ip $family rule del priority 199; ip $family rule del priority 200; done
ip link del vpn
sysctl -q -w net.ipv4.conf.all.src_valid_mark=0
"""
# The classic recipe's rule: any interface, and no guard.
CLASSIC = """
ip rule del priority 100 2>/dev/null
ip rule del priority 101
ip rule add priority 101 fwmark 0x1 lookup 100 protocol kernel
"""
OURS = "ip rule del priority 101; systemctl restart tproxy-host"


def test_beside_a_vpns_rule(lab: Lab) -> None:
    def look(host: str) -> None:
        # The guard of one of them would put ours back.
        lab.host(host).run("systemctl stop tproxy-host-guard")
        try:
            lab.run(host, VPN)
            assert transparent(lab, host), host
            # The control.
            lab.run(host, CLASSIC)
            assert not transparent(lab, host), host
            lab.run(host, "sysctl -q -w net.ipv4.conf.all.src_valid_mark=0")
            assert transparent(lab, host), host
        finally:
            lab.host(host).run(NO_VPN)
            lab.host(host).run(OURS)
        assert transparent(lab, host), host

    on_each(TPROXY_HOSTS, look)


WG_QUICK = """
set -e
mkdir -p /etc/wireguard
umask 077
cat >/etc/wireguard/wg0.conf <<CONF
[Interface]
PrivateKey = $(wg genkey)
Address = 10.66.0.2/32, fd00:66::2/128
[Peer]
PublicKey = $(wg genkey | wg pubkey)
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = 127.0.0.1:51821
CONF
systemctl start wg-quick@wg0
"""
# The one with the package wireguard-go: the lab's kernel may lack WireGuard.
HOST = "debian13"


def test_wg_quick_is_warned_of_and_a_lower_priority_helps(lab: Lab) -> None:
    """Its rules get the numbers just below the first one that is there, so they stand before ours."""
    lab.run(HOST, WG_QUICK)
    try:
        assert not transparent(lab, HOST), (
            "its rules do not stand before ours: the test shows nothing"
        )
        rules = lab.run(HOST, "ip rule")
        moved = role(lab, "-e", "tproxy_host_rule_priority=50", hosts=HOST, tasks_from="configure")
        assert transparent(lab, HOST)
        # Nothing of its rules was touched.
        left = lab.run(HOST, "ip rule").splitlines()
        assert [line for line in rules.splitlines() if "haproxy_tproxy" not in line] == [
            line for line in left if "haproxy_tproxy" not in line
        ]
        assert "stands before ours" not in moved.output
        warned = lab.play(
            [
                {
                    "hosts": HOST,
                    "tasks": [{"clearproxy.haproxy.tproxy_rules": {"interfaces": ["back"]}}],
                }
            ],
            "--check",
        )
        assert warned.code == 0, warned.output
        assert "stands before ours" in warned.output
    finally:
        lab.host(HOST).run(
            "systemctl stop wg-quick@wg0; sysctl -q -w net.ipv4.conf.all.src_valid_mark=0"
        )
        role(lab, hosts=HOST, tasks_from="configure")
    deadline = time.monotonic() + 10
    while not transparent(lab, HOST):
        assert time.monotonic() < deadline
