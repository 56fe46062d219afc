# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plans for the way back, on routing tables in memory."""

from __future__ import annotations

import ipaddress
import typing as t
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_parse as parse
from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _kernel_return_render as render,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    FAMILIES,
    RTPROT_NAMES,
    Address,
    IpRule,
    Route,
    TableName,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_return import (
    plan_return_path,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_return_model import (
    Desired,
    Plan,
    Record,
    Snapshot,
)

ADDRESSES = tuple(
    Address(interface, ipaddress.ip_interface(text))
    for interface, text in (
        ("lo", "127.0.0.1/8"),
        ("back", "10.9.2.11/24"),
        ("wide", "10.9.0.7/16"),
        ("back", "fd09:2::11/64"),
        ("back", "fe80::11/64"),
        ("service", "10.9.7.1/32"),
    )
)
FOREIGN = {
    "default via 10.9.2.1 dev back proto boot": Route("unicast", "default", "back", "10.9.2.1", 3),
    "default via 10.9.0.1 dev wide proto dhcp metric 100": Route(
        "unicast", "default", "wide", "10.9.0.1", 16, 100
    ),
    "default via fd09:2::1 dev back proto ra metric 1024": Route(
        "unicast", "default", "back", "fd09:2::1", 9, 1024
    ),
    "default via fd09:2::7 dev back proto boot metric 1": Route(
        "unicast", "default", "back", "fd09:2::7", 3, 1
    ),
}
FOREIGN_RULES = {
    "ipv4": (
        IpRule(0, 255),
        IpRule(5210, 254, 0x80000, 0xFF0000, protocol=0),
        IpRule(32766, 254),
    ),
    "ipv6": (IpRule(0, 255), IpRule(32766, 254)),
}
OPTIONS: dict[str, t.Any] = {
    "mode": "default_gateway",
    "gateways": ["10.9.2.2"],
    "addresses": [],
    "direct": [],
    "guard": False,
    "table": 101,
    "table_name": "tproxy_backend",
    "rule_priority": 110,
    "mark": "0x2",
    "mask": "0x2",
    "mac_addresses": [],
    "loose_rp_filter": False,
}


def desired(**options: t.Any) -> Desired:
    return Desired.from_options({**OPTIONS, **options})


def family(text: str) -> str:
    return "ipv6" if ":" in text else "ipv4"


def host(texts: list[str] | tuple[str, ...] = (), **found: t.Any) -> Snapshot:
    per_family = {name: tuple(text for text in texts if family(text) == name) for name in FAMILIES}
    snapshot = Snapshot(
        addresses=ADDRESSES,
        defaults={
            name: tuple(FOREIGN[text] for text in entry) for name, entry in per_family.items()
        },
        texts=per_family,
        rules=FOREIGN_RULES,
        routes={name: {101: (), 202: ()} for name in FAMILIES},
        sysctls={f"net/ipv4/conf/{name}/rp_filter": "0" for name in ("all", "back", "wide")},
        files=dict.fromkeys((*render.FILES, render.RECORD)),
    )
    return replace(snapshot, **found)


def parsed(text: str) -> Route:
    """A route of ours."""
    kind, _space, rest = text.partition(" ") if text.startswith("throw ") else ("unicast", "", text)
    words = rest.split()
    values = dict(zip(words[1::2], words[2::2]))
    protocols = {name: number for number, name in RTPROT_NAMES.items()}
    return Route(
        kind,
        words[0],
        values.get("dev"),
        values.get("via"),
        protocols[values["proto"]],
        int(values.get("metric", 0)),
    )


def parsed_rule(text: str) -> IpRule:
    words = text.split()
    values = dict(zip(words[::2], words[1::2]))
    mark, _slash, mask = values.get("fwmark", "/").partition("/")
    return IpRule(
        int(values["priority"]),
        int(values["lookup"]),
        int(mark, 0) if mark else None,
        int(mask, 0) if mask else 0xFFFFFFFF,
        values.get("iif"),
        source=values.get("from", "all"),
    )


def apply_line(snapshot: Snapshot, name: str, line: str) -> Snapshot:
    """Refuses what the kernel refuses: deleting what is not there, adding what is."""
    kind, verb, text = line.split(" ", 2)
    if kind == "rule":
        rules = list(snapshot.rules[name])
        rule = parsed_rule(text)
        if verb == "del":
            rules.remove(rule)
        else:
            assert rule not in rules
            rules.append(rule)
        rules.sort(key=lambda entry: entry.priority)
        return replace(snapshot, rules={**snapshot.rules, name: tuple(rules)})
    text, _word, number = text.partition(" table ")
    if number:
        table = list(snapshot.routes[name][int(number)])
        if verb == "del":
            table.remove(next(route for route in table if route.destination == text))
        else:
            assert parsed(text) not in table
            table.append(parsed(text))
        tables = {**snapshot.routes[name], int(number): tuple(table)}
        return replace(snapshot, routes={**snapshot.routes, name: tables})
    live = dict(zip(snapshot.texts[name], snapshot.defaults[name]))
    if verb == "del":
        del live[text]
    elif verb == "append":
        assert text not in live
        live[text] = FOREIGN.get(text) or parsed(text)
    else:
        metric = parsed(text).metric
        live = {key: route for key, route in live.items() if route.metric != metric}
        live[text] = parsed(text)
    order = sorted(live.items(), key=lambda item: item[1].metric)
    return replace(
        snapshot,
        texts={**snapshot.texts, name: tuple(text for text, _route in order)},
        defaults={**snapshot.defaults, name: tuple(route for _text, route in order)},
    )


def apply(snapshot: Snapshot, plan: Plan) -> Snapshot:
    for name in FAMILIES:
        lines = [f"route append {text}" for text in plan.back.get(name, ())]
        for line in (*lines, *plan.ip.get(name, ())):
            snapshot = apply_line(snapshot, name, line)
    marks = snapshot.marks
    if plan.firewall is not None:
        text = plan.firewall.partition(f"\ntable {render.NFT_TABLE} {{")[2]
        marks = parse.nft_table(text) if text else None
    files = {**snapshot.files, **plan.files}
    if plan.record is not None:
        files[render.RECORD] = plan.record
    return replace(
        snapshot,
        marks=marks,
        sysctls={**snapshot.sysctls, **dict(plan.sysctls)},
        files=files,
        record=Record.load(files[render.RECORD], batches(files)),
    )


def batches(files: t.Mapping[str, str | None]) -> dict[str, str | None]:
    return {name: files[path] for name, path in render.BATCHES.items()}


GATEWAYS = st.sampled_from(
    [["10.9.2.2"], ["fd09:2::2"], ["10.9.2.3", "fd09:2::3"], ["10.9.7.9", "fe80::1%back"]]
)
COMMON = st.fixed_dictionaries(
    {"gateways": GATEWAYS},
    optional={
        "table": st.sampled_from([101, 202]),
        "table_name": st.sampled_from(["tproxy_backend", "back"]),
        "rule_priority": st.sampled_from([110, 7]),
    },
)
DIRECT = st.lists(
    st.sampled_from(["10.9.2.3", "10.9.8.0/24", "fd09:2::3", "fd09:8::/64"]), unique=True
)
WISHES = st.one_of(
    COMMON,
    st.builds(lambda a, b: {**a, "mode": "source_address", "direct": b}, COMMON, DIRECT),
    st.builds(
        lambda a: {
            **a,
            "mode": "source_address",
            "gateways": ["10.9.2.2"],
            "addresses": ["10.9.7.1"],
        },
        COMMON,
    ),
    st.builds(
        lambda a, b, c: {**a, **c, "mode": "connection_mark", "direct": b},
        COMMON,
        DIRECT,
        st.fixed_dictionaries(
            {},
            optional={
                "mark": st.just("0x10"),
                "mask": st.just("0xf2"),
                "mac_addresses": st.just(["02-00-5E-10-00-01", "02:00:5e:10:00:02"]),
                "loose_rp_filter": st.just(True),
            },
        ).map(lambda found: found if "mask" in found else {**found, "mark": "0x2"}),
    ),
)
foreign_routes = st.lists(st.sampled_from(sorted(FOREIGN)), unique=True)


@given(foreign_routes, st.lists(WISHES, min_size=1, max_size=4))
def test_nothing_left_to_plan_and_absent_ends_where_it_began(
    texts: list[str], wishes: list[dict[str, t.Any]]
) -> None:
    before = host(sorted(texts, key=lambda text: FOREIGN[text].metric))
    now = before
    for options in wishes:
        wanted = desired(**options)
        now = apply(now, plan_return_path(now, wanted))
        assert plan_return_path(now, wanted).changes == ()
        # Nothing of what was wanted before is left.
        fresh = apply(before, plan_return_path(before, wanted))
        assert (now.rules, now.marks, now.sysctls) == (fresh.rules, fresh.marks, fresh.sysctls)
        assert {
            name: {key: set(value) for key, value in tables.items()}
            for name, tables in now.routes.items()
        } == {
            name: {key: set(value) for key, value in tables.items()}
            for name, tables in fresh.routes.items()
        }
        assert {path: text for path, text in now.files.items() if path != render.RECORD} == {
            path: text for path, text in fresh.files.items() if path != render.RECORD
        }
        for name, gateway in wanted.gateways.items():
            if wanted.mode == "default_gateway":
                assert now.defaults[name][0].gateway == gateway.address
    gone = apply(now, plan_return_path(now, None))
    assert plan_return_path(gone, None).changes == ()
    texts_of = [
        {name: set(entry) for name, entry in state.texts.items()} for state in (gone, before)
    ]
    assert texts_of[0] == texts_of[1]
    for field in ("rules", "routes", "marks", "sysctls", "files"):
        assert getattr(gone, field) == getattr(before, field)


@given(WISHES)
def test_without_the_record_the_boot_files_say_what_is_ours(options: dict[str, t.Any]) -> None:
    wanted = desired(**options)
    before = host()
    now = apply(before, plan_return_path(before, wanted))
    files = {**now.files, render.RECORD: None}
    lost = replace(now, files=files, record=Record.load(None, batches(files)))
    assert [change.item for change in plan_return_path(lost, wanted).changes] == [
        f"file {render.RECORD}"
    ]
    gone = apply(lost, plan_return_path(lost, None))
    for field in ("rules", "routes", "texts", "marks", "files"):
        assert getattr(gone, field) == getattr(before, field)


def test_the_nearest_subnet_gives_the_interface() -> None:
    (line,) = plan_return_path(host(), desired(gateways=["10.9.2.2"])).ip["ipv4"]
    assert line == "route append default via 10.9.2.2 dev back proto kernel"
    (line,) = plan_return_path(host(), desired(gateways=["10.9.7.2"])).ip["ipv4"]
    assert line == "route append default via 10.9.7.2 dev wide proto kernel"


def test_the_service_addresses_are_those_of_the_gateways_subnet() -> None:
    more = (
        Address("back", ipaddress.ip_interface("fd09:2::77/64"), temporary=True),
        Address("back", ipaddress.ip_interface("fd09:3::5/64")),
    )
    snapshot = host(addresses=(*ADDRESSES, *more))

    def sources(**options: t.Any) -> list[str]:
        lines = plan_return_path(snapshot, desired(mode="source_address", **options)).ip.values()
        words = [line.split() for family_lines in lines for line in family_lines]
        return [entry[entry.index("from") + 1] for entry in words if entry[0] == "rule"]

    assert sources(gateways=["10.9.2.2", "fd09:2::2"]) == ["10.9.2.11", "fd09:2::11"]
    assert sources(gateways=["fe80::1%back"]) == ["fd09:2::11", "fd09:3::5"]
    assert sources(gateways=["10.9.2.2"], addresses=["10.9.7.1"]) == ["10.9.7.1"]


# option -> what is wrong with it, options, and what the sentence says.
REFUSED: dict[str, tuple[str, dict[str, t.Any], Snapshot, str]] = {
    "gateway elsewhere": (
        "gateways",
        {"gateways": ["192.0.2.1"]},
        host(),
        "no subnet that this host is connected to (it has 10.9.2.11/24 on back, 10.9.0.7/16 on wide",
    ),
    "link-local on another interface": (
        "gateways",
        {"gateways": ["fe80::1%wide"]},
        host(),
        "fe80::1%wide is on no subnet",
    ),
    "not on this host": (
        "addresses",
        {"mode": "source_address", "addresses": ["10.9.2.12"]},
        host(),
        "10.9.2.12 is no address of this host (it has 127.0.0.1, 10.9.2.11",
    ),
    "no rule of ours": (
        "table",
        {"mode": "source_address"},
        host(rules={"ipv4": (IpRule(99, 101, source="10.9.2.77", protocol=3),)}),
        "table 101 is in use by the ipv4 rule 'priority 99 from 10.9.2.77 lookup 101 protocol boot'",
    ),
    "no route of ours": (
        "table",
        {"mode": "connection_mark"},
        host(routes={"ipv4": {101: (Route("unicast", "default", "wide", "10.9.0.1", 3),)}}),
        "table 101 holds ipv4 routes of others: 'default via 10.9.0.1 dev wide proto boot'",
    ),
    "number of another name": (
        "table",
        {"mode": "source_address"},
        host(table_names=(TableName(101, "dmz", "/etc/iproute2/rt_tables"),)),
        "/etc/iproute2/rt_tables gives table 101 the name 'dmz'",
    ),
    "name of another number": (
        "table_name",
        {"mode": "source_address"},
        host(table_names=(TableName(7, "tproxy_backend", "/etc/iproute2/rt_tables"),)),
        "choose another name",
    ),
    "bits of others": (
        "mark",
        {"mode": "connection_mark", "mark": "0x80000", "mask": "0x80000"},
        host(),
        "'priority 5210 fwmark 0x80000/0xff0000 lookup main protocol unspec' of others uses bits",
    ),
    "a table of others": (
        "mode",
        {"mode": "connection_mark"},
        host(marks={"chain x": ("type filter hook input priority 0; policy accept;",)}),
        "an nftables table 'inet tproxy_backend' that this collection did not make",
    ),
    "strict": (
        "loose_rp_filter",
        {"mode": "connection_mark"},
        host(sysctls={"net/ipv4/conf/all/rp_filter": "1", "net/ipv4/conf/back/rp_filter": "0"}),
        "is strict (net.ipv4.conf.all.rp_filter = 1, net.ipv4.conf.back.rp_filter = 0;",
    ),
    "file": (
        "files",
        {},
        host(files={render.UNIT: "[Unit]\n"}),
        "was not written by this collection",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_what_was_found(name: str) -> None:
    option, options, snapshot, said = REFUSED[name]
    with pytest.raises(InputError) as refusal:
        plan_return_path(snapshot, desired(**options))
    assert said in str(refusal.value)
    assert refusal.value.details["option"] == option
    assert refusal.value.details["found"]


def test_files_of_others_stay() -> None:
    theirs = host(files={render.TABLE_NAME: "7 theirs\n"})
    assert plan_return_path(theirs, None).changes == ()
    assert render.TABLE_NAME not in plan_return_path(theirs, desired()).files


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (IpRule(50, 7), True),
        (IpRule(110, 7, source="10.9.0.0/16"), True),
        (IpRule(50, 7, 0xCA6C, inverted=True), True),
        (IpRule(111, 7), False),
        (IpRule(50, 7, source="10.8.0.0/16"), False),
        (IpRule(50, 7, 0xCA6C), False),
        (IpRule(50, 7, iif="wide"), False),
        (IpRule(50, 7, other=(("dst", "10.9.9.0"),)), False),
    ],
)
def test_a_rule_that_wins_before_ours_is_warned_of(rule: IpRule, expected: bool) -> None:
    snapshot = host(rules={"ipv4": (rule,)})
    for _applied in range(2):
        plan = plan_return_path(snapshot, desired(mode="source_address"))
        assert bool(plan.warnings) == expected
        snapshot = apply(snapshot, plan)


def test_marked_answers_need_a_route_to_begin_with() -> None:
    (warning,) = plan_return_path(host(), desired(mode="connection_mark")).warnings
    assert "has no ipv4 default route" in warning
    there = host(["default via 10.9.2.1 dev back proto boot"])
    assert plan_return_path(there, desired(mode="connection_mark")).warnings == ()


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "{}", '{"gateways": 1, "replaced": {}}', '{"version": 1}']
)
def test_an_unreadable_record_is_none(text: str | None) -> None:
    assert Record.load(text) == Record()


@pytest.mark.parametrize(
    ("options", "option", "said"),
    [
        ({"gateways": ["fe80::1"]}, "gateways", "fe80::1%eth0"),
        ({"gateways": ["fd09::1%back"]}, "gateways", "only an IPv6 link-local"),
        ({"gateways": ["10.9.2.2%back"]}, "gateways", "only an IPv6 link-local"),
        ({"gateways": ["fe80::1%a b"]}, "gateways", "network interface"),
        ({"gateways": ["fe80::1%"]}, "gateways", "network interface"),
        ({"addresses": ["10.9.2.11"]}, "addresses", "choose the mode source_address"),
        ({"direct": ["10.9.2.3"]}, "direct", "source_address or connection_mark"),
        ({"mode": "source_address", "loose_rp_filter": True}, "loose_rp_filter", "no meaning"),
        ({"mode": "source_address", "addresses": ["fd09::1"]}, "addresses", "is ipv6, for which"),
        (
            {
                "mode": "source_address",
                "addresses": ["10.9.2.11"],
                "gateways": ["10.9.2.2", "fd09::2"],
            },
            "addresses",
            "none is ipv6, as the gateway fd09::2 is",
        ),
        ({"mode": "source_address", "addresses": ["127.0.0.1"]}, "addresses", "cannot be"),
        ({"mode": "source_address", "addresses": ["app"]}, "addresses", "not an IP address"),
        ({"mode": "source_address", "direct": ["0.0.0.0/0"]}, "direct", "everything"),
        ({"mode": "source_address", "direct": ["10.9.2.3/24"]}, "direct", "has host bits set"),
        ({"mode": "connection_mark", "mac_addresses": ["02:00"]}, "mac_addresses", "hardware"),
        ({"table": 254}, "table", "belong to the kernel"),
        ({"table_name": "main"}, "table_name", "cannot be used"),
        ({"rule_priority": 32766}, "rule_priority", "between 1 and 32765"),
        ({"rule_priority": 0}, "rule_priority", "between 1 and 32765"),
        ({"mark": "0x3"}, "mark", "outside the mask"),
        ({"mask": "0"}, "mask", "selects no bit"),
    ],
)
def test_refused_without_a_look_at_the_host(
    options: dict[str, t.Any], option: str, said: str
) -> None:
    with pytest.raises(InputError) as refusal:
        desired(**options)
    assert said in str(refusal.value)
    assert refusal.value.details["option"] == option


NFT_OLD = """\
table inet tproxy_backend {
    chain prerouting { # handle 1
    }
    set x {
        type mark
        elements = { 0x00000001,
            0x00000002 }
    }

    chain output {
        type route hook output priority mangle; policy accept;
        ct direction reply ct mark and 0x0000000f == 0x00000002 meta mark set meta mark and 0xfffffff2 or 0x00000002 comment "x"
    }
}
"""


def test_tables_of_nft_in_canonical_form() -> None:
    assert parse.nft_table(NFT_OLD)["chain output"] == (
        "type route hook output priority mangle; policy accept;",
        "ct direction reply ct mark & 0xf == 0x2 "
        'meta mark set meta mark & 0xfffffff2 | 0x2 comment "x"',
    )
    assert list(parse.nft_table(NFT_OLD)) == ["chain prerouting", "set x", "chain output"]
