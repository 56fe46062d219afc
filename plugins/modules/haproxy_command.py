#!/usr/bin/python
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_command
short_description: Send any command to HAProxy's admin socket, with its reply checked
version_added: 0.1.0
description:
  - Sends commands of HAProxy's runtime API as they are, and fails where HAProxy refuses one. For
    what the other modules of the collection do not do; they compare before they send, this one
    does not.
  - Takes the place of C(echo "show stat" | socat stdio /run/haproxy/admin.sock), where a refused
    command looks like any other. C(help) lists what the running HAProxy has.
  - Each command is sent after HAProxy accepted the one before. Whatever can be known before is
    checked at all sockets before the first command.
extends_documentation_fragment:
  - clearproxy.haproxy._attributes
  - clearproxy.haproxy._socket
attributes:
  check_mode:
    support: partial
    details:
      - Commands that only read are sent. The others are not; they are returned as those that would
        be sent.
      - Whether HAProxy would accept them is not known, apart from their grammar and the socket's
        level.
  diff_mode:
    support: none
  idempotent:
    support: none
    details:
      - Nothing is compared. A command that is not known to only read counts as a change whenever
        HAProxy accepts it, even if it says that there was nothing to do.
  platform:
    platforms: posix
    support: full
options:
  commands:
    description:
      - The commands, in their order; one text, or a list. Instead of a text, a dictionary with
        C(command) and C(payload), whose lines HAProxy gets behind C(<<).
      - Each is exactly one command in HAProxy's grammar. Blanks separate words; a backslash makes
        C(;), C(<), a blank or another backslash part of a word. An unescaped C(;) or C(<<), a line
        break and NUL are refused, and so is a line of more than 4096 bytes. Write several commands as
        a list.
      - "In YAML, a C(#) behind a blank begins a comment, so a command such as C(show map #0) must be
        in quotes; without them it is another command."
      - In a payload, empty lines are refused, because HAProxy ends it there.
      - C(show), C(get), C(help), C(echo), C(dump), C(acme status), C(debug counters) without
        resetting, and C(trace) without arguments only read. C(wait) waits as long as it says and
        O(timeout) more; it is no change, and is not sent in check mode. C(set timeout cli),
        C(set anon on), C(set anon off), C(user) and C(operator) are about the conversation, which
        ends with the task, and are no change either. Everything else is one.
      - Times of C(wait) and C(set timeout cli) beyond 20 days are refused, because a connection's
        timeout of 25 days makes HAProxy 3.0 and later abort.
      - C(prompt), C(quit), C(set severity-output), C(show events) with C(-w), and C(@) before a
        command are refused, because they would break or do what the module does itself.
    type: raw
    required: true
  experimental_mode:
    description:
      - Whether the commands may be those that HAProxy calls experimental, such as C(set var).
      - Needs HAProxy 2.4, and not the socket of the master process.
    type: bool
    default: false
  expert_mode:
    description:
      - Whether the commands may be those that HAProxy calls expert, such as C(debug dev), of which
        some stop or crash it.
      - Not at the socket of the master process.
    type: bool
    default: false
notes:
  - The level that the socket needs is that of the commands. C(user) reads the most, C(operator)
    sees sessions and stick tables, C(admin) is for the rest. HAProxy 3.4 wants C(admin) for all
    commands of maps and ACLs.
  - HAProxy does not validate every number, and ignores words that it does not expect behind a
    command. The modules for the purpose do that.
  - Through the socket of the master process HAProxy does not say whether a reply is an error, so
    it is told from its text, and a change whose reply is not known as a success fails. What is
    about the conversation, and C(wait), cannot be sent there. The commands of the master process
    itself, such as C(reload), are out of reach.
  - A payload with a private key is refused unless the task says C(no_log=true). Replies and commands
    are shown, so set it too where they hold secrets, as those of C(dump ssl cert), C(show tls-keys)
    and C(set ssl tls-key) do.
  - Works with HAProxy 2.2 and later; tested with 2.2, 2.6, 3.0, 3.2 and 3.4.
seealso:
  - module: clearproxy.haproxy.haproxy_info
  - module: clearproxy.haproxy.haproxy_server
  - module: clearproxy.haproxy.haproxy_dynamic_server
  - module: clearproxy.haproxy.haproxy_backend
  - module: clearproxy.haproxy.haproxy_frontend
  - module: clearproxy.haproxy.haproxy_global
  - module: clearproxy.haproxy.haproxy_map
  - module: clearproxy.haproxy.haproxy_acl
  - module: clearproxy.haproxy.haproxy_stick_table
  - module: clearproxy.haproxy.haproxy_certificate
  - ref: ansible_collections.clearproxy.haproxy.docsite.runtime_api_coverage
    description: Which module serves which command.
author:
  - The clearproxy.haproxy contributors (@clearproxy)
"""

EXAMPLES = r"""
---
- name: What echo "help" | socat stdio /run/haproxy/admin.sock shows
  clearproxy.haproxy.haproxy_command:
    socket: /run/haproxy/admin.sock
    commands: help

- name: What echo "show info" | socat … and echo "show stat" | socat … show, in one conversation
  clearproxy.haproxy.haproxy_command:
    commands:
      - show info
      - show stat
  register: answers

- name: Look at the first reply
  ansible.builtin.debug:
    var: answers.replies[0].lines

- name: What echo "disable server app/web1" | socat … does, but failing if there is no such server
  clearproxy.haproxy.haproxy_command:
    commands: disable server app/web1

# clearproxy.haproxy.haproxy_dynamic_server does this with state=absent, and checks it.
- name: Delete a server, each command sent when HAProxy has accepted the one before (3.0 or later)
  clearproxy.haproxy.haproxy_command:
    commands:
      - set server app/web1 state maint
      - shutdown sessions server app/web1
      - wait 10s srv-removable app/web1
      - del server app/web1

- name: Add lines to a map, two of them in a payload, and a blank in a value
  clearproxy.haproxy.haproxy_command:
    commands:
      - command: add map /etc/haproxy/hosts.map
        payload: |
          a.example app
          b.example other
      - add map /etc/haproxy/hosts.map c.example two\ words

- name: Name a map by its number in "show map", in quotes because of the "#"
  clearproxy.haproxy.haproxy_command:
    commands: "show map #0"

- name: List all sessions for a report, names and addresses made unrecognisable (3.0 or later)
  clearproxy.haproxy.haproxy_command:
    commands:
      - set anon on
      - show sess all

- name: Set a variable of the process, which HAProxy calls experimental (2.4 or later)
  clearproxy.haproxy.haproxy_command:
    commands: set var proc.maintenance bool(true)
    experimental_mode: true
"""

RETURN = r"""
commands:
  description: The commands that HAProxy accepted and that count as changes, in their order; in check
    mode those that would be sent. A payload is shown as the number of its lines.
  returned: always
  type: list
  elements: str
  sample:
    - disable server app/web1
replies:
  description:
    - A record for each socket and command, in the order in which they were sent. After a failure,
      those up to the command that was refused.
  returned: always, unless the task failed before anything was sent
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    command:
      description: What was sent. A payload is shown as the number of its lines.
      type: str
      sample: show version
    sent:
      description: Whether it was sent; V(false) in check mode for what is more than reading.
      type: bool
      sample: true
    changes:
      description: Whether it counts as a change.
      type: bool
      sample: false
    reply:
      description: HAProxy's answer without the line breaks at both ends, or V(null) if it was not
        asked.
      type: str
      sample: 3.2.26-1
    lines:
      description: The same, line by line.
      type: list
      elements: str
      sample:
        - 3.2.26-1
    severity:
      description: HAProxy's own word for what it answered, such as V(error), V(warning), V(notice)
        and V(info), or V(null) where it has none, as for most data, empty replies, and through the
        master process.
      type: str
      sample: info
refused:
  description: The command that HAProxy refused, with its reply.
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
  description: The command that was sent but not answered, so that nobody knows whether it counts.
  returned: when HAProxy went away in the middle
  type: list
  elements: str
not_sent:
  description: The commands that were not sent any more to this HAProxy.
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
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command_operation import Script
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error, InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import failure


def argument_spec() -> dict[str, t.Any]:
    return {
        **socket_spec(),
        # Not a list: Ansible would split one text at its commas.
        "commands": {"type": "raw", "required": True},
        "experimental_mode": {"type": "bool", "default": False},
        "expert_mode": {"type": "bool", "default": False},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        script = Script.from_params(module.params)
        if script.secret and not module.no_log:
            raise InputError(
                "commands: a payload holds a private key, which Ansible would log: use "
                "haproxy_certificate, or say no_log: true in the task"
            )
        with clients_from(module.params) as clients:
            commands = script.run(clients, check=module.check_mode)
    except Error as exc:
        module.fail_json(**failure(exc))
    module.exit_json(changed=bool(commands), commands=commands, replies=script.replies)


if __name__ == "__main__":
    main()
