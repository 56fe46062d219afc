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
from ansible_collections.clearproxy.haproxy.plugins.modules import haproxy_info


def run(**args: t.Any) -> dict[str, t.Any]:
    out = io.StringIO()
    patched, captured = testing.patch_module_args(args), contextlib.redirect_stdout(out)
    with patched, captured, pytest.raises(SystemExit):
        haproxy_info.main()
    return t.cast("dict[str, t.Any]", json.loads(out.getvalue()))


def test_documentation_and_spec_agree() -> None:
    documented = {
        **yaml.safe_load(haproxy_info.DOCUMENTATION)["options"],
        **yaml.safe_load(_socket.ModuleDocFragment.DOCUMENTATION)["options"],
    }
    spec = haproxy_info.argument_spec()
    assert set(documented) == set(spec)
    for name, option in documented.items():
        described = {key: value for key, value in option.items() if key != "description"}
        assert described == {k: v for k, v in spec[name].items() if k != "no_log"}, name


def test_examples_are_valid_tasks() -> None:
    spec = haproxy_info.argument_spec()
    names = set(spec) | {alias for option in spec.values() for alias in option.get("aliases", [])}
    tasks = yaml.safe_load(haproxy_info.EXAMPLES)
    own = [task for task in tasks if "clearproxy.haproxy.haproxy_info" in task]
    assert len(own) >= 5
    for task in tasks:
        assert task["name"]
    for task in own:
        assert set(task["clearproxy.haproxy.haproxy_info"] or {}) <= names


def test_every_subset_is_a_documented_return_value() -> None:
    returned = yaml.safe_load(haproxy_info.RETURN)
    choices = haproxy_info.argument_spec()["gather"]["choices"]
    assert set(returned) == {*choices, "omitted"} - {"all"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"gather": ["everything"]}, "gather"),
        ({"gather": []}, "gather: the list is empty"),
        ({"gather": "peers", "backend": "app"}, "backend: limits"),
        ({"timeout": 0}, "timeout"),
        ({"socket": "x"}, "socket 'x'"),
        ({"socket": "/nowhere/at/all"}, "does not exist"),
    ],
)
def test_bad_input_is_one_sentence(args: dict[str, t.Any], words: str) -> None:
    result = run(**args)
    assert result["failed"] is True
    assert words in result["msg"]
    assert "\n" not in result["msg"]
