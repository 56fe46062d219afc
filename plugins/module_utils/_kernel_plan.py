# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: (found, wanted) -> named changes and the steps to make. Private to the collection."""

from __future__ import annotations

from dataclasses import replace

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import Desired
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_firewall import (
    flush_warnings,
    mark_warnings,
    own_nft_tables,
    plan_firewall,
    plan_nft,
    refuse_firewall,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_interfaces import (
    bridge_warnings,
    refuse_interfaces,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    FAMILIES,
    Change,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_result import file_change
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_routing import (
    plan_routing,
    refuse_routing,
    refuse_table_names,
    warnings_of,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_snapshot import (
    Plan,
    Record,
    Snapshot,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_sysctls import (
    advertised_of,
    plan_sysctls,
    refuse_sysctls,
    sysctl_warnings,
)


def plan_host(
    snapshot: Snapshot,
    desired: Desired | None,
    hint: Desired | None = None,
    *,
    refusing: bool = True,
) -> Plan:
    """The changes that make the host as `desired`; None removes every trace.

    `hint` says what was probably set up where the record of it is lost; it is believed only on a host with
    other traces of ours. Raises InputError, naming what was found, where something of others is in the way,
    unless the plan is only to be looked at (`refusing` false).
    """
    if desired is not None:
        if refusing:
            _refuse_conflicts(snapshot, desired)
        hint = None
    elif snapshot.record.desired is None and hint is not None and _has_traces(snapshot):
        snapshot = replace(snapshot, record=replace(snapshot.record, desired=hint))
    else:
        hint = None
    changes: list[Change] = []
    coming: dict[str, tuple[str, ...]] = {}
    going: dict[str, tuple[str, ...]] = {}
    firewall = plan_nft(snapshot, desired, changes)
    for family in FAMILIES:
        target = desired if desired is not None and family in desired.families else None
        firewall += plan_firewall(snapshot, target, family, changes)
        new, old = plan_routing(snapshot, target, family, changes, guessed=hint is not None)
        if new:
            coming[family] = tuple(new)
        if old:
            going[family] = tuple(old)
    advertised = advertised_of(snapshot, desired)
    sysctls, remembered = plan_sysctls(snapshot, desired, advertised, changes)
    files = _plan_files(snapshot, desired, advertised, changes)

    made = _tables_of_ours(snapshot, desired)
    record = meanwhile = None
    if desired is not None:
        remember = Record(
            desired=desired,
            sysctls=remembered,
            directories=tuple(
                dict.fromkeys((*snapshot.record.directories, *snapshot.missing_directories))
            ),
            tables=made,
            advertised=advertised,
        )
        record, meanwhile = remember.dump(), snapshot.record.before(remember).dump()
    path = render.RECORD
    if meanwhile == snapshot.files.get(path):
        meanwhile = None
    if record != snapshot.files.get(path):
        if desired is None:
            changes.append(file_change(path, snapshot.files.get(path), None))
            files[path] = None
        elif not changes:
            changes.append(file_change(path, snapshot.files.get(path), record))
    else:
        record = None
    warnings = (
        *warnings_of(snapshot, desired),
        *sysctl_warnings(snapshot, desired),
        *bridge_warnings(snapshot, desired),
        *flush_warnings(snapshot, desired),
        *mark_warnings(snapshot, desired),
    )
    if not changes:
        return Plan(warnings=warnings)
    return Plan(
        changes=tuple(changes),
        sysctls=sysctls,
        ip=coming,
        ip_after=going,
        # What diverts packets from now on comes before what did so until now goes.
        firewall=tuple(sorted(firewall, key=lambda step: not step.adds)),
        files=files,
        drop_tables=tuple(name for name in snapshot.record.tables if name not in made),
        # Without the record, those that nobody but us would have made. Only empty ones go.
        remove_directories=()
        if desired is not None
        else snapshot.record.directories or render.OWN_DIRECTORIES,
        record_meanwhile=meanwhile,
        record=record,
        firewall_first=desired is None,
        warnings=warnings,
    )


def _tables_of_ours(snapshot: Snapshot, desired: Desired | None) -> tuple[str, ...]:
    """Families in which our rules are why iptables-nft has a mangle table."""
    variant = snapshot.nft_variant
    if desired is None or variant is None or desired.firewall != variant:
        return ()
    return tuple(
        family
        for family in desired.families
        if family in snapshot.record.tables
        or "mangle" not in snapshot.variants[variant].get(family, {})
    )


def _has_traces(snapshot: Snapshot) -> bool:
    return (
        any(
            rule.owned
            for families in snapshot.variants.values()
            for tables in families.values()
            for table in tables.values()
            for rule in table.rules
        )
        or bool(own_nft_tables(snapshot, None))
        or any(snapshot.files.get(path) is not None for path in render.FILES)
    )


# Files


def _plan_files(
    snapshot: Snapshot, desired: Desired | None, advertised: tuple[str, ...], changes: list[Change]
) -> dict[str, str | None]:
    wanted = render.files(desired, advertised) if desired else dict.fromkeys(render.FILES)
    steps: dict[str, str | None] = {}
    for path, content in wanted.items():
        found = snapshot.files.get(path)
        if found != content:
            changes.append(file_change(path, found, content))
            steps[path] = content
    return steps


# What belongs to others


def _refuse_conflicts(snapshot: Snapshot, desired: Desired) -> None:
    refuse_interfaces(snapshot, desired)
    refuse_sysctls(snapshot, desired)
    for path, content in snapshot.files.items():
        if path in render.FILES and content and render.HEADER not in content:
            raise InputError(
                f"files: {path} is there and was not written by this collection; move it away",
                option="files",
                found=[path],
            )
    refuse_firewall(snapshot, desired)
    for family in desired.families:
        refuse_routing(snapshot, desired, family)
    refuse_table_names(snapshot.table_names, desired.table, desired.table_name, render.TABLE_NAME)
