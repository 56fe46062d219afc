# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers added and deleted at run time: parse, plan, carry out. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import ipaddress
import math
import re
import time
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _parse
from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import Client
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import (
    Step,
    normal_name,
    word,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    CommandError,
    Error,
    InputError,
    ParseError,
    SocketError,
    WaitError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import Change, Job
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_model import (
    MAINT,
    READY,
    WEIGHT_MAX,
    Server,
)

_STATE = "show servers state"
_STAT = "show stat"
# Bit of srv_check_state and srv_agent_state: the server line has such a check.
_CONFIGURED = 0x02
# HAProxy says this too of a server with other static algorithms, but does not tell which they are.
_STATIC_ALGORITHM = "static-rr"
_REGISTERED = r"(?:.*\n)?New server registered\."
_DELETED = r"(?:.*\n)?Server deleted\."
_BUSY = "still has connections attached"
_ADDRESS_SET = r"(?:IP changed|port changed|no need to change|nothing changed).*"
_NUMBER_MAX = 2**31 - 1

# Settings that HAProxy tells, and the keyword of each on a server line. HAProxy's `addr` and
# `port` count for agent checks too, so the agent's own come behind them.
_KEYWORDS = {
    "weight": "weight",
    "maxconn": "maxconn",
    "maxqueue": "maxqueue",
    "id": "id",
    "cookie": "cookie",
    "track": "track",
    "backup": "backup",
    "ssl": "ssl",
    "check": "check",
    "check_port": "port",
    "check_address": "addr",
    "agent_check": "agent-check",
    "agent_port": "agent-port",
    "agent_address": "agent-addr",
}
SETTINGS = ("address", "port", *_KEYWORDS)
_FLAGS = ("backup", "ssl", "check", "agent_check")
_ADDRESSES = ("address", "check_address", "agent_address")
# HAProxy makes such cookies of the address and the backend's key.
_DYNAMIC_COOKIE = re.compile(r"[0-9a-f]{16}")
_PID = re.compile(r"^Pid: [0-9]+$", re.M)
# What HAProxy makes of a setting that a server line does not mention.
_DEFAULTS: dict[str, t.Any] = {
    **dict.fromkeys(SETTINGS),
    **dict.fromkeys(_FLAGS, False),
    **dict.fromkeys(("port", "maxconn", "maxqueue", "check_port", "agent_port"), 0),
    "weight": 1,
}
_RANGES = {
    "port": (1, 65535),
    "check_port": (1, 65535),
    "agent_port": (1, 65535),
    "weight": (0, WEIGHT_MAX),
    "maxconn": (0, _NUMBER_MAX),
    "maxqueue": (0, _NUMBER_MAX),
    "id": (1, _NUMBER_MAX),
}

# Stages of a task; the steps of one go out together.
PROBE = "probe"
TAKE_OUT = "take out"
DELETE = "delete"
ADD = "add"
FINISH = "finish"
CHANGE = "change"

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
# What was shut down is gone within moments.
_GRACE = 5.0
# Seconds; HAProxy counts milliseconds in 32 bits.
_LONGEST_IDLE = 1e6

Settings = dict[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Found:
    """What a HAProxy has under the wanted name, and what adding a server there depends on."""

    names: frozenset[str]
    # The settings and `state`; None if there is no such server.
    server: Settings | None
    backend_id: int | None = None
    # Whether the server has health checks and agent checks that could be switched on.
    can_check: bool = False
    can_agent_check: bool = False
    # The balance algorithm; None if HAProxy does not list the backend: it is disabled. Only read
    # if there is no such server.
    algorithm: str | None = None
    # Whether HAProxy's configuration disables the backend; only known if there is such a server.
    disabled: bool = False
    # The servers that track this one; only read if it may be deleted.
    trackers: tuple[str, ...] = ()


NOTHING = Found(frozenset(), None)


@dataclasses.dataclass(frozen=True)
class Desired:
    """What a task wants of a server; settings that it does not name are left alone."""

    backend: str
    name: str
    present: bool
    settings: Settings
    options: tuple[str, ...] = ()
    admin_state: str | None = None
    recreate: bool = False
    wait_timeout: float = 0.0
    on_timeout: str = "fail"
    # Checks that a recreated server keeps, switched off.
    dormant: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.backend}/{self.name}"

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> Desired:
        """Check everything that can be checked without asking HAProxy."""
        backend = normal_name(params["backend"], "backend")
        present = params["state"] == "present"
        given = [name for name in (*SETTINGS, "admin_state", "options") if params[name] is not None]
        if params["recreate"]:
            given.append("recreate")
        if not present and given:
            raise InputError(f"{given[0]}: goes with state: present only")
        if present and params["address"] is None:
            raise InputError("address: is needed with state: present")
        if params["track"] is not None and params["check"]:
            raise InputError("check: does not go with track; the tracked server is checked")
        timeout = params["wait_timeout"]
        if not (math.isfinite(timeout) and timeout >= 0):
            raise InputError(f"wait_timeout {timeout}: must be a number of seconds, 0 or more")
        return cls(
            backend=backend,
            name=normal_name(params["name"], "server"),
            present=present,
            settings={
                name: normal_setting(name, params[name], backend)
                for name in SETTINGS
                if params[name] is not None
            },
            options=normal_options(params["options"] or ()),
            admin_state=params["admin_state"],
            recreate=params["recreate"],
            wait_timeout=timeout if params["wait"] else 0.0,
            on_timeout=params["on_timeout"],
        )


@dataclasses.dataclass(frozen=True)
class ServerChange(Change):
    """A change in stages that can be taken back to what was found."""

    found: Found = NOTHING
    # The settings that the diff shows.
    managed: tuple[str, ...] = ()

    def stage(self, name: str) -> list[Step]:
        return [step for step in self.steps if step.key == name]


# CONTRACT: a normaliser is idempotent: applied to its own result it changes nothing.


def normal_setting(name: str, value: t.Any, backend: str) -> t.Any:
    """A setting as HAProxy would tell it."""
    if name in _ADDRESSES:
        return normal_address(name, value)
    if name == "track":
        where, sep, server = value.partition("/")
        pair = (where, server) if sep else (backend, where)
        return "/".join(normal_name(part, name) for part in pair)
    if name == "cookie":
        word(value)
    low, high = _RANGES.get(name, (None, None))
    if low is not None and isinstance(value, bool):
        raise InputError(f"{name} {str(value).lower()}: must be a number, not a boolean")
    if low is not None and high is not None and not low <= value <= high:
        raise InputError(f"{name} {value}: must be from {low} to {high}")
    return value


def normal_address(name: str, text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or "%" in text:
        raise InputError(
            f"{name} {text!r}: must be an IPv4 or IPv6 address; HAProxy never resolves the names "
            "of servers that are added at run time"
        )
    return str(address)


def normal_options(words: c.Iterable[str]) -> tuple[str, ...]:
    """Words for the end of a server line, none of which a module option stands for."""
    options = {keyword: name for name, keyword in _KEYWORDS.items()}
    options.update(dict.fromkeys(("enabled", "disabled"), "admin_state"))
    for text in words:
        word(text)
        if text in options:
            raise InputError(
                f"options: {text!r} has an option of its own, {options[text]}, with which it can "
                "be compared and changed"
            )
    return tuple(words)


# --- from replies ---------------------------------------------------------------------------


def server_of(state: str, backend: str, name: str) -> tuple[Server, dict[str, str]] | None:
    """A server from `show servers state`: as the collection knows it, and all columns."""
    servers = _parse.servers_state(state)
    for server, row in zip(servers, _rows(state)):
        if server.key == (backend, name):
            return server, row
    return None


def _rows(state: str) -> c.Iterator[dict[str, str]]:
    lines = state.splitlines()
    header = lines[1][2:].split()
    for line in lines[2:]:
        if row := line.split():
            yield dict(zip(header, row))


def settings_of(server: Server, row: c.Mapping[str, str], stat: c.Mapping[str, str]) -> Settings:
    """Everything that HAProxy tells of a server, under the names of the module's options."""
    return {
        "address": _address(server.address),
        "port": server.port,
        "weight": server.weight,
        "maxconn": _number(_STAT, stat, "slim"),
        "maxqueue": _number(_STAT, stat, "qlimit"),
        "id": server.id,
        "cookie": stat.get("cookie") or None,
        "track": stat.get("tracked") or None,
        "backup": stat.get("bck") == "1",
        "ssl": row.get("srv_use_ssl") == "1",
        "check": server.health_checks,
        "check_port": _number(_STATE, row, "srv_check_port"),
        "check_address": _address(row.get("srv_check_addr")),
        "agent_check": server.agent_checks,
        "agent_port": _number(_STATE, row, "srv_agent_port"),
        "agent_address": _address(row.get("srv_agent_addr")),
        "admin_state": server.state,
    }


def _address(text: str | None) -> str | None:
    if text is None or text == "-":
        return None
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text


def _number(what: str, row: c.Mapping[str, str], name: str) -> int:
    text = row.get(name) or "0"
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise ParseError(what, f"{name} is not a number: {text[:60]!r}")
    return int(text)


# --- the plan -------------------------------------------------------------------------------


def plan_server(
    found: Found, desired: Desired, version: tuple[int, int], where: str
) -> ServerChange:
    """The commands that make the server what the task wants, and what it is afterwards."""
    _refuse_changing(found, desired, where)
    if not desired.present:
        return _plan_absent(found, desired, where)
    if found.server is None:
        _refuse_adding(found, desired, where)
        target = desired.admin_state or READY
        return _change(found, desired, _adding(desired, target), _predicted(desired, target))
    server = found.server
    target = desired.admin_state or server["admin_state"]
    steps, fixed = _differences(found, server, desired, version)
    if not fixed:
        after = {**server, **desired.settings, "admin_state": target}
        return _change(found, desired, steps, after)
    if not desired.recreate:
        differing = " and ".join(
            f"{name} {_shown(desired.settings[name])} instead of {_shown(server[name])}"
            for name in fixed
        )
        raise InputError(
            f"{desired.label} at {where} should have {differing}, which HAProxy does not change at "
            "run time: with recreate: true the server is deleted and added again",
            differences=fixed,
        )
    probe = next(
        name
        for name in (f"{desired.name}:{number}" for number in range(len(found.names) + 1))
        if name not in found.names
    )
    _refuse_deleting(found, desired, where)
    again = _recreated(found, server, desired, version, where)
    trial = dataclasses.replace(
        again,
        name=probe,
        settings={name: value for name, value in again.settings.items() if name != "id"},
    )
    steps = [
        Step(PROBE, _add_line(trial), accepted=_REGISTERED),
        Step(PROBE, f"del server {trial.label}", accepted=_DELETED),
        *_removing(desired.label, server),
        *_adding(again, target),
    ]
    after = _predicted(again, target)
    more = [name for name in after if after[name] != server[name]]
    return _change(found, desired, steps, after, more)


def _recreated(
    found: Found, server: Settings, desired: Desired, version: tuple[int, int], where: str
) -> Desired:
    """The task, and what HAProxy tells of the server where the task does not name it."""
    settings = desired.settings
    kept = {
        name: server[name]
        for name in SETTINGS
        if name not in settings and server[name] != _DEFAULTS[name]
    }
    if settings.get("check"):
        kept.pop("track", None)
    dormant = {"check": found.can_check, "agent_check": found.can_agent_check}
    if "track" in settings or "track" in kept:
        kept.pop("check", None)
        dormant["check"] = False
    cookie = kept.get("cookie")
    if cookie is not None and _DYNAMIC_COOKIE.fullmatch(cookie):
        # HAProxy makes it again, or another one for another address.
        del kept["cookie"]
    elif cookie is not None and version < (3, 0):
        raise InputError(
            f"{desired.label} at {where} has the cookie {cookie!r}, which HAProxy before 3.0 gives "
            "no server that is added at run time, so it cannot be recreated"
        )
    if kept.get("ssl") and not desired.options:
        raise InputError(
            f"{desired.label} at {where} speaks TLS, and HAProxy does not tell how it verifies: "
            "name ssl, and with ssl: true also options, such as [verify, none], to recreate it"
        )
    return dataclasses.replace(
        desired,
        settings={**kept, **settings},
        dormant=tuple(name for name, there in dormant.items() if there),
    )


def _refuse_changing(found: Found, desired: Desired, where: str) -> None:
    if found.server is not None and found.disabled:
        raise InputError(
            f"the backend {desired.backend} at {where} is disabled in HAProxy's configuration; "
            "HAProxy neither changes nor deletes its servers at run time"
        )


def _refuse_deleting(found: Found, desired: Desired, where: str) -> None:
    if found.trackers:
        several = "…" if len(found.trackers) > 3 else ""
        raise InputError(
            f"{desired.label} at {where} is tracked by {', '.join(found.trackers[:3])}{several}, "
            "and HAProxy does not delete servers that others track"
        )


def _plan_absent(found: Found, desired: Desired, where: str) -> ServerChange:
    if found.server is None:
        return ServerChange((), {}, {}, {"servers": []}, found)
    _refuse_deleting(found, desired, where)
    seen = {name: found.server[name] for name in ("address", "port", "admin_state")}
    return ServerChange(
        steps=tuple(_removing(desired.label, found.server)),
        before={desired.label: seen},
        after={},
        result={"servers": []},
        found=found,
    )


def _refuse_adding(found: Found, desired: Desired, where: str) -> None:
    if found.algorithm is None:
        raise InputError(
            f"the backend {desired.backend} at {where} is disabled in HAProxy's configuration; it "
            "takes no servers at run time"
        )
    if found.algorithm == _STATIC_ALGORITHM:
        raise InputError(
            f"the backend {desired.backend} at {where} has 'balance {found.algorithm}'; HAProxy "
            "adds servers only where the algorithm is dynamic, such as roundrobin, leastconn, "
            "random, or hashing with 'hash-type consistent'"
        )
    if desired.settings.get("agent_check") and "agent_port" not in desired.settings:
        raise InputError("agent_check: needs agent_port")


def _adding(desired: Desired, target: str) -> list[Step]:
    """A new server is in maintenance, with its checks switched off.

    If it were ready before they are on, it would need more than one passed check to count as up.
    """
    finish = []
    if desired.settings.get("check"):
        finish.append(f"enable health {desired.label}")
    if desired.settings.get("agent_check"):
        finish.append(f"enable agent {desired.label}")
    if target != MAINT:
        finish.append(f"set server {desired.label} state {target}")
    return [
        Step(ADD, _add_line(desired), accepted=_REGISTERED),
        *(Step(FINISH, line) for line in finish),
    ]


def _add_line(desired: Desired) -> str:
    settings = desired.settings
    address = settings["address"]
    where = f"[{address}]" if ":" in address else address
    if "port" in settings:
        where += f":{settings['port']}"
    words = [where]
    for name, keyword in _KEYWORDS.items():
        value = settings.get(name)
        if name in _FLAGS:
            words += [keyword] if value or name in desired.dormant else []
        elif value is not None:
            words += [keyword, word(str(value))]
    words += [word(text) for text in desired.options]
    return f"add server {desired.label} {' '.join(words)}"


def _removing(label: str, server: Settings) -> list[Step]:
    """An agent could put the server back while it is taken out."""
    take_out = []
    if server["agent_check"]:
        take_out.append(f"disable agent {label}")
    if server["admin_state"] != MAINT:
        take_out.append(f"set server {label} state maint")
    return [
        *(Step(TAKE_OUT, line) for line in take_out),
        Step(DELETE, f"del server {label}", accepted=_DELETED),
    ]


def _differences(
    found: Found, server: Settings, desired: Desired, version: tuple[int, int]
) -> tuple[list[Step], list[str]]:
    """The commands for what can be changed, in their order, and the names of what cannot."""
    wanted, label = desired.settings, desired.label
    differing = [name for name in wanted if wanted[name] != server[name]]
    lines: dict[str, str] = {}
    if found.can_check and wanted.get("check"):
        lines["check"] = f"enable health {label}"
    if found.can_agent_check and wanted.get("agent_check"):
        lines["agent_check"] = f"enable agent {label}"
    # One without an address would come up all the same, in HAProxy 2.6.
    if server["address"] is not None:
        port = f" port {wanted['port']}" if "port" in wanted else ""
        lines["address"] = lines["port"] = f"set server {label} addr {wanted['address']}{port}"
    lines["weight"] = f"set server {label} weight {wanted.get('weight')}"
    lines["maxconn"] = f"set maxconn server {label} {wanted.get('maxconn')}"
    # HAProxy changes what belongs to checks only while they are switched on.
    if server["check"] or "check" in lines:
        lines["check_port"] = f"set server {label} check-port {wanted.get('check_port')}"
        # 3.4 calls every address invalid.
        if version < (3, 4):
            value = wanted.get("check_address")
            lines["check_address"] = f"set server {label} check-addr {value}"
    if server["agent_check"] or "agent_check" in lines:
        lines["agent_port"] = f"set server {label} agent-port {wanted.get('agent_port')}"
        lines["agent_address"] = f"set server {label} agent-addr {wanted.get('agent_address')}"
    if wanted.get("check") is False:
        lines["check"] = f"disable health {label}"
    if wanted.get("agent_check") is False:
        lines["agent_check"] = f"disable agent {label}"
    if desired.admin_state not in (None, server["admin_state"]):
        lines["admin_state"] = f"set server {label} state {desired.admin_state}"
    fixed = [name for name in differing if name not in lines]
    due = [lines[name] for name in lines if name in differing or name == "admin_state"]
    # The address and the port are one command.
    steps = [
        Step(CHANGE, line, accepted=_ADDRESS_SET if f" {label} addr " in line else "")
        for line in dict.fromkeys(due)
    ]
    return steps, fixed


def _predicted(desired: Desired, state: str) -> Settings:
    settings = {**_DEFAULTS, **desired.settings, "admin_state": state}
    for own, common in (("agent_port", "check_port"), ("agent_address", "check_address")):
        settings[own] = desired.settings.get(own, settings[common])
    return settings


def _change(
    found: Found,
    desired: Desired,
    steps: c.Iterable[Step],
    after: Settings,
    more: c.Iterable[str] = (),
) -> ServerChange:
    managed = tuple(dict.fromkeys([*desired.settings, "admin_state", *more]))

    def view(settings: Settings | None) -> dict[str, t.Any]:
        if settings is None:
            return {}
        return {desired.label: {name: settings[name] for name in managed}}

    return ServerChange(
        steps=tuple(steps),
        before=view(found.server),
        after=view(after),
        result={"servers": [_row(desired, after)]},
        found=found,
        managed=managed,
    )


def _row(desired: Desired, settings: Settings) -> dict[str, t.Any]:
    return {
        "backend": desired.backend,
        "name": desired.name,
        **settings,
        # As the other modules of the collection call them.
        "state": settings["admin_state"],
        "health_checks": settings["check"],
        "agent_checks": settings["agent_check"],
    }


def _shown(value: t.Any) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- carrying it out ------------------------------------------------------------------------


def delete_when_free(client: Client, step: Step, busy: str, condition: str, timeout: float) -> bool:
    """Try to delete until HAProxy does not call it `busy`; False if it still does in the end.

    Only HAProxy knows everything that may hold it. `condition` is what its `wait` waits for.
    """
    end = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        try:
            client.apply([step])
            return True
        except CommandError as exc:
            if not any(busy in entry["reply"] for entry in exc.details["refused"]):
                raise
        left = end - time.monotonic()
        if left <= 0:
            return False
        _sleep(client, condition, min(pause, left, client.timeout / 2))
        pause = min(pause * 1.6, _LONGEST_PAUSE)


def stay_open(client: Client, sockets: int, timeout: float) -> None:
    """Between two attempts, and while another socket is waited for, this connection is idle."""
    client.keep_open(min(sockets * (timeout + _GRACE), _LONGEST_IDLE))


def process_of(client: Client) -> str:
    """What tells the process behind the socket from its successor."""
    found = _PID.search(client.read("show info"))
    return "" if found is None else found[0]


def failed_again(exc: Error, left: str) -> Error:
    """The same failure, with what is left of it."""
    kind = SocketError if isinstance(exc, SocketError) else type(exc)
    return kind(f"{exc}; {left}", **exc.details)


def _sleep(client: Client, condition: str, seconds: float) -> None:
    """No longer than until it can be deleted, where HAProxy tells."""
    # Behind the master, HAProxy takes its own `wait` for interrupted at once.
    if client.version >= (3, 0) and not client.is_master:
        reply = client.read(f"wait {max(int(seconds * 1000), 1)}ms {condition}")
        if reply.startswith(("Done.", "Wait delay expired.")):
            return
    time.sleep(seconds)


class ServerJob(Job[Found, ServerChange]):
    """A server that is to be there, or not."""

    def __init__(self, desired: Desired, sockets: int = 1) -> None:
        self.desired = desired
        self.sockets = sockets

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> ServerJob:
        return cls(Desired.from_params(params), len(params["socket"] or [""]))

    def look(self, client: Client) -> Found:
        client.require_version(
            (2, 6), "adding and deleting servers at run time, without experimental mode,"
        )
        desired = self.desired
        if desired.recreate or not desired.present:
            stay_open(client, self.sockets, desired.wait_timeout)
        state = client.read(f"show servers state {word(desired.backend)}")
        if not state.startswith("1"):
            # Says that there is no such backend.
            client.servers(desired.backend)
        servers = _parse.servers_state(state)
        names = frozenset(server.name for server in servers)
        found = server_of(state, desired.backend, desired.name)
        if found is None:
            # The id of a backend is told with its servers.
            number = f"#{servers[0].backend_id}" if servers else "-1"
            rows = _parse.stat(client.read(f"show stat {number} 2 -1"))
            return Found(names, None, algorithm=_parse.algorithms(rows).get(desired.backend))
        server, row = found
        rows = _parse.stat(client.read(f"show stat #{server.backend_id} 4 {server.id}"))
        # A disabled backend is not listed.
        stat: dict[str, str] = next((one for one in rows if one["svname"] == server.name), {})
        trackers: list[str] = []
        if desired.recreate or not desired.present:
            every = _parse.stat(client.read("show stat -1 4 -1"))
            trackers = [
                f"{one['pxname']}/{one['svname']}"
                for one in every
                if one.get("tracked") == desired.label
            ]
        return Found(
            names,
            settings_of(server, row, stat),
            server.backend_id,
            bool(server.check_state & _CONFIGURED),
            bool(server.agent_state & _CONFIGURED),
            disabled=not stat,
            trackers=tuple(trackers),
        )

    def plan(self, client: Client, state: Found) -> ServerChange:
        change = plan_server(state, self.desired, client.version, client.where)
        if "cookie" in self.desired.settings and change.stage(ADD):
            client.require_version((3, 0), "the cookie of a server that is added at run time")
        return change

    def left_over(
        self, client: Client, change: ServerChange, now: Found
    ) -> tuple[ServerChange, list[Step]]:
        again, left = super().left_over(client, change, now)
        # A recreated server may differ in more than what the task names.
        if change.managed and now.server is not None:
            shown = {name: now.server[name] for name in change.managed}
            again = dataclasses.replace(again, before={self.desired.label: shown})
        return again, left

    def carry_out(self, client: Client, change: ServerChange) -> None:
        change = t.cast("ServerChange", change)
        client.apply(change.stage(CHANGE))
        # One by one: what follows a refused command may already have been sent.
        for step in change.stage(PROBE):
            client.apply([step])
        if change.stage(DELETE):
            self._take_out(client, change)
        if change.stage(ADD):
            self._add(client, change)

    def _take_out(self, client: Client, change: ServerChange) -> None:
        before, process = len(client.applied), process_of(client)
        try:
            client.apply(change.stage(TAKE_OUT))
            self._delete(client, change)
        except (CommandError, SocketError, WaitError) as exc:
            touched = len(client.applied) > before or bool(exc.details.get("unknown"))
            kept = isinstance(exc, WaitError) and self.desired.on_timeout != "rollback"
            left = "it is as it was"
            if touched:
                left = "it is in maintenance" if kept else self._set_back(client, change, process)
            raise failed_again(exc, left) from None

    def _delete(self, client: Client, change: ServerChange) -> None:
        desired = self.desired
        (step,) = change.stage(DELETE)
        condition = f"srv-removable {desired.label}"
        if delete_when_free(client, step, _BUSY, condition, desired.wait_timeout):
            return
        if desired.on_timeout != "shutdown_sessions":
            raise self._too_late(client, change, killed=False)
        client.apply([Step(DELETE, f"shutdown sessions server {desired.label}")])
        if not delete_when_free(client, step, _BUSY, condition, _GRACE):
            raise self._too_late(client, change, killed=True)

    def _too_late(self, client: Client, change: ServerChange, *, killed: bool) -> WaitError:
        desired = self.desired
        client.require_current()
        backends = {desired.backend: change.found.backend_id or 0}
        traffic = client.traffic(backends).get((desired.backend, desired.name))
        still = f"still has {traffic}" if traffic else "is gone"
        after = f", {_GRACE:g} s after its sessions were shut down" if killed else ""
        return WaitError(
            f"after {desired.wait_timeout:g} s {desired.label} at {client.where} {still}{after}, "
            "so HAProxy does not delete it",
            waiting_for=[
                {
                    "socket": client.socket,
                    "backend": desired.backend,
                    "server": desired.name,
                    "reason": still,
                }
            ],
        )

    def _set_back(self, client: Client, change: ServerChange, process: str) -> str:
        """Undo what preceded the deletion; the result completes the sentence."""
        was, label = change.found.server or {}, self.desired.label
        lines = [f"set server {label} state {was['admin_state']}"]
        if was["agent_check"]:
            lines.append(f"enable agent {label}")
        try:
            # The connection may have been lost, and another process may answer now.
            if process_of(client) != process:
                return "HAProxy was restarted meanwhile, so it is as the configuration says"
            client.apply([Step(TAKE_OUT, line) for line in lines])
        except Error as exc:
            return (
                f"it may be in maintenance, and could not be set back to {was['admin_state']}: "
                f"{exc}"
            )
        return f"it was set back to {was['admin_state']}"

    def _add(self, client: Client, change: ServerChange) -> None:
        label, again = self.desired.label, bool(change.stage(DELETE))
        try:
            client.apply(change.stage(ADD))
        except CommandError as exc:
            if not again:
                raise
            raise CommandError(
                f"{exc}; the old {label} had been deleted by then", **exc.details
            ) from None
        try:
            client.apply(change.stage(FINISH))
        except SocketError as exc:
            raise SocketError(
                f"{exc}; {label} was added, but may still be in maintenance: 'admin_state: "
                f"{change.after[label]['admin_state']}' changes that",
                **exc.details,
            ) from None
        except CommandError as exc:
            left = "it was added anew, but is not finished" if again else self._delete_again(client)
            raise CommandError(f"{exc}; {left}", **exc.details) from None

    def _delete_again(self, client: Client) -> str:
        """Undo an addition; the result completes the sentence."""
        label = self.desired.label
        try:
            # A later command than the refused one may have made it ready.
            client.apply([Step(TAKE_OUT, f"set server {label} state maint")])
            client.apply([Step(DELETE, f"del server {label}", accepted=_DELETED)])
        except Error as exc:
            return f"{label} was added and could not be deleted again: {exc}"
        return f"{label} was added before that, and has been deleted again"
