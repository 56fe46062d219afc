# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Transparent after a reboot, with interfaces that come late, and after a ruleset was flushed by hand. No Ansible."""

from __future__ import annotations

import re
import time
from functools import partial

import pytest
from lab import TPROXY_HOSTS, Lab, through

FAMILIES = {"ipv4": "10.99.1.11", "ipv6": "fd00:99:1::11"}
# Of host variables: who has what.
GUARDED = CANARY = "debian13"
INTERCEPTING = "debian12"
METRICS = "/srv/metrics/tproxy.prom"


def transparent(lab: Lab, host: str) -> bool:
    return all(through(lab, host, family) == client for family, client in FAMILIES.items())


def caught(lab: Lab, host: str, family: str, port: int) -> str | None:
    """Whom the server sees when the client there wants a port of an address that nobody has."""
    address = {"ipv4": "198.51.100.9", "ipv6": "[2001:db8:9::9]"}[family]
    return through(lab, host, family, f"--connect-to '::{address}:{port}'")


def paths(lab: Lab, host: str) -> dict[str, str]:
    """Family -> what the canary wrote since the host booted: 1 for a path that is up, 0 for one that is not."""
    # Older than the boot: that of the last run before it.
    text = lab.host(host).run(f"find {METRICS} -newer /run/systemd/system -exec cat {{}} +").stdout
    return dict(re.findall(r'(?m)^haproxy_tproxy_path_up\{.*family="(\w+)".*\} (\d)$', text))


def failed(lab: Lab, host: str, unit: str) -> bool:
    return bool(lab.host(host).run(f"systemctl is-failed {unit}").rc == 0)


def active(lab: Lab, host: str, unit: str) -> bool:
    return bool(lab.host(host).run(f"systemctl is-active {unit}").rc == 0)


def way_out(lab: Lab, host: str, what: str) -> str:
    """The gateway to which the server in a host sends something."""
    words = lab.run(host, f"ip -n server route get 203.0.113.9 {what}").split()
    return words[words.index("via") + 1]


# What else the server sends: everything goes by the proxy, or it has its own way out still.
OWN_WAY = {"debian11": "10.99.2.2", "debian12": "10.99.9.2", "debian13": "10.99.9.2"}


def test_after_a_reboot_the_first_request_that_is_answered_is_transparent(lab: Lab) -> None:
    lab.restart(*TPROXY_HOSTS)
    for host in TPROXY_HOSTS:
        lab.wait(partial(active, lab, host, "haproxy"), "HAProxy")
        begin = time.monotonic()
        for family, client in FAMILIES.items():
            seen = lab.wait(partial(through, lab, host, family), f"{family} on {host}")
            assert seen == client
        assert time.monotonic() - begin < 5, "HAProxy was there long before the path"
        assert way_out(lab, host, "from 10.99.2.11 mark 0x2") == "10.99.2.2"
        assert way_out(lab, host, "") == OWN_WAY[host]
    for family, client in FAMILIES.items():
        assert caught(lab, INTERCEPTING, family, 8081) == client
        # The control: nobody is there.
        assert caught(lab, INTERCEPTING, family, 8083) is None
    lab.wait(partial(paths, lab, CANARY), "the canary")
    assert set(paths(lab, CANARY).values()) == {"1"}


# Option of ip, the proxy, an address that nobody has, and the subnet of both.
WAYS = {
    "ipv4": ("-4", "10.99.2.2", "10.99.2.77", "10.99.2.0/24"),
    "ipv6": ("-6", "fd00:99:2::2", "fd00:99:2::77", "fd00:99:2::/64"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_canary_tells_prometheus_and_systemd_of_a_dead_path(lab: Lab, family: str) -> None:
    """HAProxy's own check is green all the time."""
    option, right, wrong, subnet = WAYS[family]
    replace = f"ip -n server {option} route replace default dev eth0 table 101 proto kernel via"
    # The proxy itself is still answered: else it would be the server that is down.
    neighbours = f"{subnet} dev eth0 table 101"
    all_up = dict.fromkeys(FAMILIES, "1")

    def written(expected: dict[str, str]) -> bool:
        return paths(lab, CANARY) == expected

    assert active(lab, CANARY, "tproxy-canary.timer")
    lab.wait(partial(written, all_up), "all paths up")
    lab.run(CANARY, f"ip -n server {option} route add {neighbours}; {replace} {wrong}")
    try:
        lab.wait(partial(written, {**all_up, family: "0"}), f"{family} down, and nothing else")
        lab.wait(partial(failed, lab, CANARY, "tproxy-canary"), "the failed unit", 10)
        assert f'family="{family}"' in lab.run(CANARY, f"grep '_failed_hop{{' {METRICS}")
    finally:
        lab.run(CANARY, f"{replace} {right}; ip -n server {option} route del {neighbours}")
    lab.wait(partial(written, all_up), "all paths up again")
    lab.wait(lambda: not failed(lab, CANARY, "tproxy-canary"), "the unit", 10)


def test_an_interface_that_appears_ten_seconds_after_boot(lab: Lab) -> None:
    for host in TPROXY_HOSTS:
        lab.run(host, "systemctl disable lab-back lab-server && systemctl enable lab-late.timer")
    try:
        lab.restart(*TPROXY_HOSTS)
        # The last to boot: the others may have it by now.
        assert lab.host(TPROXY_HOSTS[-1]).run("ip link show back").rc, "the interface is not late"
        for host in TPROXY_HOSTS:
            lab.wait(partial(active, lab, host, "lab-server"), "the interface")
            lab.wait(partial(transparent, lab, host), f"{host} after the interface appeared", 15)
    finally:
        for host in TPROXY_HOSTS:
            # What udev does for an interface that comes late; there is none in here.
            lab.run(
                host,
                "systemctl disable lab-late.timer && systemctl enable lab-back lab-server"
                " && tproxy-host start",
            )


@pytest.mark.parametrize(
    "flush", ["nft flush ruleset", "iptables -t mangle -F", "ip -6 rule del priority 101"]
)
def test_the_guard_restores_what_a_hand_flushed(lab: Lab, flush: str) -> None:
    def repairs() -> int:
        return int(lab.run(GUARDED, f"{said} | grep -c '; put back$' || :"))

    said = "journalctl --unit tproxy-host-guard --output cat"
    assert transparent(lab, GUARDED)
    before = repairs()
    lab.run(GUARDED, flush)
    # It may be back before anyone can see that it was gone: the guard's own line says so.
    lab.wait(lambda: repairs() > before, "the guard's line", seconds=10)
    assert transparent(lab, GUARDED)
