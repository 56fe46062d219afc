#!/usr/bin/python
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: tproxy_return_path
short_description: The application servers' way back through a transparent proxy
version_added: 0.1.0
author: The clearproxy.haproxy contributors (@clearproxy)
description:
  - A server behind a fully transparent proxy sees the clients' own addresses. Its answers must
    nevertheless go through the proxy, which alone knows the connection. This module makes the
    proxy the server's default gateway, now and at every boot.
  - A default route of others that would win is replaced and remembered; one with a larger metric
    loses anyway and stays as it is.
extends_documentation_fragment: [clearproxy.haproxy._attributes]
options:
  state:
    description:
      - V(present) routes through the proxy; V(absent) removes that and puts back what was
        replaced, with a warning where the kernel refuses it because its subnet is gone.
    type: str
    choices: [present, absent]
    default: present
  mode:
    description:
      - How the answers are led to the proxy. V(default_gateway) leads everything there that is
        not on a connected subnet.
    type: str
    choices: [default_gateway]
    default: default_gateway
  gateways:
    description:
      - The proxy's server-side addresses, at most one a family, each on a subnet that the server
        is connected to by an interface that is up. A family that is not given is left alone.
      - Needed with O(state=present).
    type: list
    elements: str
attributes:
  check_mode:
    support: full
    details: Predicts exactly what the real run does.
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    support: full
    platforms: linux
notes:
  - Must run as root.
  - Writes C(tproxy-backend.service) but does not enable it; the role
    P(clearproxy.haproxy.tproxy_backend#role) does.
  - The task cuts itself off if Ansible reaches the server through a default route that it
    replaces and the proxy does not forward.
seealso:
  - module: clearproxy.haproxy.tproxy_rules
"""

EXAMPLES = r"""
---
- name: Answer through the proxy
  clearproxy.haproxy.tproxy_return_path:
    gateways: [192.0.2.1, "2001:db8::1"]

- name: Answer as before
  clearproxy.haproxy.tproxy_return_path:
    state: absent
"""

RETURN = r"""
changes:
  description: What was not as wanted, one entry an item.
  returned: success
  type: list
  elements: dict
  contains:
    item:
      description: The item's stable name.
      type: str
      sample: ipv4 default route
    found:
      description: What was there; empty if nothing.
      type: str
    wanted:
      description: What shall be there; empty if nothing.
      type: str
    sentence:
      description: The three in one sentence.
      type: str
      sample: 'ipv4 default route: missing, wanted: default via 192.0.2.1 dev eth0 proto kernel'
unit_changed:
  description: Whether the unit file changed, so that systemd has to read it again.
  returned: success
  type: bool
unseen:
  description:
    - What could not be looked at, one sentence each. Only in check mode, before the needed
      programs are installed.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _kernel_return as return_path,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_host import Host
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_result import carry_out


def run(options: dict[str, t.Any], *, check_mode: bool) -> dict[str, t.Any]:
    gateways = (
        return_path.parse_gateways(options["gateways"] or ())
        if options["state"] == "present"
        else None
    )
    host = Host(missing_programs_ok=check_mode)

    def plan_from(snapshot: return_path.Snapshot) -> return_path.Plan:
        # Without `ip` no subnet is known, and nothing can be said about the gateways.
        if host.unseen:
            return return_path.Plan()
        return return_path.plan_return_path(snapshot, gateways)

    answer = carry_out(
        host.read_return_path,
        plan_from,
        host.apply_return_path,
        check_mode=check_mode,
        unit=return_path.UNIT,
        record=return_path.RECORD,
    )
    return {**answer, "unseen": host.unseen}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "mode": {"type": "str", "choices": ["default_gateway"], "default": "default_gateway"},
            "gateways": {"type": "list", "elements": "str"},
        },
        required_if=[("state", "present", ("gateways",))],
        supports_check_mode=True,
    )
    try:
        result = run(module.params, check_mode=module.check_mode)
    except Error as exc:
        module.fail_json(msg=str(exc), **exc.details)
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
