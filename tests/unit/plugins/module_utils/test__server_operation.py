# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How plans are run: against a strict fake that refuses what HAProxy refuses.

What real HAProxy processes make of it is in tests/runtime.
"""

from __future__ import annotations

import contextlib
import re
import time
import typing as t

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _command,
    _server_desired,
    _server_operation,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    CommandError,
    Error,
    FloorError,
    InputError,
    LevelError,
    NotFoundError,
    SocketError,
    WaitError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._transport import (
    parse_address,
)

COLUMNS = (
    "be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight "
    "srv_time_since_last_change srv_check_status srv_check_result srv_check_health "
    "srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord"
)


class FakeHaproxy:
    """A connection to an in-memory HAProxy; anything it does not know is a failed test."""

    def __init__(self, *names: str, level: str = "admin") -> None:
        self.address = parse_address("/run/fake.sock")
        self.timeout = 1.0
        self.level = level
        self.admin = dict.fromkeys(names, 0)
        self.weight = dict.fromkeys(names, 10)
        self.streams = dict.fromkeys(names, 0)
        self.sent: list[str] = []
        # Called before each command, for what happens meanwhile.
        self.meanwhile: t.Callable[[str], None] = lambda command: None
        self.refuse: str | None = None
        self.stopping = False
        self.version = "3.2.26"
        self.fall = 3
        # What the health counter reads at each look; the last one stays. None: no checks.
        self.health: list[int] | None = None
        self.held: set[str] = set()
        # What HAProxy itself says of connections, whatever its counters do.
        self.removable = False
        # Where each server is, and how many looks a new address takes to be seen.
        self.place = dict.fromkeys(names, ("192.0.2.1", "80"))
        self.lag = 0
        self.moving: list[tuple[str, tuple[str, str]]] = []

    def close(self) -> None:
        pass

    def exchange(
        self,
        commands: list[str | _command.Command],
        *,
        accept: t.Callable[[_command.Command, str], bool] | None = None,
        lockstep: bool = False,
        patience: float = 0.0,
    ) -> list[str]:
        asked = [_command.Command(cmd) if isinstance(cmd, str) else cmd for cmd in commands]
        replies = []
        for item in asked:
            _command.encode(item)
            command = item.text
            self.meanwhile(command)
            self.sent.append(command)
            replies.append(self._reply(command))
            if accept is not None and not accept(item, replies[-1]):
                break
        return replies

    @property
    def changes(self) -> list[str]:
        return [command for command in self.sent if not command.startswith(("show ", "wait "))]

    def _reply(self, command: str) -> str:
        if command == "show cli level":
            return f"{self.level}\n"
        if command == "show info":
            return f"Name: HAProxy\nVersion: {self.version}\nStopping: {int(self.stopping)}\n"
        if command == "show backend":
            return "# name\napp\n"
        if re.match(r"show servers state (?!app$)", command):
            return "Can't find backend.\n"
        if command.startswith("show servers state"):
            self.lag -= 1
            if self.lag < 0:
                self.place.update(self.moving)
            looks = self.health or [0]
            health = looks.pop(0) if len(looks) > 1 else looks[0]
            state = 0 if self.health is None else 6
            rows = [
                f"3 app {n} {name} {self.place[name][0]} {3 if name in self.held else 2} {self.admin[name]} "
                f"{self.weight[name]} 10 5 0 0 {health} {state} 0 0 0 - {self.place[name][1]} -"
                for n, name in enumerate(self.admin, 1)
            ]
            return "\n".join(["1", f"# {COLUMNS}", *rows, ""])
        if command in ("show stat #3 4 -1", "show stat #3 2 -1"):
            rows = [f"app,{name},{self.streams[name]},0,2,,,2,{self.fall}" for name in self.admin]
            rows.append("app,BACKEND,0,0,1,,roundrobin,,")
            return (
                "# pxname,svname,scur,qcur,type,tracked,algo,check_rise,check_fall\n"
                + "\n".join(rows)
                + "\n"
            )
        if command == "show servers conn app":
            rows = [f"app/{name} {self.streams[name]} 0" for name in self.admin]
            return "# bkname/svname used_cur idle_cur\n" + "\n".join(rows) + "\n"
        if command.startswith("set timeout cli "):
            return "\n"
        if found := re.fullmatch(r"wait ([0-9]+)ms srv-removable app/(\w+)", command):
            if not self.admin[found[2]] & 1:
                return "Failed.\n"
            time.sleep(0 if self.removable else int(found[1]) / 1000)
            return "Done.\n" if self.removable else "Wait delay expired.\n"
        if found := re.fullmatch(r"set server app/(\w+) addr (\S+) port ([0-9]+)", command):
            self.moving.append((found[1], (found[2], found[3])))
            return (
                "IP changed from '192.0.2.1' to '192.0.2.2', port changed from '80' to '81' "
                "by 'stats socket command'\n"
            )
        match = re.fullmatch(
            r"(?:set|shutdown sessions) server app/(\w+)(?: (\w+) (\S+))?", command
        )
        assert match, f"HAProxy would not understand {command!r}"
        name, what, value = match.groups()
        if self.level != "admin":
            return "Permission denied\n"
        if self.refuse is not None and self.refuse in command:
            return "Proxy is disabled.\n"
        if what is None:
            self.streams[name] = 0
        elif what == "state":
            self.admin[name] = {"ready": 0, "drain": 8, "maint": 1}[value]
        elif what == "health":
            assert value == "stopping"
            self.held.add(name)
        else:
            assert what == "weight"
            self.weight[name] = int(value)
        return ""


def operation(fake: FakeHaproxy, **params: t.Any) -> _server_operation.Operation:
    full: dict[str, t.Any] = {
        "servers": ["*"],
        "backend": "app",
        "state": None,
        "weight": None,
        "missing": "fail",
        "min_ready": None,
        "drain_first": False,
        "wait": False,
        "on_timeout": "fail",
        "wait_timeout": 0.1,
        "wait_interval": None,
        **params,
    }
    client = _server_operation.Client(t.cast("t.Any", fake))
    desired = _server_desired.Desired.from_params(full)
    return _server_operation.Operation(
        [client], desired, _server_operation.Waiting.from_params(full), "all"
    )


def test_apply_and_again() -> None:
    fake = FakeHaproxy("a", "b")
    outcome = operation(fake, state="drain", weight="5").run()
    assert outcome.commands == fake.changes
    assert len(fake.changes) == 4
    assert outcome.after["app/a"] == {"state": "drain", "weight": 5}
    fake.sent.clear()
    assert operation(fake, state="drain", weight="50%").run().commands == []
    assert fake.changes == []


def test_preview_sends_nothing_and_predicts() -> None:
    fake = FakeHaproxy("a", "b")
    preview = operation(fake, state="maint").preview()
    assert fake.changes == []
    done = operation(fake, state="maint").run()
    assert (preview.commands, preview.before, preview.after) == (
        done.commands,
        done.before,
        done.after,
    )


def test_reads() -> None:
    fake = FakeHaproxy("a")
    operation(fake, state="ready").run()
    assert fake.sent == ["show cli level", "show servers state app"]


@pytest.mark.parametrize("level", ["user", "operator"])
def test_level(level: str) -> None:
    fake = FakeHaproxy("a", level=level)
    with pytest.raises(LevelError, match=rf"level {level}.*'level admin'"):
        operation(fake, state="drain")
    assert fake.sent == ["show cli level"]


def test_unknown_backend() -> None:
    fake = FakeHaproxy("a")
    with pytest.raises(NotFoundError, match="no backend 'ap'; there is app"):
        operation(fake, backend="ap", state="drain")
    assert operation(fake, backend="ap", state="drain", missing="ignore").run().commands == []


def test_refusal_names_the_command_and_what_was_done() -> None:
    fake = FakeHaproxy("a", "b", "c")
    fake.refuse = "app/b "
    with pytest.raises(CommandError, match="refused 'set server app/b state drain'") as caught:
        operation(fake, state="drain").run()
    details = caught.value.details
    assert details["applied"] == details["commands"] == ["set server app/a state drain"]
    assert details["not_sent"] == ["set server app/c state drain"]
    assert details["changed"] is True


def test_what_was_accepted_but_did_not_happen() -> None:
    fake = FakeHaproxy("a")

    def agent(command: str) -> None:
        if "set server" not in command and fake.changes:
            fake.admin["a"] = 0

    fake.meanwhile = agent
    with pytest.raises(Error, match=r"app/a at .* has state ready although"):
        operation(fake, state="drain").run()


def test_the_old_process_is_not_believed() -> None:
    fake = FakeHaproxy("a")
    fake.stopping = True
    with pytest.raises(SocketError, match="reloaded"):
        operation(fake, state="drain").run()


def test_wait_timeout() -> None:
    fake = FakeHaproxy("a", "b")
    fake.streams["b"] = 2
    with pytest.raises(WaitError, match="app/b still has 2 streams") as caught:
        operation(fake, state="drain", wait=True).run()
    assert [entry["server"] for entry in caught.value.details["waiting_for"]] == ["b"]
    assert fake.admin == {"a": 8, "b": 8}


@pytest.mark.parametrize(
    ("version", "fall", "looks", "more"),
    [
        # The counter says rise (2) right behind the command, and is full (4) after a check.
        ("3.2.26", 3, [2, 2, 4], []),
        # Full at once: a check has passed before the look or, since 3.1, init-state fully-up.
        ("3.2.26", 3, [4], ["health stopping"]),
        ("3.0.11", 3, [4], []),
        ("2.6.12", 1, [2], ["health stopping"]),
    ],
)
def test_ready_is_proven(version: str, fall: int, looks: list[int], more: list[str]) -> None:
    fake = FakeHaproxy("a")
    fake.admin["a"] = 1
    fake.version, fake.fall = version, fall
    # The first look is the one that plans.
    fake.health = [0, *looks]
    with contextlib.suppress(WaitError):
        operation(fake, state="ready", wait=True, wait_timeout=0.2).run()
    expected = ["state ready", *more]
    assert fake.changes == [f"set server app/a {command}" for command in expected]


def test_rollback() -> None:
    fake = FakeHaproxy("a", "b")
    fake.streams["b"] = 2
    fake.admin["a"] = 1
    with pytest.raises(WaitError, match="set back"):
        operation(fake, state="drain", weight="0", wait=True, on_timeout="rollback").run()
    assert fake.admin == {"a": 1, "b": 0}
    assert fake.weight == {"a": 10, "b": 10}


def test_shutdown_sessions() -> None:
    fake = FakeHaproxy("a", "b")
    fake.streams["b"] = 2
    outcome = operation(fake, state="maint", wait=True, on_timeout="shutdown_sessions").run()
    assert outcome.commands[-1] == "shutdown sessions server app/b"
    assert "shutdown sessions server app/a" not in outcome.commands


def test_drain_first_stops_before_maintenance() -> None:
    fake = FakeHaproxy("a", "b")
    fake.streams["b"] = 2
    with pytest.raises(WaitError, match="not put into maint"):
        operation(fake, state="maint", drain_first=True).run()
    assert fake.admin == {"a": 8, "b": 8}
    fake.streams["b"] = 0
    operation(fake, state="maint", drain_first=True).run()
    assert fake.admin == {"a": 1, "b": 1}


def test_floor_undone_when_somebody_else_was_quicker() -> None:
    fake = FakeHaproxy("a", "b", "c")

    def rival(command: str) -> None:
        if command == "set server app/a state drain":
            fake.admin["b"] = 8

    fake.meanwhile = rival
    with pytest.raises(FloorError, match="set back"):
        operation(fake, servers=["a"], state="drain", min_ready="2").run()
    assert fake.admin == {"a": 0, "b": 8, "c": 0}


@pytest.mark.parametrize(
    "params",
    [
        {"wait_timeout": -1.0},
        {"wait_timeout": float("nan")},
        {"wait_timeout": float("inf")},
        {"wait_interval": 0.0},
        {"wait_interval": float("nan")},
    ],
)
def test_bad_waiting(params: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(params))):
        _server_operation.Waiting.from_params(
            {"wait_timeout": 1.0, "wait_interval": None, **params}
        )


# --- HAProxy's own waiting ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "master", "state", "asked"),
    [
        ("3.0.11", False, "maint", True),
        ("2.6.12", False, "maint", False),
        ("3.0.11", True, "maint", False),
        # HAProxy refuses to wait for what is not in maintenance.
        ("3.0.11", False, "drain", False),
    ],
)
def test_who_waits(version: str, master: bool, state: str, asked: bool) -> None:
    fake = FakeHaproxy("a")
    fake.version, fake.streams["a"] = version, 1
    if master:
        fake.address = parse_address("master:///run/fake.sock")
    with pytest.raises(WaitError):
        operation(fake, state=state, wait=True, wait_timeout=0.2).run()
    assert any(command.startswith("wait ") for command in fake.sent) is asked


def test_haproxys_own_word_is_believed() -> None:
    fake = FakeHaproxy("a")
    fake.streams["a"], fake.removable = 1, True
    started = time.monotonic()
    operation(fake, state="maint", wait=True, wait_timeout=20, wait_interval=10).run()
    assert time.monotonic() - started < 1
    assert "wait 10000ms srv-removable app/a" in fake.sent


def test_a_refused_wait_is_no_reason_to_hurry() -> None:
    fake = FakeHaproxy("a")
    fake.streams["a"] = 1

    def rival(command: str) -> None:
        if command.startswith("wait "):
            fake.admin["a"] = 0

    fake.meanwhile = rival
    with pytest.raises(WaitError):
        operation(fake, state="maint", wait=True, wait_timeout=0.5, wait_interval=0.1).run()
    assert sum(command.startswith("wait ") for command in fake.sent) <= 6


@pytest.mark.parametrize(
    ("params", "timeout", "interval"),
    [
        ({}, 300.0, None),
        ({"wait_timeout": 0.0}, 0.0, None),
        ({"wait_retries": 25}, 125.0, None),
        ({"wait_retries": 60, "wait_interval": 60.0}, 3600.0, 60.0),
    ],
)
def test_old_and_new_words_for_waiting(
    params: dict[str, t.Any], timeout: float, interval: float | None
) -> None:
    given = {"wait_timeout": None, "wait_interval": None, **params}
    waiting = _server_operation.Waiting.from_params(given)
    assert (waiting.timeout, waiting.interval) == (timeout, interval)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"wait_retries": 5, "wait_timeout": 5.0}, "contradict"),
        ({"wait_retries": 0}, "wait_retries 0"),
    ],
)
def test_contradicting_words_for_waiting(params: dict[str, t.Any], words: str) -> None:
    given = {"wait_timeout": None, "wait_interval": None, **params}
    with pytest.raises(InputError, match=words):
        _server_operation.Waiting.from_params(given)


def test_an_address_that_takes_a_moment() -> None:
    fake = FakeHaproxy("a")
    # The look that plans, and two that still see the old one.
    fake.lag = 3
    outcome = operation(fake, address="192.0.2.2", port=81).run()
    assert fake.changes == ["set server app/a addr 192.0.2.2 port 81"]
    assert outcome.after["app/a"] == {"address": "192.0.2.2", "port": 81}


def test_no_client_at_a_new_address_before_it_is_there() -> None:
    fake = FakeHaproxy("a")
    fake.admin["a"], fake.lag = 1, 3
    operation(fake, address="192.0.2.2", port=81, state="ready").run()
    ready = fake.sent.index("set server app/a state ready")
    assert fake.sent[ready - 3 : ready] == ["show servers state app"] * 3


def test_an_address_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_server_operation, "_SETTLE", 0.1)
    fake = FakeHaproxy("a")
    fake.lag = 1000
    with pytest.raises(Error, match=r"app/a at .* has address 192.0.2.1 although HAProxy accepted"):
        operation(fake, address="192.0.2.2", port=81).run()
