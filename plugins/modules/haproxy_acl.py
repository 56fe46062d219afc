#!/usr/bin/python
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_acl
short_description: Set the patterns of HAProxy's ACLs at run time
version_added: 0.1.0
description:
  - Adds and removes patterns of an ACL of a running HAProxy, or replaces all of them at once.
  - Compares with the patterns that HAProxy has, so nothing is sent where nothing has to change.
extends_documentation_fragment:
  - clearproxy.haproxy._attributes
  - clearproxy.haproxy._socket
attributes:
  check_mode:
    support: full
    details:
      - Reads and checks everything that the real run does, the socket's level included, and returns
        the commands that would be sent. Whether HAProxy takes a pattern as the address, number
        or regular expression that the ACL is made for, only the real run finds out.
  diff_mode:
    support: full
    details:
      - Shows the patterns that differ, in the ACL's order, the first 500 of them.
  idempotent:
    support: full
    details:
      - Patterns are compared as they are written. V(10.0.0.1) and V(10.0.0.1/32) are two patterns,
        also in an ACL of addresses.
  platform:
    platforms: posix
    support: full
options:
  acl:
    description:
      - The ACL, by the name of the file that its C(-f) names in the configuration, or with HAProxy
        3.0 and later a name such as V(virt@name) or V(opt@name).
      - V(#) and a number is the ACL with this number in the list that C(show acl) gives. Patterns
        that are written in the configuration itself can be named only so. Maps and ACLs share one
        numbering, so the first ACL need not be V(#0). Numbers change with the configuration.
      - A file that is used as a map too is a map; see M(clearproxy.haproxy.haproxy_map).
    type: str
    required: true
  entries:
    description:
      - The patterns, as a list. They may contain blanks. None is empty, contains a line break or a
        NUL, or is longer than about 4000 bytes, as it has to fit into a command line.
      - Numbers are taken as they are. Put those with leading zeros in quotes, as V("0644"), because
        YAML makes another number of them before the module sees them.
      - What YAML reads as something else, such as V(yes), V(1.10) or
        V(~), is refused and has to be put in quotes.
    type: raw
    required: true
  state:
    description:
      - V(present) adds the patterns that are not there, and leaves all others alone.
      - V(absent) removes them, as often as each is there.
      - V(exact) makes these patterns the whole content, in any order. B(An empty list empties the ACL.)
        From
        HAProxy 2.4 on, it is prepared aside and replaces the old content in one moment, and if
        HAProxy refuses a pattern, the ACL stays as it was. What others have prepared for this ACL
        before, and not yet put into use, is lost by that, as HAProxy has it.
      - With HAProxy 2.2, which cannot do that, V(exact) sends one command for each pattern that
        differs. What is missing is added before anything is removed.
    type: str
    choices:
      - present
      - absent
      - exact
    default: present
  return:
    description:
      - Which patterns RV(entries) tells, those that changed, all of the ACL, or none.
    type: str
    choices:
      - changed
      - all
      - none
    default: none
notes:
  - Up to HAProxy 3.2, a socket of any level is enough. 3.4 needs C(level admin).
    Tested with 2.2, 2.6, 3.0, 3.2 and 3.4.
  - Changes at run time are lost when HAProxy is reloaded. It does not write its ACLs' files.
  - With O(state=present) and O(state=absent) there is one command for each pattern. If HAProxy
    refuses one, the task fails; those before it stay; those that were already on their way behind
    it are carried out too; RV(commands) tells which.
seealso:
  - module: clearproxy.haproxy.haproxy_map
author:
  - The clearproxy.haproxy contributors (@clearproxy)
"""

EXAMPLES = r"""
---
- name: Block two networks
  clearproxy.haproxy.haproxy_acl:
    acl: /etc/haproxy/blocked.lst
    entries: [192.0.2.0/24, "2001:db8:bad::/48"]

- name: Let one of them in again
  clearproxy.haproxy.haproxy_acl:
    acl: /etc/haproxy/blocked.lst
    entries: [192.0.2.0/24]
    state: absent

- name: Let only the inventory's admins look at the statistics (virt@ needs HAProxy 3.0)
  clearproxy.haproxy.haproxy_acl:
    acl: virt@admins
    entries: "{{ groups['admins'] | map('extract', hostvars, 'ansible_host') | list }}"
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
    - add acl /etc/haproxy/blocked.lst 192.0.2.0/24
acls:
  description: The ACL of each socket after the task, in check mode as predicted.
  returned: success
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    acl:
      description: Its name as HAProxy lists it, or its number if it has none.
      type: str
      sample: /etc/haproxy/blocked.lst
    id:
      description: HAProxy's number of it.
      type: int
      sample: 4
    count:
      description: How many patterns it has.
      type: int
      sample: 2
    added:
      description: How many patterns are new.
      type: int
      sample: 1
    updated:
      description: Always V(0); patterns have no values.
      type: int
      sample: 0
    removed:
      description: How many patterns are gone.
      type: int
      sample: 0
entries:
  description: Patterns after the task, in check mode as predicted, in the ACL's order. Which ones,
    O(return) says.
  returned: success
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    acl:
      description: The ACL's name or number.
      type: str
      sample: /etc/haproxy/blocked.lst
    pattern:
      description: The pattern.
      type: str
      sample: 192.0.2.0/24
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
    ACL,
    EntriesJob,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import failure, run


def argument_spec() -> dict[str, t.Any]:
    return {
        **socket_spec(),
        "acl": {"type": "str", "required": True},
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
        job = EntriesJob.from_params(ACL, module.params)
        with clients_from(module.params) as clients:
            outcome = run(clients, job, check=module.check_mode)
    except Error as exc:
        module.fail_json(**failure(exc))
    module.exit_json(**outcome.as_dict())


if __name__ == "__main__":
    main()
