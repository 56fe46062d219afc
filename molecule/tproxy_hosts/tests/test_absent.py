# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`state: absent` removes every trace and nothing else, on hosts with rules, marks, tables and files of others."""

from __future__ import annotations

from lab import TPROXY_HOSTS, Lab, through

ROLE = [
    {
        "hosts": "tproxy_hosts",
        "tasks": [{"ansible.builtin.include_role": {"name": "clearproxy.haproxy.tproxy_host"}}],
    }
]


def test_absent_is_as_if_we_had_never_been_there(lab: Lab) -> None:
    for host in TPROXY_HOSTS:
        assert lab.run(host, "/srv/fingerprint") != lab.run(host, "cat /srv/before"), host

    removed = lab.play(ROLE, "-e", "tproxy_host_state=absent")
    assert removed.code == 0, removed.output
    for host in TPROXY_HOSTS:
        lab.run(host, "/srv/fingerprint >/srv/after")
        assert lab.host(host).run("diff /srv/before /srv/after").stdout == "", host
        for family in ("ipv4", "ipv6"):
            assert through(lab, host, family) is None

    again = lab.play(ROLE, "-e", "tproxy_host_state=absent")
    assert again.code == 0, again.output
    assert again.changed == 0, again.output

    assert lab.play(ROLE).code == 0
    for host in TPROXY_HOSTS:
        for family, client in (("ipv4", "10.99.1.11"), ("ipv6", "fd00:99:1::11")):
            assert through(lab, host, family) == client
