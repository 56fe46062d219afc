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
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _dynamic_server
from ansible_collections.clearproxy.haproxy.plugins.modules import haproxy_dynamic_server


def run(**args: t.Any) -> dict[str, t.Any]:
    out = io.StringIO()
    patched, captured = testing.patch_module_args(args), contextlib.redirect_stdout(out)
    with patched, captured, pytest.raises(SystemExit):
        haproxy_dynamic_server.main()
    return t.cast("dict[str, t.Any]", json.loads(out.getvalue()))


def test_documentation_and_spec_agree() -> None:
    documented = {
        **yaml.safe_load(haproxy_dynamic_server.DOCUMENTATION)["options"],
        **yaml.safe_load(_socket.ModuleDocFragment.DOCUMENTATION)["options"],
    }
    spec = haproxy_dynamic_server.argument_spec()
    assert set(documented) == set(spec)
    for name, option in documented.items():
        described = {key: value for key, value in option.items() if key != "description"}
        assert described == {k: v for k, v in spec[name].items() if k != "no_log"}, name


def test_every_setting_is_an_option_and_returned() -> None:
    returned = yaml.safe_load(haproxy_dynamic_server.RETURN)["servers"]["contains"]
    spec = haproxy_dynamic_server.argument_spec()
    for name in (*_dynamic_server.SETTINGS, "admin_state"):
        assert spec[name]["type"] == returned[name]["type"], name
    more = {"socket", "backend", "name", "admin_state", "state", "health_checks", "agent_checks"}
    assert set(returned) == {*_dynamic_server.SETTINGS, *more}


def test_examples_are_valid_tasks() -> None:
    spec = haproxy_dynamic_server.argument_spec()
    tasks = yaml.safe_load(haproxy_dynamic_server.EXAMPLES)
    assert len(tasks) >= 4
    for task in tasks:
        args = task["clearproxy.haproxy.haproxy_dynamic_server"]
        assert task["name"]
        assert set(args) <= set(spec)
        full = {name: option.get("default") for name, option in spec.items()}
        _dynamic_server.Desired.from_params({**full, **args})


BASE: dict[str, t.Any] = {"backend": "app", "name": "n1", "address": "192.0.2.1"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "backend"),
        ({**BASE, "state": "there"}, "state"),
        ({**BASE, "name": "a b"}, "server 'a b'"),
        ({**BASE, "address": "web1.example"}, "never resolves"),
        ({**BASE, "port": 70000}, "port 70000"),
        ({**BASE, "timeout": -1}, "timeout"),
        ({**BASE, "socket": "/nowhere/at/all"}, "does not exist"),
    ],
)
def test_bad_input_is_one_sentence(args: dict[str, t.Any], words: str) -> None:
    result = run(**args)
    assert result["failed"] is True
    assert words in result["msg"]
    assert "\n" not in result["msg"]
    assert result.get("changed", False) is False
