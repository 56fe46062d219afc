# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How HAProxy remembers which clients belong to a server. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _parse, _table
from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import Client
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import Step
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_desired import Desired
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_model import (
    DRAIN,
    Server,
    backend_ids,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_plan import Key, Target


def _named(entries: c.Iterable[_table.Entry]) -> list[_table.Entry]:
    """HAProxy 2.2 calls the server's key server_name, and follows it before the id all the same."""
    return [
        dataclasses.replace(entry, data={"server_key": entry.data["server_name"], **entry.data})
        if "server_name" in entry.data
        else entry
        for entry in entries
    ]


class Memory:
    """How one HAProxy remembers which clients belong to a server."""

    def __init__(self, client: Client, snapshot: c.Sequence[Server]) -> None:
        self._client = client
        self._snapshot = snapshot
        self.tables: dict[str, list[str]] = {}
        self.forgotten: list[dict[str, t.Any]] = []
        self.pinning: list[dict[str, t.Any]] = []

    def look(self, targets: c.Sequence[Target], desired: Desired) -> dict[Key, list[Step]]:
        """What makes the tables forget the clients of each server that is taken out."""
        out = [target.server for target in targets if target.wanted.out]
        if not out:
            return {}
        known = _table.tables(self._client.read(_table.SHOW))
        for backend in {server.backend for server in out}:
            self.tables[backend] = [table.name for table in _table.tables_of(known, backend)]
        steps = self.steps(out)
        drained = [
            target.server
            for target in targets
            if target.wanted.state == DRAIN or (target.wanted.out and desired.drain_first)
        ]
        self._look_at_cookies(drained)
        self._look_elsewhere(known, out)
        return steps

    def steps(self, servers: c.Sequence[Server]) -> dict[Key, list[Step]]:
        """The commands that are needed now, and how many entries they remove."""
        found: dict[Key, list[Step]] = {}
        self.forgotten = []
        for backend in sorted({server.backend for server in servers}):
            for name in self.tables.get(backend, ()):
                table, entries = _table.contents(self._client.read(_table.show(name)))
                if table is None or not entries:
                    continue
                entries = _named(entries)
                for server in servers:
                    if server.backend != backend:
                        continue
                    others = [
                        other
                        for other in self._snapshot
                        if other.backend == backend and other.name != server.name
                    ]
                    pinned = _table.pinned(entries, server, others)
                    if pinned:
                        found.setdefault(server.key, []).extend(
                            _table.forget_steps(table, entries, server, others)
                        )
                        self.forgotten.append(
                            {
                                "socket": self._client.socket,
                                "backend": backend,
                                "server": server.name,
                                "table": name,
                                "entries": len(pinned),
                            }
                        )
        return found

    def _look_at_cookies(self, drained: c.Sequence[Server]) -> None:
        if not drained:
            return
        backends = backend_ids(drained)
        cookies = _parse.cookies(self._client.stat(backends, what=6))
        for server in drained:
            if server.key in cookies:
                name, value = cookies[server.key]
                self._pins(server, "cookie", f"{name}={value}")

    def _look_elsewhere(self, known: c.Sequence[_table.Table], out: c.Sequence[Server]) -> None:
        """Tables that no backend owns; which backends use them, HAProxy does not tell."""
        owned = set(_parse.backends(self._client.read("show backend")))
        for table in known:
            if table.name in owned or not table.used:
                continue
            for server in out:
                reply = self._client.read(
                    f"{_table.show(table.name)} data.server_id eq {server.id}"
                )
                if not reply.lstrip().startswith("# table:"):
                    # It does not remember servers.
                    break
                _header, entries = _table.contents(reply)
                own = _table.server_keys(server)
                if any(entry.server_key in own for entry in _named(entries)):
                    self._pins(server, "table", table.name)

    def _pins(self, server: Server, kind: str, name: str) -> None:
        self.pinning.append(
            {
                "socket": self._client.socket,
                "backend": server.backend,
                "server": server.name,
                "kind": kind,
                "name": name,
            }
        )
