# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What cannot work is refused before anything changes: variable, host and remedy in one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from lab import FRONT, FULL, SERVERS, Lab

BACKEND: dict[str, Any] = {
    "name": "app",
    "servers": [{"name": "one", "address": "127.0.0.1", "port": 80}],
}

# What is wrong: the variables that say so, and what the refusal must name beside the host.
WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "an unknown persistence method": (
        {"haproxy_affinity_backends": [{**BACKEND, "persistence": {"method": "telepathy"}}]},
        ("haproxy_affinity_backends[0].persistence.method", "telepathy", "app_session", "proxy"),
    ),
    "a server without address": (
        {"haproxy_affinity_address": "", "haproxy_affinity_address_ipv6": ""},
        ("address", "app1", "haproxy_affinity_address"),
    ),
    "a host with no package source": (
        {"haproxy_build_suite": "nowhere"},
        ("haproxy_build_suite", "nowhere", "proxy"),
    ),
    "a port in use": (
        {
            "haproxy_affinity_frontends": [
                {
                    "name": "www",
                    "binds": [{"address": f"{FRONT}.2", "port": 7777}],
                    "default_backend": "app",
                }
            ]
        },
        ("7777", "python3", "haproxy_affinity_frontends", "proxy"),
    ),
}
# Refused by the same preflights, whose every refusal is tested in tests/unit and tests/kernel.
if FULL:
    WRONG |= {
        "a mark of no bits": ({"tproxy_host_mark": "0x0"}, ("tproxy_host_mark", "proxy")),
        "an interface that is not there": (
            {"tproxy_host_interfaces": ["eth99"]},
            ("tproxy_host_interfaces", "eth99", "proxy"),
        ),
        "a gateway on no subnet of the server": (
            {"tproxy_backend_gateways": ["192.0.2.1"]},
            ("tproxy_backend_gateways", "192.0.2.1", "app1"),
        ),
    }

FINGERPRINT = (
    "iptables-save -c | grep -v '^#' | sed 's/\\[[0-9:]*\\]//g'; ip rule; ip route show table all; ip -6 rule;"
    " find /etc /opt /usr/local -xdev -type f -newermt '2020-01-01' -printf '%p %T@ %s\\n' 2>/dev/null | sort;"
    " systemctl show --property MainPID --property ActiveEnterTimestampMonotonic haproxy nginx"
)


@pytest.fixture(scope="module", autouse=True)
def listener(lab: Lab) -> Iterator[None]:
    """Something that is not HAProxy listens on port 7777 of the proxy."""
    pid = lab.run(
        "proxy",
        f"cd /; nohup python3 -m http.server 7777 --bind {FRONT}.2 --directory /srv >/dev/null 2>&1 & echo $!",
    ).strip()
    lab.wait(lambda: lab.host("proxy").run("ss -Hltn sport = :7777").stdout, "the listener")
    yield
    lab.run("proxy", f"kill {pid}")


def fingerprints(lab: Lab) -> dict[str, str]:
    return {name: lab.host(name).run(FINGERPRINT).stdout for name in ("proxy", *SERVERS)}


@pytest.mark.parametrize("wrong", WRONG)
def test_refused_before_anything_changes(lab: Lab, wrong: str) -> None:
    variables, words = WRONG[wrong]
    before = fingerprints(lab)
    run = lab.play("clearproxy.haproxy.site", "-e", json.dumps(variables))
    assert run.code != 0, run.output
    assert run.changed == 0, run.output
    message = " ".join(run.output.split())
    for word in words:
        assert word in message, run.output
    assert "Traceback" not in run.output
    assert fingerprints(lab) == before


def test_a_host_without_the_socket_match_is_refused(lab: Lab) -> None:
    """The socket match is taken away from iptables; tests/kernel has the other ways in which a kernel cannot."""
    path = lab.run("proxy", "find / -xdev -name libxt_socket.so | head -n 1").strip()
    lab.run("proxy", f"mount --bind /dev/null {path}")
    try:
        run = lab.play("clearproxy.haproxy.site")
    finally:
        lab.run("proxy", f"umount {path}")
    assert run.code != 0
    assert run.changed == 0
    for word in ("socket", "proxy", "install the complete iptables package"):
        assert word in " ".join(run.output.split())
