# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs plans: reads, applies, verifies, waits, takes back. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import itertools
import math
import time
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _parse, _plan
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
from ansible_collections.clearproxy.haproxy.plugins.module_utils._model import (
    MAINT,
    Check,
    Server,
    Traffic,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._plan import (
    Desired,
    Key,
    Plan,
    Step,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._transport import (
    BrokenOff,
    ClosedIdle,
    Connection,
)

_NO_BACKEND = "Can't find backend."
# From so many backends on, one unfiltered read is cheaper than many filtered ones.
_MANY_BACKENDS = 8
# Adaptive polling: quick for what is over at once, easy on HAProxy for what takes minutes.
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
# HAProxy closes an idle connection after its `stats timeout`, 10 s if not configured.
_SAFE_IDLE = 5.0
# The version that brought `init-state fully-up`.
_FULLY_UP = (3, 1)
_GONE = "is gone; HAProxy was reloaded or somebody deleted it"
# What was shut down is gone within moments; this only bounds the look afterwards.
_GRACE = 5.0


class Client:
    """HAProxy at one socket."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # Every command that changed something and was accepted, in order.
        self.applied: list[str] = []
        self._version: tuple[int, int] | None = None

    @property
    def where(self) -> str:
        return str(self._connection.address)

    @property
    def socket(self) -> str:
        return self._connection.address.text

    def close(self) -> None:
        self._connection.close()

    def read(self, command: str) -> str:
        """One command that changes nothing.

        While another HAProxy is waited for, this one may close the idle connection. Nothing is
        lost by that, if the process behind the socket is still the same.
        """
        try:
            return self._connection.exchange([command])[0]
        except ClosedIdle as exc:
            try:
                info = self._connection.exchange(["show info"])[0]
            except SocketError:
                raise exc from None
            # Rounded down, so a second is granted.
            began = self._connection.began or 0.0
            if _parse.uptime(info) + 1 < time.monotonic() - began:
                raise self._reloaded() from None
            return self._connection.exchange([command])[0]

    def require_admin(self) -> None:
        """HAProxy refuses per command; asking once says it before anything was sent."""
        reply = self.read("show cli level")
        if reply.strip() == "Permission denied":
            reply = "user"
        level = _parse.level(reply)
        if level != "admin":
            raise LevelError(
                f"the socket {self.where} has level {level}, but changing servers needs level "
                "admin: add "
                "'level admin' to its 'stats socket' line and reload HAProxy, or name a socket "
                "that has it",
                socket=self.socket,
                level=level,
            )

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor version, asked once."""
        if self._version is None:
            self._version = _parse.version(self.read("show info"))
        return self._version

    def require_current(self) -> None:
        """A process that was reloaded goes on talking, but its word is worth nothing any more."""
        if _parse.stopping(self.read("show info")):
            raise self._reloaded()

    def _reloaded(self) -> SocketError:
        return SocketError(
            f"HAProxy at {self.where} was reloaded or is being stopped, and this was said to the "
            "old process: run the task again to see what the new one has",
            socket=self.socket,
        )

    def keep_open(self, seconds: float) -> None:
        """Let this connection be idle for so long, whatever the configuration's `stats timeout`."""
        self.read(f"set timeout cli {math.ceil(seconds + self._connection.timeout + _SAFE_IDLE)}")

    def servers(self, backend: str | None) -> list[Server]:
        """The servers of one backend, or of all."""
        if backend is None:
            return _parse.servers_state(self.read("show servers state"))
        reply = self.read(f"show servers state {_plan.word(backend)}")
        if reply.strip() == _NO_BACKEND:
            known = _parse.backends(self.read("show backend"))
            raise NotFoundError(
                f"HAProxy at {self.where} has no backend {backend!r}; {_plan.near(backend, known)}",
                backend=backend,
                socket=self.socket,
            )
        return _parse.servers_state(reply)

    def servers_of(self, backends: c.Collection[str]) -> dict[Key, Server]:
        """The servers of several backends, by their keys."""
        found = [
            server
            for command in state_reads(backends)
            for server in _parse.servers_state(self.read(command))
        ]
        return {server.key: server for server in found if server.backend in backends}

    def stat(self, backends: c.Mapping[str, int], *, what: int) -> list[dict[str, str]]:
        """Statistics rows of the backends, given with their ids; `what` is 2 backends, 4 servers.

        Always by `#id`: a frontend may have the same name, and a name may look like an id.
        """
        if len(backends) > _MANY_BACKENDS:
            rows = _parse.stat(self.read(f"show stat -1 {what} -1"))
            return [row for row in rows if row["pxname"] in backends]
        rows = []
        for name in sorted(backends):
            rows += _parse.stat(self.read(f"show stat #{backends[name]} {what} -1"))
        return rows

    def traffic(self, backends: c.Mapping[str, int]) -> dict[Key, Traffic]:
        """What is still going on at each server."""
        streams = _parse.streams(self.stat(backends, what=4))
        connections: dict[Key, tuple[int, int]] = {}
        if len(backends) > _MANY_BACKENDS:
            connections = _parse.servers_conn(self.read("show servers conn"))
        else:
            for name in sorted(backends):
                connections.update(
                    _parse.servers_conn(self.read(f"show servers conn {_plan.word(name)}"))
                )
        return _parse.traffic(streams, connections)

    def apply(self, steps: c.Sequence[Step], then: c.Sequence[str] = ()) -> list[str]:
        """Send the commands in one batch and check every reply: these say nothing when accepted.

        `then` are reads that go out in the same batch, right behind; their replies are returned.
        """
        if not steps:
            return []
        commands = [step.command for step in steps]
        sent = [*commands, *then]
        number = itertools.count(1)
        try:
            replies = self._connection.exchange(
                sent,
                accept=lambda _command, reply: next(number) > len(commands) or not reply.strip(),
            )
        except BrokenOff as exc:
            done = [cmd for cmd, reply in zip(commands, exc.replies) if not reply.strip()]
            self.applied += done
            started = min(exc.started, len(commands))
            unknown = commands[len(exc.replies) : started]
            raise SocketError(
                f"{exc}; of {len(commands)} commands {len(done)} were carried out, "
                f"{len(unknown)} have an unknown outcome, {len(commands) - started} were not sent",
                **exc.details,
                applied=done,
                unknown=unknown,
                not_sent=commands[started:],
            ) from None
        done = [cmd for cmd, reply in zip(commands, replies) if not reply.strip()]
        self.applied += done
        refused = [(cmd, reply.strip()) for cmd, reply in zip(commands, replies) if reply.strip()]
        if refused:
            command, reply = refused[0]
            more = f" ({len(refused) - 1} more were refused)" if len(refused) > 1 else ""
            raise CommandError(
                f"HAProxy at {self.where} refused '{command}': {_one_line(reply)}{more}; of "
                f"{len(commands)} commands {len(done)} were carried out",
                refused=[{"command": cmd, "reply": text} for cmd, text in refused],
                applied=done,
                not_sent=commands[len(replies) :],
                socket=self.socket,
            )
        return replies[len(commands) :]


def state_reads(backends: c.Collection[str]) -> list[str]:
    """The commands that read the servers of these backends, which are known to exist."""
    if len(backends) > _MANY_BACKENDS:
        return ["show servers state"]
    return [f"show servers state {_plan.word(backend)}" for backend in sorted(backends)]


def _one_line(reply: str) -> str:
    return " ".join(reply.split())[:300]


@dataclasses.dataclass(frozen=True)
class Waiting:
    """How long and how often is looked."""

    timeout: float
    interval: float | None

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> Waiting:
        timeout, interval = params["wait_timeout"], params["wait_interval"]
        if not (math.isfinite(timeout) and timeout >= 0):
            raise InputError(f"wait_timeout {timeout}: must be a number of seconds, 0 or more")
        if interval is not None and not (math.isfinite(interval) and interval > 0):
            raise InputError(f"wait_interval {interval}: must be a number of seconds above 0")
        return cls(timeout, interval)


@dataclasses.dataclass
class Endpoint:
    """One HAProxy taking part in a task: what it has, and what is to be done there."""

    client: Client
    snapshot: list[Server]
    plan: Plan
    checks: dict[Key, Check]
    now: dict[Key, Server] = dataclasses.field(default_factory=dict)
    traffic: dict[Key, Traffic] = dataclasses.field(default_factory=dict)

    @property
    def backends(self) -> dict[str, int]:
        return {server.backend: server.backend_id for server in self.plan.targets}


@dataclasses.dataclass
class Outcome:
    """What a task did or would do."""

    commands: list[str]
    before: dict[str, t.Any]
    after: dict[str, t.Any]
    servers: list[dict[str, t.Any]]
    waited: float


def prepare(client: Client, desired: Desired) -> Endpoint:
    """Level, one filtered read, targets, plan, floor: all that may fail before any command."""
    client.require_admin()
    try:
        snapshot = client.servers(desired.backend)
    except NotFoundError:
        if desired.missing != "ignore":
            raise
        snapshot = []
    targets = _plan.resolve(snapshot, desired, client.where)
    backends = {server.backend: server.backend_id for server in targets}
    checks = checks_of(client, backends) if desired.needs_checks and targets else {}
    algorithms: dict[str, str] = {}
    if _plan_has_weights(targets, desired):
        algorithms = _parse.algorithms(client.stat(backends, what=2))
    plan = _plan.plan_servers(targets, desired, checks=checks, algorithms=algorithms)
    _plan.check_floor(snapshot, plan.predicted, desired.min_ready, client.where)
    return Endpoint(client, snapshot, plan, checks)


def checks_of(client: Client, backends: c.Mapping[str, int]) -> dict[Key, Check]:
    """How health is counted in these backends, and in those whose servers theirs track."""
    checks = _parse.checks(client.stat(backends, what=4))
    read = set(backends)
    while followed(checks) - read:
        more = {
            srv.backend: srv.backend_id
            for srv in client.servers_of(followed(checks) - read).values()
        }
        read |= followed(checks)
        checks.update(_parse.checks(client.stat(more, what=4)))
    return checks


def followed(checks: c.Mapping[Key, Check]) -> set[str]:
    """The backends whose servers are tracked by others."""
    return {check.tracked.partition("/")[0] for check in checks.values() if check.tracked}


def _plan_has_weights(targets: c.Iterable[Server], desired: Desired) -> bool:
    wanted = desired.weight
    return wanted is not None and any(
        wanted.of(srv.initial_weight) != srv.weight for srv in targets
    )


class Operation:
    """One task on one or several HAProxys: all prepared before the first command on any."""

    def __init__(
        self,
        clients: c.Sequence[Client],
        desired: Desired,
        waiting: Waiting,
        returned: str = "changed",
    ) -> None:
        self.desired = desired
        self.waiting = waiting
        self.returned = returned
        self.waited = 0.0
        self._deadline: float | None = None
        self.endpoints = [prepare(client, desired) for client in clients]

    def preview(self) -> Outcome:
        """What run() would do and lead to."""
        commands = [command for point in self.endpoints for command in point.plan.commands]
        for point in self.endpoints:
            point.now = {server.key: server for server in point.plan.predicted}
        return self._outcome(commands)

    def run(self) -> Outcome:
        """Apply, verify and wait, phase by phase; a failure says what was carried out."""
        try:
            for number in range(
                max((len(point.plan.phases) for point in self.endpoints), default=0)
            ):
                for point in self.endpoints:
                    if number < len(point.plan.phases):
                        self._apply(point, point.plan.phases[number], first=number == 0)
                self._wait(number)
            for point in self.endpoints:
                self._read_back(point)
        except Error as exc:
            commands = self._commands()
            exc.details.setdefault("commands", commands)
            exc.details.setdefault("changed", bool(commands))
            exc.details.setdefault("waited", round(self.waited, 3))
            raise
        return self._outcome(self._commands())

    # --- applying ---------------------------------------------------------------------------

    def _apply(self, point: Endpoint, phase: _plan.Phase, *, first: bool) -> None:
        if not phase.steps:
            return
        if phase.goal == _plan.UP:
            self._apply_provably(point, phase)
        else:
            point.client.apply(phase.steps)
        if first and self.desired.min_ready is not None:
            self._read_now(point)
            self._floor_again(point)

    def _apply_provably(self, point: Endpoint, phase: _plan.Phase) -> None:
        """Make sure that a check that passes from now on can be told from none.

        HAProxy hides rise and fall of a server in maintenance, so what its counter means is known
        only behind the command. A counter that is full there tells nothing with `fall 1`, where it
        always is, or with `init-state fully-up`. Otherwise a check has passed before the look.
        """
        leaving = {server.key for server in point.plan.targets if server.state == MAINT}
        look = state_reads({key[0] for key in leaving}) if leaving else ()
        replies = point.client.apply(phase.steps, look)
        point.checks = checks_of(point.client, point.backends)
        full = [
            server.key
            for reply in replies
            for server in _parse.servers_state(reply)
            if server.key in leaving and server.running and server.health_checks
            if server.key in point.checks
            if server.check_health >= point.checks[server.key].full
        ]
        unproven = [
            _plan.await_check(key)
            for key in sorted(full)
            if point.checks[key].fall == 1 or point.client.version >= _FULLY_UP
        ]
        point.client.apply(unproven)

    def _floor_again(self, point: Endpoint) -> None:
        """Two operators may each have seen enough servers: look again, and give way."""
        backends = point.backends
        sentence = _plan.check_floor_now(
            point.snapshot, point.now.values(), backends, self.desired.min_ready or "0"
        )
        if sentence is None:
            return
        # Bringing servers back is no reason to undo anything.
        if not any(
            srv.usable and not new.usable
            for srv, new in zip(point.plan.targets, point.plan.predicted)
        ):
            return
        message, details = self._taken_back(f"{point.client.where}: {sentence}")
        raise FloorError(message, **details)

    def _read_now(self, point: Endpoint) -> None:
        point.now = point.client.servers_of(set(point.backends)) if point.backends else {}

    def _read_back(self, point: Endpoint) -> None:
        """Believe what HAProxy has, not what it replied."""
        if not point.plan.commands:
            point.now = {server.key: server for server in point.plan.targets}
            if not any(phase.goal for phase in point.plan.phases):
                return
        self._read_now(point)
        point.client.require_current()
        for wanted in point.plan.predicted:
            have = point.now.get(wanted.key)
            for name in point.plan.managed:
                found = None if have is None else getattr(have, name)
                if found != getattr(wanted, name):
                    raise Error(
                        f"{wanted.label} at {point.client.where} has {name} {found} although "
                        f"HAProxy accepted {getattr(wanted, name)}: somebody else or an agent "
                        "check changed it meanwhile",
                        server=wanted.label,
                    )

    def _taken_back(self, sentence: str) -> tuple[str, dict[str, t.Any]]:
        """Return every server that this task changed to how it was found, wherever that works.

        The result is the reason, completed by what became of that, and the details.
        """
        undone: list[str] = []
        failed: list[dict[str, str]] = []
        for point in self.endpoints:
            if not point.client.applied:
                continue
            done = len(point.client.applied)
            try:
                self._take_back(point)
            except Error as exc:
                failed.append({"socket": point.client.socket, "reason": str(exc)})
            undone += point.client.applied[done:]
        if not failed:
            everything = "every server that this task had changed was set back"
            return f"{sentence}; {everything}", {"undone": undone}
        reasons = "; ".join(entry["reason"] for entry in failed)
        places = ", ".join(entry["socket"] for entry in failed)
        return (
            f"{sentence}; what this task had changed was set back, but not everything at {places}: "
            f"{reasons}",
            {"undone": undone, "not_undone": failed},
        )

    @staticmethod
    def _take_back(point: Endpoint) -> None:
        point.client.require_current()
        before = {server.key: server for server in point.plan.targets}
        changed = point.plan.changed_keys
        now = point.client.servers_of({key[0] for key in changed})
        point.client.apply(
            [
                step
                for key in sorted(changed)
                if key in now
                for step in _plan.undo(before[key], now[key])
            ]
        )

    # --- waiting ----------------------------------------------------------------------------

    def _wait(self, number: int) -> None:
        """Until every watched server of the phase is where it should be, or the deadline."""
        points = [
            point
            for point in self.endpoints
            if number < len(point.plan.phases) and point.plan.phases[number].goal
        ]
        if not points:
            return
        interval = self.waiting.interval
        if interval is not None and interval > _SAFE_IDLE:
            for point in points:
                point.client.keep_open(interval)
        started = time.monotonic()
        if self._deadline is None:
            self._deadline = started + self.waiting.timeout
        pause = _FIRST_PAUSE
        try:
            while True:
                open_ = [
                    (point, key, why)
                    for point in points
                    for key, why in self._unfinished(point, number)
                ]
                if not open_:
                    return
                left = self._deadline - time.monotonic()
                if left <= 0:
                    break
                time.sleep(min(interval or pause, left))
                pause = min(pause * 1.6, _LONGEST_PAUSE)
        finally:
            self.waited += time.monotonic() - started
        self._too_late(points, number, open_)

    def _unfinished(self, point: Endpoint, number: int) -> list[tuple[Key, str]]:
        """Who is not there yet, and why."""
        phase = point.plan.phases[number]
        if phase.goal == _plan.DRAINED:
            backends = {name: point.backends[name] for name in {key[0] for key in phase.watch}}
            point.traffic = point.client.traffic(backends)
            return [
                (key, f"still has {point.traffic[key]}" if key in point.traffic else _GONE)
                for key in phase.watch
                if key not in point.traffic or not point.traffic[key].drained
            ]
        # Rise and fall of what was in maintenance a moment ago are known only now.
        point.checks = checks_of(point.client, point.backends)
        point.now = point.client.servers_of(set(point.backends) | followed(point.checks))
        waiting = []
        for key in phase.watch:
            server = point.now.get(key)
            if server is None:
                waiting.append((key, _GONE))
            elif not _plan.is_up(server, point.now, point.checks):
                waiting.append((key, _plan.why_not_up(server, point.checks.get(key))))
        return waiting

    def _too_late(
        self,
        points: c.Sequence[Endpoint],
        number: int,
        open_: c.Sequence[tuple[Endpoint, Key, str]],
    ) -> None:
        policy = self.desired.on_timeout
        if policy != "rollback":
            for point in points:
                point.client.require_current()
        if policy == "shutdown_sessions":
            self._shut_down(points, number, open_)
            return
        shown = "; ".join(f"{key[0]}/{key[1]} {why}" for _point, key, why in open_[:5])
        more = f"; and {len(open_) - 5} more" if len(open_) > 5 else ""
        waiting_for = [
            {"socket": point.client.socket, "backend": key[0], "server": key[1], "reason": why}
            for point, key, why in open_
        ]
        sentence = f"after {self.waiting.timeout:g} s {shown}{more}"
        if policy == "rollback":
            message, details = self._taken_back(sentence)
            raise WaitError(message, waiting_for=waiting_for, **details)
        state = self._left_in(points, number)
        raise WaitError(f"{sentence}; {state}", waiting_for=waiting_for)

    def _left_in(self, points: c.Sequence[Endpoint], number: int) -> str:
        later = any(point.plan.phases[number + 1 :] for point in points)
        if later:
            return "the servers stay in state drain and were not put into maint"
        return f"the servers stay in state {self.desired.state}"

    def _shut_down(
        self,
        points: c.Sequence[Endpoint],
        number: int,
        open_: c.Sequence[tuple[Endpoint, Key, str]],
    ) -> None:
        """Kill what is left, and see that it is gone."""
        for point in points:
            keys = [key for owner, key, _why in open_ if owner is point]
            point.client.apply([_plan.shutdown_sessions(key) for key in keys])
        end = time.monotonic() + _GRACE
        started = time.monotonic()
        while True:
            left = [
                f"{key[0]}/{key[1]} {why}"
                for point in points
                for key, why in self._unfinished(point, number)
                # A client's idle connection may keep its server connection (HAProxy 2.2 counts it
                # as used); there is no session left to shut down in it.
                if point.traffic.get(key, Traffic()).streams
                or point.traffic.get(key, Traffic()).queued
            ]
            if not left or time.monotonic() > end:
                break
            time.sleep(_FIRST_PAUSE)
        self.waited += time.monotonic() - started
        if left:
            raise WaitError(
                f"the sessions were shut down after {self.waiting.timeout:g} s, but {_GRACE:g} s "
                "later "
                f"{'; '.join(left[:5])}"
            )

    # --- result -----------------------------------------------------------------------------

    def _commands(self) -> list[str]:
        return [command for point in self.endpoints for command in point.client.applied]

    def _outcome(self, commands: list[str]) -> Outcome:
        before: dict[str, t.Any] = {}
        after: dict[str, t.Any] = {}
        servers: list[dict[str, t.Any]] = []
        several = len(self.endpoints) > 1
        for point in self.endpoints:
            plan = point.plan
            last = [point.now.get(server.key, server) for server in plan.targets]
            prefix = f"{point.client.where} " if several else ""
            before.update({prefix + label: view for label, view in plan.view(plan.targets).items()})
            after.update({prefix + label: view for label, view in plan.view(last).items()})
            changed = plan.changed_keys
            for server in last:
                if self.returned == "all" or (self.returned == "changed" and server.key in changed):
                    servers.append(self._returned(point, server))
        return Outcome(commands, before, after, servers, round(self.waited, 3))

    @staticmethod
    def _returned(point: Endpoint, server: Server) -> dict[str, t.Any]:
        traffic = point.traffic.get(server.key)
        return {
            "socket": point.client.socket,
            **server.as_dict(),
            "streams": None if traffic is None else traffic.streams,
            "connections": None if traffic is None else traffic.used,
            "idle_connections": None if traffic is None else traffic.idle,
        }
