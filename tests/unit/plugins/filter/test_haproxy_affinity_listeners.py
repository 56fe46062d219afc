# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.clearproxy.haproxy.plugins.filter.haproxy_affinity_listeners import (
    FilterModule,
)

judge = FilterModule().filters()["haproxy_affinity_listeners"]


def test_sorts_into_kinds() -> None:
    other = {"address": "10.0.0.1", "port": 80, "pid": 1, "command": "x", "unit": "x.service"}
    seen = [
        {"address": "10.0.0.1", "port": 80, "where": "a", "state": "busy", "listeners": [other]},
        {"address": "10.0.0.2", "port": 80, "where": "b", "state": "absent", "listeners": []},
    ]
    answer = judge(seen)
    assert [len(answer[key]) for key in ("conflicts", "absent", "silent")] == [1, 1, 2]
    assert judge(seen, unit="x.service")["conflicts"] == []
