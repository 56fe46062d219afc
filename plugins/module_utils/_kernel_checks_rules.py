# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: the plan's changes, and what the kernel makes of rules and sysctls together, as checks. Private to the collection."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_check import (
    FAILED,
    GROUPS,
    OK,
    UNKNOWN,
    Check,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import Desired
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    FAMILIES,
    TABLE_MAIN,
    Change,
    IpRule,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_plan import plan_host
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_routing import warnings_of
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_snapshot import Snapshot
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_survey import (
    Decision,
    Seen,
    Survey,
    Unseen,
)

# The option that a refusal names -> the check.
_OPTIONS = {
    "mark": "mark",
    "mask": "mark",
    "table": "local_route",
    "table_name": "boot_files",
    "chain": "divert_chain",
    "nft_table": "divert_chain",
    "rp_filter": "rp_filter",
    "interfaces": "interface",
    "sysctls": "sysctl",
    "files": "boot_files",
    "intercepts": "intercept",
}
_AGAIN = "run tproxy_rules, or the role tproxy_host, again"
_REMEDIES = {
    "divert_chain": f"{_AGAIN}; if it comes back, find what changes the chain",
    "divert_jump": f"{_AGAIN}; if it comes back, find what flushes or reorders the firewall",
    "mark": f"{_AGAIN}; if another program uses these bits, choose another mark and mask",
    "ip_rule": f"{_AGAIN}; if it comes back, find what removes rules, like a network manager",
    "send_redirects": f"{_AGAIN}; servers that took a redirect keep it for five minutes",
}


# Rules, routes, sysctls: the plan's changes under the checks' names


def rules_checks(survey: Survey, snapshot: Seen[Snapshot], desired: Desired) -> t.Iterator[Check]:
    found = Unseen(snapshot.reason) if isinstance(snapshot, Unseen) else planned(snapshot, desired)
    if isinstance(found, Unseen) or isinstance(snapshot, Unseen):
        reason = found.reason if isinstance(found, Unseen) else ""
        for name, family in _expected_rules(desired):
            yield Check(name, UNKNOWN, family, "", reason)
        return
    for key in dict.fromkeys((*_expected_rules(desired), *found)):
        if key[0] in GROUPS["rules"]:
            name, family = key
            yield one_of(name, family, found.get(key, ()), desired)
    for family in desired.families:
        yield from _routing(survey, snapshot, desired, family, found)
    if ("tcp_fwmark_accept", "ipv4") not in found:
        yield from _fwmark_accept(survey, snapshot, desired)


def _expected_rules(desired: Desired) -> list[tuple[str, str]]:
    names: list[tuple[str, str]] = [("interface", "")]
    if desired.firewall == "nftables":
        names.append(("divert_chain", ""))
    for family in desired.families:
        names += [("mark", family), ("divert_jump", family), ("ip_rule", family)]
        if desired.firewall != "nftables":
            names.append(("divert_chain", family))
        if desired.icmp:
            names.append(("divert_icmp", family))
        if any(rule.table == TABLE_MAIN for rule in render.ip_rules(desired)):
            names.append(("guard_rule", family))
        names.append(("local_route", family))
        if any(family in entry.families for entry in desired.intercepts):
            names.append(("intercept", family))
        if desired.forwarding is not None:
            names.append(("forwarding", family))
    return names


Changes = dict[tuple[str, str], tuple[Change, ...]]


def planned(snapshot: Snapshot, desired: Desired) -> Changes | Unseen:
    """What is not as wanted by the name of its check; a conflict with others is one of them."""
    found: dict[tuple[str, str], list[Change]] = {}
    try:
        changes = plan_host(snapshot, desired).changes
    except InputError as exc:
        conflict = str(exc)
        option = str(exc.details.get("option", "")).partition("[")[0]
        named = re.search(r"\bipv[46]\b", conflict)
        family = named.group() if named and option not in ("interfaces", "files") else ""
        name = _OPTIONS.get(option, "other_rules")
        if option == "table" and f"{family} rule '" in conflict:
            name = "ip_rule"
        found[name, family] = [Change(name, conflict, "nothing of others in the way")]
        try:
            changes = plan_host(snapshot, desired, refusing=False).changes
        except InputError as again:
            return Unseen(f"not compared: {again}")
    for change in changes:
        name, family = name_of(change)
        found.setdefault((name, family), []).append(change)
    for family in FAMILIES:
        # What hits both is about the way to the chain, not about ICMP.
        if ("divert_jump", family) in found:
            found["divert_jump", family] += found.pop(("divert_icmp", family), [])
    return {key: tuple(value) for key, value in found.items()}


_SYSCTLS = (
    "forwarding",
    "send_redirects",
    "rp_filter",
    "src_valid_mark",
    "tcp_fwmark_accept",
    "accept_ra",
)
_MARK_VALUE = re.compile(r"--set-x?mark \S+|meta mark set .*?(?= accept| comment|;|$)")
_RULES_ITEMS = (
    # Rules of ours in the other variant of iptables, or in a table of nft that is not wanted.
    (r"ipv[46] (nft|legacy) mangle|nft table ", "other_rules"),
    (r"ipv[46] intercept ", "intercept"),
    (r"ipv[46] rule .*\(guard\)$", "guard_rule"),
    (r"ipv[46] rule ", "ip_rule"),
    (r"ipv[46] route ", "local_route"),
    (r"ipv[46] mangle chain |nft \S+ ", "divert_chain"),
    (r"ipv[46] (mangle|nft) .*\bicmp(v6)?\b", "divert_icmp"),
    (r"ipv[46] (mangle|nft) ", "divert_jump"),
)


def name_of(change: Change) -> tuple[str, str]:
    """The check that a change of the plan belongs to, and the family."""
    item = change.item
    if item == f"file {render.RECORD}":
        return "record", ""
    if item.startswith("file "):
        return "boot_files", ""
    if item.startswith("sysctl "):
        path = item[len("sysctl ") :].replace(".", "/")
        name = path.rpartition("/")[2]
        family = "ipv6" if path.startswith("net/ipv6/") else "ipv4"
        return (name, family) if name in _SYSCTLS else ("sysctl", "")
    named = re.match(r"ipv[46]\b", item)
    family = named.group() if named else ""
    for pattern, name in _RULES_ITEMS:
        if re.match(pattern, item):
            if name in ("divert_chain", "divert_jump") and _only_the_mark(change):
                name = "mark"
            return name, family
    return "other_rules", family


def _only_the_mark(change: Change) -> bool:
    if not change.found or not change.wanted:
        return False
    same = _MARK_VALUE.sub("", change.found) == _MARK_VALUE.sub("", change.wanted)
    return same and change.found != change.wanted


def one_of(name: str, family: str, changes: t.Sequence[Change], desired: Desired) -> Check:
    if not changes:
        return Check(name, OK, family, _subject(name, desired), "as wanted", "")
    return Check(
        name,
        FAILED,
        family,
        _subject(name, desired) if len(changes) > 1 else changes[0].item,
        "; ".join(_found(change, len(changes) > 1) for change in changes),
        "; ".join(change.wanted or "nothing" for change in changes),
        _REMEDIES.get(name, _AGAIN),
    )


def _found(change: Change, several: bool) -> str:
    found = change.found or "missing"
    return f"{change.item}: {found}" if several else found


def _subject(name: str, desired: Desired) -> str:
    if name == "divert_chain":
        return desired.chain
    if name == "mark":
        return f"0x{desired.mark:x}/0x{desired.mask:x}"
    if name == "local_route":
        return f"table {desired.table}"
    if name == "interface":
        return ", ".join(desired.interfaces)
    return ""


# What the kernel makes of rules and sysctls together


def is_guarded(snapshot: Snapshot, desired: Desired, family: str) -> bool:
    """Whether what this host itself sends, or looks up to validate a source, keeps out of our table."""
    rules = snapshot.rules.get(family, ())
    ours = [rule for rule in rules if rule.table == desired.table and _has_mark(rule, desired)]
    first = min((rule.priority for rule in ours if rule.iif is None), default=None)
    if first is None:
        return True
    return any(
        rule.table == TABLE_MAIN
        and rule.iif == "lo"
        and rule.priority < first
        and (rule.mark is None or _has_mark(rule, desired))
        for rule in rules
    )


def _has_mark(rule: IpRule, desired: Desired) -> bool:
    return rule.mark is not None and not rule.inverted and (desired.mark & rule.mask == rule.mark)


def _effective(survey: Survey, key: str, interface: str) -> int:
    """The larger of `all` and the interface's own, as the kernel takes it."""
    values = (survey.sysctls.get(f"net/ipv4/conf/{name}/{key}", "0") for name in ("all", interface))
    return max(int(value) if value.isdecimal() else 0 for value in values)


def _interfaces(survey: Survey, desired: Desired, snapshot: Snapshot) -> list[str]:
    """The server-facing interfaces, as far as they are known."""
    found = desired.interfaces or tuple(entry.interface for entry in survey.decisions)
    if not found:
        found = tuple(name for name in snapshot.interfaces if name != "lo")
    return list(dict.fromkeys(found))


def _routing(
    survey: Survey,
    snapshot: Snapshot,
    desired: Desired,
    family: str,
    broken: t.Container[tuple[str, str]],
) -> t.Iterator[Check]:
    decisions = [entry for entry in survey.decisions if entry.family == family]
    # Otherwise the kernel's answer is about that.
    whole = not any((name, family) in broken for name in ("mark", "ip_rule", "local_route"))
    yield _order(snapshot, desired, family, decisions, whole)
    if family != "ipv4":
        return

    interfaces = _interfaces(survey, desired, snapshot)
    guarded = is_guarded(snapshot, desired, family)
    marks = [name for name in interfaces if _effective(survey, "src_valid_mark", name)]
    if ("src_valid_mark", family) not in broken:
        # Routes that a missing rule cannot lead to are no danger.
        bad = bool(marks) and not guarded
        yield Check(
            "src_valid_mark",
            FAILED if bad else OK,
            family,
            ", ".join(marks),
            f"{'1' if marks else '0'}, and the rules are "
            f"{'guarded' if guarded else 'neither guarded nor bound to interfaces'}",
            "0, or rules bound to interfaces or behind a guard",
            "give tproxy_rules the server-facing interfaces, or have it make the guard rule; "
            "VPNs set this sysctl"
            if bad
            else "",
        )
    if ("rp_filter", family) not in broken:
        yield _reverse_path(survey, decisions, interfaces, whole and not (marks and not guarded))
    if ("send_redirects", family) not in broken:
        yield _redirects(survey, decisions, interfaces)


def _order(
    snapshot: Snapshot,
    desired: Desired,
    family: str,
    decisions: t.Sequence[Decision],
    whole: bool,
) -> Check:
    warnings = [text for text in warnings_of(snapshot, desired) if f"the {family} " in text]
    astray = [entry for entry in decisions if entry.kind == "elsewhere"]
    expected = f"the kernel delivers marked answers of servers by table {desired.table}"
    if whole and astray:
        first = astray[0]
        return Check(
            "ip_rule_order",
            FAILED,
            family,
            first.server,
            f"an answer from {first.server} at {first.interface} goes elsewhere: {first.text}"
            + (f"; {warnings[0]}" if warnings else ""),
            expected,
            "choose a rule_priority below those of other software's rules",
        )
    if warnings and not (whole and decisions):
        return Check("ip_rule_order", UNKNOWN, family, "", warnings[0], expected)
    unclear = [entry for entry in decisions if entry.kind == "unknown"]
    if whole and unclear:
        return Check("ip_rule_order", UNKNOWN, family, unclear[0].server, unclear[0].text, expected)
    observed = "no rule of others stands before ours"
    if warnings:
        observed = f"rules of others stand before ours and let marked answers pass: {warnings[0]}"
    return Check("ip_rule_order", OK, family, "", observed, expected)


def _reverse_path(
    survey: Survey, decisions: t.Sequence[Decision], interfaces: t.Sequence[str], whole: bool
) -> Check:
    strict = [name for name in interfaces if _effective(survey, "rp_filter", name) == 1]
    values = ", ".join(f"{name} {_effective(survey, 'rp_filter', name)}" for name in interfaces)
    refused = [entry for entry in decisions if entry.kind == "invalid"]
    expected = "strict (1) only where the route to the servers leaves by the same interface"
    if not whole or not refused:
        return Check("rp_filter", OK, "ipv4", "", f"effective: {values}", expected)
    first = refused[0]
    if first.interface in strict:
        return Check(
            "rp_filter",
            FAILED,
            "ipv4",
            first.interface,
            f"strict, and the route to {first.server} does not leave by {first.interface}: "
            f"{first.text}",
            expected,
            f"set net.ipv4.conf.{first.interface}.rp_filter to 2 (the larger of it and `all` "
            "counts), or correct the route",
        )
    return Check(
        "rp_filter",
        FAILED,
        "ipv4",
        first.interface,
        f"source validation refuses {first.server} at {first.interface}: {first.text}; "
        f"effective: {values}",
        "servers' addresses are valid sources",
        "see to the routes and policy rules for the servers' addresses",
    )


def _redirects(
    survey: Survey, decisions: t.Sequence[Decision], interfaces: t.Sequence[str]
) -> Check:
    """A forwarding host with servers and router at the same interface sends redirects."""
    forwards = survey.sysctls.get("net/ipv4/conf/all/forwarding") == "1"
    shared = [
        name
        for name in dict.fromkeys(entry.interface for entry in decisions)
        if name == survey.default_interfaces.get("ipv4")
    ]
    sending = [name for name in interfaces if _effective(survey, "send_redirects", name)]
    bad = [name for name in shared if forwards and name in sending]
    return Check(
        "send_redirects",
        FAILED if bad else OK,
        "ipv4",
        ", ".join(bad),
        f"on at {', '.join(sending)}" if sending else "off",
        "off where servers and router are at the same interface",
        "run tproxy_rules with send_redirects: false; both `all` and the interface must be 0"
        if bad
        else "",
    )


def _fwmark_accept(survey: Survey, snapshot: Snapshot, desired: Desired) -> t.Iterator[Check]:
    value = survey.sysctls.get("net/ipv4/tcp_fwmark_accept")
    if value is None:
        return
    guarded = all(is_guarded(snapshot, desired, family) for family in desired.families)
    bad = value == "1" and not guarded
    yield Check(
        "tcp_fwmark_accept",
        FAILED if bad else OK,
        "",
        "",
        f"{value}, and the rules are "
        f"{'guarded' if guarded else 'neither guarded nor bound to interfaces'}",
        "0, or rules bound to interfaces or behind a guard",
        "give tproxy_rules the server-facing interfaces, or have it make the guard rule; otherwise "
        "`bind … transparent` accepts nothing"
        if bad
        else "",
    )
