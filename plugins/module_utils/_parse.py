# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: text of HAProxy's replies to typed data, or ParseError. Private to the collection."""

from __future__ import annotations

import csv
import io
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
    "be_id",
    "srv_name",
    "srv_id",
    "srv_addr",
    "srv_port",
    "srv_fqdn",
    "srv_op_state",
    "srv_admin_state",
    "srv_uweight",
    "srv_iweight",
    "srv_time_since_last_change",
    "srv_check_health",
    "srv_check_state",
    "srv_agent_state",
    "srvrecord",
)
# Since HAProxy 2.4.
_NEWER_COLUMNS = (
    "srv_use_ssl",
    "srv_check_addr",
    "srv_check_port",
    "srv_agent_addr",
    "srv_agent_port",
)
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
        newer = [at[name] for name in _NEWER_COLUMNS] if _NEWER_COLUMNS[0] in at else []
    except KeyError as exc:
        raise ParseError(_STATE, f"no column {exc.args[0]}", line=lines[1]) from None
    found = []
    for line in lines[2:]:
        row = line.split()
        if not row:
            continue
        if len(row) < len(names):
            raise ParseError(_STATE, f"{len(row)} columns instead of {len(names)}", line=line)
        (
            be,
            be_id,
            name,
            srv_id,
            addr,
            port,
            fqdn,
            op,
            adm,
            uw,
            iw,
            since,
            health,
            check,
            agent,
            srv,
        ) = (row[index] for index in wanted)
        # HAProxy 2.2's own connection to its master, which no command may touch.
        if (be, name[:4], addr) == ("MASTER", "cur-", "-"):
            continue
        try:
            found.append(
                Server(
                    backend=be,
                    backend_id=_number(be_id),
                    name=name,
                    id=_number(srv_id),
                    address=_text(addr),
                    port=_number(port),
                    fqdn=_text(fqdn),
                    operational=operational(_number(op)),
                    admin=_number(adm),
                    weight=_number(uw),
                    initial_weight=_number(iw),
                    last_change=int(since),
                    check_health=int(health),
                    check_state=_number(check),
                    agent_state=_number(agent),
                    srv_record=_text(srv),
                    **(_newer(*(row[index] for index in newer)) if newer else {}),
                )
            )
        except (ValueError, IndexError):
            raise ParseError(_STATE, "a number was expected", line=line) from None
    return found


def _newer(ssl: str, check: str, check_port: str, agent: str, agent_port: str) -> dict[str, t.Any]:
    return {
        # -1 for `no-ssl`.
        "ssl": int(ssl) > 0,
        "check_address": check_target(_text(check)),
        "check_port": _number(check_port),
        "agent_address": check_target(_text(agent)),
        "agent_port": _number(agent_port),
    }


def _text(word: str) -> str | None:
    return None if word == "-" else word


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


def _number(text: str) -> int:
    # int() also takes signs, underscores and other alphabets' digits, which HAProxy never writes.
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise ValueError(text)
    return int(text)


def _stat_number(row: dict[str, str], name: str) -> int:
    text = row.get(name, "")
    try:
        return _number(text) if text else 0
    except ValueError:
        raise ParseError(_STAT, f"{name} is not a number: {text[:60]!r}") from None
