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
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _table
from ansible_collections.clearproxy.haproxy.plugins.modules import haproxy_stick_table


def run(**args: t.Any) -> dict[str, t.Any]:
    out = io.StringIO()
    patched, captured = testing.patch_module_args(args), contextlib.redirect_stdout(out)
    with patched, captured, pytest.raises(SystemExit):
        haproxy_stick_table.main()
    return t.cast("dict[str, t.Any]", json.loads(out.getvalue()))


def agree(documented: dict[str, t.Any], spec: dict[str, t.Any]) -> None:
    assert set(documented) == set(spec)
    for name, option in documented.items():
        described = {k: v for k, v in option.items() if k not in ("description", "suboptions")}
        assert described == {
            k: v for k, v in spec[name].items() if k not in ("no_log", "options")
        }, name
        agree(option.get("suboptions", {}), spec[name].get("options", {}))


def test_documentation_and_spec_agree() -> None:
    documented = {
        **yaml.safe_load(haproxy_stick_table.DOCUMENTATION)["options"],
        **yaml.safe_load(_socket.ModuleDocFragment.DOCUMENTATION)["options"],
    }
    agree(documented, haproxy_stick_table.argument_spec())


def test_examples_are_valid_tasks() -> None:
    tasks = yaml.safe_load(haproxy_stick_table.EXAMPLES)
    assert len(tasks) >= 4
    for task in tasks:
        assert task["name"]
        args = task["clearproxy.haproxy.haproxy_stick_table"]
        assert (
            "/nowhere/at/all does not exist" in run(**{**args, "socket": "/nowhere/at/all"})["msg"]
        )


def test_every_type_of_data_is_documented() -> None:
    options = yaml.safe_load(haproxy_stick_table.DOCUMENTATION)["options"]
    text = " ".join(options["entries"]["suboptions"]["data"]["description"])
    for name in _table._LIMITS:  # pylint: disable=protected-access
        assert f"C({name})" in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "table"),
        ({"table": "app"}, "entries: state=present needs them"),
        ({"table": "app", "state": "absent"}, "exactly one of"),
        ({"table": "app", "state": "gone"}, "state"),
        ({"table": "app;", "state": "empty"}, "table 'app;'"),
        ({"table": "app", "entries": [{}]}, "key"),
        ({"table": "app", "entries": [{"key": "a", "data": {"x": 1}}]}, "data 'x'"),
        (
            {"table": "app", "where": [{"type": "gpc0", "operator": "=", "value": 1}]},
            "operator",
        ),
        ({"table": "app", "state": "empty", "socket": "/nowhere/at/all"}, "does not exist"),
        ({"table": "app", "state": "empty", "timeout": 0}, "timeout"),
    ],
)
def test_bad_input_is_one_sentence(args: dict[str, t.Any], words: str) -> None:
    result = run(**args)
    assert result["failed"] is True
    assert words in result["msg"]
    assert "\n" not in result["msg"]
    assert result.get("changed", False) is False
