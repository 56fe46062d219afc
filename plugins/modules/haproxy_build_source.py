#!/usr/bin/python

# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_build_source
short_description: Find and fetch HAProxy's source
version_added: 0.1.0
author: The clearproxy.haproxy contributors (@clearproxy)
description:
  - Finds and fetches HAProxy's source, of the distribution, of an upstream release, or of an archive.
  - With O(source=distribution), finds the source package C(haproxy) of the host's own release, or of another suite, on the mirrors that the host's own
    apt lists name. The source lines are made from the host's own lines, of both forms of sources.list(5), with the same keys, and are given to apt in a
    private configuration in a temporary directory. The host's own lists, indexes and caches are neither used nor changed. apt verifies the signature of
    the suite's Release file, the index against the Release file, and every file against the index.
  - With O(source=release) or O(source=archive), downloads one tarball into a file C(NAME.part), and gives it its name once its SHA-256 checksum is
    right and it is seen to hold HAProxy's source, all of it in one directory. Otherwise nothing is left behind.
  - Proxies are those of the environment variables C(http_proxy), C(https_proxy) and C(no_proxy).
extends_documentation_fragment: [clearproxy.haproxy._attributes]
options:
  source:
    description:
      - Where the source comes from. Options of another source are ignored.
      - V(distribution) is the distribution's signed source package, with its patches.
      - V(release) is the tarball of O(version) from O(mirror).
      - V(archive) is the tarball O(archive).
    type: str
    choices: [distribution, release, archive]
    default: distribution
  suite:
    description:
      - The suite to take the source package from, for example V(trixie) on a Debian 12 host. Of O(source=distribution).
      - Where the host has lines of this suite, these are used. Otherwise the lines of the host's own
        release, with the suite's name in place of the release's, and its C(-updates) and C(-security) likewise.
      - Without it, the host's own release.
    type: str
  version:
    description:
      - With O(source=distribution), the exact version of the source package, for example V(3.0.11-1+deb13u1). Without it, the newest that the suite has.
      - With O(source=release), the release, for example V(3.0.11) or V(3.3-dev5). Required; the newest is not guessed.
      - With O(source=archive), the version that the tarball has to be. Without it, any.
      - A tarball whose file C(VERSION) says another version is refused.
    type: str
  mirror:
    description:
      - What has the upstream releases, as C(MIRROR/3.0/src/haproxy-3.0.11.tar.gz) and C(MIRROR/3.3/src/devel/haproxy-3.3-dev5.tar.gz).
        Of O(source=release).
      - An V(http://), V(https://) or V(file://) URL, or an absolute path of the host.
    type: str
    default: https://www.haproxy.org/download
  archive:
    description:
      - The tarball, an V(http://), V(https://) or V(file://) URL, or an absolute path of the host. Required with O(source=archive).
      - Compressed by gzip, xz or bzip2, at most 100 MB. It has one directory at its top, in it HAProxy's C(Makefile), C(VERSION) and C(SUBVERS),
        and nothing, no link either, that leads out of the directory.
    type: str
  checksum:
    description:
      - The SHA-256 checksum of the tarball, as 64 hexadecimal digits, C(sha256:) before them or not.
      - Or the V(http://), V(https://) or V(file://) URL, or the absolute path on the host, of a file that names it, in the form that sha256sum(1) writes.
        One with an V(https://) URL is refused if the server redirects to a place without encryption.
      - With O(source=release), the default is the file that is published beside the tarball, C(NAME.sha256). It shows damage. Only a
        checksum from another place shows that the mirror itself was changed.
      - With O(source=archive), required for an V(http://) or V(https://) URL.
    type: str
  timeout:
    description:
      - Seconds from 1, for the checksum file and the tarball together, however slowly they come. With O(source=release) and O(source=archive).
    type: int
    default: 120
  check_valid_until:
    description:
      - Whether a Release file past its own C(Valid-Until) date is refused, as apt does unless the host's own configuration says otherwise.
        Of O(source=distribution).
      - V(false) accepts it. Needed on frozen mirrors only, as it allows an old state of the archive to be replayed.
    type: bool
    default: true
  dest:
    description:
      - The directory, which has to exist, to leave the files in.
      - Without it, nothing is changed. The files of a source package are fetched to see that they can be, and deleted again. Of a release the checksum
        file is read, of another tarball it is asked whether it is there. A tarball on the host is looked at as a whole.
    type: path
  owner:
    description:
      - The user that the files belong to. With O(source=distribution), the user that apt drops to while it downloads, who has to be able to
        write to O(dest). Without it, the user of apt's own configuration, usually C(_apt).
      - With the other sources, without it, the user that the module runs as.
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
      - Files that are there already with the right checksum are left alone. The network is then not used for a tarball whose O(checksum) is given as
        digits, nor for a release, whose published checksum is kept beside it in O(dest).
  platform:
    support: full
    platforms: linux
    details:
      - O(source=distribution) needs Debian or a distribution derived from it.
seealso:
  - name: sources.list(5)
    description: The forms and options of apt's lists.
    link: https://manpages.debian.org/bookworm/apt/sources.list.5.en.html
  - name: HAProxy
    description: The upstream releases.
    link: https://www.haproxy.org/
"""

EXAMPLES = r"""
---
- name: See which HAProxy source the host's own release has
  clearproxy.haproxy.haproxy_build_source:
  register: own

- name: Fetch the source of the next release of the distribution
  clearproxy.haproxy.haproxy_build_source:
    suite: trixie
    dest: /var/cache/haproxy-build/source
    owner: haproxy-build

- name: Fetch an upstream release
  clearproxy.haproxy.haproxy_build_source:
    source: release
    version: 3.0.11
    checksum: sha256:a133e2d550c5fd9a849b5c7ab17bb945bcdad209ca140d41f45ebf31943ae783
    dest: /var/cache/haproxy-build
    owner: haproxy-build
  register: fetched

- name: Unpack it
  ansible.builtin.command:
    argv: [tar, --extract, --file, "{{ fetched.name }}", --no-same-owner]
    chdir: /var/cache/haproxy-build
    creates: "/var/cache/haproxy-build/{{ fetched.directory }}"

- name: See that a tarball of the company's own is there
  clearproxy.haproxy.haproxy_build_source:
    source: archive
    archive: https://files.example.org/haproxy-3.0.11-ours.tar.xz
    checksum: https://files.example.org/SHA256SUMS
"""

RETURN = r"""
kind:
  description: Where the source comes from, as O(source) has it.
  returned: success
  type: str
  sample: release
name:
  description: The name of the C(.dsc) file or the tarball.
  returned: success
  type: str
  sample: haproxy-3.0.11.tar.gz
version:
  description:
    - The version of the source package, or that the tarball's file C(VERSION) says.
    - While the tarball is not on the host, O(version) or what its name says, V(null) if neither says it.
  returned: success
  type: str
  sample: 3.0.11
directory:
  description: The one directory that the tarball unpacks to; V(null) while it is not on the host.
  returned: with O(source=release) and O(source=archive)
  type: str
  sample: haproxy-3.0.11
dsc:
  description: The name of the package's C(.dsc) file.
  returned: with O(source=distribution)
  type: str
  sample: haproxy_3.0.11-1+deb13u1.dsc
sha256:
  description: The SHA-256 checksum of the tarball, or of the C(.dsc) file, which in turn names the checksums of all other files.
  returned: success
  type: str
  sample: d42bba4c7e5ecb0e9b0c8319c74f835e12e71c13aada164f75c8e3b3f86419fa
files:
  description: Every file of the source package, or the tarball.
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
      description: Its size in bytes; V(null) if that is not known before it is fetched.
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
  returned: with O(source=distribution)
  type: list
  elements: str
  sample: []
sources:
  description: The source lines that apt was given, in the form of a C(.sources) file.
  returned: with O(source=distribution), when the host has usable lines
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
from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_archive import make_wanted
from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_download import (
    fetch_tarball,
    find_owner,
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
MIRROR = "https://www.haproxy.org/download"


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


def fetch_package(params: dict[str, t.Any], run: Run, check_mode: bool) -> dict[str, t.Any]:
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
        kind="distribution",
        name=source.dsc.name,
        version=source.version,
        dsc=source.dsc.name,
        sha256=source.dsc.sha256,
        files=[dataclasses.asdict(file) for file in source.files],
        complaints=complaints,
    )
    return result


def fetch_upstream(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    wanted = make_wanted(params)
    owner = find_owner(params["owner"])
    found = fetch_tarball(wanted, params["dest"], owner, params["timeout"], check_mode)
    return {
        "changed": found.changed,
        "kind": wanted.kind,
        "name": wanted.name,
        "version": found.version,
        "directory": found.directory,
        "sha256": found.sha256,
        "files": [
            {
                "name": wanted.name,
                "uri": wanted.source.shown,
                "size": found.size,
                "sha256": found.sha256,
            }
        ],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {
                "type": "str",
                "choices": ["distribution", "release", "archive"],
                "default": "distribution",
            },
            "suite": {"type": "str"},
            "version": {"type": "str"},
            "mirror": {"type": "str", "default": MIRROR},
            "archive": {"type": "str"},
            "checksum": {"type": "str"},
            "timeout": {"type": "int", "default": 120},
            "check_valid_until": {"type": "bool", "default": True},
            "dest": {"type": "path"},
            "owner": {"type": "str"},
        },
        supports_check_mode=True,
    )

    def run(argv: list[str], directory: str | None) -> tuple[int, str, str]:
        return module.run_command(argv, cwd=directory, environ_update={"LC_ALL": "C"})

    distribution = module.params["source"] == "distribution"
    if distribution and not module.get_bin_path("apt-get"):
        module.fail_json(
            msg="this host has no apt-get: source distribution needs Debian or a distribution derived from it; give source release or archive"
        )
    try:
        if distribution:
            result = fetch_package(module.params, run, module.check_mode)
        else:
            result = fetch_upstream(module.params, module.check_mode)
    except Error as exc:
        module.fail_json(msg=str(exc), **exc.details)
    except OSError as exc:
        module.fail_json(msg=f"cannot fetch HAProxy's source: {exc}")
    for complaint in result.get("complaints", []):
        module.warn(f"apt, while reading the source lines: {complaint}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
