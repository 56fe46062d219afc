#!/usr/bin/python
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_info
short_description: Read what a running HAProxy has and does
version_added: 0.1.0
description:
  - Reads HAProxy's state through its admin socket and returns it as data, in which numbers are
    numbers. Nothing is changed.
  - Only what O(gather) names is asked for, in one conversation with each HAProxy.
extends_documentation_fragment:
  - clearproxy.haproxy._attributes
  - clearproxy.haproxy._socket
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  platform:
    platforms: posix
    support: full
options:
  gather:
    description:
      - What to read. Each is a return value of the same name.
      - V(stats), V(stick_tables), V(sessions), V(maps) and V(acls) may be large; the first of them
        has a row of about 200 values for each server.
      - V(stick_tables), V(sessions), V(errors) and V(certificates) need a socket of C(level
        operator). V(maps) and V(acls) need C(level admin) with HAProxy 3.4. If one of those is
        named and the level is lower, the task fails.
      - V(all) alone means everything that the socket's level allows. RV(omitted) names the rest.
    type: list
    elements: str
    choices:
      - all
      - process
      - backends
      - frontends
      - servers
      - stats
      - stick_tables
      - sessions
      - errors
      - certificates
      - maps
      - acls
      - peers
      - resolvers
    default:
      - process
      - backends
      - frontends
      - servers
  backend:
    description:
      - Names of backends, or patterns with V(*), V(?) and V([…]), that RV(backends), RV(servers),
        RV(stats), RV(sessions) and RV(errors) are limited to. Each must match at least one.
      - A name that exists wins over its meaning as a pattern. HAProxy's numbers, such as C(#3), are
        not taken here. If not given, all.
    type: list
    elements: str
    aliases:
      - backends
  server:
    description:
      - Names or patterns of servers, likewise, that RV(servers), RV(stats) and RV(sessions) are
        limited to. Each must match a server of the chosen backends. RV(stats) then has rows of
        servers only.
    type: list
    elements: str
    aliases:
      - servers
notes:
  - Works with sockets of C(level user), HAProxy 2.2 and later; tested with 2.2, 2.6, 3.0, 3.2 and
    3.4.
  - Private keys are never read.
  - Each return value is a list over all sockets, and each of its records says which one it is from.
seealso:
  - module: clearproxy.haproxy.haproxy_command
  - ref: ansible_collections.clearproxy.haproxy.docsite.runtime_api_coverage
    description: Which module serves which command.
author:
  - The clearproxy.haproxy contributors (@clearproxy)
"""

EXAMPLES = r"""
---
- name: Read the process, the frontends, the backends and their servers
  clearproxy.haproxy.haproxy_info:
  register: haproxy

- name: Say which servers get no new clients
  ansible.builtin.debug:
    msg: "{{ haproxy.servers | rejectattr('usable') | map(attribute='name') | list }}"

- name: Read who is drained in one backend, at both load balancers
  clearproxy.haproxy.haproxy_info:
    socket:
      - tls://lb1.example.org:9999
      - tls://lb2.example.org:9999
    gather: [servers]
    backend: app

- name: Read the statistics of all canaries
  clearproxy.haproxy.haproxy_info:
    gather: [stats]
    backend: app
    server: "canary*"

- name: Read the certificates, and when they end
  clearproxy.haproxy.haproxy_info:
    gather: [certificates]
  register: haproxy

- name: Read everything that this socket allows
  clearproxy.haproxy.haproxy_info:
    socket: /run/haproxy/user.sock
    gather: all
  register: haproxy
"""

RETURN = r"""
process:
  description:
    - What C(show info) tells of each process, by HAProxy's own names, which depend on its version.
      C(Stopping) and C(BusyPolling) are booleans; what HAProxy leaves empty is V(null).
  returned: when gathered
  type: list
  elements: dict
  sample:
    - socket: /run/haproxy/admin.sock
      Name: HAProxy
      Version: 3.2.26-1
      Pid: 812
      Uptime_sec: 86400
      Maxconn: 20000
      CurrConns: 17
      Stopping: false
backends:
  description: The backends, sections C(listen) included, in HAProxy's order.
  returned: when gathered
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    name:
      description: Name of the backend.
      type: str
      sample: app
    id:
      description: HAProxy's number of the backend; V(null) if it is disabled.
      type: int
      sample: 3
    disabled:
      description: Whether the configuration disables it. HAProxy tells nothing else of it then,
        and the other values are V(null).
      type: bool
      sample: false
    up:
      description: Whether it has a server that is up.
      type: bool
      sample: true
    published:
      description: Whether it takes traffic; V(null) before HAProxy 3.4, which can unpublish backends.
      type: bool
      sample: true
    mode:
      description: The mode, such as V(http) and V(tcp).
      type: str
      sample: http
    balance:
      description: The load balancing algorithm; V(null) where the socket's level hides it.
      type: str
      sample: roundrobin
    cookie:
      description: Name of the cookie that ties clients to servers; V(null) without one, and where
        the socket's level hides it.
      type: str
      sample: SESSION_COOKIE
    weight:
      description: Weight of all its usable servers.
      type: int
      sample: 200
    active_servers:
      description: Active servers that are usable.
      type: int
      sample: 2
    backup_servers:
      description: Backup servers that are usable.
      type: int
      sample: 0
    streams:
      description: Current streams.
      type: int
      sample: 17
    queued:
      description: Requests that wait for a server.
      type: int
      sample: 0
    sessions:
      description: Sessions since the start, or since the counters were cleared.
      type: int
      sample: 4711
    bytes_in:
      description: Bytes from clients, likewise.
      type: int
      sample: 123456
    bytes_out:
      description: Bytes to clients, likewise.
      type: int
      sample: 7654321
    last_change:
      description: Seconds since it last went up or down.
      type: int
      sample: 3600
frontends:
  description: The frontends, sections C(listen) included, in HAProxy's order. HAProxy 2.2 does not
    list those that were shut down.
  returned: when gathered
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    name:
      description: Name of the frontend.
      type: str
      sample: www
    id:
      description: HAProxy's number of the frontend.
      type: int
      sample: 2
    state:
      description: V(enabled), V(disabled) or V(shutdown).
      type: str
      sample: enabled
    maxconn:
      description: How many connections it takes at a time; V(null) if it was shut down.
      type: int
      sample: 2000
    connections:
      description: Connections it has.
      type: int
      sample: 17
    rate:
      description: New sessions in the last second.
      type: int
      sample: 3
    rate_limit:
      description: How many new sessions a second the configuration allows; V(0) means any number.
      type: int
      sample: 0
servers:
  description:
    - The servers, in the shape in which M(clearproxy.haproxy.haproxy_server) returns them. C(maxconn)
      is V(null) unless V(stats) is gathered by the same task; C(streams) and what else is only
      known to a task that waits is not there.
  returned: when gathered
  type: list
  elements: dict
  sample:
    - socket: /run/haproxy/admin.sock
      backend: app
      name: web1
      address: 192.0.2.11
      port: 80
      state: ready
      usable: true
      weight: 100
stats:
  description:
    - What C(show stat) tells, by HAProxy's own names, which depend on its version. C(type)
      is V(frontend), V(backend), V(server) or V(listener). What HAProxy leaves empty, or hides
      from the socket's level, is V(null).
  returned: when gathered
  type: list
  elements: dict
  sample:
    - socket: /run/haproxy/admin.sock
      pxname: app
      svname: web1
      type: server
      status: UP
      scur: 3
      bin: 123456
stick_tables:
  description: The stick tables with their entries.
  returned: when gathered
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    name:
      description: Name of the table, which is that of its section.
      type: str
      sample: app
    type:
      description: Type of its keys.
      type: str
      sample: ip
    size:
      description: How many entries it can hold.
      type: int
      sample: 102400
    used:
      description: How many entries it holds.
      type: int
      sample: 1
    entries:
      description: The entries.
      type: list
      elements: dict
      contains:
        key:
          description: The key.
          type: str
          sample: 192.0.2.7
        use:
          description: How many streams hold the entry.
          type: int
          sample: 0
        expires:
          description: Milliseconds until it is forgotten; V(0) if it does not expire.
          type: int
          sample: 3599999
        data:
          description: What is stored with it, by HAProxy's own names.
          type: dict
          sample: {server_id: 1, conn_rate: 3}
        periods:
          description: Milliseconds over which those that are rates are measured.
          type: dict
          sample: {conn_rate: 10000}
sessions:
  description: The streams that HAProxy handles, except those of its own sockets.
  returned: when gathered
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    id:
      description: What C(shutdown session) calls it.
      type: str
      sample: "0x7f154a08d400"
    protocol:
      description: How the client is connected; V(null) for streams without one, such as those to
        peers.
      type: str
      sample: tcpv4
    source:
      description: Address of the client.
      type: str
      sample: 192.0.2.7:40544
    frontend:
      description: Name of the frontend.
      type: str
      sample: www
    backend:
      description: Name of the backend; V(null) if none is chosen yet.
      type: str
      sample: app
    server:
      description: Name of the server; V(null) if none is chosen yet.
      type: str
      sample: web1
    age:
      description: Seconds since it began, in HAProxy's rounding.
      type: int
      sample: 58
    expires:
      description: Seconds until its next timeout, in HAProxy's rounding; V(null) if none is set.
      type: int
      sample: 30
errors:
  description: The last invalid request and response of each proxy.
  returned: when gathered
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    time:
      description: When it happened, in HAProxy's form and time zone.
      type: str
      sample: 23/Nov/2026:13:42:05.264
    problem:
      description: What it is.
      type: str
      sample: invalid request
    event:
      description: Number of the event.
      type: int
      sample: 0
    source:
      description: Address of the client.
      type: str
      sample: 192.0.2.7:43628
    frontend:
      description: Name of the frontend.
      type: str
      sample: www
    backend:
      description: Name of the backend; V(null) if none was chosen yet.
      type: str
      sample: null
    server:
      description: Name of the server; V(null) if none was chosen yet.
      type: str
      sample: null
    lines:
      description: The details, with what was captured.
      type: list
      elements: str
certificates:
  description: The certificates that HAProxy has loaded, without their keys.
  returned: when gathered
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    name:
      description: HAProxy's name of it, which is the path that it was loaded from.
      type: str
      sample: /etc/haproxy/certs/site.pem
    pending:
      description: Whether a transaction about it is neither committed nor aborted.
      type: bool
      sample: false
    status:
      description: V(Used), V(Unused), V(Empty) or V(Uncommitted).
      type: str
      sample: Used
    fingerprint:
      description: SHA-1 of the certificate, the first if there is a chain.
      type: str
      sample: 2508AF1350AE98BE560E5D38B8C5DDC76F45B018
    not_after:
      description: When it ends.
      type: str
      sample: "2027-02-21T13:40:36Z"
    subject:
      description: Whose it is.
      type: str
      sample: /CN=www.example.org
    issuer:
      description: Who issued it.
      type: str
      sample: /CN=Example Authority
    serial:
      description: Its number at the issuer, hexadecimal.
      type: str
      sample: 607508B5418B51B876206A8824A91CB5ED913F5A
    algorithm:
      description: Algorithm and size of its key.
      type: str
      sample: RSA2048
    alternative_names:
      description: The names that it is valid for.
      type: list
      elements: str
      sample:
        - DNS:www.example.org
maps:
  description: The maps with their entries.
  returned: when gathered
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    id:
      description: HAProxy's number of it.
      type: int
      sample: 0
    name:
      description: The path that it was loaded from; V(null) if it has none.
      type: str
      sample: /etc/haproxy/hosts.map
    entries:
      description: Its entries, in HAProxy's order.
      type: list
      elements: dict
      sample:
        - key: www.example.org
          value: app
acls:
  description: The ACLs with their patterns, those of the configuration itself included.
  returned: when gathered
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    id:
      description: HAProxy's number of it.
      type: int
      sample: 1
    name:
      description: The path that it was loaded from; V(null) if its patterns are in the configuration.
      type: str
      sample: /etc/haproxy/blocked.acl
    entries:
      description: Its patterns, in HAProxy's order.
      type: list
      elements: str
      sample:
        - 192.0.2.0/24
peers:
  description: The sections C(peers).
  returned: when gathered
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    name:
      description: Name of the section.
      type: str
      sample: mypeers
    disabled:
      description: Whether it is disabled.
      type: bool
      sample: false
    peers:
      description: The peers, in HAProxy's order.
      type: list
      elements: dict
      contains:
        name:
          description: Name of the peer.
          type: str
          sample: lb2
        local:
          description: Whether it is this HAProxy itself.
          type: bool
          sample: false
        active:
          description: Whether there is a connection to it, or an attempt at one.
          type: bool
          sample: true
        address:
          description: Where it listens.
          type: str
          sample: 192.0.2.2:1024
        last_status:
          description: HAProxy's word for the connection, such as V(ESTA) for established and V(CONN)
            for connecting.
          type: str
          sample: ESTA
        app_state:
          description: HAProxy's word for the conversation, since 3.0; otherwise V(null).
          type: str
          sample: RUNNING
        learn_state:
          description: HAProxy's word for learning entries from it, since 3.0; otherwise V(null).
          type: str
          sample: NOTASSIGNED
        new_conn:
          description: Connections made so far.
          type: int
          sample: 1
        proto_err:
          description: Violations of the protocol so far.
          type: int
          sample: 0
        tables:
          description: Names of the stick tables that are shared with it.
          type: list
          elements: str
          sample:
            - app
resolvers:
  description: The sections C(resolvers).
  returned: when gathered
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    name:
      description: Name of the section.
      type: str
      sample: dns
    nameservers:
      description: The name servers, in HAProxy's order.
      type: list
      elements: dict
      contains:
        name:
          description: Name of the name server.
          type: str
          sample: dns1
        counters:
          description: Its counters, by HAProxy's own names.
          type: dict
          sample: {sent: 15, valid: 15, timeout: 0}
omitted:
  description: What O(gather=all) could not read, with the reason.
  returned: success
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
    subset:
      description: The value of O(gather).
      type: str
    reason:
      description: Why it is not there.
      type: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clearproxy.haproxy.plugins.module_utils._argspec import (
    clients_from,
    socket_spec,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._info_operation import (
    ALL,
    DEFAULT,
    SUBSETS,
    Wanted,
    gather,
)


def argument_spec() -> dict[str, t.Any]:
    return {
        **socket_spec(),
        "gather": {
            "type": "list",
            "elements": "str",
            "choices": [ALL, *SUBSETS],
            "default": DEFAULT,
        },
        "backend": {"type": "list", "elements": "str", "aliases": ["backends"]},
        "server": {"type": "list", "elements": "str", "aliases": ["servers"]},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        wanted = Wanted.from_params(module.params)
        with clients_from(module.params) as clients:
            found = gather(clients, wanted)
    except Error as exc:
        module.fail_json(msg=str(exc), **exc.details)
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
