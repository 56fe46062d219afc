# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plans are carried out on a strict kernel in memory: it refuses what the real one refuses."""

from __future__ import annotations

import re
import shlex
import subprocess
import typing as t
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_parse as parse
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import (
    Desired,
    Intercept,
    sysctl_path,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    BUILTIN_CHAINS,
    FAMILIES,
    FilterRule,
    FilterTable,
    IpRule,
    MarkChange,
    NftChain,
    NftRule,
    NftTable,
    Route,
    TableName,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_plan import plan_host
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_result import diff_of
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_snapshot import (
    Plan,
    Record,
    Snapshot,
)

INTERFACES = ("lo", "front", "back")
PROTOCOLS = {"kernel": 2, "static": 4, "unspec": 0, "boot": 3}


class Kernel:
    """A proxy host in memory. Every refusal is an AssertionError."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def apply(self, plan: Plan) -> Snapshot:
        now = self.snapshot
        variants = {
            variant: {family: dict(tables) for family, tables in families.items()}
            for variant, families in now.variants.items()
        }
        tables = list(now.nft)
        assert [step.adds for step in plan.firewall] == sorted(
            (step.adds for step in plan.firewall), reverse=True
        ), "something was taken away before its successor was there"
        for step in plan.firewall:
            if step.program == "nft":
                tables = loaded(tables, step.text)
                continue
            variant, family = next(
                (variant, family)
                for variant in variants
                for family in FAMILIES
                if step.program == render.program(variant, family, "-restore")
            )
            content = variants[variant].setdefault(family, {})
            content["mangle"] = restored(
                content.get("mangle", FilterTable(BUILTIN_CHAINS)), step.text
            )
        for family in plan.drop_tables:
            content = variants["iptables"].get(family, {})
            mangle = content.get("mangle")
            if mangle and not mangle.rules and set(mangle.chains) <= set(BUILTIN_CHAINS):
                del content["mangle"]
        rules = {family: list(entries) for family, entries in now.rules.items()}
        routes = {family: dict(tables) for family, tables in now.routes.items()}
        for family, lines in (*plan.ip.items(), *plan.ip_after.items()):
            for line in lines:
                self.routing(
                    rules.setdefault(family, []), routes.setdefault(family, {}), family, line
                )
        files = {**now.files, **plan.files}
        if plan.record is not None:
            files[render.RECORD] = plan.record
        return replace(
            now,
            firewall=variants.pop(now.variant),
            other_variants=variants,
            nft=tuple(tables),
            rules={family: tuple(entries) for family, entries in rules.items()},
            routes=routes,
            sysctls=self.sysctls(plan),
            files=files,
            missing_directories=plan.remove_directories if plan.firewall_first else (),
            record=Record.load(files.get(render.RECORD)),
        )

    def routing(
        self,
        rules: list[IpRule],
        routes: dict[int, tuple[Route, ...]],
        family: str,
        line: str,
    ) -> None:
        kind, verb, *words = line.split()
        if kind == "rule":
            rule = parse_rule(words)
            same = [
                entry for entry in rules if replace(entry, protocol=0) == replace(rule, protocol=0)
            ]
            if verb == "add":
                assert not same, f"File exists: {line}"
                rules.append(rule)
                rules.sort(key=lambda entry: entry.priority)
            else:
                assert rule in rules, f"No such file or directory: {line}"
                rules.remove(rule)
            return
        table = int(words[words.index("table") + 1])
        default = 1024 if family == "ipv6" else 0
        metric = int(words[words.index("metric") + 1]) if "metric" in words else default
        others = [
            entry
            for entry in routes.get(table, ())
            if not (entry.type == "local" and entry.metric == metric)
        ]
        if verb == "replace":
            protocol = PROTOCOLS[words[words.index("proto") + 1]]
            others.append(Route("local", "default", "lo", protocol=protocol, metric=metric))
        else:
            assert len(others) < len(routes.get(table, ())), f"No such process: {line}"
        routes[table] = tuple(others)

    def sysctls(self, plan: Plan) -> dict[str, str]:
        values = dict(self.snapshot.sysctls)
        for path, value in plan.sysctls:
            assert path in values, path
            for family in ("ipv4", "ipv6"):
                if path == f"net/{family}/conf/all/forwarding" and values[path] != value:
                    for interface in ("default", *INTERFACES):
                        values[f"net/{family}/conf/{interface}/forwarding"] = value
                    if family == "ipv4":
                        values["net/ipv4/conf/all/accept_redirects"] = "0" if value == "1" else "1"
            values[path] = value
        return values


def parse_rule(words: list[str]) -> IpRule:
    numbers = {"main": 254, "local": 255, "default": 253}
    pairs = dict(zip(words[::2], words[1::2]))
    assert set(pairs) <= {"priority", "iif", "fwmark", "lookup", "protocol"}, words
    mark, mask = (int(part, 16) for part in pairs["fwmark"].split("/"))
    protocol = pairs["protocol"]
    return IpRule(
        priority=int(pairs["priority"]),
        table=numbers.get(pairs["lookup"]) or int(pairs["lookup"]),
        mark=mark,
        mask=mask,
        iif=pairs.get("iif"),
        protocol=PROTOCOLS[protocol] if protocol in PROTOCOLS else int(protocol),
    )


def restored(table: FilterTable, text: str) -> FilterTable:
    """iptables-restore --noflush."""
    lines = text.splitlines()
    assert lines[0] == "*mangle"
    assert lines[-1] == "COMMIT"
    chains, rules = list(table.chains), list(table.rules)
    for line in lines[1:-1]:
        if line.startswith(":"):
            name = line[1:].split()[0]
            assert name not in BUILTIN_CHAINS
            rules = [rule for rule in rules if rule.chain != name]
            chains += [] if name in chains else [name]
            continue
        verb, chain, *rest = shlex.split(line)
        assert chain in chains, f"No chain/target/match by that name: {line}"
        if verb == "-F":
            rules = [rule for rule in rules if rule.chain != chain]
        elif verb == "-X":
            assert not [rule for rule in rules if rule.chain == chain], (
                f"Directory not empty: {line}"
            )
            assert not [rule for rule in rules if rule.target == chain], f"Too many links: {line}"
            chains.remove(chain)
        elif verb == "-D":
            rules.remove(FilterRule(chain, tuple(rest)))
        elif verb in ("-A", "-I"):
            at = int(rest.pop(0)) if verb == "-I" else len(rules) + 1
            rule = FilterRule(chain, tuple(rest))
            assert rule.target in (*chains, "ACCEPT", "MARK", "TPROXY"), line
            inside = [entry for entry in rules if entry.chain == chain]
            assert verb == "-A" or at <= len(inside) + 1, f"Index of insertion too big: {line}"
            inside.insert(at - 1, rule)
            rules = [entry for entry in rules if entry.chain != chain] + inside
        else:
            raise AssertionError(line)
    return FilterTable(tuple(chains), tuple(rules))


def loaded(tables: list[NftTable], text: str) -> list[NftTable]:
    """`nft -f` of the few statements that this collection uses."""
    lines = [line.strip() for line in text.splitlines()]
    index = 0
    while index < len(lines):
        delete, name, block = t.cast(
            "re.Match[str]", re.fullmatch(r"(delete )?table inet (\S+)( {)?", lines[index])
        ).groups()
        known = [table for table in tables if (table.family, table.name) == ("inet", name)]
        index += 1
        if delete:
            assert known, f"No such file or directory: {name}"
            tables = [table for table in tables if table not in known]
        elif not block:
            tables = tables if known else [*tables, NftTable("inet", name)]
        else:
            assert not known, "added to what is there already"
            chain = lines[index].split()[1]
            hook = re.fullmatch(
                r"type (\S+) hook (\S+) priority (-?\d+); policy (\S+);", lines[index + 1]
            )
            assert hook is not None
            end = lines.index("}", index)
            rules = [
                NftRule(chain, (match[1],), comment=match[2])
                for match in (
                    t.cast("re.Match[str]", re.fullmatch(r'(.*) comment "(.*)"', line))
                    for line in lines[index + 2 : end]
                )
            ]
            base = NftChain(chain, hook[2], int(hook[3]), hook[1], hook[4])
            assert lines[end + 1] == "}"
            index = end + 2
            tables.append(NftTable("inet", name, (base,), tuple(rules)))
    return tables


# Hosts and wishes

FOREIGN_RULES = [
    parse.filter_rule(line)
    for line in (
        "-A PREROUTING -i front -p udp -j THEIRS",
        "-A PREROUTING -p tcp -j ACCEPT",
        '-A THEIRS -m comment --comment "a b" -j MARK --set-xmark 0x4000/0x4000',
        "-A OUTPUT -p tcp -j CONNMARK --save-mark",
    )
]
FOREIGN_TABLES = (
    NftTable(
        "inet",
        "theirs",
        (NftChain("prerouting", "prerouting", -160),),
        (NftRule("prerouting", ("meta mark set 0x4000",), marks=(MarkChange("meta", 0x4000, 0),)),),
    ),
)
FOREIGN_IP_RULES = [
    IpRule(0, 255),
    IpRule(50, 300, source="203.0.113.9", protocol=0),
    IpRule(5000, 51820, 0xCA6C, inverted=True, protocol=0),
    IpRule(32766, 254),
]


def fresh(*, lived_in: bool = False, forwarding: str = "0") -> Snapshot:
    sysctls = {f"net/{family}/conf/all/forwarding": forwarding for family in FAMILIES}
    for interface in ("all", "default", *INTERFACES):
        for family in FAMILIES:
            sysctls[f"net/{family}/conf/{interface}/forwarding"] = forwarding
        sysctls[f"net/ipv4/conf/{interface}/send_redirects"] = "1"
        sysctls[f"net/ipv6/conf/{interface}/accept_ra"] = "1"
    sysctls["net/ipv4/conf/all/accept_redirects"] = "0" if lived_in or forwarding == "1" else "1"
    sysctls["net/ipv4/conf/back/send_redirects"] = "0" if lived_in else "1"
    sysctls["net/ipv4/tcp_mtu_probing"] = "0"
    mangle = FilterTable((*BUILTIN_CHAINS, "THEIRS"), tuple(FOREIGN_RULES))
    return Snapshot(
        firewall={family: {"mangle": mangle} if lived_in else {} for family in FAMILIES},
        other_variants={"iptables-legacy": {"ipv6": {"mangle": mangle}} if lived_in else {}},
        nft=FOREIGN_TABLES if lived_in else (),
        rules={family: tuple(FOREIGN_IP_RULES) if lived_in else () for family in FAMILIES},
        routes={family: {} for family in FAMILIES},
        sysctls=sysctls,
        interfaces=INTERFACES,
        advertised=("front",) if lived_in else (),
        files=dict.fromkeys((*render.FILES, render.RECORD)),
        missing_directories=("/etc/tproxy-host", "/var/lib/tproxy-host"),
    )


snapshots = st.builds(fresh, lived_in=st.booleans(), forwarding=st.sampled_from("01"))
wishes = st.builds(
    lambda mark, **rest: Desired(mark=mark[0], mask=mark[1], **rest),
    mark=st.sampled_from([(0x1, 0x1), (0x100, 0x300), (0x8, 0xF)]),
    families=st.sampled_from([("ipv4",), ("ipv6",), FAMILIES]),
    table=st.sampled_from([100, 7, 4100]),
    table_name=st.sampled_from(["haproxy_tproxy", "other"]),
    rule_priority=st.sampled_from([1, 100, 7000]),
    chain=st.sampled_from(["DIVERT", "TO_HAPROXY"]),
    interfaces=st.sampled_from([(), ("back",), ("front", "back")]),
    intercepts=st.sampled_from(
        [
            (),
            (Intercept(("80", "8000:8010"), 3129),),
            (
                Intercept(("80",), 3129, ("ipv4",), sources=("10.0.0.0/8",), interfaces=("front",)),
                Intercept(("80", "443"), 3130, interfaces=("front", "back")),
            ),
        ]
    ),
    forwarding=st.sampled_from([None, True, False]),
    send_redirects=st.sampled_from([None, True, False]),
    sysctls=st.sampled_from([(), (("net/ipv4/tcp_mtu_probing", "1"),)]),
    firewall=st.sampled_from(["iptables", "iptables-legacy", "nftables"]),
    nft_table=st.sampled_from(["haproxy_tproxy", "another"]),
    socket_match=st.sampled_from(["transparent", "any"]),
    icmp=st.booleans(),
    guard_rule=st.booleans(),
    rule_protocol=st.sampled_from(["kernel", "static"]),
    position=st.sampled_from(["first", "last"]),
)


def visible(snapshot: Snapshot) -> t.Any:
    """What anybody can see of a host. A table or chain table without content is as good as none."""
    chains = {
        (variant, family, name, chain): table.in_chain(chain)
        for variant, families in snapshot.variants.items()
        for family, tables in families.items()
        for name, table in tables.items()
        for chain in table.chains
        if chain not in BUILTIN_CHAINS or table.in_chain(chain)
    }
    routes = {
        (family, table): entries
        for family, tables in snapshot.routes.items()
        for table, entries in tables.items()
        if entries
    }
    # The order among rules of one priority says nothing here: they are for different interfaces.
    rules = {family: sorted(entries, key=str) for family, entries in snapshot.rules.items()}
    rules = {
        family: sorted(entries, key=lambda rule: rule.priority) for family, entries in rules.items()
    }
    tables = [(str(table), table.chains, [*map(str, table.rules)]) for table in snapshot.nft]
    return (chains, sorted(tables, key=str)), rules, routes, snapshot.sysctls, snapshot.files


def seen(snapshot: Snapshot, desired: Desired | None) -> Snapshot:
    """As Host.read() looks at the kernel: the chosen variant apart from the other."""
    variant = desired.firewall if desired and desired.firewall != "nftables" else "iptables"
    others = snapshot.variants
    return replace(snapshot, variant=variant, firewall=others.pop(variant), other_variants=others)


def carry_out(snapshot: Snapshot, desired: Desired | None) -> Snapshot:
    host = seen(snapshot, desired)
    return Kernel(host).apply(plan_host(host, desired))


def in_place(snapshot: Snapshot, desired: Desired, family: str) -> bool:
    """Whether the family's rules are where they belong."""
    if desired.firewall == "nftables":
        (table,) = [table for table in snapshot.nft if table.name == desired.nft_table]
        return [*map(str, table.rules)] == [*map(str, render.nft_table(desired).rules)]
    inside = snapshot.firewall[family]["mangle"].in_chain("PREROUTING")
    jumps = render.jumps(desired, family)
    return jumps == (
        inside[: len(jumps)] if desired.position == "first" else inside[len(inside) - len(jumps) :]
    )


@settings(max_examples=60, deadline=None)
@given(snapshots, wishes)
def test_a_plan_leaves_nothing_to_plan(snapshot: Snapshot, desired: Desired) -> None:
    after = carry_out(snapshot, desired)
    assert plan_host(after, desired).changes == ()
    for family in desired.families:
        assert in_place(after, desired, family)


@settings(max_examples=60, deadline=None)
@given(snapshots, st.lists(wishes, min_size=1, max_size=4))
def test_whatever_was_wanted_in_between_absent_ends_where_it_began(
    snapshot: Snapshot, desires: list[Desired]
) -> None:
    now = snapshot
    for desired in desires:
        now = carry_out(now, desired)
        assert plan_host(now, desired).changes == ()
    direct = carry_out(snapshot, desires[-1])
    assert visible(replace(now, files={}))[:4] == visible(replace(direct, files={}))[:4]
    gone = carry_out(now, None)
    assert visible(gone) == visible(snapshot)
    assert plan_host(gone, None).changes == ()


@st.composite
def damaged(draw: st.DrawFn) -> tuple[Snapshot, Desired]:
    """A host that was as wanted until somebody deleted, doubled and shuffled things."""
    desired = draw(wishes)
    now = carry_out(draw(snapshots), desired)
    firewall = {}
    for family, tables in now.firewall.items():
        firewall[family] = dict(tables)
        if "mangle" not in tables:
            continue
        mangle = tables["mangle"]
        top = draw(st.permutations([rule for rule in mangle.rules if rule.chain == "PREROUTING"]))
        top = top[draw(st.integers(0, 2)) :] + top[: draw(st.integers(0, 2))]
        inside = [rule for rule in mangle.rules if rule.chain != "PREROUTING"]
        inside = inside[draw(st.integers(0, 1)) :]
        firewall[family]["mangle"] = FilterTable(mangle.chains, (*top, *inside))
    rules = {
        family: tuple(
            replace(rule, protocol=draw(st.sampled_from([2, 2, 4])))
            if rule.mark == desired.mark
            else rule
            for rule in entries
            if rule.mark != desired.mark or draw(st.booleans())
        )
        for family, entries in now.rules.items()
    }
    files = {
        path: draw(st.sampled_from([content, content, None, f"{render.HEADER}\n"]))
        if content
        else content
        for path, content in now.files.items()
        if path != render.RECORD
    }
    sysctls = {
        path: draw(st.sampled_from([value, value, "0", "1"])) for path, value in now.sysctls.items()
    }
    routes = {
        family: tables if draw(st.booleans()) else {} for family, tables in now.routes.items()
    }
    tables = []
    for table in now.nft:
        if table.name == desired.nft_table:
            inside = draw(st.permutations(table.rules))[draw(st.integers(0, 2)) :]
            stranger = NftRule(desired.chain, ("accept",))
            # A table with nothing but a stranger's rules is a stranger's.
            added = draw(st.sampled_from([(), (stranger,) if inside else (), tuple(inside[:1])]))
            table = replace(table, rules=(*inside, *added))
        if table.name != desired.nft_table or draw(st.booleans()):
            tables.append(table)
    files[render.RECORD] = now.files[render.RECORD]
    return replace(
        now,
        firewall=firewall,
        nft=tuple(tables),
        rules=rules,
        routes=routes,
        files=files,
        sysctls=sysctls,
    ), desired


@settings(max_examples=100, deadline=None)
@given(damaged())
def test_any_damage_is_repaired_and_the_rules_of_others_keep_their_order(
    case: tuple[Snapshot, Desired],
) -> None:
    snapshot, desired = case
    plan = plan_host(snapshot, desired)
    after = Kernel(snapshot).apply(plan)
    assert plan_host(after, desired).changes == ()
    for family in desired.families:
        assert in_place(after, desired, family)
    for family in FAMILIES:
        before_rules, after_rules = (
            [
                rule
                for rule in host.firewall.get(family, {}).get("mangle", FilterTable()).rules
                if not rule.owned
            ]
            for host in (snapshot, after)
        )
        for chain in {rule.chain for rule in before_rules}:
            assert [rule for rule in before_rules if rule.chain == chain] == [
                rule for rule in after_rules if rule.chain == chain
            ]
    assert bool(plan.changes) == bool(plan.changes_kernel or plan.files or plan.record)


@settings(max_examples=50, deadline=None)
@given(wishes)
def test_the_boot_files_are_the_plan_from_nothing(desired: Desired) -> None:
    plan = plan_host(seen(fresh(), desired), desired)
    steps = {step.program: step.text for step in plan.firewall}
    if desired.firewall == "nftables":
        assert plan.files[render.NFT] == f"{render.HEADER}\n{steps.pop('nft')}"
    for family in desired.families:
        if desired.firewall != "nftables":
            program = render.program(desired.firewall, family)
            lines = (plan.files[render.FIREWALL[family]] or "").splitlines()
            assert lines[:2] == [render.HEADER, f"# Program: {program}"]
            assert lines[2:] == steps.pop(f"{program}-restore").splitlines()
        assert (
            plan.files[render.ROUTING[family]]
            == "\n".join([render.HEADER, *plan.ip[family]]) + "\n"
        )
    assert not steps
    assert not plan.ip_after
    for family in set(FAMILIES) - set(desired.families):
        assert family not in plan.ip


def test_sysctls_are_written_in_the_safe_order() -> None:
    """accept_ra before IPv6 forwarding; all before the interfaces when values go back."""
    desired = Desired(forwarding=True)
    plan = plan_host(fresh(lived_in=True), desired)
    written = [path for path, _value in plan.sysctls]
    assert written.index("net/ipv6/conf/front/accept_ra") < written.index(
        "net/ipv6/conf/all/forwarding"
    )
    after = Kernel(fresh(lived_in=True)).apply(plan)
    undone = [path for path, _value in plan_host(after, None).sysctls]
    assert undone[:2] == ["net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding"]
    assert ("net/ipv4/conf/all/accept_redirects", "0") in plan_host(after, None).sysctls


def test_changes_name_item_found_and_wanted() -> None:
    desired = Desired(interfaces=("back",))
    after = carry_out(fresh(), desired)
    wrong = replace(after, rules={**after.rules, "ipv4": (IpRule(9, 100, 1, 1, iif="back"),)})
    (change,) = plan_host(wrong, desired).changes
    assert change.as_dict() == {
        "item": "ipv4 rule 101 on back",
        "found": "priority 9 iif back fwmark 0x1/0x1 lookup 100 protocol kernel",
        "wanted": "priority 101 iif back fwmark 0x1/0x1 lookup 100 protocol kernel",
        "sentence": "ipv4 rule 101 on back: found: priority 9 iif back fwmark 0x1/0x1 lookup 100 protocol kernel, "
        "wanted: priority 101 iif back fwmark 0x1/0x1 lookup 100 protocol kernel",
    }


def test_the_diff_holds_what_changes_and_nothing_else() -> None:
    desired = Desired()
    after = carry_out(fresh(lived_in=True), desired)
    wrong = replace(
        after, files={**after.files, render.SYSCTLS: None, render.UNIT: f"{render.HEADER}\nold\n"}
    )
    (unit,) = diff_of(wrong, plan_host(wrong, desired), hidden=render.RECORD)
    assert unit["before_header"] == render.UNIT
    assert unit["before"] == f"{render.HEADER}\nold\n"
    assert unit["after"] == render.unit_file()
    assert diff_of(after, plan_host(after, desired), hidden=render.RECORD) == []


@pytest.mark.parametrize(
    ("inverted", "mark", "mask", "refused"),
    [
        (False, 0x539, 0xFFFFFFFF, True),
        (False, 0x1, 0x1, True),
        (False, 0x2, 0x2, False),
        (False, 0x4000, 0xFFFFFFFF, False),
        (True, 0xCA6C, 0xFFFFFFFF, False),
        (True, 0xCA6D, 0xFFFFFFFF, True),
    ],
)
def test_which_marks_of_others_are_in_the_way(
    inverted: bool, mark: int, mask: int, refused: bool
) -> None:
    rule = IpRule(200, 44, mark, mask, inverted=inverted)
    snapshot = replace(fresh(), rules={"ipv4": (rule,), "ipv6": ()})
    if refused:
        with pytest.raises(InputError, match=r"^mark: the ipv4 rule 'priority 200 .*lookup 44"):
            plan_host(snapshot, Desired())
    else:
        plan_host(snapshot, Desired())


def test_a_name_of_the_same_table_elsewhere_is_no_conflict() -> None:
    ours = TableName(100, "haproxy_tproxy", "/etc/iproute2/rt_tables.d/site.conf")
    plan_host(replace(fresh(), table_names=(ours,)), Desired())
    with pytest.raises(InputError, match=r"^table: /etc/iproute2/x gives table 100 the name 'vpn'"):
        plan_host(
            replace(fresh(), table_names=(TableName(100, "vpn", "/etc/iproute2/x"),)), Desired()
        )


def test_absent_on_a_strangers_host_does_nothing() -> None:
    """The classic recipe, typed by hand, is not ours to remove, even if the options describe it."""
    classic = FilterTable(
        (*BUILTIN_CHAINS, "DIVERT"),
        (
            parse.filter_rule("-A PREROUTING -p tcp -m socket -j DIVERT"),
            parse.filter_rule("-A DIVERT -j ACCEPT"),
        ),
    )
    snapshot = replace(
        fresh(),
        firewall={"ipv4": {"mangle": classic}},
        rules={"ipv4": (IpRule(32765, 100, 1, 1, protocol=0),)},
        routes={"ipv4": {100: (Route("local", "default", "lo", protocol=3),)}},
    )
    assert plan_host(snapshot, None, Desired()) == Plan()


def test_the_loader_is_sound_shell() -> None:
    done = subprocess.run(
        ["sh", "-n"], input=render.loader(), text=True, capture_output=True, check=False
    )
    assert done.stderr == ""
    checked = subprocess.run(
        ["shellcheck", "--shell=sh", "-"],
        input=render.loader(),
        text=True,
        capture_output=True,
        check=False,
    )
    assert checked.stdout == ""
    assert checked.returncode == 0


def test_a_sysctl_of_an_interface_with_a_dot_keeps_its_meaning() -> None:
    desired = Desired(interfaces=("eth0.7",), send_redirects=False)
    text = render.sysctl_file(desired, ())
    assert text is not None
    assert "net/ipv4/conf/eth0.7/send_redirects = 0" in text
    for line in text.splitlines()[1:]:
        assert sysctl_path(line.split(" = ")[0]).startswith("net/ipv4/conf/")
