# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: (current, desired) to commands and the predicted result. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import difflib
import fnmatch
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    FloorError,
    InputError,
    NotFoundError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._model import (
    DRAIN,
    MAINT,
    READY,
    Check,
    Server,
    Weight,
    floor_of,
    normal_name,
    normal_state,
    parse_weight,
)

Key = tuple[str, str]

DRAINED = "drained"
UP = "up"

# The balance algorithms whose name alone says that only 0% and 100% are possible. The hashing ones
# depend on hash-type, which HAProxy does not tell.
_STATIC_ALGORITHMS = ("static-rr",)
_PATTERN = re.compile(r"[A-Za-z0-9_.:*?\[\]!-]+\Z")


@dataclasses.dataclass(frozen=True)
class Desired:
    """What a task wants of servers; None leaves alone."""

    servers: tuple[str, ...]
    backend: str | None = None
    state: str | None = None
    weight: Weight | None = None
    missing: str = "fail"
    min_ready: str | None = None
    drain_first: bool = False
    wait: bool = False
    on_timeout: str = "fail"

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> Desired:
        """Check everything that can be checked without asking HAProxy."""
        state = None if params["state"] is None else normal_state(params["state"])
        desired = cls(
            servers=tuple(params["servers"]),
            backend=params["backend"],
            state=state,
            weight=None if params["weight"] is None else parse_weight(params["weight"]),
            missing=params["missing"],
            min_ready=params["min_ready"],
            drain_first=params["drain_first"],
            wait=params["wait"],
            on_timeout=params["on_timeout"],
        )
        if not desired.servers:
            raise InputError("servers: the list is empty; name servers, patterns, or '*' for all")
        for pattern in desired.servers:
            if not _PATTERN.match(pattern):
                raise InputError(
                    f"server {pattern!r}: HAProxy's names consist of letters, digits and any of "
                    "'_.:-'; patterns may add '*', '?' and '[…]'"
                )
        if desired.backend is not None:
            normal_name(desired.backend, "backend")
        if desired.min_ready is not None:
            floor_of(desired.min_ready, 0)
        if desired.drain_first and state != MAINT:
            raise InputError(
                "drain_first: goes with state: maint only; state: drain drains by itself"
            )
        if desired.wait and state is None:
            raise InputError("wait: needs a state to wait for")
        if desired.on_timeout == "shutdown_sessions" and state not in (DRAIN, MAINT):
            raise InputError("on_timeout: shutdown_sessions goes with state: drain or maint only")
        return desired

    @property
    def needs_checks(self) -> bool:
        """Whether the plan depends on how each server's health is counted."""
        return self.wait and self.state == READY


@dataclasses.dataclass(frozen=True)
class Step:
    """One command, for one server."""

    key: Key
    command: str


@dataclasses.dataclass(frozen=True)
class Phase:
    """Commands that go out together, and what is waited for before the next phase."""

    steps: tuple[Step, ...]
    goal: str | None = None
    watch: tuple[Key, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is done to the targets; `targets` are the servers as they were read."""

    targets: tuple[Server, ...]
    phases: tuple[Phase, ...]
    predicted: tuple[Server, ...]
    managed: tuple[str, ...]

    @property
    def commands(self) -> list[str]:
        return [step.command for phase in self.phases for step in phase.steps]

    @property
    def changed_keys(self) -> set[Key]:
        return {step.key for phase in self.phases for step in phase.steps}

    def view(self, servers: c.Iterable[Server]) -> dict[str, dict[str, t.Any]]:
        """The managed values of the servers that the plan changes, for a diff."""
        changed = self.changed_keys
        return {
            server.label: {name: getattr(server, name) for name in self.managed}
            for server in servers
            if server.key in changed
        }


def word(text: str) -> str:
    """One word of a command, so that HAProxy reads exactly this text.

    HAProxy's grammar (2.2 to 3.4) takes a backslash before any character as that character. Line
    breaks and NUL cannot be carried at all.
    """
    if not text or re.search(r"[\n\r\0]", text):
        raise InputError(
            f"{text!r} cannot be part of a command: it is empty or contains a line break or a NUL"
        )
    return re.sub(r"([\\; \t<])", r"\\\1", text)


def path(key: Key) -> str:
    """`backend/server`, as commands name a server."""
    return f"{word(normal_name(key[0], 'backend'))}/{word(normal_name(key[1], 'server'))}"


def set_state(key: Key, state: str) -> Step:
    return Step(key, f"set server {path(key)} state {state}")


def set_weight(key: Key, weight: str) -> Step:
    return Step(key, f"set server {path(key)} weight {word(weight)}")


def await_check(key: Key) -> Step:
    """Give a server no new clients until its next health check has passed.

    HAProxy itself ends this state with a passed check, and only with one. As in `state drain`, what
    is open stays open and those that persistence ties to the server still come: `health down` or a
    way through maintenance would move them, and cut them off with `on-marked-down`.
    """
    return Step(key, f"set server {path(key)} health stopping")


def shutdown_sessions(key: Key) -> Step:
    return Step(key, f"shutdown sessions server {path(key)}")


def near(name: str, known: c.Iterable[str]) -> str:
    """A hint for a name that does not exist."""
    names = sorted(set(known))
    found = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    found = sorted(found) or names[:5]
    if not found:
        return "there are none"
    return f"there is {', '.join(found)}{', …' if len(names) > len(found) else ''}"


def resolve(servers: c.Sequence[Server], desired: Desired, where: str) -> list[Server]:
    """The servers that the task names; each name must match unless `missing: ignore`."""
    # HAProxy lists the servers of a backend that is `disabled` in the configuration, without an
    # id, and refuses every command for them.
    known = [server for server in servers if server.id]
    if desired.backend is not None and servers and not known:
        raise NotFoundError(
            f"the backend {desired.backend} at {where} is disabled in HAProxy's configuration, "
            "so its servers cannot be changed; enable it there and reload",
            backend=desired.backend,
        )
    by_name: dict[str, list[Server]] = {}
    for server in known:
        by_name.setdefault(server.name, []).append(server)
    found: dict[Key, Server] = {}
    missing = []
    for pattern in desired.servers:
        names = [pattern] if pattern in by_name else fnmatch.filter(by_name, pattern)
        if not names:
            missing.append(pattern)
        for name in names:
            found.update((server.key, server) for server in by_name[name])
    if missing and desired.missing != "ignore":
        place = "no backend" if desired.backend is None else f"the backend {desired.backend}"
        verb = "has" if desired.backend is None else "has no"
        what = " or ".join(repr(name) for name in missing)
        raise NotFoundError(
            f"{place} at {where} {verb} server {what}; {near(missing[0], by_name)}",
            not_found=missing,
        )
    return [found[key] for key in sorted(found)]


def plan_servers(
    targets: c.Sequence[Server],
    desired: Desired,
    *,
    checks: c.Mapping[Key, Check] | None = None,
    algorithms: c.Mapping[str, str] | None = None,
) -> Plan:
    """The commands that take the targets to where the task wants them."""
    first: list[Step] = []
    second: list[Step] = []
    draining: list[Key] = []
    predicted = []
    for server in targets:
        weight = None
        if desired.weight is not None:
            weight = desired.weight.of(server.initial_weight)
            if weight != server.weight:
                _refuse_static(
                    server, weight, desired.weight, (algorithms or {}).get(server.backend, "")
                )
                first.append(set_weight(server.key, desired.weight.text))
        state = desired.state
        if desired.drain_first and server.state != MAINT:
            draining.append(server.key)
            if server.state == READY:
                first.append(set_state(server.key, DRAIN))
            second.append(set_state(server.key, MAINT))
        elif state is not None and server.state != state:
            if desired.needs_checks:
                first += _ready_provably(server, (checks or {}).get(server.key))
            else:
                first.append(set_state(server.key, state))
        predicted.append(server.with_changes(state=state, weight=weight))
    goal = None
    if desired.wait:
        goal = UP if desired.state == READY else DRAINED
    keys = tuple(server.key for server in targets)
    phases = []
    if draining:
        phases.append(Phase(tuple(first), DRAINED, tuple(draining)))
        phases.append(Phase(tuple(second), goal, keys if goal else ()))
    elif first or goal:
        phases.append(Phase(tuple(first), goal, keys if goal else ()))
    managed = tuple(name for name in ("state", "weight") if getattr(desired, name) is not None)
    return Plan(tuple(targets), tuple(phases), tuple(predicted), managed)


def _ready_provably(server: Server, check: Check | None) -> list[Step]:
    """`state ready` in a way that lets a check that passed afterwards be seen.

    HAProxy tells no time of the last check, only a counter: leaving maintenance sets it to `rise`
    (`UP 1/3`), the next passed check sets it to `rise + fall - 1` (`UP`). A drained server's
    counter may be full already, so there the server's operational state has to tell. What is in
    maintenance hides `fall`, so there a counter that is full at once is found behind the command.
    """
    ready = set_state(server.key, READY)
    if check is None or not server.health_checks:
        return [ready]
    if server.state == MAINT or not server.running or server.check_health < check.full:
        return [ready]
    return [await_check(server.key), ready]


def _refuse_static(server: Server, weight: int, wanted: Weight, algorithm: str) -> None:
    if algorithm in _STATIC_ALGORITHMS and weight not in (0, server.initial_weight):
        raise InputError(
            f"weight {wanted.text!r} for {server.label}: the backend uses 'balance {algorithm}', "
            "which "
            f"takes only 0% and 100% of the configured weight {server.initial_weight} at run time"
        )


def undo(before: Server, now: Server) -> list[Step]:
    """The commands that take a server back."""
    steps = []
    if now.weight != before.weight:
        steps.append(set_weight(before.key, str(before.weight)))
    if now.state != before.state:
        steps.append(set_state(before.key, before.state))
    return steps


def check_floor(
    current: c.Iterable[Server], changed: c.Iterable[Server], min_ready: str | None, where: str
) -> None:
    """Refuse what would leave a backend with too few usable servers.

    Only a change that takes capacity away is refused: a backend already below may be repaired.
    """
    if min_ready is None:
        return
    after_of = {server.key: server for server in changed}
    backends: dict[str, list[Server]] = {}
    for server in current:
        backends.setdefault(server.backend, []).append(server)
    for backend in sorted({key[0] for key in after_of}):
        servers = backends.get(backend, [])
        needed = floor_of(min_ready, len(servers))
        before = sum(server.usable for server in servers)
        after = sum(after_of.get(server.key, server).usable for server in servers)
        if after < needed and after < before:
            raise FloorError(
                f"{after} of the {len(servers)} servers of {backend} at {where} would stay usable, "
                "but "
                f"min_ready {min_ready} demands {needed}: bring others back first, or take fewer "
                "out",
                backend=backend,
                usable=after,
                needed=needed,
            )


def check_floor_now(
    before: c.Iterable[Server], now: c.Iterable[Server], backends: c.Collection[str], min_ready: str
) -> str | None:
    """Look again after the change: the backend that has fallen below its floor, as a sentence."""
    had: dict[str, int] = {}
    for server in before:
        had[server.backend] = had.get(server.backend, 0) + server.usable
    have: dict[str, list[Server]] = {}
    for server in now:
        have.setdefault(server.backend, []).append(server)
    for backend in sorted(backends):
        servers = have.get(backend, [])
        needed = floor_of(min_ready, len(servers))
        usable = sum(server.usable for server in servers)
        if usable < needed and usable < had.get(backend, 0):
            return (
                f"only {usable} of the {len(servers)} servers of {backend} are usable now, but "
                "min_ready "
                f"{min_ready} demands {needed}: somebody else took servers out, or some went down"
            )
    return None


def is_up(server: Server, now: c.Mapping[Key, Server], checks: c.Mapping[Key, Check]) -> bool:
    """Whether load balancing uses the server and the last check of it has passed."""
    if server.state != READY or not server.running:
        return False
    if server.inherited_maint or server.inherited_drain or server.unresolved:
        return False
    check = checks.get(server.key)
    if server.health_checks and (check is None or not check.passed(server.check_health)):
        return False
    if check is not None and check.tracked:
        backend, _sep, name = check.tracked.partition("/")
        followed = now.get((backend, name))
        if followed is not None and followed.key != server.key:
            return is_up(followed, now, checks)
    return True


def why_not_up(server: Server, check: Check | None) -> str:
    """What keeps a server from being up, for people."""
    if server.state != READY:
        return f"is in state {server.state} again; somebody or an agent check changed it"
    if server.unresolved:
        return "has no address, because its name does not resolve"
    if server.inherited_maint or server.inherited_drain:
        follows = f" {check.tracked}" if check is not None and check.tracked else " a server"
        return f"follows{follows}, which is taken out"
    if server.operational == "stopping":
        return "has not passed a health check since the change"
    if not server.running:
        return "is down: its health check fails"
    if check is not None and server.health_checks and not check.passed(server.check_health):
        return "has not passed a health check since the change"
    return "follows a server that is not up"
