# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Transparent after a reboot, with interfaces that come late, and after a ruleset was flushed by hand. No Ansible."""

from __future__ import annotations

import time
from functools import partial

import pytest
from lab import TPROXY_HOSTS, Lab, through

FAMILIES = {"ipv4": "10.99.1.11", "ipv6": "fd00:99:1::11"}
# Of host variables: this one has the guard.
GUARDED = "debian13"


def transparent(lab: Lab, host: str) -> bool:
    return all(through(lab, host, family) == client for family, client in FAMILIES.items())


def active(lab: Lab, host: str, unit: str) -> bool:
    return bool(lab.host(host).run(f"systemctl is-active {unit}").rc == 0)


def test_after_a_reboot_the_first_request_that_is_answered_is_transparent(lab: Lab) -> None:
    lab.restart(*TPROXY_HOSTS)
    for host in TPROXY_HOSTS:
        lab.wait(partial(active, lab, host, "haproxy"), "HAProxy")
        begin = time.monotonic()
        for family, client in FAMILIES.items():
            seen = lab.wait(partial(through, lab, host, family), f"{family} on {host}")
            assert seen == client
        assert time.monotonic() - begin < 5, "HAProxy was there long before the path"


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
            lab.run(
                host, "systemctl disable lab-late.timer && systemctl enable lab-back lab-server"
            )


@pytest.mark.parametrize(
    "flush", ["nft flush ruleset", "iptables -t mangle -F", "ip -6 rule del priority 101"]
)
def test_the_guard_restores_what_a_hand_flushed(lab: Lab, flush: str) -> None:
    assert transparent(lab, GUARDED)
    lab.run(GUARDED, flush)
    assert not transparent(lab, GUARDED), "the guard was quicker than the test: it shows nothing"
    begin = time.monotonic()
    lab.wait(partial(transparent, lab, GUARDED), "the guard", seconds=10)
    assert time.monotonic() - begin < 10
