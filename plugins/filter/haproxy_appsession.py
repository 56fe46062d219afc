# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filter haproxy_appsession; the work is done in module_utils/_affinity_appsession.py."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_appsession import (
    AppsessionError,
    translate,
)


def haproxy_appsession(line: t.Any) -> dict[str, t.Any]:
    """Translate one line."""
    if not isinstance(line, str):
        raise AnsibleFilterError("haproxy_appsession needs the appsession line as a string.")
    try:
        return translate(line)
    except AppsessionError as error:
        raise AnsibleFilterError(f"haproxy_appsession: {error}.") from None


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"haproxy_appsession": haproxy_appsession}
