# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import io
import json
import types
import typing as t

import pytest
import yaml
from ansible.module_utils import testing

from ansible_collections.clearproxy.haproxy.plugins.doc_fragments import _socket
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _map
from ansible_collections.clearproxy.haproxy.plugins.modules import haproxy_acl, haproxy_map

MODULES = {"map": haproxy_map, "acl": haproxy_acl}


def run(module: types.ModuleType, **args: t.Any) -> dict[str, t.Any]:
    out = io.StringIO()
    patched, captured = testing.patch_module_args(args), contextlib.redirect_stdout(out)
    with patched, captured, pytest.raises(SystemExit):
        module.main()
    return t.cast("dict[str, t.Any]", json.loads(out.getvalue()))


@pytest.mark.parametrize("kind", MODULES)
def test_documentation_and_spec_agree(kind: str) -> None:
    module = MODULES[kind]
    documented = {
        **yaml.safe_load(module.DOCUMENTATION)["options"],
        **yaml.safe_load(_socket.ModuleDocFragment.DOCUMENTATION)["options"],
    }
    spec = module.argument_spec()
    assert set(documented) == set(spec)
    for name, option in documented.items():
        described = {key: value for key, value in option.items() if key != "description"}
        assert described == {k: v for k, v in spec[name].items() if k != "no_log"}, name


@pytest.mark.parametrize("kind", MODULES)
def test_documented_limits_are_those_of_the_code(kind: str) -> None:
    assert str(_map.ENTRY_LIMIT) in haproxy_map.DOCUMENTATION
    assert f"the first {_map.SHOWN} of them" in MODULES[kind].DOCUMENTATION


@pytest.mark.parametrize("kind", MODULES)
def test_examples_are_valid_tasks(kind: str) -> None:
    module = MODULES[kind]
    tasks = yaml.safe_load(module.EXAMPLES)
    assert len(tasks) >= 3
    for task in tasks:
        assert task["name"]
        args = task[f"clearproxy.haproxy.haproxy_{kind}"]
        assert set(args) <= set(module.argument_spec())
        if isinstance(args["entries"], str) and "{{" in args["entries"]:
            args["entries"] = []
        given = {"state": "present", "return": "none", **args}
        assert _map.Desired.from_params(kind, given).name


@pytest.mark.parametrize("kind", MODULES)
def test_returned_keys_are_documented(kind: str) -> None:
    documented = yaml.safe_load(MODULES[kind].RETURN)
    listed = _map.Listed(0, "M", kind == "map", 0)
    wanted = _map.Desired(kind, "M", "present", (("k", "v"),), returned="all")
    result = _map.plan_entries(_map.Seen(listed, ()), wanted).result
    for name, (row,) in result.items():
        assert {"socket", *row} == set(documented[name]["contains"])


@pytest.mark.parametrize(
    ("kind", "args", "words"),
    [
        ("map", {}, "entries, map"),
        ("map", {"map": "m"}, "entries"),
        ("acl", {"entries": []}, "acl"),
        ("map", {"map": "m", "entries": {}, "state": "gone"}, "state"),
        ("map", {"map": "m", "entries": {}, "return": "some"}, "return"),
        ("map", {"map": "m", "entries": {"a b": "c"}}, "contains a blank"),
        ("map", {"map": "", "entries": {}}, "map '' is empty"),
        ("acl", {"acl": "a\0", "entries": []}, "acl 'a\\x00' contains a line break or a NUL"),
        ("acl", {"acl": "a", "entries": {"a": "b"}}, "must be a list of patterns"),
        ("map", {"map": "m", "entries": {}, "timeout": 0}, "timeout"),
        ("map", {"map": "m", "entries": {}, "socket": "/nowhere/at/all"}, "does not exist"),
    ],
)
def test_bad_input_is_one_sentence(kind: str, args: dict[str, t.Any], words: str) -> None:
    result = run(MODULES[kind], **args)
    assert result["failed"] is True
    assert words in result["msg"]
    assert "\n" not in result["msg"]
    assert result.get("changed", False) is False
