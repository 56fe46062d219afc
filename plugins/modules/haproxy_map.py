#!/usr/bin/python
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_map
short_description: Set the entries of HAProxy's maps at run time
version_added: 0.1.0
description:
  - Adds, changes and removes entries of a map that a running HAProxy has loaded, or replaces its
    whole content at once.
  - Compares with the entries that HAProxy has, so nothing is sent where nothing has to change.
extends_documentation_fragment:
  - clearproxy.haproxy._attributes
  - clearproxy.haproxy._socket
attributes:
  check_mode:
    support: full
    details:
      - Reads and checks everything that the real run does, the socket's level included, and returns
        the commands that would be sent. Whether HAProxy takes a key or value as the address, number
        or regular expression that the map is made for, only the real run finds out.
  diff_mode:
    support: full
    details:
      - Shows the entries that differ, in the map's order, the first 500 of them.
  idempotent:
    support: full
    details:
      - Keys and values are compared as they are written. V(2001:db8::1) and V(2001:DB8:0::1) are
        two keys, also in a map of addresses.
  platform:
    platforms: posix
    support: full
options:
  map:
    description:
      - The map, by the name of its file as in the configuration, or with HAProxy 3.0 and later a
        name such as V(virt@name) or V(opt@name).
      - V(#) and a number is the map with this number in the list that C(show map) gives. Maps and
        ACLs share one numbering, so the first map need not be V(#0). Numbers change with the
        configuration.
    type: str
    required: true
  entries:
    description:
      - Keys and their values, as a dictionary, or as a list of dictionaries with C(key) and
        C(value). With O(state=absent), a list of keys too; values that are given are not looked at.
      - Keys contain no blanks, because in a map a key ends at the first one. Values may. Neither
        is empty, or contains a line break or a NUL. A key and its value have at most 14336 bytes
        together. Values that begin with a blank have at most about 4000, as HAProxy can be given
        them in a single command line only.
      - Numbers are taken as they are. Put those with leading zeros in quotes, as V("0644"), because
        YAML makes another number of them before the module sees them.
      - What YAML reads as something else, such as V(yes), V(1.10) or
        V(~), is refused and has to be put in quotes. Keys of a dictionary are seen only after that,
        so keys such as C(on) must be in quotes there too.
    type: raw
    required: true
  state:
    description:
      - V(present) gives these keys these values and leaves other keys alone. Of a key that is in
        the map several times, one entry stays. New keys are put behind what is there.
      - V(absent) removes the keys, as often as each is there.
      - V(exact) makes these entries the whole content. B(An empty list or dictionary empties the
        map.) From HAProxy 2.4 on, it is prepared aside and replaces the old content in one moment, and if HAProxy refuses
        an entry, the map stays as it was. What others have prepared for this map before, and not
        yet put into use, is lost by that, as HAProxy has it.
      - With HAProxy 2.2, which cannot do that, V(exact) sends one command for each entry that
        differs. What is missing is added before anything is removed.
      - With V(exact) and O(entries) as a list, the order matters too, as it does to maps of regular
        expressions and substrings, where the first match counts.
    type: str
    choices:
      - present
      - absent
      - exact
    default: present
  return:
    description:
      - Which entries RV(entries) tells, those that changed, all of the map, or none.
    type: str
    choices:
      - changed
      - all
      - none
    default: none
notes:
  - Up to HAProxy 3.2, a socket of any level is enough. 3.4 needs C(level admin).
    Tested with 2.2, 2.6, 3.0, 3.2 and 3.4.
  - Changes at run time are lost when HAProxy is reloaded. It does not write its maps' files.
  - With O(state=present) and O(state=absent) there is one command for each entry. If HAProxy
    refuses one, the task fails; those before it stay; those that were already on their way behind
    it are carried out too; RV(commands) tells which.
  - With O(state=present), a value too long for a command line is changed by adding the new entry
    before the old one is removed, so the key moves to the end of the map.
  - As a value of a map of integers, HAProxy accepts one beyond 64 bits, and works with the nearest
    one that it can hold.
seealso:
  - module: clearproxy.haproxy.haproxy_acl
author:
  - The clearproxy.haproxy contributors (@clearproxy)
"""

EXAMPLES = r"""
---
- name: Send two hosts to the new application
  clearproxy.haproxy.haproxy_map:
    map: /etc/haproxy/hosts.map
    entries:
      www.example.com: app-v2
      shop.example.com: app-v2

- name: Remove hosts
  clearproxy.haproxy.haproxy_map:
    map: /etc/haproxy/hosts.map
    entries: [old.example.com, older.example.com]
    state: absent

- name: Replace all routes in one moment, in this order
  clearproxy.haproxy.haproxy_map:
    map: /etc/haproxy/routes.map
    entries:
      - key: ^/api/v2/
        value: api2
      - key: ^/api/
        value: api
    state: exact

- name: Load a map from a file of the controller, and see what has changed (virt@ needs 3.0)
  clearproxy.haproxy.haproxy_map:
    map: virt@blocked
    entries: "{{ lookup('ansible.builtin.file', 'blocked.yml') | from_yaml }}"
    state: exact
    return: changed
"""

RETURN = r"""
commands:
  description:
    - The commands that changed something, in their order; in check mode those that would be sent.
    - Of what O(state=exact) prepares at once, the number of lines is told, and the version's number
      C(@N) as HAProxy gave it. In check mode it is the number that HAProxy gives next.
    - If the new content could not be put into use, nothing has changed, and its commands are not
      here.
  returned: always
  type: list
  elements: str
  sample:
    - set map /etc/haproxy/hosts.map www.example.com app-v2
maps:
  description: The map of each socket after the task, in check mode as predicted.
  returned: success
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    map:
      description: Its name as HAProxy lists it.
      type: str
      sample: /etc/haproxy/hosts.map
    id:
      description: HAProxy's number of it.
      type: int
      sample: 0
    count:
      description: How many entries it has.
      type: int
      sample: 12
    added:
      description: How many entries are new.
      type: int
      sample: 0
    updated:
      description: How many entries got another value.
      type: int
      sample: 1
    removed:
      description: How many entries are gone.
      type: int
      sample: 0
entries:
  description: Entries after the task, in check mode as predicted, in the map's order. Which ones,
    O(return) says.
  returned: success
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    map:
      description: The map's name.
      type: str
      sample: /etc/haproxy/hosts.map
    key:
      description: The key.
      type: str
      sample: www.example.com
    value:
      description: The value.
      type: str
      sample: app-v2
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
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._map import (
    MAP,
    EntriesJob,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import failure, run


def argument_spec() -> dict[str, t.Any]:
    return {
        **socket_spec(),
        "map": {"type": "str", "required": True},
        "entries": {"type": "raw", "required": True},
        "state": {
            "type": "str",
            "choices": ["present", "absent", "exact"],
            "default": "present",
        },
        "return": {"type": "str", "choices": ["changed", "all", "none"], "default": "none"},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        job = EntriesJob.from_params(MAP, module.params)
        with clients_from(module.params) as clients:
            outcome = run(clients, job, check=module.check_mode)
    except Error as exc:
        module.fail_json(**failure(exc))
    module.exit_json(**outcome.as_dict())


if __name__ == "__main__":
    main()
