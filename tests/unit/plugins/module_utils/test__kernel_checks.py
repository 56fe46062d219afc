# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Checks from surveys and snapshots of every kind: none raises, each has a documented name."""

from __future__ import annotations

import ast
import inspect
import re
import typing as t
from dataclasses import fields, replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_check as kinds
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_checks as checks
from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _kernel_checks_filters as of_others,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _kernel_checks_haproxy as of_haproxy,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _kernel_checks_rules as rules,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_filters as filters
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_haproxy as haproxy
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import Desired
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    Change,
    IpRule,
    Route,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_snapshot import Snapshot
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_survey import (
    Decision,
    Survey,
    Unseen,
    Usage,
)
from ansible_collections.clearproxy.haproxy.plugins.modules import tproxy_info

DOCUMENTATION = yaml.safe_load(tproxy_info.DOCUMENTATION)


def documented() -> list[tuple[str, str]]:
    notes = [note for note in DOCUMENTATION["notes"] if re.match(r"V\(\w+\) \(\w+\):", note)]
    return [(note.split("(")[2].split(")")[0], note[2:].split(")")[0]) for note in notes]


def test_every_check_is_documented_and_no_other() -> None:
    assert documented() == [
        (group, name) for group, names in kinds.GROUPS.items() for name in names
    ]


def test_every_check_that_the_code_names_is_listed_and_no_other() -> None:
    """The names are what the code gives to Check(), finds by its tables, or yields by families of names."""
    written = {
        node.value
        for module in (checks, of_others, of_haproxy, rules)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Constant) and node.value in kinds.NAMES
    }
    assert written == set(kinds.NAMES)
    assert set(kinds.ESSENTIAL) <= set(kinds.NAMES)
    assert len(set(kinds.NAMES)) == len(kinds.NAMES)


def test_the_groups_are_the_options() -> None:
    gathered = DOCUMENTATION["options"]["gather"]
    assert gathered["choices"] == gathered["default"] == [*kinds.GROUPS][:-1]


@pytest.mark.parametrize(
    ("item", "found", "wanted", "name"),
    [
        ("ipv4 mangle chain DIVERT", "", "x", ("divert_chain", "ipv4")),
        ("ipv4 mangle chain D", "-j MARK --set-xmark 2/2", "-j MARK --set-xmark 1/1", ("mark", "ipv4")),
        ("ipv4 mangle chain D", "-j MARK --set-xmark 2/2; -j X", "-j MARK --set-xmark 1/1", ("divert_chain", "ipv4")),
        ("ipv6 mangle PREROUTING tcp on back", "", "x", ("divert_jump", "ipv6")),
        ("ipv6 mangle PREROUTING icmpv6", "", "x", ("divert_icmp", "ipv6")),
        ("ipv4 mangle PREROUTING icmp on icmp0", "", "x", ("divert_icmp", "ipv4")),
        ("ipv4 legacy mangle chain DIVERT", "x", "", ("other_rules", "ipv4")),
        ("ipv4 nft haproxy_tproxy DIVERT tcp", "", "x", ("divert_jump", "ipv4")),
        ("ipv6 nft haproxy_tproxy DIVERT icmpv6", "", "x", ("divert_icmp", "ipv6")),
        ("ipv4 nft t DIVERT tcp", "a meta mark set 0x2 accept", "a meta mark set 0x1 accept", ("mark", "ipv4")),
        ("nft haproxy_tproxy chain DIVERT", "", "x", ("divert_chain", "")),
        ("nft haproxy_tproxy DIVERT rule of others", "x", "", ("divert_chain", "")),
        ("nft table haproxy_tproxy", "x", "", ("other_rules", "")),
        ("ipv4 intercept 80 on front", "", "x", ("intercept", "ipv4")),
        ("ipv4 rule 101 on back", "", "x", ("ip_rule", "ipv4")),
        ("ipv6 rule 100 (guard)", "", "x", ("guard_rule", "ipv6")),
        ("ipv4 route in table 100", "", "x", ("local_route", "ipv4")),
        ("sysctl net.ipv4.conf.back.rp_filter", "1", "2", ("rp_filter", "ipv4")),
        ("sysctl net/ipv4/conf/eth0.100/send_redirects", "1", "0", ("send_redirects", "ipv4")),
        ("sysctl net.ipv6.conf.all.forwarding", "0", "1", ("forwarding", "ipv6")),
        ("sysctl net.ipv6.conf.eth0.accept_ra", "1", "2", ("accept_ra", "ipv6")),
        ("sysctl net.ipv4.tcp_mtu_probing", "0", "1", ("sysctl", "")),
        (f"file {render.RECORD}", "", "present", ("record", "")),
        (f"file {render.UNIT}", "", "present", ("boot_files", "")),
        ("something new", "", "x", ("other_rules", "")),
    ],
)  # fmt: skip
def test_the_check_of_each_change(
    item: str, found: str, wanted: str, name: tuple[str, str]
) -> None:
    assert rules.name_of(Change(item, found, wanted)) == name


def named(found: t.Iterable[kinds.Check], name: str) -> kinds.Check:
    return next(check for check in found if check.name == name)


WORKER = haproxy.Process(11, 10, ("haproxy", "-W"), 0, 0x2000, 1)
SURVEY = Survey(
    binary=haproxy.Binary("/usr/sbin/haproxy", "3.2.1", True),
    instances=(haproxy.Instance(haproxy.Process(10, 1), (WORKER,)),),
)


def test_what_can_only_be_seen_in_numbers() -> None:
    def limits(count: int, used: int) -> list[str]:
        sysctls = {
            "net/ipv4/ip_local_port_range": "1000 1999",
            "net/netfilter/nf_conntrack_max": "1000",
            "net/netfilter/nf_conntrack_count": str(count),
        }
        usage = (Usage("ipv4", "10.9.1.11", "10.9.2.11 port 80", used),)
        survey = Survey(sysctls=sysctls, usage=usage)
        found = checks.checks_of(survey, Unseen("x"), Desired(), ("limits",))
        return [check.name for check in found if check.status == "failed"]

    assert limits(949, 899) == []
    assert limits(950, 899) == ["conntrack_table"]
    assert limits(949, 900) == ["free_ports"]


EARLY = filters.iptables_rulesets(
    "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i back -j DROP\nCOMMIT\n", "iptables", "ipv4"
)
BETWEEN = (
    filters.Ruleset(
        "nft inet theirs",
        ("ipv4",),
        {
            "c": filters.Chain(
                (filters.Rule("drop", (filters.Test("mark", ((1, 1),)),), filters.DROP),),
                "prerouting",
                priority=render.NFT_PRIORITY,
            )
        },
    ),
)


@pytest.mark.parametrize(
    ("rulesets", "options", "status"),
    [
        # Ours come first in mangle, and accept.
        (EARLY, {}, "ok"),
        (EARLY, {"position": "last"}, "failed"),
        (EARLY, {"firewall": "nftables"}, "failed"),
        (BETWEEN, {}, "failed"),
        (BETWEEN, {"firewall": "nftables"}, "ok"),
    ],
)
def test_what_comes_before_our_rules(
    rulesets: tuple[filters.Ruleset, ...], options: dict[str, t.Any], status: str
) -> None:
    way = Decision("ipv4", "10.9.2.11", 8080, "192.0.2.77", "back", "local")
    found = of_others.filter_checks(
        Survey(rulesets=rulesets, decisions=(way,)), Snapshot(), Desired(("ipv4",), **options)
    )
    assert {check.name: check.status for check in found}["prerouting_filter"] == status


def test_servers_and_router_at_one_interface() -> None:
    def redirects(interface: str, **values: str) -> str:
        sysctls = {"net/ipv4/conf/all/forwarding": "1"}
        for key, value in values.items():
            sysctls[f"net/ipv4/conf/{key}/send_redirects"] = value
        decision = Decision("ipv4", "10.9.2.11", 80, "192.0.2.77", interface, "local")
        survey = Survey(sysctls=sysctls, decisions=(decision,), default_interfaces={"ipv4": "eth0"})
        found = checks.checks_of(survey, Snapshot(), Desired(), ("rules",))
        return named(found, "send_redirects").status

    assert redirects("eth0", all="0", eth0="1") == "failed"
    assert redirects("eth0", all="1", eth0="0") == "failed"
    assert redirects("eth0", all="0", eth0="0") == "ok"
    assert redirects("eth1", all="1", eth1="1") == "ok"


@pytest.mark.parametrize(
    ("version", "user", "setcap", "uid", "status"),
    [
        ("2.6.12", "haproxy", "", 0, "failed"),
        ("2.9.0", "haproxy", "cap_net_raw", 0, "failed"),
        ("3.0.0", "haproxy", "cap_net_raw", 0, "ok"),
        ("3.0.0", "haproxy", "cap_net_bind_service", 0, "failed"),
        ("3.2.0", "haproxy", "cap_net_admin", 0, "ok"),
        ("3.2.0", "haproxy", "", 0, "failed"),
        ("3.2.0", "haproxy", "cap_net_raw", 99, "failed"),
        ("3.2.0", "", "", 99, "ok"),
        ("2.6.12", "root", "", 0, "ok"),
        ("", "haproxy", "cap_net_raw", 0, "unknown"),
    ],
)
def test_the_user(version: str, user: str, setcap: str, uid: int, status: str) -> None:
    text = "backend a\n source 0.0.0.0 usesrc clientip\n server s 10.0.0.1:80\n"
    lines = [f"user {user}"] * bool(user) + [f"setcap {setcap}"] * bool(setcap)
    config = haproxy.configuration([("x", "\n".join(["global", *lines, text]))])
    master = haproxy.Process(10, 1, uid=uid)
    survey = replace(
        SURVEY,
        configuration=config,
        binary=haproxy.Binary("x", version, True),
        instances=(haproxy.Instance(master, (master,)),),
    )
    found = checks.checks_of(survey, Snapshot(), Desired(), ("haproxy",))
    assert named(found, "config_user").status == status


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize(
    ("verb", "name"), [("is-enabled", "unit_enabled"), ("is-active", "unit_active")]
)
def test_each_unit_is_looked_at(verb: str, name: str, guard: bool) -> None:
    units = {
        (verb, "tproxy-host.service"): {"is-enabled": "enabled", "is-active": "active"}[verb],
        (verb, "tproxy-host-guard.service"): {"is-enabled": "disabled", "is-active": "failed"}[verb],
    }  # fmt: skip
    found = checks.checks_of(Survey(units=units), Snapshot(), Desired(guard=guard), ("boot",))
    statuses = [(check.subject, check.status) for check in found if check.name == name]
    guards = [("tproxy-host-guard.service", "failed")] if guard else []
    assert sorted(statuses) == sorted([("tproxy-host.service", "ok"), *guards])


@pytest.mark.parametrize(
    ("status", "essential", "transparent"),
    [("ok", True, True), ("unknown", False, True), ("unknown", True, False), ("failed", False, False)],
)  # fmt: skip
def test_transparent(status: str, essential: bool, transparent: bool) -> None:
    name = "ip_rule" if essential else "unit_active"
    found = kinds.summary([kinds.Check("mark", "ok"), kinds.Check(name, status)])
    assert found["transparent"] is transparent
    assert found["failed_checks"] == ([name] if status == "failed" else [])


# Any survey of any snapshot.

TEXT = st.sampled_from(["", "x", "1", "10.9.2.11", "fd00::1", "back"]) | st.text(max_size=5)
FAMILY = st.sampled_from(["ipv4", "ipv6"])
UNSEEN = st.builds(Unseen, TEXT)
PROCESS = st.builds(
    haproxy.Process,
    st.integers(1, 9),
    st.integers(0, 9),
    st.lists(st.sampled_from(["haproxy", "-W", "-f", "-sf", "3", "--"]), max_size=5).map(tuple),
    st.none() | st.integers(0, 9),
    st.none() | st.integers(0, 1 << 40),
    st.none() | st.integers(0, 3),
)
LINE = st.sampled_from(
    [
        *("global", "defaults", "frontend f", "backend b", "listen l", "user x", "setcap cap_net_raw"),
        *("source 0.0.0.0 usesrc clientip", "source [::] usesrc client", "server s 10.0.0.1:80"),
        *("server s [fd00::1]:80 source 10.0.0.1", "bind :80", "bind [::]:80", "default_backend b"),
    ]
)  # fmt: skip
CONFIGURATION = st.lists(LINE, max_size=12).map(
    lambda lines: haproxy.configuration([("x", "\n".join(lines))])
)
RULESET = st.builds(
    filters.Ruleset,
    TEXT,
    st.just(("ipv4", "ipv6")),
    st.dictionaries(
        TEXT,
        st.builds(
            filters.Chain,
            st.lists(
                st.builds(
                    filters.Rule,
                    TEXT,
                    st.lists(
                        st.builds(
                            filters.Test,
                            st.sampled_from(["iif", "state", "mark", "source", "uid", "what"]),
                            st.just(()),
                            st.booleans(),
                        ),
                        max_size=2,
                    ).map(tuple),
                    st.sampled_from(
                        ["accept", "drop", "return", "snat", "notrack", "jump", "goto"]
                    ),
                    TEXT,
                ),
                max_size=3,
            ).map(tuple),
            st.sampled_from(["input", "output", "prerouting", "postrouting", ""]),
            st.sampled_from(["filter", "nat"]),
            st.integers(-400, 400),
            st.sampled_from(["accept", "drop"]),
        ),
        max_size=3,
    ),
)
SURVEYS = st.builds(
    Survey,
    sockets=st.dictionaries(FAMILY, TEXT | UNSEEN),
    support=st.dictionaries(FAMILY, TEXT | UNSEEN),
    binary=UNSEEN | st.none() | st.builds(haproxy.Binary, TEXT, TEXT, st.none() | st.booleans()),
    instances=UNSEEN | st.lists(PROCESS, max_size=4).map(haproxy.instances),
    configuration=UNSEEN | st.none() | CONFIGURATION,
    rulesets=UNSEEN | st.lists(RULESET, max_size=2).map(tuple),
    decisions=st.lists(
        st.builds(
            Decision,
            *(FAMILY, TEXT, st.none() | st.integers(0, 99), TEXT, TEXT),
            *(st.sampled_from(["local", "elsewhere", "invalid", "unknown"]), TEXT),
        ),
        max_size=3,
    ).map(tuple),
    sysctls=st.dictionaries(
        st.sampled_from(
            [
                *("net/ipv4/conf/all/rp_filter", "net/ipv4/conf/back/src_valid_mark"),
                *("net/ipv4/ip_local_port_range", "net/netfilter/nf_conntrack_max"),
                *("net/netfilter/nf_conntrack_count", "net/ipv4/tcp_fwmark_accept"),
            ]
        ),
        st.sampled_from(["", "0", "1", "x", "1 2", "²"]),
    ),
    default_interfaces=st.dictionaries(FAMILY, TEXT),
    usage=st.lists(
        st.builds(Usage, FAMILY, TEXT, TEXT, st.integers(0, 99)), max_size=2
    ).map(tuple),
    units=st.dictionaries(
        st.tuples(
            st.sampled_from(["is-enabled", "is-active"]),
            st.sampled_from(["tproxy-host.service", "tproxy-host-guard.service"]),
        ),
        UNSEEN | TEXT,
    ),
)  # fmt: skip
RULE = st.builds(
    IpRule,
    st.integers(0, 32767),
    st.none() | st.sampled_from([100, 254]),
    st.none() | st.integers(0, 3),
    st.sampled_from([1, 3, 0xFFFFFFFF]),
    st.none() | st.sampled_from(["lo", "back"]),
)
SNAPSHOTS = st.builds(
    Snapshot,
    rules=st.dictionaries(FAMILY, st.lists(RULE, max_size=3).map(tuple)),
    routes=st.dictionaries(
        FAMILY,
        st.dictionaries(
            st.just(100),
            st.lists(st.builds(Route, TEXT, TEXT, st.none() | TEXT), max_size=2).map(tuple),
        ),
    ),
    interfaces=st.lists(TEXT, max_size=2).map(tuple),
    files=st.dictionaries(st.sampled_from([*render.FILES, render.RECORD]), st.none() | TEXT),
)
DESIRED = st.builds(
    Desired,
    families=st.sampled_from([("ipv4",), ("ipv6",), ("ipv4", "ipv6")]),
    interfaces=st.sampled_from([(), ("back",)]),
    forwarding=st.none() | st.booleans(),
    firewall=st.sampled_from(["iptables", "nftables"]),
    guard_rule=st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(SURVEYS, SNAPSHOTS | UNSEEN, DESIRED)
def test_no_input_raises(survey: Survey, snapshot: Snapshot | Unseen, desired: Desired) -> None:
    found = checks.checks_of(survey, snapshot, desired)
    assert [check.name for check in found] == sorted(
        (check.name for check in found), key=kinds.NAMES.index
    )
    for check in found:
        assert check.status in ("ok", "failed", "unknown")
        assert check.family in ("", "ipv4", "ipv6")
        assert all(isinstance(getattr(check, part.name), str) for part in fields(check))
        assert bool(check.remedy) == (check.status == "failed"), check
    answer = kinds.summary(found)
    assert answer["transparent"] in (True, False)
    assert bool(answer["failed_checks"]) <= (not answer["transparent"])
