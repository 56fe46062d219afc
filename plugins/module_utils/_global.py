# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: what is set for the whole process: parse, model, plan. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import Client
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import Step
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    InputError,
    ParseError,
    VersionError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import Change, Job

_INFO = "show info"
_PROFILING = "show profiling status"
_MEMORY = "show profiling memory 1"
_MEMORY_SINCE = (2, 4)
_KILO = 1024
_LIMIT = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Setting:
    """A number that `set` changes and `show info` tells."""

    # The words between `set` and the value.
    command: str
    field: str
    # The largest value; HAProxy takes what is larger for something else.
    limit: int = _LIMIT
    # HAProxy tells this many for each that it was told.
    unit: int = 1


SETTINGS = {
    "maxconn": Setting("maxconn global", "Maxconn"),
    "rate_limit_connections": Setting("rate-limit connections global", "ConnRateLimit"),
    "rate_limit_sessions": Setting("rate-limit sessions global", "SessRateLimit"),
    "rate_limit_ssl_sessions": Setting("rate-limit ssl-sessions global", "SslRateLimit"),
    # In bytes it has to fit into 32 bits.
    "rate_limit_http_compression": Setting(
        "rate-limit http-compression global", "CompressBpsRateLim", (2**32 - 1) // _KILO, _KILO
    ),
}
PROFILING = {"profiling_tasks": "tasks", "profiling_memory": "memory"}
COUNTERS = {"max": "clear counters", "all": "clear counters all"}


@dataclasses.dataclass(frozen=True)
class Process:
    """What HAProxy has, by the names of the options; None where this build or version lacks it."""

    hard_maxconn: int
    values: dict[str, int | str | None]
    # Whether it was built so that `profiling_memory` can be on.
    has_memory_profiling: bool = True

    def as_dict(self) -> dict[str, t.Any]:
        return {"hard_maxconn": self.hard_maxconn, **self.values}


@dataclasses.dataclass(frozen=True)
class Desired:
    """What a task wants; only what it gave is in `values`."""

    values: dict[str, int | str]
    clear_counters: str | None = None

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> Desired:
        """Check everything that can be checked without asking HAProxy."""
        for name, setting in SETTINGS.items():
            value = params[name]
            if isinstance(value, bool):
                # HAProxy would take `True` for 0.
                raise InputError(
                    f"{name} {value}: must be a number; YAML takes yes, no, on, off, true and "
                    "false for truth values"
                )
            if value is not None and not 0 <= value <= setting.limit:
                raise InputError(f"{name} {value}: must be from 0 to {setting.limit}")
        given = {name: params[name] for name in (*SETTINGS, *PROFILING) if params[name] is not None}
        return cls(given, params["clear_counters"])


def process(info: str, profiling: str) -> Process:
    """`show info` and `show profiling status`."""
    fields = dict(re.findall(r"^([A-Za-z_]+): (.*)$", info, re.M))
    hard = _number(fields, "Hard_maxconn", 1)
    if hard is None:
        raise ParseError(_INFO, "no Hard_maxconn")
    values: dict[str, int | str | None] = {
        name: _number(fields, setting.field, setting.unit) for name, setting in SETTINGS.items()
    }
    values["profiling_tasks"] = _switch(profiling, "Per-task CPU profiling", ("on", "auto", "off"))
    values["profiling_memory"] = _switch(profiling, "Memory usage profiling", ("on", "off"))
    if values["profiling_tasks"] is None:
        raise ParseError(_PROFILING, "no line on tasks")
    return Process(hard, values)


def _number(fields: c.Mapping[str, str], name: str, unit: int) -> int | None:
    text = fields.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,20}", text, re.ASCII):
        raise ParseError(_INFO, "a number was expected", line=f"{name}: {text}")
    return int(text) // unit


def _switch(text: str, label: str, known: tuple[str, ...]) -> str | None:
    found = re.search(rf"^{label}\s*: ([a-z-]+)", text, re.M)
    if found is None:
        return None
    # `auto-on` and `auto-off` say what `auto` does at the moment.
    value = found.group(1).partition("-")[0]
    if value not in known:
        raise ParseError(_PROFILING, f"the unknown state {value!r} of {label}")
    return value


def plan_process(now: Process, desired: Desired, where: str) -> Change:
    """The commands that take the process to where the task wants it."""
    steps = []
    predicted = dict(now.values)
    for name, value in desired.values.items():
        _require(now, name, value, where)
        # 0 is HAProxy's word for the maximum that it was started with.
        wanted = now.hard_maxconn if (name, value) == ("maxconn", 0) else value
        if now.values[name] != wanted:
            steps.append(Step(name, _command(name, value)))
        predicted[name] = wanted
    if desired.clear_counters is not None:
        steps.append(Step("clear_counters", COUNTERS[desired.clear_counters], readable=False))
    after = Process(now.hard_maxconn, predicted)
    return Change(
        steps=tuple(steps),
        before={name: now.values[name] for name in desired.values},
        after={name: predicted[name] for name in desired.values},
        result={"processes": [after.as_dict()]},
    )


def _command(name: str, value: int | str) -> str:
    if name in PROFILING:
        return f"set profiling {PROFILING[name]} {value}"
    return f"set {SETTINGS[name].command} {value}"


def _require(now: Process, name: str, value: int | str, where: str) -> None:
    if name == "maxconn" and int(value) > now.hard_maxconn:
        raise InputError(
            f"maxconn {value}: HAProxy at {where} was started for {now.hard_maxconn} connections; "
            "more needs 'maxconn' in the 'global' section of its configuration and a reload"
        )
    if (name, value) == ("profiling_memory", "on") and not now.has_memory_profiling:
        raise VersionError(
            f"profiling_memory: HAProxy at {where} was built without USE_MEMORY_PROFILING=1"
        )
    if now.values[name] is None:
        raise VersionError(f"{name}: HAProxy at {where} does not have it; it was built without it")


class GlobalJob(Job[Process, Change]):
    """What is set for the whole process."""

    def __init__(self, desired: Desired) -> None:
        self.desired = desired

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> GlobalJob:
        return cls(Desired.from_params(params))

    def look(self, client: Client) -> Process:
        if "profiling_memory" in self.desired.values:
            client.require_version(_MEMORY_SINCE, "'set profiling memory'")
        now = process(client.read(_INFO), client.read(_PROFILING))
        if self.desired.values.get("profiling_memory") != "on":
            return now
        # At least a heading where it was built in, else nothing.
        built_in = client.read(_MEMORY).strip() != ""
        return dataclasses.replace(now, has_memory_profiling=built_in)

    def plan(self, client: Client, state: Process) -> Change:
        return plan_process(state, self.desired, client.where)
