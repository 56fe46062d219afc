# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_appsession import (
    AppsessionError,
    describe,
    translate,
)

PLAIN = {
    "method": "app_session",
    "name": "JSESSIONID",
    "request_learn": False,
    "prefix": False,
    "path_parameter": True,
    "query_string": False,
    "len": 52,
    "timeout": "3h",
}


@pytest.mark.parametrize(
    ("line", "differences"),
    [
        ("appsession JSESSIONID len 52 timeout 3h", {}),
        ("JSESSIONID len 52 timeout 3h", {}),
        ("  appsession\tJSESSIONID timeout 3h  len 52 ", {}),
        ("appsession JSESSIONID len 52 timeout 3h request-learn", {"request_learn": True}),
        ("appsession JSESSIONID len 52 timeout 3h prefix", {"prefix": True}),
        ("appsession JSESSIONID len 52 timeout 3h mode path-parameters", {}),
        (
            "appsession JSESSIONID len 52 timeout 3h mode query-string",
            {"path_parameter": False, "query_string": True},
        ),
        ("appsession JSESSIONID len 52 timeout 10800000", {"timeout": "10800000ms"}),
        (
            "appsession ASPSESSIONID len 64 timeout 5m prefix request-learn mode query-string",
            {
                "name": "ASPSESSIONID",
                "len": 64,
                "timeout": "5m",
                "prefix": True,
                "request_learn": True,
                "path_parameter": False,
                "query_string": True,
            },
        ),
    ],
)
def test_translation(line: str, differences: dict[str, object]) -> None:
    assert translate(line) == {**PLAIN, **differences}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "empty"),
        ("appsession", "empty"),
        ("appsession A B len 52 timeout 3h", "'B' is not a word"),
        ("appsession A len 52", "no 'timeout'"),
        ("appsession A timeout 3h", "no 'len'"),
        ("appsession A len", "'len' has no value"),
        ("appsession A len x timeout 3h", "len 'x'"),
        ("appsession A len 0 timeout 3h", "len '0'"),
        ("appsession A len 16384 timeout 3h", "len '16384'"),
        ("appsession A len 52 timeout soon", "timeout 'soon'"),
        ("appsession A len 52 timeout 0", "timeout '0'"),
        ("appsession A len 52 len 52 timeout 3h", "'len' is given twice"),
        ("appsession A len 52 timeout 3h mode cookie", "mode 'cookie'"),
        ("appsession A;B len 52 timeout 3h", "cookie name 'A;B'"),
    ],
)
def test_refusals_name_the_word(line: str, message: str) -> None:
    with pytest.raises(AppsessionError, match=message):
        translate(line)


def test_description_leaves_out_what_is_off() -> None:
    assert describe(PLAIN) == (
        "{method: app_session, name: JSESSIONID, path_parameter: true, len: 52, timeout: 3h}"
    )
