#!/usr/bin/python
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: tproxy_info
short_description: Whether a host is a transparent proxy, and if not, why
version_added: 0.1.0
author: The clearproxy.haproxy contributors (@clearproxy)
description:
  - Looks at everything that HAProxy's C(source … usesrc) needs on the proxy host and returns it as
    named checks, each with what was observed, what was expected and what to do about it.
  - Changes nothing. What cannot be read is V(unknown), with the reason.
  - What the servers do with their answers cannot be seen from the proxy, except by O(probe).
extends_documentation_fragment: [clearproxy.haproxy._attributes]
options:
  rules:
    description:
      - The options of M(clearproxy.haproxy.tproxy_rules) to compare the host with, as they were given
        to that module; what is not among them has that module's default.
      - Not given, the host is compared with the record that the module left, or with its defaults
        where it never ran.
    type: dict
    suboptions:
      state:
        description: Is ignored.
        type: str
        choices: [present, absent]
        default: present
      firewall:
        description: See O(clearproxy.haproxy.tproxy_rules#module:firewall).
        type: str
        choices: [iptables, iptables-nft, iptables-legacy, nftables, auto]
        default: iptables
      families:
        description: See O(clearproxy.haproxy.tproxy_rules#module:families).
        type: list
        elements: str
        choices: [ipv4, ipv6]
        default: [ipv4, ipv6]
      mark:
        description: See O(clearproxy.haproxy.tproxy_rules#module:mark).
        type: str
        default: '0x1'
      mask:
        description: See O(clearproxy.haproxy.tproxy_rules#module:mask).
        type: str
        default: '0x1'
      table:
        description: See O(clearproxy.haproxy.tproxy_rules#module:table).
        type: int
        default: 100
      table_name:
        description: See O(clearproxy.haproxy.tproxy_rules#module:table_name).
        type: str
        default: haproxy_tproxy
      rule_priority:
        description: See O(clearproxy.haproxy.tproxy_rules#module:rule_priority).
        type: int
        default: 100
      chain:
        description: See O(clearproxy.haproxy.tproxy_rules#module:chain).
        type: str
        default: DIVERT
      nft_table:
        description: See O(clearproxy.haproxy.tproxy_rules#module:nft_table).
        type: str
        default: haproxy_tproxy
      position:
        description: See O(clearproxy.haproxy.tproxy_rules#module:position).
        type: str
        choices: [first, last]
        default: first
      socket_match:
        description: See O(clearproxy.haproxy.tproxy_rules#module:socket_match).
        type: str
        choices: [transparent, any]
        default: transparent
      icmp:
        description: See O(clearproxy.haproxy.tproxy_rules#module:icmp).
        type: bool
        default: true
      guard_rule:
        description: See O(clearproxy.haproxy.tproxy_rules#module:guard_rule).
        type: bool
        default: true
      rule_protocol:
        description: See O(clearproxy.haproxy.tproxy_rules#module:rule_protocol).
        type: str
        choices: [kernel, boot, static]
        default: kernel
      interfaces:
        description: See O(clearproxy.haproxy.tproxy_rules#module:interfaces).
        type: list
        elements: str
        default: []
      forwarding:
        description: See O(clearproxy.haproxy.tproxy_rules#module:forwarding).
        type: bool
      send_redirects:
        description: See O(clearproxy.haproxy.tproxy_rules#module:send_redirects).
        type: bool
      rp_filter:
        description: See O(clearproxy.haproxy.tproxy_rules#module:rp_filter).
        type: int
        choices: [0, 1, 2]
      guard:
        description: See O(clearproxy.haproxy.tproxy_rules#module:guard).
        type: bool
        default: false
      intercepts:
        description: See O(clearproxy.haproxy.tproxy_rules#module:intercepts).
        type: list
        elements: dict
        default: []
        suboptions:
          ports:
            description: See O(clearproxy.haproxy.tproxy_rules#module:intercepts[].ports).
            type: list
            elements: str
            required: true
            aliases: [port]
          to_port:
            description: See O(clearproxy.haproxy.tproxy_rules#module:intercepts[].to_port).
            type: int
            required: true
          protocol:
            description: See O(clearproxy.haproxy.tproxy_rules#module:intercepts[].protocol).
            type: str
            choices: [tcp]
            default: tcp
          families:
            description: See O(clearproxy.haproxy.tproxy_rules#module:intercepts[].families).
            type: list
            elements: str
            choices: [ipv4, ipv6]
          destinations:
            description: See O(clearproxy.haproxy.tproxy_rules#module:intercepts[].destinations).
            type: list
            elements: str
            default: []
          sources:
            description: See O(clearproxy.haproxy.tproxy_rules#module:intercepts[].sources).
            type: list
            elements: str
            default: []
          interfaces:
            description: See O(clearproxy.haproxy.tproxy_rules#module:intercepts[].interfaces).
            type: list
            elements: str
            default: []
      sysctls:
        description: See O(clearproxy.haproxy.tproxy_rules#module:sysctls).
        type: dict
        default: {}
  gather:
    description:
      - The groups of checks to make. V(kernel), V(rules) and V(boot) fit a host on which HAProxy is
        not installed yet.
    type: list
    elements: str
    choices: [kernel, rules, filters, haproxy, boot, limits]
    default: [kernel, rules, filters, haproxy, boot, limits]
  haproxy:
    description:
      - HAProxy's binary. Not given, the one that runs, or else the first C(haproxy) in the usual
        directories.
    type: path
  config:
    description:
      - HAProxy's configuration, files or directories in HAProxy's order. Not given, that of the
        running process, or else C(/etc/haproxy/haproxy.cfg).
    type: list
    elements: path
  pid_file:
    description:
      - The file with the process number of the HAProxy that is meant. Cannot be combined with
        O(service).
    type: path
  service:
    description:
      - The systemd unit of the HAProxy that is meant. Not given, C(haproxy.service) where it runs, or
        else every HAProxy in this network namespace.
    type: str
  probe:
    description:
      - Connects to servers from foreign addresses, as HAProxy does with C(usesrc clientip), and says
        where a packet died that did not come back. V({}) probes every server of the configuration.
    type: dict
    suboptions:
      servers:
        description: The servers to connect to; not given, those of the transparent backends.
        type: list
        elements: dict
        suboptions:
          address:
            description:
              - An IPv4 or IPv6 address, or a host name, which stands for its first address of each
                family.
            type: str
            required: true
          port:
            description: A TCP port on which the server answers, 1 to 65535.
            type: int
            required: true
      source:
        description:
          - Foreign addresses to connect from. Not given, addresses that are reserved for
            documentation (RFC 5737, RFC 3849).
          - The group V(filters) looks rules of others up for the first of each family.
        type: list
        elements: str
        default: []
      timeout:
        description:
          - Seconds for one connection, 0.1 to 60. A dead path takes up to three times that, to find
            out why.
        type: float
        default: 3
      payload:
        description:
          - What to send over the connection, to see that large packets pass too. V(http) is a request
            of 6000 bytes, V(none) sends nothing, any other text is sent as it is. The answer is not
            looked at.
        type: str
        default: http
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  platform:
    support: full
    platforms: linux
notes:
  - Must run as root, in the network namespace that HAProxy uses. Otherwise much is V(unknown).
  - "The checks, by group, and what to do about each."
  - "V(transparent_socket) (kernel): A socket can take an address that this host does not have
    (C(IP_TRANSPARENT), C(IPV6_TRANSPARENT)). Otherwise boot a kernel that has it; a container
    needs the capability C(NET_ADMIN)."
  - "V(kernel_support) (kernel): The very rules and routes load in a scratch network namespace.
    Otherwise use a kernel, and firewall programs, that have what is missing."
  - "V(interface) (rules): The O(rules) name interfaces that exist and at which packets come in,
    so no ports of a bridge or bond. Otherwise give the interfaces' right names."
  - "V(mark) (rules): Diverted packets get the wanted mark, and nobody else uses its bits.
    Otherwise run M(clearproxy.haproxy.tproxy_rules) again, or choose a mark and mask of other
    bits."
  - "V(divert_chain) (rules): The chain that marks packets is there and holds nothing else.
    Otherwise run M(clearproxy.haproxy.tproxy_rules) again."
  - "V(divert_jump) (rules): TCP packets of transparent sockets are led to the mark, once,
    before rules of others. Otherwise run M(clearproxy.haproxy.tproxy_rules) again, and find
    what flushes or reorders the firewall."
  - "V(divert_icmp) (rules): ICMP errors about such connections are too; without them, large
    requests hang where a path has a smaller MTU. Otherwise run
    M(clearproxy.haproxy.tproxy_rules) again."
  - "V(intercept) (rules): The rules that catch ports for any destination are there. Otherwise
    run M(clearproxy.haproxy.tproxy_rules) again."
  - "V(ip_rule) (rules): The policy routing rules lead marked packets to the table. Otherwise
    run M(clearproxy.haproxy.tproxy_rules) again, and find what removes rules."
  - "V(guard_rule) (rules): The rule that keeps what this host itself sends out of the table is
    there. Otherwise run M(clearproxy.haproxy.tproxy_rules) again."
  - "V(ip_rule_order) (rules): No rule of others, of a VPN for example, takes marked answers
    away before ours. The kernel is asked for every server. Otherwise choose a C(rule_priority)
    below theirs."
  - "V(local_route) (rules): The table delivers everything to this host, and nobody else uses
    it. Otherwise run M(clearproxy.haproxy.tproxy_rules) again, or choose another table."
  - "V(forwarding) (rules): Forwarding is as wanted. Transparency does not need it; servers do
    whose gateway is this host. Otherwise run M(clearproxy.haproxy.tproxy_rules) again."
  - "V(send_redirects) (rules): No redirects are sent where it was not wanted, or where servers
    and router are at one interface. One makes a server bypass the proxy for five minutes.
    Otherwise run M(clearproxy.haproxy.tproxy_rules) with C(send_redirects=false)."
  - "V(rp_filter) (rules): The effective source validation is as wanted, and not strict where
    answers come in at another interface than the one to the servers. Servers at other
    interfaces than the wanted ones only show where C(interfaces) are given. Otherwise set it to
    2 at the interface, or correct the routes."
  - "V(src_valid_mark) (rules): Source validation does not look at the mark, as VPNs have it, or
    the rules are bound to interfaces or guarded. Otherwise give C(interfaces), or
    C(guard_rule=true)."
  - "V(tcp_fwmark_accept) (rules): Accepted connections do not take the mark over, or the rules
    are bound to interfaces or guarded. Otherwise give C(interfaces), or C(guard_rule=true)."
  - "V(accept_ra) (rules): Interfaces that use router advertisements keep them although IPv6 is
    forwarded. Otherwise run M(clearproxy.haproxy.tproxy_rules) again."
  - "V(sysctl) (rules): Other wanted sysctls have their values. Otherwise run
    M(clearproxy.haproxy.tproxy_rules) again."
  - "V(other_rules) (rules): Nothing else differs, like rules of ours in a firewall backend that
    is no longer wanted. Otherwise run M(clearproxy.haproxy.tproxy_rules) again."
  - "V(prerouting_filter) (filters): No rule of others drops the servers' answers as they come
    in. Otherwise accept packets with our mark before it, or bind or guard the rules."
  - "V(input_filter) (filters): The input filter accepts the answers, whose destination is the
    client's address. Otherwise accept packets with our mark before the rule."
  - "V(notrack) (filters): Connections to servers are tracked in both directions, or the input
    filter does not mind. Otherwise accept packets with our mark in the input filter."
  - "V(output_filter) (filters): No rule drops what leaves with a client's address. Otherwise
    exempt what HAProxy sends to servers."
  - "V(masquerade) (filters): No rule hides the client from the servers. Rules for certain
    sources only, as for containers, do not count, unless O(probe.source) is one of them.
    Otherwise exempt what HAProxy sends to servers."
  - "V(haproxy_binary) (haproxy): HAProxy is there and was built with C(USE_LINUX_TPROXY).
    Otherwise install or build such a HAProxy."
  - "V(haproxy_running) (haproxy): It runs, in this network namespace. Otherwise start it and
    read its log."
  - "V(worker_capability) (haproxy): Every worker has C(CAP_NET_RAW) or C(CAP_NET_ADMIN).
    Without, clients get 503 at once. Otherwise C(setcap cap_net_raw) from HAProxy 3.0 on,
    before that an ambient capability or root."
  - "V(old_workers) (haproxy): No process of an earlier generation accepts connections any more.
    Otherwise end it, and keep C(CAP_KILL) in the unit's bounding set."
  - "V(config_usesrc) (haproxy): At least one backend has C(source … usesrc). Otherwise add it
    to the backends."
  - "V(config_source) (haproxy): No server of a transparent backend has a source of its own
    without C(usesrc), which would take precedence. Otherwise remove it."
  - "V(config_families) (haproxy): Servers, their source and their clients are of one address
    family. Otherwise make one backend for each family."
  - "V(config_user) (haproxy): HAProxy can start as the configured user; C(haproxy -c) does not
    know. Otherwise C(setcap cap_net_raw) from HAProxy 3.0 on, C(user root) or no C(user)
    before, and none in a unit with C(User=)."
  - "V(families) (haproxy): The rules cover every family that transparent servers have.
    Otherwise run M(clearproxy.haproxy.tproxy_rules) with both families."
  - "V(boot_files) (boot): The files from which the rules are restored at boot are ours and
    complete. Otherwise run M(clearproxy.haproxy.tproxy_rules) again."
  - "V(record) (boot): What the module remembers is there. Otherwise run
    M(clearproxy.haproxy.tproxy_rules) again."
  - "V(unit_enabled) (boot): The unit that restores the rules at boot is enabled, and the guard's
    where there shall be one. Otherwise C(systemctl enable tproxy-host.service)."
  - "V(unit_active) (boot): They are active. Otherwise restart what is not, and read its log."
  - "V(firewall_reload) (boot): The rules are in no tables that firewalld up to 1.x empties when
    C(firewall-cmd --reload) is run, which systemd is not told of, or the guard puts them back.
    Otherwise run M(clearproxy.haproxy.tproxy_rules) with C(guard=true) or
    C(firewall=nftables)."
  - "V(free_ports) (limits): The client with the most connections to one server has used less
    than 90 % of its ports. Otherwise widen C(net.ipv4.ip_local_port_range), or reuse
    connections."
  - "V(conntrack_table) (limits): Less than 95 % of the table of tracked connections is in use.
    Otherwise raise C(net.netfilter.nf_conntrack_max)."
  - "V(probe) (probe): A connection from a foreign address reaches the server and its answer
    comes back; otherwise RV(checks[].observed) begins with the hop where it died. Otherwise
    RV(checks[].remedy) says it for the hop."
seealso:
  - module: clearproxy.haproxy.tproxy_rules
"""

EXAMPLES = r"""
---
- name: Is this host a transparent proxy?
  clearproxy.haproxy.tproxy_info:
  register: transparency

- name: Say what is in the way
  ansible.builtin.debug:
    msg: "{{ item.name }} {{ item.family }} {{ item.subject }}: {{ item.observed }}. {{ item.remedy }}"
  loop: "{{ transparency.checks | selectattr('status', 'eq', 'failed') }}"
  loop_control:
    label: "{{ item.name }}"

- name: Is a host fit, before HAProxy is installed?
  clearproxy.haproxy.tproxy_info:
    gather: [kernel]

- name: Compare with the wanted options instead of the recorded ones
  clearproxy.haproxy.tproxy_info:
    rules:
      interfaces: [eth1]
      forwarding: true
      send_redirects: false

- name: Connect to two servers from an address that is nobody's
  clearproxy.haproxy.tproxy_info:
    gather: []
    probe:
      servers:
        - {address: 10.81.1.11, port: 80}
        - {address: "fd81:1::11", port: 80}
      source: [192.0.2.77, "2001:db8::77"]
  register: probed
  failed_when: not probed.transparent
"""

RETURN = r"""
checks:
  description: What was looked at, always in the same order.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The check's name, one of those listed in the notes.
      type: str
      sample: ip_rule
    family:
      description: The address family, V(ipv4) or V(ipv6); empty if the check is about both or neither.
      type: str
      sample: ipv4
    subject:
      description: The interface, server, rule, process or file that the check is about; may be empty.
      type: str
      sample: ipv4 rule 101
    status:
      description: V(ok), V(failed), or V(unknown) where it could not be looked at.
      type: str
      sample: failed
    observed:
      description: What was found, or why it could not be looked at.
      type: str
      sample: missing
    expected:
      description: What should have been found.
      type: str
      sample: priority 101 fwmark 0x1/0x1 lookup 100 protocol kernel
    remedy:
      description: What to do about it; empty unless the check failed.
      type: str
      sample: run tproxy_rules, or the role tproxy_host, again
failed_checks:
  description: The names of the checks that failed, each once.
  returned: success
  type: list
  elements: str
  sample: [ip_rule]
transparent:
  description:
    - Whether no check failed and none of those is unknown without which nothing is transparent.
    - It speaks of the checks that were made, so of those that O(gather) and O(probe) ask for.
  returned: success
  type: bool
unseen:
  description: What could not be looked at as a whole, like programs that are not installed.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_checks as checks
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_probe as probing
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error, InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_arguments import RULES
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_check import (
    UNKNOWN,
    Check,
    summary,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import Desired
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_haproxy import (
    Configuration,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_host import Host
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_snapshot import Record
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_survey import (
    Survey,
    Surveyor,
)


def run(options: dict[str, t.Any], *, check_mode: bool) -> dict[str, t.Any]:
    """Check mode is no different: nothing is ever changed."""
    host = Host(missing_programs_ok=True)
    surveyor = Surveyor(host)
    desired = _desired(options["rules"], host)
    probe = options["probe"]
    groups = options["gather"]
    survey = surveyor.survey(
        desired,
        haproxy_path=options["haproxy"],
        config=options["config"] or (),
        pid_file=options["pid_file"],
        service=options["service"],
        clients=(probe or {}).get("source") or (),
        groups=groups,
    )
    found = checks.checks_of(survey, surveyor.snapshot(desired), desired, groups)
    if probe is not None:
        found += _probed(probe, survey)
    return {"changed": False, **summary(found), "unseen": list(survey.unseen)}


def _probed(options: dict[str, t.Any], survey: Survey) -> list[Check]:
    servers = [(entry["address"], entry["port"]) for entry in options.get("servers") or ()]
    if not servers and isinstance(survey.configuration, Configuration):
        targets = survey.configuration.targets()
        servers = [(address, port) for _family, address, port in targets if port is not None]
    if not servers:
        reason = "no server is given, and the configuration has no transparent one with an address"
        return [Check("probe", UNKNOWN, observed=reason)]
    try:
        return checks.probed(
            probing.probe(
                servers,
                sources=options.get("source") or (),
                timeout=options.get("timeout", 3),
                payload=options.get("payload", "http"),
            )
        )
    except probing.ProbeInputError as exc:
        raise InputError(f"probe: {exc}", option="probe") from None


def _desired(rules: dict[str, t.Any] | None, host: Host) -> Desired:
    if rules is not None:
        return host.settled(Desired.from_options(rules))
    try:
        record = Record.load(host.file(render.RECORD))
    except Error:
        # Reading the host will say so.
        record = Record()
    return record.desired or host.settled(Desired())


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "rules": {"type": "dict", "options": RULES},
            "gather": {
                "type": "list",
                "elements": "str",
                "choices": ["kernel", "rules", "filters", "haproxy", "boot", "limits"],
                "default": ["kernel", "rules", "filters", "haproxy", "boot", "limits"],
            },
            "haproxy": {"type": "path"},
            "config": {"type": "list", "elements": "path"},
            "pid_file": {"type": "path"},
            "service": {"type": "str"},
            "probe": {
                "type": "dict",
                "options": {
                    "servers": {
                        "type": "list",
                        "elements": "dict",
                        "options": {
                            "address": {"type": "str", "required": True},
                            "port": {"type": "int", "required": True},
                        },
                    },
                    "source": {"type": "list", "elements": "str", "default": []},
                    "timeout": {"type": "float", "default": 3},
                    "payload": {"type": "str", "default": "http"},
                },
            },
        },
        mutually_exclusive=[("pid_file", "service")],
        supports_check_mode=True,
    )
    try:
        result = run(module.params, check_mode=module.check_mode)
    except Error as exc:
        module.fail_json(msg=str(exc), **exc.details)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
