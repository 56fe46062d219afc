# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import io
import json
import typing as t

import pytest
import yaml
from ansible.module_utils import testing

from ansible_collections.clearproxy.haproxy.plugins.doc_fragments import _socket
from ansible_collections.clearproxy.haproxy.plugins.modules import haproxy_global


def run(**args: t.Any) -> dict[str, t.Any]:
    out = io.StringIO()
    patched, captured = testing.patch_module_args(args), contextlib.redirect_stdout(out)
    with patched, captured, pytest.raises(SystemExit):
        haproxy_global.main()
    return t.cast("dict[str, t.Any]", json.loads(out.getvalue()))


def test_documentation_and_spec_agree() -> None:
    documented = {
        **yaml.safe_load(haproxy_global.DOCUMENTATION)["options"],
        **yaml.safe_load(_socket.ModuleDocFragment.DOCUMENTATION)["options"],
    }
    spec = {
        name: {key: value for key, value in option.items() if key != "no_log"}
        for name, option in haproxy_global.argument_spec().items()
    }
    assert set(documented) == set(spec)
    for name, option in documented.items():
        described = {key: value for key, value in option.items() if key != "description"}
        assert described == spec[name], name


def test_examples_are_valid_tasks() -> None:
    spec = haproxy_global.argument_spec()
    names = set(spec) | {alias for option in spec.values() for alias in option.get("aliases", [])}
    tasks = yaml.safe_load(haproxy_global.EXAMPLES)
    assert len(tasks) >= 3
    for task in tasks:
        assert task["name"]
        assert set(task["clearproxy.haproxy.haproxy_global"]) <= names


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"maxconn": "abc"}, "maxconn"),
        ({"maxconn": -5}, "maxconn -5"),
        ({"maxconn": 2**31}, "maxconn 2147483648"),
        ({"rate_limit_connections": 2**32}, "rate_limit_connections 4294967296"),
        ({"rate_limit_http_compression": 4194304}, "from 0 to 4194303"),
        ({"clear_counters": "some"}, "clear_counters"),
        ({"profiling_memory": "auto"}, "profiling_memory"),
        ({"timeout": -1}, "timeout"),
        ({"socket": "/nowhere/at/all"}, "does not exist"),
    ],
)
def test_bad_input_is_one_sentence(args: dict[str, t.Any], words: str) -> None:
    result = run(**args)
    assert result["failed"] is True
    assert words in result["msg"]
    assert "\n" not in result["msg"]
    assert result.get("changed", False) is False
