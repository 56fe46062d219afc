# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_listen import (
    conflicts,
    missing_addresses,
    not_listening,
)

UNIT = "haproxy.service"
OURS = {"address": "0.0.0.0", "port": 80, "pid": 5, "command": "haproxy", "unit": UNIT}
NGINX = {"address": "0.0.0.0", "port": 80, "pid": 7, "command": "nginx", "unit": "nginx.service"}
BARE = {"address": "::", "port": 80, "pid": 9, "command": "python3", "unit": ""}


def seen(state: str, *listeners: dict[str, t.Any], address: str = "10.0.0.1") -> dict[str, t.Any]:
    return {
        "address": address,
        "port": 80,
        "where": "haproxy_affinity_frontends[0].binds[0]",
        "state": state,
        "listeners": list(listeners),
    }


def test_free_and_our_own_ports_are_fine() -> None:
    assert (
        conflicts([seen("free"), seen("busy", OURS), seen("absent"), seen("unknown")], UNIT) == []
    )


def test_a_neighbour_that_does_not_stand_in_the_way_is_fine() -> None:
    # the kernel granted the bind: an IPv6-only wildcard beside an IPv4 address
    assert conflicts([seen("free", BARE)], UNIT) == []


def test_conflict_names_who() -> None:
    assert conflicts([seen("busy", OURS, NGINX)], UNIT) == [
        "haproxy_affinity_frontends[0].binds[0]: 10.0.0.1:80 is in use by nginx (pid 7, nginx.service)"
        " listening on 0.0.0.0:80; stop it or choose another port."
    ]
    assert "python3 (pid 9) listening on [::]:80" in conflicts([seen("busy", BARE)], UNIT)[0]


def test_a_haproxy_that_is_not_the_service_is_a_conflict() -> None:
    stray = {**OURS, "unit": "session-1.scope"}
    assert len(conflicts([seen("busy", stray)], UNIT)) == 1
    assert len(conflicts([seen("busy", OURS)], "other.service")) == 1


def test_unseen_owner() -> None:
    assert "a process that cannot be seen" in conflicts([seen("busy")], UNIT)[0]


def test_absent_addresses() -> None:
    foreign = {**seen("absent"), "transparent": True}
    (sentence,) = missing_addresses([seen("free"), foreign, seen("absent", address="fd00::1")])
    assert "[fd00::1]:80 cannot be bound now" in sentence


def test_not_listening() -> None:
    assert not_listening([seen("busy", OURS)], UNIT) == []
    assert len(not_listening([seen("busy", NGINX), seen("free")], UNIT)) == 2
