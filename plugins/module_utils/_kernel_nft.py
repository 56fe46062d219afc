# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: nft's rulesets, from its JSON to plain data and from there to its own words. Private to the collection."""

from __future__ import annotations

import contextlib
import json
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    MarkChange,
    NftChain,
    NftRule,
    NftTable,
)

_ALL = 0xFFFFFFFF
# `nft -n` prints numbers for these; nft.8 and the rule files use the names.
_NAMES: dict[str, dict[t.Any, str]] = {
    "nfproto": {2: "ipv4", 10: "ipv6"},
    "l4proto": {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", "ipv6-icmp": "icmpv6"},
    "type": {1: "unicast", 2: "local", 3: "broadcast"},
}
_QUOTED = ("iifname", "oifname")


def objects(text: str) -> list[tuple[str, dict[str, t.Any]]]:
    """Everything in nft's JSON with its kind, in order. For what is not nft's, what Python raises."""
    return [
        (kind, content)
        for entry in json.loads(text)["nftables"]
        for kind, content in entry.items()
        if kind != "metainfo"
    ]


def ruleset(text: str) -> tuple[NftTable, ...]:
    """The tables of `nft -j -n -t list ruleset`, which 0.9.8 to 1.1.3 print alike but for the order.

    Raises Error for what is not nft's.
    """
    if not text.strip():
        return ()
    try:
        found = objects(text)
        tables = {
            (content["family"], content["name"]): content
            for kind, content in found
            if kind == "table"
        }
        return tuple(_table(content, found) for content in tables.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Error(f"cannot understand the answer of `nft -j`: {text.strip()[:200]!r}") from None


def _table(
    table: t.Mapping[str, t.Any], objects: t.Iterable[tuple[str, t.Mapping[str, t.Any]]]
) -> NftTable:
    chains, rules, others = [], [], []
    flags = table.get("flags", ())
    others += [f"flag {flag}" for flag in ([flags] if isinstance(flags, str) else flags)]
    for kind, content in objects:
        if (content["family"], content.get("table")) != (table["family"], table["name"]):
            continue
        if kind == "chain":
            chains.append(
                NftChain(
                    name=content["name"],
                    hook=content.get("hook"),
                    priority=int(content.get("prio", 0)),
                    type=content.get("type", "filter"),
                    policy=content.get("policy", "accept"),
                )
            )
        elif kind == "rule":
            rules.append(_rule(content))
        else:
            others.append(f"{kind} {content.get('name', '')}".strip())
    return NftTable(table["family"], table["name"], tuple(chains), tuple(rules), tuple(others))


def _rule(content: t.Mapping[str, t.Any]) -> NftRule:
    expressions = content.get("expr", ())
    return NftRule(
        chain=content["chain"],
        words=tuple(map(_words, expressions)),
        comment=content.get("comment"),
        targets=tuple(_targets(expressions)),
        marks=tuple(change for entry in expressions for change in [_mark_change(entry)] if change),
    )


# Expressions


def _words(expression: t.Any) -> str:
    """One expression as nft.8 writes it; JSON for what this collection never writes."""
    try:
        ((kind, content),) = expression.items()
        if kind in ("accept", "drop", "continue", "return") and content is None:
            return str(kind)
        if kind == "counter":
            return "counter"
        if kind in ("jump", "goto"):
            return f"{kind} {content['target']}"
        if kind == "match":
            operator = "" if content["op"] in ("==", "in") else f"{content['op']} "
            key, names, quoted = _key(content["left"])
            return f"{key} {operator}{_value(content['right'], names, quoted)}"
        if kind == "mangle" and content["key"] == {"meta": {"key": "mark"}}:
            with contextlib.suppress(ValueError):
                kept, base, turned = _bits(content["value"], "meta")
                if not turned:
                    return mark_words(kept, base)
        if kind == "mangle":
            return f"{_formula(content['key'])} set {_formula(content['value'])}"
        if kind == "tproxy":
            return f"tproxy {content['family']} to {content.get('addr', '')}:{content['port']}"
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return json.dumps(expression, sort_keys=True)


def _formula(value: t.Any) -> str:
    if isinstance(value, int):
        return f"0x{value:x}"
    ((kind, content),) = value.items()
    if kind in ("&", "|", "^"):
        return f" {kind} ".join(map(_formula, content))
    if kind in ("meta", "ct"):
        return f"{kind} {content['key']}"
    raise ValueError(kind)


def _key(left: t.Mapping[str, t.Any]) -> tuple[str, t.Mapping[t.Any, str], bool]:
    """The words, the names of its values, and whether these are quoted."""
    ((kind, content),) = left.items()
    if kind == "meta":
        key = content["key"]
        word = key if key in _QUOTED else f"meta {key}"
        return word, _NAMES.get(key, {}), key in _QUOTED
    if kind == "payload":
        return f"{content['protocol']} {content['field']}", {}, False
    if kind == "fib":
        flags = content["flags"]
        flags = [flags] if isinstance(flags, str) else flags
        return (
            f"fib {' . '.join(flags)} {content['result']}",
            _NAMES.get(content["result"], {}),
            False,
        )
    if kind in ("socket", "ct"):
        return f"{kind} {content['key']}", {}, False
    raise ValueError(kind)


def _value(value: t.Any, names: t.Mapping[t.Any, str], quoted: bool) -> str:
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        if kind == "set":
            content = content if isinstance(content, list) else [content]
            return set_words(_value(entry, names, quoted) for entry in content)
        if kind == "range":
            return "-".join(_value(end, names, quoted) for end in content)
        if kind == "prefix":
            return f"{content['addr']}/{content['len']}"
        raise ValueError(kind)
    word = names.get(value, str(value))
    return f'"{word}"' if quoted else word


def set_words(values: t.Iterable[str]) -> str:
    """An anonymous set in canonical order; of one value just the value, as nft itself lists it."""
    ordered = sorted(
        dict.fromkeys(values),
        key=lambda word: (not word.isdigit(), len(word) if word.isdigit() else 0, word),
    )
    return ordered[0] if len(ordered) == 1 else f"{{ {', '.join(ordered)} }}"


def mark_words(kept: int, base: int) -> str:
    """The statement that leaves the bits of `kept` alone and sets those of `base`, clearing the others."""
    kept &= ~base & _ALL
    if not kept:
        return f"meta mark set 0x{base:x}"
    if kept == ~base & _ALL:
        return f"meta mark set meta mark | 0x{base:x}"
    # The bits that are set anyway are in both numbers, as nft lists it.
    return f"meta mark set meta mark & 0x{kept | base:x} | 0x{base:x}"


def _bits(value: t.Any, of: str) -> tuple[int, int, int]:
    """(bits that are those of the mark, bits that are 1, bits that are turned around) of an expression of &, |
    and ^ over the mark of `of` and numbers. Raises ValueError for any other.
    """

    def result(mark: int, part: t.Any) -> int:
        if isinstance(part, int):
            return part
        ((kind, content),) = part.items()
        if kind == of and content["key"] == "mark":
            return mark
        if kind not in ("&", "|", "^"):
            raise ValueError(kind)
        first, *rest = [result(mark, entry) for entry in content]
        for number in rest:
            first = (
                first & number if kind == "&" else first | number if kind == "|" else first ^ number
            )
        return first

    low, high = result(0, value), result(_ALL, value)
    return high & ~low & _ALL, high & low & _ALL, low & ~high & _ALL


def _mark_change(expression: t.Any) -> MarkChange | None:
    content = expression.get("mangle") if isinstance(expression, dict) else None
    if not isinstance(content, dict):
        return None
    of = next((of for of in ("meta", "ct") if content["key"] == {of: {"key": "mark"}}), None)
    if of is None:
        return None
    other = "ct" if of == "meta" else "meta"
    value = content["value"]
    try:
        kept, base, turned = _bits(value, of)
        return MarkChange(of, sets=base | turned, keeps=kept)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    try:
        restored, base, turned = _bits(value, other)
        return MarkChange(of, sets=base | turned, keeps=0, restores=restored)
    except (ValueError, KeyError, TypeError, AttributeError):
        sure, unclear = _possible(value)
        return MarkChange(of, sets=sure, keeps=0, unclear=unclear)


def _possible(value: t.Any) -> tuple[int, int]:
    """Of a value of any other kind the bits that are 1 in one case at least, and those that may be 1, who knows."""
    if isinstance(value, int):
        return value & _ALL, 0
    if isinstance(value, dict) and len(value) == 1:
        ((kind, content),) = value.items()
        if kind == "map" and isinstance(content.get("data"), dict) and "set" in content["data"]:
            # A map in place: its right-hand sides.
            return _either(_possible(entry[1]) for entry in content["data"]["set"])
        if kind in ("|", "^"):
            return _either(map(_possible, content))
        if kind == "&":
            known, possible = _ALL, _ALL
            for sure, unclear in map(_possible, content):
                known &= sure
                possible &= sure | unclear
            return known, possible & ~known
        if kind in ("jhash", "symhash", "numgen") and isinstance(content.get("mod"), int):
            low = int(content.get("offset") or 0)
            high = low + content["mod"] - 1
            return (high | (1 << (low ^ high).bit_length()) - 1) & _ALL, 0
    return 0, _ALL


def _either(parts: t.Iterable[tuple[int, int]]) -> tuple[int, int]:
    known = unclear = 0
    for sure, other in parts:
        known |= sure
        unclear |= other
    return known, unclear & ~known


def _targets(part: t.Any) -> t.Iterator[str]:
    if isinstance(part, dict):
        for kind, content in part.items():
            if kind in ("jump", "goto") and isinstance(content, dict):
                yield content["target"]
            else:
                yield from _targets(content)
    elif isinstance(part, list):
        for entry in part:
            yield from _targets(entry)


# Texts


def table_text(table: NftTable) -> str:
    """Puts the table in the place of whatever is there of that name, in one transaction."""
    lines = [f"table {table}", f"delete table {table}", f"table {table} {{"]
    for chain in table.chains:
        lines += [f"\tchain {chain.name} {{", f"\t\t{chain}"]
        lines += [f"\t\t{rule}" for rule in table.rules if rule.chain == chain.name]
        lines.append("\t}")
    return "\n".join([*lines, "}"]) + "\n"


def reachable(table: NftTable, hook: str) -> dict[str, int]:
    """The chains in which a packet can come from the hook -> the highest priority at which it does."""
    found: dict[str, int] = {}
    todo = [(chain.name, chain.priority) for chain in table.chains if chain.hook == hook]
    while todo:
        name, priority = todo.pop()
        if found.get(name, priority - 1) >= priority:
            continue
        found[name] = priority
        todo += [
            (target, priority)
            for rule in table.rules
            if rule.chain == name
            for target in rule.targets
        ]
    return found
