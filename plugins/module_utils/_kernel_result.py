# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules of the kernel side have in common: plan, apply, look again, say it. Private to the collection."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import Change


class Snapshot(t.Protocol):
    """What was found."""

    @property
    def files(self) -> t.Mapping[str, str | None]: ...


class Plan(t.Protocol):
    """What is to change."""

    @property
    def changes(self) -> tuple[Change, ...]: ...

    @property
    def files(self) -> t.Mapping[str, str | None]: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...


S = t.TypeVar("S", bound=Snapshot)
P = t.TypeVar("P", bound=Plan)


def carry_out(
    look: t.Callable[[], S],
    plan_from: t.Callable[[S], P],
    apply: t.Callable[[P], t.Iterable[str]],
    *,
    check_mode: bool,
    unit: str,
    record: str,
    probe: t.Callable[[], t.Iterable[str]] = tuple,
) -> dict[str, t.Any]:
    """The module's answer. `probe` tries and `apply` does it; both return warnings.

    A host that does not keep what was set raises Error.
    """
    snapshot = look()
    plan = plan_from(snapshot)
    warnings = [*plan.warnings, *probe()]
    if plan.changes and not check_mode:
        warnings += apply(plan)
        left = plan_from(look()).changes
        if left:
            raise Error(
                f"the host did not keep what was set: {left[0].sentence}",
                changes=[change.as_dict() for change in plan.changes],
                left=[change.as_dict() for change in left],
            )
    return {
        "changed": bool(plan.changes),
        "changes": [change.as_dict() for change in plan.changes],
        # Or one that belongs to it.
        "unit_changed": any(path.startswith(f"{os.path.dirname(unit)}/") for path in plan.files),
        "diff": diff_of(snapshot, plan, hidden=record),
        "warnings": warnings,
    }


def file_change(path: str, found: str | None, wanted: str | None) -> Change:
    """The change of a file: whether it is there, not what is in it."""
    if found is None:
        return Change(f"file {path}", "", "present")
    return Change(
        f"file {path}",
        "present" if wanted is None else "other content",
        "" if wanted is None else "our content",
    )


def diff_of(snapshot: Snapshot, plan: Plan, *, hidden: str) -> list[dict[str, str]]:
    """Before and after of what changes, and of nothing else: live state as one text, files one by one."""
    live = [change for change in plan.changes if not change.item.startswith("file ")]
    texts = []
    if live:
        texts.append(
            _difference(
                "live state",
                "".join(f"{change.item}: {change.found or 'absent'}\n" for change in live),
                "".join(f"{change.item}: {change.wanted or 'absent'}\n" for change in live),
            )
        )
    return texts + [
        _difference(path, snapshot.files.get(path) or "", content or "")
        for path, content in plan.files.items()
        if path != hidden
    ]


def _difference(header: str, before: str, after: str) -> dict[str, str]:
    return {"before_header": header, "after_header": header, "before": before, "after": after}
