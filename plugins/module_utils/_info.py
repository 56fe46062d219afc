# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: what HAProxy tells about itself to typed data, or ParseError. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import ParseError

Row = dict[str, t.Any]

_INFO = "show info"
_PEERS = "show peers"
_RESOLVERS = "show resolvers"
_SESSIONS = "show sess"
_ERRORS = "show errors"

# What looks like a number in some of these is none.
_INFO_TEXTS = {"Name", "Version", "Release_date", "Uptime", "node", "description", "Build info"}
_INFO_SWITCHES = {"Stopping", "BusyPolling"}
_STAT_TEXTS = {
    "pxname",
    "svname",
    "status",
    "tracked",
    "check_status",
    "last_chk",
    "last_agt",
    "agent_status",
    "check_desc",
    "agent_desc",
    "addr",
    "cookie",
    "mode",
    "algo",
    "proto",
}
_STAT_TYPES = {"0": "frontend", "1": "backend", "2": "server", "3": "listener"}
_UNPUBLISHED = "(UNPUB)"

_POINTER = r"0x[0-9a-f]{1,16}"
_SECTION = re.compile(rf"{_POINTER}: \[[^\]]*\] id=(\S+)( .*)?", re.ASCII)
_PEER = re.compile(rf"  {_POINTER}: id=(\S+)\((local|remote),(\w+)\) addr=(\S+)( .*)?", re.ASCII)
_PEER_TABLE = re.compile(rf"\s+table:{_POINTER} id=(\S+) .*", re.ASCII)
_SESSION = re.compile(rf"({_POINTER}): (proto=.*)", re.ASCII)
_ERROR = re.compile(
    r"\[([^\]]+)\] (frontend|backend) (\S+) \(#-?[0-9]{1,12}\): (.*)", re.ASCII | re.S
)
_ERROR_WHERE = re.compile(
    r"  (?:frontend|backend) (\S+) \(#-?[0-9]{1,12}\), server (\S+) \(#-?[0-9]{1,12}\), "
    r"event #([0-9]{1,12}), src (.*)",
    re.ASCII,
)
_DURATION = re.compile(r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?")


def process(text: str) -> Row:
    """`show info`: everything by HAProxy's own names."""
    found: Row = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        name, sep, value = line.partition(":")
        if not sep:
            raise ParseError(_INFO, "not 'name: value'", line=line)
        value = value.strip()
        found[name] = value if name in _INFO_TEXTS else _typed(value)
        if name in _INFO_SWITCHES and found[name] in (0, 1):
            found[name] = found[name] == 1
    if "Version" not in found:
        raise ParseError(_INFO, "no version")
    return found


def stats(rows: c.Iterable[c.Mapping[str, str]]) -> list[Row]:
    """Rows of `show stat`, by HAProxy's own names; None where it tells nothing."""
    found = []
    for row in rows:
        typed: Row = {
            # One column stands between HAProxy's own and those of its modules.
            name: (value or None) if name in _STAT_TEXTS else _typed(value)
            for name, value in row.items()
            if name not in ("", "-")
        }
        typed["type"] = _STAT_TYPES.get(row["type"], row["type"])
        found.append(typed)
    return found


def backends(
    names: c.Iterable[str], rows: c.Iterable[c.Mapping[str, str]], version: tuple[int, int]
) -> list[Row]:
    """Backends by `show backend`, with what `show stat` tells of those that are not disabled."""
    can_unpublish = version >= (3, 4)
    row_of = {row["pxname"]: row for row in stats(rows) if row["type"] == "backend"}
    found = []
    for name in names:
        row = row_of.get(name, {})
        status = row.get("status")
        found.append(
            {
                "name": name,
                "id": row.get("iid"),
                # HAProxy gives no statistics of it.
                "disabled": not row,
                "up": None if status is None else str(status).startswith("UP"),
                "published": _UNPUBLISHED not in str(status) if status and can_unpublish else None,
                "mode": row.get("mode"),
                "balance": row.get("algo"),
                "cookie": row.get("cookie"),
                "weight": row.get("weight"),
                "active_servers": row.get("act"),
                "backup_servers": row.get("bck"),
                "streams": row.get("scur"),
                "queued": row.get("qcur"),
                "sessions": row.get("stot"),
                "bytes_in": row.get("bin"),
                "bytes_out": row.get("bout"),
                "last_change": row.get("lastchg"),
            }
        )
    return found


def sessions(text: str) -> list[Row]:
    """`show sess`: the streams, except those of HAProxy's own sockets."""
    found = []
    for line in text.splitlines():
        if not line.strip():
            continue
        match = _SESSION.fullmatch(line)
        if match is None:
            raise ParseError(_SESSIONS, "not a session", line=line)
        values = _values(match[2])
        if values.get("fe") == "GLOBAL":
            continue
        found.append(
            {
                "id": match[1],
                "protocol": _named(values.get("proto")),
                "source": _named(values.get("src")),
                "frontend": _named(values.get("fe")),
                "backend": _named(values.get("be")),
                "server": _named(values.get("srv")),
                "age": _seconds(values.get("age")),
                "expires": _seconds(values.get("exp")),
            }
        )
    return found


def errors(text: str) -> list[Row]:
    """`show errors`: the last invalid request and response of each proxy."""
    lines = text.splitlines()
    if not lines or not lines[0].startswith("Total events captured on "):
        raise ParseError(_ERRORS, "no header", line=lines[0] if lines else "")
    found: list[Row] = []
    for line in lines[1:]:
        if line.startswith("["):
            match = _ERROR.fullmatch(line)
            if match is None:
                raise ParseError(_ERRORS, "not an event", line=line)
            # A request is the frontend's fault, a response the backend's.
            found.append(
                {
                    "time": match[1],
                    "frontend": match[3] if match[2] == "frontend" else None,
                    "backend": match[3] if match[2] == "backend" else None,
                    "server": None,
                    "problem": match[4],
                    "event": None,
                    "source": None,
                    "lines": [],
                }
            )
        elif found:
            found[-1]["lines"].append(line)
            where = _ERROR_WHERE.fullmatch(line)
            if where is not None and found[-1]["event"] is None:
                other = "backend" if found[-1]["backend"] is None else "frontend"
                found[-1][other] = _named(where[1])
                found[-1]["server"] = _named(where[2])
                found[-1]["event"] = int(where[3])
                found[-1]["source"] = _named(where[4])
        elif line.strip():
            raise ParseError(_ERRORS, "not an event", line=line)
    for event in found:
        while event["lines"] and not event["lines"][-1].strip():
            event["lines"].pop()
    return found


def peers(text: str) -> list[Row]:
    """`show peers`: the sections with their peers."""
    found: list[Row] = []
    for line in text.splitlines():
        if line.startswith("0x"):
            match = _SECTION.fullmatch(line)
            if match is None:
                raise ParseError(_PEERS, "not a section", line=line)
            # HAProxy 2.2 tells a state instead, which is not 0 for a section that is disabled.
            values = _values(match[2] or "")
            disabled = values.get("disabled", values.get("state"))
            found.append({"name": match[1], "disabled": disabled != "0", "peers": []})
        elif re.match(r"  0x", line):
            match = _PEER.fullmatch(line)
            if match is None or not found:
                raise ParseError(_PEERS, "not a peer", line=line)
            found[-1]["peers"].append(
                {
                    "name": match[1],
                    "local": match[2] == "local",
                    "active": match[3] == "active",
                    "address": match[4],
                    "last_status": None,
                    "app_state": None,
                    "learn_state": None,
                    "new_conn": None,
                    "proto_err": None,
                    "tables": [],
                }
            )
            _peer_values(found[-1]["peers"][-1], match[5] or "")
        elif line.strip() and not line.startswith(" "):
            raise ParseError(_PEERS, "neither section nor peer", line=line)
        elif found and found[-1]["peers"]:
            table = _PEER_TABLE.fullmatch(line)
            if table is not None:
                found[-1]["peers"][-1]["tables"].append(table[1])
            elif line.startswith(" " * 8 + "reconnect="):
                _peer_values(found[-1]["peers"][-1], line)
    return found


def _peer_values(peer: Row, text: str) -> None:
    for name, value in _values(text).items():
        if name in ("last_status", "app_state", "learn_state"):
            peer[name] = value
        elif name in ("new_conn", "proto_err"):
            peer[name] = _typed(value)


def resolvers(text: str) -> list[Row]:
    """`show resolvers`: the sections with the counters of their name servers."""
    found: list[Row] = []
    for line in text.splitlines():
        section = re.fullmatch(r"Resolvers section (\S+)", line.rstrip())
        server = re.fullmatch(r" nameserver (\S+):", line.rstrip())
        counter = re.fullmatch(r"  ([a-z_]{1,40}): +([0-9]{1,20})", line.rstrip(), re.ASCII)
        if section is not None:
            found.append({"name": section[1], "nameservers": []})
        elif server is not None and found:
            found[-1]["nameservers"].append({"name": server[1], "counters": {}})
        elif counter is not None and found and found[-1]["nameservers"]:
            found[-1]["nameservers"][-1]["counters"][counter[1]] = int(counter[2])
        elif line.strip() and line.strip() != "No resolvers found":
            raise ParseError(_RESOLVERS, "neither section, name server nor counter", line=line)
    return found


def certificate(text: str) -> Row:
    """`show ssl cert NAME`: what it says about the certificate to people."""
    said: dict[str, str] = {}
    for line in text.splitlines():
        name, _sep, value = line.partition(": ")
        said.setdefault(name, value.strip())
    names = said.get("Subject Alternative Name", "")
    return {
        "subject": said.get("Subject") or None,
        "issuer": said.get("Issuer") or None,
        "serial": said.get("Serial") or None,
        "algorithm": said.get("Algorithm") or None,
        "alternative_names": [name.strip() for name in names.split(",") if name.strip()],
    }


def ids(rows: c.Iterable[c.Mapping[str, str]]) -> dict[str, int]:
    """HAProxy's numbers of the backends in `show stat`."""
    found = {}
    for row in stats(rows):
        if row["type"] == "backend" and isinstance(row.get("iid"), int):
            found[row["pxname"] or ""] = row["iid"]
    return found


def _values(text: str) -> dict[str, str]:
    return dict(re.findall(r"(?:^| )([a-z_0-9]+)=(\S*)", text))


def _named(text: str | None) -> str | None:
    """A name, or None for HAProxy's words for none."""
    return None if not text or text in ("?", "<NONE>", "<none>") else text


def _typed(text: str) -> t.Any:
    """A number where HAProxy writes one; None where it writes nothing."""
    if not text:
        return None
    if re.fullmatch(r"-?[0-9]{1,20}", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"-?[0-9]{1,20}\.[0-9]{1,20}", text, re.ASCII):
        return float(text)
    return text


def _seconds(text: str | None) -> int | None:
    """HAProxy's durations such as `58s` and `1m30s`; None if there is none."""
    match = _DURATION.fullmatch(text) if text else None
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
