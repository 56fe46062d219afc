# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: the policy routing part of the plan: rules and the table that they look up. Private to the collection."""

from __future__ import annotations

import typing as t
from dataclasses import replace

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import Desired
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    TABLE_MAIN,
    Change,
    IpRule,
    Route,
    TableName,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_snapshot import Snapshot


def _own_rule(rule: IpRule, exact: t.Iterable[Desired], recorded: t.Iterable[Desired]) -> bool:
    """Ours by all its fields; where the record says that we made such rules also by its meaning: our
    mark to our table, in whatever detail it drifted, or our rule to another table.
    """
    return any(rule in render.ip_rules(entry) for entry in exact) or any(
        _means(rule, entry) for entry in recorded
    )


def _means(rule: IpRule, recorded: Desired) -> bool:
    same_mark = rule.mark == recorded.mark and rule.mask == recorded.mask
    plain = not rule.inverted and rule.source == "all" and not rule.other
    guards = rule.table == TABLE_MAIN and rule.iif == "lo"
    retargeted = any(replace(rule, table=own.table) == own for own in render.ip_rules(recorded))
    return same_mark and plain and (rule.table == recorded.table or guards or retargeted)


def _own_routes(
    snapshot: Snapshot,
    family: str,
    table: int,
    exact: t.Iterable[Desired],
    recorded: t.Iterable[Desired],
) -> list[Route]:
    """The table's routes that are ours, told as the rules are."""
    wanted = [render.route(entry, family) for entry in exact if entry.table == table]
    by_meaning = any(entry.table == table for entry in recorded)
    return [
        route
        for route in snapshot.routes.get(family, {}).get(table, ())
        if route in wanted or (by_meaning and _delivers(route))
    ]


def plan_routing(
    snapshot: Snapshot,
    desired: Desired | None,
    family: str,
    changes: list[Change],
    *,
    guessed: bool,
) -> tuple[list[str], list[str]]:
    """What comes and what goes, as lines for `ip -batch`.

    `guessed`: the record is lost and what stands in its place is only believed to the letter."""
    lines: list[str] = []
    removals: list[str] = []
    previous = snapshot.recorded(family)
    new = () if desired is None else (desired,)
    exact, recorded = (previous, ()) if guessed else (new, previous)

    if desired is not None:
        target = render.route(desired, family)
        found = _own_routes(snapshot, family, desired.table, exact, recorded)
        if target not in found:
            changes.append(
                Change(
                    f"{family} route in table {desired.table}",
                    "; ".join(map(str, found)),
                    f"{target}",
                )
            )
            lines.append(f"route replace {render.route_words(desired)}")
        # A copy with another protocol or metric is not what `replace` replaces.
        for entry in found:
            if entry.metric != target.metric:
                if target in found:
                    changes.append(
                        Change(f"{family} route in table {desired.table}", str(entry), "")
                    )
                removals.append(
                    f"route del local default dev lo table {desired.table} metric {entry.metric}"
                )
    tables = {entry.table for entry in previous} - {entry.table for entry in new}
    for old in sorted(tables):
        for entry in _own_routes(snapshot, family, old, exact, recorded):
            changes.append(Change(f"{family} route in table {old}", str(entry), ""))
            metric = f" metric {entry.metric}" if entry.metric else ""
            removals.append(f"route del local default dev lo table {old}{metric}")

    wanted = render.ip_rules(desired) if desired is not None else ()
    live = snapshot.rules.get(family, ())
    own = [rule for rule in live if _own_rule(rule, exact, recorded)]
    added, removed = plan_rules(own, wanted, family, changes)
    # Rules before the routes that they lead to.
    return lines + added, sorted(removals + removed, reverse=True)


def plan_rules(
    own: t.Sequence[IpRule], wanted: t.Sequence[IpRule], family: str, changes: list[Change]
) -> tuple[list[str], list[str]]:
    """Lines for ip -batch that add what is missing, and those that remove what is too much."""
    lines: list[str] = []
    removals: list[str] = []
    stale = [rule for rule in dict.fromkeys(own) if rule not in wanted]
    for rule in wanted:
        item = _rule_name(rule, family)
        if rule not in own:
            like = [
                entry
                for entry in stale
                if (entry.table, entry.iif, entry.source) == (rule.table, rule.iif, rule.source)
            ]
            changes.append(Change(item, "; ".join(map(str, like)), str(rule)))
            for entry in like:
                stale.remove(entry)
                # The kernel takes two rules that differ in nothing but the protocol for the same.
                twin = replace(entry, protocol=rule.protocol) == rule
                (lines if twin else removals).append(f"rule del {entry.selectors}")
            lines.append(f"rule add {rule.selectors}")
        elif own.count(rule) > 1:
            changes.append(Change(item, f"{own.count(rule)} times: {rule}", str(rule)))
            removals += [f"rule del {rule.selectors}"] * (own.count(rule) - 1)
    for rule in stale:
        changes.append(Change(_rule_name(rule, family), str(rule), ""))
        removals += [f"rule del {rule.selectors}"] * own.count(rule)
    return lines, removals


def _delivers(route: Route) -> bool:
    return (
        route.type == "local"
        and route.destination == "default"
        and route.device == "lo"
        and route.gateway is None
    )


def _rule_name(rule: IpRule, family: str) -> str:
    if rule.table == TABLE_MAIN:
        return f"{family} rule {rule.priority} (guard)"
    suffix = f" on {rule.iif}" if rule.iif else ""
    suffix += f" from {rule.source}" if rule.source != "all" else ""
    return f"{family} rule {rule.priority}{suffix}"


def uses_mark(rule: IpRule, mark: int, mask: int) -> bool:
    """Whether a packet with our mark can match because of it."""
    if rule.mark is None:
        return False
    common = rule.mask & mask
    if rule.inverted:
        # "All but this mark", as VPNs say it, takes no bit for itself unless the mark looks like ours.
        return bool(common) and rule.mark & common == mark & common
    return bool(rule.mark & common)


def warnings_of(snapshot: Snapshot, desired: Desired | None) -> tuple[str, ...]:
    """Rules of others that stand before ours and can take a diverted packet away from us."""
    found = []
    for family in desired.families if desired else ():
        for rule in snapshot.rules.get(family, ()):
            first = desired is not None and 0 < rule.priority < desired.rule_priority
            # What a rule suppresses selects no packets: wg-quick's "lookup main suppress_prefixlength 0"
            # takes all that main has a route for.
            selects = [name for name, _value in rule.other if not name.startswith("suppress_")]
            anywhere = rule.source == "all" and not selects and rule.iif is None
            if first and anywhere and (rule.mark is None or rule.inverted):
                found.append(
                    f"the {family} rule '{rule}' stands before ours and may take diverted "
                    "packets away; "
                    f"choose a rule_priority below {rule.priority - 1}"
                )
    return tuple(found)


def refuse_routing(snapshot: Snapshot, desired: Desired, family: str) -> None:
    """Raises InputError for rules and routes of others in the way of ours."""
    recorded = snapshot.recorded(family)
    for rule in snapshot.rules.get(family, ()):
        if _own_rule(rule, (desired,), recorded):
            continue
        if uses_mark(rule, desired.mark, desired.mask):
            raise InputError(
                f"mark: the {family} rule '{rule}' of others uses bits of the mask "
                f"0x{desired.mask:x} too; "
                "choose a mark and mask of other bits",
                option="mark",
                found=[str(rule)],
            )
        if rule.table == desired.table:
            raise InputError(
                f"table: table {desired.table} is in use by the {family} rule '{rule}' of "
                "others; choose another number",
                option="table",
                found=[str(rule)],
            )
    own = _own_routes(snapshot, family, desired.table, (desired,), recorded)
    foreign = [
        entry
        for entry in snapshot.routes.get(family, {}).get(desired.table, ())
        if entry not in own
    ]
    if foreign:
        raise InputError(
            f"table: table {desired.table} holds {family} routes of others: '{foreign[0]}'; "
            "choose another number",
            option="table",
            found=[str(entry) for entry in foreign],
        )


def refuse_table_names(
    names: t.Iterable[TableName], table: int, table_name: str, own_path: str
) -> None:
    """Raises InputError where iproute2 knows the number or the name as something else."""
    for entry in names:
        if entry.path != own_path and (entry.number == table) != (entry.name == table_name):
            option = "table" if entry.number == table else "table_name"
            raise InputError(
                f"{option}: {entry.path} gives table {entry.number} the name '{entry.name}'; "
                f"choose another {'number' if option == 'table' else 'name'}",
                option=option,
                found=[f"{entry.number} {entry.name}"],
            )
