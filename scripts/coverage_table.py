# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the table of HAProxy's commands: which versions have them, and which module serves them.

The commands are those that `help` lists on the supported versions, which are started for it; what
serves them says coverage_table.ini.

Usage: scripts/coverage-table           write docs/docsite/rst/runtime_api_coverage.rst
       scripts/coverage-table --check   fail if the file is not what would be written
"""

from __future__ import annotations

import argparse
import collections.abc as c
import configparser
import contextlib
import dataclasses
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time

import haproxy_binaries

HERE = pathlib.Path(__file__).resolve().parent
MAPPING = HERE / "coverage_table.ini"
TABLE = HERE.parent / "docs" / "docsite" / "rst" / "runtime_api_coverage.rst"
VERSIONS = [release.minor for release in haproxy_binaries.RELEASES]
COLLECTION = "clearproxy.haproxy"

# Modes in which HAProxy lists more commands; the first that lists one is the one it needs.
MODES = ("", "experimental-mode on", "expert-mode on")

CONFIG = "global\n    stats socket {path} level admin\n    maxconn 100\n"


@dataclasses.dataclass(frozen=True)
class Mapping:
    """What serves each command, as coverage_table.ini says."""

    served: dict[str, list[str]]
    connection: set[str]
    command: set[str]
    spelling: dict[str, str]

    @property
    def known(self) -> set[str]:
        return {*self.served, *self.connection, *self.command}


def mapping(path: pathlib.Path = MAPPING) -> Mapping:
    parser = configparser.ConfigParser(delimiters=("=",), allow_no_value=True, interpolation=None)
    parser.read_string(path.read_text())
    return Mapping(
        {name: (text or "").split() for name, text in parser["served"].items()},
        set(parser["connection"]),
        set(parser["command"]),
        {name: text or "" for name, text in parser["spelling"].items()},
    )


def listed(text: str) -> set[str]:
    """The commands in a reply to `help`, by their leading words; what follows are arguments."""
    found = set()
    for line in text.splitlines():
        words: list[str] = []
        # A line that is indented further goes on with the one before.
        for word in line.split() if re.match(r"  \S", line) else ():
            match = re.fullmatch(r"([a-z][a-z0-9_-]*)(:?)", word)
            if match is None:
                break
            words.append(match[1])
            if match[2]:
                break
        if words:
            found.add(" ".join(words))
    return found


def helps(version: str) -> dict[str, str]:
    """Every command of a version, with the mode that it needs."""
    binary = haproxy_binaries.cache_directory() / "haproxy" / version / "run"
    if not binary.exists():
        subprocess.run([str(HERE / "haproxy-binaries"), version], check=True)
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="clp-", dir="/tmp") as work:
        path = pathlib.Path(work) / "admin.sock"
        config = pathlib.Path(work) / "haproxy.cfg"
        config.write_text(CONFIG.format(path=path))
        process = subprocess.Popen(
            [str(binary), "-db", "-f", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            for mode in MODES:
                for command in listed(ask(path, f"{mode};help" if mode else "help", process)):
                    found.setdefault(command, mode)
        finally:
            process.terminate()
            process.wait(10)
    return found


def ask(path: pathlib.Path, line: str, process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(path))
            sock.sendall(line.encode() + b"\n")
            return b"".join(iter(lambda: sock.recv(65536), b"")).decode()
        time.sleep(0.02)
    raise SystemExit(f"coverage-table: HAProxy does not answer at {path}")


def commands_of(known: Mapping, versions: c.Iterable[str] = VERSIONS) -> dict[str, dict[str, str]]:
    """Every command, with the versions that have it and the mode that they want."""
    found: dict[str, dict[str, str]] = {}
    for version in versions:
        for name, mode in helps(version).items():
            found.setdefault(known.spelling.get(name, name), {})[version] = mode
    return found


# --- the table ------------------------------------------------------------------------------

HEAD = """\
.. _ansible_collections.clearproxy.haproxy.docsite.runtime_api_coverage:

What serves which command of HAProxy's runtime API
==================================================

Every command that ``help`` lists on HAProxy {versions} is here, by its leading words. {served} of the
{total} are served by a module that compares, checks and reads back; {only} only by
:ansplugin:`clearproxy.haproxy.haproxy_command#module`, which also takes all the others;
{connection} are about the connection, which every module looks after itself.

Commands of the master process itself (``show proc``, ``reload``) are not among them.

.. This file is written by scripts/coverage-table.

.. list-table::
   :header-rows: 1
   :widths: 30 25 45

   * - Command
     - HAProxy
     - Served by
"""


def table(known: Mapping, commands: dict[str, dict[str, str]]) -> str:
    """The whole page."""
    missing = sorted(set(commands) - known.known)
    if missing:
        raise SystemExit(
            f"coverage-table: {MAPPING.name} does not say what serves {', '.join(missing)}"
        )
    text = HEAD.format(
        versions=f"{', '.join(VERSIONS[:-1])} and {VERSIONS[-1]}",
        total=len(commands),
        served=len(set(commands) & set(known.served)),
        only=len(set(commands) & known.command),
        connection=len(set(commands) & known.connection),
    )
    for name in sorted(commands):
        text += f"   * - ``{name}``\n     - {_versions(commands[name])}\n"
        text += f"     - {_server(known, name)}\n"
    return text


def _versions(modes: dict[str, str]) -> str:
    shown = "all" if set(modes) == set(VERSIONS) else ", ".join(modes)
    needed = {mode for mode in modes.values() if mode}
    return shown + "".join(f"; {mode.split('-')[0]} mode" for mode in sorted(needed))


def _server(known: Mapping, name: str) -> str:
    if name in known.connection:
        return "every module"
    if name in known.command:
        return f":ansplugin:`{COLLECTION}.haproxy_command#module` only"
    by_module: dict[str, list[str]] = {}
    for item in known.served[name]:
        module, _dot, option = item.partition(".")
        by_module.setdefault(module, []).append(f":ansopt:`{COLLECTION}.{module}#module:{option}`")
    return "; ".join(
        f":ansplugin:`{COLLECTION}.{module}#module` with {', '.join(options)}"
        for module, options in by_module.items()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the file is out of date")
    options = parser.parse_args()
    known = mapping()
    text = table(known, commands_of(known))
    if options.check:
        if not TABLE.exists() or TABLE.read_text() != text:
            print(f"{TABLE} is out of date: run scripts/coverage-table", file=sys.stderr)
            return 1
        return 0
    TABLE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
