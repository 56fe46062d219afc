# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client makes of replies, of closed connections and of versions."""

from __future__ import annotations

import time
import typing as t

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _transport
from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import Client
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import Command, Step
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    LevelError,
    NotFoundError,
    SocketError,
    VersionError,
)


class Scripted:
    """A connection that answers from a table; an exception in it is raised once."""

    def __init__(self, answers: dict[str, t.Any], *, address: str = "/run/a.sock") -> None:
        self.address = _transport.parse_address(address)
        self.timeout = 2.0
        self.began = time.monotonic()
        self.answers = answers
        self.asked: list[str] = []

    def close(self) -> None:
        pass

    def exchange(self, commands: t.Sequence[str | Command], **more: t.Any) -> list[str]:
        replies = []
        for item in commands:
            text = item if isinstance(item, str) else item.text
            self.asked.append(text)
            answer = self.answers[text]
            if isinstance(answer, list):
                answer = answer.pop(0)
            if isinstance(answer, Exception):
                raise answer
            replies.append(answer)
        return replies


def client(answers: dict[str, t.Any], **more: t.Any) -> tuple[Client, Scripted]:
    connection = Scripted(answers, **more)
    return Client(t.cast("t.Any", connection)), connection


def closed() -> _transport.ClosedIdle:
    return _transport.ClosedIdle("closed", socket="/run/a.sock")


def test_an_idle_connection_may_be_closed_by_the_same_process() -> None:
    one, wire = client({"show b": [closed(), "b"], "show info": "Uptime_sec: 100\n"})
    assert one.read("show b") == "b"
    assert wire.asked == ["show b", "show info", "show b"]


def test_another_process_is_another_state() -> None:
    one, wire = client({"show b": [closed(), "b"], "show info": "Uptime_sec: 3\n"})
    wire.began -= 10
    with pytest.raises(SocketError, match="reloaded"):
        one.read("show b")
    assert wire.asked == ["show b", "show info"]


@pytest.mark.parametrize("pid", [7, 8])
def test_the_process_is_known_by_its_number(pid: int) -> None:
    """However young it is."""
    infos = ["Version: 3.2.1\nPid: 7\n", f"Pid: {pid}\nUptime_sec: 0\n"]
    one, wire = client({"show info": infos, "show b": [closed(), "b"]})
    assert one.version == (3, 2)
    if pid == 7:
        wire.began -= 100
        assert one.read("show b") == "b"
    else:
        with pytest.raises(SocketError, match="reloaded"):
            one.read("show b")


def test_nobody_there_any_more() -> None:
    one, _wire = client({"show b": closed(), "show info": SocketError("gone")})
    with pytest.raises(_transport.ClosedIdle, match="closed"):
        one.read("show b")


@pytest.mark.parametrize(
    ("level", "needed", "enough"),
    [
        ("admin", "admin", True),
        ("admin", "user", True),
        ("operator", "operator", True),
        ("operator", "admin", False),
        ("user", "operator", False),
        ("Permission denied", "operator", False),
        ("Permission denied", "user", True),
    ],
)
def test_levels(level: str, needed: str, enough: bool) -> None:
    one, _wire = client({"show cli level": f"{level}\n", "show info": "Pid: 7\n"})
    if enough:
        one.require_level(needed)
    else:
        with pytest.raises(LevelError, match=f"needs level {needed}"):
            one.require_level(needed)


def test_versions() -> None:
    one, wire = client({"show info": "Name: HAProxy\nVersion: 3.2.26-1\n"})
    assert one.version == (3, 2)
    one.require_version((3, 0), "wait")
    with pytest.raises(VersionError, match=r"version 3\.2; add backend exists since HAProxy 3\.4"):
        one.require_version((3, 4), "add backend")
    assert wire.asked == ["show info"]


def test_unknown_backends_are_named() -> None:
    answers = {
        "show servers state ap": "Can't find backend.\n",
        "show backend": "# name\napp\nweb\n",
    }
    one, _wire = client(answers)
    with pytest.raises(NotFoundError, match="no backend 'ap'; there is app"):
        one.servers("ap")


def test_what_broke_off_is_accounted_for() -> None:
    steps = [Step(n, f"set {n}") for n in range(6)]
    cause = SocketError("cut", socket="/run/a.sock")
    broken = _transport.BrokenOff(cause, ["", ""], 4)
    one, wire = client({})

    def exchange(commands: t.Any, *, accept: t.Any, **more: t.Any) -> list[str]:
        for reply in broken.replies:
            assert accept(Command("x"), reply) is True
        raise broken

    wire.exchange = exchange  # type: ignore[method-assign,assignment]
    with pytest.raises(
        SocketError, match="2 were carried out, 2 have an unknown outcome, 2 were"
    ) as caught:
        one.apply(steps)
    assert caught.value.details["applied"] == one.applied == ["set 0", "set 1"]
    assert caught.value.details["unknown"] == ["set 2", "set 3"]
    assert caught.value.details["not_sent"] == ["set 4", "set 5"]


def test_the_master() -> None:
    assert client({}, address="master:///run/m.sock")[0].is_master is True
    assert client({})[0].is_master is False
