# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Transparent after the software that manages the server-facing interface was restarted: ifupdown, systemd-networkd, NetworkManager."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from beside import on_each, transparent
from lab import Lab


@dataclass(frozen=True)
class Manager:
    set_up: str
    # Succeeds if the interface is the manager's.
    at_work: str
    commands: tuple[str, ...]
    remove: str


# Routing policy of its own makes each of them look after rules. One more, by nobody: systemd-networkd removes it.
STRAY = "ip rule add priority 410 from 203.0.113.9 lookup 77"
# Stands for udev, which containers lack and the two below wait for.
UDEV = "mkdir -p /run/udev/data; printf 'I:1\\nV:1\\n' >/run/udev/data/n$(cat /sys/class/net/back/ifindex)"

MANAGERS = {
    "debian11": Manager(
        set_up="""
cat >/etc/network/interfaces.d/lab <<CONF
auto back
iface back inet static
  address 10.99.2.2/24
  post-up ip rule add priority 400 from 198.51.100.7 lookup 77 || :
iface back inet6 static
  address fd00:99:2::2/64
  dad-attempts 0
CONF
ip address flush dev back
systemctl start networking
""",
        at_work="ifquery --state back && ip rule | grep -q '^400:'",
        commands=("systemctl restart networking", "ifdown back && ifup back"),
        remove="systemctl stop networking; rm /etc/network/interfaces.d/lab; ip rule del priority 400",
    ),
    "debian12": Manager(
        set_up=f"""
cat >/etc/systemd/network/50-lab.network <<CONF
[Match]
Name=back
[Network]
Address=10.99.2.2/24
Address=fd00:99:2::2/64
IPv6AcceptRA=no
[RoutingPolicyRule]
From=198.51.100.7
Table=77
Priority=400
CONF
{UDEV}
{STRAY}
systemctl start systemd-networkd
""",
        at_work="networkctl --no-legend list back | grep -q configured && ip rule | grep -q '^400:'",
        commands=(
            "systemctl restart systemd-networkd",
            "networkctl reload",
            "networkctl reconfigure back",
        ),
        remove=(
            "systemctl stop systemd-networkd.socket systemd-networkd;"
            " rm /etc/systemd/network/50-lab.network; ip rule del priority 400"
        ),
    ),
    "debian13": Manager(
        set_up=f"""
cat >/etc/NetworkManager/conf.d/lab.conf <<CONF
[keyfile]
unmanaged-devices=interface-name:mgmt;interface-name:front
CONF
{UDEV}
systemctl start NetworkManager
nmcli connection add type ethernet ifname back con-name lab ipv4.method manual ipv4.addresses 10.99.2.2/24 \\
  ipv6.method manual ipv6.addresses fd00:99:2::2/64 ipv4.routing-rules 'priority 400 from 198.51.100.7 table 77'
nmcli device set back managed yes
nmcli connection up lab
""",
        at_work="nmcli --get-values GENERAL.CONNECTION device show back | grep -q '^lab' && ip rule | grep -q '^400:'",
        commands=(
            "systemctl restart NetworkManager",
            "nmcli device reapply back",
            "nmcli connection reload",
            "nmcli connection up lab",
        ),
        remove="nmcli connection delete lab; systemctl stop NetworkManager; rm /etc/NetworkManager/conf.d/lab.conf",
    ),
}
# The one that takes away what it does not know.
REMOVES = "debian12"


def ours(lab: Lab, host: str) -> str:
    return lab.run(
        host,
        "for family in -4 -6; do ip $family rule | grep 'fwmark 0x1/0x1';"
        " ip $family route show table 100; done",
    )


def test_it_survives_whoever_manages_the_network(lab: Lab) -> None:
    def look(host: str) -> None:
        manager, before = MANAGERS[host], ours(lab, host)
        assert before.count("fwmark") >= 2
        # The drop-ins have to do without the guard.
        lab.host(host).run("systemctl stop tproxy-host-guard")
        try:
            lab.run(host, f"set -e\n{manager.set_up}")
            for command in ("true", *manager.commands):
                lab.run(host, command)
                lab.wait(partial(transparent, lab, host), f"{host} after {command}")
                lab.wait(lambda: lab.host(host).run(manager.at_work).rc == 0, f"{host}: {command}")
                assert ours(lab, host) == before, f"{host}: {command}"
            if host == REMOVES:
                assert lab.host(host).run("ip rule | grep '^410:'").rc, (
                    "it removes nothing: no test"
                )
        finally:
            lab.host(host).run(f"{manager.remove}; ip rule del priority 410")
            # The addresses may have gone with the manager.
            lab.host(host).run(
                "ip link set back up; ip address replace 10.99.2.2/24 dev back;"
                " ip address replace fd00:99:2::2/64 dev back nodad;"
                " systemctl restart tproxy-host"
            )
        lab.wait(partial(transparent, lab, host), f"{host} without {manager}")

    on_each(MANAGERS, look)
