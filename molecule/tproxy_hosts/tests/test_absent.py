# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`state: absent` removes every trace and nothing else, on hosts with rules, marks, tables and files of others."""

from __future__ import annotations

from typing import Any

from lab import TPROXY_HOSTS, Lab, through

# The proxies', and that of the servers inside them.
ROLES: list[dict[str, Any]] = [
    {
        "hosts": "tproxy_hosts",
        "tasks": [{"ansible.builtin.include_role": {"name": "clearproxy.haproxy.tproxy_host"}}],
    },
    {
        "hosts": "tproxy_hosts",
        "gather_facts": False,
        "vars": {"ansible_python_interpreter": "/srv/python-in-server"},
        "tasks": [{"ansible.builtin.include_role": {"name": "clearproxy.haproxy.tproxy_backend"}}],
    },
]
ABSENT = '{"tproxy_host_state": "absent", "tproxy_backend_state": "absent"}'


def test_absent_is_as_if_we_had_never_been_there(lab: Lab) -> None:
    for host in TPROXY_HOSTS:
        now = lab.run(host, "/srv/fingerprint")
        for trace in ("haproxy.service.wants/tproxy-host.service", "tproxy-backend.service "):
            assert trace in now, "what was left of it would not be seen"
        assert now != lab.run(host, "cat /srv/before"), host

    removed = lab.play(ROLES, "-e", ABSENT)
    assert removed.code == 0, removed.output
    for host in TPROXY_HOSTS:
        lab.run(host, "/srv/fingerprint >/srv/after")
        assert lab.host(host).run("diff /srv/before /srv/after").stdout == "", host
        lab.run(host, "ip netns exec server /srv/fingerprint >/srv/server-after")
        assert lab.host(host).run("diff /srv/server-before /srv/server-after").stdout == "", host
        for family in ("ipv4", "ipv6"):
            assert through(lab, host, family) is None

    again = lab.play(ROLES, "-e", ABSENT)
    assert again.code == 0, again.output
    assert again.changed == 0, again.output

    assert lab.play(list(reversed(ROLES))).code == 0
    for host in TPROXY_HOSTS:
        for family, client in (("ipv4", "10.99.1.11"), ("ipv6", "fd00:99:1::11")):
            assert through(lab, host, family) == client
