# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: the servers' way back through the proxy, wanted and planned. Private to the collection."""

from __future__ import annotations

import ipaddress
import json
import typing as t
from dataclasses import dataclass, field

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    FAMILIES,
    Address,
    Change,
    Route,
    family_of,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_result import file_change

HEADER = "# Written by clearproxy.haproxy.tproxy_return_path; changes made here are undone by its next run."
BATCH = "/etc/tproxy-backend/ip.batch"
UNIT_NAME = "tproxy-backend.service"
UNIT = f"/etc/systemd/system/{UNIT_NAME}"
FILES = (BATCH, UNIT)
RECORD = "/var/lib/tproxy-backend/state.json"
DIRECTORIES = ("/etc/tproxy-backend", "/var/lib/tproxy-backend")

# The smallest metric of a default route in each family that others practically never use in IPv6
# (there 0
# means 1024), and that wins over whatever DHCP or router advertisements bring.
_METRIC = {"ipv4": 0, "ipv6": 1}


@dataclass(frozen=True)
class Record:
    """What the host remembers of us: our gateways, and the default routes that gave way to them."""

    gateways: t.Mapping[str, str] = field(default_factory=dict)
    # family -> routes in the words of `ip route show`.
    replaced: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def dump(self) -> str:
        data = {
            "version": 1,
            "gateways": dict(self.gateways),
            "replaced": {family: list(texts) for family, texts in self.replaced.items()},
        }
        return json.dumps(data, indent=1, sort_keys=True) + "\n"

    @classmethod
    def load(cls, text: str | None) -> Record:
        try:
            data = json.loads(text or "{}")
            return cls(
                gateways={str(family): str(route) for family, route in data["gateways"].items()},
                replaced={str(family): tuple(texts) for family, texts in data["replaced"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls()


@dataclass(frozen=True)
class Snapshot:
    """What a server has now: addresses, default routes (parsed, and in the same order in ip's
    own words), files.
    """

    addresses: tuple[Address, ...] = ()
    defaults: t.Mapping[str, tuple[Route, ...]] = field(default_factory=dict)
    texts: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: t.Mapping[str, str | None] = field(default_factory=dict)
    record: Record = field(default_factory=Record)


@dataclass(frozen=True)
class Plan:
    changes: tuple[Change, ...] = ()
    ip: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # family -> replaced routes of others, which come back before `ip` takes ours away.
    back: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: t.Mapping[str, str | None] = field(default_factory=dict)
    record: str | None = None
    removes_all: bool = False
    warnings: tuple[str, ...] = ()


def parse_gateways(values: t.Iterable[str]) -> dict[str, str]:
    """family -> address. Raises InputError for what cannot be a gateway."""
    gateways: dict[str, str] = {}
    for value in values:
        try:
            address = ipaddress.ip_address(str(value))
        except ValueError:
            raise InputError(
                f"gateways: '{value}' is not an IP address; give the proxy's server-side "
                "address, like 192.0.2.1 or 2001:db8::1",
                option="gateways",
            ) from None
        if address.is_unspecified or address.is_multicast or address.is_loopback:
            raise InputError(
                f"gateways: '{value}' cannot be a gateway; give the proxy's server-side address",
                option="gateways",
            )
        if address.version == 6 and address.is_link_local:
            raise InputError(
                f"gateways: '{value}' is a link-local address, which says nothing without an "
                "interface; "
                "give the proxy's global or unique local address",
                option="gateways",
            )
        family = family_of(address)
        if family in gateways:
            raise InputError(
                f"gateways: '{gateways[family]}' and '{value}' are both {family}; a server has "
                "one gateway a family",
                option="gateways",
            )
        gateways[family] = str(address)
    if not gateways:
        raise InputError(
            "gateways: none given; give the proxy's server-side address", option="gateways"
        )
    return gateways


def _wanted(snapshot: Snapshot, gateways: t.Mapping[str, str]) -> dict[str, Route]:
    routes: dict[str, Route] = {}
    for family, gateway in gateways.items():
        address = ipaddress.ip_address(gateway)
        same_family = [
            entry for entry in snapshot.addresses if family_of(entry.address.ip) == family
        ]
        connected = [entry for entry in same_family if address in entry.address.network]
        if any(entry.address.ip == address for entry in same_family):
            raise InputError(
                f"gateways: {gateway} is an address of this host itself; give the proxy's "
                "server-side address",
                option="gateways",
            )
        if not connected:
            found = [
                f"{entry.address} on {entry.interface}"
                for entry in same_family
                if entry.interface != "lo"
            ]
            raise InputError(
                f"gateways: {gateway} is on no subnet that this host is connected to (it has "
                f"{', '.join(found) or 'no such address'}); "
                "give the proxy's address on the servers' own subnet",
                option="gateways",
                found=found,
            )
        nearest = max(connected, key=lambda entry: (entry.up, entry.address.network.prefixlen))
        if not nearest.up:
            raise InputError(
                f"gateways: {gateway} is on the subnet of {nearest.interface}, which is down; "
                f"bring {nearest.interface} up",
                option="gateways",
                found=[f"{nearest.address} on {nearest.interface}"],
            )
        routes[family] = Route(
            "unicast", "default", nearest.interface, gateway, metric=_METRIC[family]
        )
    return routes


def plan_return_path(snapshot: Snapshot, gateways: t.Mapping[str, str] | None) -> Plan:
    """The changes that make `gateways` the default gateways; None puts back what was there
    before.
    """
    wanted = _wanted(snapshot, gateways or {})
    changes: list[Change] = []
    routing: dict[str, tuple[str, ...]] = {}
    replaced: dict[str, tuple[str, ...]] = {}
    back: dict[str, tuple[str, ...]] = {}
    for family in FAMILIES:
        lines, others = _plan_family(snapshot, family, wanted.get(family), changes)
        if lines:
            routing[family] = tuple(lines)
        if others:
            (replaced if family in wanted else back)[family] = others

    contents = _files(wanted) if gateways is not None else dict.fromkeys(FILES)
    files: dict[str, str | None] = {}
    for path, content in contents.items():
        found = snapshot.files.get(path)
        if found is not None and HEADER not in found and content is not None:
            raise InputError(
                f"files: {path} is there and was not written by this collection; move it away",
                option="files",
                found=[path],
            )
        if found != content:
            files[path] = content
            changes.append(file_change(path, found, content))

    record = (
        Record({family: str(route) for family, route in wanted.items()}, replaced).dump()
        if gateways is not None
        else None
    )
    if record != snapshot.files.get(RECORD) and (gateways is None or not changes):
        changes.append(file_change(RECORD, snapshot.files.get(RECORD), record))
    if gateways is None and snapshot.files.get(RECORD) is not None:
        files[RECORD] = None
    if not changes:
        return Plan()
    return Plan(tuple(changes), routing, back, files, record, removes_all=gateways is None)


def _plan_family(
    snapshot: Snapshot, family: str, wanted: Route | None, changes: list[Change]
) -> tuple[list[str], tuple[str, ...]]:
    """Returns lines for ip -batch, and the routes of others: those that stay replaced, or where
    nothing is wanted those that come back.
    """
    live = list(zip(snapshot.defaults.get(family, ()), snapshot.texts.get(family, ())))
    recorded = snapshot.record.gateways.get(family)
    remembered = snapshot.record.replaced.get(family, ())
    item = f"{family} default route"
    lines: list[str] = []

    if wanted is None:
        if recorded is None:
            return [], ()
        own = [text for route, text in live if str(route) == recorded]
        # Only what nobody has put back since.
        others = {text for route, text in live if str(route) != recorded}
        back = [text for text in remembered if text not in others]
        if own or back:
            changes.append(
                Change(item, "; ".join(own), "; ".join(f"{text}, as before" for text in back))
            )
        lines += [f"route del {text}" for text in own]
        return lines, tuple(back)

    # Routes of a larger metric lose against ours and stay untouched.
    rivals = [
        (route, text) for route, text in live if route.metric <= wanted.metric and route != wanted
    ]
    foreign = tuple(text for route, text in rivals if str(route) != recorded)
    missing = wanted not in [route for route, _text in live]
    if rivals or missing:
        losers = [text for _route, text in rivals] or [text for _route, text in live]
        changes.append(Change(item, "; ".join(losers), str(wanted)))
        leaving = [text for _route, text in rivals]
        if missing and family == "ipv4":
            # Behind its rivals, because `del` takes the first that fits its words.
            lines.append(f"route append {wanted}")
        elif missing:
            # Two IPv6 routes with the same next hop cannot be there at once. What has next hops
            # goes all at once; otherwise only the first.
            lines.append(f"route replace {wanted}")
            without = [text for text in leaving if " via " not in text]
            leaving = without if len(without) < len(leaving) else without[1:]
        # Ours first: where the kernel refuses it, the server keeps the route that it has.
        lines += [f"route del {text}" for text in leaving]
    return lines, tuple(dict.fromkeys((*remembered, *foreign)))


def _files(wanted: t.Mapping[str, Route]) -> dict[str, str | None]:
    batch = [
        HEADER,
        *(f"route replace {wanted[family]}" for family in FAMILIES if family in wanted),
    ]
    return {
        BATCH: "\n".join(batch) + "\n",
        UNIT: f"""\
{HEADER}
[Unit]
Description=Return path through the transparent proxy
Wants=network-online.target
# After whatever sets default routes of its own.
After=network.target network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
# -force: a family that fails does not keep the other from its route.
ExecStart=/sbin/ip -force -batch {BATCH}
# An interface may get its address late.
Restart=on-failure
RestartSec=2

[Install]
WantedBy=multi-user.target
""",
    }
