#!/usr/bin/python
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_global
short_description: Set limits of a whole HAProxy process at run time
version_added: 0.1.0
description:
  - Changes what a running HAProxy has for the whole process, its limits of connections and rates and
    its profiling, and clears statistics.
  - Compares with what HAProxy has, so nothing is sent where nothing has to change.
extends_documentation_fragment:
  - clearproxy.haproxy._attributes
  - clearproxy.haproxy._socket
attributes:
  check_mode:
    support: full
    details:
      - Reads and checks everything that the real run does, the socket's level included, and returns
        the commands that would be sent.
  diff_mode:
    support: full
    details:
      - Shows the values that the task manages.
  idempotent:
    support: partial
    details:
      - O(clear_counters) is an order, not a state, so it is carried out, and reported as a change, in
        each run. The others are idempotent.
  platform:
    platforms: posix
    support: full
options:
  maxconn:
    description:
      - How many connections the process takes at a time, as C(maxconn) in the C(global) section. More
        than that wait in the kernel's queue.
      - From V(1) to what HAProxy was started with (RV(processes[].hard_maxconn)). More is refused
        before anything is sent, because HAProxy has prepared for so many only. V(0) is that number.
      - HAProxy's own sockets for administration do not count.
    type: int
  rate_limit_connections:
    description:
      - New connections a second, of all frontends together, from V(0) to V(2147483647). V(0) means no
        limit.
      - As C(maxconnrate) in the C(global) section.
    type: int
  rate_limit_sessions:
    description:
      - New sessions a second, likewise. As C(maxsessrate).
    type: int
  rate_limit_ssl_sessions:
    description:
      - New TLS sessions a second, likewise. As C(maxsslrate).
    type: int
  rate_limit_http_compression:
    description:
      - How much HAProxy compresses at most, in kilobytes (1024 bytes) of input a second, from V(0) to
        V(4194303). V(0) means no limit.
      - As C(maxcomprate). HAProxy keeps bytes in 32 bits and would take V(4194304) for V(0).
    type: int
  profiling_tasks:
    description:
      - Whether HAProxy measures the time that its tasks take, which C(show profiling) shows. V(auto)
        does so for a thread while its latency is high. As C(profiling.tasks).
    type: str
    choices:
      - auto
      - "on"
      - "off"
  profiling_memory:
    description:
      - Whether HAProxy counts what its functions allocate, which C(show profiling) shows.
        Counting slows HAProxy down. As C(profiling.memory).
      - Needs HAProxy 2.4 or later. V(on) is refused before anything is sent unless HAProxy was built
        with C(USE_MEMORY_PROFILING=1), which distributions do not do.
    type: str
    choices:
      - "on"
      - "off"
  clear_counters:
    description:
      - Clears the statistics of all frontends, backends and servers.
      - V(max) sets the highest values seen so far back to the current ones. V(all) sets all counters
        to 0, for everybody who reads them.
      - HAProxy allows V(max) to C(level operator) already, but the module always asks for
        C(level admin), as HAProxy 2.6 and later do for what the module reads.
    type: str
    choices:
      - max
      - all
notes:
  - Needs a socket of C(level admin). Works with HAProxy 2.2 and later; tested with 2.2, 2.6, 3.0,
    3.2 and 3.4.
  - Changes at run time are lost when HAProxy is reloaded.
  - What a single connection to the socket has for itself, such as its timeout, is not of the process;
    tracing, process-wide variables and the key of C(set anon), which HAProxy does not show again, are
    in reach of M(clearproxy.haproxy.haproxy_command).
seealso:
  - module: clearproxy.haproxy.haproxy_frontend
  - module: clearproxy.haproxy.haproxy_command
author:
  - The clearproxy.haproxy contributors (@clearproxy)
"""

EXAMPLES = r"""
---
- name: Let in at most 200 new clients a second while the caches are cold
  clearproxy.haproxy.haproxy_global:
    rate_limit_sessions: 200

- name: Back to no limit, and to all the connections that HAProxy was started for
  clearproxy.haproxy.haproxy_global:
    rate_limit_sessions: 0
    maxconn: 0

- name: Begin the measurement with counters at 0
  clearproxy.haproxy.haproxy_global:
    clear_counters: all
"""

RETURN = r"""
commands:
  description: The commands that changed something, in their order; in check mode those that would
    be sent.
  returned: always
  type: list
  elements: str
  sample:
    - set rate-limit sessions global 200
processes:
  description: What each HAProxy has after the task, in check mode as predicted.
  returned: success
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    hard_maxconn:
      description: How many connections it was started for.
      type: int
      sample: 262121
    maxconn:
      description: How many connections it takes at a time.
      type: int
      sample: 262121
    rate_limit_connections:
      description: New connections a second; V(0) means no limit.
      type: int
      sample: 0
    rate_limit_sessions:
      description: New sessions a second; V(0) means no limit.
      type: int
      sample: 200
    rate_limit_ssl_sessions:
      description: New TLS sessions a second; V(0) means no limit. V(null) if it was built without TLS.
      type: int
      sample: 0
    rate_limit_http_compression:
      description: Kilobytes compressed a second; V(0) means no limit.
      type: int
      sample: 0
    profiling_tasks:
      description: V(auto), V(on) or V(off).
      type: str
      sample: auto
    profiling_memory:
      description: V(on) or V(off); V(null) before HAProxy 2.4.
      type: str
      sample: "off"
refused:
  description: The commands that HAProxy refused, with its replies. Commands behind a refused one may
    have been on their way, and were carried out then; RV(commands) tells which.
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
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._global import GlobalJob
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import failure, run


def argument_spec() -> dict[str, t.Any]:
    return {
        **socket_spec(),
        "maxconn": {"type": "int"},
        "rate_limit_connections": {"type": "int"},
        "rate_limit_sessions": {"type": "int"},
        "rate_limit_ssl_sessions": {"type": "int"},
        "rate_limit_http_compression": {"type": "int"},
        "profiling_tasks": {"type": "str", "choices": ["auto", "on", "off"]},
        "profiling_memory": {"type": "str", "choices": ["on", "off"]},
        "clear_counters": {"type": "str", "choices": ["max", "all"]},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        job = GlobalJob.from_params(module.params)
        with clients_from(module.params) as clients:
            outcome = run(clients, job, check=module.check_mode)
    except Error as exc:
        module.fail_json(**failure(exc))
    module.exit_json(**outcome.as_dict())


if __name__ == "__main__":
    main()
