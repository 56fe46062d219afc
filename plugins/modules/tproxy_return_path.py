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
    nevertheless go through the proxy, which alone knows the connection. This module leads them
    there, now and at every boot, in one of three ways, see O(mode).
  - Changed options leave nothing of what they made before; whatever is not as wanted is named one
    by one in RV(changes), and repaired.
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
      - How the answers are led to the proxy.
      - V(default_gateway) makes the proxy the default gateway. Everything goes there that is not
        on a connected subnet, so the proxy must also forward what else the server sends, and
        clients on the servers' own subnet cannot be served through it. A default route of others
        that would win is replaced and remembered; one with a larger metric loses anyway and stays.
      - V(source_address) leads there what the server sends from its service addresses
        (C(ip rule add from ADDRESS lookup TABLE), see C(man ip-rule)), whatever the reverse path
        filter is. The default route stays, and with it access through the server's other
        addresses. Clients may be on the servers' own subnet. Best with an address that serves
        nothing but the proxy; connections that the server itself opens from the address go
        through the proxy too, so with only one address the proxy must forward those.
      - V(connection_mark) leads there what belongs to a connection that came in from the proxy,
        told by its interface and, if given, by O(mac_addresses). Everything else stays as it is,
        also with a single address. It needs nftables, a default route, and a reverse path filter
        that is not strict, see O(loose_rp_filter).
    type: str
    choices: [default_gateway, source_address, connection_mark]
    default: default_gateway
  gateways:
    description:
      - The proxy's server-side addresses, at most one a family, each on a subnet that the server
        is connected to by an interface that is up. A family that is not given is left alone.
      - With more than one proxy the address that moves between them (VRRP). It need not answer
        while the task runs.
      - An IPv6 link-local address takes its interface after a percent sign (RFC 4007), like
        V(fe80::1%eth0).
      - Needed with O(state=present).
    type: list
    elements: str
  addresses:
    description:
      - With O(mode=source_address), the server's addresses that the proxy connects to. The server
        must have them, on whatever interface, and at least one in each family of O(gateways).
      - Default are the addresses on the gateway's subnet, privacy addresses (RFC 8981) excepted.
    type: list
    elements: str
    default: []
  direct:
    description:
      - With O(mode=source_address) and O(mode=connection_mark), addresses and networks that are
        answered without the detour, as C(throw) routes in the table. The proxies' own addresses
        belong here if O(gateways) holds an address that moves between them and they do not
        forward, so that the health checks of the waiting proxy are answered.
      - Clients in these networks cannot be served through the proxy.
    type: list
    elements: str
    default: []
  table:
    description:
      - Number of the routing table of our own, 1 to 4294967295 without the kernel's 253 to 255.
        Refused if rules or routes of others are in it.
      - This and the next two count with O(mode=source_address) and O(mode=connection_mark).
    type: int
    default: 101
  table_name:
    description: The table's name in C(/etc/iproute2/rt_tables.d/tproxy-backend.conf).
    type: str
    default: tproxy_backend
  rule_priority:
    description:
      - Priority of the rules that look the table up, 1 to 32765. Smaller comes first. A rule of
        others that comes before and may win is warned of.
    type: int
    default: 110
  mark:
    description:
      - With O(mode=connection_mark), the mark of connections from the proxy and of what answers
        them, decimal or hexadecimal. All of its bits must be in O(mask).
    type: str
    default: "0x2"
  mask:
    description:
      - The bits of both marks that are ours. All others are left to others. Refused if a rule of
        others matches one of them.
    type: str
    default: "0x2"
  mac_addresses:
    description:
      - With O(mode=connection_mark), the proxies' hardware addresses on the servers' subnet.
        Needed if other connections come in by the same interface and shall be answered as before.
      - Default is that every connection that comes in by the gateway's interface is from the proxy.
    type: list
    elements: str
    default: []
  loose_rp_filter:
    description:
      - With O(mode=connection_mark), set C(net.ipv4.conf.INTERFACE.rp_filter) to 2 on the gateway's
        interface. Under a strict filter (1, RFC 3704) the kernel drops what comes from the proxy,
        since by the main table it should come from elsewhere; the larger of C(all) and the
        interface's value counts.
      - V(false) refuses to go on where the filter is strict.
    type: bool
    default: false
  guard:
    description:
      - Whether C(tproxy-backend-guard.service) is written, which looks every few seconds whether
        anything is missing, and puts it back within 10 seconds, without Ansible. The kernel forgets
        the routes over an interface that goes down, and no unit hears when it comes up again. The
        role P(clearproxy.haproxy.tproxy_backend#role) enables the service.
      - Its log has one line for each repair. After C(systemctl stop tproxy-backend) it keeps its
        hands off until C(systemctl start tproxy-backend).
    type: bool
    default: false
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
    replaces, or at a service address, and the proxy does not forward.
seealso:
  - module: clearproxy.haproxy.tproxy_rules
"""

EXAMPLES = r"""
---
- name: Answer through the proxy
  clearproxy.haproxy.tproxy_return_path:
    gateways: [192.0.2.1, "2001:db8::1"]

- name: Answer through the proxies' common address, but leave all else as it is
  clearproxy.haproxy.tproxy_return_path:
    mode: source_address
    addresses: [192.0.2.80, "2001:db8::80"]
    gateways: [192.0.2.1, "2001:db8::1"]
    direct: [192.0.2.2, 192.0.2.3, "2001:db8::2", "2001:db8::3"]

- name: The same on a server with a single address
  clearproxy.haproxy.tproxy_return_path:
    mode: connection_mark
    gateways: [192.0.2.1]
    mac_addresses: ["02:00:5e:10:00:01", "02:00:5e:10:00:02"]
    loose_rp_filter: true

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

import contextlib
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _kernel_return_render as render,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_host import Host
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_result import carry_out
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_return import (
    plan_return_path,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_return_model import (
    MODES,
    Desired,
    Plan,
    Snapshot,
)


def run(options: dict[str, t.Any], *, check_mode: bool) -> dict[str, t.Any]:
    desired = Desired.from_options(options) if options["state"] == "present" else None
    host = Host(missing_programs_ok=check_mode)

    def plan_from(snapshot: Snapshot) -> Plan:
        # Without `ip` no subnet is known, and nothing can be said about the gateways.
        if not host.find("ip"):
            return Plan()
        plan = plan_return_path(snapshot, desired)
        host.probe_return_path(plan)
        return plan

    with contextlib.nullcontext() if check_mode else host.alone(render.CONFIGURATION):
        answer = carry_out(
            lambda: host.read_return_path(desired),
            plan_from,
            host.apply_return_path,
            check_mode=check_mode,
            unit=render.UNIT,
            record=render.RECORD,
        )
    return {**answer, "unseen": host.unseen}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "mode": {"type": "str", "choices": list(MODES), "default": "default_gateway"},
            "gateways": {"type": "list", "elements": "str"},
            "addresses": {"type": "list", "elements": "str", "default": []},
            "direct": {"type": "list", "elements": "str", "default": []},
            "table": {"type": "int", "default": 101},
            "table_name": {"type": "str", "default": "tproxy_backend"},
            "rule_priority": {"type": "int", "default": 110},
            "mark": {"type": "str", "default": "0x2"},
            "mask": {"type": "str", "default": "0x2"},
            "mac_addresses": {"type": "list", "elements": "str", "default": []},
            "loose_rp_filter": {"type": "bool", "default": False},
            "guard": {"type": "bool", "default": False},
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
