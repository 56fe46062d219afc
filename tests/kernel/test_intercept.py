# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Connections to any address pass through HAProxy on their way; what breaks that, and what must not be caught."""

from __future__ import annotations

import contextlib
import os
import typing as t
from pathlib import Path

import pytest
from hosts import COMMENT, Host, items
from intercepted import HAProxy, Routed, ask, serve, start

from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_config import make_plan

FIREWALLS = ["iptables", "nftables"]
CATCH: list[dict[str, t.Any]] = [{"ports": ["80"], "to_port": 3129}]
BOUND: list[dict[str, t.Any]] = [{**CATCH[0], "interfaces": ["front"]}]
SERVERS = ("10.9.2.11", "fd09:2::11")

EXTRA = (
    "ip address add 10.9.{net}.{number}/24 dev {device}\n"
    "ip address add fd09:{net}::{number}/64 dev {device} nodad preferred_lft 0"
)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Routed]:
    if os.geteuid() != 0:
        pytest.fail("run as root: these tests make network namespaces")
    with contextlib.closing(Routed(tmp_path_factory.mktemp("routed"))) as made:
        # Not the address that they would take by themselves.
        made.server.sh(EXTRA.format(net=2, number=12, device="back"))
        made.client.sh(EXTRA.format(net=1, number=99, device="front"))
        serve(made.proxy, 22, 80)
        serve(made.server, 80, 81, 443, 3129, 8001)
        yield made


@pytest.fixture
def haproxy(network: Routed, tmp_path: Path) -> t.Iterator[HAProxy]:
    started = start(network.proxy, tmp_path, any=3129, other=3130)
    yield started
    started.stop()


def answers(network: Routed, port: int, **how: t.Any) -> list[str | None]:
    return [ask(network.client, address, port, **how) for address in SERVERS]


def seen(port: int) -> list[str]:
    return [f"10.9.1.11 10.9.2.11 {port}", f"fd09:1::11 fd09:2::11 {port}"]


def logged(port: int, frontend: str = "any") -> list[str]:
    return [
        f"{frontend} 10.9.1.11 10.9.2.11 {port}",
        f"{frontend}6 fd09:1::11 fd09:2::11 {port}",
    ]


@pytest.mark.parametrize(
    ("version", "firewall", "options"),
    [
        ("2.2", "iptables", {"intercepts": CATCH, "interfaces": ["back"]}),
        ("3.2", "iptables", {"intercepts": BOUND, "interfaces": ["back"]}),
        ("2.2", "nftables", {"intercepts": BOUND, "interfaces": ["back"]}),
        ("3.4", "nftables", {"intercepts": CATCH}),
    ],
)
def test_haproxy_gets_the_port_and_nothing_else(
    network: Routed, tmp_path: Path, version: str, firewall: str, options: dict[str, t.Any]
) -> None:
    options = {**options, "firewall": firewall}
    running = start(network.proxy, tmp_path, version)
    try:
        # The control: without the rules, HAProxy sees nothing of it.
        network.proxy.module(state="absent")
        network.proxy.sh("echo 1 | tee /proc/sys/net/ipv*/conf/all/forwarding")
        assert answers(network, 80) == seen(80)
        assert running.expect(0) == []

        assert items(network.proxy.module(**options))
        assert items(network.proxy.module(check=True, **options)) == []
        assert answers(network, 80) == seen(80)
        assert running.expect(2) == logged(80)
        assert answers(network, 81) == seen(81)
        # HAProxy's own port number means nothing at other hosts.
        assert answers(network, 3129) == seen(3129)
        assert running.expect(2) == logged(80)

        # Forwarding is for what passes around HAProxy.
        network.proxy.sh("echo 0 | tee /proc/sys/net/ipv*/conf/all/forwarding")
        assert answers(network, 80) == seen(80)
        assert running.expect(4) == logged(80) * 2
        assert ask(network.client, SERVERS[0], 81, seconds=1) is None
    finally:
        running.stop()


def role(source: str, directory: Path) -> str:
    """The configuration that haproxy_affinity writes for interception."""
    families = {"any": ("0.0.0.0", "address"), "any6": ("::", "address_ipv6")}
    plan = make_plan(
        {
            "frontends": [
                {
                    "name": name,
                    "mode": "tcp",
                    "binds": [{"address": address, "port": 3129, "transparent": True}],
                    "raw": ['log-format "%f %ci %[dst] %[dst_port]"'],
                    "default_backend": f"{name}_wanted",
                }
                for name, (address, _key) in families.items()
            ],
            "backends": [
                {
                    "name": f"{name}_wanted",
                    "mode": "tcp",
                    "transparent": source,
                    "servers": [{"name": "original", key: address}],
                }
                for name, (address, key) in families.items()
            ],
            "global": {"log": ["stdout format raw local0"], "maxconn": 50},
            "admin_socket": {"path": f"{directory}/admin.sock"},
        },
        {},
        (2, 2),
        {},
    )
    assert plan.problems == []
    return (
        "".join(
            "\n    ".join([section["header"], *section["lines"]]) + "\n\n"
            for section in plan.sections
        )
        .replace("user haproxy", "user root")
        .replace("group haproxy", "group root")
    )


@pytest.mark.parametrize(
    ("source", "clients"),
    [("clientip", ["10.9.1.11", "fd09:1::11"]), ("none", ["10.9.2.2", "fd09:2::2"])],
)
def test_the_configuration_of_the_role(
    network: Routed, tmp_path: Path, source: str, clients: list[str]
) -> None:
    """What haproxy_affinity writes is the other half; who connects to HAProxy's own port gets no loop."""
    network.proxy.module(intercepts=CATCH)
    running = start(network.proxy, tmp_path, "2.2", text=role(source, tmp_path))
    try:
        assert answers(network, 80) == [
            f"{client} {server} 80" for client, server in zip(clients, SERVERS)
        ]
        assert running.expect(2) == logged(80)
        for address in ("10.9.1.2", "fd09:1::2"):
            assert ask(network.client, address, 3129, seconds=1) is None
        # Rejected once each; a loop would be logged again and again.
        direct = [line for line in running.log() if line not in logged(80)]
        assert len(direct) <= 2
        assert running.log()[:2] == logged(80)
    finally:
        running.stop()


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_several_ports_of_haproxy(network: Routed, haproxy: HAProxy, firewall: str) -> None:
    options = {
        "firewall": firewall,
        "intercepts": [*CATCH, {"ports": ["443", "8000-8010"], "to_port": 3130}],
    }
    network.proxy.module(**options)
    assert items(network.proxy.module(**options)) == []
    expected: list[str] = []
    for port, frontend in ((80, "any"), (443, "other"), (8001, "other")):
        assert answers(network, port) == seen(port)
        expected += logged(port, frontend)
        assert haproxy.expect(len(expected)) == expected


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_a_mark_of_some_bits_of_the_mask(network: Routed, haproxy: HAProxy, firewall: str) -> None:
    """Bits of the mask that the mark lacks are cleared, bits outside are left to others."""
    options = {"firewall": firewall, "mark": "0x10", "mask": "0x30", "intercepts": CATCH}
    network.proxy.module(**options)
    assert items(network.proxy.module(**options)) == []
    others = "type filter hook {} priority {}; meta mark"
    network.proxy.run(
        "nft",
        "table inet theirs {"
        f" chain before {{ {others.format('prerouting', -300)} set 0x4021; }};"
        f" chain after {{ {others.format('input', 0)} & 0x4fff 0x4011 counter; }}; }}",
    )
    try:
        assert answers(network, 80) == seen(80)
        assert haproxy.expect(2) == logged(80)
        assert "counter packets 0" not in network.proxy.sh("nft list table inet theirs")
        # Past the marks.
        assert answers(network, 81) == seen(81)
        network.proxy.sh("ip rule del priority 101; ip -6 rule del priority 101")
        assert answers(network, 80, seconds=1) == [None, None]
    finally:
        network.proxy.sh("nft delete table inet theirs")
        network.proxy.module(**options)


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_a_part_of_the_traffic(network: Routed, haproxy: HAProxy, firewall: str) -> None:
    """One server's, from one client; the other server and the other client notice nothing."""
    network.proxy.module(
        firewall=firewall,
        intercepts=[
            {
                **CATCH[0],
                "destinations": ["10.9.2.11", "fd09:2::11"],
                "sources": ["10.9.1.8/29", "fd09:1::10/124"],
            }
        ],
    )
    assert answers(network, 80) == seen(80)
    assert haproxy.expect(2) == logged(80)
    for address in ("10.9.2.12", "fd09:2::12"):
        assert ask(network.client, address, 80) == f"{ask_address(address)} {address} 80"
    for address, own in (("10.9.2.11", "10.9.1.99"), ("fd09:2::11", "fd09:1::99")):
        assert ask(network.client, address, 80, own=own) == f"{own} {address} 80"
    assert haproxy.expect(2) == logged(80)


def ask_address(server: str) -> str:
    return "fd09:1::11" if ":" in server else "10.9.1.11"


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_services_of_the_proxy_itself_stay_reachable(
    network: Routed, haproxy: HAProxy, firewall: str
) -> None:
    """Every port is caught, and somebody still has to log in; what comes for HAProxy's port is no loop."""
    network.proxy.module(
        firewall=firewall, intercepts=[{"ports": ["1-3128", "3131-65535"], "to_port": 3129}]
    )
    for port in (22, 80):
        # Also by the address on the far side, which is routed like any other's.
        for address in ("10.9.1.2", "fd09:1::2", "10.9.2.2", "fd09:2::2"):
            answer = ask(network.client, address, port)
            assert answer == f"{ask_address(address)} {address} {port}"
    assert haproxy.expect(0) == []
    assert answers(network, 81) == seen(81)
    assert haproxy.expect(2) == logged(81)
    for address in ("10.9.1.2", "fd09:1::2"):
        assert ask(network.client, address, 3129) is None
    assert haproxy.expect(2)


# What a hand may do to the proxy; the items that then are not as wanted; whether the families still get through HAProxy.
TPROXY = "PREROUTING -i front -p tcp -m tcp --dport 80 -m addrtype ! --dst-type LOCAL"
BREAKAGES: dict[str, tuple[str, str, list[str], set[str]]] = {
    "rule gone": (
        "iptables",
        f"iptables -t mangle -D {TPROXY} {COMMENT} -j TPROXY --on-port 3129 --tproxy-mark 1/1",
        ["ipv4 intercept 80 on front"],
        {"ipv4"},
    ),
    "wrong port, IPv6": (
        "iptables",
        f"ip6tables -t mangle -R PREROUTING 5 {TPROXY.split(' ', 1)[1]} {COMMENT}"
        " -j TPROXY --on-port 3128 --tproxy-mark 1/1",
        ["ipv6 intercept 80 on front"],
        {"ipv6"},
    ),
    "own addresses too": (
        "iptables",
        f"iptables -t mangle -R PREROUTING 5 {TPROXY.split(' ', 1)[1].split(' -m addrtype')[0]} {COMMENT}"
        " -j TPROXY --on-port 3129 --tproxy-mark 1/1",
        ["ipv4 intercept 80 on front"],
        set(),
    ),
    "before the sockets": (
        "iptables",
        f"iptables -t mangle -D {TPROXY} {COMMENT} -j TPROXY --on-port 3129 --tproxy-mark 1/1;"
        f"iptables -t mangle -I {TPROXY} {COMMENT} -j TPROXY --on-port 3129 --tproxy-mark 1/1",
        [
            "ipv4 mangle PREROUTING tcp on back",
            "ipv4 mangle PREROUTING icmp on back",
            "ipv4 mangle PREROUTING tcp on front",
            "ipv4 mangle PREROUTING icmp on front",
        ],
        set(),
    ),
    "ip rule of the clients' side": (
        "iptables",
        "ip rule del priority 101 iif front",
        ["ipv4 rule 101 on front"],
        {"ipv4"},
    ),
    "ip rule of the clients' side, IPv6": (
        "nftables",
        "ip -6 rule del priority 101 iif front",
        ["ipv6 rule 101 on front"],
        {"ipv6"},
    ),
    "nft rule gone": (
        "nftables",
        "nft delete rule inet haproxy_tproxy DIVERT handle $(nft -a list chain inet haproxy_tproxy DIVERT"
        " | sed -n '/tproxy ip to/s/.*handle //p')",
        ["ipv4 intercept 80 on front"],
        {"ipv4"},
    ),
    "nft rule with a wrong port": (
        "nftables",
        "nft -s list table inet haproxy_tproxy | sed 's/tproxy ip6 to :3129/tproxy ip6 to :3128/' >/tmp/changed.nft;"
        "nft delete table inet haproxy_tproxy; nft -f /tmp/changed.nft; rm /tmp/changed.nft",
        ["ipv6 intercept 80 on front"],
        {"ipv6"},
    ),
    "nft rule for when HAProxy is away": (
        "nftables",
        "nft delete rule inet haproxy_tproxy DIVERT handle $(nft -a list chain inet haproxy_tproxy DIVERT"
        " | sed -n '/ipv4.*drop/s/.*handle //p')",
        ["ipv4 intercept 80 on front, without HAProxy"],
        set(),
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_each_breakage_is_named_exactly_and_repaired(
    network: Routed, haproxy: HAProxy, name: str
) -> None:
    firewall, script, expected, broken = BREAKAGES[name]
    options = {"firewall": firewall, "intercepts": BOUND, "interfaces": ["back"]}
    network.proxy.module(**options)
    network.proxy.sh(script)
    found = network.proxy.module(**options, check=True)
    assert items(found) == expected
    caught = 0
    for family, address in zip(("ipv4", "ipv6"), SERVERS):
        ask(network.client, address, 80, seconds=5 if family not in broken else 1)
        caught += family not in broken
    haproxy.expect(caught)
    repaired = network.proxy.module(**options)
    assert repaired["changes"] == found["changes"]
    assert answers(network, 80) == seen(80)
    haproxy.expect(caught + 2)


def test_the_boot_files_do_what_the_module_does(network: Routed, haproxy: HAProxy) -> None:
    for firewall in FIREWALLS:
        options = {"firewall": firewall, "intercepts": BOUND, "interfaces": ["back"]}
        network.proxy.module(**options)
        network.proxy.sh("tproxy-host stop")
        assert "3129" not in network.proxy.sh("iptables-save; ip6tables-save; nft list ruleset")
        network.proxy.sh("tproxy-host start; tproxy-host start")
        assert items(network.proxy.module(**options, check=True)) == []
        assert answers(network, 80) == seen(80)
    haproxy.expect(4)


def test_absent_leaves_nothing(host: Host) -> None:
    before = host.state()
    for number, firewall in enumerate(FIREWALLS * 2):
        host.module(
            firewall=firewall,
            interfaces=["back"] if number % 2 else [],
            intercepts=[
                {"ports": ["80", "8000-8010"], "to_port": 3129, "interfaces": ["front"]},
                {
                    "ports": ["80"],
                    "to_port": 3130 + number,
                    "sources": ["10.0.0.0/8", "10.1.2.3"],
                    "destinations": ["192.0.2.1"],
                },
            ][: 1 + number // 2],
        )
    assert items(host.module(state="absent"))
    assert host.state() == before


# The kernel here has it all, so programs that say what a smaller kernel makes them say stand before the real ones.
SMALLER = r"""
for i in iptables ip6tables; do
printf '#!/bin/sh\ncase "$*" in *TPROXY*) echo "Warning: Extension TPROXY is not supported, missing kernel module?" >&2; exit 4;; esac\n'\
'exec /usr/sbin/%s "$@"\n' $i >/usr/local/sbin/$i
printf '#!/bin/sh\ntext=$(cat); case "$text" in *TPROXY*) echo "%s-restore: line 9 failed" >&2; exit 1;; esac\n'\
'echo "$text" | exec /usr/sbin/%s-restore "$@"\n' $i $i >/usr/local/sbin/$i-restore
done
printf '#!/bin/sh\n[ "$1" = -f ] || exec /usr/sbin/nft "$@"\ntext=$(cat)\n'\
'case "$text" in *tproxy*\ to\ :*) echo "Error: Could not process rule: No such file or directory" >&2; exit 1;; esac\n'\
'echo "$text" | exec /usr/sbin/nft "$@"\n' >/usr/local/sbin/nft
chmod 755 /usr/local/sbin/*
"""


@pytest.mark.parametrize(
    ("firewall", "symbol"),
    [("iptables", "NETFILTER_XT_TARGET_TPROXY"), ("nftables", "NFT_TPROXY and NF_TPROXY_IPV4")],
)
def test_a_kernel_without_it_is_refused(host: Host, firewall: str, symbol: str) -> None:
    host.sh(SMALLER)
    before = host.state()
    for check in (True, False):
        refused = host.module(firewall=firewall, intercepts=CATCH, check=check)
        assert refused["missing"] == symbol
        assert f"CONFIG_{symbol}" in refused["msg"]
    assert host.state() == before
    # Without intercepts nothing of it is needed.
    assert items(host.module(firewall=firewall))


@pytest.mark.parametrize("firewall", FIREWALLS)
@pytest.mark.parametrize("bound", [False, True], ids=["guard", "bound"])
def test_other_softwares_mark_sysctls_do_no_harm(
    network: Routed, haproxy: HAProxy, firewall: str, bound: bool
) -> None:
    """tcp_fwmark_accept marks the socket's own answers, which without guard or bound rule go to lo."""
    keys = ("ipv4/conf/all/src_valid_mark", "ipv4/tcp_fwmark_accept")
    options: dict[str, t.Any] = {"firewall": firewall, "intercepts": BOUND if bound else CATCH}
    network.proxy.module(**options, interfaces=["back"] if bound else [])
    network.proxy.sh("".join(f"echo 1 >/proc/sys/net/{key}\n" for key in keys))
    try:
        assert answers(network, 80) == seen(80)
        assert haproxy.expect(2) == logged(80)
        if not bound:
            network.proxy.sh("ip rule del priority 100; ip -6 rule del priority 100")
            assert answers(network, 80, seconds=1) == [None, None]
    finally:
        network.proxy.sh("".join(f"echo 0 >/proc/sys/net/{key}\n" for key in keys))


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_without_haproxy_nothing_slips_past_it(
    network: Routed, haproxy: HAProxy, tmp_path: Path, firewall: str
) -> None:
    network.proxy.module(firewall=firewall, intercepts=CATCH)
    haproxy.stop()
    assert answers(network, 80, seconds=1) == [None, None]
    assert answers(network, 81) == seen(81)
    again = start(network.proxy, tmp_path)
    try:
        assert answers(network, 80) == seen(80)
        assert again.expect(2) == logged(80)
    finally:
        again.stop()


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_large_answers_reach_clients_behind_a_smaller_mtu(tmp_path: Path, firewall: str) -> None:
    """Routers complain to the address that the client wanted: the proxy has to hear it where clients come in."""
    with contextlib.closing(Routed(tmp_path, client_mtu=1400)) as network:
        serve(network.server, 80)
        running = start(network.proxy, tmp_path)
        try:
            network.proxy.module(firewall=firewall, intercepts=BOUND, interfaces=["back"])
            for address in SERVERS:
                answer = ask(network.client, address, 80, size=100_000)
                assert answer is not None
                assert len(answer) > 100_000
            assert len(running.expect(2)) == 2
            if firewall == "iptables":
                # The control: without the ICMP rules of that side the answers get stuck.
                network.proxy.sh(
                    f"iptables -t mangle -D PREROUTING -i front -p icmp -m socket --transparent {COMMENT} -j DIVERT\n"
                    f"ip6tables -t mangle -D PREROUTING -i front -p icmpv6 -m socket --transparent {COMMENT}"
                    " -j DIVERT\nip route flush cache; ip -6 route flush cache"
                )
                for address in SERVERS:
                    assert ask(network.client, address, 80, size=100_000, seconds=1) is None
        finally:
            running.stop()
