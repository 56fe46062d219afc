# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers' way back through the proxy as plain data: options, record, what was found, what is to do. Private to the collection."""

from __future__ import annotations

import ipaddress
import json
import re
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import (
    check_interface_name,
    parse_mark,
    parse_priority,
    parse_table,
    parse_table_name,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    FAMILIES,
    Address,
    Change,
    IpRule,
    Route,
    TableName,
    family_of,
)

MODES = ("default_gateway", "source_address", "connection_mark")


@dataclass(frozen=True)
class Gateway:
    """The proxy's address; a link-local one says something only together with an interface."""

    address: str
    interface: str | None = None

    def __str__(self) -> str:
        return f"{self.address}%{self.interface}" if self.interface else self.address


def parse_gateways(values: t.Iterable[str]) -> dict[str, Gateway]:
    """family -> gateway. Raises InputError for what cannot be one."""
    gateways: dict[str, Gateway] = {}
    for value in values:
        text, percent, interface = str(value).partition("%")
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise _refusal(
                "gateways",
                f"'{value}' is not an IP address; give the proxy's server-side address, like "
                "192.0.2.1 or 2001:db8::1",
            ) from None
        if address.is_unspecified or address.is_multicast or address.is_loopback:
            raise _refusal(
                "gateways",
                f"'{value}' cannot be a gateway; give the proxy's server-side address",
            )
        link_local = address.version == 6 and address.is_link_local
        if link_local and not percent:
            raise _refusal(
                "gateways",
                f"'{value}' is a link-local address, which says nothing without an interface; "
                f"give it as '{value}%eth0', or the proxy's global or unique local address",
            )
        if percent and not link_local:
            raise _refusal(
                "gateways", f"'{value}': only an IPv6 link-local address takes an interface"
            )
        family = family_of(address)
        if family in gateways:
            raise _refusal(
                "gateways",
                f"'{gateways[family]}' and '{value}' are both {family}; a server has one gateway "
                "a family",
            )
        if percent:
            check_interface_name(interface, "gateways")
        gateways[family] = Gateway(str(address), interface or None)
    if not gateways:
        raise _refusal("gateways", "none given; give the proxy's server-side address")
    return gateways


def _refusal(option: str, what: str) -> InputError:
    return InputError(f"{option}: {what}", option=option)


@dataclass(frozen=True)
class Desired:
    """What tproxy_return_path shall make true on a server."""

    gateways: t.Mapping[str, Gateway]
    mode: str = "default_gateway"
    # Of source_address: from where answers go through the proxy; none means the gateway's subnet.
    addresses: tuple[str, ...] = ()
    # Destinations that are answered as without us.
    direct: tuple[str, ...] = ()
    table: int = 101
    table_name: str = "tproxy_backend"
    rule_priority: int = 110
    # Of connection_mark.
    mark: int = 0x2
    mask: int = 0x2
    mac_addresses: tuple[str, ...] = ()
    loose_rp_filter: bool = False
    # Whether a service watches over all of it.
    guard: bool = False

    @classmethod
    def from_options(cls, options: t.Mapping[str, t.Any]) -> Desired:
        """Checks everything that can be checked without looking at the host.

        Raises InputError naming the option.
        """
        mode = options["mode"]
        gateways = parse_gateways(options["gateways"] or ())
        for option, modes in (
            ("addresses", ("source_address",)),
            ("direct", ("source_address", "connection_mark")),
            ("mac_addresses", ("connection_mark",)),
            ("loose_rp_filter", ("connection_mark",)),
        ):
            if options[option] and mode not in modes:
                raise _refusal(
                    option,
                    f"has no meaning with mode {mode}; leave it out, or choose the mode "
                    f"{' or '.join(modes)}",
                )
        table = parse_table(options["table"])
        name = parse_table_name(options["table_name"])
        priority = parse_priority(options["rule_priority"], last=32765)
        mark, mask = parse_mark(options["mark"], options["mask"])
        return cls(
            gateways=gateways,
            mode=mode,
            addresses=_addresses(options["addresses"] or (), gateways),
            direct=tuple(dict.fromkeys(_network(value) for value in options["direct"] or ())),
            table=table,
            table_name=name,
            rule_priority=priority,
            mark=mark,
            mask=mask,
            mac_addresses=tuple(
                dict.fromkeys(_mac_address(value) for value in options["mac_addresses"] or ())
            ),
            loose_rp_filter=bool(options["loose_rp_filter"]),
            guard=bool(options["guard"]),
        )

    @property
    def own_table(self) -> bool:
        """Whether answers are led by rules and a table of our own."""
        return self.mode != "default_gateway"

    @property
    def marks(self) -> bool:
        """Whether connections are marked, which needs a firewall."""
        return self.mode == "connection_mark"


def _addresses(values: t.Sequence[str], gateways: t.Mapping[str, Gateway]) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for value in values:
        try:
            address = ipaddress.ip_address(str(value))
        except ValueError:
            raise _refusal(
                "addresses",
                f"'{value}' is not an IP address; give an address that the application listens "
                "on, like 192.0.2.11",
            ) from None
        if (
            address.is_unspecified
            or address.is_multicast
            or address.is_loopback
            or (address.version == 6 and address.is_link_local)
        ):
            raise _refusal(
                "addresses",
                f"'{value}' cannot be a service address; give one that the proxy connects to",
            )
        if family_of(address) not in gateways:
            raise _refusal(
                "addresses",
                f"'{value}' is {family_of(address)}, for which gateways has no address; add one, "
                "or take it out",
            )
        found[str(address)] = family_of(address)
    for family, gateway in gateways.items():
        if found and family not in found.values():
            raise _refusal(
                "addresses",
                f"none is {family}, as the gateway {gateway} is; add one, or take the gateway out",
            )
    return tuple(found)


def _network(value: str) -> str:
    """As `ip route show` writes it: a single address without its length."""
    try:
        network = ipaddress.ip_network(str(value).strip())
    except ValueError as exc:
        raise _refusal(
            "direct", f"'{value}' is no network ({exc}); give an address or one like 192.0.2.0/24"
        ) from None
    if network.prefixlen == 0:
        raise _refusal("direct", f"'{value}' is everything, so that nothing would be led anywhere")
    single = network.prefixlen == network.max_prefixlen
    return str(network.network_address) if single else str(network)


def _mac_address(value: str) -> str:
    text = str(value).strip().lower().replace("-", ":")
    if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", text):
        raise _refusal(
            "mac_addresses",
            f"'{value}' is no hardware address; give the proxy's, like 02:00:5e:10:00:01",
        )
    return text


@dataclass(frozen=True)
class Way:
    """What one family gets: the default route of the main table, or rules and routes of our own."""

    device: str
    default: Route | None = None
    rules: tuple[IpRule, ...] = ()
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True)
class Record:
    """What the host remembers of us: what is ours, and what was there before.

    Routes and rules are in ip's own words, as the boot files have them.
    """

    # family -> our default route in the main table, and those that gave way to it.
    gateways: t.Mapping[str, str] = field(default_factory=dict)
    replaced: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    table: int | None = None
    rules: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    routes: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    firewall: bool = False
    # Path below /proc/sys -> value before us.
    sysctls: t.Mapping[str, str] = field(default_factory=dict)
    # Directories that were not there before us.
    directories: tuple[str, ...] = ()
    # What runs made before that have not been completed since: all of it may still be there.
    earlier: tuple[Record, ...] = ()

    @property
    def known(self) -> tuple[Record, ...]:
        """Everything of ours that may be on the host, a set of gateways, rules and routes each."""
        return (replace(self, earlier=()), *self.earlier)

    @property
    def tables(self) -> set[int]:
        return {entry.table for entry in self.known if entry.table is not None}

    def before(self, wanted: Record) -> Record:
        """What to remember until the host is as `wanted`: that, and all that is in this one."""
        earlier: list[Record] = []
        for entry in self.known:
            if entry.made not in (Record(), wanted.made, *earlier):
                earlier.append(entry.made)
        return replace(
            wanted,
            replaced={
                family: tuple(
                    dict.fromkeys(
                        (*self.replaced.get(family, ()), *wanted.replaced.get(family, ()))
                    )
                )
                for family in FAMILIES
                if family in self.replaced or family in wanted.replaced
            },
            firewall=self.firewall or wanted.firewall,
            sysctls={**wanted.sysctls, **self.sysctls},
            earlier=tuple(earlier),
        )

    @property
    def made(self) -> Record:
        """Only what is ours."""
        return Record(
            gateways=self.gateways, table=self.table, rules=self.rules, routes=self.routes
        )

    def dump(self) -> str:
        return json.dumps(self.as_dict(), indent=1, sort_keys=True) + "\n"

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "version": 2,
            "gateways": dict(self.gateways),
            "replaced": {family: list(texts) for family, texts in self.replaced.items()},
            "table": self.table,
            "rules": {family: list(texts) for family, texts in self.rules.items()},
            "routes": {family: list(texts) for family, texts in self.routes.items()},
            "firewall": self.firewall,
            "sysctls": dict(self.sysctls),
            "directories": list(self.directories),
            "earlier": [entry.as_dict() for entry in self.earlier],
        }

    @classmethod
    def load(cls, text: str | None, batches: t.Mapping[str, str | None] | None = None) -> Record:
        """A record that cannot be read is made up from the boot files, family -> lines for ip.

        They say all but what was there before.
        """
        try:
            return cls._from_dict(json.loads(text or "{}"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls._from_batches(batches or {})

    @classmethod
    def _from_dict(cls, data: t.Mapping[str, t.Any]) -> Record:
        return cls(
            gateways={str(family): str(route) for family, route in data["gateways"].items()},
            replaced=_texts(data["replaced"]),
            table=None if data["table"] is None else int(data["table"]),
            rules=_texts(data["rules"]),
            routes=_texts(data["routes"]),
            firewall=bool(data["firewall"]),
            sysctls={str(path): str(value) for path, value in data["sysctls"].items()},
            directories=tuple(map(str, data["directories"])),
            earlier=tuple(map(cls._from_dict, data.get("earlier", ()))),
        )

    @classmethod
    def _from_batches(cls, batches: t.Mapping[str, str | None]) -> Record:
        gateways: dict[str, str] = {}
        rules: dict[str, tuple[str, ...]] = {}
        routes: dict[str, tuple[str, ...]] = {}
        tables: set[int] = set()
        for family, text in batches.items():
            for line in (text or "").splitlines():
                rule = re.fullmatch(r"rule add (.* lookup (\d+) .*)", line)
                route = re.fullmatch(r"route replace (.*) table (\d+)", line)
                default = re.fullmatch(r"route replace (default .*)", line)
                own = rule or route
                if own is not None:
                    texts = rules if rule else routes
                    texts[family] = (*texts.get(family, ()), own.group(1))
                    tables.add(int(own.group(2)))
                elif default is not None:
                    gateways[family] = default.group(1)
        return cls(
            gateways=gateways,
            table=tables.pop() if len(tables) == 1 else None,
            rules=rules,
            routes=routes,
        )


def _texts(data: t.Mapping[str, t.Iterable[str]]) -> dict[str, tuple[str, ...]]:
    return {str(family): tuple(map(str, texts)) for family, texts in data.items()}


@dataclass(frozen=True)
class Snapshot:
    """What a server has now."""

    addresses: tuple[Address, ...] = ()
    # Default routes of the main table: parsed, and in the same order in ip's own words.
    defaults: t.Mapping[str, tuple[Route, ...]] = field(default_factory=dict)
    texts: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rules: t.Mapping[str, tuple[IpRule, ...]] = field(default_factory=dict)
    # family -> table number -> routes, for the tables that matter.
    routes: t.Mapping[str, t.Mapping[int, tuple[Route, ...]]] = field(default_factory=dict)
    table_names: tuple[TableName, ...] = ()
    # The blocks of the nftables table of our name, see parse.nft_table(); None if there is none.
    marks: t.Mapping[str, tuple[str, ...]] | None = None
    # Path below /proc/sys -> value, of rp_filter.
    sysctls: t.Mapping[str, str] = field(default_factory=dict)
    files: t.Mapping[str, str | None] = field(default_factory=dict)
    missing_directories: tuple[str, ...] = ()
    record: Record = Record()


@dataclass(frozen=True)
class Plan:
    """Named changes, and the steps that carry them out. No change means no step."""

    changes: tuple[Change, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    # family -> lines for `ip -batch`.
    ip: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # family -> replaced routes of others, which come back before `ip` takes ours away.
    back: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Input for `nft -f`.
    firewall: str | None = None
    files: t.Mapping[str, str | None] = field(default_factory=dict)
    # What is remembered while the steps are made, and once they are.
    record_meanwhile: str | None = None
    record: str | None = None
    remove_directories: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def families(found: t.Mapping[str, t.Any]) -> tuple[str, ...]:
    """Those of the mapping, in the usual order."""
    return tuple(family for family in FAMILIES if family in found)
