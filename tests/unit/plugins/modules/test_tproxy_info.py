# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""tproxy_info as Ansible calls it: bad options end the task with one sentence, before the host is looked at."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.clearproxy.haproxy.plugins.modules import tproxy_info


def call(capsys: pytest.CaptureFixture[str], **options: t.Any) -> dict[str, t.Any]:
    with patch_module_args(options), pytest.raises(SystemExit):
        tproxy_info.main()
    return t.cast("dict[str, t.Any]", json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"table": "main"}, "'table' is of type"),
        ({"tabel": 100}, "rules.tabel"),
        ({"families": "ipv5"}, "value of families must be one or more of: ipv4, ipv6"),
        ({"intercepts": [{"ports": [80]}]}, "missing required arguments: to_port"),
        (
            {"intercepts": [{"ports": [80], "to_port": 3129, "to_prot": 1}]},
            "rules.intercepts.to_prot",
        ),
        ({"rp_filter": 3}, "value of rp_filter must be one of: 0, 1, 2"),
        ({"sysctls": ["net.ipv4.ip_forward"]}, "'sysctls' is of type"),
        ({"mark": "0x2"}, "mark: 0x2 has bits outside the mask 0x1"),
        ("interfaces", "dictionary requested"),
    ],
)
def test_bad_rules(capsys: pytest.CaptureFixture[str], rules: t.Any, said: str) -> None:
    result = call(capsys, gather=[], rules=rules)
    assert result["failed"] is True
    assert said in result["msg"]
    assert "\n" not in result["msg"]
    assert "exception" not in result
