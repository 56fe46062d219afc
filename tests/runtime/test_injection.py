# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hostile texts in every option of every module, against real HAProxy processes.

Either the task is refused before anything is sent, or exactly what it says is sent and nothing
that it contains is carried out. Legal odd values arrive as they are.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
import socketserver
import threading
import traceback
import typing as t
from pathlib import Path

import ansible.module_utils.basic as ansible_basic
import every_module
import pytest
from harness import FULL, VERSIONS, Certificates, Haproxy, Relay, free_port, octets, run_module
from hostile import COMMAND, HOSTILE

from ansible_collections.clearproxy.haproxy.plugins.module_utils._argspec import socket_spec

Start = t.Callable[..., Haproxy]
MakeRelay = t.Callable[..., Relay]

# Each module meets every text on one version, and on the others with --full.
CELLS = [
    pytest.param(module, version, id=f"{module}-{version}")
    for number, module in enumerate(every_module.NAMES)
    for offset, version in enumerate(VERSIONS)
    if FULL or offset == number % len(VERSIONS)
]


def test_there_are_enough() -> None:
    assert len(HOSTILE) >= 200
    assert COMMAND not in HOSTILE.values()


def canary(hap: Haproxy) -> tuple[str, ...]:
    """What no task of these tests may change."""
    lines = hap.ask("show servers state canary").splitlines()
    return tuple(" ".join(line.split()[3:9]) for line in lines[2:])


def unclean(result: dict[str, t.Any]) -> bool:
    """Whether it is not one sentence, or could paint on a terminal."""
    return (
        "exception" in result
        or re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029\u202e\x9b]", result["msg"]) is not None
        or len(result["msg"]) > 2000
    )


def run(module: str, args: dict[str, t.Any]) -> dict[str, t.Any]:
    """Lone surrogates end ansible-core itself, as it writes options to the journal."""
    try:
        return run_module(module, args)
    except UnicodeEncodeError as exc:
        if traceback.extract_tb(exc.__traceback__)[-1].filename != ansible_basic.__file__:
            raise
        return {"failed": True, "msg": str(exc)}


def lines_of(commands: list[str]) -> int:
    """How many lines the commands that a module returns have, with their payloads."""
    counts = (re.search(r"<<\((\d+) lines?\)$", command) for command in commands)
    return sum(1 + (int(found.group(1)) if found else 0) for found in counts)


@pytest.mark.parametrize(("module", "version"), CELLS)
def test_every_option(
    start_haproxy: Start,
    relay: MakeRelay,
    short_path: Path,
    certificates: Certificates,
    module: str,
    version: str,
) -> None:
    scene = every_module.scene(short_path, certificates)
    hap = start_haproxy(scene.config(free_port()))
    wire = relay(hap)
    args = {"socket": wire.address, "timeout": 5, **scene.arguments(module)}
    before = canary(hap)
    first = run_module(module, args)
    assert first.get("failed") is None, first
    wrong: list[str] = []
    for place, fill, option in every_module.texts(module):
        # The same code in every module.
        if option in socket_spec() and module != "haproxy_server" and not FULL:
            continue
        for name, text in HOSTILE.items():
            if module == "haproxy_command" and text.strip(" \t") == COMMAND:
                continue
            wire.commands()
            result = run(module, {**args, option: fill(text)})
            sent = wire.changes()
            if result.get("failed"):
                anything = result.get("commands") or result.get("unknown") or "refused" in result
                problem = unclean(result) or (sent and not anything)
            else:
                problem = len(sent) != lines_of(result.get("commands", []))
            if problem or canary(hap) != before:
                wrong.append(
                    f"{place} = {name}: sent {str(sent)[:200]}, returned {str(result)[:300]}"
                )
                before = canary(hap)
    assert not wrong, f"{len(wrong)} are wrong:\n" + "\n".join(wrong[:10])
    assert hap.process.poll() is None


# --- what arrives ---------------------------------------------------------------------------

# Over a worker's own socket and through the master's, which has a grammar of its own.
WAYS = [
    pytest.param(version, kind, id=f"{version}-{kind}")
    for number, version in enumerate(VERSIONS)
    for offset, kind in enumerate(("unix", "master"))
    if FULL or number % 2 == offset
]


def arrives(text: str, shown: bytes) -> bool:
    return shown == text.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize(("version", "kind"), WAYS)
def test_what_arrives_in_a_map(
    start_haproxy: Start,
    relay: MakeRelay,
    short_path: Path,
    certificates: Certificates,
    version: str,
    kind: str,
) -> None:
    """Keys and values, one by one and then all in one transaction."""
    scene = every_module.scene(short_path, certificates)
    hap = start_haproxy(scene.config(free_port()))
    wire = relay(hap, kind)
    args = {"socket": wire.address, "map": scene.map}
    before = canary(hap)
    wrong: list[str] = []
    taken: dict[str, str] = {}
    for number, (name, text) in enumerate(HOSTILE.items()):
        for key, value in ((text, f"v{number}"), (f"k{number}", text)):
            result = run("haproxy_map", {**args, "entries": [{"key": key, "value": value}]})
            if result.get("failed"):
                continue
            taken[key] = value
            lines = octets(hap.admin, f"show map {scene.map}").split(b"\n")
            shown = [line.split(b" ", 1)[1] for line in lines if b" " in line]
            if canary(hap) != before or not arrives(f"{key} {value}", shown[-1]):
                wrong.append(f"{name}: {shown[-1][:100]!r}")
    assert not wrong, f"{len(wrong)} are wrong: {wrong[:10]}"
    # As many as HAProxy's grammar can carry, or nearly.
    assert len(taken) > 200
    given = [{"key": key, "value": value} for key, value in taken.items()]
    once = run("haproxy_map", {**args, "entries": given[:3], "state": "exact"})
    assert once["changed"] is True, once["msg"]
    whole = run("haproxy_map", {**args, "entries": given, "state": "exact"})
    assert whole.get("failed") is None, whole["msg"]
    lines = octets(hap.admin, f"show map {scene.map}").split(b"\n")
    shown = sorted(line.split(b" ", 1)[1] for line in lines if b" " in line)
    assert shown == sorted(
        f"{key} {value}".encode("utf-8", "surrogateescape") for key, value in taken.items()
    )
    assert run("haproxy_map", {**args, "entries": given, "state": "exact"})["changed"] is False
    assert canary(hap) == before


@pytest.mark.parametrize(("version", "kind"), WAYS)
def test_what_arrives_in_an_acl(
    start_haproxy: Start,
    relay: MakeRelay,
    short_path: Path,
    certificates: Certificates,
    version: str,
    kind: str,
) -> None:
    scene = every_module.scene(short_path, certificates)
    hap = start_haproxy(scene.config(free_port()))
    wire = relay(hap, kind)
    before = canary(hap)
    wrong: list[str] = []
    taken: list[str] = []
    for name, text in HOSTILE.items():
        result = run("haproxy_acl", {"socket": wire.address, "acl": scene.acl, "entries": [text]})
        if result.get("failed"):
            continue
        taken.append(text)
        lines = octets(hap.admin, f"show acl {scene.acl}").split(b"\n")
        shown = [line.split(b" ", 1)[1] for line in lines if b" " in line]
        if canary(hap) != before or not arrives(text, shown[-1]):
            wrong.append(f"{name}: {shown[-1][:100]!r}")
    assert not wrong, f"{len(wrong)} are wrong: {wrong[:10]}"
    assert len(taken) > 80


def unescaped(shown: bytes) -> bytes:
    """A table's key as HAProxy shows it: what is not printable, and blanks, behind backslashes."""
    plain = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"e": b"\x1b"}
    return re.sub(
        rb"\\(x([0-9A-Fa-f]{2})|.)",
        lambda found: bytes([int(found[2], 16)]) if found[2] else plain.get(found[1], found[1]),
        shown,
        flags=re.S,
    )


@pytest.mark.parametrize(("version", "kind"), WAYS)
def test_what_arrives_in_a_stick_table(
    start_haproxy: Start,
    relay: MakeRelay,
    short_path: Path,
    certificates: Certificates,
    version: str,
    kind: str,
) -> None:
    scene = every_module.scene(short_path, certificates)
    hap = start_haproxy(scene.config(free_port()))
    wire = relay(hap, kind)
    before = canary(hap)
    wrong: list[str] = []
    taken = 0
    for number, (name, text) in enumerate(HOSTILE.items(), 1):
        entry = {"key": text, "data": {"gpc0": number}}
        result = run(
            "haproxy_stick_table", {"socket": wire.address, "table": "users", "entries": [entry]}
        )
        if result.get("failed"):
            continue
        taken += 1
        dump = octets(hap.admin, "show table users")
        shown = re.findall(rb"key=(.*) use=0 .*gpc0=%d$" % number, dump, re.M)
        if canary(hap) != before or len(shown) != 1 or not arrives(text, unescaped(shown[0])):
            wrong.append(f"{name}: {shown[:1]!r:.100}")
    assert not wrong, f"{len(wrong)} are wrong: {wrong[:10]}"
    assert taken > 80


@pytest.mark.parametrize("version", [version for version in VERSIONS if version >= "3.0"])
def test_what_arrives_in_a_cookie(
    start_haproxy: Start, relay: MakeRelay, short_path: Path, certificates: Certificates
) -> None:
    """The value with which a new server's clients come back; HAProxy 2.6 refuses to be told."""
    scene = every_module.scene(short_path, certificates)
    hap = start_haproxy(scene.config(free_port()))
    wire = relay(hap)
    before = canary(hap)
    taken: dict[str, str] = {}
    for number, text in enumerate(HOSTILE.values()):
        name = f"n{number}"
        given = {"backend": "app", "name": name, "address": "127.0.0.1", "port": 1}
        result = run("haproxy_dynamic_server", {"socket": wire.address, **given, "cookie": text})
        if not result.get("failed"):
            taken[name] = text
    reader = csv.DictReader(io.StringIO(hap.ask("show stat")[2:]))
    shown = {row["svname"]: row["cookie"] for row in reader if row["svname"] in taken}
    assert shown == taken
    assert len(taken) > 60
    assert canary(hap) == before


def test_what_an_agent_is_sent(start_haproxy: Start, relay: MakeRelay, version: str) -> None:
    """HAProxy does not show this text; a real agent hears it."""
    heard: list[bytes] = []

    class Agent(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(0.03)
            data = b""
            with contextlib.suppress(OSError):
                while more := self.request.recv(65536):
                    data += more
            heard.append(data)
            self.request.sendall(b"100%\n")

    class Agents(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Agents(("127.0.0.1", 0), Agent) as agents:
        threading.Thread(target=agents.serve_forever, args=(0.02,), daemon=True).start()
        hap = start_haproxy(
            "backend canary\n    server s1 127.0.0.1:1 weight 100\n"
            f"backend app\n    server s1 127.0.0.1:1 agent-check agent-inter 20ms "
            f"agent-port {agents.server_address[1]} agent-send start\n"
        )
        wire = relay(hap)
        before = canary(hap)
        hap.until(lambda: b"start" in heard)
        taken = 0
        # Another part of them for each version, and all with --full.
        texts = list(HOSTILE.values())
        for text in texts if FULL else texts[VERSIONS.index(version) :: 5 * len(VERSIONS)]:
            given = {"backend": "app", "servers": "s1", "agent_send": text}
            result = run("haproxy_server", {"socket": wire.address, **given})
            if result.get("failed"):
                continue
            taken += 1
            expected = text.encode("utf-8", "surrogateescape")
            hap.until(lambda expected=expected: expected in heard)  # type: ignore[misc]
        assert taken > 2
        assert canary(hap) == before
        agents.shutdown()
