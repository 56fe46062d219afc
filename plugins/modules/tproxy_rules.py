#!/usr/bin/python
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: tproxy_rules
short_description: The kernel side of a fully transparent proxy
version_added: 0.1.0
author: The clearproxy.haproxy contributors (@clearproxy)
description:
  - Makes the kernel of a proxy host deliver the servers' answers to HAProxy, although they are
    addressed to the clients. HAProxy's C(source … usesrc clientip) needs this.
  - Managed are a chain in the firewall's mangle table that marks packets of transparent sockets,
    policy routing rules for the mark, a routing table in which every address is local, sysctls,
    and the files from which the unit C(tproxy-host.service) restores all of it at boot.
  - Rules carry the comment C(clearproxy-tproxy-host). Nothing that others own is flushed,
    reordered or overwritten; where it is in the way the task fails, before any change, and says
    what it found.
  - Before the first change the exact rules are tried in a scratch network namespace, and a socket
    is bound to a foreign address.
extends_documentation_fragment: [clearproxy.haproxy._attributes]
options:
  state:
    description:
      - V(present) makes the host as described by the other options; V(absent) removes every trace
        and puts sysctls back to the values that were found before the first change.
    type: str
    choices: [present, absent]
    default: present
  firewall:
    description: The firewall backend. Both variants of C(iptables), legacy and nft, will do.
    type: str
    choices: [iptables]
    default: iptables
  families:
    description: The address families to proxy.
    type: list
    elements: str
    choices: [ipv4, ipv6]
    default: [ipv4, ipv6]
  mark:
    description: The mark on diverted packets, a 32-bit number like V(0x1). Must lie inside O(mask).
    type: str
    default: '0x1'
  mask:
    description:
      - The bits of the mark that are set and looked at; all others are left to others. A 32-bit
        number like V(0x1), not 0.
    type: str
    default: '0x1'
  table:
    description:
      - Number of the routing table, 1 to 4294967295, except 253 to 255, which are the kernel's.
    type: int
    default: 100
  table_name:
    description: The table's name, as C(ip route show table NAME) takes it.
    type: str
    default: haproxy_tproxy
  rule_priority:
    description:
      - Priority of the guard rule, 1 to 32764; the rules that look the table up have the next
        number.
      - Choose one below the priorities of other software's rules without a mark (VPNs).
    type: int
    default: 100
  chain:
    description: Name of the chain in the mangle table.
    type: str
    default: DIVERT
  interfaces:
    description:
      - The server-facing interfaces. Rules are bound to them by name. They must exist when the
        task runs; at boot they may come later.
      - Empty means any interface. A guard rule then keeps what the host itself sends out of the
        table.
    type: list
    elements: str
    default: []
  forwarding:
    description:
      - Whether the host forwards packets between its interfaces, in the O(families). The servers
        need it for everything else than proxied connections when the proxy is their gateway. Not
        given, it is left alone.
      - Before IPv6 forwarding is switched on, interfaces that use router advertisements get
        C(accept_ra=2); otherwise the host would lose its default route.
    type: bool
  send_redirects:
    description:
      - Whether the host sends ICMP redirects, on C(all), C(default) and the O(interfaces), or
        every interface if none is given. Not given, it is left alone.
      - V(false) is right for a proxy in the same subnet as servers and router. A single redirect
        makes a server bypass the proxy for one client for five minutes.
    type: bool
  sysctls:
    description: Further sysctls below C(net) to keep, by name. An interface may be C(*).
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    details:
      - Predicts exactly what the real run does. Programs that are not installed yet are listed
        in RV(unseen).
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    support: full
    platforms: linux
notes:
  - Must run as root, in the network namespace that HAProxy uses. In a container that means the
    capability C(NET_ADMIN).
  - Writes C(tproxy-host.service) but does not enable it; the role
    P(clearproxy.haproxy.tproxy_host#role) does.
  - Needs C(ip) (iproute2), C(iptables) and, for the kernel probe, C(unshare) (util-linux).
seealso:
  - module: clearproxy.haproxy.tproxy_return_path
"""

EXAMPLES = r"""
---
- name: Deliver the servers' answers to HAProxy
  clearproxy.haproxy.tproxy_rules:
    interfaces: [eth1]
    forwarding: true
    send_redirects: false

- name: Only IPv4, with a mark and a table that nobody else uses
  clearproxy.haproxy.tproxy_rules:
    families: [ipv4]
    mark: '0x100'
    mask: '0x100'
    table: 4100

- name: Remove every trace
  clearproxy.haproxy.tproxy_rules:
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
      sample: ipv4 rule 101
    found:
      description: What was there; empty if nothing.
      type: str
    wanted:
      description: What shall be there; empty if nothing.
      type: str
    sentence:
      description: The three in one sentence.
      type: str
      sample: 'ipv4 rule 101: missing, wanted: priority 101 fwmark 0x1/0x1 lookup 100 protocol kernel'
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

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_host import Host
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import Desired
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_plan import plan_host
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_result import carry_out


def run(options: dict[str, t.Any], *, check_mode: bool) -> dict[str, t.Any]:
    described = Desired.from_options(options)
    desired = described if options["state"] == "present" else None
    host = Host(missing_programs_ok=check_mode or desired is None)
    answer = carry_out(
        lambda: host.read(described),
        lambda snapshot: plan_host(snapshot, desired, described),
        host.apply,
        probe=lambda: host.probe(desired) if desired is not None else [],
        check_mode=check_mode,
        unit=render.UNIT,
        record=render.RECORD,
    )
    return {**answer, "unseen": host.unseen}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "firewall": {"type": "str", "choices": ["iptables"], "default": "iptables"},
            "families": {
                "type": "list",
                "elements": "str",
                "choices": ["ipv4", "ipv6"],
                "default": ["ipv4", "ipv6"],
            },
            "mark": {"type": "str", "default": "0x1"},
            "mask": {"type": "str", "default": "0x1"},
            "table": {"type": "int", "default": 100},
            "table_name": {"type": "str", "default": "haproxy_tproxy"},
            "rule_priority": {"type": "int", "default": 100},
            "chain": {"type": "str", "default": "DIVERT"},
            "interfaces": {"type": "list", "elements": "str", "default": []},
            "forwarding": {"type": "bool"},
            "send_redirects": {"type": "bool"},
            "sysctls": {"type": "dict", "default": {}},
        },
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
