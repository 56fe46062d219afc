# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs what a module does at each HAProxy: read, plan, apply, look again. Private to the collection.

The rolling of servers, with its waiting and taking back, is in _server_operation.py.
"""

from __future__ import annotations

import collections.abc as c
import dataclasses
import time
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import Client
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import Step
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error

# HAProxy 2.9 and later change a server's address a moment after they have said so.
_SETTLE = 2.0
_PAUSE = 0.02


@dataclasses.dataclass(frozen=True)
class Change:
    """What a module does at one HAProxy. `before` and `after` are managed values only, for a diff.

    `result` are the return values besides changed, commands and diff: lists of dictionaries that
    show the predicted state; each gets a `socket`.
    """

    steps: tuple[Step, ...]
    before: dict[str, t.Any]
    after: dict[str, t.Any]
    result: dict[str, list[dict[str, t.Any]]] = dataclasses.field(default_factory=dict)


StateT = t.TypeVar("StateT")
ChangeT = t.TypeVar("ChangeT", bound=Change)


class Job(t.Generic[StateT, ChangeT]):
    """What a module wants at every HAProxy of its task; one subclass a module."""

    # The least level that every command of the job needs: user, operator or admin.
    level = "admin"

    def look(self, client: Client) -> StateT:
        """Read what the plan depends on."""
        raise NotImplementedError

    def plan(self, client: Client, state: StateT) -> ChangeT:
        """What has to be sent; raises before anything is sent if it cannot be done.

        Asks the client for names and versions only, for sentences.
        """
        raise NotImplementedError

    def carry_out(self, client: Client, change: ChangeT) -> None:
        """Send the steps; transactions whose commands depend on replies do it their way."""
        client.apply(change.steps)

    def left_over(self, client: Client, change: ChangeT, now: StateT) -> tuple[ChangeT, list[Step]]:
        """The plan made after the change, and the steps of it that should not be needed any more.

        Steps whose effect cannot be read back are always in a plan, so they prove nothing.
        """
        again = self.plan(client, now)
        return again, [step for step in again.steps if step.readable]


@dataclasses.dataclass
class Outcome:
    """What a task did or would do."""

    commands: list[str]
    before: dict[str, t.Any]
    after: dict[str, t.Any]
    result: dict[str, list[dict[str, t.Any]]]

    def as_dict(self) -> dict[str, t.Any]:
        """What the module returns."""
        return {
            "changed": bool(self.commands),
            "commands": self.commands,
            "diff": {"before": self.before, "after": self.after},
            **self.result,
        }


def run(clients: c.Sequence[Client], job: Job[t.Any, t.Any], *, check: bool) -> Outcome:
    """Everything is read and planned at every HAProxy before the first command is sent to any."""
    points = []
    for client in clients:
        client.require_level(job.level)
        points.append((client, job.plan(client, job.look(client))))
    if check:
        return _outcome(points, [step.shown for _cl, change in points for step in change.steps])
    try:
        for client, change in points:
            if change.steps:
                job.carry_out(client, change)
        ended = [
            (client, _settled(client, job, change) if change.steps else change)
            for client, change in points
        ]
    except Error as exc:
        exc.details.update(_so_far(clients))
        exc.args = (f"{exc}{_elsewhere(clients, exc)}",)
        raise
    outcome = _outcome(points, _so_far(clients)["commands"])
    # What HAProxy has now, not what was foreseen.
    now = _outcome(ended, [])
    outcome.after, outcome.result = now.before, now.result
    return outcome


def failure(exc: Error) -> dict[str, t.Any]:
    """What the module returns when it fails."""
    # Of one HAProxy and one batch; `commands` tells of all.
    details = {name: value for name, value in exc.details.items() if name != "applied"}
    return {"changed": False, "commands": [], **details, "msg": str(exc)}


def _settled(client: Client, job: Job[t.Any, t.Any], change: Change) -> Change:
    """Believe what HAProxy has, not what it replied."""
    end = time.monotonic() + _SETTLE
    while True:
        now = job.look(client)
        # What a replaced process still says makes no sense, so this comes first.
        client.require_current()
        again, left = job.left_over(client, change, now)
        if not left:
            return again
        if time.monotonic() > end:
            raise Error(
                f"HAProxy at {client.where} accepted '{change.steps[0].shown}' and what belongs to "
                f"it, but still needs '{left[0].shown}': somebody else changed it meanwhile, or "
                "HAProxy ignored a value",
                left_over=[step.shown for step in left],
                socket=client.socket,
            )
        time.sleep(_PAUSE)


def _elsewhere(clients: c.Sequence[Client], exc: Error) -> str:
    """What was done at the other HAProxys of the task, if there are any."""
    others = [client for client in clients if client.socket != exc.details.get("socket")]
    if len(others) == len(clients):
        return ""
    told = [f"{client.where}: {len(client.applied)} commands were carried out" for client in others]
    return f"; at the others, {'; '.join(told)}" if told else ""


def _so_far(clients: c.Iterable[Client]) -> dict[str, t.Any]:
    commands = [command for client in clients for command in client.applied]
    return {"commands": commands, "changed": bool(commands)}


def _outcome(points: c.Sequence[tuple[Client, Change]], commands: list[str]) -> Outcome:
    several = len(points) > 1
    before: dict[str, t.Any] = {}
    after: dict[str, t.Any] = {}
    result: dict[str, list[dict[str, t.Any]]] = {}
    for client, change in points:
        if several:
            before[client.where], after[client.where] = change.before, change.after
        else:
            before, after = change.before, change.after
        for name, values in change.result.items():
            result.setdefault(name, []).extend({"socket": client.socket, **row} for row in values)
    return Outcome(commands, before, after, result)
