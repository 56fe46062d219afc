# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""tproxy_rules as Ansible calls it: bad options end the task with one sentence, before the host is looked at."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.clearproxy.haproxy.plugins.modules import tproxy_rules


def call(capsys: pytest.CaptureFixture[str], **options: t.Any) -> dict[str, t.Any]:
    with patch_module_args(options), pytest.raises(SystemExit):
        tproxy_rules.main()
    return t.cast("dict[str, t.Any]", json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mark": "0x2"}, "mark: 0x2 has bits outside the mask 0x1"),
        ({"mask": 0}, "mask: 0 selects no bit"),
        ({"table": 254}, "table: 254 cannot be used"),
        ({"table": "main"}, "'table' is of type"),
        ({"families": ["ipv5"]}, "value of families must be one or more of: ipv4, ipv6"),
        ({"families": []}, "families: at least one"),
        ({"chain": "INPUT"}, "chain: 'INPUT' is a name of iptables itself"),
        ({"firewall": "pf"}, "value of firewall must be one of: iptables"),
        ({"interfaces": ["eth0 "]}, "interfaces: 'eth0 ' cannot be the name"),
        ({"state": "there"}, "value of state must be one of: present, absent"),
        ({"sysctls": {"kernel.panic": 1}}, "sysctls: 'kernel.panic' is not a name below net"),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_bad_options(
    capsys: pytest.CaptureFixture[str], options: dict[str, t.Any], said: str, check: bool
) -> None:
    result = call(capsys, _ansible_check_mode=check, **options)
    assert result["failed"] is True
    assert said in result["msg"]
    assert "\n" not in result["msg"]
    assert "exception" not in result
