# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is in the way: marks of others that are ours too, or that nobody knows, and a family that is not there."""

from __future__ import annotations

import typing as t

import pytest
from hosts import Host, items

MAP = "map m { type ipv4_addr : mark; elements = { 192.0.2.9 : 0x1 }; };"


class Case(t.NamedTuple):
    words: str
    # refused, warned or nothing
    outcome: str
    hook: str = "output"
    interfaces: tuple[str, ...] = ("eth1",)
    mark: str = "0x1"


CASES = {
    "a named map": Case("meta mark set ip daddr map @m", "warned"),
    "a named map, other bits": Case("meta mark set ip daddr map @m", "warned", mark="0x4000"),
    "a map in place": Case("meta mark set ip daddr map { 192.0.2.9 : 0x1 }", "refused"),
    "a map in place, other bits": Case("meta mark set ip daddr map { 192.0.2.9 : 0x6 }", "nothing"),
    "saved and restored": Case("ct mark set ip daddr map @m; meta mark set ct mark", "warned"),
    # What comes later in the way of our packets and overwrites the mark.
    "another interface that begins alike": Case(
        "iifname eth10 meta mark set 0x4000", "nothing", "prerouting"
    ),
    "ours": Case("iifname eth1 meta mark set 0x4000", "refused", "prerouting"),
    "the other way round": Case(
        "iifname eth1 meta mark set 0x4000", "nothing", "prerouting", ("eth10",)
    ),
    "a set with ours": Case(
        "iifname { eth10, eth1 } meta mark set 0x4000", "refused", "prerouting"
    ),
    "a set without ours": Case(
        "iifname { eth10, lo } meta mark set 0x4000", "nothing", "prerouting"
    ),
    "by number": Case("iif eth10 meta mark set 0x4000", "nothing", "prerouting"),
    "by number, ours": Case("iif eth1 meta mark set 0x4000", "refused", "prerouting"),
    "a pattern with ours": Case('iifname "eth*" meta mark set 0x4000', "refused", "prerouting"),
    "all but another": Case("iifname != eth10 meta mark set 0x4000", "refused", "prerouting"),
}


@pytest.fixture
def named(host: Host) -> Host:
    host.sh("ip link add eth1 type veth peer name eth10; ip link set eth1 up; ip link set eth10 up")
    return host


@pytest.mark.parametrize("name", CASES)
def test_marks_of_others(named: Host, name: str) -> None:
    case = CASES[name]
    chain = f"chain c {{ type filter hook {case.hook} priority 0; {case.words}; }};"
    named.run("nft", f"table ip theirs {{ {MAP} {chain} }}")
    options = {"interfaces": list(case.interfaces), "mark": case.mark, "mask": case.mark}
    answer = named.module(check=True, **options)
    if case.outcome == "refused":
        assert answer.get("option") == "mark", answer
        return
    assert items(answer)
    said = [text for text in answer["warnings"] if text.startswith("mark: the nft rule '")]
    assert len(said) == (1 if case.outcome == "warned" else 0), answer["warnings"]


# sysctls of the other families only, as where the kernel was started with ipv6.disable=1.
NO_IPV6 = """
mkdir -p /usr/local/net
cd /proc/sys/net
for family in *; do
    [ "$family" != ipv6 ] || continue
    mkdir /usr/local/net/$family
    mount --bind $family /usr/local/net/$family
done
mount --rbind /usr/local/net /proc/sys/net
"""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (NO_IPV6, "families: the kernel of this host has no ipv6 (/proc/sys/net/ipv6 is missing)"),
        (
            "echo 1 >/proc/sys/net/ipv6/conf/lo/disable_ipv6",
            "families: ipv6 is switched off on this host (net.ipv6.conf.lo.disable_ipv6 is 1)",
        ),
    ],
    ids=["kernel without it", "switched off"],
)
@pytest.mark.parametrize("firewall", ["iptables", "nftables"])
def test_a_family_that_the_host_lacks(host: Host, script: str, said: str, firewall: str) -> None:
    host.sh(script)
    before = host.state()
    for check in (True, False):
        refused = host.module(check=check, firewall=firewall)
        assert refused.get("option") == "families", refused
        assert refused["msg"].startswith(said)
    (info,) = host.modules(
        ("tproxy_info", {"check": True, "gather": ["kernel"], "rules": {"firewall": firewall}})
    )
    assert [
        (check["family"], check["observed"].startswith(said))
        for check in info["checks"]
        if check["name"] == "kernel_support" and check["status"] == "failed"
    ] == [("ipv6", True)]
    assert host.state() == before
    # The other one is had without it, and nothing of it is looked at.
    assert items(host.module(families=["ipv4"], firewall=firewall))
    assert items(host.module(families=["ipv4"], firewall=firewall, check=True)) == []
    host.sh("tproxy-host check")
    assert items(host.module(state="absent"))
    assert host.state() == before
