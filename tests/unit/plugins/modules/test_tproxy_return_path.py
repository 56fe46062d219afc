# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""tproxy_return_path as Ansible calls it: bad options end the task with one sentence, before the host is looked at."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.clearproxy.haproxy.plugins.modules import tproxy_return_path


def call(capsys: pytest.CaptureFixture[str], **options: t.Any) -> dict[str, t.Any]:
    with patch_module_args(options), pytest.raises(SystemExit):
        tproxy_return_path.main()
    return t.cast("dict[str, t.Any]", json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "state is present but all of the following are missing: gateways"),
        ({"gateways": []}, "gateways: none given"),
        ({"gateways": ["proxy"]}, "gateways: 'proxy' is not an IP address"),
        ({"gateways": ["192.0.2.1", "192.0.2.2"]}, "are both ipv4"),
        ({"gateways": ["fe80::1"]}, "link-local"),
        ({"gateways": ["::"]}, "cannot be a gateway"),
        ({"gateways": ["192.0.2.1"], "mode": "nat"}, "value of mode must be one of"),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_bad_options(
    capsys: pytest.CaptureFixture[str], options: dict[str, t.Any], said: str, check: bool
) -> None:
    result = call(capsys, _ansible_check_mode=check, **options)
    assert result["failed"] is True
    assert said in result["msg"]
    assert "exception" not in result
