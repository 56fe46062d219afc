# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Parsers, on what real programs of several versions said."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_parse as parse
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import Desired
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    IpRule,
    Route,
    TableName,
)

RECORDED = Path(__file__).parent.parent / "fixtures" / "kernel"
VERSIONS = sorted(path.name for path in RECORDED.iterdir())


@pytest.fixture(params=VERSIONS)
def recorded(request: pytest.FixtureRequest) -> Path:
    return RECORDED / str(request.param)


def test_there_are_recordings() -> None:
    assert len(VERSIONS) >= 3


@pytest.mark.parametrize(
    ("family", "file"), [("ipv4", "iptables-save"), ("ipv6", "ip6tables-save")]
)
def test_our_rules_are_recognised_in_every_version(recorded: Path, family: str, file: str) -> None:
    """What was typed comes back in the very form that the renderer makes, and is known to be ours."""
    tables = parse.iptables_save((recorded / file).read_text())
    desired = Desired(interfaces=("back",))
    assert set(tables) == {"filter", "mangle", "nat"}
    mangle = tables["mangle"]
    assert mangle.in_chain("DIVERT") == render.chain_rules(desired)
    assert mangle.in_chain("PREROUTING")[:2] == render.jumps(desired, family)
    assert [rule.owned for rule in mangle.in_chain("PREROUTING")] == [True, True, False, False]
    assert "DIVERT" in mangle.chains


def test_rules_of_others_keep_their_words(recorded: Path) -> None:
    rule = parse.iptables_save((recorded / "iptables-save").read_text())["mangle"].in_chain(
        "PREROUTING"
    )[2]
    assert rule.value("--comment") == 'it is "theirs", 100 %'
    assert rule.value("--set-xmark") == "0x4000/0xffffffff"
    assert rule.target == "MARK"
    assert parse.filter_rule(str(rule)) == rule


def test_counters_and_protocol_numbers() -> None:
    plain = parse.filter_rule("-A PREROUTING -p icmpv6 -j DIVERT")
    for line in (
        "[12:3456] -A PREROUTING -p ipv6-icmp -j DIVERT",
        "-A PREROUTING -p 58 -j DIVERT",
        '-A PREROUTING -p "icmpv6" -j DIVERT',
    ):
        assert parse.filter_rule(line) == plain


@pytest.mark.parametrize(
    "text", ["-A PREROUTING -j X", "*mangle\nnonsense", '*mangle\n-A X "', "*t\n-A"]
)
def test_what_is_not_iptables_save_is_refused_with_the_line(text: str) -> None:
    with pytest.raises(Error, match="cannot understand this line of iptables-save"):
        parse.iptables_save(text)


def test_ip_rules(recorded: Path) -> None:
    rules = parse.ip_rules((recorded / "ip4-rule").read_text())
    assert rules[1:4] == (
        IpRule(100, 254, 1, 1, iif="lo"),
        IpRule(101, 100, 1, 1, iif="back"),
        # Its interface is gone: the rule is the same.
        IpRule(101, 100, 1, 1, iif="gone"),
    )
    assert rules[4] == IpRule(5000, 51820, 0xCA6C, inverted=True, protocol=0)
    assert rules[5].source == "10.0.0.0/8"
    assert dict(rules[5].other)["sport"] == "80"
    assert rules[6].table is None
    assert rules[6].mark == 7
    assert rules[7].other == (("suppress_prefixlen", "0"),)
    six = parse.ip_rules((recorded / "ip6-rule").read_text())
    assert IpRule(101, 100, 1, 1) in six


def test_names_where_numbers_were_asked_for() -> None:
    text = '[{"priority":101,"src":"all","fwmark":"0x1","fwmask":"0x1","table":"mine","protocol":"kernel"}]'
    assert parse.ip_rules(text, [TableName(100, "mine", "x")]) == (IpRule(101, 100, 1, 1),)


def test_ip_routes(recorded: Path) -> None:
    four = parse.ip_routes((recorded / "ip4-route-100").read_text())
    assert four[0] == render.route(Desired(), "ipv4")
    assert four[1] == Route("unicast", "203.0.113.0/24", "back", protocol=3)
    assert parse.ip_routes((recorded / "ip6-route-100").read_text()) == (
        render.route(Desired(), "ipv6"),
    )


def test_default_routes(recorded: Path) -> None:
    first, several = parse.ip_routes((recorded / "ip4-route-default").read_text())
    assert (first.gateway, first.metric, first.protocol) == ("10.9.2.1", 100, 16)
    assert several.gateway is None
    six = parse.ip_routes((recorded / "ip6-route-default").read_text())
    assert (six[0].gateway, six[0].metric) == ("fd09:2::1", 1)
    assert {route.protocol for route in six if route.gateway == "fe80::1"} == {9}


def test_route_texts(recorded: Path) -> None:
    assert parse.route_texts((recorded / "ip4-route-default.txt").read_text()) == (
        "default via 10.9.2.1 dev back proto dhcp src 10.9.2.11 metric 100",
        "default proto static metric 200 nexthop via 10.9.2.2 dev back weight 1 "
        "nexthop via 10.9.2.3 dev back weight 1",
    )
    text = "default via fe80::1 dev x proto ra metric 1024 expires 899sec linkdown pref medium"
    assert parse.route_texts(text) == (
        "default via fe80::1 dev x proto ra metric 1024 pref medium",
    )


def test_addresses_and_links(recorded: Path) -> None:
    found = parse.addresses((recorded / "ip-address").read_text())
    assert "10.9.2.11/24 back" in [f"{entry.address} {entry.interface}" for entry in found]
    assert "fd09:2::11/64 back" in [f"{entry.address} {entry.interface}" for entry in found]
    assert {"lo", "back", "eth0.7"} <= set(parse.link_names((recorded / "ip-link").read_text()))


def test_rt_tables() -> None:
    text = "# comment\n255 local\n\n0x64\tmine # ours\nx y\n7\n"
    assert parse.rt_tables(text, "f") == (TableName(255, "local", "f"), TableName(100, "mine", "f"))


@pytest.mark.parametrize("text", ["", "[]", "[ ]\n", "[{},{}]"])
def test_nothing_is_nothing(text: str) -> None:
    assert parse.ip_routes(text) == ()


@pytest.mark.parametrize("text", ["[", '{"a": 1}', "Object not found"])
def test_broken_json_is_refused(text: str) -> None:
    with pytest.raises(Error, match="cannot understand the answer of `ip -j rule`"):
        parse.ip_rules(text)
