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
from ansible_collections.clearproxy.haproxy.plugins.modules import haproxy_command


def run(**args: t.Any) -> dict[str, t.Any]:
    out = io.StringIO()
    patched, captured = testing.patch_module_args(args), contextlib.redirect_stdout(out)
    with patched, captured, pytest.raises(SystemExit):
        haproxy_command.main()
    return t.cast("dict[str, t.Any]", json.loads(out.getvalue()))


def test_documentation_and_spec_agree() -> None:
    documented = {
        **yaml.safe_load(haproxy_command.DOCUMENTATION)["options"],
        **yaml.safe_load(_socket.ModuleDocFragment.DOCUMENTATION)["options"],
    }
    spec = haproxy_command.argument_spec()
    assert set(documented) == set(spec)
    for name, option in documented.items():
        described = {key: value for key, value in option.items() if key != "description"}
        assert described == {k: v for k, v in spec[name].items() if k != "no_log"}, name


def test_examples_are_valid_tasks() -> None:
    spec = haproxy_command.argument_spec()
    names = set(spec) | {alias for option in spec.values() for alias in option.get("aliases", [])}
    tasks = yaml.safe_load(haproxy_command.EXAMPLES)
    own = [task for task in tasks if "clearproxy.haproxy.haproxy_command" in task]
    assert len(own) >= 5
    for task in tasks:
        assert task["name"]
    for task in own:
        assert set(task["clearproxy.haproxy.haproxy_command"] or {}) <= names


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "commands"),
        ({"commands": []}, "list is empty"),
        ({"commands": 1}, "number 1 must be a text"),
        ({"commands": "show info;show stat"}, "unescaped"),
        ({"commands": "quit"}, "opens and closes itself"),
        ({"commands": "show info", "timeout": 0}, "timeout"),
        ({"commands": "show info", "socket": "x"}, "socket 'x'"),
        ({"commands": "show info", "socket": "/nowhere/at/all"}, "does not exist"),
    ],
)
def test_bad_input_is_one_sentence(args: dict[str, t.Any], words: str) -> None:
    result = run(**args)
    assert result["failed"] is True
    assert words in result["msg"]
    assert "\n" not in result["msg"]
    assert result.get("changed", False) is False


def test_a_private_key_is_not_shown() -> None:
    payload = "-----BEGIN PRIVATE KEY-----\nMIIsecret\n-----END PRIVATE KEY-----"
    commands = [{"command": "set ssl cert x", "payload": payload}]
    result = run(commands=commands, socket="/nowhere/at/all")
    assert "no_log: true" in result["msg"]
    assert "MIIsecret" not in result["msg"]
    hidden = run(commands=commands, socket="/nowhere/at/all", _ansible_no_log=True)
    assert "does not exist" in hidden["msg"]
