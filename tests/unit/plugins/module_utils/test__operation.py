# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module's job is run, against a HAProxy in memory that refuses what it does not know."""

from __future__ import annotations

import dataclasses
import re
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _operation, _transport
from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import Client
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import Command, Step
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    CommandError,
    Error,
    InputError,
    LevelError,
    NoAnswerError,
    SocketError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import Change, Job


class Memory:
    """A connection to a HAProxy that has nothing but a table of names and values."""

    def __init__(self, values: dict[str, str] | None = None, name: str = "one") -> None:
        self.address = _transport.parse_address(f"/run/{name}.sock")
        self.timeout = 1.0
        self.began = 0.0
        self.values = dict(values or {})
        self.level = "admin"
        self.stopping = False
        self.sent: list[str] = []
        # So many changing commands are taken; then the connection breaks, or the next is refused.
        self.breaks_after: int | None = None
        self.refuses_after: int | None = None
        # Names that accept every command, and keep what they have.
        self.stubborn: set[str] = set()

    def close(self) -> None:
        pass

    def exchange(
        self,
        commands: t.Sequence[str | Command],
        *,
        accept: t.Callable[[Command, str], bool] | None = None,
        **more: t.Any,
    ) -> list[str]:
        replies: list[str] = []
        for item in commands:
            command = Command(item) if isinstance(item, str) else item
            reads = command.text.startswith("show ")
            changes = sum(not line.startswith("show ") for line in self.sent)
            self.sent.append(command.text)
            if not reads and self.breaks_after is not None and changes >= self.breaks_after:
                cause = NoAnswerError("no answer", socket=self.address.text)
                raise _transport.BrokenOff(cause, replies, len(replies) + 1)
            refuse = not reads and self.refuses_after is not None and changes >= self.refuses_after
            reply = "No.\n" if refuse else self._reply(command.text)
            replies.append(reply)
            if accept is not None and not accept(command, reply):
                break
        return replies

    def _reply(self, command: str) -> str:
        if command == "show cli level":
            return f"{self.level}\n"
        if command == "show info":
            return f"Name: HAProxy\nVersion: 3.2.1\nPid: 1\nUptime_sec: 9\nStopping: {int(self.stopping)}\n"
        if command == "show values":
            return "".join(f"{name} {value}\n" for name, value in self.values.items())
        match = re.fullmatch(r"set (\w+) (\w+)|del (\w+)", command)
        if match is None:
            return "Unknown command.\n"
        if match[3] is not None:
            if match[3] not in self.values:
                return "Not found.\n"
            if match[3] not in self.stubborn:
                del self.values[match[3]]
        elif match[1] not in self.stubborn:
            self.values[match[1]] = match[2]
        return ""


@dataclasses.dataclass
class Values(Job):
    """Names are to have these values; None takes a name away, and what is unreadable is sent."""

    wanted: dict[str, str | None]
    unreadable: tuple[str, ...] = ()

    def look(self, client: Client) -> dict[str, str]:
        lines = client.read("show values").splitlines()
        return dict(line.split(" ", 1) for line in lines)  # type: ignore[misc]

    def plan(self, client: Client, state: dict[str, str]) -> Change:
        after = dict(state)
        steps = []
        for name, value in self.wanted.items():
            if value is None and name in state:
                steps.append(Step(name, f"del {name}"))
                del after[name]
            elif value is not None and state.get(name) != value:
                steps.append(Step(name, f"set {name} {value}"))
                after[name] = value
        steps += [Step(name, f"set {name} x", readable=False) for name in self.unreadable]
        if self.unreadable:
            after.update(dict.fromkeys(self.unreadable, "x"))
        rows = [{"name": name, "value": value} for name, value in sorted(after.items())]
        return Change(tuple(steps), state, after, {"values": rows})


def run(job: Job, *memories: Memory, check: bool = False) -> dict[str, t.Any]:
    clients = [Client(t.cast("t.Any", memory)) for memory in memories]
    return _operation.run(clients, job, check=check).as_dict()


names = st.sampled_from("abcdef")
states = st.dictionaries(names, st.sampled_from("123"))
wishes = st.dictionaries(names, st.one_of(st.none(), st.sampled_from("123")))


@given(given=st.lists(states, min_size=1, max_size=3), wanted=wishes)
def test_check_mode_foresees_what_happens(
    given: list[dict[str, str]], wanted: dict[str, str | None]
) -> None:
    memories = [Memory(values, f"m{n}") for n, values in enumerate(given)]
    job = Values(wanted)
    foreseen = run(job, *memories, check=True)
    assert [memory.values for memory in memories] == given
    done = run(job, *memories)
    assert done == foreseen
    assert done["changed"] is bool(done["commands"])
    for memory in memories:
        for name, value in wanted.items():
            assert memory.values.get(name) == value
    again = run(job, *memories)
    assert again["changed"] is False
    assert again["commands"] == []
    assert again["values"] == done["values"]
    assert again["diff"]["before"] == again["diff"]["after"] == done["diff"]["after"]


@given(values=states, wanted=wishes.filter(bool), after=st.integers(0, 6), breaks=st.booleans())
def test_what_was_applied_is_told(
    values: dict[str, str], wanted: dict[str, str | None], after: int, breaks: bool
) -> None:
    """Whether HAProxy refuses in the middle, or is gone."""
    steps = run(Values(wanted), Memory(values), check=True)["commands"]
    memory = Memory(values)
    if breaks:
        memory.breaks_after = after
    else:
        memory.refuses_after = after
    if len(steps) <= after:
        assert run(Values(wanted), memory)["commands"] == steps
        return
    with pytest.raises(SocketError if breaks else CommandError) as caught:
        run(Values(wanted), memory)
    said = _operation.failure(caught.value)
    assert said["commands"] == steps[:after]
    assert said["changed"] is (after > 0)
    rest = said["unknown"] if breaks else [item["command"] for item in said["refused"]]
    assert rest + said["not_sent"] == steps[after:]
    assert len(rest) == 1


def test_nothing_is_sent_before_all_is_planned() -> None:
    class Refusing(Values):
        def plan(self, client: Client, state: dict[str, str]) -> Change:
            if "bad" in state:
                raise InputError("bad")
            return super().plan(client, state)

    one, two = Memory({}, "one"), Memory({"bad": "1"}, "two")
    with pytest.raises(InputError, match="bad"):
        run(Refusing({"a": "1"}), one, two)
    assert one.values == {}
    assert not any(line.startswith("set") for line in one.sent + two.sent)


def test_the_level_is_asked_first() -> None:
    one, two = Memory(name="one"), Memory(name="two")
    two.level = "operator"
    with pytest.raises(LevelError, match="operator"):
        run(Values({"a": "1"}), one, two)
    assert one.values == {}
    assert two.sent == ["show cli level"]


def test_a_failure_at_the_second_tells_of_the_first() -> None:
    one, two = Memory(name="one"), Memory(name="two")
    two.refuses_after = 0
    with pytest.raises(CommandError) as caught:
        run(Values({"a": "1"}), one, two)
    assert caught.value.details["commands"] == ["set a 1"]
    assert caught.value.details["changed"] is True
    assert one.values == {"a": "1"}


def test_what_haproxy_accepts_and_ignores_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_operation, "_SETTLE", 0.05)
    memory = Memory({"b": "1"})
    memory.stubborn = {"a"}
    with pytest.raises(Error, match="still needs 'set a 1'") as caught:
        run(Values({"a": "1", "b": "2"}), memory)
    assert caught.value.details["changed"] is True
    assert caught.value.details["left_over"] == ["set a 1"]


def test_what_cannot_be_read_back_is_sent_each_time_and_believed() -> None:
    memory = Memory()
    job = Values({"a": "1"}, unreadable=("k",))
    assert run(job, memory)["commands"] == ["set a 1", "set k x"]
    assert run(job, memory)["commands"] == ["set k x"]


def test_the_word_of_a_replaced_process_is_worth_nothing() -> None:
    memory = Memory()
    memory.stopping = True
    with pytest.raises(SocketError, match="reloaded") as caught:
        run(Values({"a": "1"}), memory)
    assert caught.value.details["commands"] == ["set a 1"]
    memory.refuses_after = 0
    with pytest.raises(CommandError, match="was reloaded"):
        run(Values({"a": "2"}), memory)


def test_several_are_told_apart() -> None:
    one, two = Memory({"a": "1"}, "one"), Memory({"a": "2"}, "two")
    done = run(Values({"a": "2"}), one, two)
    assert done["commands"] == ["set a 2"]
    assert done["diff"]["before"] == {"/run/one.sock": {"a": "1"}, "/run/two.sock": {"a": "2"}}
    assert [row["socket"] for row in done["values"]] == ["/run/one.sock", "/run/two.sock"]
