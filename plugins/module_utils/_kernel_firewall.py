# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: the firewall part of the plan. Private to the collection."""

from __future__ import annotations

import re
import typing as t
from collections import Counter
from dataclasses import dataclass

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_nft as nft
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import (
    IPTABLES_BACKENDS,
    Desired,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    BUILTIN_CHAINS,
    Change,
    FilterRule,
    FilterTable,
    NftRule,
    NftTable,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_snapshot import (
    FirewallStep,
    Snapshot,
)

# What nft calls the tables that iptables-nft keeps, and what it calls their families.
_IPTABLES_TABLES = ("filter", "nat", "mangle", "raw", "security")
_NFT_FAMILIES = {"ip": ("ipv4",), "ip6": ("ipv6",), "inet": ("ipv4", "ipv6")}


# Which backend


@dataclass(frozen=True)
class Signs:
    """What tells which firewall a host uses. Nothing here is about rules of ours."""

    # The backend that a run decided on before.
    recorded: str | None = None
    # Of the programs iptables and nft those that are installed.
    programs: tuple[str, ...] = ()
    # Rules that nft made; rules that iptables made, in either variant.
    native_rules: bool = False
    iptables_rules: bool = False
    # nftables.service is enabled.
    service: bool = False


def choose_backend(signs: Signs) -> str:
    """The backend for `firewall: auto`: what the host already uses, and if it uses nothing, what is installed.

    A decision stands as long as its program is there, so that rules which come and go change nothing.
    Rules made by nft, or its service, outweigh those of iptables: Docker and others bring the latter
    to every host. A host without either program gets iptables, as the default has it.
    """
    needs = {**dict.fromkeys(IPTABLES_BACKENDS, "iptables"), "nftables": "nft"}
    recorded = signs.recorded
    if recorded is not None and needs.get(recorded) in signs.programs:
        return recorded
    if "iptables" not in signs.programs:
        return "nftables" if "nft" in signs.programs else "iptables"
    if "nft" in signs.programs and (signs.native_rules or signs.service):
        return "nftables"
    return "iptables"


def signs_of(snapshot: Snapshot, programs: t.Iterable[str], *, service: bool) -> Signs:
    desired = snapshot.record.desired
    return Signs(
        recorded=desired.firewall if desired else None,
        programs=tuple(programs),
        native_rules=any(
            not rule.owned for table in _native_tables(snapshot) for rule in table.rules
        ),
        iptables_rules=any(
            not rule.owned
            for families in snapshot.variants.values()
            for tables in families.values()
            for table in tables.values()
            for rule in table.rules
        ),
        service=service,
    )


def _native_tables(snapshot: Snapshot) -> list[NftTable]:
    """Less those of iptables-nft, which iptables-save shows better."""
    seen = {
        (family, name)
        for families in snapshot.variants.values()
        for family, tables in families.items()
        for name in tables
    }
    return [
        table
        for table in snapshot.nft
        if not (
            table.name in _IPTABLES_TABLES
            and table.family in ("ip", "ip6")
            and (_NFT_FAMILIES[table.family][0], table.name) in seen
        )
    ]


# iptables


def _own_chains(snapshot: Snapshot, variant: str, family: str, desired: Desired | None) -> set[str]:
    """Chains with only rules of ours; the one that is wanted or recorded also with a stranger's rule in it
    or, as a flush leaves it, empty."""
    table = _mangle(snapshot, variant, family)
    recorded = {
        entry.chain for entry in snapshot.recorded(family) if entry.firewall in IPTABLES_BACKENDS
    }
    wanted = desired.chain if desired else None
    own = set()
    for name in table.chains:
        rules = table.in_chain(name)
        owned = [rule.owned for rule in rules]
        if name in BUILTIN_CHAINS:
            continue
        if (
            (rules and all(owned))
            or (name in (wanted, *recorded) and any(owned))
            or (name in recorded and not rules)
        ):
            own.add(name)
    return own


def _mangle(snapshot: Snapshot, variant: str, family: str) -> FilterTable:
    return snapshot.variants[variant].get(family, {}).get("mangle", FilterTable())


def _jump_name(rule: FilterRule, family: str) -> str:
    interface = rule.value("-i")
    suffix = f" on {interface}" if interface else ""
    if rule.target == "TPROXY":
        port = (rule.value("--dport") or "any").replace(":", "-")
        return _intercept_name(family, port, interface, rule.value("-s"), rule.value("-d"))
    return f"{family} mangle {rule.chain} {rule.value('-p') or 'all'}{suffix}"


def _intercept_name(
    family: str, port: str, interface: str | None, source: str | None, destination: str | None
) -> str:
    """The same in every backend."""
    single = r"/32$|/128$"
    parts = [
        (word, re.sub(single, "", value))
        for word, value in (("on", interface), ("from", source), ("to", destination))
        if value
    ]
    return " ".join([f"{family} intercept {port}", *(f"{word} {value}" for word, value in parts)])


def plan_firewall(
    snapshot: Snapshot, desired: Desired | None, family: str, changes: list[Change]
) -> list[FirewallStep]:
    """The family's part in both variants of iptables; `desired` is None where nothing of it is wanted."""
    steps = []
    for variant in snapshot.variants:
        wanted = desired if desired is not None and desired.firewall == variant else None
        found: list[Change] = []
        text = _plan_variant(snapshot, variant, wanted, family, found)
        if variant != snapshot.variant:
            # "ipv4 mangle ..." is the chosen variant's.
            kind = variant.replace("iptables-", "")
            found = [
                Change(change.item.replace(" ", f" {kind} ", 1), change.found, change.wanted)
                for change in found
            ]
        changes += found
        if text:
            program = render.program(variant, family, "-restore")
            steps.append(FirewallStep(program, text, adds=wanted is not None))
    return steps


def _plan_variant(
    snapshot: Snapshot,
    variant: str,
    desired: Desired | None,
    family: str,
    changes: list[Change],
) -> str | None:
    """Edits for iptables-restore --noflush: deletes only rules of ours, by their text and never by number,
    so that a rule which others insert meanwhile cannot be hit."""
    table = _mangle(snapshot, variant, family)
    declared: list[str] = []
    edits: list[str] = []

    chain = desired.chain if desired else None
    old_chains = sorted(_own_chains(snapshot, variant, family, desired) - {chain})
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

    edits += _plan_jumps(table, desired, family, changes)
    for name in old_chains:
        changes.append(
            Change(f"{family} mangle chain {name}", _joined(table.in_chain(name)) or "empty", "")
        )
        edits += [f"-F {name}", f"-X {name}"]
    if not edits:
        return None
    return "\n".join(["*mangle", *declared, *edits, "COMMIT"]) + "\n"


def _plan_jumps(
    table: FilterTable, desired: Desired | None, family: str, changes: list[Change]
) -> list[str]:
    edits: list[str] = []
    wanted = render.jumps(desired, family) if desired else ()
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
    if desired is not None and desired.position == "last":
        if tuple(current[len(current) - len(wanted) :]) == wanted:
            return edits
        for rule in wanted:
            item = _jump_name(rule, family)
            if rule not in current:
                _note_missing(changes, item, rule)
            elif item not in named:
                place = f"at position {current.index(rule) + 1} of {len(current)}"
                changes.append(Change(item, place, "behind all others"))
            if rule in current:
                edits.append(f"-D {rule.chain} {rule.spec}")
                current.remove(rule)
            edits.append(str(rule))
            current.append(rule)
        return edits
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
            _note_missing(changes, item, rule)
        edits.append(f"-I {rule.chain} {index + 1} {rule.spec}")
        current.insert(index, rule)
    return edits


def _note_missing(changes: list[Change], item: str, rule: FilterRule) -> None:
    """One change, not two, where one of ours is in its place that differs in a detail."""
    for number, change in enumerate(changes):
        if change.item == item and not change.wanted:
            changes[number] = Change(item, change.found, str(rule))
            return
    changes.append(Change(item, "", str(rule)))


def _joined(rules: t.Iterable[FilterRule]) -> str:
    return "; ".join(rule.spec for rule in rules)


# nft


def own_nft_tables(snapshot: Snapshot, desired: Desired | None) -> list[NftTable]:
    """Told as the chains of iptables are."""
    recorded = {entry.nft_table for entry in snapshot.record.known if entry.firewall == "nftables"}
    wanted = desired.nft_table if desired and desired.firewall == "nftables" else None
    return [
        table
        for table in snapshot.nft
        if table.family == "inet"
        and (
            (table.rules and all(rule.owned for rule in table.rules))
            or (table.name in (wanted, *recorded) and any(rule.owned for rule in table.rules))
            or (table.name in recorded and not table.rules)
        )
    ]


def plan_nft(
    snapshot: Snapshot, desired: Desired | None, changes: list[Change]
) -> list[FirewallStep]:
    """One transaction: the new table replaces the old one whole, so packets never see a part of it."""
    wanted = (
        render.nft_table(desired)
        if desired is not None and desired.firewall == "nftables"
        else None
    )
    text = ""
    if wanted is not None:
        found = next((table for table in snapshot.nft if str(table) == str(wanted)), None)
        differences = _nft_differences(found or NftTable(wanted.family, wanted.name), wanted)
        changes += differences
        text = nft.table_text(wanted) if differences else ""
    for table in own_nft_tables(snapshot, desired):
        if wanted is None or table.name != wanted.name:
            content = "; ".join(map(str, table.rules)) or "no rule"
            changes.append(Change(f"nft table {table.name}", content, ""))
            text += f"delete table {table}\n"
    return [FirewallStep("nft", text, adds=wanted is not None)] if text else []


def _nft_differences(found: NftTable, wanted: NftTable) -> list[Change]:
    changes = [Change(f"nft table {wanted.name}", other, "") for other in found.others]
    before = {chain.name: chain for chain in found.chains}
    after = {chain.name: chain for chain in wanted.chains}
    for name in (*after, *(name for name in before if name not in after)):
        if before.get(name) != after.get(name):
            texts = (
                "" if chain is None else str(chain) for chain in (before.get(name), after.get(name))
            )
            changes.append(Change(f"nft {wanted.name} chain {name}", *texts))
    counts, expected = Counter(map(str, found.rules)), Counter(map(str, wanted.rules))
    names = {rule: _nft_rule_name(rule, wanted.name) for rule in (*wanted.rules, *found.rules)}
    surplus = [
        rule for rule in dict.fromkeys(found.rules) if counts[str(rule)] > expected[str(rule)]
    ]
    for rule in dict.fromkeys(wanted.rules):
        like = [entry for entry in surplus if names[entry] == names[rule]]
        surplus = [entry for entry in surplus if entry not in like]
        found_texts = [
            f"{counts[str(entry)]} times: {entry}" if counts[str(entry)] > 1 else str(entry)
            for entry in like
        ]
        if like or counts[str(rule)] < expected[str(rule)]:
            changes.append(Change(names[rule], "; ".join(found_texts), str(rule)))
    changes += [Change(names[rule], str(rule), "") for rule in surplus]
    if not changes and [*map(str, found.rules)] != [*map(str, wanted.rules)]:
        changes.append(
            Change(
                f"nft {wanted.name} rules", "in another order", "; ".join(map(str, wanted.rules))
            )
        )
    return changes


def _nft_rule_name(rule: NftRule, table: str) -> str:
    words = " ".join(rule.words)
    if not rule.owned:
        return f"nft {table} {rule.chain} rule of others"
    family = "ipv6" if re.search(r"\b(ipv6|icmpv6|ip6)\b", words) else "ipv4"
    caught = re.search(
        r'(?:iifname "(\S+)" )?.*?(?:ip6? saddr (\S+) )?(?:ip6? daddr (\S+) )?tcp dport (\S+) fib daddr',
        words,
    )
    if caught:
        interface, source, destination, port = caught.groups()
        what = _intercept_name(family, port, interface, source, destination)
        return what if "tproxy" in words else f"{what}, without HAProxy"
    listener = re.search(r"tcp dport (\S+) socket wildcard", words)
    if listener:
        return f"{family} nft {table} {rule.chain} {listener.group(1)} of other hosts"
    protocol = next((word for word in rule.words if word.startswith("meta l4proto ")), "all")
    return f"{family} nft {table} {rule.chain} {protocol.rpartition(' ')[2]}"


# What belongs to others


def refuse_firewall(snapshot: Snapshot, desired: Desired) -> None:
    """Raises InputError for rules, chains and tables of others in the way of ours."""
    if desired.firewall == "nftables":
        _refuse_nft_table(snapshot, desired)
    for family in desired.families:
        if desired.firewall != "nftables":
            _refuse_chain(snapshot, desired, family)
        _refuse_marks(snapshot, desired, family)
    _refuse_nft_marks(snapshot, desired)


def _refuse_chain(snapshot: Snapshot, desired: Desired, family: str) -> None:
    table = _mangle(snapshot, snapshot.variant, family)
    if desired.chain not in table.chains or desired.chain in _own_chains(
        snapshot, snapshot.variant, family, desired
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


def _refuse_nft_table(snapshot: Snapshot, desired: Desired) -> None:
    own = own_nft_tables(snapshot, desired)
    for table in snapshot.nft:
        if (table.family, table.name) != ("inet", desired.nft_table) or table in own:
            continue
        content = [str(rule) for rule in table.rules] + list(table.others)
        content += [str(chain) for chain in table.chains if chain.policy != "accept"]
        # Empty: what a flush leaves of ours.
        if content:
            raise InputError(
                f"nft_table: the table '{table}' is there and not ours ({content[0]}); choose "
                "another name, or remove it",
                option="nft_table",
                found=content,
            )


def _refuse_marks(snapshot: Snapshot, desired: Desired, family: str) -> None:
    """Only setters: a rule of others that merely looks at our mark may well be meant to."""
    found = (
        (name, rule)
        for families in snapshot.variants.values()
        for name, table in families.get(family, {}).items()
        for rule in table.rules
        if not rule.owned
    )
    rules = list(found)
    saved = 0
    for _name, rule in rules:
        if rule.target == "CONNMARK":
            saved |= _set_bits(rule, "--set-xmark", "--set-mark")
    for name, rule in rules:
        sets = _set_bits(rule, "--tproxy-mark")
        if rule.target == "MARK":
            sets |= _set_bits(rule, "--set-xmark", "--set-mark", "--or-mark")
        if rule.target == "CONNMARK" and "--restore-mark" in rule.words:
            sets |= saved
        if sets & desired.mask:
            raise InputError(
                f"mark: the {family} {name} rule '{rule}' of others sets bits of the "
                f"mask 0x{desired.mask:x} too; "
                "choose a mark and mask of other bits",
                option="mark",
                found=[str(rule)],
            )


def _set_bits(rule: FilterRule, *options: str) -> int:
    """The bits that VALUE/MASK after one of the options may set. MARK flips all of VALUE, whatever the mask: --xor-mark is VALUE/0."""
    values = (rule.value(option) for option in options)
    return sum(int(text.partition("/")[0], 0) for text in values if text)


def _refuse_nft_marks(snapshot: Snapshot, desired: Desired) -> None:
    """The same for rules that nft made, and for those that overwrite the mark after we set it.

    In iptables an ACCEPT spares packets the rest of the chain; between chains of nft nothing does.
    """
    foreign = _foreign_nft_rules(snapshot, desired)
    ours = render.mark_priority(desired)
    saved = 0
    for _table, rule in foreign:
        for change in rule.marks:
            saved |= change.sets if change.of == "ct" else 0
    for table, rule in foreign:
        late = nft.reachable(table, "prerouting").get(rule.chain)
        for change in rule.marks:
            if change.of != "meta":
                continue
            if (change.sets | change.restores & saved) & desired.mask:
                what, remedy = "sets bits of", "choose a mark and mask of other bits"
            elif (
                late is not None
                and late >= ours
                and desired.mask & ~change.keeps
                and not _elsewhere(rule, desired.incoming)
            ):
                what = "overwrites, after they are set, bits of"
                remedy = (
                    "let it keep them (`meta mark set meta mark & ...`), or move its chain to a "
                    f"priority below {ours}"
                )
            else:
                continue
            raise InputError(
                f"mark: the nft rule '{rule}' of others in {table} {rule.chain} {what} the mask "
                f"0x{desired.mask:x} too; {remedy}",
                option="mark",
                found=[f"{table} {rule.chain}: {rule}"],
            )


def _foreign_nft_rules(snapshot: Snapshot, desired: Desired) -> list[tuple[NftTable, NftRule]]:
    return [
        (table, rule)
        for table in _native_tables(snapshot)
        if set(_NFT_FAMILIES.get(table.family, ())) & set(desired.families)
        for rule in table.rules
        if not rule.owned
    ]


def mark_warnings(snapshot: Snapshot, desired: Desired | None) -> tuple[str, ...]:
    """Marks whose bits no rule says, so that they may be ours or not."""
    if desired is None:
        return ()
    foreign = _foreign_nft_rules(snapshot, desired)
    saved = 0
    for _table, rule in foreign:
        for change in rule.marks:
            saved |= change.unclear if change.of == "ct" else 0
    return tuple(
        f"mark: the nft rule '{rule}' of others in {table} {rule.chain} sets a mark that comes from "
        f"elsewhere, like a map or the packet; see that it never has bits of the mask "
        f"0x{desired.mask:x}, or choose a mark and mask of other bits"
        for table, rule in foreign
        if any(
            change.of == "meta" and (change.unclear | change.restores & saved) & desired.mask
            for change in rule.marks
        )
    )


def _elsewhere(rule: NftRule, interfaces: t.Sequence[str]) -> bool:
    """Whether the rule is for other interfaces than ours, or for UDP alone, as wg-quick's are."""
    if any(
        word.startswith("udp ") or word in ("meta l4proto udp", "ip protocol udp")
        for word in rule.words
    ):
        return True
    bound = [re.fullmatch(r"(?:iifname|meta iif) (.*)", word) for word in rule.words]
    return bool(interfaces) and any(
        found is not None and not any(_may_be(name, found.group(1)) for name in interfaces)
        for found in bound
    )


def _may_be(interface: str, words: str) -> bool:
    """Whether the interface is among them: one, a set of them, or what only nft knows."""
    if words.startswith(("!=", "@", '"@')):
        return True
    names = re.split(r'[\s{},"]+', words)
    return any(
        interface.startswith(name[:-1]) if name.endswith("*") else interface == name
        for name in names
    )


FLUSHED = (
    "firewalld empties all tables of iptables, ours too, whenever `firewall-cmd --reload` is run, which "
    "systemd is not told of"
)
FLUSHED_REMEDY = "give tproxy_rules guard=true or firewall=nftables"


def is_flushed(snapshot: Snapshot, desired: Desired) -> bool:
    """Whether firewalld is here that empties the tables that our rules are in, and nothing puts these back.

    0.9 and 1.3 do so although they replace their own table of nft, 2.3 does not. It says that it owns its table,
    which the others do not know how to. With iptables as its own backend it has no table, but these chains.
    It calls the host's own iptables.
    """
    if desired.guard or desired.firewall not in IPTABLES_BACKENDS:
        return False
    kind = desired.firewall.partition("-")[2]
    if kind and snapshot.own_kind and kind != snapshot.own_kind:
        return False
    return any(
        table.name == "firewalld" and "flag owner" not in table.others for table in snapshot.nft
    ) or any(
        "INPUT_ZONES" in tables["filter"].chains
        for families in snapshot.variants.values()
        for tables in families.values()
        if "filter" in tables
    )


def flush_warnings(snapshot: Snapshot, desired: Desired | None) -> tuple[str, ...]:
    if desired is None or not is_flushed(snapshot, desired):
        return ()
    return (f"{FLUSHED}; {FLUSHED_REMEDY}",)
