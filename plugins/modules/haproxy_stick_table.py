#!/usr/bin/python
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_stick_table
short_description: Set and clear entries of HAProxy's stick tables at run time
version_added: 0.1.0
description:
  - Creates, changes and clears entries of one stick table of a running HAProxy, through its admin
    socket, for example to unpin clients from a server, to pin one to a server, or to let a client
    in that a counter keeps out.
  - Keys and data are checked against the table's type and the data that it stores before the first
    command is sent, because HAProxy wraps numbers around, cuts keys off, and creates the entry even
    where it refuses the data.
  - The module compares with what HAProxy has, so nothing is sent where nothing has to change.
extends_documentation_fragment:
  - clearproxy.haproxy._attributes
  - clearproxy.haproxy._socket
attributes:
  check_mode:
    support: full
    details:
      - Reads and checks everything that the real run does, and returns the commands that would be
        sent.
      - HAProxy tells neither how long the string keys of a table may be nor, of an empty table, how
        many elements an array has. A key that is too long, or an index, may therefore be refused in
        the real run only. The entry that HAProxy has made of it is removed again.
  diff_mode:
    support: full
    details:
      - Shows the data that the task manages, and everything of entries that are cleared.
  idempotent:
    support: full
    details:
      - Counters go on counting. A task that sets one of a client with traffic sets it again in the
        next run.
  platform:
    platforms: posix
    support: full
options:
  table:
    description:
      - The stick table, by the name of the section of the configuration that it is in, or
        C(SECTION/NAME) if it is in a C(peers) section.
    type: str
    required: true
  state:
    description:
      - V(present) sees that the O(entries) exist and have the data.
      - V(absent) clears the O(entries), or those that meet all conditions in O(where), or those
        that pin clients to O(server). Exactly one of the three must be given.
      - V(empty) clears the whole table.
    type: str
    choices:
      - present
      - absent
      - empty
    default: present
  entries:
    description:
      - The entries, each by its key. Two ways to write one key are refused.
      - HAProxy takes no keys of tables of C(type binary) here; use O(where), O(server) or
        O(state=empty) for those.
    type: list
    elements: dict
    suboptions:
      key:
        description:
          - The key, checked against the table's type. In tables of C(type ip), an IPv4 address. In
            tables of C(type ipv6), an IPv6 address, or an IPv4 address, which HAProxy keeps as
            C(::ffff:192.0.2.1). In tables of C(type integer), a number from 0 to 4294967295.
          - In tables of C(type string), any text without line breaks, blanks and backslashes
            included, up to the C(len) of the table in bytes and up to 2000 bytes in all. HAProxy
            cuts off what is longer and then means another entry, so that is refused.
        type: str
        required: true
      data:
        description:
          - With O(state=present), numbers to set, by HAProxy's names of their types. The table must
            store them. What is not named is left alone, and is 0 in new entries.
          - C(server_id) takes 0 to 2147483647. C(gpc0), C(gpc1), C(gpt0), C(conn_cnt), C(conn_cur),
            C(sess_cnt), C(http_req_cnt), C(http_err_cnt), C(http_fail_cnt) and C(glitch_cnt) take 0
            to 4294967295. C(bytes_in_cnt) and C(bytes_out_cnt) take 0 to 9223372036854775807.
          - Elements of the arrays C(gpc) and C(gpt) are C(gpc[1]) and the like; C(gpc[0]) and
            C(gpc) are the same. HAProxy 3.0 and older reach the first element only.
          - Rates (C(conn_rate) and the like) are refused. HAProxy lets them fall from the moment on
            that they are set, so no task could keep them. C(server_key), the name of a server that
            HAProxy itself has noted, cannot be set either.
          - If HAProxy itself has pinned the client, it follows the server's name in the entry and
            puts C(server_id) back (2.2 does not). To change C(server_id), such an entry is cleared
            and set again; its other data begins at 0.
        type: dict
  where:
    description:
      - Up to 4 conditions; entries that meet all of them are cleared. With O(state=absent) only.
    type: list
    elements: dict
    suboptions:
      type:
        description:
          - A type of data as in O(entries[].data), or a rate such as C(conn_rate), which is per the
            period that the table's configuration says.
        type: str
        required: true
      operator:
        description:
          - Equal, not equal, less or equal, greater or equal, less than, greater than.
        type: str
        choices:
          - eq
          - ne
          - le
          - ge
          - lt
          - gt
        required: true
      value:
        description:
          - A number within the range that the type has in O(entries[].data); rates take 0 to
            4294967295.
        type: raw
        required: true
  server:
    description:
      - Name of a server. The table must store C(server_id).
      - With O(state=absent), all clients that the table pins to the server are unpinned. That goes
        by the server's name or address where HAProxy has noted it, as HAProxy itself does, and by
        its number otherwise. Clients that are pinned by other means, such as a cookie, are not.
      - HAProxy clears no single entries of tables of C(type binary). Where the number alone does
        not tell which to clear there, nothing is cleared and the task fails.
      - With O(state=present), all O(entries) are pinned to the server, as with its number for
        C(server_id) in their data.
    type: str
  backend:
    description:
      - The backend that O(server) belongs to. If not given, the one with the table's name.
    type: str
  in_use:
    description:
      - What to do if entries to be cleared are in use. HAProxy does not remove an entry while
        streams hold it, as with C(track-sc0), and mostly says nothing.
      - V(fail) refuses before anything is sent. V(leave) clears the others, and returns those in
        RV(entries). With O(state=absent) and O(state=empty).
    type: str
    choices:
      - fail
      - leave
    default: fail
notes:
  - Needs a socket of C(level operator); below, HAProxy up to 3.0 says that it has cleared a table
    and has not. Works with HAProxy 2.2 and later; tested with 2.2, 2.6, 3.0, 3.2 and 3.4.
  - There is one command for each entry, unless a condition or O(state=empty) clears many at once.
    If HAProxy refuses one, those before it stay; those that were already on their way behind it are
    carried out too; RV(commands) tells which.
  - Setting data lets the entry's time to live begin anew. A full table makes room for a new entry
    by forgetting the oldest ones, without a word, unless its configuration says C(nopurge).
  - HAProxy never tells its peers that an entry was cleared. The others still have it and teach it
    back as soon as one of them uses it, or when this HAProxy is restarted or reloaded. Name the
    sockets of all peers in O(socket) to clear it everywhere; only what was on its way between them
    can come back then. What is set is taught to the peers.
  - Peers with a different numbering of servers overwrite C(server_id) in each other's entries, but
    follow the name (2.2 follows the number). So does O(server); a condition on C(server_id) in
    O(where) does not.
  - Stick tables are lost when HAProxy is reloaded, unless a C(peers) section keeps them.
seealso:
  - module: clearproxy.haproxy.haproxy_server
  - module: clearproxy.haproxy.haproxy_info
author:
  - The clearproxy.haproxy contributors (@clearproxy)
"""

EXAMPLES = r"""
---
- name: Let all clients of web1 go elsewhere with their next request, on both proxies
  clearproxy.haproxy.haproxy_stick_table:
    socket:
      - tls://lb1.example.org:9999
      - tls://lb2.example.org:9999
    table: app
    server: web1
    state: absent

- name: Pin a client to web2
  clearproxy.haproxy.haproxy_stick_table:
    table: app
    server: web2
    entries:
      - key: 198.51.100.7

- name: Let a client in again that was caught by a rate limit
  clearproxy.haproxy.haproxy_stick_table:
    table: abuse
    entries:
      - key: 198.51.100.7
    state: absent
    in_use: leave

- name: Mark two networks' gateways as trusted
  clearproxy.haproxy.haproxy_stick_table:
    table: abuse
    entries:
      - key: 203.0.113.1
        data:
          gpt0: 1
          gpc0: 0
      - key: 203.0.113.2
        data:
          gpt0: 1
          gpc0: 0

- name: Forget clients that have not done anything bad
  clearproxy.haproxy.haproxy_stick_table:
    table: abuse
    where:
      - {type: gpc0, operator: eq, value: 0}
      - {type: http_err_cnt, operator: lt, value: 10}
    state: absent

- name: Forget everybody
  clearproxy.haproxy.haproxy_stick_table:
    table: abuse
    state: empty
"""

RETURN = r"""
commands:
  description: The commands that changed something, in their order; in check mode those that would
    be sent.
  returned: always
  type: list
  elements: str
  sample:
    - clear table app data.server_id eq 1
entries:
  description:
    - With O(state=present), the entries that the task names, after it, in check mode as predicted.
    - Otherwise, those that should be cleared and are not, because they are in use.
  returned: success
  type: list
  elements: dict
  contains: &entry
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    table:
      description: Name of the stick table.
      type: str
      sample: app
    key:
      description: The key; of tables of C(type binary) in hexadecimal.
      type: str
      sample: 198.51.100.7
    use:
      description: How many streams hold the entry.
      type: int
      sample: 0
    expires:
      description: Milliseconds that it still has to live; V(0) in tables without C(expire), and
        V(null) in check mode for an entry that does not exist yet.
      type: int
      sample: 1799871
    data:
      description:
        - What is stored, by the names in HAProxy's output; elements of arrays have their number
          behind the name, rates are per the table's period.
        - C(server_key) (HAProxy 2.2 says C(server_name)) is V(null) where HAProxy has noted none.
      type: dict
      sample:
        server_id: 1
        server_key: web1
        gpc0: 0
        conn_rate: 3
cleared:
  description: The entries that the task has cleared, or in check mode would clear, as they were.
  returned: success
  type: list
  elements: dict
  contains: *entry
in_use:
  description: The entries that are in use and therefore cannot be cleared.
  returned: when the task failed because of them
  type: list
  elements: dict
  contains: *entry
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
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import failure, run
from ansible_collections.clearproxy.haproxy.plugins.module_utils._table import (
    ABSENT,
    EMPTY,
    OPERATORS,
    PRESENT,
    TableJob,
)


def argument_spec() -> dict[str, t.Any]:
    return {
        **socket_spec(),
        "table": {"type": "str", "required": True},
        "state": {"type": "str", "choices": [PRESENT, ABSENT, EMPTY], "default": PRESENT},
        "entries": {
            "type": "list",
            "elements": "dict",
            "options": {
                # A client's address or the like, nothing secret.
                "key": {"type": "str", "required": True, "no_log": False},
                "data": {"type": "dict"},
            },
        },
        "where": {
            "type": "list",
            "elements": "dict",
            "options": {
                "type": {"type": "str", "required": True},
                "operator": {"type": "str", "choices": list(OPERATORS), "required": True},
                "value": {"type": "raw", "required": True},
            },
        },
        "server": {"type": "str"},
        "backend": {"type": "str"},
        "in_use": {"type": "str", "choices": ["fail", "leave"], "default": "fail"},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        job = TableJob.from_params(module.params)
        with clients_from(module.params) as clients:
            outcome = run(clients, job, check=module.check_mode)
    except Error as exc:
        module.fail_json(**failure(exc))
    module.exit_json(**outcome.as_dict())


if __name__ == "__main__":
    main()
