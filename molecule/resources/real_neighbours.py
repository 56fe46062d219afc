# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Other software that has rules of its own, as its users set it up; and the commands that they type afterwards."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Neighbour:
    """Shell commands, run on the host."""

    packages: tuple[str, ...]
    set_up: str
    # Succeeds if the neighbour is at work: without it a test would show nothing.
    at_work: str
    commands: tuple[str, ...]
    remove: str
    # These may remove rules of iptables, and systemd is not told.
    silent: tuple[str, ...] = ()
    # Whether the silent ones spare a table of our own.
    spares_nft: bool = False


# Rules of all others, as they were before ours: what an operator saved once.
_SAVE = (
    "for p in iptables ip6tables; do $p -A INPUT -p tcp --dport 81 -j DROP; done;"
    " iptables-save | grep -vE 'clearproxy|DIVERT' >/etc/iptables/rules.v4;"
    " ip6tables-save | grep -vE 'clearproxy|DIVERT' >/etc/iptables/rules.v6;"
)
_NFTABLES_CONF = """\
flush ruleset
table inet filter {
  chain input {
    type filter hook input priority 0; policy drop;
    ct state { established, related } accept
    ct state invalid drop
    iif lo accept
    meta l4proto { icmp, icmpv6 } accept
    tcp dport { 22, 80 } accept
  }
  chain forward { type filter hook forward priority 0; policy drop; }
}
"""

NEIGHBOURS = {
    "netfilter-persistent": Neighbour(
        packages=("iptables-persistent",),
        # Flushing when it stops is its own setting.
        set_up=(
            f"{_SAVE} sed -i 's/FLUSH_ON_STOP=.*/FLUSH_ON_STOP=1/' /etc/default/netfilter-persistent;"
            " systemctl enable --now netfilter-persistent"
        ),
        at_work="iptables -S INPUT | grep -q 'dport 81'",
        commands=tuple(
            f"systemctl {command} netfilter-persistent" for command in ("restart", "stop", "start")
        ),
        silent=("netfilter-persistent reload",),
        remove=(
            "systemctl disable --now netfilter-persistent; rm -f /etc/iptables/rules.v?;"
            " for p in iptables ip6tables; do $p -D INPUT -p tcp --dport 81 -j DROP || :; done"
        ),
    ),
    "ufw": Neighbour(
        packages=("ufw",),
        set_up=(
            "ufw default deny incoming && ufw allow 80/tcp && ufw allow ssh"
            " && ufw --force enable && systemctl enable ufw && systemctl restart ufw"
        ),
        at_work="ufw status | grep -q '^Status: active' && iptables -S INPUT | grep -q 'P INPUT DROP'",
        commands=(
            "ufw allow 443/tcp",
            "ufw delete allow 443/tcp",
            "ufw reload",
            "ufw disable",
            "ufw --force enable",
            *(f"systemctl {command} ufw" for command in ("restart", "stop", "start")),
        ),
        remove="ufw --force reset; systemctl disable --now ufw",
    ),
    "firewalld": Neighbour(
        # Every Debian has netbase but the smallest ones; without its /etc/protocols firewalld ends as soon as it has started.
        packages=("firewalld", "netbase"),
        # Without the daemon, so that nothing waits for its start.
        set_up=(
            "systemctl stop firewalld; firewall-offline-cmd --add-service=http"
            " && systemctl enable --now firewalld"
        ),
        # With the setting IPv6_rpfilter, on by default.
        at_work=(
            "firewall-cmd --query-service=http && nft list table inet firewalld | grep -q 'fib saddr'"
        ),
        commands=tuple(
            f"systemctl {command} firewalld" for command in ("restart", "stop", "start", "reload")
        ),
        silent=(
            "firewall-cmd --reload",
            "firewall-cmd --complete-reload",
        ),
        spares_nft=True,
        remove=(
            "systemctl disable --now firewalld; firewall-offline-cmd --remove-service-from-zone=http"
        ),
    ),
    "docker": Neighbour(
        # The last one is a package of its own since Debian 13.
        packages=("docker.io", "busybox-static", "docker-cli"),
        set_up=(
            """mkdir -p /etc/docker /srv/image/bin && echo '{"storage-driver": "vfs"}' >/etc/docker/daemon.json"""
            " && cp /bin/busybox /srv/image/bin && systemctl enable --now docker"
            " && tar -C /srv/image -c . | docker import - lab-web && docker network create lab"
            " && docker run --detach --name web --network lab --publish 8088:80 --restart always"
            " lab-web /bin/busybox httpd -f -p 80"
        ),
        # An empty document root is 404. The container sees its client through its own rules.
        at_work=(
            "ip netns exec client curl -sS --max-time 5 -o /dev/null -w '%{http_code}'"
            " http://10.99.1.2:8088/ | grep -q 404 && iptables -t nat -S | grep -q MASQUERADE"
        ),
        commands=(
            "systemctl restart docker",
            "docker network create more && docker network rm more",
            "systemctl stop docker.socket docker && systemctl start docker",
        ),
        remove=(
            "docker rm --force web; docker network rm lab; systemctl disable --now docker docker.socket containerd"
        ),
    ),
    "nftables": Neighbour(
        packages=("nftables",),
        set_up=(
            f"cat >/etc/nftables.conf <<'CONF'\n{_NFTABLES_CONF}CONF\n"
            "systemctl enable nftables && systemctl restart nftables"
        ),
        at_work="nft list chain inet filter input | grep -q 'policy drop'",
        commands=tuple(
            f"systemctl {command} nftables" for command in ("restart", "stop", "start", "reload")
        ),
        silent=("nft -f /etc/nftables.conf",),
        remove="systemctl disable --now nftables",
    ),
}
