# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host has, what it remembers of us, and the plan made of both. Private to the collection."""

from __future__ import annotations

import json
import typing as t
from dataclasses import dataclass, field

from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import Desired
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    FAMILIES,
    Change,
    FilterTable,
    IpRule,
    NftTable,
    Route,
    TableName,
)


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
