# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: what other people's firewall rules would do with one given packet. Private to the collection."""

from __future__ import annotations

import ipaddress
import json
import re
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_nft as nft
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    FAMILIES,
    OWNER,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_parse import filter_rule
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_render import (
    MANGLE_PRIORITY,
)

# What a rule does. Of these, the first three end the way through a chain.
ACCEPT, DROP, RETURN = "accept", "drop", "return"
SNAT, NOTRACK, JUMP, GOTO, UNCLEAR, NOTHING = (
    "snat",
    "notrack",
    "jump",
    "goto",
    "unclear",
    "nothing",
)

# Priorities of the kernel's hooks (netfilter_ipv4.h).
_IPTABLES_PRIORITY = {
    ("raw", "prerouting"): -300,
    ("raw", "output"): -300,
    ("mangle", "prerouting"): MANGLE_PRIORITY,
    ("mangle", "input"): MANGLE_PRIORITY,
    ("mangle", "output"): MANGLE_PRIORITY,
    ("mangle", "postrouting"): MANGLE_PRIORITY,
    ("nat", "prerouting"): -100,
    ("nat", "postrouting"): 100,
    ("security", "input"): 50,
}


@dataclass(frozen=True)
class Packet:
    """One packet of a proxied connection; None stands for what is not known."""

    family: str
    source: str | None = None
    destination: str | None = None
    iif: str | None = None
    oif: str | None = None
    sport: int | None = None
    dport: int | None = None
    mark: int = 0
    # conntrack(8)'s word: new, established, invalid or untracked.
    state: str = "established"
    # Whether a route lookup with the mark finds the way back to the source.
    validated: bool = True
    uid: int | None = None


@dataclass(frozen=True)
class Test:
    """`key` of the packet is, or is not, among the values."""

    key: str
    values: tuple[t.Any, ...] = ()
    inverted: bool = False


@dataclass(frozen=True)
class Rule:
    text: str
    tests: tuple[Test, ...]
    action: str
    target: str = ""


@dataclass(frozen=True)
class Chain:
    rules: tuple[Rule, ...] = ()
    hook: str = ""
    kind: str = "filter"
    priority: int = 0
    policy: str = ACCEPT


@dataclass(frozen=True)
class Ruleset:
    """One table: of iptables, or of nft."""

    name: str
    families: tuple[str, ...]
    chains: t.Mapping[str, Chain] = field(default_factory=dict)


# A way through the rules: the verdict, and the rule that gave it.
Outcome = tuple[str, str]
# Whether something befalls a packet (None: cannot be told), and the rule that does it.
Verdict = tuple[t.Optional[bool], str]


def verdict_of(
    rulesets: t.Iterable[Ruleset],
    hook: str,
    packet: Packet,
    wanted: str,
    *,
    kind: str = "filter",
    marked_at: int = MANGLE_PRIORITY,
    skip: t.Callable[[Ruleset, Chain], bool] = lambda ruleset, chain: False,
) -> Verdict:
    """Whether `wanted` (drop, snat, notrack) befalls the packet, and the rule; None: cannot be told.

    Before our mark is set, in prerouting at `marked_at`, packets have none.
    """
    doubts: list[str] = []
    for ruleset in rulesets:
        if packet.family not in ruleset.families:
            continue
        for chain in ruleset.chains.values():
            if chain.hook != hook or chain.kind != kind or skip(ruleset, chain):
                continue
            early = hook == "prerouting" and chain.priority <= marked_at
            seen = replace(packet, mark=0) if early else packet
            found = {
                (chain.policy, f"{ruleset.name}: policy of {hook}") if way[0] == RETURN else way
                for way in _walk(ruleset, chain.rules, seen, wanted, 0)
            }
            hits = sorted(text for verdict, text in found if verdict == wanted)
            # A drop, and what is done to a packet, is for good: no later chain can undo it.
            if hits and len({verdict for verdict, _text in found}) == 1:
                return True, hits[0]
            doubts += hits or sorted(text for verdict, text in found if verdict == UNCLEAR)
    return (None, doubts[0]) if doubts else (False, "")


def with_state(packet: Packet, state: str) -> Packet:
    return replace(packet, state=state)


def _walk(
    ruleset: Ruleset, rules: t.Iterable[Rule], packet: Packet, stop: str, depth: int
) -> set[Outcome]:
    found: set[Outcome] = set()
    for rule in rules:
        matches = _matches(rule.tests, packet)
        if matches is False or rule.action == NOTHING:
            continue
        if rule.action in (JUMP, GOTO):
            inner = ruleset.chains.get(rule.target)
            # The kernel allows 16 levels.
            if inner is None or depth > 16:
                ways = {(UNCLEAR, f"{ruleset.name}: {rule.text}")}
            else:
                ways = _walk(ruleset, inner.rules, packet, stop, depth + 1)
            back = any(verdict == RETURN for verdict, _text in ways)
            found |= {way for way in ways if way[0] != RETURN}
            if rule.action == GOTO and back:
                found.add((RETURN, ""))
            if matches and (rule.action == GOTO or not back):
                return found
            continue
        if rule.action in (SNAT, NOTRACK) and rule.action != stop:
            continue
        found.add((rule.action, "" if rule.action == RETURN else f"{ruleset.name}: {rule.text}"))
        if matches and rule.action != UNCLEAR:
            return found
    return found | {(RETURN, "")}


def _matches(tests: t.Iterable[Test], packet: Packet) -> bool | None:
    answer: bool | None = True
    for test in tests:
        one = _holds(test, packet)
        if one is not None and test.inverted:
            one = not one
        if one is False:
            return False
        if one is None:
            answer = None
    return answer


def _holds(test: Test, packet: Packet) -> bool | None:
    key, values = test.key, test.values
    if key == "never":
        return False
    if key == "mark":
        return any(packet.mark & mask == value for value, mask in values)
    if key in ("source", "destination"):
        return _address_in(getattr(packet, key), values)
    if key in ("sport", "dport"):
        port = getattr(packet, key)
        return None if port is None else any(low <= port <= high for low, high in values)
    if key in ("iif", "oif"):
        return _interface_in(getattr(packet, key), values)
    if key == "validated":
        return packet.validated in values
    known: dict[str, str | None] = {
        "protocol": "tcp",
        "family": packet.family,
        "state": packet.state,
        # Without our routing table's mark: the client's address is not this host's.
        "destination type": "unicast",
        "transparent": "1",
        "uid": None if packet.uid is None else str(packet.uid),
        # The first packet of a connection and its answer have these two in common.
        "syn": "1",
    }
    value = known.get(key)
    return None if value is None else value in [str(entry).lower() for entry in values]


def _address_in(address: str | None, networks: t.Iterable[t.Any]) -> bool | None:
    unknown = False
    for network in networks:
        try:
            if isinstance(network, tuple):
                low, high = (ipaddress.ip_address(end) for end in network)
                if address is None:
                    unknown = True
                elif int(low) <= int(ipaddress.ip_address(address)) <= int(high):
                    return True
                continue
            parsed = ipaddress.ip_network(network, strict=False)
            if parsed.prefixlen == 0:
                return True
            if address is None:
                unknown = True
            elif ipaddress.ip_address(address) in parsed:
                return True
        except (ValueError, TypeError):
            unknown = True
    return None if unknown else False


def _interface_in(name: str | None, patterns: t.Iterable[t.Any]) -> bool | None:
    texts = [str(pattern) for pattern in patterns]
    if name is None:
        # No proxied packet enters or leaves through it.
        return False if texts == ["lo"] else None
    return any(
        name.startswith(text[:-1]) if text[-1:] in ("+", "*") else name == text for text in texts
    )


# iptables

_IPTABLES_ACTIONS = {
    "ACCEPT": ACCEPT,
    "DROP": DROP,
    "REJECT": DROP,
    "RETURN": RETURN,
    "MASQUERADE": SNAT,
    "SNAT": SNAT,
    "NETMAP": SNAT,
    "NOTRACK": NOTRACK,
    "QUEUE": UNCLEAR,
    "NFQUEUE": UNCLEAR,
    "SYNPROXY": UNCLEAR,
}
_IPTABLES_KEYS = {
    "-i": "iif",
    "-o": "oif",
    "-s": "source",
    "-d": "destination",
    "-p": "protocol",
    "--sport": "sport",
    "--sports": "sport",
    "--dport": "dport",
    "--dports": "dport",
    "--mark": "mark",
    "--ctstate": "state",
    "--state": "state",
    "--dst-type": "destination type",
    "--uid-owner": "uid",
}
# Options of matches that change nothing about whether the rule matches.
_IPTABLES_ARGUMENTS = {"-m": 1, "--comment": 1, "--wait": 0}
# Modules whose mere presence tests something that cannot be known.
_IPTABLES_FLAGS = {"--transparent": "transparent", "--nowildcard": "transparent", "--syn": "syn"}


def iptables_rulesets(text: str, program: str, family: str) -> tuple[Ruleset, ...]:
    """The tables of `iptables-save`, without our own rules."""
    tables: dict[str, dict[str, list[Rule]]] = {}
    policies: dict[tuple[str, str], str] = {}
    table = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("*"):
            table = line[1:]
            tables.setdefault(table, {})
        elif line.startswith(":"):
            name, _space, rest = line[1:].partition(" ")
            tables.setdefault(table, {}).setdefault(name, [])
            policies[table, name] = DROP if rest.startswith("DROP") else ACCEPT
        elif line.startswith(("-A ", "[")):
            parsed = filter_rule(line)
            if not parsed.owned:
                rule = _iptables_rule(parsed.words, f"-A {parsed.chain} {parsed.spec}")
                tables.setdefault(table, {}).setdefault(parsed.chain, []).append(rule)
    made = []
    for name, chains in tables.items():
        made.append(
            Ruleset(
                f"{program} {name}",
                (family,),
                {
                    chain: Chain(
                        tuple(rules),
                        hook=chain.lower() if chain.isupper() and (name, chain) in policies else "",
                        kind="nat" if name == "nat" else "filter",
                        priority=_IPTABLES_PRIORITY.get((name, chain.lower()), 0),
                        policy=policies.get((name, chain), ACCEPT),
                    )
                    for chain, rules in chains.items()
                },
            )
        )
    return tuple(made)


def _iptables_rule(words: tuple[str, ...], text: str) -> Rule:
    tests: list[Test] = []
    inverted = False
    index = 0
    action, target = NOTHING, ""
    while index < len(words):
        word = words[index]
        value = words[index + 1] if index + 1 < len(words) else ""
        if word == "!":
            inverted = True
            index += 1
            continue
        if word in ("-j", "-g"):
            action, target = _iptables_action(word, value, words[index + 2 :])
            break
        if word in _IPTABLES_FLAGS:
            tests.append(Test(_IPTABLES_FLAGS[word], ("1",), inverted))
            index += 1
        elif word in _IPTABLES_KEYS:
            key = _IPTABLES_KEYS[word]
            tests.append(Test(key, _iptables_values(key, value), inverted))
            index += 2
        elif word in _IPTABLES_ARGUMENTS:
            index += 1 + _IPTABLES_ARGUMENTS[word]
        else:
            tests.append(Test(f"unknown {word}"))
            index += 1
            while index < len(words) and not words[index].startswith("-") and words[index] != "!":
                index += 1
        inverted = False
    return Rule(text, tuple(tests), action, target)


def _iptables_action(how: str, target: str, more: tuple[str, ...]) -> tuple[str, str]:
    if target == "CT":
        return (NOTRACK if "--notrack" in more else NOTHING), ""
    if target in _IPTABLES_ACTIONS:
        return _IPTABLES_ACTIONS[target], ""
    # LOG, MARK, TCPMSS and the like let the packet go on; any other name is a chain.
    if re.fullmatch(r"LOG|NFLOG|U?LOG|MARK|CONNMARK|SET|TCPMSS|TOS|DSCP|TTL|HL|TRACE|CLASSIFY|"
                    r"CHECKSUM|CONNSECMARK|SECMARK|ECN|TEE|AUDIT|HMARK|TCPOPTSTRIP|RATEEST|TPROXY|"
                    r"DNAT|REDIRECT", target):  # fmt: skip
        return NOTHING, ""
    return (GOTO if how == "-g" else JUMP), target


def _iptables_values(key: str, value: str) -> tuple[t.Any, ...]:
    if key in ("sport", "dport"):
        return tuple(_port_range(part, ":") for part in value.split(","))
    if key == "mark":
        mark, _slash, mask = value.partition("/")
        return ((_integer(mark), _integer(mask or "0xffffffff")),)
    if key in ("iif", "oif"):
        return (value,)
    return tuple("0" if part == "root" else part.lower() for part in value.split(","))


def _port_range(text: str, separator: str) -> tuple[int, int]:
    low, _separator, high = text.partition(separator)
    first = _integer(low or "0")
    return first, _integer(high) if high else (65535 if _separator else first)


def _integer(text: t.Any) -> int:
    try:
        return int(str(text), 0)
    except ValueError:
        # Matches nothing.
        return -1


# nft

_NFT_FAMILIES = {"ip": ("ipv4",), "ip6": ("ipv6",), "inet": FAMILIES}
_NFT_META = {
    "iifname": "iif",
    "iif": "iif",
    "oifname": "oif",
    "oif": "oif",
    "l4proto": "protocol",
    "nfproto": "family",
    "skuid": "uid",
    "mark": "mark",
}
_NFT_VERDICTS = {
    "accept": ACCEPT,
    "drop": DROP,
    "reject": DROP,
    "return": RETURN,
    "masquerade": SNAT,
    "snat": SNAT,
    "notrack": NOTRACK,
    "jump": JUMP,
    "goto": GOTO,
    "queue": UNCLEAR,
    "xt": UNCLEAR,
}
_NFT_HARMLESS = ("counter", "log", "mangle", "comment", "continue", "set", "dnat", "redirect", "tproxy")  # fmt: skip


def nft_rulesets(text: str, *, skip: t.Container[tuple[str, str]] = ()) -> tuple[Ruleset, ...]:
    """The tables of `nft -j list ruleset`, without our own rules and the tables (family, name) to skip."""
    if not text.strip():
        return ()
    try:
        objects = nft.objects(text)
        sets = {
            (found["family"], found["table"], found["name"]): found.get("elem")
            for kind, found in objects
            if kind == "set"
        }
        chains: dict[tuple[str, str], dict[str, Chain]] = {}
        rules: dict[tuple[str, str, str], list[Rule]] = {}
        for kind, found in objects:
            if kind == "chain":
                chains.setdefault((found["family"], found["table"]), {})[found["name"]] = Chain(
                    hook=str(found.get("hook", "")),
                    kind=str(found.get("type", "filter")),
                    priority=_integer(found.get("prio", 0)),
                    policy=DROP if found.get("policy") == "drop" else ACCEPT,
                )
            elif kind == "rule" and found.get("comment") != OWNER:
                place = found["family"], found["table"], found["chain"]

                def members(name: str, place: tuple[str, str, str] = place) -> t.Any:
                    return sets.get((place[0], place[1], name))

                rules.setdefault(place, []).extend(_nft_rules(found.get("expr", ()), members))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Error(
            f"cannot understand the answer of `nft -j list ruleset`: {text.strip()[:200]!r}"
        ) from None
    made = []
    for (family, table), content in chains.items():
        if family not in _NFT_FAMILIES or (family, table) in skip:
            continue
        complete = {
            name: Chain(**{**chain.__dict__, "rules": tuple(rules.get((family, table, name), ()))})
            for name, chain in content.items()
        }
        made.append(Ruleset(f"nft {family} {table}", _NFT_FAMILIES[family], complete))
    return tuple(made)


def _nft_rules(
    expressions: t.Iterable[dict[str, t.Any]], members: t.Callable[[str], t.Any]
) -> list[Rule]:
    text = json.dumps(list(expressions))[:300]
    tests: list[Test] = []
    made: list[Rule] = []
    for expression in expressions:
        for word, content in expression.items():
            if word == "match":
                tests.append(_nft_test(content, members))
            elif word == "vmap":
                made += _nft_map(content, tuple(tests), text, members)
            elif word in _NFT_VERDICTS:
                target = content.get("target", "") if isinstance(content, dict) else ""
                made.append(Rule(text, tuple(tests), _NFT_VERDICTS[word], str(target)))
            elif word not in _NFT_HARMLESS:
                tests.append(Test(f"unknown {word}"))
    return made


def _nft_map(
    content: t.Any, tests: tuple[Test, ...], text: str, members: t.Callable[[str], t.Any]
) -> list[Rule]:
    data = content["data"]
    pairs = data.get("set") if isinstance(data, dict) else None
    if not isinstance(pairs, list):
        return [Rule(text, (*tests, Test("unknown map")), UNCLEAR)]
    made = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            return [Rule(text, (*tests, Test("unknown map")), UNCLEAR)]
        value, verdict = pair
        test = _nft_test({"op": "==", "left": content["key"], "right": value}, members)
        for word, inner in verdict.items():
            target = inner.get("target", "") if isinstance(inner, dict) else ""
            action = _NFT_VERDICTS.get(word, NOTHING)
            made.append(Rule(text, (*tests, test), action, str(target)))
    return made


def _nft_test(content: dict[str, t.Any], members: t.Callable[[str], t.Any]) -> Test:
    operator, left, right = content.get("op"), content.get("left"), content.get("right")
    inverted = operator == "!="
    unknown = Test(f"unknown {json.dumps(left)[:60]}")
    if operator not in ("==", "!=", "in") or not isinstance(left, dict):
        return unknown
    mask = 0xFFFFFFFF
    if "&" in left and isinstance(left["&"], list) and len(left["&"]) == 2:
        left, other = left["&"]
        mask = _integer(other)
        if not isinstance(left, dict):
            return unknown
        if left.get("payload", {}).get("field") == "flags" and right == "syn":
            return Test("syn", ("1",), inverted)
    values = _nft_values(right, members)
    if values is None:
        return unknown
    if "meta" in left:
        key = _NFT_META.get(left["meta"].get("key"))
        if key is None:
            return unknown
        if key == "mark":
            if operator == "in" or any(isinstance(value, tuple) for value in values):
                return unknown
            return Test(key, tuple((_integer(value), mask) for value in values), inverted)
        if key == "protocol":
            values = tuple({"6": "tcp", "58": "icmpv6"}.get(str(one), one) for one in values)
        return Test(key, values, inverted)
    if mask != 0xFFFFFFFF:
        return unknown
    if "payload" in left:
        return _nft_payload(left["payload"], values, inverted) or unknown
    if "ct" in left and left["ct"].get("key") == "state":
        return Test("state", values, inverted)
    if "socket" in left and left["socket"].get("key") == "transparent":
        return Test("transparent", values, inverted)
    if "fib" in left:
        flags, result = left["fib"].get("flags"), left["fib"].get("result")
        flags = [flags] if isinstance(flags, str) else list(flags or ())
        if result == "type" and flags == ["daddr"]:
            return Test("destination type", values, inverted)
        if result == "oif" and "saddr" in flags and "mark" in flags and "iif" in flags:
            # `missing` is false in JSON.
            return Test("validated", tuple(bool(value) for value in values), inverted)
        if result == "oif" and "saddr" in flags and values == (False,):
            return Test("validated", ("missing",), inverted)
    return unknown


def _nft_payload(
    payload: dict[str, t.Any], values: tuple[t.Any, ...], inverted: bool
) -> Test | None:
    protocol, name = payload.get("protocol"), payload.get("field")
    if protocol in ("icmp", "icmpv6", "udp", "sctp", "udplite", "dccp", "ah", "esp", "igmp"):
        # The packet is TCP.
        return Test("never")
    if protocol in ("ip", "ip6") and name in ("saddr", "daddr"):
        return Test("source" if name == "saddr" else "destination", values, inverted)
    if (protocol, name) in (("ip", "protocol"), ("ip6", "nexthdr")):
        return Test("protocol", values, inverted)
    if protocol in ("tcp", "th") and name in ("sport", "dport"):
        ranges = tuple(
            value if isinstance(value, tuple) else (_integer(value), _integer(value))
            for value in values
        )
        return Test(name, tuple((_integer(a), _integer(b)) for a, b in ranges), inverted)
    return None


def _nft_values(right: t.Any, members: t.Callable[[str], t.Any]) -> tuple[t.Any, ...] | None:
    if isinstance(right, str) and right.startswith("@"):
        right = members(right[1:])
        if not isinstance(right, list):
            return None
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    parts = right if isinstance(right, list) else [right]
    values: list[t.Any] = []
    for part in parts:
        if isinstance(part, dict) and "elem" in part:
            part = part["elem"].get("val") if isinstance(part["elem"], dict) else None
        if isinstance(part, dict) and "prefix" in part:
            values.append(f"{part['prefix'].get('addr')}/{part['prefix'].get('len')}")
        elif isinstance(part, dict) and isinstance(part.get("range"), list):
            if len(part["range"]) != 2:
                return None
            values.append(tuple(part["range"]))
        elif isinstance(part, (str, int)):
            values.append(part)
        else:
            return None
    return tuple(values)
