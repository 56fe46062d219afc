# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

import pytest
import yaml

from ansible_collections.clearproxy.haproxy.plugins.doc_fragments import _socket
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _argspec, _transport
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError


def test_spec_and_documentation_agree() -> None:
    documented = yaml.safe_load(_socket.ModuleDocFragment.DOCUMENTATION)["options"]
    spec = _argspec.socket_spec()
    assert set(documented) == set(spec)
    for name, option in documented.items():
        described = {key: value for key, value in option.items() if key != "description"}
        assert described == {k: v for k, v in spec[name].items() if k != "no_log"}, name
    for path in _transport.USUAL_SOCKETS:
        assert path in " ".join(documented["socket"]["description"])


def test_addresses() -> None:
    found = _argspec.addresses({"socket": ["/run/a", "tcp://lb:1"], "timeout": 1.0})
    assert [address.kind for address in found] == ["unix", "tcp"]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"socket": []}, "empty"),
        ({"socket": ["/run/a", "unix:///run/a"]}, "twice"),
        ({"socket": ["a"]}, "absolute"),
        ({"socket": ["/a"], "timeout": 0.0}, "timeout"),
        ({"socket": ["/a"], "timeout": float("nan")}, "timeout"),
    ],
)
def test_bad_addresses(params: dict[str, t.Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        _argspec.addresses({"timeout": 1.0, **params})


def test_no_connection_before_the_first_command() -> None:
    params = {name: option.get("default") for name, option in _argspec.socket_spec().items()}
    with _argspec.clients_from({**params, "socket": ["/nowhere/at/all"]}) as clients:
        assert [client.where for client in clients] == ["/nowhere/at/all"]
