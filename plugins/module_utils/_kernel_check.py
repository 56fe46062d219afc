# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plain data: what a check of tproxy_info is, and the names of all. Private to the collection."""

from __future__ import annotations

import typing as t
from dataclasses import asdict, dataclass

OK, FAILED, UNKNOWN = "ok", "failed", "unknown"

# Every name that a check can have, by group, in the order of the answer.
GROUPS: dict[str, tuple[str, ...]] = {
    "kernel": ("transparent_socket", "kernel_support"),
    "rules": (
        "interface",
        "mark",
        "divert_chain",
        "divert_jump",
        "divert_icmp",
        "intercept",
        "ip_rule",
        "guard_rule",
        "ip_rule_order",
        "local_route",
        "forwarding",
        "send_redirects",
        "rp_filter",
        "src_valid_mark",
        "tcp_fwmark_accept",
        "accept_ra",
        "sysctl",
        "other_rules",
    ),
    "filters": ("prerouting_filter", "input_filter", "notrack", "output_filter", "masquerade"),
    "haproxy": (
        "haproxy_binary",
        "haproxy_running",
        "worker_capability",
        "old_workers",
        "config_usesrc",
        "config_source",
        "config_families",
        "config_user",
        "families",
    ),
    "boot": ("boot_files", "record", "unit_enabled", "unit_active", "firewall_reload"),
    "limits": ("free_ports", "conntrack_table"),
    "probe": ("probe",),
}
NAMES = tuple(name for names in GROUPS.values() for name in names)

# Without these nothing is transparent, so that nothing is known while one of them is unknown.
ESSENTIAL = (
    "mark",
    "divert_chain",
    "divert_jump",
    "ip_rule",
    "local_route",
    "haproxy_running",
    "worker_capability",
    "config_usesrc",
    "probe",
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: str
    family: str = ""
    subject: str = ""
    observed: str = ""
    expected: str = ""
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def ordered(checks: t.Iterable[Check]) -> list[Check]:
    return sorted(checks, key=lambda check: (NAMES.index(check.name), check.family))


def summary(checks: t.Sequence[Check]) -> dict[str, t.Any]:
    failed = tuple(dict.fromkeys(check.name for check in checks if check.status == FAILED))
    open_question = any(check.status == UNKNOWN and check.name in ESSENTIAL for check in checks)
    return {
        "checks": [check.as_dict() for check in checks],
        "failed_checks": list(failed),
        "transparent": not failed and not open_question,
    }
