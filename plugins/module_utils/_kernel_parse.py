# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: text of iptables-save, ip and iproute2 -> plain data. Private to the collection."""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    ROUTE_TYPES,
    RTPROT_NAMES,
    RTPROT_NUMBERS,
    TABLE_NAMES,
    Address,
    FilterRule,
    FilterTable,
    IpRule,
    Route,
    TableName,
)

# Names that iproute2 prints where a number was asked for, in versions whose -N does not reach
# everywhere.
_TABLES = {name: number for number, name in TABLE_NAMES.items()}
_PROTOCOLS = {name: number for number, name in RTPROT_NAMES.items()}
# The same protocol has several names; iptables-save picks by version and /etc/protocols.
_IP_PROTOCOLS = {"6": "tcp", "1": "icmp", "58": "icmpv6", "ipv6-icmp": "icmpv6"}


def iptables_save(text: str) -> dict[str, FilterTable]:
    """The tables of `iptables-save`.

    A line that is not its grammar raises Error naming the line.
    """
    chains: dict[str, list[str]] = {}
    rules: dict[str, list[FilterRule]] = {}
    table: str | None = None
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("*"):
            table = line[1:]
            chains.setdefault(table, [])
            rules.setdefault(table, [])
        elif line == "COMMIT":
            table = None
        elif table is None:
            raise _not_understood("iptables-save", raw)
        elif line.startswith(":"):
            chains[table].append(line[1:].split()[0])
        else:
            rules[table].append(filter_rule(line))
    return {name: FilterTable(tuple(chains[name]), tuple(rules[name])) for name in chains}


def filter_rule(line: str) -> FilterRule:
    """`-A CHAIN …` -> FilterRule in canonical form: protocol names unified, counters and quotes
    gone.
    """
    try:
        words = shlex.split(re.sub(r"^\[\d+:\d+\] ", "", line))
    except ValueError:
        raise _not_understood("iptables-save", line) from None
    if len(words) < 2 or words[0] != "-A":
        raise _not_understood("iptables-save", line)
    chain, words = words[1], words[2:]
    canonical = [
        _IP_PROTOCOLS.get(word, word) if index and words[index - 1] == "-p" else word
        for index, word in enumerate(words)
    ]
    return FilterRule(chain, tuple(canonical))


def _not_understood(program: str, line: str) -> Error:
    return Error(f"cannot understand this line of {program}: {line[:200]!r}")


def _json_list(program: str, text: str) -> list[dict[str, t.Any]]:
    if not text.strip():
        return []
    try:
        data = json.loads(text)
    except ValueError:
        raise Error(
            f"cannot understand the answer of `{program}`: {text.strip()[:200]!r}"
        ) from None
    if not isinstance(data, list):
        raise Error(f"cannot understand the answer of `{program}`: not a list")
    # Some versions print an empty object for every route they filtered out.
    return [entry for entry in data if entry]


def _number(value: t.Any, names: t.Mapping[str, int]) -> int:
    return names[value] if value in names else int(str(value), 0)


def ip_rules(text: str, table_names: t.Iterable[TableName] = ()) -> tuple[IpRule, ...]:
    """The rules of `ip -N -d -j rule`, in the kernel's order."""
    tables = {**_TABLES, **{entry.name: entry.number for entry in table_names}}
    rules = []
    for entry in _json_list("ip -j rule", text):
        rest = dict(entry)
        source = str(rest.pop("src", "all"))
        if "srclen" in rest:
            source += f"/{rest.pop('srclen')}"
        table = rest.pop("table", None)
        mark = rest.pop("fwmark", None)
        rules.append(
            IpRule(
                priority=int(rest.pop("priority")),
                table=None if table is None else _number(table, tables),
                mark=None if mark is None else int(str(mark), 0),
                mask=int(str(rest.pop("fwmask", "0xffffffff")), 0),
                iif=rest.pop("iif", None),
                protocol=_number(rest.pop("protocol", "unspec"), _PROTOCOLS),
                inverted="not" in rest and rest.pop("not", None) is None,
                source=source,
                other=_other(rest, drop=("iif_detached", "suppress_ifgroup")),
            )
        )
    return tuple(rules)


def _other(rest: t.Mapping[str, t.Any], drop: t.Container[str]) -> tuple[tuple[str, str], ...]:
    return tuple(
        sorted(
            (key, "" if value is None else value if isinstance(value, str) else json.dumps(value))
            for key, value in rest.items()
            if key not in drop
        )
    )


def ip_routes(text: str) -> tuple[Route, ...]:
    """The routes of `ip -N -d -j [-6] route show`."""
    routes = []
    for entry in _json_list("ip -j route", text):
        rest = dict(entry)
        kind = str(rest.pop("type", "1"))
        via = rest.pop("via", None)
        gateway = rest.pop(
            "gateway", via["host"] if isinstance(via, dict) and "host" in via else None
        )
        routes.append(
            Route(
                type=ROUTE_TYPES.get(int(kind), kind) if kind.isdigit() else kind,
                destination=str(rest.pop("dst")),
                device=rest.pop("dev", None),
                gateway=gateway,
                protocol=_number(rest.pop("protocol", "boot"), _PROTOCOLS),
                # 1024 is what the kernel makes of an IPv6 route without a metric.
                metric=int(rest.pop("metric", 0)),
                other=_other(rest, drop=("flags", "scope", "pref", "table", "expires")),
            )
        )
    return tuple(routes)


def route_texts(text: str) -> tuple[str, ...]:
    """The lines of `ip -o route show`, such that `ip route add` and `del` take them."""
    routes = []
    for line in text.splitlines():
        # -o marks the breaks before further next hops; what is dead or expires is state, no wish.
        words = re.sub(r"\\|\bexpires \S+", " ", line).split()
        routes.append(" ".join(word for word in words if word not in ("dead", "linkdown")))
    return tuple(routes)


def nft_table(text: str) -> dict[str, tuple[str, ...]]:
    """The blocks of `nft list table`, as `chain NAME` -> its lines in canonical form: numbers
    without leading zeros, operators as signs.
    """
    blocks: dict[str, tuple[str, ...]] = {}
    name: str | None = None
    for line in text.splitlines():
        words = line.strip()
        if name is None:
            block = re.fullmatch(r"(?!table )(.*\S) \{(?: # handle \d+)?", words)
            if block:
                name = block.group(1)
                blocks[name] = ()
        elif words == "}":
            name = None
        elif words:
            words = re.sub(r"\b0x0*([0-9a-f]+)\b", r"0x\1", words)
            words = words.replace(" and 0x", " & 0x").replace(" or 0x", " | 0x")
            blocks[name] += (words,)
    return blocks


def addresses(text: str) -> tuple[Address, ...]:
    """The addresses of `ip -j address`, in order."""
    found = []
    for link in _json_list("ip -j address", text):
        for info in link.get("addr_info", ()):
            if info.get("family") in ("inet", "inet6") and "local" in info:
                prefix = info.get("prefixlen", 128)
                found.append(
                    Address(
                        str(link["ifname"]),
                        ipaddress.ip_interface(f"{info['local']}/{prefix}"),
                        "UP" in link.get("flags", ("UP",)),
                        bool(info.get("temporary")),
                    )
                )
    return tuple(found)


def advertised_routes(text: str) -> tuple[str, ...]:
    """Of `ip -6 -N -j route` the interfaces of routes that the kernel made of router advertisements.

    Those to a prefix on the link have the protocol of all that it makes, but no other of these expires.
    """
    return tuple(
        str(entry["dev"])
        for entry in _json_list("ip -j route", text)
        if "dev" in entry
        and (
            _number(entry.get("protocol", 0), _PROTOCOLS) == RTPROT_NUMBERS["ra"]
            or "expires" in entry
        )
    )


def advertised_addresses(text: str) -> tuple[str, ...]:
    """Of `ip -6 -j address` the interfaces with addresses that the kernel made of router advertisements."""
    return tuple(
        str(link["ifname"])
        for link in _json_list("ip -j address", text)
        if any(info.get("mngtmpaddr") for info in link.get("addr_info", ()))
    )


def link_names(text: str) -> tuple[str, ...]:
    """The interfaces of `ip -j link`, in order."""
    return tuple(str(link["ifname"]) for link in _json_list("ip -j link", text) if "ifname" in link)


def link_parts(text: str) -> dict[str, tuple[str, str]]:
    """Of `ip -d -j link` the interfaces whose packets come in at another one: name -> (that one, its kind)."""
    found = {}
    for link in _json_list("ip -d -j link", text):
        kind = link.get("linkinfo", {}).get("info_slave_kind")
        if "master" in link and kind in ("bridge", "bond", "team"):
            found[str(link["ifname"])] = (str(link["master"]), str(kind))
    return found


def bridges(text: str) -> dict[str, tuple[str, ...]]:
    """Of `ip -d -j link` the bridges -> the families whose chains see their packets in any case."""
    found = {}
    for link in _json_list("ip -d -j link", text):
        info = link.get("linkinfo", {})
        if info.get("info_kind") == "bridge":
            data = info.get("info_data", {})
            calls = (("ipv4", "nf_call_iptables"), ("ipv6", "nf_call_ip6tables"))
            found[str(link["ifname"])] = tuple(family for family, key in calls if data.get(key))
    return found


def rt_tables(text: str, path: str) -> tuple[TableName, ...]:
    """The lines `NUMBER NAME` of one of iproute2's rt_tables files."""
    names = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if len(words) >= 2:
            try:
                names.append(TableName(int(words[0], 0), words[1], path))
            except ValueError:
                continue
    return tuple(names)
