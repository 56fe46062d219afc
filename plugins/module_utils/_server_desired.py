# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: what a task wants of servers, checked without asking HAProxy. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import functools
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import normal_name
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_model import (
    DRAIN,
    MAINT,
    MAXCONN_MAX,
    OWN_ADDRESS,
    PORT_MAX,
    READY,
    Server,
    Weight,
    check_target,
    floor_of,
    normal_address,
    normal_fqdn,
    normal_number,
    normal_state,
    normal_text,
    parse_weight,
    same_address,
)

# What can be read back, under the names that the options and a Server's attributes share.
READABLE = (
    "state",
    "weight",
    "maxconn",
    "address",
    "port",
    "fqdn",
    "check_address",
    "check_port",
    "agent_address",
    "agent_port",
    "ssl",
    "health_checks",
    "agent_checks",
)
# What HAProxy 2.2 sets without telling it.
NEWER_COLUMNS = ("check_address", "check_port", "agent_address", "agent_port", "ssl")
# What is compared as it is.
_PLAIN = frozenset({"state", "maxconn", "health_checks", "agent_checks"})
# What every server of a task may have for itself.
MEMBER_VALUES = (*READABLE, "agent_send", "force_health", "force_agent", "shutdown_sessions")

_PATTERN = re.compile(r"(?:[A-Za-z0-9_.:*?\[\]!-]+|#[1-9][0-9]{0,9})\Z", re.ASCII)
_NUMBERED = re.compile(r"#[1-9][0-9]{0,9}\Z", re.ASCII)
_SWITCHES = {"enabled": True, "disabled": False}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a task wants one server to be; None leaves alone."""

    state: str | None = None
    weight: Weight | None = None
    maxconn: int | None = None
    address: str | None = None
    port: int | None = None
    fqdn: str | None = None
    check_address: str | None = None
    check_port: int | None = None
    agent_address: str | None = None
    agent_port: int | None = None
    ssl: bool | None = None
    health_checks: bool | None = None
    agent_checks: bool | None = None
    agent_send: str | None = None
    force_health: str | None = None
    force_agent: str | None = None
    shutdown_sessions: bool | None = None

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> Wanted:
        """One server's values; the option of a wrong one is named."""
        state, weight = params.get("state"), params.get("weight")
        wanted = cls(
            state=None if state is None else normal_state(state),
            weight=None if weight is None else parse_weight(weight),
            maxconn=_number(params, "maxconn", 0, MAXCONN_MAX),
            address=_real_address(params),
            port=_number(params, "port", 1, PORT_MAX),
            fqdn=_made(params, "fqdn", normal_fqdn),
            check_address=_made(params, "check_address", _target),
            check_port=_number(params, "check_port", 0, PORT_MAX),
            agent_address=_made(params, "agent_address", _target),
            agent_port=_number(params, "agent_port", 1, PORT_MAX),
            ssl=params.get("ssl"),
            health_checks=_switch(params, "health", state),
            agent_checks=_switch(params, "agent", state),
            agent_send=_made(params, "agent_send", normal_text),
            force_health=params.get("force_health"),
            force_agent=params.get("force_agent"),
            shutdown_sessions=params.get("shutdown_sessions"),
        )
        if wanted.fqdn is not None and wanted.address is not None:
            raise InputError(
                "fqdn and address contradict each other: HAProxy takes the address from the name"
            )
        if wanted.force_agent is not None and wanted.agent_checks is False:
            raise InputError("force_agent: goes with agent checks that are switched on only")
        return wanted

    @classmethod
    def back_to(cls, server: Server, names: c.Iterable[str]) -> Wanted:
        """What takes a server back, as far as HAProxy can be told that."""
        values: dict[str, t.Any] = {name: getattr(server, name) for name in names}
        if "weight" in values:
            values["weight"] = Weight(str(server.weight), server.weight, percent=False)
        for name in ("check_address", "agent_address"):
            if name in values and values[name] is None:
                values[name] = OWN_ADDRESS
        return cls(**values)

    @functools.cached_property
    def readable(self) -> tuple[tuple[str, t.Any], ...]:
        """The readable values that are given."""
        pairs = ((name, getattr(self, name)) for name in READABLE)
        return tuple((name, value) for name, value in pairs if value is not None)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The names of those."""
        return tuple(name for name, _value in self.readable)

    @functools.cached_property
    def acts(self) -> bool:
        """Whether something is done besides setting values."""
        return bool(self.force_health or self.force_agent or self.shutdown_sessions)

    @functools.cached_property
    def state_alone(self) -> bool:
        """Whether setting the state is all: the common case, for thousands of servers at a time."""
        return self.names == ("state",) and not self.acts and self.agent_send is None

    def is_met_by(self, server: Server) -> bool:
        """Whether nothing has to be sent."""
        if self.state_alone:
            return server.state == self.state
        return not (self.acts or self.differences(server) or self.untold(server))

    @property
    def out(self) -> bool:
        """Whether the server is to be taken out of load balancing."""
        return self.state in (DRAIN, MAINT)

    def differences(self, server: Server) -> dict[str, t.Any]:
        """What has to change, as the values that a Server's attributes get."""
        found = {}
        for name, value in self.readable:
            if name in _PLAIN:
                if getattr(server, name) != value:
                    found[name] = value
                continue
            if name in NEWER_COLUMNS and not server.tells_everything:
                continue
            have = getattr(server, name)
            if name == "weight":
                value = value.of(server.initial_weight)
            elif name.endswith("address"):
                if same_address(have, value):
                    continue
                if name != "address":
                    value = check_target(value)
            elif name == "fqdn" and (have or "").lower() == value.lower():
                continue
            if have != value:
                found[name] = value
        return found

    def untold(self, server: Server) -> list[str]:
        """What is given and cannot be compared with what this HAProxy tells of the server."""
        names = ["agent_send"] if self.agent_send is not None else []
        if self._newer and not server.tells_everything:
            names += self._newer
        return names

    @functools.cached_property
    def _newer(self) -> list[str]:
        return [name for name in self.names if name in NEWER_COLUMNS]

    def merged(self, other: Wanted, label: str) -> Wanted:
        """Both, for a server that is named twice; what contradicts is refused."""
        values = {}
        for field in dataclasses.fields(self):
            one, two = getattr(self, field.name), getattr(other, field.name)
            if one is not None and two is not None and one != two:
                shown = [getattr(value, "text", value) for value in (one, two)]
                raise InputError(
                    f"the server {label} is named twice, with {field.name} {shown[0]} and "
                    f"{field.name} {shown[1]}; name it once, or with equal values"
                )
            values[field.name] = two if one is None else one
        return Wanted(**values)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One name, pattern or #id of a task, and what is wanted of what it means."""

    pattern: str
    backend: str | None
    wanted: Wanted


@dataclasses.dataclass(frozen=True)
class Desired:
    """What a task wants."""

    entries: tuple[Entry, ...]
    missing: str = "fail"
    min_ready: str | None = None
    drain_first: bool = False
    wait: bool = False
    on_timeout: str = "fail"
    forget_clients: bool = False
    write_only: str = "always"

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> Desired:
        """Check everything that can be checked without asking HAProxy."""
        desired = cls(
            entries=_entries(params),
            missing=_missing(params),
            min_ready=params["min_ready"],
            drain_first=params["drain_first"],
            wait=params["wait"],
            on_timeout=params["on_timeout"],
            forget_clients=bool(params.get("forget_clients")),
            write_only=params.get("write_only") or "always",
        )
        states = {entry.wanted.state for entry in desired.entries}
        if desired.min_ready is not None:
            floor_of(desired.min_ready, 0)
        if desired.drain_first and MAINT not in states:
            raise InputError(
                "drain_first: goes with state: maint only; state: drain drains by itself"
            )
        if desired.wait and states == {None}:
            raise InputError("wait: needs a state to wait for")
        for given, name in (
            (desired.on_timeout == "shutdown_sessions", "on_timeout: shutdown_sessions"),
            (desired.forget_clients, "forget_clients:"),
        ):
            if given and not states & {DRAIN, MAINT}:
                raise InputError(f"{name} goes with state: drain or maint only")
        if desired.write_only == "error" and any(
            entry.wanted.agent_send is not None for entry in desired.entries
        ):
            raise InputError(
                "agent_send: HAProxy does not tell it, so it cannot be compared, and write_only is "
                "error"
            )
        return desired

    @property
    def backends(self) -> set[str | None]:
        """Where servers are looked for; None means everywhere."""
        return {entry.backend for entry in self.entries}

    def wants(self, name: str) -> bool:
        """Whether any server is to have this."""
        return any(getattr(entry.wanted, name) is not None for entry in self.entries)

    @functools.cached_property
    def takes_its_time(self) -> bool:
        """Whether more happens than values being set."""
        return self.wait or self.drain_first or self.forget_clients

    def ready_waited_for(self, wanted: Wanted) -> bool:
        """Whether a passed check has to be seen."""
        return self.wait and wanted.state == READY


def numbered(text: str) -> int | None:
    """The number in `#3`."""
    return int(text[1:]) if _NUMBERED.match(text) else None


def _entries(params: c.Mapping[str, t.Any]) -> tuple[Entry, ...]:
    names, members = params.get("servers"), params.get("members")
    if not names and not members:
        raise InputError(
            "servers: name servers, patterns, or '*' for all, or give members; both are missing "
            "or empty"
        )
    found = []
    if names:
        common = Wanted.from_params(params)
        found = [Entry(name, params["backend"], common) for name in names]
    for number, member in enumerate(members or (), 1):
        given = {name: member[name] for name in MEMBER_VALUES if member.get(name) is not None}
        try:
            wanted = Wanted.from_params({**params, **given})
        except InputError as exc:
            raise InputError(f"member {number} ({member['name']}): {exc}") from None
        found.append(Entry(member["name"], member.get("backend") or params["backend"], wanted))
    for entry in found:
        if not _PATTERN.match(entry.pattern):
            raise InputError(
                f"server {entry.pattern!r}: HAProxy's names consist of letters, digits and any of "
                "'_.:-'; patterns may add '*', '?' and '[…]', and #3 is the server with the id 3"
            )
        if entry.backend is not None and numbered(entry.backend) is None:
            normal_name(entry.backend, "backend")
        if entry.backend is None and numbered(entry.pattern) is not None:
            raise InputError(f"server {entry.pattern!r}: an id means something in a backend only")
    return tuple(found)


def _missing(params: c.Mapping[str, t.Any]) -> str:
    """What `missing` and the old module's `fail_on_not_found` say together."""
    fail, missing = params.get("fail_on_not_found"), str(params["missing"])
    if fail and missing == "ignore":
        raise InputError("fail_on_not_found: true and missing: ignore contradict each other")
    return "ignore" if fail is False else missing


def _switch(params: c.Mapping[str, t.Any], kind: str, state: str | None) -> bool | None:
    """What `health_checks` and the old module's `health` say together; likewise for agents."""
    new = params.get(f"{kind}_checks")
    switched = None if new is None else _SWITCHES[new]
    if not params.get(kind):
        return switched
    if state is None:
        raise InputError(f"{kind}: goes with a state, whose word decides; or use {kind}_checks")
    old = {READY: True, MAINT: False}.get(normal_state(state))
    if old is not None and switched not in (None, old):
        raise InputError(f"{kind}: true, state: {state} and {kind}_checks: {new} contradict")
    return switched if old is None else old


def _made(
    params: c.Mapping[str, t.Any], name: str, normal: t.Callable[[str, str], str]
) -> str | None:
    value = params.get(name)
    return None if value is None else normal(value, name)


def _number(params: c.Mapping[str, t.Any], name: str, least: int, most: int) -> int | None:
    value = params.get(name)
    return None if value is None else normal_number(value, name, least, most)


def _real_address(params: c.Mapping[str, t.Any]) -> str | None:
    address = _made(params, "address", normal_address)
    if address is not None and check_target(address) is None:
        raise InputError(f"address {address!r}: this means no address, so nobody could be reached")
    return address


def _target(text: str, what: str) -> str:
    return check_target(normal_address(text, what)) or OWN_ADDRESS
