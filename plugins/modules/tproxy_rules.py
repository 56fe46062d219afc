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
  - Managed are a chain in the firewall (in the mangle table of iptables, or in a table of its own
    of nft) that marks packets of transparent sockets, policy routing rules for the mark, a routing table in which every address is local, sysctls,
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
    description:
      - The firewall backend. What another one still has of ours is removed once the new rules are
        in force, so established connections are diverted all the time.
      - V(iptables) is whichever variant the host's C(iptables) is; V(iptables-nft) and
        V(iptables-legacy) name one.
      - V(nftables) is a table of its own, O(nft_table). Its chain has a priority one above
        C(mangle), because what one nft chain accepts still passes the next, and the last to set a
        mark wins.
      - V(auto) takes what the host already uses. V(nftables) if there are rules made by C(nft), if
        C(nftables.service) is enabled, or if there is no C(iptables) program; V(iptables) if only
        C(iptables) has rules, or nothing has. A decision is kept as long as its program is installed.
    type: str
    choices: [iptables, iptables-nft, iptables-legacy, nftables, auto]
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
      - A rule of others that sets one of them is refused. One of nft whose mark comes from a named
        map, or is otherwise not known beforehand, is warned about.
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
    description:
      - Name of the chain, in the mangle table or in O(nft_table). At most 28 letters, digits, V(_),
        V(.) and V(-); one that is there and not ours is refused.
    type: str
    default: DIVERT
  nft_table:
    description:
      - Name of the table of the family C(inet) if O(firewall) is V(nftables). One that is there and
        not ours is refused.
    type: str
    default: haproxy_tproxy
  position:
    description:
      - Whether the rules stand V(first) or V(last) in C(PREROUTING) of the mangle table. Behind a
        rule of others that accepts packets they never see these.
      - O(firewall=nftables) has no use for it.
    type: str
    choices: [first, last]
    default: first
  socket_match:
    description:
      - V(transparent) marks packets of sockets that asked for foreign addresses (C(IP_TRANSPARENT)).
      - V(any) is C(-m socket) alone, which marks the packets of all local services too. Where other
        software sets C(src_valid_mark), it needs O(guard_rule) or O(interfaces), or nobody can log
        in any more.
    type: str
    choices: [transparent, any]
    default: transparent
  icmp:
    description:
      - Whether ICMP and ICMPv6 errors about a proxied connection are delivered here too. They are
        addressed to the client. Without them the host never learns of a smaller path MTU (RFC 1191,
        RFC 8201), and large requests hang.
    type: bool
    default: true
  guard_rule:
    description:
      - Whether, without O(interfaces), a policy routing rule at O(rule_priority) keeps what the host
        itself sends, and the kernel's look-ups of source addresses, out of the table. Without it,
        every proxied connection dies once somebody sets C(src_valid_mark) or filters source
        addresses together with the mark, as firewalld's C(IPv6_rpfilter) does.
    type: bool
    default: true
  rule_protocol:
    description:
      - The routing protocol that policy routing rules and the route are labelled with.
        C(systemd-networkd) removes rules that are not V(kernel) when it configures a link. V(boot)
        is what C(ip) itself gives to routes; to rules it gives none.
    type: str
    choices: [kernel, boot, static]
    default: kernel
  interfaces:
    description:
      - The server-facing interfaces. Rules are bound to them by name. They must exist when the
        task runs; at boot they may come later.
      - Of a bridge or bond give that device, where its packets come in; one of its ports is
        refused.
      - Empty means any interface. A guard rule then keeps what the host itself sends out of the
        table.
    type: list
    elements: str
    default: []
  forwarding:
    description:
      - Whether the host forwards packets between its interfaces, in the O(families). In IPv4 the
        interface's own value counts, so C(all), C(default) and the O(interfaces), or every interface
        if none is given, are kept; in IPv6 that of C(all). The servers
        need it for everything else than proxied connections when the proxy is their gateway. Not
        given, it is left alone.
      - Before IPv6 forwarding is switched on, interfaces that use router advertisements get
        C(accept_ra=2); otherwise the host would lose its default route and its addresses.
    type: bool
  send_redirects:
    description:
      - Whether the host sends ICMP redirects. The kernel does if C(all) or the interface says so.
        V(false) is therefore kept on C(all), C(default) and the O(interfaces), or every interface if
        none is given; V(true) on C(all). Not given, it is left alone.
      - V(false) is right for a proxy in the same subnet as servers and router. A single redirect
        makes a server bypass the proxy for one client for five minutes.
    type: bool
  rp_filter:
    description:
      - Reverse path filter of the O(interfaces), or of every interface if none is given, V(0) off,
        V(1) strict, V(2) loose, in IPv4. What counts is the greater one of C(all) and the
        interface's own. Not given, it is left alone.
      - V(1) does the proxy no harm as long as the route to each client and server leaves through
        the interface that its packets come in at. Where it does not, V(2) is right.
      - With O(interfaces), a value lower than that of C(all) is refused, because C(all) protects
        the other interfaces too.
      - One of the O(interfaces) that comes later gets the value from udev, whose rule of systemd
        runs C(systemd-sysctl) for every new interface. Where there is no udev, as in containers,
        it gets the value from O(guard), or from the next run.
    type: int
    choices: [0, 1, 2]
  guard:
    description:
      - Whether C(tproxy-host-guard.service) is written, which looks every few seconds whether
        anything is missing, and puts it back within 10 seconds, without Ansible. For hosts on which
        somebody or something flushes the whole firewall, which sends no event. The role
        P(clearproxy.haproxy.tproxy_host#role) enables the service.
      - Its log has one line for each repair. After C(tproxy-host stop) it keeps its hands off until
        C(tproxy-host start).
    type: bool
    default: false
  intercepts:
    description:
      - TCP connections that pass through this host and that HAProxy shall get, whatever address they
        are for, one entry for each port of HAProxy. Nothing is renumbered for it; but both what
        clients send and what servers answer must pass through this host.
      - HAProxy listens with C(bind :TO_PORT transparent) (IPv6 C(bind [::]:TO_PORT v6only
        transparent)); its server C(0.0.0.0) or C([::]) is the address that the client wanted.
      - Rules with the C(TPROXY) target stand behind those for sockets. What is addressed to this
        host itself is never caught. Of several entries the first that matches wins.
      - While HAProxy does not listen, what would be caught is dropped. Connections that pass
        untouched when the rules come are reset, because HAProxy does not know them.
      - Where clients come in at a bridge, C(net.bridge.bridge-nf-call-iptables) and
        C(bridge-nf-call-ip6tables) must be 0 (O(sysctls)). The kernel forgets a caught packet's
        socket otherwise. This is refused if O(intercepts[].interfaces) names the bridge, else
        warned about.
    type: list
    elements: dict
    default: []
    suboptions:
      ports:
        description: Destination ports to catch, 1 to 65535, or ranges like V(8000-8010).
        type: list
        elements: str
        required: true
        aliases: [port]
      to_port:
        description: Where HAProxy listens, 1 to 65535, none of the caught ports.
        type: int
        required: true
      protocol:
        description: The transport protocol. HAProxy proxies nothing else this way.
        type: str
        choices: [tcp]
        default: tcp
      families:
        description:
          - The address families to catch, out of O(families); these if not given, or those
            of them that O(intercepts[].destinations) and O(intercepts[].sources) have.
        type: list
        elements: str
        choices: [ipv4, ipv6]
      destinations:
        description: Networks or addresses; only connections to them are caught. Empty means any.
        type: list
        elements: str
        default: []
      sources:
        description: Networks or addresses; only connections from them are caught. Empty means any.
        type: list
        elements: str
        default: []
      interfaces:
        description:
          - Only connections that come in at these interfaces are caught, best the client-facing
            ones. Empty means any; the rules of all O(interfaces) are then for any interface too.
        type: list
        elements: str
        default: []
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
  - Needs C(ip) (iproute2), the O(firewall)'s program (C(iptables) or C(nft)) and, for the kernel probe, C(unshare) (util-linux).
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

- name: Let HAProxy have the web traffic to one of the servers behind this host, whoever it comes from
  clearproxy.haproxy.tproxy_rules:
    interfaces: [eth1]
    intercepts:
      - ports: [80, 8080]
        to_port: 3129
        destinations: [10.81.1.11, "fd81:1::11"]
        interfaces: [eth0]

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

import contextlib
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_arguments import RULES
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import Desired
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_host import Host
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_plan import plan_host
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_result import carry_out


def run(options: dict[str, t.Any], *, check_mode: bool) -> dict[str, t.Any]:
    present = options["state"] == "present"
    host = Host(missing_programs_ok=check_mode or not present)
    described = host.settled(Desired.from_options(options))
    desired = described if present else None
    with contextlib.nullcontext() if check_mode else host.alone():
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
        argument_spec=RULES,
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
