# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.clearproxy.haproxy.plugins.filter.haproxy_affinity_plan import (
    FilterModule as PlanModule,
)
from ansible_collections.clearproxy.haproxy.plugins.filter.haproxy_affinity_rights import (
    FilterModule,
)

judge = FilterModule().filters()["haproxy_affinity_rights"]
make = PlanModule().filters()["haproxy_affinity_plan"]


def test_it_judges_by_the_plan_of_the_other_filter() -> None:
    backend = {
        "name": "app",
        "transparent": "clientip",
        "servers": [{"name": "s", "address": "10.0.0.1", "port": 80}],
    }
    version = "HAProxy version 3.2.1\nFeature list : +LINUX_CAP +TPROXY +LINUX_TPROXY"
    rights = make({"backends": [backend]}, version=version)["rights"]
    assert rights["right"] == "setcap"
    master = {"pid": 7, "uid": 5, "bounding": 0, "ambient": 0}
    observed = {"unit": "haproxy.service", "wanted_uid": 5, "master": master, "workers": []}
    judged = judge(observed, rights)
    assert judged["restart"] == "its master, 7, runs as uid 5 instead of 0"
    assert len(judged["problems"]) == 1
    assert judge({**observed, "master": None}, rights) == {"restart": "", "problems": []}
