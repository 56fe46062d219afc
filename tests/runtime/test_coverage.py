# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of commands in the documentation, against what HAProxy lists and the modules have."""

from __future__ import annotations

import importlib
import sys
import typing as t
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import MODULES, REPO, Haproxy, run_module

sys.path.insert(0, str(REPO / "scripts"))

import coverage_table

KNOWN = coverage_table.mapping()

# These stop, crash or block HAProxy as soon as expert mode allows them.
DANGEROUS = {
    "debug dev bug",
    "debug dev check",
    "debug dev close",
    "debug dev deadlock",
    "debug dev delay",
    "debug dev exit",
    "debug dev hex",
    "debug dev loop",
    "debug dev panic",
    "debug dev sched",
    "debug dev task",
    "debug dev tkill",
    "debug dev warn",
}

# haproxy_command leaves these to every module's own handling of the connection.
REFUSED = {"prompt", "quit", "set severity-output"}

CONFIG = """\
backend app
    server s1 127.0.0.1:1
    stick-table type ip size 1k expire 1h store gpc0
"""


@pytest.fixture(scope="module")
def commands(binaries: Path) -> dict[str, dict[str, str]]:
    return coverage_table.commands_of(KNOWN)


def test_the_table_is_up_to_date(commands: dict[str, dict[str, str]]) -> None:
    # An unknown command ends this with its name.
    assert coverage_table.TABLE.read_text() == coverage_table.table(KNOWN, commands)


def test_every_command_is_mapped_and_every_mapping_is_a_command(
    commands: dict[str, dict[str, str]],
) -> None:
    assert set(commands) == KNOWN.known
    groups = [set(KNOWN.served), KNOWN.connection, KNOWN.command]
    assert sum(map(len, groups)) == len(KNOWN.known), "a command is mapped twice"
    assert all(KNOWN.served.values()), "a command is served by nothing"


def test_a_command_that_nobody_mapped_is_noticed(commands: dict[str, dict[str, str]]) -> None:
    with pytest.raises(SystemExit, match="make coffee"):
        coverage_table.table(KNOWN, {**commands, "make coffee": {"3.4": ""}})


def problem_of(item: str) -> str | None:
    """Why a mapping's target does not exist."""
    module, _dot, rest = item.partition(".")
    option, _sep, value = rest.partition("=")
    try:
        spec = importlib.import_module(f"{MODULES}.{module}").argument_spec()
    except ModuleNotFoundError:
        return f"there is no module {module}"
    if option not in spec:
        return f"{module} has no option {option}"
    if value and value not in spec[option].get("choices", ()):
        return f"{module}'s {option} cannot be {value}"
    return None


def test_what_serves_a_command_exists() -> None:
    items = {item for found in KNOWN.served.values() for item in found}
    assert [text for text in map(problem_of, sorted(items)) if text] == []


@pytest.mark.parametrize(
    "item", ["haproxy_kitchen.state", "haproxy_server.sugar", "haproxy_server.state=sweet"]
)
def test_what_does_not_exist_is_noticed(item: str) -> None:
    assert problem_of(item) is not None


LISTS: dict[str, tuple[str, set[str]]] = {
    "indented further": ("  show a [id]: x\n      and more words\n", {"show a"}),
    "colon behind the words": ("  clear map <id> : x\n  prompt : y\n", {"clear map", "prompt"}),
    "colon at the last word": ("  set this: x\n", {"set this"}),
    "several blanks": ("  set  profiling : x\n", {"set profiling"}),
    "braces and brackets": ("  wait {-h|<d>} c : x\n  trace [<m>|0] [c]: y\n", {"wait", "trace"}),
    "dots and parentheses": ("  debug dev ...: x\n  a (OLD) : y\n", {"debug dev", "a"}),
    "no command": ("The following commands are valid:\n\n", set()),
}


@pytest.mark.parametrize("case", LISTS)
def test_how_help_is_read(case: str) -> None:
    text, found = LISTS[case]
    assert coverage_table.listed(text) == found


def reached(hap: Haproxy, command: str, **modes: t.Any) -> dict[str, t.Any]:
    return run_module(
        "haproxy_command",
        {"socket": str(hap.admin), "commands": command, "timeout": 5, **modes},
    )


def test_every_command_is_reachable(start_haproxy: Callable[..., Haproxy], version: str) -> None:
    """HAProxy knows each command that it lists when haproxy_command sends it, without arguments."""
    hap = start_haproxy(CONFIG)
    tried = 0
    for name, mode in coverage_table.helps(version).items():
        command = KNOWN.spelling.get(name, name)
        if command in REFUSED:
            assert "cannot be sent" in reached(hap, command)["msg"]
            continue
        modes = {}
        if mode and command not in DANGEROUS:
            modes = {mode.split(" ")[0].replace("-", "_"): True}
        result = reached(hap, command, **modes)
        if command in DANGEROUS and version == "2.2":
            # It does not even know them without the mode.
            assert "no such command" in result["msg"]
            continue
        assert "no such command" not in result.get("msg", ""), (command, result["msg"])
        assert [reply["sent"] for reply in result["replies"]] == [True], (command, result)
        assert ("restricted" in result.get("msg", "")) is (command in DANGEROUS), (command, result)
        tried += 1
    assert tried > {"2.2": 60}.get(version, 100)
    assert hap.process.poll() is None
