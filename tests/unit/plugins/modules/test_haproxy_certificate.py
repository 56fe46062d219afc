# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import io
import json
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.module_utils import testing

from ansible_collections.clearproxy.haproxy.plugins.doc_fragments import _socket
from ansible_collections.clearproxy.haproxy.plugins.modules import haproxy_certificate


def run(**args: t.Any) -> dict[str, t.Any]:
    out = io.StringIO()
    patched, captured = testing.patch_module_args(args), contextlib.redirect_stdout(out)
    with patched, captured, pytest.raises(SystemExit):
        haproxy_certificate.main()
    return t.cast("dict[str, t.Any]", json.loads(out.getvalue()))


def test_documentation_and_spec_agree() -> None:
    documented = {
        **yaml.safe_load(haproxy_certificate.DOCUMENTATION)["options"],
        **yaml.safe_load(_socket.ModuleDocFragment.DOCUMENTATION)["options"],
    }
    spec = haproxy_certificate.argument_spec()
    assert set(documented) == set(spec)
    for name, option in documented.items():
        described = {key: value for key, value in option.items() if key != "description"}
        # What is secret is the code's business.
        wanted = {key: value for key, value in spec[name].items() if key != "no_log"}
        assert described == wanted, name
    assert spec["content"]["no_log"] is True


def test_examples_are_valid_tasks() -> None:
    spec = haproxy_certificate.argument_spec()
    tasks = yaml.safe_load(haproxy_certificate.EXAMPLES)
    assert len(tasks) >= 4
    for task in tasks:
        assert task["name"]
        assert set(task["clearproxy.haproxy.haproxy_certificate"]) <= set(spec)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"name": "a"}, "needs content or path"),
        ({"content": "x"}, "name"),
        ({"name": "a", "state": "gone"}, "state"),
        ({"name": "a", "kind": "key"}, "kind"),
        ({"name": "a", "content": "x"}, "content: has no PEM block 'BEGIN CERTIFICATE'"),
        ({"name": "a", "path": ["/nowhere/at/all"]}, "'/nowhere/at/all': cannot be read (No such"),
        ({"name": "a", "path": ["/"]}, "path '/': cannot be read (Is a directory)"),
        ({"name": "a", "path": ["/dev/null"]}, "/dev/null: has no PEM block"),
        ({"name": "a", "path": []}, "has no PEM block"),
        ({"name": "a", "path": ["-----BEGIN CERTIFICATE-----"]}, "use content for text"),
        ({"name": "a", "state": "absent", "timeout": -1}, "timeout"),
        ({"name": "a", "state": "absent", "socket": "/nowhere/at/all"}, "does not exist"),
    ],
)
def test_bad_input_is_one_sentence(args: dict[str, t.Any], words: str) -> None:
    result = run(**args)
    assert result["failed"] is True
    assert words in result["msg"]
    assert "\n" not in result["msg"]
    assert result.get("changed", False) is False


def test_pem_in_the_wrong_option_is_not_shown(tmp_path: Path) -> None:
    """With -vvv Ansible shows the arguments, and people mix the options up."""
    key = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0c2VjcmV0\n-----END PRIVATE KEY-----"
    for args in ({"name": key}, {"name": "a", "path": [key]}, {"name": "a", "content": key}):
        result = run(**args, socket="/nowhere")
        assert result["failed"] is True
        assert "c2VjcmV0c2VjcmV0" not in json.dumps(result)
    file = tmp_path / "key.pem"
    file.write_text(key)
    assert "c2VjcmV0c2VjcmV0" not in json.dumps(run(name="a", path=[str(file)]))
