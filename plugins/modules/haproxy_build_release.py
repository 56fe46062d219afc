#!/usr/bin/python

# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_build_release
short_description: Install a built HAProxy, switch to it, roll back
version_added: 0.1.0
author: The clearproxy.haproxy contributors (@clearproxy)
description:
  - Installs the archive of a release beside the others, switches the command and the running HAProxy to a release, and removes old ones.
  - A switch happens only when the release's C(haproxy -vv) runs and it accepts O(config). It counts only when a worker of the release runs; otherwise
    the release before it is put back in use, and the task fails and says what serves now.
  - Killed at any moment, the next run finishes what was begun.
extends_documentation_fragment: [clearproxy.haproxy._attributes]
options:
  root:
    description: The directory of the releases, C(releases/ID) in it, with the links C(current) and C(previous) beside them.
    type: path
    default: /opt/haproxy
  command:
    description: The link to the HAProxy in use, which the unit starts.
    type: path
    default: /usr/local/sbin/haproxy
  service:
    description: The systemd service of HAProxy. Without systemd, or without such a service, only links are changed.
    type: str
    default: haproxy.service
  unit:
    description: The unit's file. When it is newer than the running HAProxy, the service is restarted instead of reloaded.
    type: path
    default: /etc/systemd/system/haproxy.service
  config:
    description: The configuration file, or directory of files. While there is none, the service is left alone.
    type: path
    default: /etc/haproxy/haproxy.cfg
  artefact:
    description:
      - A release's archive on the host, C(.tar.gz), with C(sbin/haproxy) and C(release.json) in it. Installed as C(releases/ID).
      - Its record's ID, fingerprint and C(binary_sha256) are checked, and that it holds nothing but plain files and directories of a release.
      - A release of the same ID that is there and runs is left alone.
    type: path
  release:
    description:
      - The ID of an installed release, or of the one in O(artefact), to switch to.
      - V(previous) is a rollback, to the release that was in use before. Done once, it changes nothing until another release is switched to.
      - Without it nothing is switched.
    type: str
  features:
    description: Build features, C(USE_...) as HAProxy's Makefile names them, that the C(Feature list) of C(haproxy -vv) has to show as on in O(artefact).
    type: list
    elements: str
    default: []
  unlisted:
    description: Those of O(features) that may be missing in the list, as newer versions always have them. Listed as off they are refused.
    type: list
    elements: str
    default: []
  keep:
    description: How many releases stay installed; the oldest go. The current, the previous and running ones always stay. V(0) keeps all.
    type: int
    default: 0
  timeout:
    description: Seconds for the new worker to run, from 1.
    type: int
    default: 30
attributes:
  check_mode:
    support: full
    details:
      - The archive is unpacked into a temporary directory, and its binary tried, in check mode too. Whether the worker starts is not.
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    support: full
    platforms: linux
seealso:
  - module: clearproxy.haproxy.haproxy_build_info
"""

EXAMPLES = r"""
---
- name: Install a release and switch to it
  clearproxy.haproxy.haproxy_build_release:
    artefact: /var/cache/haproxy-build/3.0.11-0123456789ab.tar.gz
    release: 3.0.11-0123456789ab
    features: [USE_TPROXY, USE_LINUX_TPROXY]
    keep: 3

- name: Go back to the release before
  clearproxy.haproxy.haproxy_build_release:
    release: previous
"""

RETURN = r"""
release:
  description: The ID of the release in use afterwards, or V(null).
  returned: success
  type: str
  sample: 3.0.11-0123456789ab
before:
  description: The ID of the release in use before, or V(null).
  returned: success
  type: str
previous:
  description: The ID of the release that a rollback would go to, or V(null).
  returned: success
  type: str
action:
  description: What was done to the service.
  returned: success
  type: str
  sample: reload
installed:
  description: Whether the archive was installed.
  returned: success
  type: bool
pruned:
  description: The IDs of the releases that were removed.
  returned: success
  type: list
  elements: str
seconds:
  description: How long the module took.
  returned: success
  type: float
msg:
  description: Why nothing was done.
  returned: when a rollback was asked for that has been done already
  type: str
journal:
  description: The service's last lines in the journal.
  returned: when the release did not run
  type: list
  elements: str
serving:
  description: The ID of the release that serves after all, or V(null) when none does.
  returned: when the release did not run
  type: str
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_host import Host, Job
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error


def argument_spec() -> dict[str, t.Any]:
    return {
        "root": {"type": "path", "default": "/opt/haproxy"},
        "command": {"type": "path", "default": "/usr/local/sbin/haproxy"},
        "service": {"type": "str", "default": "haproxy.service"},
        "unit": {"type": "path", "default": "/etc/systemd/system/haproxy.service"},
        "config": {"type": "path", "default": "/etc/haproxy/haproxy.cfg"},
        "artefact": {"type": "path"},
        "release": {"type": "str"},
        "features": {"type": "list", "elements": "str", "default": []},
        "unlisted": {"type": "list", "elements": "str", "default": []},
        "keep": {"type": "int", "default": 0},
        "timeout": {"type": "int", "default": 30},
    }


def main() -> None:
    begin = time.monotonic()
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    params: dict[str, t.Any] = module.params
    host = Host(params["root"], params["command"], params["service"], params["unit"])
    try:
        result = Job.from_params(host, params).carry_out(check_mode=module.check_mode)
    except Error as exc:
        module.fail_json(msg=str(exc), **exc.details)
    except OSError as exc:
        module.fail_json(
            msg=f"cannot change {params['root']}: {exc}; run as root, with space left on its file system"
        )
    module.exit_json(**result, seconds=round(time.monotonic() - begin, 3))


if __name__ == "__main__":
    main()
