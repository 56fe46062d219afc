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
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _backend
from ansible_collections.clearproxy.haproxy.plugins.modules import haproxy_backend


def run(**args: t.Any) -> dict[str, t.Any]:
    out = io.StringIO()
    patched, captured = testing.patch_module_args(args), contextlib.redirect_stdout(out)
    with patched, captured, pytest.raises(SystemExit):
        haproxy_backend.main()
    return t.cast("dict[str, t.Any]", json.loads(out.getvalue()))


def test_documentation_and_spec_agree() -> None:
    documented = {
        **yaml.safe_load(haproxy_backend.DOCUMENTATION)["options"],
        **yaml.safe_load(_socket.ModuleDocFragment.DOCUMENTATION)["options"],
    }
    spec = haproxy_backend.argument_spec()
    assert set(documented) == set(spec)
    for name, option in documented.items():
        described = {key: value for key, value in option.items() if key != "description"}
        assert described == {k: v for k, v in spec[name].items() if k != "no_log"}, name


def test_examples_are_valid_tasks() -> None:
    spec = haproxy_backend.argument_spec()
    tasks = yaml.safe_load(haproxy_backend.EXAMPLES)
    # Those of the servers belong to another module.
    ours = [task for task in tasks if "clearproxy.haproxy.haproxy_backend" in task]
    assert 4 <= len(ours) < len(tasks)
    for task in ours:
        args = task["clearproxy.haproxy.haproxy_backend"]
        assert task["name"]
        assert set(args) <= set(spec)
        full = {name: option.get("default") for name, option in spec.items()}
        _backend.Desired.from_params({**full, **args})


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "backend"),
        ({"backend": "app", "state": "there"}, "state"),
        ({"backend": "a b"}, "backend 'a b'"),
        ({"backend": "app", "mode": "tcp"}, "mode: goes with defaults"),
        ({"backend": "app", "dynamic_cookie": "on"}, "dynamic_cookie"),
        ({"backend": "app", "timeout": -1}, "timeout"),
        ({"backend": "app", "socket": "/nowhere/at/all"}, "does not exist"),
    ],
)
def test_bad_input_is_one_sentence(args: dict[str, t.Any], words: str) -> None:
    result = run(**args)
    assert result["failed"] is True
    assert words in result["msg"]
    assert "\n" not in result["msg"]
    assert result.get("changed", False) is False
