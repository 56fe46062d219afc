# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filter haproxy_build_plan; the work is done in module_utils/_build_plan.py."""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Mapping

from ansible.errors import AnsibleFilterError

from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_plan import make_plan
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error


def haproxy_build_plan(asked: t.Any) -> dict[str, t.Any]:
    """Return the plan as plain data."""
    if not isinstance(asked, Mapping):
        raise AnsibleFilterError("haproxy_build_plan needs a dictionary of what is asked for.")
    try:
        return dataclasses.asdict(make_plan(asked))
    except Error as error:
        raise AnsibleFilterError(f"haproxy_build_plan: {error}.") from None


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"haproxy_build_plan": haproxy_build_plan}
