# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel side's plain data: rules, routes, changes. Private to the collection."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

FAMILIES = ("ipv4", "ipv6")

# Every firewall rule of ours carries this comment: it is how a rule is known to be ours, also when
# all records are lost. Only letters and hyphens, so that no version of iptables-save quotes it.
OWNER = "clearproxy-tproxy-host"

# Numbers of the kernel's own routing tables and of the routing protocol "kernel" (rtnetlink(7)).
TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT = 255, 254, 253
TABLE_NAMES = {TABLE_LOCAL: "local", TABLE_MAIN: "main", TABLE_DEFAULT: "default"}
RTPROT_KERNEL = 2
RTPROT_NAMES = {
    0: "unspec",
    1: "redirect",
    2: "kernel",
    3: "boot",
    4: "static",
    9: "ra",
    16: "dhcp",
}
RTPROT_NUMBERS = {name: number for number, name in RTPROT_NAMES.items()}
ROUTE_TYPES = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
}

# Whether bridged packets pass the chains of the family (br_netfilter).
BRIDGE_CALLS = {
    "ipv4": "net/bridge/bridge-nf-call-iptables",
    "ipv6": "net/bridge/bridge-nf-call-ip6tables",
}

BUILTIN_CHAINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


@dataclass(frozen=True)
class Change:
    """One thing that is not as wanted: `item` is its stable name, the rest is for people."""

    item: str
    found: str
    wanted: str

    @property
    def sentence(self) -> str:
        if not self.found:
            return f"{self.item}: missing, wanted: {self.wanted}"
        if not self.wanted:
            return f"{self.item}: not wanted, found: {self.found}"
        return f"{self.item}: found: {self.found}, wanted: {self.wanted}"

    def as_dict(self) -> dict[str, str]:
        return {
            "item": self.item,
            "found": self.found,
            "wanted": self.wanted,
            "sentence": self.sentence,
        }


@dataclass(frozen=True)
class FilterRule:
    """One line of iptables-save: the chain, and the words after it in canonical form."""

    chain: str
    words: tuple[str, ...]

    def value(self, option: str) -> str | None:
        """The word after OPTION, as in value("-j") == "DIVERT"."""
        for word, following in zip(self.words, self.words[1:]):
            if word == option:
                return following
        return None

    @property
    def owned(self) -> bool:
        return self.value("--comment") == OWNER

    @property
    def target(self) -> str | None:
        return self.value("-j") or self.value("-g")

    @property
    def spec(self) -> str:
        return " ".join(_quoted(word) for word in self.words)

    def __str__(self) -> str:
        return f"-A {self.chain} {self.spec}"


def _quoted(word: str) -> str:
    if re.fullmatch(r"[^\s\"'\\]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


@dataclass(frozen=True)
class FilterTable:
    """One table of iptables-save: its chains in order, its rules in order."""

    chains: tuple[str, ...] = ()
    rules: tuple[FilterRule, ...] = ()

    def in_chain(self, chain: str) -> tuple[FilterRule, ...]:
        return tuple(rule for rule in self.rules if rule.chain == chain)


@dataclass(frozen=True)
class MarkChange:
    """What a statement of nft does to the packet's mark (or to the connection's, `of` is "ct")."""

    of: str
    # Bits that may be set afterwards although they were not before; those that stay as they were.
    sets: int
    keeps: int
    # Bits that come from the connection's mark.
    restores: int = 0
    # Bits of which nothing is known: they come from a map or from the packet itself.
    unclear: int = 0


@dataclass(frozen=True)
class NftRule:
    """One rule of nft, its expressions in nft's own words, in canonical form."""

    chain: str
    words: tuple[str, ...]
    comment: str | None = None
    # Chains that it may go on in.
    targets: tuple[str, ...] = ()
    marks: tuple[MarkChange, ...] = ()

    @property
    def owned(self) -> bool:
        return self.comment == OWNER

    def __str__(self) -> str:
        comment = (f'comment "{self.comment}"',) if self.comment is not None else ()
        return " ".join((*self.words, *comment))


@dataclass(frozen=True)
class NftChain:
    """One chain of nft; one without a hook is reached by jumps only."""

    name: str
    hook: str | None = None
    priority: int = 0
    type: str = "filter"
    policy: str = "accept"

    def __str__(self) -> str:
        if self.hook is None:
            return "no hook"
        return f"type {self.type} hook {self.hook} priority {self.priority}; policy {self.policy};"


@dataclass(frozen=True)
class NftTable:
    """One table of nft, less what is not a chain or a rule: of that only the names."""

    family: str
    name: str
    chains: tuple[NftChain, ...] = ()
    rules: tuple[NftRule, ...] = ()
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.family} {self.name}"


@dataclass(frozen=True)
class IpRule:
    """One policy routing rule; `other` holds every selector and action that this collection
    never sets.
    """

    priority: int
    table: int | None
    mark: int | None = None
    mask: int = 0xFFFFFFFF
    iif: str | None = None
    protocol: int = RTPROT_KERNEL
    inverted: bool = False
    source: str = "all"
    other: tuple[tuple[str, str], ...] = ()

    @property
    def selectors(self) -> str:
        """In ip-rule(8)'s own words, as `ip rule add` and `ip rule del` take them."""
        words = [f"priority {self.priority}"]
        if self.inverted:
            words.append("not")
        if self.source != "all":
            words.append(f"from {self.source}")
        words += [f"{key} {value}".strip() for key, value in self.other]
        if self.iif is not None:
            words.append(f"iif {self.iif}")
        if self.mark is not None:
            words.append(f"fwmark 0x{self.mark:x}/0x{self.mask:x}")
        if self.table is not None:
            words.append(f"lookup {TABLE_NAMES.get(self.table, self.table)}")
        words.append(f"protocol {RTPROT_NAMES.get(self.protocol, self.protocol)}")
        return " ".join(words)

    def __str__(self) -> str:
        return self.selectors


@dataclass(frozen=True)
class Route:
    """One route; metric 0 stands for "none given" in IPv4 and never occurs in IPv6 (the kernel
    makes it 1024).
    """

    type: str
    destination: str
    device: str | None
    gateway: str | None = None
    protocol: int = RTPROT_KERNEL
    metric: int = 0
    other: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        words = [] if self.type == "unicast" else [self.type]
        words.append(self.destination)
        if self.gateway is not None:
            words.append(f"via {self.gateway}")
        if self.device is not None:
            words.append(f"dev {self.device}")
        words.append(f"proto {RTPROT_NAMES.get(self.protocol, self.protocol)}")
        if self.metric:
            words.append(f"metric {self.metric}")
        words += [f"{key} {value}".strip() for key, value in self.other]
        return " ".join(words)


@dataclass(frozen=True)
class TableName:
    """One line of iproute2's rt_tables: the table's number, its name, and the file that says so."""

    number: int
    name: str
    path: str


@dataclass(frozen=True)
class Address:
    """One address of an interface, with the subnet it makes connected."""

    interface: str
    address: ipaddress.IPv4Interface | ipaddress.IPv6Interface
    # Whether the interface is switched on. The kernel refuses routes over one that is not.
    up: bool = True
    # A privacy address (RFC 8981), which goes by itself and never serves.
    temporary: bool = False


def family_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return f"ipv{address.version}"
