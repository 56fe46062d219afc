#!/usr/bin/python

# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_build_source
short_description: Find and fetch HAProxy's source package of the distribution
version_added: 0.1.0
author: The clearproxy.haproxy contributors (@clearproxy)
description:
  - Finds the source package C(haproxy) of the host's own release, or of another suite, on the mirrors that the host's own apt lists name, and fetches it.
  - The source lines are made from the host's own lines, of both forms of sources.list(5), with the same keys, and are given to apt in a private
    configuration in a temporary directory. The host's own lists, indexes and caches are neither used nor changed.
  - apt verifies the signature of the suite's Release file, the index against the Release file, and every file against the index.
extends_documentation_fragment: [clearproxy.haproxy._attributes]
options:
  suite:
    description:
      - The suite to take the source from, for example V(trixie) on a Debian 12 host.
      - Where the host has lines of this suite, these are used. Otherwise the lines of the host's own
        release, with the suite's name in place of the release's, and its C(-updates) and C(-security) likewise.
      - Without it, the host's own release.
    type: str
  version:
    description:
      - The exact version of the source package, for example V(3.0.11-1+deb13u1).
      - Without it, the newest that the suite has.
    type: str
  check_valid_until:
    description:
      - Whether a Release file past its own C(Valid-Until) date is refused, as apt does unless the host's own configuration says otherwise.
      - V(false) accepts it. Needed on frozen mirrors only, as it allows an old state of the archive to be replayed.
    type: bool
    default: true
  dest:
    description:
      - The directory, which has to exist, to leave the package's files in.
      - Without it, the files are fetched to see that they can be, and deleted again; nothing is changed then.
    type: path
  owner:
    description:
      - The user that apt drops to while it downloads. It has to be able to write to O(dest).
      - Without it, the user of apt's own configuration, usually C(_apt).
    type: str
attributes:
  check_mode:
    support: full
    details:
      - The mirrors are asked in check mode too, with nothing left on the host.
  diff_mode:
    support: none
    details:
      - Nothing to show; RV(files) lists what was fetched.
  idempotent:
    support: full
    details:
      - Files that are there already with the checksum of the index are left alone.
  platform:
    support: full
    platforms: debian
seealso:
  - name: sources.list(5)
    description: The forms and options of apt's lists.
    link: https://manpages.debian.org/bookworm/apt/sources.list.5.en.html
"""

EXAMPLES = r"""
---
- name: See which HAProxy source the host's own release has
  clearproxy.haproxy.haproxy_build_source:
  register: own

- name: Fetch the source of the next release
  clearproxy.haproxy.haproxy_build_source:
    suite: trixie
    dest: /var/cache/haproxy-build/source
    owner: haproxy-build
"""

RETURN = r"""
version:
  description: The version of the source package.
  returned: success
  type: str
  sample: 3.0.11-1+deb13u1
dsc:
  description: The name of the package's C(.dsc) file.
  returned: success
  type: str
  sample: haproxy_3.0.11-1+deb13u1.dsc
sha256:
  description: The SHA-256 checksum of the C(.dsc) file, which in turn names the checksums of all other files.
  returned: success
  type: str
  sample: d42bba4c7e5ecb0e9b0c8319c74f835e12e71c13aada164f75c8e3b3f86419fa
files:
  description: Every file of the source package.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The file's name.
      type: str
    uri:
      description: Where it is fetched from.
      type: str
    size:
      description: Its size in bytes.
      type: int
    sha256:
      description: Its SHA-256 checksum.
      type: str
offered:
  description: The versions that the suite has.
  returned: when the suite was read
  type: list
  elements: str
  sample: [3.0.11-1+deb13u1]
complaints:
  description: What apt warned about while it read the indexes, for example a suite that the mirror does not have. Shown as warnings too.
  returned: success
  type: list
  elements: str
  sample: []
sources:
  description: The source lines that apt was given, in the form of a C(.sources) file.
  returned: when the host has usable lines
  type: str
"""

import dataclasses
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_apt import (
    PrivateApt,
    Run,
    is_fetched,
    read_entries,
    scratch_directory,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_source import (
    SourceError,
    SourceLine,
    os_codename,
    render_sources,
    source_lines,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error

PACKAGE = "haproxy"


def lines_of_host(suite: str | None) -> list[SourceLine]:
    entries, read = read_entries()
    with open("/etc/os-release", encoding="utf-8") as file:
        codename = os_codename(file.read())
    lines = source_lines(entries, codename, suite)
    if not lines:
        where = ", ".join(read) or "nowhere: there is no list"
        raise SourceError(
            f"apt has no package source for {suite or codename or 'this release'} with the component main (looked in {where}); "
            f"add a deb or deb-src line of the distribution's archive"
        )
    return lines


def fetch(params: dict[str, t.Any], run: Run, check_mode: bool) -> dict[str, t.Any]:
    lines = lines_of_host(params["suite"])
    result: dict[str, t.Any] = {"sources": render_sources(lines)}
    with scratch_directory() as scratch:
        apt = PrivateApt(
            run, scratch, user=params["owner"], check_valid_until=params["check_valid_until"]
        )
        complaints = apt.update(lines)
        offered = apt.offered(PACKAGE)
        result["offered"] = offered
        suites = ", ".join(dict.fromkeys(line.suite for line in lines))
        said = f" (apt: {'; '.join(complaints)})" if complaints else ""
        if not offered:
            raise SourceError(
                f"no source package {PACKAGE} in {suites} on the host's mirrors{said}", **result
            )
        if params["version"] and params["version"] not in offered:
            raise SourceError(
                f"{PACKAGE} {params['version']} is not in {suites}, only {', '.join(offered)}{said}",
                **result,
            )
        source = apt.find(PACKAGE, params["version"])
        dest = params["dest"] or f"{scratch}/files"
        changed = bool(params["dest"]) and not all(is_fetched(file, dest) for file in source.files)
        if not params["dest"]:
            os.mkdir(dest)
            # Whoever apt drops to has to write here; the directory lives as long as this call.
            os.chmod(dest, 0o1777)
        if not params["dest"] or (changed and not check_mode):
            try:
                apt.download(PACKAGE, source, dest)
            except SourceError as exc:
                raise SourceError(
                    f"{PACKAGE} {source.version} of {suites} cannot be fetched: {exc}", **result
                ) from exc
    result.update(
        changed=changed,
        version=source.version,
        dsc=source.dsc.name,
        sha256=source.dsc.sha256,
        files=[dataclasses.asdict(file) for file in source.files],
        complaints=complaints,
    )
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "suite": {"type": "str"},
            "version": {"type": "str"},
            "check_valid_until": {"type": "bool", "default": True},
            "dest": {"type": "path"},
            "owner": {"type": "str"},
        },
        supports_check_mode=True,
    )

    def run(argv: list[str], directory: str | None) -> tuple[int, str, str]:
        return module.run_command(argv, cwd=directory, environ_update={"LC_ALL": "C"})

    if not module.get_bin_path("apt-get"):
        module.fail_json(
            msg="this host has no apt-get: haproxy_build_source needs Debian or a distribution derived from it"
        )
    try:
        result = fetch(module.params, run, module.check_mode)
    except Error as exc:
        module.fail_json(msg=str(exc), **exc.details)
    except OSError as exc:
        module.fail_json(msg=f"cannot fetch the source package: {exc}")
    for complaint in result["complaints"]:
        module.warn(f"apt, while reading the source lines: {complaint}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
