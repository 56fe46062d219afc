# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: frontends, their state and maxconn: parse, model, plan. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import fnmatch
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _parse
from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import Client
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import (
    Step,
    near,
    normal_name,
    word,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    CommandError,
    Error,
    InputError,
    NotFoundError,
    ParseError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import Change, Job

ENABLED = "enabled"
DISABLED = "disabled"
SHUTDOWN = "shutdown"

# HAProxy keeps it in a signed integer of 32 bits.
MAXCONN_LIMIT = 2**31 - 1

Version = tuple[int, int, int]

_STAT = "show stat"
_NAME = re.compile(r"(#[0-9]{1,10}|[A-Za-z0-9_.:-]+)\Z")
_PATTERN = re.compile(r"[A-Za-z0-9_.:*?\[\]!-]+\Z")
_FRONTEND_ROW = "0"
_VERBS = {ENABLED: "enable", DISABLED: "disable", SHUTDOWN: "shutdown"}
# HAProxy has nothing to do. 2.6 and later say so of a frontend without any port as well.
_ALREADY = re.compile(r"(All sockets are|Frontend is) already (en|dis)abled\.")
# The releases from which on `set maxconn frontend` does not lock itself out any more, of the
# branches that were mended (haproxy/haproxy#2726).
_MENDED = {(2, 4): 28, (2, 6): 20, (2, 8): 12, (3, 0): 6}


@dataclasses.dataclass(frozen=True)
class Frontend:
    """A frontend as HAProxy has it; the `id` is unknown where HAProxy does not list it any more."""

    name: str
    id: int | None
    state: str
    maxconn: int | None
    connections: int = 0
    rate: int = 0
    rate_limit: int = 0


@dataclasses.dataclass(frozen=True)
class Seen:
    """What HAProxy told; frontends that it does not list, but has, are shut down."""

    version: Version
    frontends: tuple[Frontend, ...]


@dataclasses.dataclass(frozen=True)
class Desired:
    """What a task wants of frontends; None leaves alone."""

    frontends: tuple[str, ...]
    state: str | None = None
    maxconn: int | None = None
    missing: str = "fail"

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> Desired:
        """Check everything that can be checked without asking HAProxy."""
        names = tuple(params["frontends"])
        state, maxconn = params["state"], params["maxconn"]
        if not names:
            raise InputError(
                "frontends: the list is empty; name frontends, patterns, or '*' for all"
            )
        for name in names:
            if not (_NAME.match(name) or _PATTERN.match(name)):
                raise InputError(
                    f"frontend {name!r}: HAProxy's names consist of letters, digits and any of "
                    "'_.:-'; patterns may add '*', '?' and '[…]'; '#' and a number is an id"
                )
        patterns = [name for name in names if not _NAME.match(name)]
        if state == SHUTDOWN and patterns and not params["force"]:
            raise InputError(
                f"state shutdown: the pattern {patterns[0]!r} may mean more than is known now, and "
                "only a reload of HAProxy brings back what was shut down; name the frontends, or "
                "if it is meant, say force: true"
            )
        if isinstance(maxconn, bool):
            # `set maxconn frontend www True` would be 0.
            raise InputError(
                f"maxconn {maxconn}: must be a number; YAML takes yes, no, on, off, true and "
                "false for truth values"
            )
        if maxconn is not None:
            if not 0 <= maxconn <= MAXCONN_LIMIT:
                raise InputError(f"maxconn {maxconn}: must be from 1 to {MAXCONN_LIMIT}")
            if maxconn == 0 and not params["force"]:
                raise InputError(
                    "maxconn 0: would stop all traffic of the frontends; state: disabled refuses "
                    "connections instead of leaving them waiting; if it is meant, say force: true"
                )
            if state == SHUTDOWN:
                raise InputError("maxconn: does not go with state: shutdown, which ends it all")
        return cls(names, state, maxconn, params["missing"])

    @property
    def literal(self) -> list[str]:
        """The names that are not patterns."""
        return [name for name in self.frontends if _NAME.match(name)]


def version_of(text: str) -> Version:
    """`show info`: the version with the number of the release; 0 where there is none."""
    major, minor = _parse.version(text)
    match = re.search(r"^Version: [0-9]+\.[0-9]+\.([0-9]{1,9})", text, re.M | re.ASCII)
    return major, minor, int(match.group(1)) if match else 0


def frontends(text: str, version: Version) -> list[Frontend]:
    """The FRONTEND rows of `show stat`, listen sections included."""
    return [_frontend(row, version) for row in _parse.stat(text) if row["type"] == _FRONTEND_ROW]


def _frontend(row: dict[str, str], version: Version) -> Frontend:
    state = _state(row.get("status", ""), version)
    return Frontend(
        name=row["pxname"],
        id=_number(row, "iid"),
        state=state,
        maxconn=None if state == SHUTDOWN else _number(row, "slim"),
        connections=_number(row, "scur"),
        rate=_number(row, "rate"),
        rate_limit=_number(row, "rate_lim"),
    )


def _state(status: str, version: Version) -> str:
    if status in ("OPEN", "FULL"):
        return ENABLED
    if status == "PAUSED":
        return DISABLED
    if status == "STOP":
        # 2.2 does not list what was shut down, and says STOP for what is disabled.
        return DISABLED if version < (2, 3) else SHUTDOWN
    raise ParseError(_STAT, f"a frontend has the unknown status {status[:60]!r}")


def _number(row: dict[str, str], name: str) -> int:
    text = row.get(name, "")
    if not re.fullmatch(r"[0-9]{1,20}", text, re.ASCII):
        raise ParseError(_STAT, f"{name} is not a number: {text[:60]!r}")
    return int(text)


def resolve(seen: Seen, desired: Desired, where: str) -> list[Frontend]:
    """The frontends that the task names; each name must match unless `missing: ignore`."""
    by_name = {frontend.name: frontend for frontend in seen.frontends}
    by_id = {f"#{frontend.id}": frontend for frontend in seen.frontends}
    # What was shut down cannot be changed any more, so patterns do not mean it.
    usable = [
        frontend.name
        for frontend in seen.frontends
        if frontend.state != SHUTDOWN or desired.state == SHUTDOWN
    ]
    found: dict[str, Frontend] = {}
    missing = []
    for name in desired.frontends:
        exact = by_name.get(name) or by_id.get(name)
        matches = [exact] if exact else [by_name[one] for one in fnmatch.filter(usable, name)]
        if not matches:
            missing.append(name)
        found.update((frontend.name, frontend) for frontend in matches)
    if missing and desired.missing != "ignore":
        what = " or ".join(repr(name) for name in missing)
        raise NotFoundError(
            f"HAProxy at {where} has no frontend {what}; {near(missing[0], usable)}",
            not_found=missing,
        )
    return [found[name] for name in sorted(found)]


def plan_frontends(
    seen: Seen, desired: Desired, where: str, without_port: c.Collection[str] = ()
) -> Change:
    """The commands that take the frontends to where the task wants them.

    Those `without_port` have nothing that could be disabled.
    """
    targets = resolve(seen, desired, where)
    steps: list[Step] = []
    predicted = []
    for frontend in targets:
        mine = desired
        if desired.state == DISABLED and frontend.name in without_port:
            mine = dataclasses.replace(desired, state=None)
        _refuse(frontend, desired, seen.version, where)
        steps += _steps(frontend, mine)
        predicted.append(_after(frontend, mine))
    managed = [name for name in ("state", "maxconn") if getattr(desired, name) is not None]
    return Change(
        steps=tuple(steps),
        before=_view(targets, managed),
        after=_view(predicted, managed),
        result={"frontends": [dataclasses.asdict(frontend) for frontend in predicted]},
    )


def _steps(frontend: Frontend, desired: Desired) -> list[Step]:
    if frontend.state == SHUTDOWN:
        return []
    # By name: in commands, unlike in `show stat`, a name is never taken for an id.
    name = normal_name(frontend.name, "frontend")
    turn: list[Step] = []
    if desired.state not in (None, frontend.state):
        turn.append(Step(name, f"{_VERBS[str(desired.state)]} frontend {word(name)}"))
    limit: list[Step] = []
    if desired.maxconn not in (None, frontend.maxconn):
        limit.append(Step(name, f"set maxconn frontend {word(name)} {desired.maxconn}"))
    # Nobody comes in before the limit is right.
    return limit + turn if desired.state == ENABLED else turn + limit


def _after(frontend: Frontend, desired: Desired) -> Frontend:
    state = desired.state or frontend.state
    maxconn = frontend.maxconn if desired.maxconn is None else desired.maxconn
    return dataclasses.replace(
        frontend, state=state, maxconn=None if state == SHUTDOWN else maxconn
    )


def _refuse(frontend: Frontend, desired: Desired, version: Version, where: str) -> None:
    """Refuse what HAProxy cannot do, and what would end it."""
    if frontend.state == SHUTDOWN:
        if desired.state == SHUTDOWN or (desired.state is None and desired.maxconn is None):
            return
        raise NotFoundError(
            f"the frontend {frontend.name} at {where} was shut down, or is disabled in HAProxy's "
            "configuration: only a reload of HAProxy brings it back",
            not_found=[frontend.name],
        )
    if desired.maxconn in (None, frontend.maxconn) or desired.state == DISABLED:
        return
    if _locks_itself_out(version) and _may_have_queue(frontend, desired.maxconn):
        dotted = ".".join(str(part) for part in version)
        raise InputError(
            f"maxconn {desired.maxconn} for the frontend {frontend.name} at {where}: HAProxy "
            f"{dotted} would lock up and abort, because connections may be waiting at the "
            f"frontend ({frontend.connections} of {frontend.maxconn}); set it with state: "
            "disabled and then enable the frontend, wait for fewer connections, or update HAProxy",
            frontend=frontend.name,
        )


def _locks_itself_out(version: Version) -> bool:
    branch = version[:2]
    if not (2, 4) <= branch <= (3, 0):
        return False
    return branch not in _MENDED or version[2] < _MENDED[branch]


def _may_have_queue(frontend: Frontend, maxconn: int | None) -> bool:
    """Whether connections may wait at the frontend that the new limit would let in.

    They wait where the old limit is reached, and where `rate-limit sessions` holds them back.
    """
    if frontend.state != ENABLED:
        return False
    if frontend.rate_limit and frontend.rate:
        return True
    old = frontend.maxconn or 0
    return (maxconn or 0) > old and frontend.connections >= old


def _view(found: c.Iterable[Frontend], managed: c.Iterable[str]) -> dict[str, dict[str, t.Any]]:
    return {
        frontend.name: {name: getattr(frontend, name) for name in managed} for frontend in found
    }


class FrontendJob(Job[Seen, Change]):
    """Frontends' state and maxconn."""

    def __init__(self, desired: Desired) -> None:
        self.desired = desired
        # Names and ids that each HAProxy had at the first look.
        self._had: dict[str, dict[str, int | None]] = {}
        # The frontends that each HAProxy said were where they should be when it was told.
        self._already: dict[str, set[str]] = {}

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> FrontendJob:
        return cls(Desired.from_params(params))

    def look(self, client: Client) -> Seen:
        version = version_of(client.read("show info"))
        # By ids and all of them: a name may look like an id, or be a backend's too.
        listed = frontends(client.read("show stat -1 1 -1"), version)
        had = self._had.setdefault(client.where, {})
        had.update((frontend.name, frontend.id) for frontend in listed)
        known = {frontend.name for frontend in listed} | {f"#{number}" for number in had.values()}
        gone = [
            Frontend(name, had.get(name), SHUTDOWN, None)
            for name in sorted({*self.desired.literal, *had} - known)
            if exists(client, name)
        ]
        return Seen(version, (*listed, *gone))

    def plan(self, client: Client, state: Seen) -> Change:
        return plan_frontends(state, self.desired, client.where)

    def carry_out(self, client: Client, change: Change) -> None:
        """Send one after the other: what HAProxy finds done already neither fails nor counts."""
        steps = list(change.steps)
        while steps:
            try:
                client.apply(steps, lockstep=True)
                return
            except CommandError as exc:
                if not _ALREADY.fullmatch(exc.details["refused"][0]["reply"]):
                    raise
                at = len(exc.details["applied"])
                self._already.setdefault(client.where, set()).add(steps[at].key)
                del steps[: at + 1]

    def left_over(self, client: Client, change: Change, now: Seen) -> tuple[Change, list[Step]]:
        again, left = super().left_over(client, change, now)
        turns = {step.key for step in left if not step.command.startswith("set ")}
        stuck = sorted(turns - self._already.get(client.where, set()))
        if stuck and self.desired.state == ENABLED:
            raise Error(
                f"HAProxy at {client.where} accepted 'enable frontend {stuck[0]}', but the "
                "frontend is still disabled: HAProxy cannot open a port of it again, like an "
                "'abns@' address, so only a reload of HAProxy brings it back; or somebody else "
                "disabled it meanwhile",
                left_over=[step.shown for step in left],
                socket=client.socket,
            )
        without = turns & self._already.get(client.where, set())
        if not without or self.desired.state != DISABLED:
            return again, left
        for frontend in resolve(now, self.desired, client.where):
            if frontend.name in without and {frontend.name, f"#{frontend.id}"} & set(
                self.desired.literal
            ):
                raise Error(
                    f"the frontend {frontend.name} at {client.where} cannot be disabled: HAProxy "
                    "says that all its sockets are disabled already, and still that it is open, "
                    "because it has no 'bind' line",
                    frontend=frontend.name,
                    socket=client.socket,
                )
        again = plan_frontends(now, self.desired, client.where, without)
        return again, list(again.steps)


def exists(client: Client, name: str) -> bool:
    """Whether HAProxy has a frontend that it may not list.

    Only this command without its value tells, in every version and without changing anything;
    `show errors` answers for backends too.
    """
    command = f"set maxconn frontend {word(name)}"
    reply = client.read(command).strip()
    if reply not in ("No such frontend.", "Integer value expected."):
        raise ParseError(command, "neither that there is none nor that a value is missing")
    return reply != "No such frontend."
