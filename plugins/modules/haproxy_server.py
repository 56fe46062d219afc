#!/usr/bin/python
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_server
short_description: Set state, weight, address and checks of HAProxy's servers at run time
version_added: 0.1.0
description:
  - Takes servers of a running HAProxy out of load balancing and puts them back, and changes their
    weights, limits, addresses and checks, through HAProxy's admin socket.
  - All servers of a task are handled in one conversation. Names, values, permissions and limits are
    checked before the first command is sent; a command that HAProxy refuses fails the task.
  - Commands that were already on their way behind a refused one are carried out too. RV(commands)
    tells what was carried out, RV(not_sent) what was not sent any more.
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
    support: partial
    details:
      - HAProxy does not tell O(agent_send), and HAProxy 2.2 neither O(check_port) nor
        O(agent_address). What happens then, O(write_only) says.
      - O(force_health) and O(force_agent) are sent every time, because the next check overrides
        them. O(shutdown_sessions) is sent whenever there are sessions.
      - Everything else is full.
  platform:
    platforms: posix
    support: full
options:
  backend:
    description:
      - The backend that the servers belong to.
      - V(#3) is the backend with the id 3.
      - If not given, servers are looked for in every backend, and all that match are meant.
    type: str
  servers:
    description:
      - Names of servers as HAProxy knows them, or patterns with V(*), V(?) and V([…]).
        V(*) alone means every server.
      - V(#2) is the server with the id 2 in O(backend).
      - A name that exists wins over its meaning as a pattern.
      - Each must match at least one server, unless O(missing=ignore).
      - Needed, unless there are O(members). A server that is named twice, here or there, must not
        get contradicting values.
    type: list
    elements: str
    aliases:
      - server
      - host
  members:
    description:
      - Servers with values of their own, for different changes in one task. What is not given for a
        member is taken from the option of the same name of the task.
      - All are read, checked and changed together, in one conversation.
    type: list
    elements: dict
    aliases:
      - aggregate
    suboptions:
      name:
        description:
          - As in O(servers), so patterns and V(#2) too.
        type: str
        required: true
        aliases:
          - server
          - host
      backend:
        description:
          - As O(backend).
        type: str
      state:
        description:
          - As O(state).
        type: str
        choices:
          - ready
          - drain
          - maint
          - enabled
          - disabled
      weight:
        description:
          - As O(weight).
        type: str
      maxconn:
        description:
          - As O(maxconn).
        type: int
      address:
        description:
          - As O(address).
        type: str
      port:
        description:
          - As O(port).
        type: int
      fqdn:
        description:
          - As O(fqdn).
        type: str
      check_address:
        description:
          - As O(check_address).
        type: str
      check_port:
        description:
          - As O(check_port).
        type: int
      agent_address:
        description:
          - As O(agent_address).
        type: str
      agent_port:
        description:
          - As O(agent_port).
        type: int
      agent_send:
        description:
          - As O(agent_send).
        type: str
      ssl:
        description:
          - As O(ssl).
        type: bool
      health_checks:
        description:
          - As O(health_checks).
        type: str
        choices:
          - enabled
          - disabled
      agent_checks:
        description:
          - As O(agent_checks).
        type: str
        choices:
          - enabled
          - disabled
      force_health:
        description:
          - As O(force_health).
        type: str
        choices:
          - up
          - stopping
          - down
      force_agent:
        description:
          - As O(force_agent).
        type: str
        choices:
          - up
          - down
      shutdown_sessions:
        description:
          - As O(shutdown_sessions).
        type: bool
  state:
    description:
      - The administrative state. If not given, it is left alone.
      - V(ready) puts the server back into load balancing, and ends V(drain) as well as V(maint).
      - V(drain) gives it no new clients; those that persistence ties to it still come, and its
        health checks go on.
      - V(maint) gives it nothing new and stops its health checks. Clients that persistence ties to
        it go elsewhere, unless the configuration says C(option persist) or C(force-persist), with
        which HAProxy goes on sending them to it.
      - With V(maint), what is open stays open, except at a server with
        C(on-marked-down shutdown-sessions), where HAProxy ends it at once. With
        O(drain_first=true) nothing is open any more by then.
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
      - Backends with C(balance static-rr), or hashing (C(source), C(uri), …) unless C(hash-type
        consistent), take only V(0%) and V(100%). The first is refused before anything is sent.
        HAProxy does not tell the hash type, so the second is noticed when HAProxy refuses.
    type: str
  maxconn:
    description:
      - The most connections that HAProxy opens to the server at the same time; more requests wait
        in its queue. V(0) to V(2147483647), where V(0) is without limit.
    type: int
  address:
    description:
      - IPv4 or IPv6 address of the server, without port. HAProxy resolves no names here; see
        O(fqdn).
      - Refused for servers without an address, as unix sockets and names that do not resolve.
      - Together with O(state), the server does not get clients at a new address before it is ready,
        nor at the old one afterwards.
      - A server with a name and C(resolvers) gets the resolved address again.
    type: str
  port:
    description:
      - Port of the server, V(1) to V(65535). It replaces a port map such as C(+10), which HAProxy
        shows as V(10).
    type: int
  fqdn:
    description:
      - The name that HAProxy resolves for the server. It takes one only for servers that have a
        name and C(resolvers) in the configuration, and refuses it otherwise.
      - Contradicts O(address).
    type: str
  check_address:
    description:
      - IP address that health checks go to instead of O(address); V(0.0.0.0) means the server's own
        again.
      - Since HAProxy 2.4. HAProxy 3.4 refuses every address, by a defect of its own, so it is
        refused there before anything is sent.
      - Taken only while health checks are switched on.
    type: str
  check_port:
    description:
      - Port that health checks go to, V(0) to V(65535), where V(0) means the server's own.
      - Taken only while health checks are switched on. Not told by HAProxy 2.2; see O(write_only).
    type: int
  agent_address:
    description:
      - IP address that agent checks go to; V(0.0.0.0) means the server's own.
      - Taken only while agent checks are switched on. Not told by HAProxy 2.2; see O(write_only).
    type: str
  agent_port:
    description:
      - Port that agent checks go to, V(1) to V(65535). Since HAProxy 2.4.
      - Taken only while agent checks are switched on.
    type: int
  agent_send:
    description:
      - Text that is sent to the agent when it is asked, up to 1024 bytes without line breaks.
        HAProxy does not tell it; see O(write_only).
      - Taken only while agent checks are switched on.
    type: str
  ssl:
    description:
      - Whether connections to the server use TLS. Since HAProxy 2.4, which calls the command
        deprecated.
      - HAProxy takes it only where the configuration says C(ssl), for the server or in its
        C(default-server).
    type: bool
  health_checks:
    description:
      - Whether health checks are switched on. Switched off, the server stays as up or down as it
        is.
      - Refused where the configuration has no C(check).
    type: str
    choices:
      - enabled
      - disabled
  agent_checks:
    description:
      - Whether agent checks are switched on. An agent may override O(state), so switch them off to
        be sure.
      - Refused where the configuration has no C(agent-check).
    type: str
    choices:
      - enabled
      - disabled
  force_health:
    description:
      - Count the server as up, as stopping (no new clients but those of persistence), or as down,
        until its next health check says otherwise. So it lasts only without health checks.
      - It is no state that could be compared, so it is sent every time. Refused for servers that
        track others.
    type: str
    choices:
      - up
      - stopping
      - down
  force_agent:
    description:
      - Count the agent as having said up or down, until it is asked again; sent every time.
      - Taken only while agent checks are switched on.
    type: str
    choices:
      - up
      - down
  shutdown_sessions:
    description:
      - End the sessions of the server at once, after a change of its state. Sent only if there are
        any, or some come meanwhile. With O(state=maint), it fails if some are left 5 s later.
      - As in the old module, it does nothing with O(state=ready), and nothing for O(state=maint)
        with O(drain_first=true), where sessions end by themselves; see O(on_timeout).
    type: bool
  health:
    description:
      - The old module's word for switching health checks together with O(state), on with
        O(state=ready), off with O(state=maint). Does nothing with O(state=drain).
      - O(health_checks) does it alone.
    type: bool
  agent:
    description:
      - The same for agent checks, like O(agent_checks).
    type: bool
  forget_clients:
    description:
      - With O(state=drain) and O(state=maint), clear the entries of stick tables that pin clients
        to the server, so that its clients go to other servers at their next request. This is done
        on every O(socket), right behind the change of state.
      - Only the backend's own stick table is cleared, the one that HAProxy calls by the backend's
        name. HAProxy does not tell which backends use the tables of C(peers) sections and
        frontends. Where these hold entries for a server of the same name, RV(pinning) and a warning
        tell of it.
      - Entries are recognised by the server's name, its address with C(srvkey addr), or its id, in
        the order in which HAProxy does. If another backend uses the same table, its clients of a
        server of the same name are forgotten too.
      - A cookie leads its clients to a draining server all the same; RV(pinning) and a warning tell
        of it. O(state=maint) sends them elsewhere, unless the configuration says C(option persist)
        or C(force-persist).
      - Looks again at the end of the task. It fails if there are entries 5 s later, as when sessions
        still use them, or peers that are not in O(socket) teach them again.
    type: bool
    default: false
  write_only:
    description:
      - What to do with given values that HAProxy does not tell, so that they cannot be compared.
      - V(always) sends them every time, and then RV(ignore:changed) is true every time.
      - V(on_change_only) sends them only to servers that the task changes in other ways.
      - V(error) refuses the task.
    type: str
    choices:
      - always
      - on_change_only
      - error
    default: always
  wait:
    description:
      - Whether to wait until the servers are where O(state) is meant to lead.
      - For O(state=ready), until a health check has passed since the change, which HAProxy shows
        as C(UP), never as C(UP 1/3). A server without health checks is up at once; one that tracks
        another server is up when that one is. Clients that the server still has are neither cut
        off nor moved by this. A new address, port or check counts as a change too; a check of what
        was there before proves nothing.
      - So O(state=ready) with O(wait=true) gives a drained server that has health checks no new
        clients until its next one has passed; see the notes.
      - For O(state=drain) and O(state=maint), until the server has no streams, no queued requests
        and no connections in use. Idle connections that HAProxy keeps for reuse do not count,
        because nothing new is sent over them. HAProxy 2.2 with C(http-reuse never) counts the
        connections of idle keep-alive clients as in use.
      - For O(state=maint), HAProxy 3.0 and later are asked to tell by themselves (C(wait …
        srv-removable)), except through the master's socket, so the wait ends at once.
    type: bool
    default: false
  wait_timeout:
    description:
      - Seconds to wait altogether before O(on_timeout) applies. V(0) looks once.
      - If neither this nor O(wait_retries) is given, 300 s.
    type: float
  wait_interval:
    description:
      - Seconds between two looks. The first look is taken at once.
      - If not given, 0.05 s at first, growing to 1 s.
    type: float
  wait_retries:
    description:
      - The old module's way to say O(wait_timeout), as a number of looks. The time is this times
        O(wait_interval), or times 5 s if that is not given. At least 1.
      - Contradicts O(wait_timeout).
    type: int
  on_timeout:
    description:
      - What happens when O(wait_timeout) has passed.
      - V(fail) fails and leaves the servers in the new state.
      - V(shutdown_sessions) ends the sessions that are left and goes on; only for O(state=drain)
        and O(state=maint). It fails if they are not gone within 5 s after that.
      - V(rollback) sets every server that the task has changed back to the values it had, and
        fails. Where a HAProxy does not allow that any more, the others are set back all the same.
        RV(not_undone) tells of that, and of what cannot be set back, as clients that were forgotten.
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
  fail_on_not_found:
    description:
      - The old module's word for O(missing). V(true) is V(fail), V(false) is V(ignore). If it is not
        given, O(missing) decides, so an unknown server fails, other than with the old module.
    type: bool
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
  - Changes at run time are lost when HAProxy is reloaded, so put what shall last into its
    configuration too. A state file that the configuration loads brings back O(state), O(weight) if
    the configured one is unchanged, and O(port), but not O(maxconn), O(ssl) and O(agent_send).
  - Of a changed O(address), a state file brings back only the port for servers that have an IP
    address in the configuration. After a reload they have the old address with the new port, so put
    a changed address into the configuration.
  - HAProxy tells no time of the last health check. To see one that passed after the change,
    O(wait=true) with O(state=ready) sends C(health stopping) for a drained server that counts as
    fully up, and for one that leaves maintenance with a full counter, as with C(fall 1) or
    C(init-state fully-up). Until its next check has passed, HAProxy then gives it no new clients;
    those that persistence ties to it still come, and what is open stays open. Only requests that
    wait in the server's own queue (C(maxconn)) may go to another server, as with O(state=drain), if
    the configuration says C(option redispatch).
  - With an agent check that answers C(drain), C(maint) or C(ready), the agent's word overrides
    O(state).
seealso:
  - module: clearproxy.haproxy.haproxy_dynamic_server
  - module: clearproxy.haproxy.haproxy_info
  - ref: ansible_collections.clearproxy.haproxy.docsite.guide_community_general
    description: What is the same and what is different for tasks of community.general.haproxy.
  - ref: ansible_collections.clearproxy.haproxy.docsite.guide_rolling_update
    description: Updates servers one by one without losing a request.
  - ref: ansible_collections.clearproxy.haproxy.docsite.guide_runtime_api
    description: How to set up the socket, what a module guarantees, and what a reload loses.
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

- name: Move one server to another address, drain another and slow a third down, in one task
  clearproxy.haproxy.haproxy_server:
    backend: app
    members:
      - name: web1
        address: 192.0.2.21
        port: 8080
        state: ready
      - name: web2
        state: drain
      - name: web3
        weight: 50%
        maxconn: 100
    wait: true
    wait_timeout: 60

- name: Drain a server whose clients a stick table would lead back to it, on both proxies
  clearproxy.haproxy.haproxy_server:
    socket: [tls://192.0.2.1:9999, tls://192.0.2.2:9999]
    client_cert: /etc/haproxy-operator/me.pem
    ca_path: /etc/haproxy-operator/ca.pem
    backend: app
    servers: web1
    state: drain
    forget_clients: true
    wait: true
    wait_timeout: 60

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
    check_address:
      description: IP address that health checks go to; V(null) if it is the server's own.
      type: str
      sample: null
    check_port:
      description: Port that health checks go to; V(0) if it is the server's own, V(null) if HAProxy
        (2.2) does not tell.
      type: int
      sample: 0
    agent_address:
      description: IP address that agent checks go to; V(null) if it is the server's own.
      type: str
      sample: null
    agent_port:
      description: Port that agent checks go to; V(null) if HAProxy (2.2) does not tell.
      type: int
      sample: 0
    ssl:
      description: Whether connections to it use TLS; V(null) if HAProxy (2.2) does not tell.
      type: bool
      sample: false
    maxconn:
      description: The most connections to it, V(0) if there is no limit; V(null) if the task does not
        set O(maxconn).
      type: int
      sample: null
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
forgotten:
  description:
    - How many entries of stick tables were cleared, in check mode would be, with O(forget_clients).
  returned: when O(forget_clients=true)
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
    server:
      description: Name of the server.
      type: str
      sample: web1
    table:
      description: Name of the stick table.
      type: str
      sample: app
    entries:
      description: How many clients it pinned to the server.
      type: int
      sample: 12
pinning:
  description:
    - What goes on pinning clients to servers that are taken out. Each is a warning too.
  returned: when O(forget_clients=true)
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
    server:
      description: Name of the server.
      type: str
      sample: web1
    kind:
      description: V(cookie), or V(table) for a stick table that no backend owns.
      type: str
      sample: cookie
    name:
      description: The cookie with its value, or the table.
      type: str
      sample: SRV=web1
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
still_pinned:
  description: What stick tables still hold, like RV(forgotten).
  returned: when clients could not be forgotten
  type: list
  elements: dict
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
socket:
  description: The one of O(socket) that the failure is about.
  returned: when a socket cannot be used, or its HAProxy refused a command
  type: str
  sample: /run/haproxy/admin.sock
not_found:
  description: The names and patterns that match no server.
  returned: when a server was not found
  type: list
  elements: str
  sample: [web9]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clearproxy.haproxy.plugins.module_utils._argspec import (
    clients_from,
    socket_spec,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import failure
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_desired import Desired
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_operation import (
    Operation,
    Waiting,
)

_STATES = ["ready", "drain", "maint", "enabled", "disabled"]


def _values() -> dict[str, t.Any]:
    """What every server may have for itself."""
    return {
        "state": {"type": "str", "choices": _STATES},
        "weight": {"type": "str"},
        "maxconn": {"type": "int"},
        "address": {"type": "str"},
        "port": {"type": "int"},
        "fqdn": {"type": "str"},
        "check_address": {"type": "str"},
        "check_port": {"type": "int"},
        "agent_address": {"type": "str"},
        "agent_port": {"type": "int"},
        "agent_send": {"type": "str"},
        "ssl": {"type": "bool"},
        "health_checks": {"type": "str", "choices": ["enabled", "disabled"]},
        "agent_checks": {"type": "str", "choices": ["enabled", "disabled"]},
        "force_health": {"type": "str", "choices": ["up", "stopping", "down"]},
        "force_agent": {"type": "str", "choices": ["up", "down"]},
        "shutdown_sessions": {"type": "bool"},
    }


def argument_spec() -> dict[str, t.Any]:
    return {
        **socket_spec(),
        "backend": {"type": "str"},
        "servers": {"type": "list", "elements": "str", "aliases": ["server", "host"]},
        "members": {
            "type": "list",
            "elements": "dict",
            "aliases": ["aggregate"],
            "options": {
                "name": {"type": "str", "required": True, "aliases": ["server", "host"]},
                "backend": {"type": "str"},
                **_values(),
            },
        },
        **_values(),
        "health": {"type": "bool"},
        "agent": {"type": "bool"},
        "forget_clients": {"type": "bool", "default": False},
        "write_only": {
            "type": "str",
            "choices": ["always", "on_change_only", "error"],
            "default": "always",
        },
        "wait": {"type": "bool", "default": False},
        "wait_timeout": {"type": "float"},
        "wait_interval": {"type": "float"},
        "wait_retries": {"type": "int"},
        "on_timeout": {
            "type": "str",
            "choices": ["fail", "shutdown_sessions", "rollback"],
            "default": "fail",
        },
        "drain_first": {"type": "bool", "default": False, "aliases": ["drain"]},
        "min_ready": {"type": "str"},
        "missing": {"type": "str", "choices": ["fail", "ignore"], "default": "fail"},
        "fail_on_not_found": {"type": "bool"},
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
        module.fail_json(**failure(exc))
    result: dict[str, t.Any] = {}
    if desired.forget_clients:
        result = {"forgotten": outcome.forgotten, "pinning": outcome.pinning}
        for warning in outcome.warnings:
            module.warn(warning)
    module.exit_json(
        changed=bool(outcome.commands),
        commands=outcome.commands,
        servers=outcome.servers,
        waited=outcome.waited,
        diff={"before": outcome.before, "after": outcome.after},
        **result,
    )


if __name__ == "__main__":
    main()
