# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: which interfaces cannot be used, and why: missing, parts of others, bridges. Private to the collection."""

from __future__ import annotations

import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import (
    Desired,
    sysctl_name,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import BRIDGE_CALLS
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_snapshot import Snapshot


def refuse_interfaces(snapshot: Snapshot, desired: Desired) -> None:
    """Raises InputError for an interface that is not there, or at which no packet ever comes in."""
    _refuse(snapshot, "interfaces", desired.interfaces)
    for number, entry in enumerate(desired.intercepts):
        option = f"intercepts[{number}].interfaces"
        _refuse(snapshot, option, entry.interfaces)
        for name in entry.interfaces:
            for family in entry.families:
                why = _lost(snapshot, desired, name, family)
                if why:
                    raise InputError(
                        f"{option}: packets that come in at the bridge '{name}' would be caught but "
                        f"not delivered, because {why}",
                        option=option,
                        found=[name],
                    )


def bridge_warnings(snapshot: Snapshot, desired: Desired | None) -> tuple[str, ...]:
    """What may be lost where no interface was named, so that nobody knows whether it comes in at a bridge."""
    if desired is None:
        return ()
    found = (
        (name, _lost(snapshot, desired, name, family))
        for entry in desired.intercepts
        if not entry.interfaces
        for name in snapshot.bridges
        for family in entry.families
    )
    return tuple(
        dict.fromkeys(
            f"packets that come in at the bridge '{name}' are caught but not delivered, because {why}"
            for name, why in found
            if why
        )
    )


def _refuse(snapshot: Snapshot, option: str, names: t.Iterable[str]) -> None:
    for name in names:
        if name not in snapshot.interfaces:
            raise InputError(
                f"{option}: there is no interface '{name}' on this host; there are: "
                f"{', '.join(snapshot.interfaces)}",
                option=option,
                found=list(snapshot.interfaces),
            )
        part = snapshot.parts.get(name)
        if part is not None:
            master, kind = part
            raise InputError(
                f"{option}: '{name}' is a port of the {kind} '{master}', where its packets come in; "
                f"give '{master}' instead",
                option=option,
                found=[master],
            )


def _lost(snapshot: Snapshot, desired: Desired, name: str, family: str) -> str:
    """Why a bridge loses what is caught, if it does.

    br_netfilter takes bridged packets through the chains of IP early and never again; the socket that
    TPROXY gives them is forgotten before IP has them. Marks stay, so transparent sockets are
    well.
    """
    if name not in snapshot.bridges:
        return ""
    path = BRIDGE_CALLS[family]
    if dict(desired.sysctls).get(path, snapshot.sysctls.get(path, "0")) != "0":
        key = sysctl_name(path)
        return (
            f"{key} is 1; set it to 0 with the option sysctls, if nothing else on this host filters "
            "bridged packets"
        )
    if family in snapshot.bridges[name]:
        word = path.rpartition("/")[2].replace("bridge-", "").replace("-", "_")
        return f"the bridge's own {word} is 1; `ip link set {name} type bridge {word} 0` ends that"
    return ""
