# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backends that exist or not, published or not, and their cookies. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import math
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _parse
from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import Client
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import (
    Command,
    Step,
    near,
    normal_name,
    word,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._dynamic_server import (
    delete_when_free,
    failed_again,
    process_of,
    stay_open,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    CommandError,
    Error,
    InputError,
    NotFoundError,
    ParseError,
    SocketError,
    WaitError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import Change, Job

ENABLED = "enabled"
DISABLED = "disabled"

_STAT = "show stat"
_BACKEND_ROW = "1"
_SERVER_ROW = "2"
# HAProxy makes these of the server's address and the backend's key.
_DYNAMIC_COOKIE = re.compile(r"[0-9a-f]{16}")
_UNPUBLISHED = "(UNPUB)"
_BUSY = "still has attached streams"
# Well below the length of a line, with every character escaped.
_KEY_LIMIT = 1024
# Before a reply, 3.4 may say what it kept to itself at earlier commands.
_DONE = r"(?:.*\n)?"

# Stages of a task; the steps of one go out together.
ADD = "add"
CHANGE = "change"
UNPUBLISH = "unpublish"
DELETE = "delete"


@dataclasses.dataclass(frozen=True)
class Backend:
    """A backend as HAProxy tells of it; nothing but its name if its configuration disables it."""

    name: str
    id: int | None = None
    mode: str | None = None
    # None before 3.4, which knows no others.
    published: bool | None = None
    # None if no server shows whether there are dynamic cookies.
    dynamic_cookie: str | None = None

    @property
    def disabled(self) -> bool:
        return self.id is None


@dataclasses.dataclass(frozen=True)
class Found:
    """What a HAProxy has under the wanted name, and the names that it has."""

    backend: Backend | None
    known: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Desired:
    """What a task wants of a backend; None leaves alone."""

    backend: str
    present: bool = True
    defaults: str | None = None
    mode: str | None = None
    guid: str | None = None
    published: bool | None = None
    dynamic_cookie: str | None = None
    # Kept out of every sentence and return value.
    key: str | None = dataclasses.field(default=None, repr=False)
    write_only: str = "always"
    wait_timeout: float = 0.0

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> Desired:
        """Check everything that can be checked without asking HAProxy."""
        present, key = params["state"] == "present", params["dynamic_cookie_key"]
        only_present = (
            *("defaults", "mode", "guid", "published"),
            *("dynamic_cookie", "dynamic_cookie_key"),
        )
        given = [name for name in only_present if params[name] is not None]
        if not present and given:
            raise InputError(f"{given[0]}: goes with state: present only")
        if key is not None:
            _check_key(key)
            if params["write_only"] == "error":
                raise InputError(
                    "dynamic_cookie_key: HAProxy does not tell which one it has, and write_only: "
                    "error refuses what cannot be compared"
                )
        for name in ("mode", "guid"):
            if params[name] is not None and params["defaults"] is None:
                raise InputError(f"{name}: goes with defaults, for a backend that is to be added")
        if params["guid"] is not None:
            word(params["guid"])
        timeout = params["wait_timeout"]
        if not (math.isfinite(timeout) and timeout >= 0):
            raise InputError(f"wait_timeout {timeout}: must be a number of seconds, 0 or more")
        return cls(
            backend=normal_name(params["backend"], "backend"),
            present=present,
            defaults=None
            if params["defaults"] is None
            else normal_name(params["defaults"], "defaults"),
            mode=params["mode"],
            guid=params["guid"],
            published=params["published"],
            dynamic_cookie=params["dynamic_cookie"],
            key=key,
            write_only=params["write_only"],
            wait_timeout=timeout if params["wait"] else 0.0,
        )


def _check_key(key: str) -> None:
    """Without repeating it."""
    try:
        fits = 0 < len(word(key).encode()) <= _KEY_LIMIT
    except (InputError, UnicodeEncodeError):
        fits = False
    if not fits:
        raise InputError(
            f"dynamic_cookie_key: must have 1 to {_KEY_LIMIT} bytes, and no line breaks or NULs, "
            "which HAProxy's grammar cannot carry"
        ) from None


class _SecretCommand(Command):
    """A command of which nobody is shown the last word."""

    @property
    def shown(self) -> str:
        return f"{self.text[: self.text.index('backend ')]}{_name_in(self.text)} (hidden)"


class SecretStep(Step):
    """A step of which nobody is shown the last word."""

    @property
    def wire(self) -> Command:
        return _SecretCommand(self.command)

    @property
    def shown(self) -> str:
        return self.wire.shown


def _name_in(text: str) -> str:
    return " ".join(text[text.index("backend ") :].split(" ")[:2])


# --- from replies ---------------------------------------------------------------------------


def backend_of(rows: c.Iterable[dict[str, str]], name: str, version: tuple[int, int]) -> Backend:
    """A backend from `show stat`'s backend rows, without what its servers tell."""
    for row in rows:
        if (row["pxname"], row["type"]) == (name, _BACKEND_ROW):
            number = row.get("iid", "")
            if not re.fullmatch(r"[0-9]{1,10}", number, re.ASCII):
                raise ParseError(_STAT, f"iid is not a number: {number[:60]!r}")
            published = _UNPUBLISHED not in row.get("status", "")
            return Backend(
                name=name,
                id=int(number),
                mode=row.get("mode") or None,
                published=published if version >= (3, 4) else None,
            )
    return Backend(name)


def dynamic_cookie_of(rows: c.Iterable[dict[str, str]]) -> str | None:
    """Whether the servers of `show stat`'s rows have dynamic cookies; None if they do not tell.

    HAProxy shows only each server's cookie: a fixed one of its `server` line, wherever there is
    one; otherwise a dynamic one or none.
    """
    cookies = [row.get("cookie", "") for row in rows if row["type"] == _SERVER_ROW]
    if any(_DYNAMIC_COOKIE.fullmatch(cookie) for cookie in cookies):
        return ENABLED
    return DISABLED if "" in cookies else None


# --- the plan -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BackendChange(Change):
    """A change in stages."""

    def stage(self, name: str) -> list[Step]:
        return [step for step in self.steps if step.key == name]


def plan_backend(found: Found, desired: Desired, where: str) -> BackendChange:
    """The commands that make the backend what the task wants, and what it is afterwards."""
    name, now = desired.backend, found.backend
    if not desired.present:
        return _plan_absent(found, desired, where)
    if now is not None:
        _refuse(now, desired, where)
    steps = []
    if now is None:
        if desired.defaults is None:
            raise NotFoundError(
                f"HAProxy at {where} has no backend {name!r}; {near(name, found.known)}; with "
                "defaults, HAProxy 3.4 and later can add it",
                backend=name,
            )
        steps.append(Step(ADD, _add_line(desired), accepted=_DONE + r"New backend registered\."))
    # A new one may have inherited dynamic cookies.
    have = now or Backend(name, mode=desired.mode, published=False)
    cookie: list[Step] = []
    if desired.dynamic_cookie not in (None, have.dynamic_cookie):
        verb = "enable" if desired.dynamic_cookie == ENABLED else "disable"
        told = have.dynamic_cookie is not None
        cookie.append(Step(CHANGE, f"{verb} dynamic-cookie backend {name}", readable=told))
        if not told and desired.write_only == "error":
            raise InputError(
                f"dynamic_cookie: no server of the backend {name} at {where} shows whether it has "
                "dynamic cookies, and write_only: error refuses what cannot be compared"
            )
    publish: list[Step] = []
    if desired.published not in (None, have.published):
        publish.append(_publish(name, on=bool(desired.published)))
    if desired.key is not None:
        line = f"set dynamic-cookie-key backend {name} {word(desired.key)}"
        # First, so that cookies are made of it only.
        cookie.insert(0, SecretStep(CHANGE, line, readable=False))
    change = any(step.readable for step in (*steps, *cookie, *publish))
    if desired.write_only == "on_change_only" and not change:
        cookie = []
    after = dataclasses.replace(
        have,
        published=have.published if desired.published is None else desired.published,
        # What nobody could tell before, nobody can tell afterwards.
        dynamic_cookie=have.dynamic_cookie and (desired.dynamic_cookie or have.dynamic_cookie),
    )
    return BackendChange(
        steps=(*steps, *cookie, *publish),
        before={name: _view(now, desired)},
        after={name: _view(after, desired)},
        result={"backends": [dataclasses.asdict(after)]},
    )


def _refuse(now: Backend, desired: Desired, where: str) -> None:
    if now.disabled and desired.published is not None:
        raise InputError(
            f"published: the backend {now.name} at {where} is disabled in HAProxy's configuration"
        )
    if not now.disabled and desired.mode not in (None, now.mode):
        raise InputError(
            f"mode {desired.mode}: the backend {now.name} at {where} exists with mode {now.mode}, "
            "which does not change at run time; delete it first, with state: absent"
        )


def _plan_absent(found: Found, desired: Desired, where: str) -> BackendChange:
    name, now = desired.backend, found.backend
    if now is None:
        view = {name: _view(None, desired)}
        return BackendChange((), view, view, {"backends": []})
    if now.disabled:
        raise InputError(
            f"the backend {name} at {where} is disabled in HAProxy's configuration, and cannot be "
            "deleted at run time"
        )
    if found.servers:
        several = "…" if len(found.servers) > 3 else ""
        raise InputError(
            f"the backend {name} at {where} has servers ({', '.join(found.servers[:3])}{several}), "
            "and HAProxy deletes only backends that have none: delete them first, with "
            "haproxy_dynamic_server"
        )
    steps = [Step(DELETE, f"del backend {name}", accepted=_DONE + r"Backend deleted\.")]
    if now.published:
        steps.insert(0, _publish(name, on=False)._replace(key=UNPUBLISH))
    return BackendChange(
        steps=tuple(steps),
        before={name: _view(now, desired)},
        after={name: _view(None, desired)},
        result={"backends": []},
    )


def _add_line(desired: Desired) -> str:
    line = f"add backend {desired.backend} from {desired.defaults}"
    if desired.mode is not None:
        line += f" mode {desired.mode}"
    if desired.guid is not None:
        line += f" guid {word(desired.guid)}"
    return line


def _publish(name: str, *, on: bool) -> Step:
    verb = "publish" if on else "unpublish"
    return Step(CHANGE, f"{verb} backend {name}", accepted=_DONE + rf"Backend {verb}ed\.")


def _view(backend: Backend | None, desired: Desired) -> dict[str, t.Any]:
    if backend is None:
        return {"state": "absent"}
    managed = [
        name for name in ("published", "dynamic_cookie") if getattr(desired, name) is not None
    ]
    return {"state": "present", **{name: getattr(backend, name) for name in managed}}


# --- carrying it out ------------------------------------------------------------------------


class BackendJob(Job[Found, BackendChange]):
    """A backend that is to be there, or not."""

    def __init__(self, desired: Desired, sockets: int = 1) -> None:
        self.desired = desired
        self.sockets = sockets

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> BackendJob:
        return cls(Desired.from_params(params), len(params["socket"] or [""]))

    def look(self, client: Client) -> Found:
        desired = self.desired
        name = desired.backend
        if not desired.present:
            client.require_version((3, 4), "deleting backends at run time")
            stay_open(client, self.sockets, desired.wait_timeout)
        if desired.published is not None:
            client.require_version((3, 4), "publishing backends and taking that back")
        known = tuple(_parse.backends(client.read("show backend")))
        if name not in known:
            if desired.present and desired.defaults is not None:
                client.require_version((3, 4), "adding backends at run time")
            return Found(None, known)
        # All of them: a frontend may have the same name, and the id is not known yet.
        backend = backend_of(_parse.stat(client.read("show stat -1 2 -1")), name, client.version)
        if backend.id is None:
            return Found(backend, known)
        rows = client.stat({name: backend.id}, what=4)
        return Found(
            dataclasses.replace(backend, dynamic_cookie=dynamic_cookie_of(rows)),
            known,
            tuple(row["svname"] for row in rows if row["type"] == _SERVER_ROW),
        )

    def plan(self, client: Client, state: Found) -> BackendChange:
        return plan_backend(state, self.desired, client.where)

    def carry_out(self, client: Client, change: BackendChange) -> None:
        change = t.cast("BackendChange", change)
        # Alone: what followed a refused addition would change somebody else's backend.
        client.apply(change.stage(ADD))
        client.apply(change.stage(CHANGE))
        if change.stage(DELETE):
            self._delete(client, change)

    def left_over(
        self, client: Client, change: BackendChange, now: Found
    ) -> tuple[BackendChange, list[Step]]:
        again, left = super().left_over(client, change, now)
        if any(step.command.startswith("enable dynamic-cookie ") for step in left):
            name = self.desired.backend
            try:
                client.apply([Step(CHANGE, f"disable dynamic-cookie backend {name}")])
                end = "they were disabled again"
            except Error as exc:
                end = f"they could not be disabled again: {exc}"
            raise Error(
                f"dynamic cookies were enabled for the backend {name} at {client.where}, but its "
                f"servers got none, because it has no key: give dynamic_cookie_key; {end}"
            )
        return again, left

    def _delete(self, client: Client, change: BackendChange) -> None:
        name = self.desired.backend
        unpublish, (step,) = change.stage(UNPUBLISH), change.stage(DELETE)
        timeout, process = self.desired.wait_timeout, process_of(client)
        before = len(client.applied)
        try:
            client.apply(unpublish)
            if delete_when_free(client, step, _BUSY, f"be-removable {name}", timeout):
                return
            raise WaitError(
                f"after {timeout:g} s the backend {name} at {client.where} still has streams, so "
                "HAProxy does not delete it"
            )
        except (CommandError, SocketError, WaitError) as exc:
            touched = len(client.applied) > before or bool(exc.details.get("unknown"))
            left = "it is as it was"
            if unpublish and touched:
                left = self._publish_again(client, process)
            raise failed_again(exc, left) from None

    def _publish_again(self, client: Client, process: str) -> str:
        """Undo what preceded the deletion; the result completes the sentence."""
        try:
            # The connection may have been lost, and another process may answer now.
            if process_of(client) != process:
                return "HAProxy was restarted meanwhile, so it is as the configuration says"
            client.apply([_publish(self.desired.backend, on=True)])
        except Error as exc:
            return f"it may be unpublished, and could not be published again: {exc}"
        return "it was published again"
