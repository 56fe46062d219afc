# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs plans for servers: applies, verifies, waits, takes back. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import math
import time
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _parse, _server_plan
from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import (
    Client,
    state_reads,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import Step, word
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    Error,
    FloorError,
    InputError,
    NotFoundError,
    VersionError,
    WaitError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_desired import (
    READABLE,
    Desired,
    Wanted,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_model import (
    MAINT,
    Check,
    Server,
    Traffic,
    backend_ids,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_plan import (
    PLACES,
    Facts,
    Key,
    Plan,
    Target,
)

if t.TYPE_CHECKING:
    from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_memory import Memory

# Adaptive polling: quick for what is over at once, easy on HAProxy for what takes minutes.
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_PAUSE = 0.02
# The version that brought `init-state fully-up`.
_FULLY_UP = (3, 1)
# The version that brought `wait … srv-removable`.
_WAITS = (3, 0)
# Since this version `check-addr` refuses every address.
_NO_CHECK_ADDRESS = (3, 4)
_SINCE = {"check_address": (2, 4), "agent_port": (2, 4), "ssl": (2, 4)}
_GONE = "is gone; HAProxy was reloaded or somebody deleted it"
# What was shut down is gone within moments; this only bounds the look afterwards.
_GRACE = 5.0
# HAProxy 2.9 and later change a server's address a moment after they have said so.
_SETTLE = 2.0
# How long ended sessions are looked after at servers that may get new ones.
_BRIEFLY = 0.5
_WAIT_TIMEOUT = 300.0
_PINS = {
    "cookie": "clients with the cookie {name} still come to {backend}/{server} at {socket} while "
    "it drains; state: maint sends them elsewhere",
    "table": "the stick table {name} at {socket} pins clients to {backend}/{server} or to a server "
    "of the same name; no backend owns it, so it was left alone: haproxy_stick_table clears it",
}
# What `wait_retries` counts if `wait_interval` is not given, as in the old module.
_OLD_INTERVAL = 5.0


@dataclasses.dataclass(frozen=True)
class Waiting:
    """How long and how often is looked."""

    timeout: float
    interval: float | None

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> Waiting:
        timeout, interval = params["wait_timeout"], params["wait_interval"]
        retries = params.get("wait_retries")
        if timeout is not None and not (math.isfinite(timeout) and timeout >= 0):
            raise InputError(f"wait_timeout {timeout}: must be a number of seconds, 0 or more")
        if interval is not None and not (math.isfinite(interval) and interval > 0):
            raise InputError(f"wait_interval {interval}: must be a number of seconds above 0")
        if retries is not None:
            if timeout is not None:
                raise InputError(
                    "wait_retries and wait_timeout contradict each other: both say how long to wait"
                )
            if retries < 1:
                raise InputError(f"wait_retries {retries}: must be a whole number, 1 or more")
            timeout = retries * (interval or _OLD_INTERVAL)
        return cls(_WAIT_TIMEOUT if timeout is None else timeout, interval)


@dataclasses.dataclass
class Endpoint:
    """One HAProxy taking part in a task: what it has, and what is to be done there."""

    client: Client
    snapshot: list[Server]
    # All that the task names.
    named: list[Target]
    plan: Plan
    checks: dict[Key, Check]
    # Stick tables that belong to the targets' backends, and what else pins their clients.
    tables: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    forgotten: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    pinning: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    now: dict[Key, Server] = dataclasses.field(default_factory=dict)
    traffic: dict[Key, Traffic] = dataclasses.field(default_factory=dict)
    # Who HAProxy itself has said to be free of connections.
    removable: set[Key] = dataclasses.field(default_factory=set)
    # Ports as they were configured, `+10` for one that is added to the client's.
    old_ports: dict[Key, str] = dataclasses.field(default_factory=dict)

    @property
    def backends(self) -> dict[str, int]:
        return backend_ids(self.plan.targets)


@dataclasses.dataclass
class Outcome:
    """What a task did or would do."""

    commands: list[str]
    before: dict[str, t.Any]
    after: dict[str, t.Any]
    servers: list[dict[str, t.Any]]
    waited: float
    forgotten: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    pinning: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """What goes on pinning clients, for people."""
        return [_PINS[row["kind"]].format(**row) for row in self.pinning]


def prepare(client: Client, desired: Desired) -> Endpoint:
    """Level, one filtered read, targets, plan, floor: all that may fail before any command."""
    client.require_level("admin")
    snapshot = _snapshot(client, desired)
    named = _server_plan.resolve(snapshot, desired, client.where)
    targets = _server_plan.moving(named, desired)
    _require_versions(client, targets)
    backends = backend_ids(target.server for target in targets)
    if targets and desired.wants("maxconn"):
        limits = _parse.maxconns(client.stat(backends, what=4))
        targets = [
            target._replace(server=_with_maxconn(target.server, limits)) for target in targets
        ]
    checks: dict[Key, Check] = {}
    if any(desired.ready_waited_for(target.wanted) for target in targets):
        checks = checks_of(client, backends)
    facts = Facts(checks)
    if _plan_has_weights(targets):
        facts = dataclasses.replace(
            facts, algorithms=_parse.algorithms(client.stat(backends, what=2))
        )
    if any(
        _server_plan.kills(target.wanted, drain_first=desired.drain_first) for target in targets
    ):
        streams = _parse.streams(client.stat(backends, what=4))
        facts = dataclasses.replace(facts, streams={key: seen[0] for key, seen in streams.items()})
    memory = None
    if desired.forget_clients:
        memory = _memory(client, snapshot)
        facts = dataclasses.replace(facts, forget=memory.look(targets, desired))
    plan = _server_plan.plan_servers(targets, desired, facts)
    _server_plan.check_floor(snapshot, plan.predicted, desired.min_ready, client.where)
    point = Endpoint(client, snapshot, named, plan, checks)
    if memory is not None:
        point.tables, point.forgotten, point.pinning = (
            memory.tables,
            memory.forgotten,
            memory.pinning,
        )
    return point


def _memory(client: Client, snapshot: c.Sequence[Server]) -> Memory:
    # Only few tasks need all that is behind it, and the others would spend time on loading it.
    from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_memory import Memory

    return Memory(client, snapshot)


def _snapshot(client: Client, desired: Desired) -> list[Server]:
    """The servers of all backends that the task means, each read once."""
    if None in desired.backends:
        return client.servers(None)
    found: dict[Key, Server] = {}
    for backend in sorted(name for name in desired.backends if name is not None):
        try:
            found.update((server.key, server) for server in client.servers(backend))
        except NotFoundError:
            if desired.missing != "ignore":
                raise
    return list(found.values())


def _require_versions(client: Client, targets: c.Iterable[Target]) -> None:
    """What this HAProxy lacks, or has lost."""
    wanted = {id(target.wanted): target.wanted for target in targets}.values()
    for name, since in _SINCE.items():
        if any(getattr(one, name) is not None for one in wanted):
            client.require_version(since, f"setting {name} at run time")
    if any(one.check_address is not None for one in wanted):
        for target in targets:
            if (
                "check_address" in target.wanted.differences(target.server)
                and client.version >= _NO_CHECK_ADDRESS
            ):
                raise VersionError(
                    f"check_address for {target.server.label}: HAProxy 3.4 at {client.where} "
                    "refuses every address for its check-addr command, by a defect of its own; use "
                    "check_port, or set the address in its configuration",
                    socket=client.socket,
                )


def _with_maxconn(server: Server, limits: c.Mapping[Key, int]) -> Server:
    return server.with_changes(maxconn=limits.get(server.key))


def _killed(point: Endpoint, key: Key) -> bool:
    return _server_plan.shutdown_sessions(key).command in point.client.applied


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


def _plan_has_weights(targets: c.Iterable[Target]) -> bool:
    return any(
        target.wanted.weight is not None
        and target.wanted.weight.of(target.server.initial_weight) != target.server.weight
        for target in targets
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
                self._settle(number)
                self._wait(number)
            for point in self.endpoints:
                self._read_back(point)
            self._see_ended()
            self._see_forgotten()
        except Error as exc:
            commands = self._commands()
            exc.details.setdefault("commands", commands)
            exc.details.setdefault("changed", bool(commands))
            exc.details.setdefault("waited", round(self.waited, 3))
            raise
        return self._outcome(self._commands())

    # --- applying ---------------------------------------------------------------------------

    def _apply(self, point: Endpoint, phase: _server_plan.Phase, *, first: bool) -> None:
        if not phase.steps:
            return
        if phase.leaving:
            self._apply_provably(point, phase)
        else:
            self._send(point, phase.steps)
        if first and self.desired.min_ready is not None:
            self._read_now(point)
            self._floor_again(point)

    @staticmethod
    def _send(point: Endpoint, steps: c.Sequence[Step], then: c.Sequence[str] = ()) -> list[str]:
        replies = point.client.apply(steps, then)
        for step, reply in zip(steps, replies):
            if " addr " in step.command and (port := _server_plan.old_port(reply)) is not None:
                point.old_ports.setdefault(step.key, port)
        return replies[len(steps) :]

    def _apply_provably(self, point: Endpoint, phase: _server_plan.Phase) -> None:
        """Make sure that a check that passes from now on can be told from none.

        HAProxy hides rise and fall of a server in maintenance, so what its counter means is known
        only behind the command. A counter that is full there tells nothing with `fall 1`, where it
        always is, or with `init-state fully-up`. Otherwise a check has passed before the look.
        """
        leaving = set(phase.leaving)
        replies = self._send(point, phase.steps, state_reads({key[0] for key in leaving}))
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
            _server_plan.await_check(key)
            for key in sorted(full)
            if point.checks[key].fall == 1 or point.client.version >= _FULLY_UP
        ]
        point.client.apply(unproven)

    def _settle(self, number: int) -> None:
        """Until new addresses are in use, and no check of the old ones is on its way."""
        for point in self.endpoints:
            if number >= len(point.plan.phases) or not point.plan.phases[number].settle:
                continue
            keys = set(point.plan.phases[number].settle)
            end = time.monotonic() + _SETTLE
            while True:
                self._read_now(point)
                if (
                    not any(self._unlike(point, wanted, PLACES) for wanted in self._of(point, keys))
                    or time.monotonic() > end
                ):
                    break
                time.sleep(_PAUSE)
            if self._deadline is None:
                self._deadline = time.monotonic() + self.waiting.timeout
            while time.monotonic() < self._deadline and any(
                key in point.now and point.now[key].checking and point.now[key].state != MAINT
                for key in keys
            ):
                time.sleep(_PAUSE)
                self._read_now(point)

    @staticmethod
    def _of(point: Endpoint, keys: c.Collection[Key]) -> list[Server]:
        """What the plan foresees of these servers."""
        return [server for server in point.plan.predicted if server.key in keys]

    @staticmethod
    def _unlike(point: Endpoint, wanted: Server, names: c.Collection[str]) -> str | None:
        """The first of the values that is not what the plan foresees."""
        have = point.now.get(wanted.key)
        for name in point.plan.managed[wanted.key]:
            if name in names and (have is None or not _server_plan.alike(name, have, wanted)):
                return name
        return None

    def _floor_again(self, point: Endpoint) -> None:
        """Two operators may each have seen enough servers: look again, and give way."""
        backends = point.backends
        sentence = _server_plan.check_floor_now(
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
        if point.backends and self.desired.wants("maxconn"):
            limits = _parse.maxconns(point.client.stat(point.backends, what=4))
            point.now = {key: _with_maxconn(srv, limits) for key, srv in point.now.items()}

    def _read_back(self, point: Endpoint) -> None:
        """Believe what HAProxy has, not what it replied."""
        if not point.plan.commands:
            point.now = {server.key: server for server in point.plan.targets}
            if not any(phase.goals for phase in point.plan.phases):
                return
        end = time.monotonic() + _SETTLE
        while True:
            self._read_now(point)
            wrong = next(
                (
                    (wanted, name)
                    for wanted in point.plan.predicted
                    if (name := self._unlike(point, wanted, READABLE)) is not None
                ),
                None,
            )
            # An address takes a moment, whatever the reply said.
            if wrong is None or wrong[1] not in PLACES or time.monotonic() > end:
                break
            time.sleep(_PAUSE)
        point.client.require_current()
        if wrong is not None:
            wanted, name = wrong
            have = point.now.get(wanted.key)
            raise Error(
                f"{wanted.label} at {point.client.where} has {name} "
                f"{None if have is None else getattr(have, name)} although HAProxy accepted "
                f"{getattr(wanted, name)}: somebody else or an agent check changed it meanwhile",
                server=wanted.label,
            )

    def _see_ended(self) -> None:
        """Sessions that were to be ended at once are gone, those included that came meanwhile."""
        open_ = [
            (point, key)
            for point in self.endpoints
            for key, wanted in point.plan.wanted.items()
            if _server_plan.kills(wanted, drain_first=self.desired.drain_first)
        ]
        if not open_:
            return
        started = time.monotonic()
        killed = {(id(point), key) for point, key in open_ if _killed(point, key)}
        while True:
            for point in {id(point): point for point, _key in open_}.values():
                point.traffic = point.client.traffic(point.backends)
            busy = [
                (point, key)
                for point, key in open_
                if point.traffic.get(key, Traffic()).streams
                # Whoever stays in load balancing gets new sessions at once.
                and (point.plan.wanted[key].out or (id(point), key) in killed)
            ]
            late = [(point, key) for point, key in busy if (id(point), key) not in killed]
            for point, key in late:
                point.client.apply([_server_plan.shutdown_sessions(key)])
                killed.add((id(point), key))
            waited = time.monotonic() - started
            lasting = [key for point, key in busy if point.plan.wanted[key].state == MAINT]
            if not busy or waited > (_GRACE if lasting else _BRIEFLY):
                break
            time.sleep(_FIRST_PAUSE)
        self.waited += time.monotonic() - started
        if lasting:
            shown = "; ".join(f"{key[0]}/{key[1]}" for key in lasting[:5])
            raise WaitError(f"the sessions were shut down, but {_GRACE:g} s later {shown} has some")

    def _see_forgotten(self) -> None:
        """Peers may teach tables again what was cleared, and entries in use stay: look again."""
        points = [point for point in self.endpoints if point.forgotten]
        if not points:
            return
        started, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            left = []
            for point in points:
                memory = _memory(point.client, point.snapshot)
                memory.tables = point.tables
                out = [srv for srv in point.plan.targets if point.plan.wanted[srv.key].out]
                steps = [step for found in memory.steps(out).values() for step in found]
                left += memory.forgotten
                if time.monotonic() - started > _GRACE:
                    continue
                point.client.apply(steps)
            if not left or time.monotonic() - started > _GRACE:
                break
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        self.waited += time.monotonic() - started
        if left:
            first = left[0]
            raise WaitError(
                f"the table {first['table']} at {first['socket']} still pins {first['entries']} "
                f"clients to {first['backend']}/{first['server']} {_GRACE:g} s after they were "
                "cleared: a peer that is not among the sockets of the task teaches them again, or "
                "sessions that are still open use them",
                still_pinned=left,
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
        lasting = [
            {"socket": point.client.socket, "reason": why}
            for point in self.endpoints
            for why in dict.fromkeys(
                point.plan.lasting[command]
                for command in point.client.applied
                if command in point.plan.lasting
            )
        ]
        if not failed and not lasting:
            everything = "every server that this task had changed was set back"
            return f"{sentence}; {everything}", {"undone": undone}
        reasons = "; ".join(entry["reason"] for entry in [*failed, *lasting])
        places = ", ".join(dict.fromkeys(entry["socket"] for entry in [*failed, *lasting]))
        return (
            f"{sentence}; what this task had changed was set back, but not everything at {places}: "
            f"{reasons}",
            {"undone": undone, "not_undone": [*failed, *lasting]},
        )

    def _take_back(self, point: Endpoint) -> None:
        point.client.require_current()
        before = {server.key: server for server in point.plan.targets}
        changed = point.plan.changed
        self._read_now(point)
        steps = [
            step
            for key in sorted(changed)
            if key in point.now
            for step in _server_plan.undo(
                before[key], point.now[key], changed[key], point.old_ports.get(key)
            )
        ]
        point.client.apply(steps)
        end = time.monotonic() + _SETTLE
        while steps:
            self._read_now(point)
            left = [
                f"{name} of {key[0]}/{key[1]}"
                for key in sorted(changed)
                if key in point.now
                for name in Wanted.back_to(before[key], changed[key]).differences(point.now[key])
            ]
            if not left:
                return
            if time.monotonic() > end:
                raise Error(f"{', '.join(left)} is not what it was")
            time.sleep(_PAUSE)

    # --- waiting ----------------------------------------------------------------------------

    def _wait(self, number: int) -> None:
        """Until every watched server of the phase is where it should be, or the deadline."""
        points = [
            point
            for point in self.endpoints
            if number < len(point.plan.phases) and point.plan.phases[number].goals
        ]
        if not points:
            return
        interval = self.waiting.interval
        # HAProxy's `stats timeout` closes idle connections, and interrupts its own waiting.
        if interval is not None and interval > _LONGEST_PAUSE:
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
                self._pause(open_, number, min(interval or pause, left))
                pause = min(pause * 1.6, _LONGEST_PAUSE)
        finally:
            self.waited += time.monotonic() - started
        self._too_late(points, number, open_)

    def _unfinished(self, point: Endpoint, number: int) -> list[tuple[Key, str]]:
        """Who is not there yet, and why."""
        goals = point.plan.phases[number].goals
        waiting: list[tuple[Key, str]] = []
        draining = [key for key, goal in goals.items() if goal == _server_plan.DRAINED]
        rising = [key for key, goal in goals.items() if goal == _server_plan.UP]
        if draining:
            backends = {name: point.backends[name] for name in {key[0] for key in draining}}
            point.traffic = point.client.traffic(backends)
            waiting += [
                (key, f"still has {point.traffic[key]}" if key in point.traffic else _GONE)
                for key in draining
                if key not in point.traffic
                or not (point.traffic[key].drained or key in point.removable)
            ]
        if not rising:
            return waiting
        # Rise and fall of what was in maintenance a moment ago are known only now.
        point.checks = checks_of(point.client, point.backends)
        point.now = point.client.servers_of(set(point.backends) | followed(point.checks))
        for key in rising:
            server = point.now.get(key)
            if server is None:
                waiting.append((key, _GONE))
            elif not _server_plan.is_up(server, point.now, point.checks):
                waiting.append((key, _server_plan.why_not_up(server, point.checks.get(key))))
        return waiting

    @staticmethod
    def _pause(open_: c.Sequence[tuple[Endpoint, Key, str]], number: int, seconds: float) -> None:
        """Until the next look; HAProxy's own word that a server is free ends it sooner.

        HAProxy gives it for servers in maintenance only. Through the master it is interrupted at
        once, because the master closes its side of the connection to the worker.
        """
        for point, key, _why in open_:
            # What is drained first is not in maintenance before the last phase.
            last = number + 1 == len(point.plan.phases)
            if not last or point.plan.wanted[key].state != MAINT:
                continue
            if point.client.is_master or point.client.version < _WAITS:
                continue
            started = time.monotonic()
            where = f"{word(key[0])}/{word(key[1])}"
            reply = point.client.read(
                f"wait {max(int(seconds * 1000), 1)}ms srv-removable {where}", patience=seconds
            )
            if reply.strip() == "Done.":
                point.removable.add(key)
                return
            # It fails at once where somebody has put the server back.
            seconds -= time.monotonic() - started
            break
        if seconds > 0:
            time.sleep(seconds)

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
        if policy == "rollback":
            sentence, waiting_for = self._unfinished_business(open_)
            message, details = self._taken_back(sentence)
            raise WaitError(message, waiting_for=waiting_for, **details)
        self._fail(open_, f"; {self._left_in(points, number, open_)}")

    def _fail(self, open_: c.Sequence[tuple[Endpoint, Key, str]], end: str) -> t.NoReturn:
        sentence, waiting_for = self._unfinished_business(open_)
        raise WaitError(f"{sentence}{end}", waiting_for=waiting_for)

    def _unfinished_business(
        self, open_: c.Sequence[tuple[Endpoint, Key, str]]
    ) -> tuple[str, list[dict[str, str]]]:
        """Who is not there yet, for people and for programs."""
        shown = "; ".join(f"{key[0]}/{key[1]} {why}" for _point, key, why in open_[:5])
        more = f"; and {len(open_) - 5} more" if len(open_) > 5 else ""
        waiting_for = [
            {"socket": point.client.socket, "backend": key[0], "server": key[1], "reason": why}
            for point, key, why in open_
        ]
        return f"after {self.waiting.timeout:g} s {shown}{more}", waiting_for

    @staticmethod
    def _left_in(
        points: c.Sequence[Endpoint], number: int, open_: c.Sequence[tuple[Endpoint, Key, str]]
    ) -> str:
        if any(point.plan.phases[number + 1 :] for point in points):
            return "the servers stay in state drain and were not put into maint"
        states = {point.plan.wanted[key].state or "" for point, key, _why in open_}
        return f"the servers stay in state {' and '.join(sorted(states))}"

    def _shut_down(
        self,
        points: c.Sequence[Endpoint],
        number: int,
        open_: c.Sequence[tuple[Endpoint, Key, str]],
    ) -> None:
        """Kill what is left, and see that it is gone."""
        busy = {
            (id(point), key)
            for point, key, _why in open_
            if point.plan.phases[number].goals[key] == _server_plan.DRAINED
        }
        for point in points:
            keys = [key for owner, key, _why in open_ if owner is point]
            point.client.apply(
                [_server_plan.shutdown_sessions(key) for key in keys if (id(point), key) in busy]
            )
        end = time.monotonic() + _GRACE
        started = time.monotonic()
        while True:
            left = [
                f"{key[0]}/{key[1]} {why}"
                for point in points
                for key, why in self._unfinished(point, number)
                # A client's idle connection may keep its server connection (HAProxy 2.2 counts it
                # as used); there is no session left to shut down in it.
                if (id(point), key) in busy
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
        down = [item for item in open_ if (id(item[0]), item[1]) not in busy]
        if down:
            self._fail(down, f"; {self._left_in(points, number, down)}")

    # --- result -----------------------------------------------------------------------------

    def _commands(self) -> list[str]:
        return [command for point in self.endpoints for command in point.client.applied]

    def _outcome(self, commands: list[str]) -> Outcome:
        before: dict[str, t.Any] = {}
        after: dict[str, t.Any] = {}
        servers: list[dict[str, t.Any]] = []
        several = len(self.endpoints) > 1
        for point in self.endpoints:
            plan, now, changed = point.plan, point.now, point.plan.changed_keys
            prefix = f"{point.client.where} " if several else ""
            last = {server.key: now.get(server.key, server) for server in plan.targets}
            for server in plan.targets:
                if server.key in changed:
                    label = prefix + server.label
                    before[label] = plan.view(server)
                    after[label] = plan.view(last[server.key])
            if self.returned == "all":
                named = {target.key: target.server for target in point.named}
                shown = [server for _key, server in sorted((named | last).items())]
            elif self.returned == "changed":
                shown = [server for key, server in last.items() if key in changed]
            else:
                shown = []
            Server.read_now(shown)
            servers += [self._returned(point, server) for server in shown]
        return Outcome(
            commands,
            before,
            after,
            servers,
            round(self.waited, 3),
            [row for point in self.endpoints for row in point.forgotten],
            [row for point in self.endpoints for row in point.pinning],
        )

    @staticmethod
    def _returned(point: Endpoint, server: Server) -> dict[str, t.Any]:
        traffic = point.traffic.get(server.key)
        shown = server.as_dict()
        shown["socket"] = point.client.socket
        shown["streams"] = None if traffic is None else traffic.streams
        shown["connections"] = None if traffic is None else traffic.used
        shown["idle_connections"] = None if traffic is None else traffic.idle
        return shown
