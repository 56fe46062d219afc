#!/usr/bin/python
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_frontend
short_description: Enable, disable and limit HAProxy's frontends at run time
version_added: 0.1.0
description:
  - Switches frontends and C(listen) sections of a running HAProxy on and off, ends them, and changes
    how many connections they take.
  - Compares with what HAProxy has, so nothing is sent where nothing has to change.
extends_documentation_fragment:
  - clearproxy.haproxy._attributes
  - clearproxy.haproxy._socket
attributes:
  check_mode:
    support: partial
    details:
      - Reads and checks everything that the real run does, the socket's level included, and returns
        the commands that would be sent.
      - HAProxy does not tell which frontends have no C(bind) line. With O(state=disabled), check mode
        foresees a command for those as well. The real run sends it, and HAProxy 2.6 and later answer
        that there is nothing to do, which does not count as a change.
  diff_mode:
    support: full
    details:
      - Shows the values that the task manages.
  idempotent:
    support: full
    details:
      - HAProxy 2.2 does not list frontends that were shut down. There, O(state=shutdown) finds its
        own work done if O(frontends) names them; patterns find nothing, which is a failure unless
        O(missing=ignore).
  platform:
    platforms: posix
    support: full
options:
  frontends:
    description:
      - Names of frontends or C(listen) sections as HAProxy knows them, patterns with V(*), V(?) and
        V([…]), or V(#) and HAProxy's number of one. V(*) alone means all.
      - A name that exists wins over its meaning as a pattern.
      - Each must match at least one, unless O(missing=ignore).
      - Frontends that are C(disabled) in the configuration or were shut down do not count for
        patterns, unless O(state=shutdown). To name one is an error then.
    type: list
    elements: str
    required: true
    aliases:
      - frontend
      - name
  state:
    description:
      - What the frontend does with clients. If not given, it is left alone.
      - V(enabled) lets it take connections.
      - V(disabled) closes its ports, until it is enabled again. Open connections go on. Clients that
        were still waiting to be let in are refused, as are new ones.
      - While it is disabled its ports are free. If another program takes one of them, V(enabled)
        fails with HAProxy's C(Failed to resume frontend) until the port is free again.
      - Never disable a frontend that is bound to an C(abns@) address. HAProxy 2.6.12 crashes, and 3.0
        and later never open it again, so that V(enabled) fails and only a reload brings it back.
      - A frontend without any C(bind) line has nothing to disable. HAProxy 2.6 and later say so only
        when told to. If O(frontends) names it, the task fails; if a pattern matches it, it stays
        V(enabled).
      - V(shutdown) closes its ports for good and gives them free, for example for another process.
        Open connections go on. Nothing but a reload of HAProxy brings the frontend back. Of a
        C(listen) section, the servers stay behind without clients. With a pattern in O(frontends) it
        needs O(force=true).
    type: str
    choices:
      - enabled
      - disabled
      - shutdown
  maxconn:
    description:
      - How many connections the frontend takes at a time, from V(1) to V(2147483647). More than that
        wait in the kernel's queue. The limit of the whole process still counts; see
        M(clearproxy.haproxy.haproxy_global). If not given, it is left alone.
      - V(0) would let nobody in at all, and needs O(force=true).
      - Releases of HAProxy from 2.4 to 3.0.5 lock up and abort when this is set while connections
        wait at the frontend, be it for C(maxconn) or for C(rate-limit sessions). 2.4.28, 2.6.20,
        2.8.12 and 3.0.6 have mended it. With the others, such a change is refused before
        anything is sent, if the frontend is full and the value is higher, or if it has
        C(rate-limit sessions) and any traffic. Together with O(state=disabled) it is safe.
      - Does not go with O(state=shutdown).
    type: int
  force:
    description:
      - Whether it is meant what stops traffic for good, which are O(maxconn=0), and
        O(state=shutdown) with a pattern in O(frontends), be it V(*) or a narrower one.
    type: bool
    default: false
  missing:
    description:
      - What to do with names and patterns that match no frontend.
    type: str
    choices:
      - fail
      - ignore
    default: fail
notes:
  - Needs a socket of C(level admin). Works with HAProxy 2.2 and later; tested with 2.2, 2.6, 3.0,
    3.2 and 3.4.
  - Changes at run time are lost when HAProxy is reloaded.
seealso:
  - module: clearproxy.haproxy.haproxy_global
  - module: clearproxy.haproxy.haproxy_server
author:
  - The clearproxy.haproxy contributors (@clearproxy)
"""

EXAMPLES = r"""
---
- name: Take no new clients at the public frontends, so that other proxies get them
  clearproxy.haproxy.haproxy_frontend:
    frontends: [www, wwws]
    state: disabled

- name: Take clients again, 5000 at a time
  clearproxy.haproxy.haproxy_frontend:
    frontends: [www, wwws]
    state: enabled
    maxconn: 5000

- name: Give the port of the old listen section free for another program, until HAProxy is reloaded
  clearproxy.haproxy.haproxy_frontend:
    frontends: mail
    state: shutdown
"""

RETURN = r"""
commands:
  description: The commands that changed something, in their order; in check mode those that would
    be sent.
  returned: always
  type: list
  elements: str
  sample:
    - disable frontend www
frontends:
  description:
    - The frontends that the task names, after it, in check mode as predicted, sorted by socket and
      name.
  returned: success
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
      description: HAProxy's number of the frontend; V(null) if it was shut down before and HAProxy,
        like 2.2, does not list it any more.
      type: int
      sample: 2
    state:
      description: V(enabled), V(disabled) or V(shutdown).
      type: str
      sample: disabled
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
refused:
  description: The commands that HAProxy refused, with its replies. That a frontend is enabled or
    disabled already is no refusal.
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
  description: The commands that were not sent any more. Each is sent when the one before it was
    answered.
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
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._frontend import FrontendJob
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import failure, run


def argument_spec() -> dict[str, t.Any]:
    return {
        **socket_spec(),
        "frontends": {
            "type": "list",
            "elements": "str",
            "required": True,
            "aliases": ["frontend", "name"],
        },
        "state": {"type": "str", "choices": ["enabled", "disabled", "shutdown"]},
        "maxconn": {"type": "int"},
        "force": {"type": "bool", "default": False},
        "missing": {"type": "str", "choices": ["fail", "ignore"], "default": "fail"},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        job = FrontendJob.from_params(module.params)
        with clients_from(module.params) as clients:
            outcome = run(clients, job, check=module.check_mode)
    except Error as exc:
        module.fail_json(**failure(exc))
    module.exit_json(**outcome.as_dict())


if __name__ == "__main__":
    main()
