#!/usr/bin/python3
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Carry the states that somebody set at run time from HAProxy's worker to the next one, through its server-state-file.

haproxy_server_states.py reload FILE CONFIG [OPTION…]   by the unit before a reload: OPTIONs are HAProxy's, with -S the master's socket
haproxy_server_states.py start FILE                     by the unit before a start: what is in the file is of another time
haproxy_server_states.py save JSON                      by a role, which wants to know whether it worked

A file that save has marked (C(keep)) survives one start, and one reload that cannot ask the worker.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import typing as t

CALL_SECONDS = 5.0
# A state file that says nothing: the version of the format and no server.
NOTHING = "1\n"
# HAProxy passes over lines that begin so.
KEEP = "# kept for the next process\n"
# "show servers state", version 1: 4 names, then the fields that a state file must have. What follows
# (TLS, check address and port, agent) would override a changed configuration and is left out.
STATE_FIELDS = 20
PORT_FIELD = 18


def save(options: dict[str, t.Any]) -> dict[str, t.Any]:
    """Write the states that an operator set at run time, for the next worker to load.

    With C(previous), the configuration that was replaced, the worker that runs has the sockets of that one. A
    configuration without a socket has no states that anybody set.
    """
    before = options.get("previous", "")
    try:
        paths = _sockets(before) if before else [options["socket"]]
        if not paths:
            return {"saved": [], "error": ""}
        answer, error = _states(paths, "")
        return {"saved": [], "error": error} if error else _save(answer, options)
    except OSError as error:
        return {"saved": [], "error": str(error)}


def reload(path: str, config: str, *words: str) -> str:
    """Save through the master's socket; the reason if that fails, and then no older state is left."""
    socket_path = next((value for word, value in zip(words, words[1:]) if word == "-S"), "")
    try:
        answer, error = (
            _states([socket_path.split(",")[0]], "@1 ")
            if socket_path
            else ("", "HAProxy is started without a master's socket (-S)")
        )
        if not error:
            _save(answer, {"file": path, "config": config})
    except OSError as problem:
        error = str(problem)
    if error:
        start(path)
    return error


def start(path: str) -> str:
    """Forget what is in the file, unless it was marked for this start."""
    _write(path, _read(path).replace(KEEP, "") if KEEP in _read(path) else NOTHING)
    return ""


def _states(paths: list[str], prefix: str) -> tuple[str, str]:
    """Return the answer of the first socket that tells the states, else why none does."""
    errors = []
    for path in paths:
        try:
            answer = _ask(path, f"{prefix}show servers state")
        except OSError as error:
            errors.append(f"{path}: {error}")
            continue
        if answer.split("\n", 1)[0] == "1":  # the version of the format
            return answer, ""
        errors.append(f"{path}: {answer.strip() or 'an empty answer'}")
    return "", "; ".join(errors)


def _save(answer: str, options: dict[str, t.Any]) -> dict[str, t.Any]:
    ports = _ports(options["config"])
    lines, saved = [], []
    for line in answer.splitlines()[1:]:
        fields = line.split()
        if line.startswith("#") or len(fields) < STATE_FIELDS:
            continue
        # forced maintenance or drain, or another weight than configured
        if not int(fields[6]) & (0x01 | 0x08) and fields[7] == fields[8]:
            continue
        name = fields[1] + "/" + fields[3]
        fields[PORT_FIELD] = str(ports.get(name, fields[PORT_FIELD]))
        lines.append(" ".join(fields[:STATE_FIELDS]) + "\n")
        saved.append(name)
    keep = KEEP if options.get("keep") else ""
    _write(options["file"], "".join([NOTHING, keep, *lines]))
    return {"saved": saved, "error": ""}


def _ports(path: str) -> dict[str, str]:
    """Return the port of every server line of a configuration, by backend/server: HAProxy takes ports from a state file."""
    paths = [path]
    if os.path.isdir(path):
        paths = [f"{path}/{name}" for name in sorted(os.listdir(path)) if name.endswith(".cfg")]
    found: dict[str, str] = {}
    section = ""
    for line in "".join(_read(each) for each in paths).splitlines():
        words = line.split()
        if line[:1].isalpha() and words:
            section = words[1] if words[0] in ("backend", "listen") and len(words) > 1 else ""
        elif section and len(words) > 2 and words[0] == "server":
            port = words[2].rpartition(":")[2]
            if port.isdigit():
                found[f"{section}/{words[1]}"] = port
    return found


def _sockets(path: str) -> list[str]:
    """Return the paths of the unix sockets for commands that a configuration names."""
    found: list[str] = []
    for line in _read(path).splitlines():
        words = line.split()
        if words[:2] == ["stats", "socket"] and len(words) > 2:
            name = words[2][5:] if words[2].startswith("unix@") else words[2]
            if name.startswith("/"):
                found.append(name)
    return found


def _ask(path: str, command: str) -> str:
    """Send one command and return its answer, which ends with an empty line; a master leaves the connection open."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(CALL_SECONDS)
        client.connect(path)
        client.sendall(command.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n\n"):
            part = client.recv(65536)
            if not part:
                break
            answer += part
        return answer.decode(errors="replace")


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as source:
            return source.read()
    except FileNotFoundError:
        return ""


def _write(path: str, text: str) -> None:
    """Whole or not at all, readable by whomever HAProxy starts as."""
    with open(f"{path}.new", "w", encoding="ascii") as target:
        os.fchmod(target.fileno(), 0o644)
        target.write(text)
    os.replace(f"{path}.new", path)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "save":
        print(json.dumps(save(json.loads(arguments[0]))))
    else:
        said = {"reload": reload, "start": start}[command](*arguments)
        sys.exit(f"the servers' states are not kept: {said}" if said else 0)
