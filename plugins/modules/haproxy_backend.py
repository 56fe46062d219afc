#!/usr/bin/python
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_backend
short_description: Set dynamic cookies of HAProxy's backends; add, publish and delete backends
version_added: 0.1.0
description:
  - Enables and disables dynamic cookies of a backend of a running HAProxy and sets the key that
    they are made of.
  - Adds backends, publishes them, takes that back and deletes them, with HAProxy 3.4 and later.
    Servers come and go with M(clearproxy.haproxy.haproxy_dynamic_server).
extends_documentation_fragment:
  - clearproxy.haproxy._attributes
  - clearproxy.haproxy._socket
attributes:
  check_mode:
    support: full
    details:
      - Reads and checks everything that the real run does and returns the commands that would be
        sent. It does not wait.
      - What belongs to a backend that is to be added is judged by HAProxy alone, when it is added.
  diff_mode:
    support: full
    details:
      - Shows whether the backend exists, and of O(published) and O(dynamic_cookie) what the task
        names. Keys are never shown.
  idempotent:
    support: partial
    details:
      - HAProxy does not tell O(dynamic_cookie_key), so O(write_only) says when it is sent.
        O(defaults) and O(guid) count only when the backend is added, and are not compared either.
      - Whether dynamic cookies are enabled is seen from the cookies of the backend's servers, of
        which dynamic ones have 16 hexadecimal digits. If all have one in their C(server) lines, or
        if there are none, it cannot be seen, and O(write_only) counts for O(dynamic_cookie) too.
  platform:
    platforms: posix
    support: full
options:
  backend:
    description:
      - The name of the backend, or of the C(listen) section.
    type: str
    required: true
  state:
    description:
      - Whether the backend is to be there.
      - V(present) adds it if O(defaults) is given, and fails if it is missing otherwise.
      - V(absent) takes back that it is published and deletes it. It must have no servers. If
        HAProxy refuses, as for backends that rules name, it is published again.
        Backends of the configuration come back with a reload. Since HAProxy 3.4.
    type: str
    choices:
      - present
      - absent
    default: present
  defaults:
    description:
      - The named C(defaults) section from which a missing backend is added. Since HAProxy 3.4.
    type: str
  mode:
    description:
      - The mode of a backend that is added. Needed if the C(defaults) section does not say it.
      - A backend that exists must have it, because it does not change at run time.
    type: str
    choices:
      - tcp
      - http
  guid:
    description:
      - The globally unique identifier of a backend that is added.
    type: str
  published:
    description:
      - Whether C(use_backend) and C(default_backend) rules may choose the backend; not
        C(force-be-switch), which chooses unpublished ones too. Since HAProxy 3.4.
      - A backend that was added at run time is chosen only by rules that compute its name, such as
        C(use_backend %[req.hdr(x-backend)]).
      - If not given, a backend that is added is not published, and any other is left as it is.
    type: bool
  dynamic_cookie:
    description:
      - Whether servers without a cookie in their C(server) line get one, made of their address and
        the backend's key. For clients to get them, the backend needs a C(cookie) line as well.
      - Without a key, in the configuration or in O(dynamic_cookie_key), HAProxy makes none. Then
        they are disabled again, and the task fails.
    type: str
    choices:
      - enabled
      - disabled
  dynamic_cookie_key:
    description:
      - The key that dynamic cookies are made of, up to 1024 bytes. Another key means other cookies,
        so that clients lose their servers.
      - HAProxy does not tell which key it has. It is not shown in return values or messages.
    type: str
  write_only:
    description:
      - What to do with values that cannot be read back, and hence not compared.
      - V(always) sends them with every run, which is C(changed) then.
      - V(on_change_only) sends them only if the task changes something else of the backend.
      - V(error) refuses the task if it has such values.
    type: str
    choices:
      - always
      - on_change_only
      - error
    default: always
  wait:
    description:
      - Whether to wait before a backend is deleted until it has no streams. HAProxy does not delete
        it before.
    type: bool
    default: true
  wait_timeout:
    description:
      - Seconds to wait. When they have passed, or at once with O(wait=false), and the backend still
        has streams, it is published again if it was, and the task fails.
    type: float
    default: 300.0
notes:
  - Needs a socket of C(level admin). Works with HAProxy 2.2 and later; tested with 2.2, 2.6, 3.0,
    3.2 and 3.4.
  - Changes at run time are lost when HAProxy is reloaded.
seealso:
  - module: clearproxy.haproxy.haproxy_dynamic_server
author:
  - The clearproxy.haproxy contributors (@clearproxy)
"""

EXAMPLES = r"""
---
- name: Give the servers of a backend cookies made of a key that all proxies have
  clearproxy.haproxy.haproxy_backend:
    backend: app
    dynamic_cookie: enabled
    dynamic_cookie_key: "{{ vault_cookie_key }}"

- name: The same, without sending the key where dynamic cookies are enabled already
  clearproxy.haproxy.haproxy_backend:
    backend: app
    dynamic_cookie: enabled
    dynamic_cookie_key: "{{ vault_cookie_key }}"
    write_only: on_change_only

- name: Add a backend, which needs servers before it is published (HAProxy 3.4)
  clearproxy.haproxy.haproxy_backend:
    backend: canary
    defaults: web
    mode: http

- name: Give it a server (HAProxy 3.4)
  clearproxy.haproxy.haproxy_dynamic_server:
    backend: canary
    name: web1
    address: 192.0.2.11
    port: 80

- name: Let rules choose it that compute its name (HAProxy 3.4)
  clearproxy.haproxy.haproxy_backend:
    backend: canary
    published: true

- name: Delete its server when its last connections have ended (HAProxy 3.4)
  clearproxy.haproxy.haproxy_dynamic_server:
    backend: canary
    name: web1
    state: absent
    wait_timeout: 60

- name: Delete it when its last streams have ended (HAProxy 3.4)
  clearproxy.haproxy.haproxy_backend:
    backend: canary
    state: absent
    wait_timeout: 60
"""

RETURN = r"""
commands:
  description: The commands that changed something, in their order, without keys; in check mode
    those that would be sent.
  returned: always
  type: list
  elements: str
  sample:
    - set dynamic-cookie-key backend app (hidden)
    - enable dynamic-cookie backend app
backends:
  description: The backend at each socket after the task, in check mode as predicted. Empty with
    O(state=absent).
  returned: success
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
      description: HAProxy's number of the backend; V(null) for one that its configuration disables,
        and for one that check mode would add.
      type: int
      sample: 3
    mode:
      description: V(tcp) or V(http); V(null) if it is not known.
      type: str
      sample: http
    published:
      description: Whether rules may choose it; V(null) before HAProxy 3.4, where they always may.
      type: bool
      sample: true
    dynamic_cookie:
      description: V(enabled), V(disabled), or V(null) if no server shows it.
      type: str
      sample: enabled
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
from ansible_collections.clearproxy.haproxy.plugins.module_utils._backend import BackendJob
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import failure, run


def argument_spec() -> dict[str, t.Any]:
    return {
        **socket_spec(),
        "backend": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "defaults": {"type": "str"},
        "mode": {"type": "str", "choices": ["tcp", "http"]},
        "guid": {"type": "str"},
        "published": {"type": "bool"},
        "dynamic_cookie": {"type": "str", "choices": ["enabled", "disabled"]},
        "dynamic_cookie_key": {"type": "str", "no_log": True},
        "write_only": {
            "type": "str",
            "choices": ["always", "on_change_only", "error"],
            "default": "always",
        },
        "wait": {"type": "bool", "default": True},
        "wait_timeout": {"type": "float", "default": 300.0},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        job = BackendJob.from_params(module.params)
        with clients_from(module.params) as clients:
            outcome = run(clients, job, check=module.check_mode)
    except Error as exc:
        module.fail_json(**failure(exc))
    module.exit_json(**outcome.as_dict())


if __name__ == "__main__":
    main()
