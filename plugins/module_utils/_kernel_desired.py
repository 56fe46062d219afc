# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tproxy_rules is told to make true, read and checked. Private to the collection."""

from __future__ import annotations

import ipaddress
import re
import typing as t
from dataclasses import asdict, dataclass

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    BUILTIN_CHAINS,
    FAMILIES,
    TABLE_DEFAULT,
    TABLE_LOCAL,
    TABLE_MAIN,
    family_of,
)

# iptables is whatever variant the host's own iptables is; the two behind it name one.
IPTABLES_BACKENDS = ("iptables", "iptables-nft", "iptables-legacy")
BACKENDS = (*IPTABLES_BACKENDS, "nftables")

# A chain of such a name can be made, but "-j NAME" means the target, and then iptables does not find the chain when it is to
# be removed. iptables-extensions(8), xtables-addons(8), and targets of older kernels.
TARGET_NAMES = (
    "ACCEPT",
    "ACCOUNT",
    "AUDIT",
    "CHAOS",
    "CHECKSUM",
    "CLASSIFY",
    "CLUSTERIP",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "DELUDE",
    "DHCPMAC",
    "DNAT",
    "DNETMAP",
    "DNPT",
    "DROP",
    "DSCP",
    "ECHO",
    "ECN",
    "FLOWOFFLOAD",
    "HL",
    "HMARK",
    "IDLETIMER",
    "IPMARK",
    "LED",
    "LOG",
    "LOGMARK",
    "MARK",
    "MASQUERADE",
    "MIRROR",
    "NETMAP",
    "NFLOG",
    "NFQUEUE",
    "NOTRACK",
    "PROTO",
    "QUEUE",
    "RATEEST",
    "RAWDNAT",
    "RAWSNAT",
    "REDIRECT",
    "REJECT",
    "RETURN",
    "SAME",
    "SECMARK",
    "SET",
    "SNAT",
    "SNPT",
    "STEAL",
    "SYNPROXY",
    "SYSRQ",
    "TARPIT",
    "TCPMSS",
    "TCPOPTSTRIP",
    "TEE",
    "TOS",
    "TPROXY",
    "TRACE",
    "TTL",
    "ULOG",
)


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
        # Words of ip-route(8) that mean something else there.
        "all",
        "cache",
        "cloned",
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
    # dev_valid_name() of the kernel, less the wildcard "+" of iptables and the comments of `ip -batch`.
    if (
        not name
        or len(name.encode()) > 15
        or name in (".", "..")
        or re.search(r"[\s/:+#\"'\\%]", name)
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
