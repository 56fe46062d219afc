# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: (found, wanted) -> named changes and the steps to make. Private to the collection."""

from __future__ import annotations

from dataclasses import replace

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_firewall import (
    plan_firewall,
    refuse_chain,
    refuse_marks,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    FAMILIES,
    Change,
    Desired,
    Plan,
    Record,
    Snapshot,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_result import file_change
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_routing import (
    plan_routing,
    refuse_routing,
    refuse_table_names,
    warnings_of,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_sysctls import (
    advertised_of,
    plan_sysctls,
    refuse_sysctls,
)


def plan_host(snapshot: Snapshot, desired: Desired | None, hint: Desired | None = None) -> Plan:
    """The changes that make the host as `desired`; None removes every trace.

    `hint` says what was probably set up where the record of it is lost; it is believed only on a host with
    other traces of ours. Raises InputError, naming what was found, where something of others is in the way.
    """
    if desired is not None:
        _refuse_conflicts(snapshot, desired)
        hint = None
    elif snapshot.record.desired is None and hint is not None and _has_traces(snapshot):
        snapshot = replace(snapshot, record=replace(snapshot.record, desired=hint))
    else:
        hint = None
    changes: list[Change] = []
    firewall: dict[str, str] = {}
    routing: dict[str, tuple[str, ...]] = {}
    for family in FAMILIES:
        target = desired if desired is not None and family in desired.families else None
        text = plan_firewall(snapshot, target, family, changes)
        if text:
            firewall[family] = text
        lines = plan_routing(snapshot, target, family, changes, guessed=hint is not None)
        if lines:
            routing[family] = tuple(lines)
    advertised = advertised_of(snapshot, desired)
    sysctls, remembered = plan_sysctls(snapshot, desired, advertised, changes)
    files = _plan_files(snapshot, desired, advertised, changes)

    record: str | None = None
    if desired is not None:
        record = Record(
            desired=desired,
            sysctls=remembered,
            directories=tuple(
                dict.fromkeys((*snapshot.record.directories, *snapshot.missing_directories))
            ),
            tables=tuple(
                family
                for family in FAMILIES
                if family in snapshot.record.tables
                or (
                    family in desired.families and "mangle" not in snapshot.firewall.get(family, {})
                )
            ),
            advertised=advertised,
        ).dump()
    path = render.RECORD
    if record != snapshot.files.get(path):
        if desired is None:
            changes.append(file_change(path, snapshot.files.get(path), None))
            files[path] = None
        elif not changes:
            changes.append(file_change(path, snapshot.files.get(path), record))
    else:
        record = None
    if not changes:
        return Plan(warnings=warnings_of(snapshot, desired))
    return Plan(
        changes=tuple(changes),
        sysctls=sysctls,
        ip=routing,
        firewall=firewall,
        files=files,
        drop_tables=() if desired is not None else snapshot.record.tables,
        remove_directories=() if desired is not None else snapshot.record.directories,
        record=record,
        firewall_first=desired is None,
        warnings=warnings_of(snapshot, desired),
    )


def _has_traces(snapshot: Snapshot) -> bool:
    tables = [table for family in snapshot.firewall.values() for table in family.values()]
    return any(rule.owned for table in tables for rule in table.rules) or any(
        snapshot.files.get(path) is not None for path in render.FILES
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
    missing = [name for name in desired.interfaces if name not in snapshot.interfaces]
    if missing:
        raise InputError(
            f"interfaces: there is no interface '{missing[0]}' on this host; there are: "
            f"{', '.join(snapshot.interfaces)}",
            option="interfaces",
            found=list(snapshot.interfaces),
        )
    refuse_sysctls(snapshot, desired)
    for path, content in snapshot.files.items():
        if path in render.FILES and content and render.HEADER not in content:
            raise InputError(
                f"files: {path} is there and was not written by this collection; move it away",
                option="files",
                found=[path],
            )
    for family in desired.families:
        refuse_chain(snapshot, desired, family)
        refuse_marks(snapshot, desired, family)
        refuse_routing(snapshot, desired, family)
    refuse_table_names(snapshot, desired, render.TABLE_NAME)
