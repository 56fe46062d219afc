#!/usr/bin/python
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_dynamic_server
short_description: Add servers to HAProxy's backends and delete them at run time
version_added: 0.1.0
description:
  - Adds a server to a backend of a running HAProxy, switches on its checks and puts it into load
    balancing; or takes a server out, waits until its sessions have ended, and deletes it.
  - An existing server is compared with the task in everything that HAProxy tells. What HAProxy can
    change at run time is changed; what it cannot change is refused, unless O(recreate=true).
  - If HAProxy refuses something after the server was added, the server is deleted again. If it
    refuses to delete a server, the server is set back to the state that it had.
extends_documentation_fragment:
  - clearproxy.haproxy._attributes
  - clearproxy.haproxy._socket
attributes:
  check_mode:
    support: full
    details:
      - Reads and checks everything that the real run does and returns the commands that would be
        sent. It does not wait, and does not predict C(shutdown sessions).
      - Keywords in O(options) are judged by HAProxy alone, when the server is added.
  diff_mode:
    support: full
    details:
      - Shows the settings that the task names, the administrative state, and what else changes when
        the server is recreated.
  idempotent:
    support: partial
    details:
      - HAProxy does not tell what became of O(options). They count when the server is added; a
        server that exists is not compared with them.
  platform:
    platforms: posix
    support: full
options:
  backend:
    description:
      - The backend of the server. It must have a dynamic load balancing algorithm, such as
        C(roundrobin), C(leastconn), C(random), or a hashing one with C(hash-type consistent).
        HAProxy tells C(static-rr) before, and refuses the other static ones when it is to add.
    type: str
    required: true
  name:
    description:
      - The name of the server.
      - HAProxy does not tell which servers were added at run time. One that its configuration
        defines is compared, changed and deleted just the same, and comes back with a reload.
    type: str
    required: true
  state:
    description:
      - Whether the server is to be there.
    type: str
    choices:
      - present
      - absent
    default: present
  address:
    description:
      - IPv4 or IPv6 address. Needed with O(state=present).
      - Names are refused, because HAProxy does not resolve them for servers that are added at run
        time.
    type: str
  port:
    description:
      - Port, from 1 to 65535.
      - A server that is added without one is connected to at the port that the client connected to.
      - A relative port of the configuration, as C(+10), is told like V(10) by HAProxy and taken for
        that.
    type: int
  weight:
    description:
      - The weight now, from 0 to 256; 1 if a server is added without one.
    type: int
  maxconn:
    description:
      - The most connections at a time, up to 2147483647; V(0) is no limit.
    type: int
  maxqueue:
    description:
      - The most requests that wait for the server, up to 2147483647; V(0) is no limit.
      - Differences need O(recreate=true).
    type: int
  id:
    description:
      - HAProxy's number of the server, from 1 to 2147483647; a free one if not given.
      - Differences need O(recreate=true).
    type: int
  cookie:
    description:
      - The value that stands for the server in persistence cookies. Since HAProxy 3.0.
      - Differences need O(recreate=true).
    type: str
  track:
    description:
      - The server whose health this one takes over, as C(backend/server), or C(server) for one of
        the same backend. It must be one of HAProxy's configuration.
      - Differences need O(recreate=true).
    type: str
  backup:
    description:
      - Whether the server is used only when all others are down.
      - Differences need O(recreate=true).
    type: bool
  ssl:
    description:
      - Whether HAProxy speaks TLS with the server. HAProxy wants C(verify none), or C(ca-file) with
        a file that it has loaded, in O(options) with it.
      - Differences need O(recreate=true).
    type: bool
  check:
    description:
      - Whether the server has health checks that are switched on. V(false) switches off those that
        it has; V(true) needs O(recreate=true) for a server that has none.
    type: bool
  check_port:
    description:
      - Port of health checks, from 1 to 65535; and of agent checks, when the server is added
        without O(agent_port).
      - HAProxy changes it only while health checks are on; otherwise differences need
        O(recreate=true).
    type: int
  check_address:
    description:
      - Address of health checks; and of agent checks, when the server is added without
        O(agent_address).
      - HAProxy changes it only while health checks are on, and HAProxy 3.4 not at all; otherwise
        differences need O(recreate=true).
    type: str
  agent_check:
    description:
      - Whether the server has agent checks that are switched on, as O(check) for health checks.
        A server that is added needs O(agent_port) with it.
    type: bool
  agent_port:
    description:
      - Port of agent checks, from 1 to 65535.
      - HAProxy changes it only while agent checks are on; otherwise differences need
        O(recreate=true).
    type: int
  agent_address:
    description:
      - Address of agent checks, likewise.
    type: str
  options:
    description:
      - More words for the server line, such as V([inter, 500ms, send-proxy]), one word an entry.
        Blanks and other special characters inside a word are escaped.
      - Keywords that have an option of their own in this module are refused. Which others there
        are, HAProxy 3.2 and later tell in reply to C(add server help).
      - They count only when the server is added, because HAProxy does not tell them afterwards.
        C(default-server) of the configuration does not count for servers added at run time.
    type: list
    elements: str
  admin_state:
    description:
      - The administrative state, V(ready), V(drain) or V(maint).
      - If not given, a server that is added becomes V(ready), and any other keeps its state.
    type: str
    choices:
      - ready
      - drain
      - maint
  recreate:
    description:
      - Whether to delete the server and add it again where it differs in something that HAProxy
        does not change at run time.
      - What the task does not name stays as far as HAProxy tells it. What became of the O(options)
        of before it does not tell, so name them again.
      - A server that speaks TLS is refused unless the task names O(ssl) or O(options). So is one
        with a fixed cookie before HAProxy 3.0, which cannot give it again.
      - The new server is first added under another name, in maintenance, and deleted again, so that
        one that HAProxy does not accept costs nothing.
    type: bool
    default: false
  wait:
    description:
      - Whether to wait before a server is deleted until it has no connections. HAProxy does not
        delete it before. Idle connections that HAProxy keeps for reuse do not count.
    type: bool
    default: true
  wait_timeout:
    description:
      - Seconds to wait before O(on_timeout) applies.
    type: float
    default: 300.0
  on_timeout:
    description:
      - What happens when O(wait_timeout) has passed, or at once with O(wait=false), and the server
        still has connections.
      - V(fail) fails and leaves the server in maintenance.
      - V(shutdown_sessions) ends the sessions that are left and deletes the server. It fails if
        that does not free the server within 5 s.
      - V(rollback) sets the server back to the state it had, and fails.
    type: str
    choices:
      - fail
      - shutdown_sessions
      - rollback
    default: fail
notes:
  - Needs a socket of C(level admin) and HAProxy 2.6 or later. Tested with 2.6, 3.0, 3.2 and 3.4.
  - Servers that were added are gone, and servers that were deleted are back, when HAProxy is
    reloaded.
  - HAProxy does not delete servers that others track, which is refused before anything is sent; or
    that its configuration names in C(use-server) or similar, which HAProxy tells only when it
    refuses.
  - Servers of backends that the configuration disables are refused.
  - A server that is deleted is put into maintenance before. With C(on-marked-down
    shutdown-sessions), HAProxy ends its sessions with that, without any waiting.
author:
  - The clearproxy.haproxy contributors (@clearproxy)
"""

EXAMPLES = r"""
---
- name: Add a server, with its health checks, and let it take clients
  clearproxy.haproxy.haproxy_dynamic_server:
    backend: app
    name: web3
    address: 192.0.2.13
    port: 80
    maxconn: 100
    check: true
    options: [inter, 500ms, slowstart, 10s]

- name: Add a server that speaks TLS, and keep it out of load balancing for now
  clearproxy.haproxy.haproxy_dynamic_server:
    backend: app
    name: web4
    address: 2001:db8::14
    port: 443
    ssl: true
    options: [verify, none]
    admin_state: maint

- name: Delete a server when its sessions have ended, and end those that last longer than a minute
  clearproxy.haproxy.haproxy_dynamic_server:
    backend: app
    name: web3
    state: absent
    wait_timeout: 60
    on_timeout: shutdown_sessions

- name: Give a server another cookie value, for which it has to be added anew (HAProxy 3.0)
  clearproxy.haproxy.haproxy_dynamic_server:
    backend: app
    name: web4
    address: 2001:db8::14
    port: 443
    ssl: true
    options: [verify, none]
    cookie: w4
    recreate: true
    wait_timeout: 30
    on_timeout: rollback
"""

RETURN = r"""
commands:
  description: The commands that changed something, in their order; in check mode those that would
    be sent.
  returned: always
  type: list
  elements: str
  sample:
    - add server app/web3 192.0.2.13:80 check
    - enable health app/web3
    - set server app/web3 state ready
servers:
  description:
    - The server at each socket after the task, in check mode as predicted, with everything that
      HAProxy tells of it under the names of the options. Empty with O(state=absent).
  returned: success
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    backend:
      description: Name of the backend.
      type: str
      sample: app
    name:
      description: Name of the server.
      type: str
      sample: web3
    address:
      description: IP address; V(null) for unresolved names and unix sockets of the configuration.
      type: str
      sample: 192.0.2.13
    port:
      description: Port; V(0) for the port that the client connected to.
      type: int
      sample: 80
    weight:
      description: The weight now.
      type: int
      sample: 1
    maxconn:
      description: The most connections at a time; V(0) is no limit.
      type: int
      sample: 100
    maxqueue:
      description: The most requests that wait for the server; V(0) is no limit.
      type: int
      sample: 0
    id:
      description: HAProxy's number of the server; in check mode V(null) where HAProxy would choose.
      type: int
      sample: 3
    cookie:
      description: The value in persistence cookies, or V(null).
      type: str
      sample: null
    track:
      description: The tracked server as C(backend/server), or V(null).
      type: str
      sample: null
    backup:
      description: Whether it is a backup server.
      type: bool
      sample: false
    ssl:
      description: Whether HAProxy speaks TLS with it.
      type: bool
      sample: false
    check:
      description: Whether health checks are switched on.
      type: bool
      sample: true
    check_port:
      description: Port of health checks if it is another one, or V(0).
      type: int
      sample: 0
    check_address:
      description: Address of health checks if it is another one, or V(null).
      type: str
      sample: null
    agent_check:
      description: Whether agent checks are switched on.
      type: bool
      sample: false
    agent_port:
      description: Port of agent checks, or V(0).
      type: int
      sample: 0
    agent_address:
      description: Address of agent checks if it is another one, or V(null).
      type: str
      sample: null
    admin_state:
      description: The administrative state, V(ready), V(drain) or V(maint).
      type: str
      sample: ready
    state:
      description: The same as RV(servers[].admin_state), as M(clearproxy.haproxy.haproxy_server)
        calls it.
      type: str
      sample: ready
    health_checks:
      description: The same as RV(servers[].check), likewise.
      type: bool
      sample: true
    agent_checks:
      description: The same as RV(servers[].agent_check), likewise.
      type: bool
      sample: false
differences:
  description: The settings that HAProxy does not change at run time.
  returned: when the task was refused because of them
  type: list
  elements: str
  sample:
    - cookie
waiting_for:
  description: The server that still had connections when the time was over.
  returned: when the wait was not successful
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
    backend:
      description: Name of the backend.
      type: str
    server:
      description: Name of the server.
      type: str
    reason:
      description: What it was still waiting for.
      type: str
refused:
  description: The commands that HAProxy refused, with its replies.
  returned: when HAProxy refused a command
  type: list
  elements: dict
  contains:
    command:
      description: What was sent.
      type: str
    reply:
      description: What HAProxy said.
      type: str
unknown:
  description: The commands that were sent but not answered, so that nobody knows whether they
    count.
  returned: when HAProxy went away in the middle
  type: list
  elements: str
not_sent:
  description: The commands that were not sent any more.
  returned: when HAProxy refused a command, or went away
  type: list
  elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clearproxy.haproxy.plugins.module_utils._argspec import (
    clients_from,
    socket_spec,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._dynamic_server import ServerJob
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import failure, run


def argument_spec() -> dict[str, t.Any]:
    return {
        **socket_spec(),
        "backend": {"type": "str", "required": True},
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "address": {"type": "str"},
        "port": {"type": "int"},
        "weight": {"type": "int"},
        "maxconn": {"type": "int"},
        "maxqueue": {"type": "int"},
        "id": {"type": "int"},
        "cookie": {"type": "str"},
        "track": {"type": "str"},
        "backup": {"type": "bool"},
        "ssl": {"type": "bool"},
        "check": {"type": "bool"},
        "check_port": {"type": "int"},
        "check_address": {"type": "str"},
        "agent_check": {"type": "bool"},
        "agent_port": {"type": "int"},
        "agent_address": {"type": "str"},
        "options": {"type": "list", "elements": "str"},
        "admin_state": {"type": "str", "choices": ["ready", "drain", "maint"]},
        "recreate": {"type": "bool", "default": False},
        "wait": {"type": "bool", "default": True},
        "wait_timeout": {"type": "float", "default": 300.0},
        "on_timeout": {
            "type": "str",
            "choices": ["fail", "shutdown_sessions", "rollback"],
            "default": "fail",
        },
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        job = ServerJob.from_params(module.params)
        with clients_from(module.params) as clients:
            outcome = run(clients, job, check=module.check_mode)
    except Error as exc:
        module.fail_json(**failure(exc))
    module.exit_json(**outcome.as_dict())


if __name__ == "__main__":
    main()
