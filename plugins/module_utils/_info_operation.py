# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what a task asks for at each HAProxy. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import fnmatch
import functools
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _certificate,
    _frontend,
    _info,
    _map,
    _parse,
    _table,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import Client
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import near, word
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    CommandError,
    InputError,
    LevelError,
    NotFoundError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_model import Server

ALL = "all"
SUBSETS = (
    "process",
    "backends",
    "frontends",
    "servers",
    "stats",
    "stick_tables",
    "sessions",
    "errors",
    "certificates",
    "maps",
    "acls",
    "peers",
    "resolvers",
)
DEFAULT = ["process", "backends", "frontends", "servers"]

_LEVELS = ("user", "operator", "admin")
_OPERATORS = {"stick_tables", "sessions", "errors", "certificates"}
_PATTERNS = {"maps", "acls"}
# HAProxy 3.4 and later tell maps and ACLs to level admin only.
_PATTERNS_OF_ADMIN = (3, 4)
# From so many backends on, one unfiltered read is cheaper than many filtered ones.
_MANY = 8

_FILTERED = {
    "backend": {"backends", "servers", "stats", "sessions", "errors"},
    "server": {"servers", "stats", "sessions"},
}

Row = dict[str, t.Any]


def needed_level(subset: str, version: tuple[int, int]) -> str:
    """The least level at which HAProxy tells a subset."""
    if subset in _PATTERNS and version >= _PATTERNS_OF_ADMIN:
        return "admin"
    return "operator" if subset in _OPERATORS else "user"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a task asks for. Patterns as None mean everything."""

    subsets: tuple[str, ...]
    # Whether each subset was named; if not, one that cannot be read is left out, and named as such.
    named: bool
    backend: tuple[str, ...] | None = None
    server: tuple[str, ...] | None = None

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> Wanted:
        gather = params["gather"]
        given = set(SUBSETS) if ALL in gather else set(gather)
        if not gather:
            raise InputError(f"gather: the list is empty; name any of {', '.join(SUBSETS)}")
        if ALL in gather and len(gather) > 1:
            raise InputError("gather: all goes alone")
        for option in ("backend", "server"):
            names = params[option]
            if names is not None and (not names or not all(names)):
                raise InputError(f"{option}: empty; name at least one, or leave the option out")
        for option, subsets in _FILTERED.items():
            if params[option] is not None and not subsets & given:
                raise InputError(
                    f"{option}: limits {', '.join(sorted(subsets))} only, and none of them is gathered"
                )
        return cls(
            tuple(name for name in SUBSETS if name in given),
            ALL not in gather,
            None if params["backend"] is None else tuple(params["backend"]),
            None if params["server"] is None else tuple(params["server"]),
        )


def gather(clients: c.Sequence[Client], wanted: Wanted) -> dict[str, list[Row]]:
    """Every subset as a list of records, each with its socket, and what had to be left out."""
    found: dict[str, list[Row]] = {subset: [] for subset in wanted.subsets}
    omitted: list[Row] = []
    for client in clients:
        reader = _Reader(client, wanted)
        missing = reader.out_of_reach()
        for subset in wanted.subsets:
            if subset in missing:
                omitted.append(
                    {"socket": client.socket, "subset": subset, "reason": missing[subset]}
                )
            else:
                records = getattr(reader, subset)()
                found[subset] += [{"socket": client.socket, **record} for record in records]
    return {**found, "omitted": omitted}


class _Reader:
    """One conversation; what several subsets need is read once."""

    def __init__(self, client: Client, wanted: Wanted) -> None:
        self._client = client
        self._wanted = wanted
        self._read: dict[str, str] = {}

    def _ask(self, command: str) -> str:
        if command not in self._read:
            self._read[command] = self._client.read(command)
        return self._read[command]

    def out_of_reach(self) -> dict[str, str]:
        """Which subsets cannot be read here, and why; fails if they were named."""
        level = self._client.level()
        version = _parse.version(self._ask("show info"))
        missing = {}
        for subset in self._wanted.subsets:
            needed = needed_level(subset, version)
            if _LEVELS.index(level) < _LEVELS.index(needed):
                reason = f"the socket has level {level}, but this needs level {needed}"
                if self._wanted.named:
                    raise LevelError(
                        f"gather: {subset} cannot be read at {self._client.where}: {reason}; name "
                        "a socket that has it, or say 'all' for what can be read",
                        socket=self._client.socket,
                        level=level,
                    )
                missing[subset] = reason
            elif subset == "certificates" and not self._has_certificates():
                reason = "this HAProxy was built without TLS"
                if self._wanted.named:
                    raise CommandError(
                        f"gather: certificates cannot be read at {self._client.where}: {reason}"
                    )
                missing[subset] = reason
        return missing

    def _has_certificates(self) -> bool:
        return not self._ask("show ssl cert").startswith("Unknown command")

    # --- subsets, by their names ---------------------------------------------------------------

    def process(self) -> list[Row]:
        return [_info.process(self._ask("show info"))]

    def backends(self) -> list[Row]:
        version = _parse.version(self._ask("show info"))
        found = _info.backends(self._backend_names, self._backend_rows, version)
        return self._chosen(found, "name")

    def frontends(self) -> list[Row]:
        version = _frontend.version_of(self._ask("show info"))
        found = _frontend.frontends(self._ask("show stat -1 1 -1"), version)
        return [dataclasses.asdict(frontend) for frontend in found]

    def servers(self) -> list[Row]:
        chosen = self._chosen_servers()
        found = [server for server in self._servers if chosen is None or server.key in chosen]
        if "stats" in self._wanted.subsets:
            limits = _parse.maxconns(self._stat_rows)
            found = [server.with_changes(maxconn=limits.get(server.key)) for server in found]
        return [server.as_dict() for server in found]

    def stats(self) -> list[Row]:
        found, chosen = _info.stats(self._stat_rows), self._chosen_servers()
        if chosen is None:
            return found
        return [
            row
            for row in found
            if row["type"] == "server" and (row["pxname"], row["svname"]) in chosen
        ]

    def stick_tables(self) -> list[Row]:
        found = []
        for table in _table.tables(self._ask(_table.SHOW)):
            _now, entries = _table.contents(self._ask(_table.show(table.name)))
            found.append(
                {
                    **dataclasses.asdict(table),
                    "entries": [
                        {
                            "key": entry.shown,
                            "use": entry.use,
                            "expires": entry.expires,
                            "data": entry.data,
                            "periods": entry.periods,
                        }
                        for entry in entries
                    ],
                }
            )
        return found

    def sessions(self) -> list[Row]:
        found = self._chosen(_info.sessions(self._ask("show sess")), "backend")
        chosen = self._chosen_servers()
        if chosen is None:
            return found
        return [row for row in found if (row["backend"], row["server"]) in chosen]

    def errors(self) -> list[Row]:
        return self._chosen(_info.errors(self._ask("show errors")), "backend")

    def certificates(self) -> list[Row]:
        kind = _certificate.KINDS["certificate"]
        listed = _certificate.parse_listing(self._ask("show ssl cert"), kind)
        found = []
        for name in listed.names:
            text = self._ask(f"show ssl cert {word(name)}")
            status, content = _certificate.parse_content(text, kind)
            leaf = content.certificates[:1]
            found.append(
                {
                    "name": name,
                    "pending": name == listed.pending,
                    "status": status,
                    "fingerprint": leaf[0].fingerprint if leaf else None,
                    "not_after": leaf[0].not_after if leaf else None,
                    **_info.certificate(text),
                }
            )
        return found

    def maps(self) -> list[Row]:
        return self._lists(_map.MAP)

    def acls(self) -> list[Row]:
        return self._lists(_map.ACL)

    def _lists(self, kind: str) -> list[Row]:
        found = []
        for listed in _map.listing(kind, self._ask(f"show {kind}")):
            # By number: patterns that are written in the configuration have no name.
            entries = _map.contents(kind, self._ask(f"show {kind} #{listed.id}"))
            shown: list[t.Any] = [entry.key for entry in entries]
            if kind == _map.MAP:
                shown = [{"key": entry.key, "value": entry.value} for entry in entries]
            found.append({"id": listed.id, "name": listed.name or None, "entries": shown})
        return found

    def peers(self) -> list[Row]:
        return _info.peers(self._ask("show peers"))

    def resolvers(self) -> list[Row]:
        return _info.resolvers(self._ask("show resolvers"))

    # --- what several subsets need, and filters ------------------------------------------------

    @functools.cached_property
    def _backend_names(self) -> list[str]:
        return _parse.backends(self._ask("show backend"))

    @functools.cached_property
    def _backend_rows(self) -> list[dict[str, str]]:
        return _parse.stat(self._ask("show stat -1 2 -1"))

    @functools.cached_property
    def _servers(self) -> list[Server]:
        """Those of the chosen backends."""
        names = self._chosen_backends
        if names is None:
            return self._client.servers(None)
        return list(self._client.servers_of(names).values())

    @functools.cached_property
    def _stat_rows(self) -> list[dict[str, str]]:
        """Of everything, or of the chosen backends and their servers."""
        names = self._chosen_backends
        if names is None:
            return _parse.stat(self._ask("show stat"))
        numbers = _info.ids(self._backend_rows)
        # By numbers: a name may be a frontend's too, or look like a number.
        commands = [f"show stat #{numbers[name]} 6 -1" for name in sorted(names & {*numbers})]
        if len(names) > _MANY:
            commands = ["show stat -1 6 -1"]
        rows = [row for command in commands for row in _parse.stat(self._ask(command))]
        return [row for row in rows if row["pxname"] in names]

    @functools.cached_property
    def _chosen_backends(self) -> set[str] | None:
        if self._wanted.backend is None:
            return None
        return _matching(self._wanted.backend, self._backend_names, "backend", self._client)

    def _chosen_servers(self) -> set[tuple[str, str]] | None:
        if self._wanted.server is None:
            return None
        known = {server.name for server in self._servers}
        names = _matching(self._wanted.server, known, "server", self._client)
        return {server.key for server in self._servers if server.name in names}

    def _chosen(self, rows: list[Row], name: str) -> list[Row]:
        names = self._chosen_backends
        return [row for row in rows if names is None or row[name] in names]


def _matching(
    patterns: c.Iterable[str], known: c.Collection[str], what: str, client: Client
) -> set[str]:
    """The names that are meant; each pattern must match, and a name wins over its meaning as one."""
    found: set[str] = set()
    for pattern in patterns:
        names = [pattern] if pattern in known else fnmatch.filter(known, pattern)
        if not names:
            raise NotFoundError(
                f"HAProxy at {client.where} has no {what} {pattern!r}; {near(pattern, known)}",
                socket=client.socket,
            )
        found.update(names)
    return found
