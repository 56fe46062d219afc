# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""nft's JSON as versions 0.9.8, 1.0.6 and 1.1.3 print it, and what is told from it."""

from __future__ import annotations

import itertools
import json
import typing as t
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_nft as nft
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import (
    BACKENDS,
    Desired,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_firewall import (
    Signs,
    choose_backend,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    MarkChange,
    NftTable,
)

RECORDED = sorted((Path(__file__).parent.parent / "fixtures" / "nft").iterdir())
ALL = 0xFFFFFFFF


@pytest.fixture(params=RECORDED, ids=lambda path: path.stem)
def tables(request: pytest.FixtureRequest) -> dict[str, NftTable]:
    return {str(table): table for table in nft.ruleset(request.param.read_text())}


def test_there_are_recordings() -> None:
    assert len(RECORDED) >= 3


@pytest.mark.parametrize(
    "desired",
    [
        Desired(),
        Desired(
            nft_table="bound",
            chain="D",
            interfaces=("front", "back"),
            mark=0x10,
            mask=0xF0,
            socket_match="any",
            families=("ipv4",),
        ),
        Desired(nft_table="plain", interfaces=("back",), mask=ALL, icmp=False),
    ],
    ids=lambda desired: desired.nft_table,
)
def test_our_table_is_recognised_in_every_version(
    tables: dict[str, NftTable], desired: Desired
) -> None:
    """What was written comes back in the very form that the renderer makes, and is known to be ours."""
    found, wanted = tables[f"inet {desired.nft_table}"], render.nft_table(desired)
    assert found.chains == wanted.chains
    assert [*map(str, found.rules)] == [*map(str, wanted.rules)]
    assert all(rule.owned for rule in found.rules)
    assert found.others == ()


def test_tables_of_others(tables: dict[str, NftTable]) -> None:
    theirs = tables["ip vpn"]
    assert [rule.comment for rule in theirs.rules if rule.comment] == ["theirs"]
    assert not any(rule.owned for rule in theirs.rules)
    assert theirs.others == ("set s",)
    assert nft.reachable(theirs, "prerouting") == {"c": -160, "d": -160, "e": -160}
    assert nft.reachable(theirs, "output") == {"f": 100}
    # Of which flag it is, older versions give a wrong name.
    assert [other.split()[0] for other in tables["inet asleep"].others] == ["flag"]
    marks = {str(rule): rule.marks[0] for rule in theirs.rules if rule.marks}
    assert marks['meta mark set 0x539 counter comment "theirs"'] == MarkChange("meta", 0x539, 0)
    assert marks["meta mark set meta mark & 0x7ff | 0x700"] == MarkChange("meta", 0x700, 0xFF)
    found = [change for rule in theirs.rules for change in rule.marks]
    for expected in (
        MarkChange("meta", 0, 0, restores=0xFF),
        MarkChange("ct", 0, 0, restores=ALL),
        MarkChange("ct", 3, 0),
        MarkChange("meta", 0xB, 0),
        MarkChange("meta", 7, 0),
    ):
        assert expected in found
    # Turned around: may be set, is not kept.
    assert found[-1] == MarkChange("meta", 1, ALL & ~1)


NAMED = {"map": {"data": "@named"}}
HERE = {"map": {"data": {"set": [["192.0.2.1", 0x10], ["192.0.2.2", 0x20]]}}}


@pytest.mark.parametrize(
    ("value", "sure", "unclear"),
    [
        ({"meta": {"key": "iif"}}, 0, ALL),
        (NAMED, 0, ALL),
        ({"numgen": {}}, 0, ALL),
        ("x", 0, ALL),
        (None, 0, ALL),
        (HERE, 0x30, 0),
        ({"|": [NAMED, 4]}, 4, ALL & ~4),
        ({"&": [NAMED, 0xF]}, 0, 0xF),
        ({"&": [HERE, 0x1F]}, 0x10, 0),
        ({"|": [{"&": [NAMED, 0xF00]}, HERE]}, 0x30, 0xF00),
        ({"numgen": {"mod": 4, "offset": 8}}, 0xB, 0),
    ],
)
def test_what_a_mark_from_elsewhere_may_be(value: t.Any, sure: int, unclear: int) -> None:
    text = json.dumps({"mangle": {"key": {"meta": {"key": "mark"}}, "value": value}})
    rule = f'{{"rule": {{"family": "ip", "table": "t", "chain": "c", "expr": [{text}]}}}}'
    (table,) = nft.ruleset(
        f'{{"nftables": [{{"table": {{"family": "ip", "name": "t"}}}}, {rule}]}}'
    )
    assert table.rules[0].marks == (MarkChange("meta", sure, 0, unclear=unclear),)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"nftables": 1}', '{"nftables": [{"table": {}}]}', "x"]
)
def test_what_is_not_nfts_is_refused(text: str) -> None:
    with pytest.raises(Error, match="cannot understand the answer of `nft -j`"):
        nft.ruleset(text)


def test_nothing_is_nothing() -> None:
    assert nft.ruleset("") == ()
    assert nft.ruleset('{"nftables": [{"metainfo": {"json_schema_version": 1}}]}') == ()


@given(st.integers(0, ALL), st.integers(0, ALL))
def test_a_mark_statement_says_what_it_does(mask: int, bits: int) -> None:
    """Its words, read again by nft's rules, clear the mask's bits and set the mark's."""
    mark = mask & bits
    words = nft.mark_words(~mask & ALL, mark)
    for before in (0, ALL, 0x5555_5555):
        expression = words.replace("meta mark set", "").replace("meta mark", hex(before))
        assert eval(expression) & ALL == (before & ~mask & ALL) | mark


def test_sets_have_one_form() -> None:
    assert nft.set_words(['"b"', '"a"', '"b"']) == '{ "a", "b" }'
    assert nft.set_words(["443", "80", "9"]) == "{ 9, 80, 443 }"
    assert nft.set_words(["80"]) == "80"


def test_unknown_expressions_are_kept_apart() -> None:
    """Two rules that differ in what this collection does not understand are different rules."""
    rules = [
        {"rule": {"family": "ip", "table": "t", "chain": "c", "expr": [expression]}}
        for expression in (
            {"xt": None},
            {"xt": {"name": "x"}},
            {"new": [1]},
            {"a": 1, "b": 2},
            "odd",
        )
    ]
    text = json.dumps({"nftables": [{"table": {"family": "ip", "name": "t"}}, *rules]})
    (table,) = nft.ruleset(text)
    assert len({str(rule) for rule in table.rules}) == len(rules)


# Which backend `auto` is


@pytest.mark.parametrize(
    ("signs", "chosen"),
    [
        (Signs(), "iptables"),
        (Signs(programs=("iptables",)), "iptables"),
        (Signs(programs=("nft",)), "nftables"),
        (Signs(programs=("iptables", "nft")), "iptables"),
        (Signs(programs=("iptables", "nft"), service=True), "nftables"),
        (Signs(programs=("iptables", "nft"), native_rules=True), "nftables"),
        (Signs(programs=("iptables", "nft"), iptables_rules=True), "iptables"),
        (Signs(programs=("iptables", "nft"), native_rules=True, iptables_rules=True), "nftables"),
        (Signs(programs=("iptables",), service=True), "iptables"),
        (Signs(programs=("nft",), recorded="iptables"), "nftables"),
        (Signs(programs=("iptables",), recorded="nftables"), "iptables"),
        (Signs(programs=("iptables", "nft"), recorded="nftables", iptables_rules=True), "nftables"),
        (
            Signs(programs=("iptables", "nft"), recorded="iptables-legacy", service=True),
            "iptables-legacy",
        ),
    ],
)
def test_what_auto_chooses(signs: Signs, chosen: str) -> None:
    assert choose_backend(signs) == chosen


def test_what_auto_chose_it_chooses_again() -> None:
    """Whatever rules and services come and go, as long as the program stays."""
    flags = [False, True]
    for programs in (("iptables",), ("nft",), ("iptables", "nft")):
        for native, other, service in itertools.product(flags, flags, flags):
            first = choose_backend(Signs(None, programs, native, other, service))
            assert first in BACKENDS
            for later in itertools.product(flags, flags, flags):
                assert choose_backend(Signs(first, programs, *later)) == first
