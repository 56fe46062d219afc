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
ROUTE_TYPES = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
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
    # Path below /proc/sys -> value.
    sysctls: tuple[tuple[str, str], ...] = ()
    firewall: str = "iptables"

    @classmethod
    def from_options(cls, options: t.Mapping[str, t.Any]) -> Desired:
        """Checks everything that can be checked without looking at the host.

        Raises InputError naming the option.
        """
        families = tuple(options["families"])
        for family in families:
            if family not in FAMILIES:
                raise InputError(
                    f"families: '{family}' is neither ipv4 nor ipv6", option="families"
                )
        if not families:
            raise InputError("families: at least one of ipv4 and ipv6 is needed", option="families")
        if options["firewall"] != "iptables":
            raise InputError(
                f"firewall: '{options['firewall']}' is not available; iptables is",
                option="firewall",
            )

        mark, mask = parse_number(options["mark"], "mark"), parse_number(options["mask"], "mask")
        if mask == 0:
            raise InputError(
                "mask: 0 selects no bit; give the bits that the mark uses, like 0x1", option="mask"
            )
        if mark == 0:
            raise InputError(
                "mark: 0 is what every unmarked packet has; give one with a bit set, like 0x1",
                option="mark",
            )
        if mark & ~mask:
            raise InputError(
                f"mark: 0x{mark:x} has bits outside the mask 0x{mask:x}, so no packet could "
                "ever match it; "
                f"choose a mark inside the mask",
                option="mark",
            )

        table = int(options["table"])
        if table in (0, TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT) or not 0 < table <= 0xFFFFFFFF:
            raise InputError(
                f"table: {table} cannot be used: 0 and 253 to 255 belong to the kernel; choose "
                "another from 1 to 4294967295",
                option="table",
            )
        name = options["table_name"]
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
        priority = int(options["rule_priority"])
        # 0 is the local table's rule; ours and the next must stand before main, at 32766.
        if not 1 <= priority <= 32764:
            raise InputError(
                f"rule_priority: {priority} is not between 1 and 32764, where the rules stand "
                "after the local table's and before main's",
                option="rule_priority",
            )
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
            sysctls=tuple(sysctls.items()),
            firewall=options["firewall"],
        )

    def as_dict(self) -> dict[str, t.Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: t.Mapping[str, t.Any]) -> Desired:
        known = {key: value for key, value in data.items() if key in cls.__dataclass_fields__}
        for key in ("families", "interfaces"):
            known[key] = tuple(known.get(key, ()))
        known["sysctls"] = tuple((key, value) for key, value in known.get("sysctls", ()))
        return cls(**known)


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
    # Path below /proc/sys -> (value before us, the path whose writing changes it).
    sysctls: tuple[tuple[str, str, str], ...] = ()
    # Directories that were not there before us.
    directories: tuple[str, ...] = ()
    # Families whose mangle table did not exist before us.
    tables: tuple[str, ...] = ()
    # IPv6 interfaces that use router advertisements.
    advertised: tuple[str, ...] = ()

    def dump(self) -> str:
        data: dict[str, t.Any] = {
            "version": 1,
            "desired": None if self.desired is None else self.desired.as_dict(),
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

    firewall: t.Mapping[str, t.Mapping[str, FilterTable]] = field(default_factory=dict)
    rules: t.Mapping[str, tuple[IpRule, ...]] = field(default_factory=dict)
    # family -> table number -> routes, for the tables that matter.
    routes: t.Mapping[str, t.Mapping[int, tuple[Route, ...]]] = field(default_factory=dict)
    # Path below /proc/sys -> value.
    sysctls: t.Mapping[str, str] = field(default_factory=dict)
    interfaces: tuple[str, ...] = ()
    # Interfaces with a route learned by the kernel from a router advertisement.
    advertised: tuple[str, ...] = ()
    table_names: tuple[TableName, ...] = ()
    # Path -> content, None where there is no such file.
    files: t.Mapping[str, str | None] = field(default_factory=dict)
    missing_directories: tuple[str, ...] = ()
    record: Record = Record()

    def recorded(self, family: str) -> Desired | None:
        """What the record says of the family."""
        desired = self.record.desired
        return desired if desired is not None and family in desired.families else None


@dataclass(frozen=True)
class Plan:
    """Named changes, and the steps that carry them out. No change means no step."""

    changes: tuple[Change, ...] = ()
    # (path below /proc/sys, value), in this order.
    sysctls: tuple[tuple[str, str], ...] = ()
    # family -> lines for `ip -batch`.
    ip: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # family -> input for `iptables-restore --noflush`.
    firewall: t.Mapping[str, str] = field(default_factory=dict)
    # path -> content, None removes the file.
    files: t.Mapping[str, str | None] = field(default_factory=dict)
    # Families whose mangle table goes when it is empty: it came with us.
    drop_tables: tuple[str, ...] = ()
    remove_directories: tuple[str, ...] = ()
    record: str | None = None
    # True: packets stop being diverted first (absent); False: they start last.
    firewall_first: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def changes_kernel(self) -> bool:
        return bool(self.sysctls or self.ip or self.firewall)


@dataclass(frozen=True)
class Address:
    """One address of an interface, with the subnet it makes connected."""

    interface: str
    address: ipaddress.IPv4Interface | ipaddress.IPv6Interface
    # Whether the interface is switched on. The kernel refuses routes over one that is not.
    up: bool = True


def family_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return f"ipv{address.version}"
