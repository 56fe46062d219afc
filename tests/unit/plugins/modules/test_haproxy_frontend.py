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
from ansible_collections.clearproxy.haproxy.plugins.modules import haproxy_frontend


def run(**args: t.Any) -> dict[str, t.Any]:
    out = io.StringIO()
    patched, captured = testing.patch_module_args(args), contextlib.redirect_stdout(out)
    with patched, captured, pytest.raises(SystemExit):
        haproxy_frontend.main()
    return t.cast("dict[str, t.Any]", json.loads(out.getvalue()))


def test_documentation_and_spec_agree() -> None:
    documented = {
        **yaml.safe_load(haproxy_frontend.DOCUMENTATION)["options"],
        **yaml.safe_load(_socket.ModuleDocFragment.DOCUMENTATION)["options"],
    }
    spec = {
        name: {key: value for key, value in option.items() if key != "no_log"}
        for name, option in haproxy_frontend.argument_spec().items()
    }
    assert set(documented) == set(spec)
    for name, option in documented.items():
        described = {key: value for key, value in option.items() if key != "description"}
        assert described == spec[name], name


def test_examples_are_valid_tasks() -> None:
    spec = haproxy_frontend.argument_spec()
    names = set(spec) | {alias for option in spec.values() for alias in option.get("aliases", [])}
    tasks = yaml.safe_load(haproxy_frontend.EXAMPLES)
    assert len(tasks) >= 3
    for task in tasks:
        assert task["name"]
        assert set(task["clearproxy.haproxy.haproxy_frontend"]) <= names


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "frontends"),
        ({"frontends": ["a"], "state": "drain"}, "state"),
        ({"frontends": ["a b"], "state": "disabled"}, "frontend 'a b'"),
        ({"frontends": ["a"], "maxconn": "abc"}, "maxconn"),
        ({"frontends": ["a"], "maxconn": -5}, "maxconn -5"),
        ({"frontends": ["a"], "maxconn": 0}, "force"),
        ({"frontends": ["a"], "timeout": -1}, "timeout"),
        ({"frontends": ["a"], "socket": "/nowhere/at/all"}, "does not exist"),
    ],
)
def test_bad_input_is_one_sentence(args: dict[str, t.Any], words: str) -> None:
    result = run(**args)
    assert result["failed"] is True
    assert words in result["msg"]
    assert "\n" not in result["msg"]
    assert result.get("changed", False) is False
