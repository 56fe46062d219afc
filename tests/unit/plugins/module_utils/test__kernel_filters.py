# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules of others, in the words of iptables-save and in the JSON of nft, and what they do with one packet."""

from __future__ import annotations

import json
import typing as t
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_filters as filters
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import Desired

ANSWER = filters.Packet(
    "ipv4", "10.9.2.11", "192.0.2.77", iif="back", sport=8080, mark=1, state="established"
)
REQUEST = filters.Packet(
    "ipv4", "192.0.2.77", "10.9.2.11", oif="back", dport=8080, state="new", uid=65534
)


def iptables(*rules: str, table: str = "filter", policy: str = "ACCEPT") -> t.Any:
    chains = "INPUT OUTPUT POSTROUTING PREROUTING"
    text = f"*{table}\n" + "".join(f":{chain} {policy} [0:0]\n" for chain in chains.split())
    names = {rule.split()[1] for rule in rules} - set(chains.split())
    text += "".join(f":{name} - [0:0]\n" for name in sorted(names))
    text += "".join(f"{rule}\n" for rule in rules) + "COMMIT\n"
    return filters.iptables_rulesets(text, "iptables", "ipv4")


def dropped(*rules: str, policy: str = "ACCEPT", packet: filters.Packet = ANSWER) -> bool | None:
    rulesets = iptables(*rules, policy=policy)
    return filters.verdict_of(rulesets, "input", packet, filters.DROP)[0]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], False),
        (["-A INPUT -j DROP"], True),
        (["-A INPUT -j REJECT --reject-with icmp-port-unreachable"], True),
        (["-A INPUT -i back -j ACCEPT", "-A INPUT -j DROP"], False),
        (["-A INPUT -i ba+ -j ACCEPT", "-A INPUT -j DROP"], False),
        (["-A INPUT -i lo -j ACCEPT", "-A INPUT -j DROP"], True),
        (["-A INPUT ! -i back -j DROP"], False),
        (["-A INPUT -p udp -j DROP"], False),
        (["-A INPUT -p tcp -m tcp --sport 8080 -j DROP"], True),
        (["-A INPUT -p tcp -m tcp --sport 8000:8100 -j DROP"], True),
        (["-A INPUT -p tcp -m multiport --sports 80,443 -j DROP"], False),
        (["-A INPUT -s 10.9.2.0/24 -j DROP"], True),
        (["-A INPUT -s 10.9.3.0/24 -j DROP"], False),
        (["-A INPUT -d 10.0.0.0/8 -j DROP"], False),
        (["-A INPUT -m mark --mark 0x1/0x1 -j ACCEPT", "-A INPUT -j DROP"], False),
        (["-A INPUT -m mark --mark 0x2/0x2 -j ACCEPT", "-A INPUT -j DROP"], True),
        (["-A INPUT -m mark ! --mark 0x4000/0x4000 -j RETURN", "-A INPUT -j DROP"], False),
        (["-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-A INPUT -j DROP"], False),
        (["-A INPUT -m state --state NEW -j ACCEPT", "-A INPUT -j DROP"], True),
        (["-A INPUT -m addrtype ! --dst-type LOCAL -j DROP"], True),
        (["-A INPUT -m addrtype --dst-type LOCAL -j DROP"], False),
        (["-A INPUT -m socket --transparent -j ACCEPT", "-A INPUT -j DROP"], False),
        (["-A INPUT -m limit --limit 3/min -j LOG --log-prefix x", "-A INPUT -j ACCEPT"], False),
        (["-A INPUT -m limit --limit 3/min -j ACCEPT", "-A INPUT -j DROP"], None),
        (["-A INPUT -m recent --update --seconds 60 --name x -j DROP"], None),
        (["-A INPUT -j MINE", "-A MINE -j RETURN", "-A MINE -j DROP"], False),
        (["-A INPUT -j MINE", "-A INPUT -j DROP", "-A MINE -i back -j ACCEPT"], False),
        (["-A INPUT -g MINE", "-A INPUT -j DROP", "-A MINE -i x -j ACCEPT"], False),
        (["-A INPUT -g MINE", "-A MINE -i x -j ACCEPT", "-A MINE -j DROP"], True),
        (["-A INPUT -j NFQUEUE --queue-num 1", "-A INPUT -j DROP"], None),
        (["-A INPUT -j MINE", "-A MINE -j MINE"], None),
        (["-A INPUT -j GONE"], None),
        # Ours, in whatever chain: not a rule of others.
        (["-A INPUT -m comment --comment clearproxy-tproxy-host -j DROP"], False),
    ],
)  # fmt: skip
def test_iptables_input(rules: list[str], expected: bool | None) -> None:
    assert dropped(*rules) is expected


def test_iptables_policy() -> None:
    assert dropped(policy="DROP") is True
    assert dropped("-A INPUT -p tcp -j ACCEPT", policy="DROP") is False
    assert dropped("-A INPUT -m limit --limit 3/min -j ACCEPT", policy="DROP") is None


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["-A POSTROUTING -o back -j MASQUERADE"], True),
        (["-A POSTROUTING -o front -j MASQUERADE"], False),
        (["-A POSTROUTING -j SNAT --to-source 10.9.2.2"], True),
        (["-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"], False),
        (["-A POSTROUTING -m owner --uid-owner 65534 -j ACCEPT", "-A POSTROUTING -j MASQUERADE"], False),
        (["-A POSTROUTING -m owner --uid-owner 33 -j ACCEPT", "-A POSTROUTING -j MASQUERADE"], True),
        (["-A POSTROUTING -m set --match-set x src -j MASQUERADE"], None),
        (["-A POSTROUTING -m set ! --match-set x src -j MASQUERADE"], None),
        (["-A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN", "-A POSTROUTING -j MASQUERADE"], False),
    ],
)  # fmt: skip
def test_iptables_masquerading(rules: list[str], expected: bool | None) -> None:
    rulesets = iptables(*rules, table="nat")
    answer = filters.verdict_of(rulesets, "postrouting", REQUEST, filters.SNAT, kind="nat")
    assert answer[0] is expected
    assert bool(answer[1]) == (expected is not False)


def nft(*expressions: t.Any, hook: str = "input", policy: str = "accept", **more: t.Any) -> t.Any:
    chain = {
        **{"family": "inet", "table": "t", "name": "c", "type": "filter", "prio": 0},
        **{"hook": hook, "policy": policy, **more},
    }
    place = {"family": "inet", "table": "t", "chain": "c"}
    entries: list[dict[str, t.Any]] = [
        {"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "inet", "name": "t"}},
        {"set": {"family": "inet", "table": "t", "name": "s", "elem": ["10.9.2.11"]}},
        {"chain": chain},
        {"chain": {"family": "inet", "table": "t", "name": "j"}},
        *({"rule": {**place, "expr": expression}} for expression in expressions),
    ]
    return filters.nft_rulesets(json.dumps({"nftables": entries}))


def meta(key: str, right: t.Any, op: str = "==") -> dict[str, t.Any]:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


def payload(field: str, right: t.Any, protocol: str = "ip") -> dict[str, t.Any]:
    left = {"payload": {"protocol": protocol, "field": field}}
    return {"match": {"op": "==", "left": left, "right": right}}


DROP, TAKE = {"drop": None}, {"accept": None}
STATE = {"ct": {"key": "state"}}
FIB = {"fib": {"result": "type", "flags": ["daddr"]}}
REVERSE = {"fib": {"result": "oif", "flags": ["saddr", "mark", "iif"]}}
MASKED = {"&": [{"meta": {"key": "mark"}}, 1]}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], False),
        ([[DROP]], True),
        ([[{"counter": {"packets": 0, "bytes": 0}}, {"reject": None}]], True),
        ([[meta("iifname", "back"), TAKE], [DROP]], False),
        ([[meta("iifname", {"set": ["a", "ba*"]}), TAKE], [DROP]], False),
        ([[meta("iif", "lo"), TAKE], [DROP]], True),
        ([[meta("nfproto", "ipv6"), DROP]], False),
        ([[meta("l4proto", {"set": ["tcp", "udp"]}), DROP]], True),
        ([[meta("mark", 1), DROP]], True),
        ([[{"match": {"op": "==", "left": MASKED, "right": 1}}, TAKE], [DROP]], False),
        ([[payload("saddr", "@s"), DROP]], True),
        ([[payload("saddr", "@unknown"), DROP]], None),
        ([[payload("saddr", {"prefix": {"addr": "10.9.0.0", "len": 16}}), DROP]], True),
        ([[payload("saddr", {"range": ["10.9.2.1", "10.9.2.20"]}), DROP]], True),
        ([[payload("saddr", {"range": ["10.9.2.12", "10.9.2.20"]}), DROP]], False),
        ([[payload("sport", {"set": [80, {"range": [8000, 8100]}]}, "tcp"), DROP]], True),
        ([[payload("dport", 22, "udp"), DROP]], False),
        ([[payload("saddr", "fd00::1", "ip6"), DROP]], False),
        ([[{"match": {"op": "in", "left": STATE, "right": ["established", "related"]}}, TAKE], [DROP]], False),
        ([[{"match": {"op": "in", "left": STATE, "right": "new"}}, TAKE], [DROP]], True),
        ([[{"vmap": {"key": STATE, "data": {"set": [["invalid", DROP], ["established", TAKE]]}}}], [DROP]], False),
        ([[{"vmap": {"key": STATE, "data": {"set": [["established", DROP]]}}}]], True),
        ([[{"vmap": {"key": STATE, "data": "@m"}}], [DROP]], None),
        ([[{"match": {"op": "!=", "left": FIB, "right": "local"}}, DROP]], True),
        ([[{"match": {"op": "==", "left": FIB, "right": "local"}}, TAKE], [DROP]], True),
        ([[{"match": {"op": "==", "left": REVERSE, "right": False}}, DROP]], False),
        ([[{"limit": {"rate": 1, "per": "second"}}, DROP]], None),
        ([[{"xt": {"type": "target", "name": "WHAT"}}]], None),
        ([[{"jump": {"target": "j"}}], [DROP]], True),
        ([[{"jump": {"target": "gone"}}]], None),
        ([[{"match": {"op": "<", "left": {"meta": {"key": "length"}}, "right": 9}}, DROP]], None),
    ],
)  # fmt: skip
def test_nft_input(rules: list[t.Any], expected: bool | None) -> None:
    assert filters.verdict_of(nft(*rules), "input", ANSWER, filters.DROP)[0] is expected


def test_nft_source_validation() -> None:
    rule = [{"match": {"op": "==", "left": REVERSE, "right": False}}, DROP]
    rulesets = nft(rule, hook="prerouting", prio=10)
    for validated in (True, False):
        packet = replace(ANSWER, validated=validated)
        found = filters.verdict_of(rulesets, "prerouting", packet, filters.DROP)
        assert found[0] is not validated


def test_before_the_mark_is_set_packets_have_none() -> None:
    rule = [meta("mark", 1), DROP]
    early, late = (nft(rule, hook="prerouting", prio=prio) for prio in (-300, 10))
    assert filters.verdict_of(early, "prerouting", ANSWER, filters.DROP)[0] is False
    assert filters.verdict_of(late, "prerouting", ANSWER, filters.DROP)[0] is True


def test_the_mark_is_set_where_the_options_say() -> None:
    """In nft a little later than in mangle, so that rules between the two see none."""
    rulesets = nft([meta("mark", 1), DROP], hook="prerouting", prio=render.NFT_PRIORITY)
    found = {
        firewall: filters.verdict_of(
            rulesets,
            "prerouting",
            ANSWER,
            filters.DROP,
            marked_at=render.mark_priority(Desired(firewall=firewall)),
        )[0]
        for firewall in ("iptables", "nftables")
    }
    assert found == {"iptables": True, "nftables": False}


def test_one_table_accepts_and_another_drops() -> None:
    rulesets = (*iptables("-A INPUT -j ACCEPT"), *nft([DROP]))
    assert filters.verdict_of(rulesets, "input", ANSWER, filters.DROP) == (
        True,
        'nft inet t: [{"drop": null}]',
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "match",
                    "vmap",
                    "set",
                    "op",
                    "left",
                    "right",
                    "meta",
                    "key",
                    "payload",
                    "field",
                    "protocol",
                    "ct",
                    "fib",
                    "flags",
                    "result",
                    "&",
                    "prefix",
                    "addr",
                    "len",
                    "range",
                    "elem",
                    "val",
                    "data",
                    "jump",
                    "target",
                    "accept",
                    "drop",
                    "xt",
                    "limit",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(VALUES, max_size=3), max_size=3))
def test_whatever_nft_says_is_understood_or_refused(rules: list[t.Any]) -> None:
    try:
        rulesets = nft(*rules)
    except Error:
        return
    for hook in ("input", "prerouting", "postrouting", "output"):
        filters.verdict_of(rulesets, hook, ANSWER, filters.DROP)


WORDS = st.sampled_from(
    [
        "!",
        "-i",
        "-o",
        "-s",
        "-d",
        "-p",
        "-m",
        "-j",
        "-g",
        "--sport",
        "--dports",
        "--mark",
        "--ctstate",
        "back",
        "10.0.0.0/8",
        "x/y",
        "0x1/0x1",
        "1:2",
        "ACCEPT",
        "DROP",
        "MASQUERADE",
        "MINE",
        "INPUT",
        "limit",
        "--limit",
        "3/min",
        "--",
        "''",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(WORDS, max_size=8), max_size=4))
def test_whatever_iptables_says_is_understood_or_refused(rules: list[list[str]]) -> None:
    try:
        rulesets = iptables(*(f"-A INPUT {' '.join(rule)}" for rule in rules))
    except Error:
        return
    filters.verdict_of(rulesets, "input", ANSWER, filters.DROP)
