# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filter haproxy_build_fingerprint; the work is done in module_utils/_build_choice.py."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping

from ansible.errors import AnsibleFilterError

from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_choice import fingerprint
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error


def haproxy_build_fingerprint(made_of: t.Any) -> str:
    """Return the fingerprint in hexadecimal digits."""
    if not isinstance(made_of, Mapping):
        raise AnsibleFilterError(
            "haproxy_build_fingerprint needs a dictionary of what decided the release."
        )
    try:
        return fingerprint(made_of)
    except Error as error:
        raise AnsibleFilterError(f"haproxy_build_fingerprint: {error}.") from None


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"haproxy_build_fingerprint": haproxy_build_fingerprint}
