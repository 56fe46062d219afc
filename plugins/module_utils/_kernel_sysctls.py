# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: the sysctl part of the plan. Private to the collection."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import (
    Desired,
    sysctl_name,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import Change
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_snapshot import Snapshot

# What the kernel writes by itself when the key is written (inet_forward_change(),
# addrconf_fixup_forwarding()).
_SIDE_EFFECTS = {
    "net/ipv4/conf/all/forwarding": (
        "net/ipv4/conf/*/forwarding",
        "net/ipv4/conf/all/accept_redirects",
    ),
    "net/ipv6/conf/all/forwarding": ("net/ipv6/conf/*/forwarding",),
}
# Of these the kernel takes the greater one of `all` and the interface's own (IN_DEV_MAXCONF and
# IN_DEV_ORCONF in linux/inetdevice.h).
_GREATER = (
    "accept_local",
    "arp_announce",
    "arp_filter",
    "arp_ignore",
    "log_martians",
    "proxy_arp",
    "route_localnet",
    "rp_filter",
    "send_redirects",
    "src_valid_mark",
)


def above(path: str) -> str | None:
    """The path of `all` that has a say in the interface's value."""
    found = re.fullmatch(rf"net/ipv4/conf/([^/]+)/({'|'.join(_GREATER)})", path)
    if found is None or found.group(1) in ("all", "*"):
        return None
    return f"net/ipv4/conf/all/{found.group(2)}"


def _effective(path: str, values: t.Mapping[str, str]) -> str:
    """What the kernel goes by: the value, unless that of `all` is greater."""
    upper = values.get(above(path) or path, "")
    greater = upper.isdigit() and values[path].isdigit() and int(upper) > int(values[path])
    return upper if greater else values[path]


def advertised_of(snapshot: Snapshot, desired: Desired | None) -> tuple[str, ...]:
    """Interfaces that need accept_ra=2.

    One that needed it once keeps it: its router may be away for a moment.
    """
    if desired is None or not desired.forwarding or "ipv6" not in desired.families:
        return ()
    fresh = {
        name
        for name in snapshot.advertised
        if snapshot.sysctls.get(f"net/ipv6/conf/{name}/accept_ra") not in (None, "0")
    }
    return tuple(sorted(fresh | set(snapshot.record.advertised)))


def plan_sysctls(
    snapshot: Snapshot, desired: Desired | None, advertised: tuple[str, ...], changes: list[Change]
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str, str], ...]]:
    """Returns the writes, and what to remember of the values before us."""
    before = snapshot.sysctls
    now = dict(before)
    remembered = {path: (value, cause) for path, value, cause in snapshot.record.sysctls}
    wanted: dict[str, str] = {}
    for pattern, value in render.sysctls(desired, advertised) if desired else ():
        for path in expanded(pattern, before):
            wanted[path] = value

    writes: list[tuple[str, str]] = []

    def write(path: str, value: str) -> None:
        writes.append((path, value))
        for side in _SIDE_EFFECTS.get(path, ()):
            for other in expanded(side, before):
                now[other] = (
                    ("0" if value == "1" else "1") if other.endswith("/accept_redirects") else value
                )
        now[path] = value

    own = {path for path, _value in desired.sysctls} if desired else set()
    # What goes back below counts as it will be.
    going = {path: value for path, (value, _cause) in remembered.items() if path not in wanted}
    for path, value in wanted.items():
        # With the values so far: writing `all` may have written this one too. What the user gave by name is
        # wanted to the letter.
        if now[path] == value or (path not in own and _effective(path, {**now, **going}) == value):
            continue
        found = before[path]
        if _effective(path, before) != found:
            found += f" (effective {_effective(path, before)}, because that of all is)"
        changes.append(Change(f"sysctl {sysctl_name(path)}", found, value))
        remembered.setdefault(path, (before[path], path))
        for side in _SIDE_EFFECTS.get(path, ()):
            for other in expanded(side, before):
                remembered.setdefault(other, (before[other], path))
        write(path, value)

    def in_force(cause: str) -> bool:
        return cause in wanted and remembered.get(cause, ("", ""))[0] != wanted[cause]

    # Forwarding of all first: it overwrites the interfaces' values.
    unwanted = [
        path
        for path, (_value, cause) in remembered.items()
        if path not in wanted and not in_force(cause)
    ]
    for path in sorted(unwanted, key=lambda name: (name not in _SIDE_EFFECTS, name)):
        value = remembered.pop(path)[0]
        if path not in now:
            continue
        if before[path] != value:
            changes.append(
                Change(f"sysctl {sysctl_name(path)}", before[path], f"{value}, as before")
            )
        if now[path] != value:
            write(path, value)
    return tuple(writes), tuple(
        (path, value, cause) for path, (value, cause) in sorted(remembered.items())
    )


def expanded(pattern: str, known: t.Iterable[str]) -> list[str]:
    if "*" not in pattern:
        return [pattern] if pattern in known else []
    expression = "[^/]*".join(re.escape(part) for part in pattern.split("*"))
    return sorted(path for path in known if re.fullmatch(expression, path))


def refuse_sysctls(snapshot: Snapshot, desired: Desired) -> None:
    """Raises InputError for a sysctl that this kernel does not have."""
    unknown = [path for path, _value in desired.sysctls if not expanded(path, snapshot.sysctls)]
    if unknown:
        raise InputError(
            f"sysctls: there is no '{sysctl_name(unknown[0])}' on this host; check its "
            "spelling, or load the module that brings it",
            option="sysctls",
        )
    for interface in desired.incoming if desired.rp_filter is not None else ():
        path = f"net/ipv4/conf/{interface}/rp_filter"
        upper = above(path) or path
        # What it will be: a value of ours goes back to the one before us.
        strict = {
            **snapshot.sysctls,
            **{name: value for name, value, _cause in snapshot.record.sysctls},
            **dict(desired.sysctls),
        }.get(upper, "0")
        if (
            "ipv4" in desired.families
            and strict.isdecimal()
            and int(strict) > int(desired.rp_filter or 0)
        ):
            raise InputError(
                f"rp_filter: {sysctl_name(upper)} is {strict}, and the kernel takes the "
                f"greater one of all and {interface}, so {interface} cannot have {desired.rp_filter}; "
                "lower that of all yourself, as it also protects the other interfaces, or take 2",
                option="rp_filter",
                found=[f"{sysctl_name(upper)} = {strict}"],
            )


def sysctl_warnings(snapshot: Snapshot, desired: Desired | None) -> tuple[str, ...]:
    """Values that have no effect, because the one of `all` is greater."""
    given = dict(desired.sysctls) if desired else {}
    found = []
    for pattern, value in given.items():
        for path in expanded(pattern, snapshot.sysctls):
            upper = above(path)
            if upper is None:
                continue
            effective = _effective(
                path, {upper: given.get(upper, snapshot.sysctls[upper]), path: value}
            )
            if effective != value:
                found.append(
                    f"sysctls: {sysctl_name(path)} = {value} has no effect: {sysctl_name(upper)} is "
                    f"{effective}, and the kernel takes the greater one"
                )
    return tuple(found)
