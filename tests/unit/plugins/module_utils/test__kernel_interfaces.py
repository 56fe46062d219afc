# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Interception's options, what they become, and the interfaces at which no packet ever comes in."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_parse as parse
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import Desired
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_interfaces import (
    bridge_warnings,
    refuse_interfaces,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_snapshot import (
    Record,
    Snapshot,
)

WEB: dict[str, t.Any] = {"ports": ["80"], "to_port": 3129}


def desired(*intercepts: dict[str, t.Any], **options: t.Any) -> Desired:
    return Desired.from_options({"intercepts": list(intercepts), **options})


@pytest.mark.parametrize(
    ("intercepts", "options", "where", "said"),
    [
        ([{**WEB, "ports": []}], {}, "intercepts[0].ports", "is empty"),
        ([{**WEB, "ports": ["0"]}], {}, "intercepts[0].ports", "'0' is neither a port"),
        ([{**WEB, "ports": ["65536"]}], {}, "intercepts[0].ports", "from 1 to 65535"),
        ([{**WEB, "ports": ["90-80"]}], {}, "intercepts[0].ports", "'90-80' is neither"),
        ([WEB, {**WEB, "ports": ["http"]}], {}, "intercepts[1].ports", "'http' is neither"),
        ([{**WEB, "to_port": 0}], {}, "intercepts[0].to_port", "0 is not a port"),
        ([{**WEB, "to_port": 70000}], {}, "intercepts[0].to_port", "70000 is not a port"),
        ([{**WEB, "to_port": 80}], {}, "intercepts[0].to_port", "(intercepts[0])"),
        (
            [WEB, {"ports": ["3000-4000"], "to_port": 5000}],
            {},
            "intercepts[1].ports",
            "3129 is where HAProxy listens for what is caught, and a caught port too (intercepts[0])",
        ),
        (
            [{"ports": ["81"], "to_port": 82}, {"ports": ["83"], "to_port": 81}],
            {},
            "intercepts[1].to_port",
            "81",
        ),
        (
            [WEB, {**WEB, "to_port": 3130}],
            {},
            "intercepts[1].ports",
            "caught by intercepts[0] already",
        ),
        (
            [
                {**WEB, "ports": ["70-90"]},
                {**WEB, "interfaces": ["front"], "sources": ["10.0.0.0/8"]},
            ],
            {},
            "intercepts[1].ports",
            "80 is caught by intercepts[0]",
        ),
        (
            [{**WEB, "destinations": ["10.0.0.1/8"]}],
            {},
            "intercepts[0].destinations",
            "has host bits set",
        ),
        ([{**WEB, "sources": ["web1"]}], {}, "intercepts[0].sources", "'web1' is no network"),
        (
            [{**WEB, "families": ["ipv6"]}],
            {"families": ["ipv4"]},
            "intercepts[0].families",
            "'ipv6' is not among",
        ),
        (
            [{**WEB, "families": ["ipv4", "ipv6"], "sources": ["10.0.0.0/8"]}],
            {},
            "intercepts[0].sources",
            "there is no ipv6 network among 10.0.0.0/8",
        ),
        (
            [{**WEB, "sources": ["fd00::/8"]}],
            {"families": ["ipv4"]},
            "intercepts[0].sources",
            "'fd00::/8' is ipv6",
        ),
        (
            [{**WEB, "sources": ["10.0.0.0/8"], "destinations": ["fd00::/8"]}],
            {},
            "intercepts[0].destinations",
            "in common",
        ),
        ([{**WEB, "interfaces": ["eth0/1"]}], {}, "intercepts[0].interfaces", "cannot be the name"),
        (
            [{**WEB, "interfaces": ["lo"]}],
            {},
            "intercepts[0].interfaces",
            "what this host itself sends",
        ),
    ],
)
def test_refused(
    intercepts: list[dict[str, t.Any]], options: dict[str, t.Any], where: str, said: str
) -> None:
    with pytest.raises(InputError) as caught:
        desired(*intercepts, **options)
    assert str(caught.value).startswith(f"{where}: ")
    assert said in str(caught.value)
    assert caught.value.details["option"] == where
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "second",
    [
        {"ports": ["80-81"]},
        {"interfaces": []},
        {"sources": ["10.1.0.0/16"]},
        {"destinations": ["192.0.2.2"]},
        {"families": ["ipv6"]},
    ],
)
def test_the_special_case_first_and_the_others_after_it(second: dict[str, t.Any]) -> None:
    first = {
        **WEB,
        "families": ["ipv4"],
        "interfaces": ["front"],
        "sources": ["10.0.0.0/16"],
        "destinations": ["192.0.2.1"],
    }
    assert (
        len(desired(first, {**first, **second} if "families" not in second else WEB).intercepts)
        == 2
    )


def test_networks_tell_the_family() -> None:
    (entry,) = desired({**WEB, "destinations": ["10.0.0.0/8", "10.0.0.0/8"]}).intercepts
    assert entry.families == ("ipv4",)
    assert entry.destinations == ("10.0.0.0/8",)


def test_the_record_keeps_it() -> None:
    wanted = desired(
        {**WEB, "sources": ["10.0.0.0/8"], "interfaces": ["front"]}, {**WEB, "ports": ["81"]}
    )
    assert Record.load(Record(desired=wanted).dump()).desired == wanted


def test_where_packets_come_in() -> None:
    """The ip rule and the socket rules have to be there too, or nothing caught is delivered."""
    front = {**WEB, "interfaces": ["front", "back"]}
    assert desired(front, interfaces=["back"]).incoming == ("back", "front")
    assert [rule.iif for rule in render.ip_rules(desired(front, interfaces=["back"]))] == [
        "back",
        "front",
    ]
    for anywhere in (desired(front), desired(front, {**WEB, "ports": ["81"]}, interfaces=["back"])):
        assert anywhere.incoming == ()
        assert [rule.iif for rule in render.ip_rules(anywhere)] == ["lo", None]


def test_the_rules() -> None:
    wanted = desired(
        {
            **WEB,
            "ports": ["8000-8010"],
            "interfaces": ["front"],
            "sources": ["10.0.0.0/8"],
            "destinations": ["192.0.2.1"],
        },
        mark="0x100",
        mask="0x300",
    )
    comment = "-m comment --comment clearproxy-tproxy-host"
    assert [rule.spec for rule in render.intercepts(wanted, "ipv4")] == [
        "-s 10.0.0.0/8 -d 192.0.2.1/32 -i front -p tcp -m tcp --dport 8000:8010 -m addrtype ! --dst-type LOCAL "
        f"{comment} -j TPROXY --on-port 3129 --on-ip 0.0.0.0 --tproxy-mark 0x100/0x300"
    ]
    assert render.intercepts(wanted, "ipv6") == ()
    assert [str(rule) for rule in render.nft_intercepts(wanted, "ipv4")] == [
        'iifname "front" ip saddr 10.0.0.0/8 ip daddr 192.0.2.1 tcp dport 8000-8010 fib daddr type != local '
        f'{verdict} comment "clearproxy-tproxy-host"'
        for verdict in (
            "tproxy ip to :3129 counter meta mark set meta mark & 0xfffffdff | 0x100 accept",
            "drop",
        )
    ]


LINKS = json.dumps(
    [
        {"ifname": "lo"},
        {
            "ifname": "br0",
            "linkinfo": {"info_kind": "bridge", "info_data": {"nf_call_iptables": 0}},
        },
        {
            "ifname": "br1",
            "linkinfo": {"info_kind": "bridge", "info_data": {"nf_call_iptables": 1}},
        },
        {"ifname": "eth1", "master": "br0", "linkinfo": {"info_slave_kind": "bridge"}},
        {"ifname": "eth2", "master": "bond0", "linkinfo": {"info_slave_kind": "bond"}},
        {"ifname": "bond0", "linkinfo": {"info_kind": "bond"}},
        {"ifname": "bond0.7", "link": "bond0", "linkinfo": {"info_kind": "vlan"}},
        {"ifname": "eth3", "master": "vrf1", "linkinfo": {"info_slave_kind": "vrf"}},
    ]
)


def snapshot(called: str = "0") -> Snapshot:
    return Snapshot(
        interfaces=parse.link_names(LINKS),
        parts=parse.link_parts(LINKS),
        bridges=parse.bridges(LINKS),
        sysctls={
            "net/bridge/bridge-nf-call-iptables": called,
            "net/bridge/bridge-nf-call-ip6tables": "0",
        },
    )


@pytest.mark.parametrize(
    ("interface", "said"),
    [
        (
            "eth1",
            "'eth1' is a port of the bridge 'br0', where its packets come in; give 'br0' instead",
        ),
        ("eth2", "'eth2' is a port of the bond 'bond0'"),
        ("eth9", "there is no interface 'eth9' on this host; there are: lo, br0"),
    ],
)
def test_no_packet_comes_in_there(interface: str, said: str) -> None:
    for option, wanted in (
        ("interfaces", desired(interfaces=["br0", interface])),
        ("intercepts[0].interfaces", desired({**WEB, "interfaces": [interface]})),
    ):
        with pytest.raises(InputError) as caught:
            refuse_interfaces(snapshot(), wanted)
        assert str(caught.value).startswith(f"{option}: {said}")


@pytest.mark.parametrize("interface", ["br0", "bond0", "bond0.7", "eth3"])
def test_packets_come_in_there(interface: str) -> None:
    refuse_interfaces(snapshot("1"), desired(interfaces=[interface]))
    refuse_interfaces(snapshot("0"), desired({**WEB, "interfaces": [interface]}))


def test_bridges_lose_what_is_caught() -> None:
    catching = desired({**WEB, "interfaces": ["br0"]})
    with pytest.raises(InputError, match=r"net\.bridge\.bridge-nf-call-iptables is 1; set it to 0"):
        refuse_interfaces(snapshot("1"), catching)
    refuse_interfaces(snapshot("0"), catching)
    off = {"net.bridge.bridge-nf-call-iptables": 0}
    refuse_interfaces(snapshot("1"), desired({**WEB, "interfaces": ["br0"]}, sysctls=off))
    refuse_interfaces(snapshot("1"), desired({**WEB, "interfaces": ["br0"], "families": ["ipv6"]}))
    with pytest.raises(InputError, match="own nf_call_iptables is 1; `ip link set br1 type bridge"):
        refuse_interfaces(snapshot("0"), desired({**WEB, "interfaces": ["br1"]}))
    # Of no interface in particular nobody knows whether it is a bridge.
    refuse_interfaces(snapshot("1"), desired(WEB))
    assert len(bridge_warnings(snapshot("1"), desired(WEB))) == 2
    assert len(bridge_warnings(snapshot("0"), desired(WEB))) == 1
    assert bridge_warnings(snapshot("1"), desired()) == ()
    assert bridge_warnings(snapshot("1"), None) == ()
