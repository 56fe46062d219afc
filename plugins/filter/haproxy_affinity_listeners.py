# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filter haproxy_affinity_listeners; the work is done in module_utils/_affinity_listen.py."""

from __future__ import annotations

import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_listen import (
    conflicts,
    missing_addresses,
    not_listening,
)


def haproxy_affinity_listeners(
    observations: list[dict[str, t.Any]], unit: str = "haproxy.service"
) -> dict[str, list[str]]:
    """Return the sentences."""
    return {
        "conflicts": conflicts(observations, unit),
        "absent": missing_addresses(observations),
        "silent": not_listening(observations, unit),
    }


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"haproxy_affinity_listeners": haproxy_affinity_listeners}
