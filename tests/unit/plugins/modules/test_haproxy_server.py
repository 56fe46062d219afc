# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import typing as t

import pytest
import yaml
from ansible.module_utils import testing

from ansible_collections.clearproxy.haproxy.plugins.doc_fragments import _socket
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _server_model
from ansible_collections.clearproxy.haproxy.plugins.modules import haproxy_server


def run(**args: t.Any) -> dict[str, t.Any]:
    out = io.StringIO()
    patched, captured = testing.patch_module_args(args), contextlib.redirect_stdout(out)
    with patched, captured, pytest.raises(SystemExit):
        haproxy_server.main()
    return t.cast("dict[str, t.Any]", json.loads(out.getvalue()))


def test_documentation_and_spec_agree() -> None:
    documented = {
        **yaml.safe_load(haproxy_server.DOCUMENTATION)["options"],
        **yaml.safe_load(_socket.ModuleDocFragment.DOCUMENTATION)["options"],
    }
    spec = haproxy_server.argument_spec()
    compare(documented, spec)


def compare(documented: dict[str, t.Any], spec: dict[str, t.Any]) -> None:
    assert set(documented) == set(spec)
    for name, option in documented.items():
        assert option["description"], name
        if "suboptions" in option:
            compare(option["suboptions"], spec[name]["options"])
        nested = ("description", "suboptions", "options", "no_log")
        described = {key: value for key, value in option.items() if key not in nested}
        assert described == {k: v for k, v in spec[name].items() if k not in nested}, name


def test_everything_that_is_returned_is_documented() -> None:
    documented = yaml.safe_load(haproxy_server.RETURN)["servers"]["contains"]
    empty = dict.fromkeys((field.name for field in dataclasses.fields(_server_model.Server)), 0)
    server = _server_model.Server(**empty)  # type: ignore[arg-type]
    more = {"socket", "streams", "connections", "idle_connections"}
    assert set(documented) == set(server.as_dict()) | more


def test_examples_are_valid_tasks() -> None:
    spec = haproxy_server.argument_spec()
    names = set(spec) | {alias for option in spec.values() for alias in option.get("aliases", [])}
    tasks = yaml.safe_load(haproxy_server.EXAMPLES)
    assert len(tasks) >= 4
    for task in tasks:
        assert task["name"]
        assert set(task["clearproxy.haproxy.haproxy_server"]) <= names


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "servers"),
        ({"servers": ["a"], "state": "up"}, "state"),
        ({"servers": ["a b"], "state": "drain"}, "server 'a b'"),
        ({"servers": ["a"], "weight": 257}, "weight '257'"),
        ({"servers": ["a"], "state": "drain", "wait_interval": 0}, "wait_interval"),
        ({"servers": ["a"], "state": "ready", "drain": True}, "drain_first"),
        ({"servers": ["a"], "state": "drain", "timeout": -1}, "timeout"),
        ({"servers": ["a"], "state": "drain", "socket": "x"}, "socket 'x'"),
        ({"servers": ["a"], "state": "drain", "socket": "/nowhere/at/all"}, "does not exist"),
    ],
)
def test_bad_input_is_one_sentence(args: dict[str, t.Any], words: str) -> None:
    result = run(**args)
    assert result["failed"] is True
    assert words in result["msg"]
    assert "\n" not in result["msg"]
    assert result.get("changed", False) is False


def test_nothing_desired_still_needs_haproxy() -> None:
    """A typo in the socket is found although the task changes nothing."""
    assert run(servers=["a"], socket="/nowhere/at/all")["failed"] is True
