# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role has to see on the host: listening sockets, HAProxy's processes and unit, server states.

Run as ``python haproxy_affinity_probe.py COMMAND JSON``; prints one JSON document.
Only ``save`` writes, and only the file it is told. It judges nothing: that is done where it can be
tested without a host.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import socket
import subprocess
import sys
import time
import typing as t

CALL_SECONDS = 5.0
# Start times are in clock ticks, file times in kernel ticks: closer than this they cannot be told apart.
CLOCK_SECONDS = 0.05
# Workers that start so close to each other were started together (nbproc).
TOGETHER_SECONDS = 0.05
# "show servers state", version 1: 4 names, then the fields that a state file must have. What follows
# (TLS, check address and port, agent) would override a changed configuration and is left out.
STATE_FIELDS = 20
PORT_FIELD = 18


def listeners(binds: list[dict[str, t.Any]]) -> list[dict[str, t.Any]]:
    """Return for each wanted address whether it is free and who listens there."""
    sockets = _listening()
    wanted = {bind["port"] for bind in binds}
    owners = _owners({entry["inode"] for entry in sockets if entry["port"] in wanted})
    answer = []
    for bind in binds:
        seen = [
            {
                "address": entry["address"],
                "port": entry["port"],
                **owners.get(entry["inode"], {"pid": 0, "command": "", "unit": ""}),
            }
            for entry in sockets
            if entry["port"] == bind["port"] and _overlap(entry["address"], bind["address"])
        ]
        answer.append(dict(bind, state=_try(bind["address"], bind["port"]), listeners=seen))
    return answer


def _try(address: str, port: int) -> str:
    """Ask the kernel by bind(2), without listen(2): it knows wildcards and IPv6-only sockets."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.bind((address, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return "busy"
        if error.errno == errno.EADDRNOTAVAIL:
            return "absent"
        return "unknown"
    return "free"


def _overlap(one: str, other: str) -> bool:
    """Tell whether two addresses can share clients; [::] may be dual-stack, so it overlaps with all."""
    return (
        one == other
        or "::" in (one, other)
        or ("0.0.0.0" in (one, other) and (":" in one) == (":" in other))
    )


def _listening() -> list[dict[str, t.Any]]:
    return [entry for entry in _tcp() if entry["state"] == "0A"]  # TCP_LISTEN


def _tcp() -> list[dict[str, t.Any]]:
    found = []
    for name, family, size in (("tcp", socket.AF_INET, 4), ("tcp6", socket.AF_INET6, 16)):
        try:
            with open("/proc/net/" + name, encoding="ascii") as table:
                rows = table.read().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            host, port = fields[1].split(":")
            # each 32-bit word is printed in the machine's byte order
            raw = b"".join(
                int(host[start : start + 8], 16).to_bytes(4, sys.byteorder)
                for start in range(0, size * 2, 8)
            )
            found.append(
                {
                    "address": socket.inet_ntop(family, raw),
                    "port": int(port, 16),
                    "inode": fields[9],
                    "state": fields[3],
                }
            )
    return found


def _owners(inodes: set[str]) -> dict[str, dict[str, t.Any]]:
    """Return {inode: {pid, command, unit}} by walking /proc, as ss -p does."""
    found: dict[str, dict[str, t.Any]] = {}
    if not inodes:
        return found
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            entries = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for entry in entries:
            try:
                target = os.readlink(f"/proc/{pid}/fd/{entry}")
            except OSError:  # closed meanwhile
                continue
            inode = target[8:-1] if target.startswith("socket:[") else ""
            if inode in inodes and inode not in found:
                found[inode] = {
                    "pid": int(pid),
                    "command": _read(pid, "comm").strip(),
                    "unit": _unit(pid),
                }
    return found


def _unit(pid: str) -> str:
    """Return the systemd unit of a process, from its control group."""
    for line in _read(pid, "cgroup").splitlines():
        for part in reversed(line.split(":", 2)[2].split("/")):
            if part.endswith((".service", ".scope", ".socket")):
                return part
    return ""


def _read(pid: str, name: str) -> str:
    return _text(f"/proc/{pid}/{name}")


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as source:
            return source.read()
    except OSError:
        return ""


def _ask(path: str, command: str) -> str:
    """Send one command to the admin socket and return its answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(CALL_SECONDS)
        client.connect(path)
        client.sendall(command.encode() + b"\n")
        answer = b""
        while True:
            part = client.recv(65536)
            if not part:
                return answer.decode(errors="replace")
            answer += part


def worker(options: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return who answers on the admin socket and whether it started before the configuration was written.

    With C(previous), the configuration that was replaced, a worker that still has the sockets of that one is found too.
    """
    first = _worker(options["socket"], options["config"])
    if first["answers"]:
        return first
    for path in _sockets(options.get("previous", "")):
        seen = _worker(path, options["config"])
        if seen["answers"]:
            return seen
    return first


def _worker(path: str, config: str) -> dict[str, t.Any]:
    try:
        info = dict(
            line.split(": ", 1) for line in _ask(path, "show info").splitlines() if ": " in line
        )
        pid = int(info["Pid"])
    except (OSError, KeyError, ValueError) as error:
        return {
            "answers": False,
            "pid": 0,
            "version": "",
            "stale": False,
            "error": f"{path}: {error or type(error).__name__}",
        }
    stale = _started_before(pid, config)
    return {
        "answers": True,
        "pid": pid,
        "version": info.get("Version", ""),
        "stale": stale,
        "error": f"its worker, {pid}, started before {config} was written" if stale else "",
    }


def _sockets(path: str) -> list[str]:
    """Return the paths of the unix sockets for commands that a configuration names."""
    found: list[str] = []
    if path:
        with open(path, encoding="utf-8", errors="replace") as source:
            for line in source:
                words = line.split()
                if words[:2] == ["stats", "socket"] and len(words) > 2:
                    name = words[2][5:] if words[2].startswith("unix@") else words[2]
                    if name.startswith("/"):
                        found.append(name)
    return found


def _started_before(pid: int, path: str) -> bool:
    try:
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - _start(str(pid))
        return age > time.time() - os.stat(path).st_mtime + CLOCK_SECONDS
    except (OSError, IndexError, ValueError):
        return False


def _start(pid: str) -> float:
    """Return the seconds after boot at which a process started."""
    # field 22 of stat, in clock ticks; the name may hold blanks and parentheses
    ticks = int(_read(pid, "stat").rsplit(")", 1)[1].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")


def wait(options: dict[str, t.Any]) -> dict[str, t.Any]:
    """Wait until another worker than the old one answers; the last look is returned.

    Where the old one never answered, its number is not known (0), but its age tells it from the new one.
    """
    deadline = time.monotonic() + options["timeout"]
    while True:
        seen = worker(options)
        if seen["answers"] and seen["pid"] != options["pid"] and not seen["stale"]:
            return dict(seen, ready=True)
        if time.monotonic() >= deadline:
            return dict(seen, ready=False)
        time.sleep(0.1)


def _ports(path: str) -> dict[str, str]:
    """Return the port of every server line of a configuration, by backend/server."""
    found: dict[str, str] = {}
    section = ""
    with open(path, encoding="utf-8", errors="replace") as source:
        for line in source:
            words = line.split()
            if line[:1].isalpha() and words:
                section = words[1] if words[0] in ("backend", "listen") and len(words) > 1 else ""
            elif section and len(words) > 2 and words[0] == "server":
                port = words[2].rpartition(":")[2]
                if port.isdigit():
                    found[f"{section}/{words[1]}"] = port
    return found


def save(options: dict[str, t.Any]) -> dict[str, t.Any]:
    """Write the states that an operator set at run time, for the next worker to load.

    C(previous) is as in worker(). A configuration without a socket has no states that anybody set.
    """
    before = options.get("previous", "")
    try:
        paths = _sockets(before) if before else [options["socket"]]
        if not paths:
            return {"saved": [], "error": ""}
        answer, error = _states(paths)
        return {"saved": [], "error": error} if error else _save(answer, options)
    except OSError as error:
        return {"saved": [], "error": str(error)}


def _states(paths: list[str]) -> tuple[str, str]:
    """Return the answer of the first socket that tells the states, else why none does."""
    errors = []
    for path in paths:
        try:
            answer = _ask(path, "show servers state")
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
        lines.append(" ".join(fields[:STATE_FIELDS]))
        saved.append(name)
    path = options["file"]
    with open(path + ".new", "w", encoding="ascii") as target:
        target.write("\n".join(["1", *lines, ""]))
    os.replace(path + ".new", path)
    return {"saved": saved, "error": ""}


def unit(options: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return how the unit starts HAProxy, empty if there is no such unit; C(environment_files) are the files' texts."""
    seen = _show(options["unit"], "LoadState", "NeedDaemonReload", "ExecStart", "Environment")
    if seen.get("LoadState") != "loaded":
        return {}
    texts = []
    for name in _show(options["unit"], "EnvironmentFiles").get("EnvironmentFiles", "").splitlines():
        # only what the command line uses: such files may hold secrets
        text = _text(name.split(" (")[0])
        used = [
            line for line in text.splitlines() if line.split("=", 1)[0].strip() in seen["ExecStart"]
        ]
        texts.append("\n".join(line for line in used if line.strip()))
    return dict(seen, environment_files=texts, drop_in=_text(options["drop_in"]))


def _show(name: str, *properties: str) -> dict[str, str]:
    """Return properties of a unit; one that is told in several lines keeps them."""
    done = subprocess.run(
        ["systemctl", "show", name, "--property=" + ",".join(properties)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        key, _separator, value = line.partition("=")
        found[key] = f"{found[key]}\n{value}" if key in found else value
    return found


def rights(options: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return the master and the workers of the unit, with their users, capabilities and connections.

    With C(timeout), old workers get so many seconds to stop listening and, once idle, to end. C(main_pid) is the master where
    no systemd says it.
    """
    deadline = time.monotonic() + options.get("timeout", 0)
    while True:
        seen = _processes(options)
        leaving = [
            each
            for each in seen["workers"]
            if not each["current"] and (each["listening"] or not each["connections"])
        ]
        if not leaving or time.monotonic() >= deadline:
            return seen
        time.sleep(0.2)


def _processes(options: dict[str, t.Any]) -> dict[str, t.Any]:
    answer: dict[str, t.Any] = {
        "unit": options["unit"],
        "wanted_uid": None,
        "master": None,
        "workers": [],
    }
    with contextlib.suppress(KeyError):
        answer["wanted_uid"] = pwd.getpwnam(options["user"]).pw_uid
    main = _main_pid(options)
    if not main:
        return answer
    answer["master"] = _process(main)
    sockets = {entry["inode"]: entry for entry in _tcp()}
    workers = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if pid == main or not _is_worker(pid, main, options):
            continue
        seen = _process(pid)
        if seen:
            held = [sockets[inode] for inode in _inodes(pid) if inode in sockets]
            workers.append(
                dict(
                    seen,
                    listening=sorted(
                        {
                            f"{each['address']} port {each['port']}"
                            for each in held
                            if each["state"] == "0A"
                        }
                    ),
                    # 07: neither connected nor listening
                    connections=sum(each["state"] not in ("0A", "07") for each in held),
                )
            )
    # The admin socket does not tell: where the old worker did not leave, it answers as well.
    start = max((each["start"] for each in workers), default=0.0)
    answer["workers"] = [
        dict(each, current=each["start"] > start - TOGETHER_SECONDS) for each in workers
    ]
    return answer


def _main_pid(options: dict[str, t.Any]) -> str:
    pid = str(options.get("main_pid") or _show(options["unit"], "MainPID").get("MainPID", "0"))
    return "" if pid == "0" else pid


def _is_worker(pid: str, main: str, options: dict[str, t.Any]) -> bool:
    """A process of HAProxy's program in the unit, or the master's child; no check or program that it started."""
    try:
        program = os.path.basename(os.readlink(f"/proc/{pid}/exe")).split(" ")[0]
        if program != os.path.basename(os.readlink(f"/proc/{main}/exe")).split(" ")[0]:
            return False
    except OSError:
        return False
    # One whose master has died is in the control group still. Its whole path counts: a container's unit has the same name.
    return _status(pid).get("PPid") == main or (
        "main_pid" not in options and _read(pid, "cgroup") == _read(main, "cgroup")
    )


def _status(pid: str) -> dict[str, str]:
    return {
        key: value.strip()
        for key, _separator, value in (
            line.partition(":") for line in _read(pid, "status").splitlines()
        )
    }


def _process(pid: str) -> dict[str, t.Any] | None:
    status = _status(pid)
    try:
        return {
            "pid": int(pid),
            "uid": int(status["Uid"].split()[1]),
            "effective": int(status["CapEff"], 16),
            "bounding": int(status["CapBnd"], 16),
            "ambient": int(status["CapAmb"], 16),
            "start": _start(pid),
        }
    except (LookupError, ValueError):  # gone meanwhile
        return None


def _inodes(pid: str) -> list[str]:
    found = []
    with contextlib.suppress(OSError):
        for entry in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{entry}")
                if target.startswith("socket:["):
                    found.append(target[8:-1])
    return found


COMMANDS: dict[str, t.Callable[[t.Any], t.Any]] = {
    "listeners": listeners,
    "worker": worker,
    "wait": wait,
    "save": save,
    "unit": unit,
    "rights": rights,
}

if __name__ == "__main__":
    print(json.dumps(COMMANDS[sys.argv[1]](json.loads(sys.argv[2]))))
