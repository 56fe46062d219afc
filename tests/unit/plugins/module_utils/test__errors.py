# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _errors


def test_details_are_kept_apart_from_the_sentence() -> None:
    error = _errors.CommandError("HAProxy refused it", refused=["x"], changed=True)
    assert str(error) == "HAProxy refused it"
    assert error.details == {"refused": ["x"], "changed": True}


@pytest.mark.parametrize(
    "kind",
    [
        _errors.InputError,
        _errors.SocketError,
        _errors.NoAnswerError,
        _errors.ProtocolError,
        _errors.LevelError,
        _errors.NotFoundError,
        _errors.CommandError,
        _errors.FloorError,
        _errors.WaitError,
    ],
)
def test_one_root(kind: type[_errors.Error]) -> None:
    with pytest.raises(_errors.Error, match="words"):
        raise kind("words")


def test_parse_error_names_the_reply_and_the_line() -> None:
    error = _errors.ParseError("show stat", "no header", line="x" * 1000)
    assert "'show stat': no header" in str(error)
    assert len(str(error)) < 400
    assert error.details == {"reply_to": "show stat"}
