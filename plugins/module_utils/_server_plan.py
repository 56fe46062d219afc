# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: (current, desired) to commands and the predicted result. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import fnmatch
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import (
    Step,
    near,
    normal_name,
    word,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    FloorError,
    InputError,
    NotFoundError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_desired import (
    Desired,
    Entry,
    Wanted,
    numbered,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_model import (
    DRAIN,
    MAINT,
    READY,
    Check,
    Server,
    Weight,
    floor_of,
    same_address,
)

Key = tuple[str, str]

DRAINED = "drained"
UP = "up"

# The balance algorithms whose name alone says that only 0% and 100% are possible. The hashing ones
# depend on hash-type, which HAProxy does not tell.
_STATIC_ALGORITHMS = ("static-rr",)
# Where clients or checks go; what passed before says nothing about the new place.
PLACES = ("address", "port", "fqdn", "ssl")
_CHECKED_PLACES = (*PLACES, "check_address", "check_port", "health_checks")
_ADDRESSED = ("address", "port")
_BY = " by 'stats socket command'"
_FORCED = {"up": "running", "stopping": "stopping", "down": "stopped"}


class Target(t.NamedTuple):
    """A server as it was read, and what is wanted of it."""

    server: Server
    wanted: Wanted

    @property
    def key(self) -> Key:
        return self.server.key


@dataclasses.dataclass(frozen=True)
class Phase:
    """Commands that go out together, and what is waited for before the next phase."""

    steps: tuple[Step, ...]
    goals: dict[Key, str] = dataclasses.field(default_factory=dict)
    # Whose new address must be seen, and no old check be on its way, before the next phase.
    settle: tuple[Key, ...] = ()
    # Who leaves maintenance, and is to be proven up.
    leaving: tuple[Key, ...] = ()


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a plan depends on besides the servers' states; empty where nothing depends on it."""

    checks: c.Mapping[Key, Check] = dataclasses.field(default_factory=dict)
    algorithms: c.Mapping[str, str] = dataclasses.field(default_factory=dict)
    streams: c.Mapping[Key, int] = dataclasses.field(default_factory=dict)
    # The commands that make tables forget who is pinned to a server.
    forget: c.Mapping[Key, c.Sequence[Step]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is done to the targets; `targets` are the servers as they were read."""

    targets: tuple[Server, ...]
    phases: tuple[Phase, ...]
    predicted: tuple[Server, ...]
    wanted: dict[Key, Wanted]
    # The names of what can be compared, and of what is changed among it.
    managed: dict[Key, tuple[str, ...]]
    changed: dict[Key, tuple[str, ...]]
    # Commands whose effect cannot be taken back, and why.
    lasting: dict[str, str]

    @property
    def commands(self) -> list[str]:
        return [step.command for phase in self.phases for step in phase.steps]

    @property
    def changed_keys(self) -> set[Key]:
        return {step.key for phase in self.phases for step in phase.steps}

    def view(self, server: Server) -> dict[str, t.Any]:
        """The managed values of one of its servers, for a diff."""
        return {name: getattr(server, name) for name in self.managed[server.key]}


def path(key: Key) -> str:
    """`backend/server`, as commands name a server; names hold nothing that needs escaping."""
    return f"{normal_name(key[0], 'backend')}/{normal_name(key[1], 'server')}"


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


def resolve(servers: c.Sequence[Server], desired: Desired, where: str) -> list[Target]:
    """The servers that the task names, in any order; each name must match, or `missing: ignore`."""
    # HAProxy lists the servers of a backend that is `disabled` in the configuration, without an
    # id, and refuses every command for them.
    known = [server for server in servers if server.id]
    scopes: dict[str | None, dict[str, list[Server]]] = {}
    found: dict[Key, Target] = {}
    alone = len(desired.entries) == 1
    missing = []
    for entry in desired.entries:
        by_name = scopes.get(entry.backend)
        if by_name is None:
            by_name = scopes[entry.backend] = _scope(entry, servers, known, where)
        matching = _matching(entry.pattern, by_name)
        if not matching:
            missing.append(entry)
        elif alone:
            return [Target(server, entry.wanted) for server in matching]
        for server in matching:
            target = found.get(server.key)
            if target is None:
                found[server.key] = Target(server, entry.wanted)
            elif target.wanted is not entry.wanted:
                both = target.wanted.merged(entry.wanted, server.label)
                found[server.key] = Target(server, both)
    if missing and desired.missing != "ignore":
        raise _not_found(missing, scopes[missing[0].backend], where)
    return list(found.values())


def _scope(
    entry: Entry, servers: c.Sequence[Server], known: c.Sequence[Server], where: str
) -> dict[str, list[Server]]:
    """The servers among which an entry chooses, by their names."""
    name, number = entry.backend, None if entry.backend is None else numbered(entry.backend)

    def inside(all_of_them: c.Iterable[Server]) -> c.Iterable[Server]:
        if name is None:
            return all_of_them
        if number is None:
            return [server for server in all_of_them if server.backend == name]
        return [server for server in all_of_them if server.backend_id == number]

    by_name: dict[str, list[Server]] = {}
    for server in inside(known):
        by_name.setdefault(server.name, []).append(server)
    if name is not None and not by_name and inside(servers):
        raise NotFoundError(
            f"the backend {name} at {where} is disabled in HAProxy's configuration, "
            "so its servers cannot be changed; enable it there and reload",
            backend=name,
        )
    return by_name


def _matching(pattern: str, by_name: dict[str, list[Server]]) -> list[Server]:
    number = numbered(pattern)
    if number is not None:
        return [server for same in by_name.values() for server in same if server.id == number]
    names = [pattern] if pattern in by_name else fnmatch.filter(by_name, pattern)
    return [server for name in names for server in by_name[name]]


def _not_found(
    missing: c.Sequence[Entry], by_name: dict[str, list[Server]], where: str
) -> NotFoundError:
    backend = missing[0].backend
    place = "no backend" if backend is None else f"the backend {backend}"
    verb = "has" if backend is None else "has no"
    what = " or ".join(repr(entry.pattern) for entry in missing)
    return NotFoundError(
        f"{place} at {where} {verb} server {what}; {near(missing[0].pattern, by_name)}",
        not_found=[entry.pattern for entry in missing],
    )


def plan_servers(targets: c.Sequence[Target], desired: Desired, facts: Facts | None = None) -> Plan:
    """The commands that take the targets to where the task wants them."""
    known = facts or Facts()
    plans = []
    first: list[Step] = []
    second: list[Step] = []
    predicted = []
    wanted = {}
    managed: dict[Key, tuple[str, ...]] = {}
    changed: dict[Key, tuple[str, ...]] = {}
    for target in targets:
        server, key = target.server, target.server.key
        wanted[key] = target.wanted
        state = _only_state(target, desired)
        if state is not None:
            first.append(set_state(key, state))
            predicted.append(server.with_state(state))
            managed[key], changed[key] = target.wanted.names, ("state",)
            continue
        one = _plan_one(target, desired, known)
        plans.append(one)
        first += one.first
        second += one.second
        predicted.append(one.predicted)
        managed[key] = one.managed
        if one.differences:
            changed[key] = tuple(one.differences)
    goals = {one.server.key: one.goal for one in plans if one.goal}
    phases = []
    if second:
        draining = {one.server.key: DRAINED for one in plans if one.drains_first}
        settle = tuple(one.server.key for one in plans if one.settles)
        leaving = tuple(one.server.key for one in plans if one.leaves == 1)
        phases.append(Phase(tuple(first), draining, settle, leaving))
        leaving = tuple(one.server.key for one in plans if one.leaves == 2)
        phases.append(Phase(tuple(second), goals, leaving=leaving))
    elif first or goals:
        leaving = tuple(one.server.key for one in plans if one.leaves)
        phases.append(Phase(tuple(first), goals, leaving=leaving))
    return Plan(
        tuple(target.server for target in targets),
        tuple(phases),
        tuple(predicted),
        wanted,
        managed,
        changed,
        {command: why for one in plans for command, why in one.lasting.items()},
    )


def _only_state(target: Target, desired: Desired) -> str | None:
    """The state, if setting it is all there is to do."""
    wanted = target.wanted
    if desired.takes_its_time or not wanted.state_alone or wanted.state == target.server.state:
        return None
    return wanted.state


def moving(targets: c.Sequence[Target], desired: Desired) -> list[Target]:
    """Those with which something has to be done, or waited for; few of a large HAProxy's."""
    if desired.wait or desired.forget_clients:
        found = list(targets)
    else:
        found = [target for target in targets if not target.wanted.is_met_by(target.server)]
    return sorted(found, key=lambda target: target.key)


@dataclasses.dataclass
class _One:
    """The plan for one server."""

    server: Server
    managed: tuple[str, ...]
    differences: dict[str, t.Any]
    predicted: Server
    goal: str | None
    first: list[Step] = dataclasses.field(default_factory=list)
    second: list[Step] = dataclasses.field(default_factory=list)
    drains_first: bool = False
    settles: bool = False
    # In which phase it leaves maintenance and has to be proven up; 0 for none.
    leaves: int = 0
    lasting: dict[str, str] = dataclasses.field(default_factory=dict)
    # What is sent without knowing whether it is a change.
    blindly: list[str] = dataclasses.field(default_factory=list)


def _plan_one(target: Target, desired: Desired, facts: Facts) -> _One:
    server, wanted = target.server, target.wanted
    differences = wanted.differences(server)
    untold = wanted.untold(server)
    goal = None
    if desired.wait and wanted.state is not None:
        goal = UP if wanted.state == READY else DRAINED
    one = _One(
        server,
        tuple(name for name, _value in wanted.readable if name not in untold),
        differences,
        _foreseen(server, wanted, differences),
        goal,
    )
    one.blindly = _sent_blindly(server, differences, untold, desired)
    _plan_values(one, wanted, facts)
    _plan_state(one, wanted, desired, facts)
    _plan_force(one, wanted)
    _plan_clients(one, wanted, desired, facts)
    return one


def _foreseen(server: Server, wanted: Wanted, differences: dict[str, t.Any]) -> Server:
    predicted = server.with_changes(**differences) if differences else server
    if wanted.force_health is not None and predicted.state != MAINT:
        forced = _FORCED[wanted.force_health]
        predicted = dataclasses.replace(predicted, operational=forced)
    if wanted.force_agent is not None and predicted.state != MAINT:
        forced = _FORCED[wanted.force_agent]
        predicted = dataclasses.replace(predicted, operational=forced)
    return predicted


def _sent_blindly(
    server: Server,
    differences: c.Collection[str],
    untold: list[str],
    desired: Desired,
) -> list[str]:
    """What of the untold is sent."""
    if untold and desired.write_only == "error":
        raise InputError(
            f"{untold[0]} for {server.label}: this HAProxy does not tell it, so it cannot be "
            "compared, and write_only is error"
        )
    if desired.write_only == "on_change_only" and not differences:
        return []
    return untold


def _plan_values(one: _One, wanted: Wanted, facts: Facts) -> None:
    """Everything but the state: checks and weight now, the place where clients go next to it."""
    server, differences, blindly = one.server, one.differences, one.blindly
    if differences.keys() <= {"state"} and not blindly:
        return
    _refuse(server, wanted, differences, blindly)
    if "weight" in differences:
        _refuse_static(
            server, differences["weight"], wanted, facts.algorithms.get(server.backend, "")
        )
    one.first += value_steps(server, wanted, {*differences, *blindly}, blindly)
    for name in blindly:
        why = f"{name} of {server.label} is not told by HAProxy, so it stays as it was set"
        for step in one.first:
            if f" {name.replace('_', '-').replace('address', 'addr')} " in step.command:
                one.lasting[step.command] = why


def _plan_state(one: _One, wanted: Wanted, desired: Desired, facts: Facts) -> None:
    """The state, before a new place if the server goes out, and behind it if it comes back."""
    server, differences = one.server, one.differences
    key, state = server.key, differences.get("state")
    move = place_steps(server, wanted, differences.keys() - {"state"})
    proving = desired.ready_waited_for(wanted)
    if desired.drain_first and wanted.state == MAINT and server.state != MAINT:
        one.drains_first = True
        if server.state == READY:
            one.first.append(set_state(key, DRAIN))
        one.second += [set_state(key, MAINT), *move]
    elif state in (DRAIN, MAINT):
        one.first += [set_state(key, state), *move]
    elif move and state == READY:
        one.first += move
        one.second += _ready(one, facts, proving)
        one.settles = True
        one.leaves = 2 if proving and server.state == MAINT else 0
    elif state == READY:
        one.first += _ready(one, facts, proving)
        one.leaves = 1 if proving and server.state == MAINT else 0
    else:
        one.first += move
        if proving and _needs_new_proof(one):
            one.second.append(await_check(key))
            one.settles = True


def _checked(one: _One) -> bool:
    """Whether health checks are on when the plan has been carried out."""
    return bool(one.differences.get("health_checks", one.server.health_checks))


def _needs_new_proof(one: _One) -> bool:
    """Whether the checks that passed so far were of something else."""
    return (
        _checked(one)
        and one.server.running
        and any(name in _CHECKED_PLACES for name in (*one.differences, *one.blindly))
    )


def _ready(one: _One, facts: Facts, proving: bool) -> list[Step]:
    """`state ready`, if asked for in a way that lets a check that passed afterwards be seen.

    HAProxy tells no time of the last check, only a counter: leaving maintenance sets it to `rise`
    (`UP 1/3`), the next passed check sets it to `rise + fall - 1` (`UP`). A drained server's
    counter may be full already, so there the server's operational state has to tell. What is in
    maintenance hides `fall`, so there a counter that is full at once is found behind the command.
    """
    server = one.server
    ready = set_state(server.key, READY)
    if not proving or server.state == MAINT or not server.running or not _checked(one):
        return [ready]
    check = facts.checks.get(server.key)
    # Checks that are switched on only now keep their counter, up to 3.0.
    known = check is not None and server.health_checks and server.check_health < check.full
    if not known or _needs_new_proof(one):
        return [await_check(server.key), ready]
    return [ready]


def _plan_force(one: _One, wanted: Wanted) -> None:
    """What the next check overrides: sent every time."""
    steps = one.second if one.second else one.first
    for kind, value in (("health", wanted.force_health), ("agent", wanted.force_agent)):
        if value is None:
            continue
        if kind == "agent" and not one.differences.get("agent_checks", one.server.agent_checks):
            raise InputError(
                f"force_agent for {one.server.label}: HAProxy takes it only while agent checks are "
                "switched on, and they are not; agent_checks: enabled switches them on"
            )
        step = Step(
            one.server.key, f"set server {path(one.server.key)} {kind} {value}", readable=False
        )
        steps.append(step)
        why = f"the forced {kind} of {one.server.label} lasts until its next check"
        one.lasting[step.command] = why


def _plan_clients(one: _One, wanted: Wanted, desired: Desired, facts: Facts) -> None:
    """What becomes of clients that have sessions, or persistence."""
    key = one.server.key
    if desired.forget_clients and wanted.out:
        for step in facts.forget.get(key, ()):
            one.first.append(step._replace(key=key))
            one.lasting[step.command] = f"the clients of {one.server.label} stay forgotten"
    if kills(wanted, drain_first=desired.drain_first) and facts.streams.get(key):
        step = shutdown_sessions(key)
        one.first.append(step)
        one.lasting[step.command] = f"the sessions of {one.server.label} have ended"


def kills(wanted: Wanted, *, drain_first: bool) -> bool:
    """Whether sessions are ended at once; as in the old module, not when a server comes back."""
    if not wanted.shutdown_sessions or wanted.state == READY:
        return False
    return not (drain_first and wanted.state == MAINT)


def value_steps(
    server: Server, wanted: Wanted, names: c.Collection[str], untold: c.Collection[str] = ()
) -> list[Step]:
    """Weight, limit and checks. HAProxy takes values of checks only while they are on."""
    where = path(server.key)
    steps = []

    def add(name: str, command: str, accepted: str = "") -> None:
        if name in names:
            steps.append(Step(server.key, command, accepted=accepted, readable=name not in untold))

    if "weight" in names and wanted.weight is not None:
        steps.append(set_weight(server.key, wanted.weight.text))
    add("maxconn", f"set maxconn server {where} {wanted.maxconn}")
    if wanted.health_checks:
        add("health_checks", f"enable health {where}")
    if wanted.agent_checks:
        add("agent_checks", f"enable agent {where}")
    add("check_address", f"set server {where} check-addr {wanted.check_address}")
    add(
        "check_port",
        f"set server {where} check-port {wanted.check_port}",
        r"(health check port updated\.)?",
    )
    add("agent_address", f"set server {where} agent-addr {wanted.agent_address}")
    add("agent_port", f"set server {where} agent-port {wanted.agent_port}")
    if wanted.agent_send is not None:
        add("agent_send", f"set server {where} agent-send {word(wanted.agent_send)}")
    if wanted.agent_checks is False:
        add("agent_checks", f"disable agent {where}")
    if wanted.health_checks is False:
        add("health_checks", f"disable health {where}")
    return steps


def place_steps(
    server: Server, wanted: Wanted, names: c.Collection[str], port: str | None = None
) -> list[Step]:
    """Where clients go. One command for address and port: HAProxy loses the first of two.

    `port` is HAProxy's own word for it, `+10` for one that is added to the client's.
    """
    steps: list[Step] = []
    if not names:
        return steps
    where = path(server.key)
    if "address" in names or "port" in names:
        address = wanted.address if "address" in names else server.address
        command = f"set server {where} addr {address}"
        if "port" in names:
            command += f" port {port or wanted.port}"
        accepted = _address_reply("address" in names, "port" in names)
        steps.append(Step(server.key, command, accepted=accepted))
    if "fqdn" in names and wanted.fqdn is not None:
        accepted = rf"{re.escape(where)} changed its FQDN from \S+ to \S+{_BY}"
        command = f"set server {where} fqdn {word(wanted.fqdn)}"
        steps.append(Step(server.key, command, accepted=accepted))
    if "ssl" in names:
        command = f"set server {where} ssl {'on' if wanted.ssl else 'off'}"
        steps.append(Step(server.key, command, accepted=r"server ssl setting updated\."))
    return steps


def _address_reply(address: bool, port: bool) -> str:
    """What HAProxy says when all of it was changed, in the words of 2.2 to 3.4."""
    moved, renumbered = r"IP changed from '\S+' to '\S+'", r"port changed from '\S+' to '\S+'"
    if address and port:
        return rf"{moved}, {renumbered}{_BY}"
    if address:
        return rf"{moved}(, no need to change the port)?{_BY}"
    return rf"(no need to change the addr, )?{renumbered}{_BY}"


def old_port(reply: str) -> str | None:
    """From the reply to `set server … addr`: the port as it was configured."""
    match = re.search(r"port changed from '(\+?-?[0-9]{1,6})' to ", reply, re.ASCII)
    return match.group(1) if match else None


def _refuse(
    server: Server, wanted: Wanted, differences: dict[str, t.Any], blindly: list[str]
) -> None:
    """What HAProxy would refuse, or worse take, said before anything is sent."""
    changing = [*differences, *blindly]
    for name in ("address", "port"):
        if name in differences and server.address is None:
            # 2.2 and 2.6 refuse this, and bring the server up without an address all the same.
            raise InputError(
                f"{name} for {server.label}: the server has no address to change, because its name "
                "does not resolve or it is a unix socket"
            )
    if "fqdn" in differences and (server.fqdn is None or server.srv_record is not None):
        what = (
            "its configuration has an address and no name"
            if server.srv_record is None
            else f"its name comes from the SRV record {server.srv_record}"
        )
        raise InputError(
            f"fqdn for {server.label}: {what}; HAProxy changes the name only of a server that has "
            "one and the keyword resolvers"
        )
    for kind, has, prefixes in (
        ("health", server.has_health_check, ("check_address", "check_port")),
        ("agent", server.has_agent_check, ("agent_address", "agent_port", "agent_send")),
    ):
        switch = f"{kind}_checks"
        if differences.get(switch) and not has:
            keyword = "check" if kind == "health" else "agent-check"
            raise InputError(
                f"{switch} for {server.label}: its configuration has no {kind} check that could be "
                f"switched on; add {keyword} to its server line and reload HAProxy"
            )
        on = getattr(server, switch) or differences.get(switch)
        for name in prefixes:
            if name in changing and not on:
                raise InputError(
                    f"{name} for {server.label}: HAProxy takes it only while {kind} checks are "
                    f"switched on, and they are not; {switch}: enabled switches them on"
                )


def _refuse_static(server: Server, weight: int, wanted: Wanted, algorithm: str) -> None:
    if algorithm in _STATIC_ALGORITHMS and weight not in (0, server.initial_weight):
        text = wanted.weight.text if isinstance(wanted.weight, Weight) else weight
        raise InputError(
            f"weight {text!r} for {server.label}: the backend uses 'balance {algorithm}', "
            "which "
            f"takes only 0% and 100% of the configured weight {server.initial_weight} at run time"
        )


def undo(
    before: Server, now: Server, names: c.Collection[str], port: str | None = None
) -> list[Step]:
    """The commands that take a server back in these values, as far as HAProxy allows it."""
    wanted = Wanted.back_to(before, names)
    changed = wanted.differences(now)
    if now.address is None:
        # Refused, and by 2.2 and 2.6 made worse; see _refuse.
        changed = {name: value for name, value in changed.items() if name not in _ADDRESSED}
    state = [set_state(before.key, changed["state"])] if "state" in changed else []
    values = value_steps(now, wanted, changed)
    place = place_steps(now, wanted, changed, port)
    return values + (state + place if wanted.out else place + state)


def alike(name: str, one: Server, other: Server) -> bool:
    """Whether two servers have the same value under this name."""
    first, second = getattr(one, name), getattr(other, name)
    return bool(first == second) or (name.endswith("address") and same_address(first, second))


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
