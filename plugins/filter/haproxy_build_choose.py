# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filter haproxy_build_choose; the work is done in module_utils/_build_choice.py."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping, Sequence

from ansible.errors import AnsibleFilterError

from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_choice import choose


def haproxy_build_choose(
    info: t.Any,
    cached: t.Any,
    wanted: t.Any,
    current: str | None = None,
    compiler: str | None = None,
    libraries: t.Any = None,
    source_sha256: str | None = None,
) -> dict[str, t.Any]:
    """Return the release that serves and where it is."""
    if not isinstance(info, Mapping) or not isinstance(wanted, Mapping):
        raise AnsibleFilterError(
            "haproxy_build_choose needs what haproxy_build_info returned, and what haproxy_build_wanted did as wanted."
        )
    return choose(
        _records(info.get("releases") or [], "the releases of haproxy_build_info"),
        _records(cached or [], "cached"),
        wanted,
        current or info.get("current"),
        compiler or info.get("compiler"),
        info.get("libraries") if libraries is None else libraries,
        source_sha256,
    )


def _records(value: t.Any, what: str) -> list[Mapping[str, t.Any]]:
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or not all(isinstance(each, Mapping) for each in value)
    ):
        raise AnsibleFilterError(f"haproxy_build_choose: {what} is not a list of records.")
    return list(value)


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"haproxy_build_choose": haproxy_build_choose}
