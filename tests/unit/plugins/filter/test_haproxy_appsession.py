# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.clearproxy.haproxy.plugins.filter.haproxy_appsession import FilterModule

translate = FilterModule().filters()["haproxy_appsession"]


def test_translates() -> None:
    assert translate("appsession PHPSESSID len 52 timeout 3h")["timeout"] == "3h"


@pytest.mark.parametrize("line", ["appsession", None, 5])
def test_refuses_in_one_sentence(line: object) -> None:
    with pytest.raises(AnsibleFilterError, match=r"haproxy_appsession.*\.$"):
        translate(line)
