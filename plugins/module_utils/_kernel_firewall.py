# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: the firewall part of the plan. Private to the collection."""

from __future__ import annotations

import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    BUILTIN_CHAINS,
    Change,
    Desired,
    FilterRule,
    FilterTable,
    Snapshot,
)


def _mangle(snapshot: Snapshot, family: str) -> FilterTable:
    return snapshot.firewall.get(family, {}).get("mangle", FilterTable())


def _own_chains(snapshot: Snapshot, family: str, chain: str | None) -> set[str]:
    """Chains with only rules of ours; the one that is wanted or recorded also with a stranger's rule in it
    or, as a flush leaves it, empty."""
    table, known = _mangle(snapshot, family), snapshot.recorded(family)
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


def plan_firewall(
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


def refuse_chain(snapshot: Snapshot, desired: Desired, family: str) -> None:
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


def refuse_marks(snapshot: Snapshot, desired: Desired, family: str) -> None:
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
