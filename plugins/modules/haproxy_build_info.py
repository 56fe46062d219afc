#!/usr/bin/python

# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_build_info
short_description: See which HAProxy releases a host has and which one runs
version_added: 0.1.0
author: The clearproxy.haproxy contributors (@clearproxy)
description:
  - Reads what the role P(clearproxy.haproxy.haproxy_build#role) installed, what the host compiles with, and what runs. Changes nothing.
  - What cannot be found out is V(null), never a failure.
extends_documentation_fragment: [clearproxy.haproxy._attributes]
options:
  root:
    description: The directory of the releases.
    type: path
    default: /opt/haproxy
  command:
    description: The link that the host's users type.
    type: path
    default: /usr/local/sbin/haproxy
  service:
    description: The systemd service of HAProxy.
    type: str
    default: haproxy.service
  libraries:
    description: Debian packages to look up in the databases of dpkg and apt.
    type: list
    elements: str
    default: []
  compiler:
    description: The C compiler, a name in C(PATH) or a path.
    type: str
    default: gcc
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  platform:
    support: full
    platforms: linux
seealso:
  - module: clearproxy.haproxy.haproxy_build_release
"""

EXAMPLES = r"""
---
- name: See what is installed and what runs
  clearproxy.haproxy.haproxy_build_info:
    libraries: [libssl-dev, liblua5.4-dev]
  register: build
"""

RETURN = r"""
releases:
  description: The installed releases in the order of their names. Each is what its C(release.json) says, and the fields below.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: The name of its directory.
      type: str
      sample: 3.0.11-1+deb13u1-0123456789ab
    usable:
      description: Whether its record can be read and its C(haproxy -vv) runs.
      type: bool
    problem:
      description: Why it is not usable, or V(null).
      type: str
current:
  description: The ID of the release in use, or V(null).
  returned: success
  type: str
previous:
  description: The ID of the release that a rollback goes to, or V(null).
  returned: success
  type: str
rolled_back:
  description: The ID of the release that the last rollback left, or V(null) if a release was installed since.
  returned: success
  type: str
compiler:
  description: The first line of the compiler's C(--version), or V(null).
  returned: success
  type: str
  sample: gcc (Debian 14.2.0-19) 14.2.0
libc:
  description: The C library as the compiler's preprocessor knows it, V(glibc) or V(musl), or V(null).
  returned: success
  type: str
libraries:
  description: The packages of O(libraries), each by its name.
  returned: success
  type: dict
  sample: {libssl-dev: {installed: 3.5.4-1, candidate: 3.5.4-1}}
running:
  description: The service's processes. V(null) without systemd, without the service, or while it does not run.
  returned: success
  type: dict
  contains:
    pid:
      description: The main process.
      type: int
    exe:
      description: What it executes. The kernel adds C( (deleted\)) when the file is gone.
      type: str
    release:
      description: The ID of the release that it is of, or V(null).
      type: str
    unit:
      description: The unit's file.
      type: str
    workers:
      description: The main process's children that are HAProxy, the oldest first, each with C(pid) and C(exe).
      type: list
      elements: dict
conflicts:
  description: One sentence for each place that is somebody else's.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_host import Host
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/opt/haproxy"},
            "command": {"type": "path", "default": "/usr/local/sbin/haproxy"},
            "service": {"type": "str", "default": "haproxy.service"},
            "libraries": {"type": "list", "elements": "str", "default": []},
            "compiler": {"type": "str", "default": "gcc"},
        },
        supports_check_mode=True,
    )
    params: dict[str, t.Any] = module.params
    host = Host(params["root"], params["command"], params["service"])
    try:
        result = host.describe(params["libraries"], params["compiler"])
    except Error as exc:
        module.fail_json(msg=str(exc), **exc.details)
    except OSError as exc:
        module.fail_json(msg=f"cannot look at {params['root']}: {exc}; run as root")
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
