# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: (found, wanted) -> named changes and the steps to make. Private to the collection."""

from __future__ import annotations

import re
import typing as t
from dataclasses import replace

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    BUILTIN_CHAINS,
    FAMILIES,
    TABLE_MAIN,
    Change,
    Desired,
    FilterRule,
    FilterTable,
    IpRule,
    Plan,
    Record,
    Route,
    Snapshot,
    sysctl_name,
)

# What the kernel writes by itself when the key is written (inet_forward_change(),
# addrconf_fixup_forwarding()).
_SIDE_EFFECTS = {
    "net/ipv4/conf/all/forwarding": (
        "net/ipv4/conf/*/forwarding",
        "net/ipv4/conf/all/accept_redirects",
    ),
    "net/ipv6/conf/all/forwarding": ("net/ipv6/conf/*/forwarding",),
}


def plan_host(snapshot: Snapshot, desired: Desired | None, hint: Desired | None = None) -> Plan:
    """The changes that make the host as `desired`; None removes every trace.

    `hint` says what was probably set up where the record of it is lost; it is believed only on a host with
    other traces of ours. Raises InputError, naming what was found, where something of others is in the way.
    """
    if desired is not None:
        _refuse_conflicts(snapshot, desired)
        hint = None
    elif snapshot.record.desired is None and hint is not None and _has_traces(snapshot):
        snapshot = replace(snapshot, record=replace(snapshot.record, desired=hint))
    else:
        hint = None
    changes: list[Change] = []
    firewall: dict[str, str] = {}
    routing: dict[str, tuple[str, ...]] = {}
    for family in FAMILIES:
        target = desired if desired is not None and family in desired.families else None
        text = _plan_firewall(snapshot, target, family, changes)
        if text:
            firewall[family] = text
        lines = _plan_routing(snapshot, target, family, changes, guessed=hint is not None)
        if lines:
            routing[family] = tuple(lines)
    advertised = _advertised(snapshot, desired)
    sysctls, remembered = _plan_sysctls(snapshot, desired, advertised, changes)
    files = _plan_files(snapshot, desired, advertised, changes)

    record: str | None = None
    if desired is not None:
        record = Record(
            desired=desired,
            sysctls=remembered,
            directories=tuple(
                dict.fromkeys((*snapshot.record.directories, *snapshot.missing_directories))
            ),
            tables=tuple(
                family
                for family in FAMILIES
                if family in snapshot.record.tables
                or (
                    family in desired.families and "mangle" not in snapshot.firewall.get(family, {})
                )
            ),
            advertised=advertised,
        ).dump()
    path = render.RECORD
    if record != snapshot.files.get(path):
        if desired is None:
            changes.append(_file_change(path, snapshot.files.get(path), None))
            files[path] = None
        elif not changes:
            changes.append(_file_change(path, snapshot.files.get(path), record))
    else:
        record = None
    if not changes:
        return Plan(warnings=_warnings(snapshot, desired))
    return Plan(
        changes=tuple(changes),
        sysctls=sysctls,
        ip=routing,
        firewall=firewall,
        files=files,
        drop_tables=() if desired is not None else snapshot.record.tables,
        remove_directories=() if desired is not None else snapshot.record.directories,
        record=record,
        firewall_first=desired is None,
        warnings=_warnings(snapshot, desired),
    )


# Firewall


def _mangle(snapshot: Snapshot, family: str) -> FilterTable:
    return snapshot.firewall.get(family, {}).get("mangle", FilterTable())


def _has_traces(snapshot: Snapshot) -> bool:
    tables = [table for family in snapshot.firewall.values() for table in family.values()]
    return any(rule.owned for table in tables for rule in table.rules) or any(
        snapshot.files.get(path) is not None for path in render.FILES
    )


def _recorded(snapshot: Snapshot, family: str) -> Desired | None:
    """What the record says of the family."""
    recorded = snapshot.record.desired
    return recorded if recorded is not None and family in recorded.families else None


def _own_chains(snapshot: Snapshot, family: str, chain: str | None) -> set[str]:
    """Chains with only rules of ours; the one that is wanted or recorded also with a stranger's rule in it
    or, as a flush leaves it, empty."""
    table, known = _mangle(snapshot, family), _recorded(snapshot, family)
    recorded = known.chain if known else None
    own = set()
    for name in table.chains:
        rules = table.in_chain(name)
        owned = [rule.owned for rule in rules]
        if name in BUILTIN_CHAINS:
            continue
        if (
            (rules and all(owned))
            or (name in (chain, recorded) and any(owned))
            or (name == recorded and not rules)
        ):
            own.add(name)
    return own


def _jump_name(rule: FilterRule, family: str) -> str:
    interface = rule.value("-i")
    suffix = f" on {interface}" if interface else ""
    return f"{family} mangle {rule.chain} {rule.value('-p') or 'all'}{suffix}"


def _plan_firewall(
    snapshot: Snapshot, desired: Desired | None, family: str, changes: list[Change]
) -> str | None:
    """Edits for iptables-restore --noflush: deletes only rules of ours, by their text and never by number,
    so that a rule which others insert meanwhile cannot be hit."""
    table = _mangle(snapshot, family)
    declared: list[str] = []
    edits: list[str] = []
    wanted = render.jumps(desired, family) if desired else ()

    chain = desired.chain if desired else None
    old_chains = sorted(_own_chains(snapshot, family, chain) - {chain})
    for name in old_chains:
        foreign = [rule for rule in table.rules if rule.target == name and not rule.owned]
        if foreign:
            raise InputError(
                f"chain: the {family} mangle chain '{name}' cannot be removed because a rule of "
                f"others uses it: '{foreign[0]}'; "
                f"remove that rule first",
                option="chain",
                found=[str(rule) for rule in foreign],
            )

    if desired is not None:
        content, target = table.in_chain(desired.chain), render.chain_rules(desired)
        if content != target:
            changes.append(
                Change(
                    f"{family} mangle chain {desired.chain}",
                    "" if desired.chain not in table.chains else _joined(content) or "empty",
                    _joined(target),
                )
            )
            declared.append(f":{desired.chain} - [0:0]")
            edits += [str(rule) for rule in target]

    # Rules of ours that stand in any chain but the ones that are replaced or removed whole.
    for rule in table.rules:
        if rule.owned and rule.chain not in (*old_chains, chain) and rule.chain != "PREROUTING":
            changes.append(Change(_jump_name(rule, family), str(rule), ""))
            edits.append(f"-D {rule.chain} {rule.spec}")

    current = list(table.in_chain("PREROUTING"))
    for rule in dict.fromkeys(rule for rule in current if rule.owned):
        count = current.count(rule)
        surplus = count if rule not in wanted else count - 1
        if not surplus:
            continue
        found = str(rule) if count == 1 else f"{count} times: {rule}"
        changes.append(Change(_jump_name(rule, family), found, str(rule) if rule in wanted else ""))
        for _nr in range(surplus):
            edits.append(f"-D {rule.chain} {rule.spec}")
            current.remove(rule)
    named = {change.item for change in changes}
    for index, rule in enumerate(wanted):
        if index < len(current) and current[index] == rule:
            continue
        item = _jump_name(rule, family)
        if rule in current:
            if item not in named:
                changes.append(
                    Change(
                        item,
                        f"at position {current.index(rule) + 1}, behind '{current[index]}'",
                        f"at position {index + 1}",
                    )
                )
            edits.append(f"-D {rule.chain} {rule.spec}")
            current.remove(rule)
        else:
            changes.append(Change(item, "", str(rule)))
        edits.append(f"-I {rule.chain} {index + 1} {rule.spec}")
        current.insert(index, rule)

    for name in old_chains:
        changes.append(
            Change(f"{family} mangle chain {name}", _joined(table.in_chain(name)) or "empty", "")
        )
        edits += [f"-F {name}", f"-X {name}"]
    if not edits:
        return None
    return "\n".join(["*mangle", *declared, *edits, "COMMIT"]) + "\n"


def _joined(rules: t.Iterable[FilterRule]) -> str:
    return "; ".join(rule.spec for rule in rules)


# Routing


def _own_rule(rule: IpRule, exact: Desired | None, recorded: Desired | None) -> bool:
    """Ours by all its fields; where the record says that we made such rules also by its meaning: our
    mark to our table, in whatever detail it drifted.
    """
    if exact is not None and rule in render.ip_rules(exact):
        return True
    if recorded is None:
        return False
    same_mark = rule.mark == recorded.mark and rule.mask == recorded.mask
    plain = not rule.inverted and rule.source == "all" and not rule.other
    guards = rule.table == TABLE_MAIN and rule.iif == "lo"
    return same_mark and plain and (rule.table == recorded.table or guards)


def _own_routes(
    snapshot: Snapshot, family: str, table: int, exact: Desired | None, recorded: Desired | None
) -> list[Route]:
    """The table's routes that are ours, told as the rules are."""
    return [
        entry
        for entry in snapshot.routes.get(family, {}).get(table, ())
        if (exact is not None and exact.table == table and entry == render.route(exact, family))
        or (recorded is not None and recorded.table == table and _delivers(entry))
    ]


def _plan_routing(
    snapshot: Snapshot,
    desired: Desired | None,
    family: str,
    changes: list[Change],
    *,
    guessed: bool,
) -> list[str]:
    """`guessed`: the record is lost and what stands in its place is only believed to the letter."""
    lines: list[str] = []
    removals: list[str] = []
    previous = _recorded(snapshot, family)
    exact = previous if guessed else desired
    recorded = None if guessed else previous

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
    old = (
        previous.table
        if previous is not None and (desired is None or previous.table != desired.table)
        else None
    )
    if old is not None:
        for entry in _own_routes(snapshot, family, old, exact, recorded):
            changes.append(Change(f"{family} route in table {old}", str(entry), ""))
            metric = f" metric {entry.metric}" if entry.metric else ""
            removals.append(f"route del local default dev lo table {old}{metric}")

    wanted = render.ip_rules(desired) if desired is not None else ()
    live = snapshot.rules.get(family, ())
    own = [rule for rule in live if _own_rule(rule, exact, recorded)]
    stale = [rule for rule in dict.fromkeys(own) if rule not in wanted]
    for rule in wanted:
        item = _rule_name(rule, family)
        if rule not in own:
            like = [entry for entry in stale if (entry.table, entry.iif) == (rule.table, rule.iif)]
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
    # Old rules go last, so that there is no moment in which marked packets have no rule; when all
    # goes, rules first.
    return lines + sorted(removals, reverse=True)


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
    return f"{family} rule {rule.priority}{suffix}"


# Sysctls


def _advertised(snapshot: Snapshot, desired: Desired | None) -> tuple[str, ...]:
    """Interfaces that need accept_ra=2.

    One that needed it once keeps it: its router may be away for a moment.
    """
    if desired is None or not desired.forwarding or "ipv6" not in desired.families:
        return ()
    fresh = {
        name
        for name in snapshot.advertised
        if snapshot.sysctls.get(f"net/ipv6/conf/{name}/accept_ra") not in (None, "0")
    }
    return tuple(sorted(fresh | set(snapshot.record.advertised)))


def _plan_sysctls(
    snapshot: Snapshot, desired: Desired | None, advertised: tuple[str, ...], changes: list[Change]
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str, str], ...]]:
    """Returns the writes, and what to remember of the values before us."""
    before = snapshot.sysctls
    now = dict(before)
    remembered = {path: (value, cause) for path, value, cause in snapshot.record.sysctls}
    wanted: dict[str, str] = {}
    for pattern, value in render.sysctls(desired, advertised) if desired else ():
        for path in _expanded(pattern, before):
            wanted[path] = value

    writes: list[tuple[str, str]] = []

    def write(path: str, value: str) -> None:
        writes.append((path, value))
        for side in _SIDE_EFFECTS.get(path, ()):
            for other in _expanded(side, before):
                now[other] = (
                    ("0" if value == "1" else "1") if other.endswith("/accept_redirects") else value
                )
        now[path] = value

    for path, value in wanted.items():
        if before[path] == value:
            continue
        changes.append(Change(f"sysctl {sysctl_name(path)}", before[path], value))
        remembered.setdefault(path, (before[path], path))
        for side in _SIDE_EFFECTS.get(path, ()):
            for other in _expanded(side, before):
                remembered.setdefault(other, (before[other], path))
        write(path, value)

    def in_force(cause: str) -> bool:
        return cause in wanted and remembered.get(cause, ("", ""))[0] != wanted[cause]

    # Forwarding of all first: it overwrites the interfaces' values.
    unwanted = [
        path
        for path, (_value, cause) in remembered.items()
        if path not in wanted and not in_force(cause)
    ]
    for path in sorted(unwanted, key=lambda name: (name not in _SIDE_EFFECTS, name)):
        value = remembered.pop(path)[0]
        if path not in now:
            continue
        if before[path] != value:
            changes.append(
                Change(f"sysctl {sysctl_name(path)}", before[path], f"{value}, as before")
            )
        if now[path] != value:
            write(path, value)
    return tuple(writes), tuple(
        (path, value, cause) for path, (value, cause) in sorted(remembered.items())
    )


def _expanded(pattern: str, known: t.Iterable[str]) -> list[str]:
    if "*" not in pattern:
        return [pattern] if pattern in known else []
    expression = "[^/]*".join(re.escape(part) for part in pattern.split("*"))
    return sorted(path for path in known if re.fullmatch(expression, path))


# Files


def _file_change(path: str, found: str | None, wanted: str | None) -> Change:
    if found is None:
        return Change(f"file {path}", "", "present")
    return Change(
        f"file {path}",
        "present" if wanted is None else "other content",
        "" if wanted is None else "our content",
    )


def _plan_files(
    snapshot: Snapshot, desired: Desired | None, advertised: tuple[str, ...], changes: list[Change]
) -> dict[str, str | None]:
    wanted = render.files(desired, advertised) if desired else dict.fromkeys(render.FILES)
    steps: dict[str, str | None] = {}
    for path, content in wanted.items():
        found = snapshot.files.get(path)
        if found != content:
            changes.append(_file_change(path, found, content))
            steps[path] = content
    return steps


# What belongs to others


def _refuse_conflicts(snapshot: Snapshot, desired: Desired) -> None:
    missing = [name for name in desired.interfaces if name not in snapshot.interfaces]
    if missing:
        raise InputError(
            f"interfaces: there is no interface '{missing[0]}' on this host; there are: "
            f"{', '.join(snapshot.interfaces)}",
            option="interfaces",
            found=list(snapshot.interfaces),
        )
    unknown = [path for path, _value in desired.sysctls if not _expanded(path, snapshot.sysctls)]
    if unknown:
        raise InputError(
            f"sysctls: there is no '{sysctl_name(unknown[0])}' on this host; check its "
            "spelling, or load the module that brings it",
            option="sysctls",
        )
    for path, content in snapshot.files.items():
        if path in render.FILES and content and render.HEADER not in content:
            raise InputError(
                f"files: {path} is there and was not written by this collection; move it away",
                option="files",
                found=[path],
            )
    for family in desired.families:
        recorded = _recorded(snapshot, family)
        _refuse_chain(snapshot, desired, family)
        _refuse_marks(snapshot, desired, family)
        for rule in snapshot.rules.get(family, ()):
            if _own_rule(rule, desired, recorded):
                continue
            if _uses_mark(rule, desired):
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
        own = _own_routes(snapshot, family, desired.table, desired, recorded)
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
    for entry in snapshot.table_names:
        if entry.path != render.TABLE_NAME and (entry.number == desired.table) != (
            entry.name == desired.table_name
        ):
            option = "table" if entry.number == desired.table else "table_name"
            raise InputError(
                f"{option}: {entry.path} gives table {entry.number} the name '{entry.name}'; "
                f"choose another {'number' if option == 'table' else 'name'}",
                option=option,
                found=[f"{entry.number} {entry.name}"],
            )


def _uses_mark(rule: IpRule, desired: Desired) -> bool:
    if rule.mark is None:
        return False
    common = rule.mask & desired.mask
    if rule.inverted:
        # "All but this mark", as VPNs say it, takes no bit for itself unless the mark looks like ours.
        return bool(common) and rule.mark & common == desired.mark & common
    return bool(rule.mark & common)


def _refuse_chain(snapshot: Snapshot, desired: Desired, family: str) -> None:
    table = _mangle(snapshot, family)
    if desired.chain not in table.chains or desired.chain in _own_chains(
        snapshot, family, desired.chain
    ):
        return
    content = table.in_chain(desired.chain)
    users = [rule for rule in table.rules if rule.target == desired.chain and not rule.owned]
    # Empty and unused: what `iptables -t mangle -F` leaves of ours.
    if content or users:
        raise InputError(
            f"chain: the {family} mangle chain '{desired.chain}' is there and not ours "
            f"({_joined(content) or 'empty'}"
            f"{'; used by ' + str(users[0]) if users else ''}); choose another name, or remove it",
            option="chain",
            found=[str(rule) for rule in (*content, *users)],
        )


def _refuse_marks(snapshot: Snapshot, desired: Desired, family: str) -> None:
    """Only setters: a rule of others that merely looks at our mark may well be meant to."""
    for name, table in snapshot.firewall.get(family, {}).items():
        for rule in table.rules:
            if rule.owned:
                continue
            for option in ("--set-xmark", "--set-mark", "--or-mark", "--tproxy-mark"):
                text = rule.value(option)
                if text is None or (option != "--tproxy-mark" and rule.target != "MARK"):
                    continue
                value, _slash, mask = text.partition("/")
                if int(value, 0) & int(mask or "0xffffffff", 0) & desired.mask:
                    raise InputError(
                        f"mark: the {family} {name} rule '{rule}' of others sets bits of the "
                        f"mask 0x{desired.mask:x} too; "
                        "choose a mark and mask of other bits",
                        option="mark",
                        found=[str(rule)],
                    )


def _warnings(snapshot: Snapshot, desired: Desired | None) -> tuple[str, ...]:
    """Rules of others that stand before ours and can take a diverted packet away from us."""
    found = []
    for family in desired.families if desired else ():
        for rule in snapshot.rules.get(family, ()):
            first = desired is not None and 0 < rule.priority < desired.rule_priority
            anywhere = rule.source == "all" and not rule.other and rule.iif is None
            if first and anywhere and (rule.mark is None or rule.inverted):
                found.append(
                    f"the {family} rule '{rule}' stands before ours and may take diverted "
                    "packets away; "
                    f"choose a rule_priority below {rule.priority - 1}"
                )
    return tuple(found)


def diff_of(snapshot: Snapshot, plan: Plan) -> list[dict[str, str]]:
    """Before and after of what changes, and of nothing else: live state as one text, files one
    by one.
    """
    live = [change for change in plan.changes if not change.item.startswith("file ")]
    texts: list[dict[str, str]] = []
    if live:
        texts.append(
            {
                "before_header": "live state",
                "after_header": "live state",
                "before": "".join(
                    f"{change.item}: {change.found or 'absent'}\n" for change in live
                ),
                "after": "".join(
                    f"{change.item}: {change.wanted or 'absent'}\n" for change in live
                ),
            }
        )
    for path, content in plan.files.items():
        if path != render.RECORD:
            texts.append(
                {
                    "before_header": path,
                    "after_header": path,
                    "before": snapshot.files.get(path) or "",
                    "after": content or "",
                }
            )
    return texts
