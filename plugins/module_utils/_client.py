# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A HAProxy behind a socket: what it is, has and accepts. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import math
import re
import time

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _parse
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import (
    Command,
    Step,
    near,
    word,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    CommandError,
    LevelError,
    NotFoundError,
    SocketError,
    VersionError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_model import (
    Server,
    Traffic,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._transport import (
    BrokenOff,
    ClosedIdle,
    Connection,
)

_NO_BACKEND = "Can't find backend."
# From so many backends on, one unfiltered read is cheaper than many filtered ones.
_MANY_BACKENDS = 8
# HAProxy closes an idle connection after its `stats timeout`, 10 s if not configured.
SAFE_IDLE = 5.0
# HAProxy 3.0 and later end with a fatal error when this exceeds 2^31 ms, nearly 25 days.
_LONGEST_OPEN = 20 * 86400
_PID = re.compile(r"^Pid: [0-9]+$", re.M)
_LEVELS = ("user", "operator", "admin")

Key = tuple[str, str]


class Client:
    """HAProxy at one socket."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # Every command that changed something and was accepted, in order.
        self.applied: list[str] = []
        self._version: tuple[int, int] | None = None
        # What the process said about itself when it was first asked.
        self._info = ""

    @property
    def where(self) -> str:
        return str(self._connection.address)

    @property
    def socket(self) -> str:
        return self._connection.address.text

    def close(self) -> None:
        self._connection.close()

    def read(self, command: str, *, patience: float = 0.0) -> str:
        """One command that changes nothing. It may take `patience` seconds longer than others.

        While another HAProxy is waited for, this one may close the idle connection. Nothing is
        lost by that, if the process behind the socket is still the same.
        """
        try:
            return self._connection.exchange([command], patience=patience)[0]
        except ClosedIdle as exc:
            try:
                info = self._connection.exchange(["show info"])[0]
            except SocketError:
                raise exc from None
            if not self._is_same(info):
                raise self._reloaded() from None
            return self._connection.exchange([command], patience=patience)[0]

    def _is_same(self, info: str) -> bool:
        """Whether the process that says this is the one that the task began with."""
        known, now = _PID.search(self._info), _PID.search(info)
        if known is not None and now is not None:
            return known[0] == now[0]
        # Rounded down, so a second is granted.
        began = self._connection.began or 0.0
        return _parse.uptime(info) + 1 >= time.monotonic() - began

    def say(self, command: str | Command, patience: float = 0.0) -> str:
        """One command of any kind; what its reply means, and whether it counts, is the caller's.

        `patience` is what the reply may take longer than the timeout, in seconds.
        """
        return self._connection.exchange([command], patience=patience)[0]

    def level(self) -> str:
        """What the socket may do: user, operator or admin."""
        reply = self.read("show cli level")
        return "user" if reply.strip() == "Permission denied" else _parse.level(reply)

    def require_level(self, needed: str) -> None:
        """HAProxy refuses per command; asking once says it before anything was sent."""
        level = self.level()
        if _LEVELS.index(level) < _LEVELS.index(needed):
            raise LevelError(
                f"the socket {self.where} has level {level}, but this needs level {needed}: add "
                f"'level {needed}' to its 'stats socket' line and reload HAProxy, or name a socket "
                "that has it",
                socket=self.socket,
                level=level,
            )

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor version, asked once."""
        if self._version is None:
            self._info = self._info or self.read("show info")
            self._version = _parse.version(self._info)
        return self._version

    def require_version(self, since: tuple[int, int], what: str) -> None:
        """Say since which version something exists, where this HAProxy is older."""
        if self.version < since:
            raise VersionError(
                f"HAProxy at {self.where} has version {_dotted(self.version)}; {what} exists since "
                f"HAProxy {_dotted(since)}",
                socket=self.socket,
                version=_dotted(self.version),
                since=_dotted(since),
            )

    @property
    def is_master(self) -> bool:
        """Whether the conversation goes through HAProxy's master process."""
        return self._connection.address.master

    @property
    def timeout(self) -> float:
        """Seconds that HAProxy has for a reply."""
        return self._connection.timeout

    def require_current(self) -> None:
        """A process that was reloaded goes on talking, but its word is worth nothing any more."""
        if self._is_stopping():
            raise self._reloaded()

    def _is_stopping(self) -> bool:
        return _parse.stopping(self.read("show info"))

    def _reloaded(self) -> SocketError:
        return SocketError(
            f"HAProxy at {self.where} was reloaded or is being stopped, and this was said to the "
            "old process: run the task again to see what the new one has",
            socket=self.socket,
        )

    def keep_open(self, seconds: float) -> None:
        """Let this connection be idle for so long, whatever the configuration's `stats timeout`."""
        allowed = math.ceil(seconds + self._connection.timeout + SAFE_IDLE)
        self.read(f"set timeout cli {min(allowed, _LONGEST_OPEN)}")

    def servers(self, backend: str | None) -> list[Server]:
        """The servers of one backend, or of all."""
        if backend is None:
            return _parse.servers_state(self.read("show servers state"))
        reply = self.read(f"show servers state {word(backend)}")
        if reply.strip() == _NO_BACKEND:
            known = _parse.backends(self.read("show backend"))
            raise NotFoundError(
                f"HAProxy at {self.where} has no backend {backend!r}; {near(backend, known)}",
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
                    _parse.servers_conn(self.read(f"show servers conn {word(name)}"))
                )
        return _parse.traffic(streams, connections)

    def apply(
        self, steps: c.Sequence[Step], then: c.Sequence[str] = (), *, lockstep: bool = False
    ) -> list[str]:
        """Send the commands in one batch and check every reply; those to the steps come first.

        `then` are reads that go out in the same batch, right behind. Nothing more is sent behind a
        refused command; with `lockstep` nothing is on its way behind it either.
        """
        if not steps:
            return []
        sent = [*(step.wire for step in steps), *(Command(text) for text in then)]
        accepted: list[bool] = []

        def accept(_command: Command, reply: str) -> bool:
            index = len(accepted)
            accepted.append(index >= len(steps) or steps[index].accepts(reply))
            return accepted[-1]

        try:
            replies = self._connection.exchange(sent, accept=accept, lockstep=lockstep)
        except BrokenOff as exc:
            done = self._note(steps, accepted)
            started = min(exc.started, len(steps))
            unknown = [step.shown for step in steps[len(exc.replies) : started]]
            raise SocketError(
                f"{exc}; of {len(steps)} commands {len(done)} were carried out, "
                f"{len(unknown)} have an unknown outcome, {len(steps) - started} were not sent",
                **exc.details,
                applied=done,
                unknown=unknown,
                not_sent=[step.shown for step in steps[started:]],
            ) from None
        done = self._note(steps, accepted)
        refused = [
            (step.shown, reply) for step, reply, ok in zip(steps, replies, accepted) if not ok
        ]
        if refused:
            command, reply = refused[0]
            more = f" ({len(refused) - 1} more were refused)" if len(refused) > 1 else ""
            # A process that was replaced says that everything is disabled.
            old = ", which was reloaded or is being stopped," if self._is_stopping() else ""
            raise CommandError(
                f"HAProxy at {self.where}{old} refused '{command}': {one_line(reply)}{more}; of "
                f"{len(steps)} commands {len(done)} were carried out",
                refused=[{"command": cmd, "reply": text.strip()} for cmd, text in refused],
                applied=done,
                not_sent=[step.shown for step in steps[len(replies) :]],
                socket=self.socket,
            )
        return replies

    def _note(self, steps: c.Sequence[Step], accepted: c.Sequence[bool]) -> list[str]:
        done = [step.shown for step, ok in zip(steps, accepted) if ok]
        self.applied += done
        return done


def one_line(reply: str) -> str:
    """A reply inside a sentence; an empty one is a word too."""
    return " ".join(reply.split())[:300] or "(an empty reply)"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def state_reads(backends: c.Collection[str]) -> list[str]:
    """The commands that read the servers of these backends, which are known to exist."""
    if len(backends) > _MANY_BACKENDS:
        return ["show servers state"]
    return [f"show servers state {word(backend)}" for backend in sorted(backends)]
