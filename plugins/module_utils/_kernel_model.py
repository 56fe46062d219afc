# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel side's plain data: rules, routes, options, records. Private to the collection."""

from __future__ import annotations

import ipaddress
import json
import re
import typing as t
from dataclasses import asdict, dataclass, field

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError

FAMILIES = ("ipv4", "ipv6")

# Every firewall rule of ours carries this comment: it is how a rule is known to be ours, also when
# all
# records are lost. Only letters and hyphens, so that no version of iptables-save quotes it.
OWNER = "clearproxy-tproxy-host"

# iptables is whatever variant the host's own iptables is; the two behind it name one.
IPTABLES_BACKENDS = ("iptables", "iptables-nft", "iptables-legacy")
BACKENDS = (*IPTABLES_BACKENDS, "nftables")

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
# A chain of such a name could be made, but "-j NAME" would mean the target.
TARGET_NAMES = (
    "ACCEPT",
    "DROP",
    "QUEUE",
    "RETURN",
    "MARK",
    "CONNMARK",
    "TPROXY",
    "LOG",
    "NFLOG",
    "TCPMSS",
    "TOS",
    "DSCP",
    "TTL",
)


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


def parse_number(value: t.Any, option: str) -> int:
    """A 32-bit number, decimal or 0x-hexadecimal, as iptables and ip take marks."""
    text = str(value).strip()
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number <= 0xFFFFFFFF or isinstance(value, bool):
        raise InputError(
            f"{option}: '{value}' is not a 32-bit number; give it like 0x1 or 1",
            option=option,
        )
    return number


def parse_mark(mark: t.Any, mask: t.Any) -> tuple[int, int]:
    """A mark and the bits that are ours. Raises InputError for what no packet could match."""
    bits, ours = parse_number(mark, "mark"), parse_number(mask, "mask")
    if ours == 0:
        raise InputError(
            "mask: 0 selects no bit; give the bits that the mark uses, like 0x1", option="mask"
        )
    if bits == 0:
        raise InputError(
            "mark: 0 is what every unmarked packet has; give one with a bit set, like 0x1",
            option="mark",
        )
    if bits & ~ours:
        raise InputError(
            f"mark: 0x{bits:x} has bits outside the mask 0x{ours:x}, so no packet could "
            "ever match it; "
            f"choose a mark inside the mask",
            option="mark",
        )
    return bits, ours


def parse_table(value: t.Any) -> int:
    """The number of a routing table that is not the kernel's."""
    table = int(value)
    if table in (0, TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT) or not 0 < table <= 0xFFFFFFFF:
        raise InputError(
            f"table: {table} cannot be used: 0 and 253 to 255 belong to the kernel; choose "
            "another from 1 to 4294967295",
            option="table",
        )
    return table


def parse_table_name(name: str) -> str:
    """The name that iproute2 shall show for a table of ours."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", name) or name in (
        "local",
        "main",
        "default",
        "unspec",
    ):
        raise InputError(
            f"table_name: '{name}' cannot be used; give a name of letters, digits, '_', '.' "
            "and '-' "
            "that begins with a letter and is not one of the kernel's tables",
            option="table_name",
        )
    return name


def parse_priority(value: t.Any, *, last: int) -> int:
    """The priority of a rule after the local table's, at 0, and before main's, at 32766."""
    priority = int(value)
    if not 1 <= priority <= last:
        raise InputError(
            f"rule_priority: {priority} is not between 1 and {last}, where the rules stand "
            "after the local table's and before main's",
            option="rule_priority",
        )
    return priority


def check_interface_name(name: str, option: str) -> str:
    # dev_valid_name() of the kernel, less the wildcard "+" of iptables.
    if (
        not name
        or len(name.encode()) > 15
        or name in (".", "..")
        or re.search(r"[\s/:+\"'\\%]", name)
    ):
        raise InputError(
            f"{option}: '{name}' cannot be the name of a network interface", option=option
        )
    return name


_ANYWHERE = {"ipv4": "0.0.0.0/0", "ipv6": "::/0"}


@dataclass(frozen=True)
class Intercept:
    """TCP connections to any address but this host's own that HAProxy gets instead of the
    destination.
    """

    # "80", or "8000:8010" as iptables writes ranges.
    ports: tuple[str, ...]
    # Where HAProxy listens: `bind :TO_PORT transparent`.
    to_port: int
    families: tuple[str, ...] = FAMILIES
    # Networks of both families; none of a family that is in `families` means any.
    destinations: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()

    @classmethod
    def from_option(
        cls, entry: t.Mapping[str, t.Any], where: str, families: t.Sequence[str]
    ) -> Intercept:
        """Raises InputError naming the option below `where`, like intercepts[0].ports."""
        ports = tuple(
            dict.fromkeys(_port_range(value, f"{where}.ports") for value in entry["ports"] or ())
        )
        if not ports:
            raise _refusal(f"{where}.ports", "is empty; give the ports to catch, like [80, 443]")
        to_port = entry["to_port"]
        if isinstance(to_port, bool) or not 1 <= int(to_port) <= 65535:
            raise _refusal(f"{where}.to_port", f"{to_port} is not a port from 1 to 65535")
        networks = {
            name: tuple(
                dict.fromkeys(_network(value, f"{where}.{name}") for value in entry.get(name) or ())
            )
            for name in ("destinations", "sources")
        }
        given = tuple(entry.get("families") or ())
        for family in given:
            if family not in families:
                raise _refusal(f"{where}.families", f"'{family}' is not among the option families")
        # Networks of one family only say which family is meant, unless families says it.
        possible = given or families
        chosen = tuple(
            family
            for family in FAMILIES
            if family in possible
            and all(not found or _of_family(found, family) for found in networks.values())
        )
        for name, found in networks.items():
            for family in given if found else ():
                if not _of_family(found, family):
                    raise _refusal(
                        f"{where}.{name}",
                        f"there is no {family} network among {', '.join(found)}; add one, or take "
                        f"{family} out of {where}.families",
                    )
            for network in found:
                family = family_of(ipaddress.ip_network(network).network_address)
                if family not in chosen:
                    raise _refusal(
                        f"{where}.{name}",
                        f"'{network}' is {family}, which this entry does not catch; families, "
                        "sources and destinations must have a family in common",
                    )
        interfaces = tuple(
            dict.fromkeys(
                check_interface_name(name, f"{where}.interfaces")
                for name in entry.get("interfaces") or ()
            )
        )
        if "lo" in interfaces:
            raise _refusal(
                f"{where}.interfaces",
                "what this host itself sends cannot be caught; give interfaces that lead to "
                "clients",
            )
        return cls(
            ports=ports,
            to_port=int(to_port),
            families=chosen,
            destinations=networks["destinations"],
            sources=networks["sources"],
            interfaces=interfaces,
        )

    def covers(self, port: str, other: Intercept) -> bool:
        """Whether nothing that the other one catches at this port would get past this one."""
        first, last = _bounds(port)
        return (
            any(low <= first and last <= high for low, high in map(_bounds, self.ports))
            and set(other.families) <= set(self.families)
            and (not self.interfaces or (set(other.interfaces or ("",)) <= set(self.interfaces)))
            and all(
                _contains(self.networks(name, family), other.networks(name, family))
                for family in other.families
                for name in ("sources", "destinations")
            )
        )

    def networks(
        self, name: str, family: str
    ) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """Of `sources` or `destinations` those of the family; everything if none is given."""
        found = _of_family(getattr(self, name), family) or (_ANYWHERE[family],)
        return tuple(ipaddress.ip_network(text) for text in found)

    def texts(self, name: str, family: str) -> tuple[str | None, ...]:
        """The same as a firewall takes them: None for everything."""
        found = self.networks(name, family)
        return tuple(str(network) if network.prefixlen else None for network in found)

    @classmethod
    def from_dict(cls, data: t.Mapping[str, t.Any]) -> Intercept:
        known: dict[str, t.Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in data.items()
            if key in cls.__dataclass_fields__
        }
        return cls(**known)


@dataclass(frozen=True)
class Catch:
    """One port of an intercept, coming in at one interface, from and to one network; None is any."""

    port: str
    to_port: int
    interface: str | None
    source: str | None
    destination: str | None


def _refusal(option: str, what: str) -> InputError:
    return InputError(f"{option}: {what}", option=option)


def _port_range(value: t.Any, option: str) -> str:
    text = str(value).strip()
    found = re.fullmatch(r"(\d{1,5})(?:\s*[-:]\s*(\d{1,5}))?", text)
    first, last = (int(found.group(1)), int(found.group(2) or found.group(1))) if found else (0, 0)
    if isinstance(value, bool) or not 1 <= first <= last <= 65535:
        raise _refusal(
            option,
            f"'{text}' is neither a port from 1 to 65535 nor a range of them like 8000-8010",
        )
    return str(first) if first == last else f"{first}:{last}"


def _bounds(port: str) -> tuple[int, int]:
    first, _colon, last = port.partition(":")
    return int(first), int(last or first)


def _network(value: t.Any, option: str) -> str:
    try:
        return str(ipaddress.ip_network(str(value).strip()))
    except ValueError as exc:
        raise _refusal(
            option,
            f"'{value}' is no network ({exc}); give one like 10.0.0.0/8, fd00::/8 or a single "
            "address",
        ) from None


def _of_family(networks: t.Iterable[str], family: str) -> tuple[str, ...]:
    return tuple(text for text in networks if (":" in text) == (family == "ipv6"))


def _contains(
    outer: t.Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network],
    inner: t.Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network],
) -> bool:
    return all(
        any(
            network.network_address in larger and network.prefixlen >= larger.prefixlen
            for larger in outer
        )
        for network in inner
    )


@dataclass(frozen=True)
class Desired:
    """What tproxy_rules shall make true on the proxy host."""

    families: tuple[str, ...] = FAMILIES
    mark: int = 0x1
    mask: int = 0x1
    table: int = 100
    table_name: str = "haproxy_tproxy"
    rule_priority: int = 100
    chain: str = "DIVERT"
    interfaces: tuple[str, ...] = ()
    forwarding: bool | None = None
    send_redirects: bool | None = None
    # 0, 1 or 2 of net.ipv4.conf.*.rp_filter.
    rp_filter: int | None = None
    # Whether a service watches over all of it.
    guard: bool = False
    # Path below /proc/sys -> value.
    sysctls: tuple[tuple[str, str], ...] = ()
    firewall: str = "iptables"
    nft_table: str = "haproxy_tproxy"
    socket_match: str = "transparent"
    icmp: bool = True
    guard_rule: bool = True
    rule_protocol: str = "kernel"
    position: str = "first"
    intercepts: tuple[Intercept, ...] = ()

    @classmethod
    def from_options(cls, options: t.Mapping[str, t.Any]) -> Desired:
        """Checks everything that can be checked without looking at the host.

        Raises InputError naming the option.
        """
        # What is not given is the default.
        options = {**vars(cls()), **options}
        families = tuple(options["families"])
        for family in families:
            if family not in FAMILIES:
                raise InputError(
                    f"families: '{family}' is neither ipv4 nor ipv6", option="families"
                )
        if not families:
            raise InputError("families: at least one of ipv4 and ipv6 is needed", option="families")
        for option, choices in (
            ("firewall", (*BACKENDS, "auto")),
            ("socket_match", ("transparent", "any")),
            ("rule_protocol", ("kernel", "boot", "static")),
            ("position", ("first", "last")),
        ):
            if options[option] not in choices:
                raise _refusal(option, f"'{options[option]}' is none of {', '.join(choices)}")

        mark, mask = parse_mark(options["mark"], options["mask"])
        table = parse_table(options["table"])
        name = parse_table_name(options["table_name"])
        # Ours and the next must stand before main, at 32766.
        priority = parse_priority(options["rule_priority"], last=32764)
        chain = options["chain"]
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,27}", chain):
            raise InputError(
                f"chain: '{chain}' cannot be the name of a chain; give at most 28 letters, "
                "digits, '_', '.' and '-'",
                option="chain",
            )
        if chain in BUILTIN_CHAINS or chain in TARGET_NAMES:
            raise InputError(
                f"chain: '{chain}' is a name of iptables itself; choose another", option="chain"
            )

        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", options["nft_table"]):
            raise _refusal(
                "nft_table",
                f"'{options['nft_table']}' cannot be the name of a table; give at most 64 letters, "
                "digits, '_', '.' and '-' that begin with a letter",
            )
        if options["firewall"] in ("nftables", "auto") and not chain[0].isalpha():
            raise _refusal("chain", f"'{chain}': nft wants a letter at the beginning")

        interfaces = tuple(
            dict.fromkeys(
                check_interface_name(name, "interfaces") for name in options["interfaces"] or ()
            )
        )
        if "lo" in interfaces:
            raise InputError(
                "interfaces: 'lo' cannot lead to servers; give the server-facing interfaces",
                option="interfaces",
            )

        sysctls: dict[str, str] = {}
        for key, value in (options["sysctls"] or {}).items():
            sysctls[sysctl_path(key)] = " ".join(
                str(int(value) if isinstance(value, bool) else value).split()
            )
        return cls(
            families=tuple(family for family in FAMILIES if family in families),
            mark=mark,
            mask=mask,
            table=table,
            table_name=name,
            rule_priority=priority,
            chain=chain,
            interfaces=interfaces,
            forwarding=options["forwarding"],
            send_redirects=options["send_redirects"],
            rp_filter=options["rp_filter"],
            guard=options["guard"],
            sysctls=tuple(sysctls.items()),
            firewall=options["firewall"],
            nft_table=options["nft_table"],
            socket_match=options["socket_match"],
            icmp=bool(options["icmp"]),
            guard_rule=bool(options["guard_rule"]),
            rule_protocol=options["rule_protocol"],
            position=options["position"],
            intercepts=_intercepts(options.get("intercepts") or (), families),
        )

    def catches(self, family: str) -> tuple[Catch, ...]:
        """What is intercepted, in the order in which it is looked at."""
        return tuple(
            Catch(port, entry.to_port, interface, source, destination)
            for entry in self.intercepts
            if family in entry.families
            for port in entry.ports
            for interface in (entry.interfaces or (None,))
            for source in entry.texts("sources", family)
            for destination in entry.texts("destinations", family)
        )

    @property
    def incoming(self) -> tuple[str, ...]:
        """Interfaces where packets for HAProxy come in; none means any."""
        if not self.interfaces or not all(entry.interfaces for entry in self.intercepts):
            return ()
        caught = (name for entry in self.intercepts for name in entry.interfaces)
        return tuple(dict.fromkeys((*self.interfaces, *caught)))

    def as_dict(self) -> dict[str, t.Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: t.Mapping[str, t.Any]) -> Desired:
        known = {key: value for key, value in data.items() if key in cls.__dataclass_fields__}
        for key in ("families", "interfaces"):
            known[key] = tuple(known.get(key, ()))
        known["sysctls"] = tuple((key, value) for key, value in known.get("sysctls", ()))
        known["intercepts"] = tuple(map(Intercept.from_dict, known.get("intercepts", ())))
        return cls(**known)


def _intercepts(
    entries: t.Sequence[t.Mapping[str, t.Any]], families: t.Sequence[str]
) -> tuple[Intercept, ...]:
    found: list[Intercept] = []
    for number, entry in enumerate(entries):
        where = f"intercepts[{number}]"
        new = Intercept.from_option(entry, where, families)
        for index, other in enumerate([*found, new]):
            # HAProxy could not tell a caught connection from one to the proxy itself.
            for option, one, caught in (("to_port", new, other), ("ports", other, new)):
                if any(low <= one.to_port <= high for low, high in map(_bounds, caught.ports)):
                    raise _refusal(
                        f"{where}.{option}",
                        f"{one.to_port} is where HAProxy listens for what is caught, and a caught port "
                        f"too (intercepts[{index}]); let HAProxy listen on another one, like 3129",
                    )
        for index, earlier in enumerate(found):
            for port in new.ports:
                if earlier.covers(port, new):
                    raise _refusal(
                        f"{where}.ports",
                        f"{port.replace(':', '-')} is caught by intercepts[{index}] already, "
                        "and the first that matches wins; take it out of one of them",
                    )
        found.append(new)
    return tuple(found)


def sysctl_path(key: str) -> str:
    """`net.ipv4.conf.eth0/100.forwarding` or `net/ipv4/conf/eth0.100/forwarding` -> the path below /proc/sys.

    The rule is sysctl.d(5)'s: the first separator decides which character separates.
    """
    text = str(key).strip()
    first = re.search(r"[./]", text)
    if first and first.group() == ".":
        text = text.translate(str.maketrans("./", "/."))
    if text == "net/ipv4/ip_forward":
        text = "net/ipv4/conf/all/forwarding"
    if (
        not re.fullmatch(r"net/[A-Za-z0-9_.@*/-]+", text)
        or ".." in text
        or "//" in text
        or text.endswith("/")
    ):
        raise InputError(
            f"sysctls: '{key}' is not a name below net, like net.ipv4.tcp_mtu_probing",
            option="sysctls",
        )
    return text


def sysctl_name(path: str) -> str:
    """The inverse of sysctl_path(): dots where that is unambiguous, else slashes."""
    return path if "." in path else path.replace("/", ".")


@dataclass(frozen=True)
class Record:
    """What the host remembers of us between runs, so that changed options and `absent` leave
    nothing behind.
    """

    desired: Desired | None = None
    # What runs made before that have not been completed since: all of it may still be there.
    earlier: tuple[Desired, ...] = ()
    # Path below /proc/sys -> (value before us, the path whose writing changes it).
    sysctls: tuple[tuple[str, str, str], ...] = ()
    # Directories that were not there before us.
    directories: tuple[str, ...] = ()
    # Families whose mangle table of iptables-nft did not exist before us.
    tables: tuple[str, ...] = ()
    # IPv6 interfaces that use router advertisements.
    advertised: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[Desired, ...]:
        """All options that something on the host may come from."""
        return tuple(dict.fromkeys(filter(None, (self.desired, *self.earlier))))

    def before(self, wanted: Record) -> Record:
        """What to remember until the host is as `wanted`: that, and all that is in this one."""
        values = {path: (value, cause) for path, value, cause in wanted.sysctls}
        # The older a value, the nearer it is to that before us.
        values.update({path: (value, cause) for path, value, cause in self.sysctls})
        return Record(
            desired=wanted.desired,
            earlier=tuple(entry for entry in self.known if entry != wanted.desired),
            sysctls=tuple((path, *entry) for path, entry in sorted(values.items())),
            directories=tuple(dict.fromkeys((*self.directories, *wanted.directories))),
            tables=tuple(family for family in FAMILIES if family in (*self.tables, *wanted.tables)),
            advertised=tuple(sorted({*self.advertised, *wanted.advertised})),
        )

    def dump(self) -> str:
        data: dict[str, t.Any] = {
            "version": 1,
            "desired": None if self.desired is None else self.desired.as_dict(),
            "earlier": [entry.as_dict() for entry in self.earlier],
            "sysctls": [list(entry) for entry in self.sysctls],
            "directories": list(self.directories),
            "tables": list(self.tables),
            "advertised": list(self.advertised),
        }
        return json.dumps(data, indent=1, sort_keys=True) + "\n"

    @classmethod
    def load(cls, text: str | None) -> Record:
        """An unreadable record counts as none: everything but old values can be told from the
        live state.
        """
        if not text:
            return cls()
        try:
            data = json.loads(text)
            return cls(
                desired=None if data["desired"] is None else Desired.from_dict(data["desired"]),
                earlier=tuple(map(Desired.from_dict, data.get("earlier", ()))),
                sysctls=tuple((path, before, cause) for path, before, cause in data["sysctls"]),
                directories=tuple(data["directories"]),
                tables=tuple(data["tables"]),
                advertised=tuple(data["advertised"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls()


@dataclass(frozen=True)
class Snapshot:
    """What a proxy host has now. Everything that a plan is made from."""

    # family -> table -> content, as the chosen iptables sees it; without one, the host's own.
    firewall: t.Mapping[str, t.Mapping[str, FilterTable]] = field(default_factory=dict)
    variant: str = "iptables"
    # What the host's own iptables is: nft or legacy.
    own_kind: str | None = None
    # What the other variant sees, whose rules the kernel runs as well.
    other_variants: t.Mapping[str, t.Mapping[str, t.Mapping[str, FilterTable]]] = field(
        default_factory=dict
    )
    # The one that nft lists too, if any.
    nft_variant: str | None = "iptables"
    nft: tuple[NftTable, ...] = ()
    rules: t.Mapping[str, tuple[IpRule, ...]] = field(default_factory=dict)
    # family -> table number -> routes, for the tables that matter.
    routes: t.Mapping[str, t.Mapping[int, tuple[Route, ...]]] = field(default_factory=dict)
    # Path below /proc/sys -> value.
    sysctls: t.Mapping[str, str] = field(default_factory=dict)
    interfaces: tuple[str, ...] = ()
    # Interfaces whose packets the kernel hands to another one: name -> (that one, bridge or bond).
    parts: t.Mapping[str, tuple[str, str]] = field(default_factory=dict)
    # Bridges -> the families whose chains see their packets whatever the sysctl says.
    bridges: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Interfaces with a route or an address that the kernel made of a router advertisement.
    advertised: tuple[str, ...] = ()
    table_names: tuple[TableName, ...] = ()
    # Path -> content, None where there is no such file.
    files: t.Mapping[str, str | None] = field(default_factory=dict)
    missing_directories: tuple[str, ...] = ()
    record: Record = Record()

    def recorded(self, family: str) -> tuple[Desired, ...]:
        """What the record says of the family."""
        return tuple(entry for entry in self.record.known if family in entry.families)

    @property
    def variants(self) -> dict[str, t.Mapping[str, t.Mapping[str, FilterTable]]]:
        """Every variant of iptables -> family -> table -> content, the chosen one first."""
        return {self.variant: self.firewall, **self.other_variants}


@dataclass(frozen=True)
class FirewallStep:
    """One transaction: a program that reads it, and what it reads."""

    program: str
    text: str
    # Whether packets are diverted by it, and not only cleared of what is old.
    adds: bool


@dataclass(frozen=True)
class Plan:
    """Named changes, and the steps that carry them out. No change means no step."""

    changes: tuple[Change, ...] = ()
    # (path below /proc/sys, value), in this order.
    sysctls: tuple[tuple[str, str], ...] = ()
    # family -> lines for `ip -batch`: what comes, before the firewall, and what goes, after it.
    ip: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ip_after: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # In this order.
    firewall: tuple[FirewallStep, ...] = ()
    # path -> content, None removes the file.
    files: t.Mapping[str, str | None] = field(default_factory=dict)
    # Families whose mangle table of iptables-nft goes when it is empty: it came with us.
    drop_tables: tuple[str, ...] = ()
    remove_directories: tuple[str, ...] = ()
    # What is remembered while the steps are made, and once they are.
    record_meanwhile: str | None = None
    record: str | None = None
    # True: packets stop being diverted first (absent); False: they start last.
    firewall_first: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def changes_kernel(self) -> bool:
        return bool(self.sysctls or self.ip or self.ip_after or self.firewall)


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
