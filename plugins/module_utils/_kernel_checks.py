# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: (survey, snapshot, wanted) -> named checks. Private to the collection."""

from __future__ import annotations

import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_check import (
    FAILED,
    GROUPS,
    OK,
    UNKNOWN,
    Check,
    ordered,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_checks_filters import (
    filter_checks,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_checks_haproxy import (
    haproxy_checks,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_checks_rules import (
    one_of,
    planned,
    rules_checks,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import Desired
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_firewall import (
    FLUSHED,
    FLUSHED_REMEDY,
    is_flushed,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import Change
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_probe import Result
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_snapshot import Snapshot
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_survey import (
    Seen,
    Survey,
    Unseen,
)


def checks_of(
    survey: Survey,
    snapshot: Seen[Snapshot],
    desired: Desired,
    groups: t.Container[str] = tuple(GROUPS),
) -> list[Check]:
    """In the order of NAMES, then of the families. The group probe is not made here."""
    found: list[Check] = []
    if "kernel" in groups:
        found += _kernel(survey, desired)
    if "rules" in groups:
        found += rules_checks(survey, snapshot, desired)
    if "filters" in groups:
        found += filter_checks(survey, snapshot, desired)
    if "haproxy" in groups:
        found += haproxy_checks(survey, desired)
    if "boot" in groups:
        found += _boot(survey, snapshot, desired)
    if "limits" in groups:
        found += _limits(survey)
    return ordered(found)


# The kernel


def _kernel(survey: Survey, desired: Desired) -> t.Iterator[Check]:
    for family in desired.families:
        for name, seen, expected, remedy in (
            (
                "transparent_socket",
                survey.sockets.get(family, Unseen("not tried")),
                "a socket may take an address that this host does not have",
                f"boot a kernel with it, or take {family} out of families",
            ),
            (
                "kernel_support",
                survey.support.get(family, Unseen("not tried")),
                "the wanted rules and routes load in a scratch network namespace",
                "use a kernel, and programs, that have what is missing",
            ),
        ):
            if isinstance(seen, Unseen):
                yield Check(name, UNKNOWN, family, "", seen.reason, expected)
            else:
                status = FAILED if seen else OK
                yield Check(
                    name, status, family, "", seen or "it works", expected, remedy if seen else ""
                )


# What lasts


def _boot(survey: Survey, snapshot: Seen[Snapshot], desired: Desired) -> t.Iterator[Check]:
    found = Unseen(snapshot.reason) if isinstance(snapshot, Unseen) else planned(snapshot, desired)
    for name in ("boot_files", "record"):
        if isinstance(found, Unseen) or isinstance(snapshot, Unseen):
            yield Check(name, UNKNOWN, "", "", found.reason if isinstance(found, Unseen) else "")
            continue
        changes = found.get((name, ""), ())
        if name == "record" and not changes and snapshot.files.get(render.RECORD) is None:
            changes = (Change(f"file {render.RECORD}", "", "present"),)
        yield one_of(name, "", changes, desired)
    for name, verb, good, remedy in (
        (
            "unit_enabled",
            "is-enabled",
            ("enabled", "enabled-runtime", "static", "alias", "linked"),
            "systemctl enable {}",
        ),
        (
            "unit_active",
            "is-active",
            ("active", "reloading"),
            "systemctl restart {}, and see its log",
        ),
    ):
        for unit in render.units(desired):
            seen = survey.units.get((verb, unit), Unseen("not looked at"))
            if isinstance(seen, Unseen):
                yield Check(name, UNKNOWN, "", unit, seen.reason, good[0])
            elif seen in good:
                yield Check(name, OK, "", unit, seen, good[0])
            else:
                yield Check(name, FAILED, "", unit, seen, good[0], remedy.format(unit))
    expected = "nothing empties the firewall's tables without a word to systemd"
    if isinstance(snapshot, Unseen):
        yield Check("firewall_reload", UNKNOWN, "", "", snapshot.reason, expected)
    elif is_flushed(snapshot, desired):
        yield Check("firewall_reload", FAILED, "", "firewalld", FLUSHED, expected, FLUSHED_REMEDY)
    else:
        yield Check("firewall_reload", OK, "", "", "nothing known", expected)


# The live probe


def probed(results: t.Iterable[Result]) -> list[Check]:
    """One check for each server and source."""
    return [
        Check(
            "probe",
            found.status if found.status in (OK, FAILED) else UNKNOWN,
            found.family,
            found.server,
            f"{found.hop}: {found.observed}" if found.hop else found.observed,
            found.expected,
            found.remedy if found.status == FAILED else "",
        )
        for found in results
    ]


# What runs out


def _limits(survey: Survey) -> t.Iterator[Check]:
    words = survey.sysctls.get("net/ipv4/ip_local_port_range", "").split()
    if len(words) == 2 and all(word.isdecimal() for word in words):
        size = int(words[1]) - int(words[0]) + 1
        worst = max(survey.usage, key=lambda entry: entry.count, default=None)
        used = worst.count if worst is not None else 0
        # The search for a free port becomes slow, and fails by chance, before the last is taken.
        bad = used >= size * 0.9
        yield Check(
            "free_ports",
            FAILED if bad else OK,
            worst.family if worst is not None else "",
            f"{worst.client} to {worst.server}" if worst is not None else "",
            f"{used} of {size} ports",
            "less than 90 % of the ports for each client and server",
            "widen net.ipv4.ip_local_port_range, let HAProxy reuse connections, or give the server "
            "another address or port"
            if bad
            else "",
        )
    else:
        yield Check("free_ports", UNKNOWN, "", "", "net.ipv4.ip_local_port_range is unreadable")
    most = survey.sysctls.get("net/netfilter/nf_conntrack_max", "")
    count = survey.sysctls.get("net/netfilter/nf_conntrack_count", "")
    if most.isdecimal() and count.isdecimal():
        full = int(most) > 0 and int(count) >= int(most) * 0.95
        yield Check(
            "conntrack_table",
            FAILED if full else OK,
            "",
            "",
            f"{count} of {most} entries",
            "less than 95 % of the entries",
            "raise net.netfilter.nf_conntrack_max: packets of new connections are dropped when the "
            "table is full"
            if full
            else "",
        )
    else:
        yield Check("conntrack_table", OK, "", "", "connections are not tracked", "")
