#!/usr/bin/python
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_server
short_description: Set the state and weight of HAProxy's servers at run time
version_added: 0.1.0
description:
  - Takes servers of a running HAProxy out of load balancing and puts them back, and changes their
    weights, through HAProxy's admin socket.
  - All servers of a task are handled in one conversation. Names, values, permissions and limits are
    checked before the first command is sent; a command that HAProxy refuses fails the task.
  - The module compares with what HAProxy has, so nothing is sent where nothing has to change.
extends_documentation_fragment:
  - clearproxy.haproxy._attributes
  - clearproxy.haproxy._socket
attributes:
  check_mode:
    support: full
    details:
      - Reads and checks everything that the real run does, the socket's level and O(min_ready)
        included, and returns the commands that would be sent. It does not wait.
      - Whether a server in maintenance has C(fall 1) is hidden by HAProxy, so the extra C(health
        stopping) of the real run, described in the notes, is not predicted for it.
  diff_mode:
    support: full
    details:
      - Shows the values that the task manages, of the servers that change.
  idempotent:
    support: full
  platform:
    platforms: posix
    support: full
options:
  backend:
    description:
      - The backend that the servers belong to.
      - If not given, servers are looked for in every backend, and all that match are meant.
    type: str
  servers:
    description:
      - Names of servers as HAProxy knows them, or patterns with V(*), V(?) and V([…]).
        V(*) alone means every server.
      - A name that exists wins over its meaning as a pattern.
      - Each must match at least one server, unless O(missing=ignore).
    type: list
    elements: str
    required: true
    aliases:
      - server
      - host
  state:
    description:
      - The administrative state. If not given, it is left alone.
      - V(ready) puts the server back into load balancing, and ends V(drain) as well as V(maint).
      - V(drain) gives it no new clients; those that persistence ties to it still come, and its
        health checks go on.
      - V(maint) gives it nothing new at all and stops its health checks. What is open stays open,
        except at a server with C(on-marked-down shutdown-sessions), where HAProxy ends it at once.
        With O(drain_first=true) nothing is open any more by then.
      - V(enabled) and V(disabled) are other words for V(ready) and V(maint).
      - States that a server inherits from one that it tracks are not touched.
    type: str
    choices:
      - ready
      - drain
      - maint
      - enabled
      - disabled
  weight:
    description:
      - The weight in load balancing, from V(0) to V(256), or a percentage of the configured weight
        such as V(50%). If not given, it is left alone.
      - HAProxy rounds percentages down and caps the result at 256.
      - Backends with C(balance static-rr), or hashing with C(hash-type map-based), take only V(0%)
        and V(100%). The first is refused before anything is sent. HAProxy does not tell the hash
        type, so the second is noticed when HAProxy refuses.
    type: str
  wait:
    description:
      - Whether to wait until the servers are where O(state) is meant to lead.
      - For O(state=ready), until a health check has passed since the change, which HAProxy shows
        as C(UP), never as C(UP 1/3). A server without health checks is up at once; one that tracks
        another server is up when that one is. Clients that the server still has are neither cut
        off nor moved by this.
      - For O(state=drain) and O(state=maint), until the server has no streams, no queued requests
        and no connections in use. Idle connections that HAProxy keeps for reuse do not count,
        because nothing new is sent over them. HAProxy 2.2 with C(http-reuse never) counts the
        connections of idle keep-alive clients as in use.
    type: bool
    default: false
  wait_timeout:
    description:
      - Seconds to wait altogether before O(on_timeout) applies. V(0) looks once.
    type: float
    default: 300.0
  wait_interval:
    description:
      - Seconds between two looks. The first look is taken at once.
      - If not given, 0.05 s at first, growing to 1 s.
    type: float
  on_timeout:
    description:
      - What happens when O(wait_timeout) has passed.
      - V(fail) fails and leaves the servers in the new state.
      - V(shutdown_sessions) ends the sessions that are left and goes on; only for O(state=drain)
        and O(state=maint). It fails if they are not gone within 5 s after that.
      - V(rollback) sets every server that the task has changed back to the state and weight it had,
        and fails. Where a HAProxy does not allow that any more, the others are set back all the
        same, and RV(not_undone) tells of it.
    type: str
    choices:
      - fail
      - shutdown_sessions
      - rollback
    default: fail
  drain_first:
    description:
      - With O(state=maint), first drain, wait as O(wait=true) does for O(state=drain), and only
        then put the servers into maintenance.
    type: bool
    default: false
    aliases:
      - drain
  min_ready:
    description:
      - How many servers of each backend must stay usable, as a number or a percentage of all its
        servers, rounded up. Usable are those that are up, neither drained nor in maintenance, and
        of a weight above 0.
      - A task that would leave fewer is refused before anything is sent, in check mode too. Tasks
        that take nothing out are not refused.
      - HAProxy is asked again after the change. If there are fewer by then, because somebody else
        took servers out at the same time, the change is undone and the task fails.
    type: str
  missing:
    description:
      - What to do with names and patterns that match no server, and with an unknown O(backend).
    type: str
    choices:
      - fail
      - ignore
    default: fail
  return:
    description:
      - Of which servers RV(servers) tells the full state, those that changed, all that are named,
        or none.
    type: str
    choices:
      - changed
      - all
      - none
    default: changed
notes:
  - Needs a socket of C(level admin). Works with HAProxy 2.2 and later; tested with 2.2, 2.6, 3.0,
    3.2 and 3.4.
  - Changes at run time are lost when HAProxy is reloaded, unless its configuration loads a state
    file.
  - HAProxy tells no time of the last health check. To see one that passed after the change,
    O(wait=true) with O(state=ready) sends C(health stopping) for a drained server that counts as
    fully up, and for one that leaves maintenance with a full counter, as with C(fall 1) or
    C(init-state fully-up). Until its next check has passed, HAProxy then gives it no new clients;
    those that persistence ties to it still come, and what is open stays open. Only requests that
    wait in the server's own queue (C(maxconn)) may go to another server, as with O(state=drain), if
    the configuration says C(option redispatch).
  - With an agent check that answers C(drain), C(maint) or C(ready), the agent's word overrides
    O(state).
author:
  - The clearproxy.haproxy contributors (@clearproxy)
"""

EXAMPLES = r"""
---
- name: Take web1 and web2 out, wait up to a minute for their sessions, then end what is left
  clearproxy.haproxy.haproxy_server:
    backend: app
    servers: [web1, web2]
    state: drain
    wait: true
    wait_timeout: 60
    on_timeout: shutdown_sessions
    min_ready: 50%

- name: Put them back and go on only when their health checks pass
  clearproxy.haproxy.haproxy_server:
    backend: app
    servers: [web1, web2]
    state: ready
    wait: true
    wait_timeout: 30

- name: Take a host's server out of every backend that has it, gracefully
  clearproxy.haproxy.haproxy_server:
    socket: /run/haproxy/admin.sock
    server: "{{ inventory_hostname }}"
    state: maint
    drain_first: true
    wait_timeout: 120
    on_timeout: rollback
  delegate_to: proxy1

- name: Send half as much as configured to all canaries
  clearproxy.haproxy.haproxy_server:
    backend: app
    servers: "canary*"
    weight: 50%
"""

RETURN = r"""
commands:
  description: The commands that changed something, in their order; in check mode those that would
    be sent.
  returned: always
  type: list
  elements: str
  sample:
    - set server app/web1 state drain
servers:
  description:
    - The servers after the task, in check mode as predicted, sorted by socket, backend and name.
      Which ones, O(return) says.
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
    backend_id:
      description: HAProxy's number of the backend.
      type: int
      sample: 3
    name:
      description: Name of the server.
      type: str
      sample: web1
    id:
      description: HAProxy's number of the server in its backend.
      type: int
      sample: 1
    address:
      description: IP address; V(null) if there is none, as for unresolved names and unix sockets.
      type: str
      sample: 192.0.2.11
    port:
      description: Port.
      type: int
      sample: 80
    fqdn:
      description: The name that HAProxy resolves, or V(null).
      type: str
      sample: null
    state:
      description: The administrative state, V(ready), V(drain) or V(maint).
      type: str
      sample: drain
    operational:
      description: V(stopped), V(starting), V(running) or V(stopping).
      type: str
      sample: running
    inherited_maint:
      description: Whether it is in maintenance because the server that it tracks is.
      type: bool
      sample: false
    inherited_drain:
      description: Whether it drains because the server that it tracks does.
      type: bool
      sample: false
    unresolved:
      description: Whether it is in maintenance because its name does not resolve.
      type: bool
      sample: false
    disabled_in_configuration:
      description: Whether the configuration says C(disabled). Stays true when it was put into
        O(state=ready).
      type: bool
      sample: false
    usable:
      description: Whether load balancing gives it new clients.
      type: bool
      sample: false
    weight:
      description: The weight now.
      type: int
      sample: 100
    initial_weight:
      description: The weight in the configuration.
      type: int
      sample: 100
    health_checks:
      description: Whether health checks are switched on.
      type: bool
      sample: true
    agent_checks:
      description: Whether agent checks are switched on.
      type: bool
      sample: false
    last_change:
      description: Seconds since the server last went up or down.
      type: int
      sample: 12
    streams:
      description: Streams at the last look, if the task waited for the server to drain; otherwise
        V(null).
      type: int
      sample: 0
    connections:
      description: Connections in use at the last look, likewise.
      type: int
      sample: 0
    idle_connections:
      description: Idle connections kept for reuse at the last look, likewise.
      type: int
      sample: 1
waited:
  description: Seconds spent waiting.
  returned: always
  type: float
  sample: 4.213
waiting_for:
  description: Which servers were not there when the time was over, with the reason.
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
undone:
  description: The commands that set servers back.
  returned: when something was undone
  type: list
  elements: str
not_undone:
  description: Where something could not be set back, with the reason.
  returned: when something was to be undone and could not be everywhere
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
    reason:
      description: Why it was not set back.
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
  description: The commands that were sent but not answered, so that nobody knows whether they count.
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
from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import Operation, Waiting
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._plan import Desired


def argument_spec() -> dict[str, t.Any]:
    return {
        **socket_spec(),
        "backend": {"type": "str"},
        "servers": {
            "type": "list",
            "elements": "str",
            "required": True,
            "aliases": ["server", "host"],
        },
        "state": {"type": "str", "choices": ["ready", "drain", "maint", "enabled", "disabled"]},
        "weight": {"type": "str"},
        "wait": {"type": "bool", "default": False},
        "wait_timeout": {"type": "float", "default": 300.0},
        "wait_interval": {"type": "float"},
        "on_timeout": {
            "type": "str",
            "choices": ["fail", "shutdown_sessions", "rollback"],
            "default": "fail",
        },
        "drain_first": {"type": "bool", "default": False, "aliases": ["drain"]},
        "min_ready": {"type": "str"},
        "missing": {"type": "str", "choices": ["fail", "ignore"], "default": "fail"},
        "return": {"type": "str", "choices": ["changed", "all", "none"], "default": "changed"},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    params = module.params
    try:
        desired, waiting = Desired.from_params(params), Waiting.from_params(params)
        with clients_from(params) as clients:
            operation = Operation(clients, desired, waiting, params["return"])
            outcome = operation.preview() if module.check_mode else operation.run()
    except Error as exc:
        module.fail_json(msg=str(exc), **{"changed": False, "commands": [], **exc.details})
    module.exit_json(
        changed=bool(outcome.commands),
        commands=outcome.commands,
        servers=outcome.servers,
        waited=outcome.waited,
        diff={"before": outcome.before, "after": outcome.after},
    )


if __name__ == "__main__":
    main()
