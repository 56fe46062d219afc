# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: the servers' way back through the proxy, (found, wanted) -> named changes and steps. Private to the collection."""

from __future__ import annotations

import ipaddress
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _kernel_return_render as render,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import sysctl_name
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    FAMILIES,
    Address,
    Change,
    IpRule,
    Route,
    family_of,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_result import file_change
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_return_model import (
    Desired,
    Plan,
    Record,
    Snapshot,
    Way,
    families,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_routing import (
    plan_rules,
    refuse_table_names,
    uses_mark,
)


def plan_return_path(snapshot: Snapshot, desired: Desired | None) -> Plan:
    """The changes that lead answers through the gateways; None puts back what was there before.

    Raises InputError, naming what was found, where that cannot be or something of others is in the way.
    """
    ways: dict[str, Way] = {}
    warnings: tuple[str, ...] = ()
    if desired is not None:
        ways = {family: _way(snapshot, desired, family) for family in families(desired.gateways)}
        _refuse_conflicts(snapshot, desired, ways)
        warnings = _warnings(snapshot, desired, ways)
    changes: list[Change] = []
    routing: dict[str, tuple[str, ...]] = {}
    replaced: dict[str, tuple[str, ...]] = {}
    back: dict[str, tuple[str, ...]] = {}
    for family in FAMILIES:
        way = ways.get(family)
        added, removed = _plan_own(snapshot, desired, family, way, changes)
        default = way.default if way else None
        lines, others = _plan_default(snapshot, family, default, changes)
        # What is new comes before what goes, so that there is no moment with neither.
        if added or lines or removed:
            routing[family] = (*added, *lines, *removed)
        if others:
            (replaced if default else back)[family] = others
    firewall = _plan_marks(snapshot, desired, ways, changes)
    sysctls, remembered = _plan_sysctls(snapshot, desired, ways, changes)
    files = _plan_files(snapshot, desired, ways, changes)

    record = meanwhile = None
    found = snapshot.files.get(render.RECORD)
    if desired is not None:
        remember = Record(
            gateways={family: str(way.default) for family, way in ways.items() if way.default},
            replaced=replaced,
            table=desired.table if desired.own_table else None,
            rules={family: tuple(map(str, way.rules)) for family, way in ways.items() if way.rules},
            routes={
                family: tuple(map(str, way.routes)) for family, way in ways.items() if way.routes
            },
            firewall=desired.marks,
            sysctls=remembered,
            directories=tuple(
                dict.fromkeys((*snapshot.record.directories, *snapshot.missing_directories))
            ),
        )
        record, meanwhile = remember.dump(), snapshot.record.before(remember).dump()
    if record != found and (desired is None or not changes):
        changes.append(file_change(render.RECORD, found, record))
    if desired is None and found is not None:
        files[render.RECORD] = None
    if not changes:
        return Plan(warnings=warnings)
    return Plan(
        changes=tuple(changes),
        sysctls=sysctls,
        ip=routing,
        back=back,
        firewall=firewall,
        files=files,
        record_meanwhile=meanwhile,
        record=record,
        remove_directories=snapshot.record.directories if desired is None else (),
        warnings=warnings,
    )


# What is wanted on this host


def _way(snapshot: Snapshot, desired: Desired, family: str) -> Way:
    here = [entry for entry in snapshot.addresses if family_of(entry.address.ip) == family]
    device, nearby = _device(here, desired, family)
    return render.way(desired, family, device, _service_addresses(here, nearby, desired, family))


def _device(
    here: list[Address], desired: Desired, family: str
) -> tuple[str, t.Callable[[Address], bool]]:
    """The interface to the gateway, and what tells which addresses are on the same subnet."""
    gateway = desired.gateways[family]
    address = ipaddress.ip_address(gateway.address)
    if any(entry.address.ip == address for entry in here):
        raise InputError(
            f"gateways: {gateway} is an address of this host itself; give the proxy's "
            "server-side address",
            option="gateways",
        )
    connected = [
        entry
        for entry in here
        if address in entry.address.network and gateway.interface in (None, entry.interface)
    ]
    if not connected:
        found = [
            f"{entry.address} on {entry.interface}" for entry in here if entry.interface != "lo"
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

    def nearby(entry: Address) -> bool:
        if gateway.interface:
            return entry.interface == gateway.interface and not entry.address.ip.is_link_local
        return entry.interface == nearest.interface and address in entry.address.network

    return nearest.interface, nearby


def _service_addresses(
    here: list[Address],
    nearby: t.Callable[[Address], bool],
    desired: Desired,
    family: str,
) -> tuple[str, ...]:
    """From where answers go through the proxy."""
    if desired.mode != "source_address":
        return ()
    present = [str(entry.address.ip) for entry in here]
    given = [text for text in desired.addresses if (":" in text) == (family == "ipv6")]
    for text in given:
        if text not in present:
            raise InputError(
                f"addresses: {text} is no address of this host (it has {', '.join(present)}); "
                "give one that it has",
                option="addresses",
                found=present,
            )
    own = [str(entry.address.ip) for entry in here if nearby(entry) and not entry.temporary]
    if not given and not own:
        raise InputError(
            f"addresses: none given, and this host has no {family} address on the gateway's "
            f"subnet to take instead (it has {', '.join(present)}); give the address that the "
            "proxy connects to",
            option="addresses",
            found=present,
        )
    return tuple(given or dict.fromkeys(own))


# Rules and the table of our own


def _plan_own(
    snapshot: Snapshot,
    desired: Desired | None,
    family: str,
    way: Way | None,
    changes: list[Change],
) -> tuple[list[str], list[str]]:
    """Lines for ip -batch: those that add, and those that remove."""
    table = desired.table if desired is not None and way is not None and way.routes else None
    added: list[str] = []
    if table is not None and way is not None:
        added = _plan_table(snapshot, family, table, way.routes, changes)
    wanted = way.rules if way is not None else ()
    own = [
        rule
        for rule in snapshot.rules.get(family, ())
        if rule in wanted or _recorded_rule(snapshot, family, rule)
    ]
    rules, removed = plan_rules(own, wanted, family, changes)
    for old in sorted(snapshot.record.tables - {table}):
        removed += _plan_table(snapshot, family, old, (), changes)
    return added + rules, removed


def _recorded_rule(snapshot: Snapshot, family: str, rule: IpRule) -> bool:
    """Whether we made it, in whatever priority and protocol it drifted to."""
    return _selection(str(rule)) in {
        _selection(text) for entry in snapshot.record.known for text in entry.rules.get(family, ())
    }


def _selection(rule: str) -> str:
    return re.sub(r"^priority \d+ | protocol \S+$", "", rule)


def _own_routes(
    snapshot: Snapshot, family: str, table: int, wanted: tuple[Route, ...]
) -> dict[str, list[Route]]:
    """destination -> the table's routes that are ours: as wanted, or where the record says so."""
    recorded = {
        _destination(text)
        for entry in snapshot.record.known
        if entry.table == table
        for text in entry.routes.get(family, ())
    }
    found: dict[str, list[Route]] = {}
    for route in snapshot.routes.get(family, {}).get(table, ()):
        if route in wanted or route.destination in recorded:
            found.setdefault(route.destination, []).append(route)
    return found


def _destination(route: str) -> str:
    return route.replace("throw ", "", 1).split(" ", 1)[0]


def _plan_table(
    snapshot: Snapshot,
    family: str,
    table: int,
    wanted: tuple[Route, ...],
    changes: list[Change],
) -> list[str]:
    lines: list[str] = []
    found = _own_routes(snapshot, family, table, wanted)
    for route in wanted:
        live = found.pop(route.destination, [])
        if live == [route]:
            continue
        changes.append(_route_change(family, table, route.destination, live, str(route)))
        lines += [f"route del {route.destination} table {table}"] * len(live)
        lines.append(f"route add {route} table {table}")
    for destination, live in found.items():
        changes.append(_route_change(family, table, destination, live, ""))
        lines += [f"route del {destination} table {table}"] * len(live)
    return lines


def _route_change(
    family: str, table: int, destination: str, live: list[Route], wanted: str
) -> Change:
    return Change(
        f"{family} route to {destination} in table {table}", "; ".join(map(str, live)), wanted
    )


# The default route of the main table


def _plan_default(
    snapshot: Snapshot, family: str, wanted: Route | None, changes: list[Change]
) -> tuple[list[str], tuple[str, ...]]:
    """Returns lines for ip -batch, and the routes of others: those that stay replaced, or where
    nothing is wanted those that come back.
    """
    live = list(zip(snapshot.defaults.get(family, ()), snapshot.texts.get(family, ())))
    recorded = {
        entry.gateways[family] for entry in snapshot.record.known if family in entry.gateways
    }
    remembered = snapshot.record.replaced.get(family, ())
    item = f"{family} default route"
    lines: list[str] = []

    if wanted is None:
        if not recorded:
            return [], ()
        own = [text for route, text in live if str(route) in recorded]
        # Only what nobody has put back since.
        others = {text for route, text in live if str(route) not in recorded}
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
    foreign = tuple(text for route, text in rivals if str(route) not in recorded)
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


# Marks and rp_filter


def _plan_marks(
    snapshot: Snapshot, desired: Desired | None, ways: t.Mapping[str, Way], changes: list[Change]
) -> str | None:
    """Input for `nft -f`; None leaves the table alone."""
    wanted = render.marks(desired, ways) if desired is not None and desired.marks else {}
    live = snapshot.marks
    if not wanted:
        if live is None or _foreign_table(snapshot):
            return None
        changes.append(Change(f"nftables table {render.NFT_TABLE}", ", ".join(live), ""))
        return f"delete table {render.NFT_TABLE}\n"
    before = len(changes)
    found = live or {}
    for name in dict.fromkeys((*wanted, *found)):
        if found.get(name) != wanted.get(name):
            changes.append(
                Change(
                    f"nftables {name}",
                    # An empty block is something else than none.
                    " / ".join(found[name]) or "empty" if name in found else "",
                    " / ".join(wanted.get(name, ())),
                )
            )
    return render.marks_file(wanted) if len(changes) > before else None


def _foreign_table(snapshot: Snapshot) -> bool:
    """Whether others made a table of our name: neither the record nor any rule in it says ours."""
    lines = [line for content in (snapshot.marks or {}).values() for line in content]
    return (
        snapshot.marks is not None
        and not snapshot.record.firewall
        and snapshot.files.get(render.MARKS) is None
        and not any(render.OWNER in line for line in lines)
    )


def _plan_sysctls(
    snapshot: Snapshot, desired: Desired | None, ways: t.Mapping[str, Way], changes: list[Change]
) -> tuple[tuple[tuple[str, str], ...], dict[str, str]]:
    """What to set, and what to remember: path -> value before us."""
    wanted = render.sysctls(desired, ways) if desired is not None else {}
    remembered = {path: snapshot.record.sysctls.get(path) for path in wanted}
    steps: list[tuple[str, str]] = []
    for path, value in wanted.items():
        found = snapshot.sysctls.get(path)
        if remembered[path] is None:
            remembered[path] = found
        if found != value:
            changes.append(Change(f"sysctl {sysctl_name(path)}", found or "", value))
            steps.append((path, value))
    for path, before in snapshot.record.sysctls.items():
        # Only what nobody has changed since, on an interface that is still there.
        if path not in wanted and snapshot.sysctls.get(path) == "2" != before:
            changes.append(Change(f"sysctl {sysctl_name(path)}", "2", f"{before}, as before"))
            steps.append((path, before))
    return tuple(steps), {path: value for path, value in remembered.items() if value is not None}


# Files


def _plan_files(
    snapshot: Snapshot, desired: Desired | None, ways: t.Mapping[str, Way], changes: list[Change]
) -> dict[str, str | None]:
    contents = (
        render.files(desired, ways) if desired is not None else dict.fromkeys(render.FILES, None)
    )
    files: dict[str, str | None] = {}
    for path, content in contents.items():
        found = snapshot.files.get(path)
        # Empty: a full disk, or a hand.
        if found and render.HEADER not in found:
            if content is None:
                # Of others.
                continue
            raise InputError(
                f"files: {path} is there and was not written by this collection; move it away",
                option="files",
                found=[path],
            )
        if found != content:
            files[path] = content
            changes.append(file_change(path, found, content))
    return files


# What belongs to others


def _refuse_conflicts(snapshot: Snapshot, desired: Desired, ways: t.Mapping[str, Way]) -> None:
    """Raises InputError, naming what was found."""
    if not desired.own_table:
        return
    refuse_table_names(snapshot.table_names, desired.table, desired.table_name, render.TABLE_NAME)
    for family, way in ways.items():
        for rule in snapshot.rules.get(family, ()):
            if rule in way.rules or _recorded_rule(snapshot, family, rule):
                continue
            if rule.table == desired.table:
                raise InputError(
                    f"table: table {desired.table} is in use by the {family} rule '{rule}' of "
                    "others; choose another number",
                    option="table",
                    found=[str(rule)],
                )
            if desired.marks and uses_mark(rule, desired.mark, desired.mask):
                raise InputError(
                    f"mark: the {family} rule '{rule}' of others uses bits of the mask "
                    f"0x{desired.mask:x} too; choose a mark and mask of other bits",
                    option="mark",
                    found=[str(rule)],
                )
        own = _own_routes(snapshot, family, desired.table, way.routes)
        foreign = [
            str(route)
            for route in snapshot.routes.get(family, {}).get(desired.table, ())
            if route not in own.get(route.destination, ())
        ]
        if foreign:
            raise InputError(
                f"table: table {desired.table} holds {family} routes of others: '{foreign[0]}'; "
                "choose another number",
                option="table",
                found=foreign,
            )
    if desired.marks:
        _refuse_marks(snapshot, desired, ways)


def _refuse_marks(snapshot: Snapshot, desired: Desired, ways: t.Mapping[str, Way]) -> None:
    if _foreign_table(snapshot):
        raise InputError(
            f"mode: there is an nftables table '{render.NFT_TABLE}' that this collection did not "
            "make; rename or remove it",
            option="mode",
            found=[f"table {render.NFT_TABLE}", *(snapshot.marks or ())],
        )
    if "ipv4" not in ways or desired.loose_rp_filter:
        return
    device = ways["ipv4"].device
    paths = [render.rp_filter_path(name) for name in ("all", device)]
    found = [f"{sysctl_name(path)} = {snapshot.sysctls.get(path, '0')}" for path in paths]
    if max(snapshot.sysctls.get(path, "0") for path in paths) == "1":
        raise InputError(
            f"loose_rp_filter: the reverse path filter of {device} is strict ({', '.join(found)}; "
            "the larger one counts), so that the kernel drops clients' packets that come from the "
            "proxy, because by the main table they should come from elsewhere; set "
            "loose_rp_filter to true, or choose the mode source_address, which needs no loose "
            "filter",
            option="loose_rp_filter",
            found=found,
        )


def _warnings(snapshot: Snapshot, desired: Desired, ways: t.Mapping[str, Way]) -> tuple[str, ...]:
    """Rules of others that stand before ours, and answers that cannot even begin."""
    if not desired.own_table:
        return ()
    found = []
    for family, way in ways.items():
        sources = [rule.source for rule in way.rules if rule.source != "all"] or [
            # By mark: whatever this host answers from.
            str(entry.address.ip)
            for entry in snapshot.addresses
            if family_of(entry.address.ip) == family
        ]
        for rule in snapshot.rules.get(family, ()):
            ours = rule in way.rules or _recorded_rule(snapshot, family, rule)
            if not ours and _wins(rule, desired.rule_priority, sources):
                found.append(
                    f"the {family} rule '{rule}' stands before ours and may lead answers "
                    f"elsewhere; choose a rule_priority below {rule.priority}"
                )
        if desired.marks and not snapshot.defaults.get(family):
            found.append(
                f"this host has no {family} default route: with mode connection_mark the kernel "
                "looks for a route before the mark is set, and answers no client that it has no "
                "route to; add a default route, or choose the mode source_address"
            )
    return tuple(found)


def _wins(rule: IpRule, priority: int, sources: t.Iterable[str]) -> bool:
    return (
        0 < rule.priority <= priority
        and not rule.other
        and rule.iif in (None, "lo")
        and (rule.mark is None or rule.inverted)
        and (rule.source == "all" or _any_within(sources, rule.source))
    )


def _any_within(addresses: t.Iterable[str], network: str) -> bool:
    found = ipaddress.ip_network(network, strict=False)
    return any(ipaddress.ip_address(address) in found for address in addresses)
