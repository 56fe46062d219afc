# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: text of HAProxy's replies to typed data, or ParseError. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import csv
import io
import itertools
import operator
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import ParseError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_model import (
    Check,
    Server,
    Traffic,
    check_target,
    operational,
)

_STATE = "show servers state"
_STAT = "show stat"
_CONN = "show servers conn"
_STATE_COLUMNS = (
    "be_name",
    "srv_name",
    "srv_addr",
    "srv_fqdn",
    "srvrecord",
    # Signed: the clock may have been set back, and a failed check counts below zero.
    "srv_time_since_last_change",
    "srv_check_health",
    # All further ones are numbers of at least 0.
    "be_id",
    "srv_id",
    "srv_port",
    "srv_admin_state",
    "srv_op_state",
    "srv_uweight",
    "srv_iweight",
    "srv_check_state",
    "srv_agent_state",
)
# Since HAProxy 2.4.
_NEWER_COLUMNS = (
    "srv_check_port",
    "srv_agent_port",
    "srv_use_ssl",
    "srv_check_addr",
    "srv_agent_addr",
)
_NOT_TOLD = dict.fromkeys(("ssl", "check_address", "check_port", "agent_address", "agent_port"))
# What a Server calls all of them.
_FIELDS = (
    "backend",
    "name",
    "address",
    "fqdn",
    "srv_record",
    "last_change",
    "check_health",
    "backend_id",
    "id",
    "port",
    "admin",
    "operational",
    "weight",
    "initial_weight",
    "check_state",
    "agent_state",
    "check_port",
    "agent_port",
    "ssl",
    "check_address",
    "agent_address",
    "maxconn",
)
# What tells which server it is, and whether it is in the wanted state.
_FIRST_COLUMNS = ("be_name", "srv_name", "srv_id", "srv_admin_state")
_LEVELS = ("user", "operator", "admin")


def level(text: str) -> str:
    """`show cli level`: user, operator or admin."""
    word = text.strip()
    if word not in _LEVELS:
        raise ParseError("show cli level", f"no such level: {word[:60]!r}")
    return word


def version(text: str) -> tuple[int, int]:
    """`show info`: HAProxy's major and minor version."""
    match = re.search(r"^Version: ([0-9]{1,3})\.([0-9]{1,3})", text, re.M | re.ASCII)
    if match is None:
        raise ParseError("show info", "no version")
    return int(match.group(1)), int(match.group(2))


def stopping(text: str) -> bool:
    """`show info`: whether this process only finishes what it has."""
    return re.search(r"^Stopping: 1$", text, re.M) is not None


def uptime(text: str) -> int:
    """`show info`: for how many seconds this process has run, rounded down."""
    match = re.search(r"^Uptime_sec: ([0-9]{1,12})$", text, re.M | re.ASCII)
    if match is None:
        raise ParseError("show info", "no uptime")
    return int(match.group(1))


def backends(text: str) -> list[str]:
    """`show backend`: the names, in HAProxy's order."""
    lines = [line.strip() for line in text.splitlines()]
    if not lines or not lines[0].startswith("#"):
        raise ParseError("show backend", "no header")
    return [line for line in lines[1:] if line]


def servers_state(text: str) -> list[Server]:
    """`show servers state`: one record a server, columns found by their names."""
    lines = text.splitlines()
    if len(lines) < 2 or lines[0].strip() != "1":
        raise ParseError(_STATE, "not format version 1", line=lines[0] if lines else "")
    if not lines[1].startswith("# "):
        raise ParseError(_STATE, "no header", line=lines[1])
    names = lines[1][2:].split()
    at = {name: index for index, name in enumerate(names)}
    try:
        wanted = [at[name] for name in _STATE_COLUMNS]
        if _NEWER_COLUMNS[0] in at:
            wanted += [at[name] for name in _NEWER_COLUMNS]
    except KeyError as exc:
        raise ParseError(_STATE, f"no column {exc.args[0]}", line=lines[1]) from None
    columns = _Columns(len(names), wanted)
    be_name, srv_name, srv_id, admin = (at[name] for name in _FIRST_COLUMNS)
    first = max(be_name, srv_name, srv_id, admin) + 1
    found = []
    for line in lines[2:]:
        row = line.split(None, first)
        if not row:
            continue
        try:
            backend, name = row[be_name], row[srv_name]
            known = {
                "backend": backend,
                "name": name,
                "key": (backend, name),
                "id": int(row[srv_id]),
                "admin": int(row[admin]),
                "_source": (columns, line),
            }
        except (ValueError, IndexError):
            raise ParseError(_STATE, "a number was expected", line=line) from None
        found.append(Server.read_later(known))
    if "MASTER" in text:
        return [server for server in found if not _own_connection(server)]
    return found


def _own_connection(server: Server) -> bool:
    """HAProxy 2.2's own connection to its master, which no command may touch."""
    if server.backend != "MASTER" or not server.name.startswith("cur-"):
        return False
    return server.address is None


class _Columns:
    """Where a line of `show servers state` has what."""

    def __init__(self, count: int, wanted: list[int]) -> None:
        self._count = count
        self._pick = operator.itemgetter(*wanted)
        self._newer = len(wanted) > len(_STATE_COLUMNS)

    def fields(self, lines: c.Sequence[str]) -> list[dict[str, t.Any]]:
        """Everything that a Server has, of many at once: column by column, it takes half the time."""
        rows = [line.split() for line in lines]
        for row, line in zip(rows, lines):
            if len(row) < self._count:
                problem = f"{len(row)} columns instead of {self._count}"
                raise ParseError(_STATE, problem, line=line)
        columns = list(zip(*map(self._pick, rows)))
        try:
            values: list[c.Iterable[t.Any]] = [
                *columns[:2],
                *(map(_text, column) for column in columns[2:5]),
                *(map(int, column) for column in columns[5:7]),
                *(_numbers(column) for column in columns[7:11]),
                map(operational, _numbers(columns[11])),
                *(_numbers(column) for column in columns[12:16]),
            ]
            if self._newer:
                check_port, agent_port, ssl, check, agent = columns[16:]
                values += [
                    _numbers(check_port),
                    _numbers(agent_port),
                    # -1 for `no-ssl`.
                    [int(word) > 0 for word in ssl],
                    map(_target, check),
                    map(_target, agent),
                ]
            else:
                values += [itertools.repeat(None)] * 5
            return [dict(zip(_FIELDS, row)) for row in zip(*values, itertools.repeat(None))]
        except (ValueError, IndexError):
            if len(lines) == 1:
                raise ParseError(_STATE, "a number was expected", line=lines[0]) from None
            return [self.fields([line])[0] for line in lines]


def _text(word: str) -> str | None:
    return None if word == "-" else word


def _target(text: str) -> str | None:
    return None if text == "-" else check_target(text)


def stat(text: str) -> list[dict[str, str]]:
    """`show stat`: one dictionary a row, by HAProxy's column names."""
    if not text.startswith("# "):
        raise ParseError(_STAT, "no header", line=text.split("\n", 1)[0])
    try:
        rows = list(csv.reader(io.StringIO(text[2:]), strict=True))
    except csv.Error as exc:
        raise ParseError(_STAT, str(exc)) from None
    header = rows[0]
    for name in ("pxname", "svname", "type", "scur", "qcur"):
        if name not in header:
            raise ParseError(_STAT, f"no column {name}", line=",".join(header))
    found = []
    for row in rows[1:]:
        if not row:
            continue
        if len(row) != len(header):
            raise ParseError(
                _STAT, f"{len(row)} columns instead of {len(header)}", line=",".join(row)
            )
        found.append(dict(zip(header, row)))
    return found


# Values of the type column.
_BACKEND_ROW = "1"
_SERVER_ROW = "2"


def streams(rows: list[dict[str, str]]) -> dict[tuple[str, str], tuple[int, int]]:
    """Current streams and queued requests of every server."""
    found = {}
    for row in rows:
        if row["type"] == _SERVER_ROW:
            found[row["pxname"], row["svname"]] = (
                _stat_number(row, "scur"),
                _stat_number(row, "qcur"),
            )
    return found


def checks(rows: list[dict[str, str]]) -> dict[tuple[str, str], Check]:
    """Rise, fall and the tracked server of every server; zeros where it has no checks."""
    found = {}
    for row in rows:
        if row["type"] == _SERVER_ROW:
            found[row["pxname"], row["svname"]] = Check(
                rise=_stat_number(row, "check_rise"),
                fall=_stat_number(row, "check_fall"),
                tracked=row.get("tracked", ""),
            )
    return found


def maxconns(rows: list[dict[str, str]]) -> dict[tuple[str, str], int]:
    """The most connections to every server; 0 where there is no limit."""
    return {
        (row["pxname"], row["svname"]): _stat_number(row, "slim")
        for row in rows
        if row["type"] == _SERVER_ROW
    }


def cookies(rows: list[dict[str, str]]) -> dict[tuple[str, str], tuple[str, str]]:
    """Name and value of the cookie that leads clients to a server, where there is one.

    Needs level operator; below it HAProxy leaves the column empty.
    """
    names = {row["pxname"]: row.get("cookie", "") for row in rows if row["type"] == _BACKEND_ROW}
    return {
        (row["pxname"], row["svname"]): (names.get(row["pxname"], ""), row["cookie"])
        for row in rows
        if row["type"] == _SERVER_ROW and row.get("cookie")
    }


def algorithms(rows: list[dict[str, str]]) -> dict[str, str]:
    """The balance algorithm of every backend; empty where the socket's level hides it."""
    return {row["pxname"]: row.get("algo", "") for row in rows if row["type"] == _BACKEND_ROW}


def servers_conn(text: str) -> dict[tuple[str, str], tuple[int, int]]:
    """`show servers conn`: connections in use and idle ones of every server."""
    lines = text.splitlines()
    if not lines or not lines[0].startswith("# "):
        raise ParseError(_CONN, "no header", line=lines[0] if lines else "")
    names = lines[0][2:].split()
    try:
        who, used, idle = (
            names.index("bkname/svname"),
            names.index("used_cur"),
            names.index("idle_cur"),
        )
    except ValueError:
        raise ParseError(_CONN, "a column is missing", line=lines[0]) from None
    found = {}
    for line in lines[1:]:
        row = line.split()
        if not row:
            continue
        backend, sep, server = row[who].partition("/")
        try:
            if not sep:
                raise ValueError
            found[backend, server] = (_number(row[used]), _number(row[idle]))
        except (ValueError, IndexError):
            raise ParseError(_CONN, "not a server's line", line=line) from None
    return found


def traffic(
    streams_of: dict[tuple[str, str], tuple[int, int]],
    connections_of: dict[tuple[str, str], tuple[int, int]],
) -> dict[tuple[str, str], Traffic]:
    """Both views of a server's traffic in one record."""
    found = {}
    for key, (current, queued) in streams_of.items():
        used, idle = connections_of.get(key, (0, 0))
        found[key] = Traffic(streams=current, queued=queued, used=used, idle=idle)
    return found


def _numbers(words: c.Sequence[str]) -> list[int]:
    # int() also takes signs, underscores and other alphabets' digits, which HAProxy never writes.
    all_of_them = "".join(words)
    if not (all_of_them.isascii() and all_of_them.isdigit()) or len(all_of_them) > 20 * len(words):
        raise ValueError(words)
    return list(map(int, words))


def _number(text: str) -> int:
    return _numbers([text])[0]


def _stat_number(row: dict[str, str], name: str) -> int:
    text = row.get(name, "")
    try:
        return _number(text) if text else 0
    except ValueError:
        raise ParseError(_STAT, f"{name} is not a number: {text[:60]!r}") from None
