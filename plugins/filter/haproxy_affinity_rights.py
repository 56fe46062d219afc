# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filter haproxy_affinity_rights; the work is done in module_utils/_affinity_rights.py."""

from __future__ import annotations

import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_rights import (
    restart_reason,
    worker_problems,
)


def haproxy_affinity_rights(
    observed: t.Mapping[str, t.Any], rights: t.Mapping[str, t.Any]
) -> dict[str, t.Any]:
    """Return why a restart is needed and what is wrong."""
    return {
        "restart": restart_reason(observed, rights),
        "problems": worker_problems(observed, rights),
    }


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"haproxy_affinity_rights": haproxy_affinity_rights}
