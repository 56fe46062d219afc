# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_acl against real HAProxy processes; what it shares with haproxy_map is tested there."""

from __future__ import annotations

import dataclasses
import re
import typing as t
from pathlib import Path

import pytest
from harness import Haproxy, Relay, cells, four_steps, run_module

Start = t.Callable[..., Haproxy]
MakeRelay = t.Callable[..., Relay]


def module(args: dict[str, t.Any], *, check: bool = False) -> dict[str, t.Any]:
    return run_module("haproxy_acl", args, check=check)


def content(hap: Haproxy, name: object) -> list[str]:
    """The patterns as HAProxy shows them, without their addresses."""
    lines = hap.ask(f"show acl {name}").split("\n")
    assert all(line.startswith("0x") for line in lines if line), lines
    return [line.split(" ", 1)[1] for line in lines if line]


def start_with(start: Start, directory: Path, text: str, use: str = "path") -> Haproxy:
    """A HAProxy with the patterns of the file `a`, and with some in its configuration."""
    (directory / "a").write_text(text)
    return start(
        f"frontend acls\n    bind unix@{directory}/acls.sock\n"
        f"    http-request deny if {{ {use} -f {directory}/a }}\n"
        "    http-request deny if { src 192.0.2.1 192.0.2.2 }\nbackend app\n"
    )


def inline(hap: Haproxy) -> str:
    """HAProxy's number of the patterns that are written in the configuration."""
    rows = hap.ask("show acl").splitlines()
    return next("#" + row.split()[0] for row in reversed(rows) if " () acl 'src' " in row)


@pytest.fixture
def hap(start_haproxy: Start, short_path: Path) -> Haproxy:
    return start_with(start_haproxy, short_path, "/one\n/two\n/with blanks in it\n")


@pytest.fixture
def name(short_path: Path) -> str:
    return f"{short_path}/a"


@dataclasses.dataclass
class Case:
    """Arguments, the commands expected (A is the ACL), and its patterns afterwards."""

    args: dict[str, t.Any]
    commands: list[str]
    after: list[str]
    # 2.2's commands, where they differ.
    old: list[str] | None = None


BEFORE = ["/one", "/two", "/with blanks in it"]
CASES = {
    "present": Case(
        {"entries": ["/one", "/three", 4]},
        ["add acl A /three", "add acl A 4"],
        [*BEFORE, "/three", "4"],
    ),
    "present, one with blanks and a comma": Case(
        {"entries": " a, b ", "state": "present", "return": "all"},
        ["add acl A \\ a,\\ b\\ "],
        [*BEFORE, " a, b "],
    ),
    "absent": Case(
        {"entries": ["/two", "/with blanks in it", "/never"], "state": "absent"},
        ["del acl A /two", "del acl A /with\\ blanks\\ in\\ it"],
        ["/one"],
    ),
    "exact": Case(
        {"entries": ["/two", "/new one"], "state": "exact", "return": "changed"},
        [
            "prepare acl A",
            "add acl @1 A /two",
            "add acl @1 A /new\\ one",
            "commit acl @1 A",
        ],
        ["/two", "/new one"],
        ["add acl A /new\\ one", "del acl A /one", "del acl A /with\\ blanks\\ in\\ it"],
    ),
    "exact, nothing": Case(
        {"entries": [], "state": "exact"},
        ["prepare acl A", "commit acl @1 A"],
        [],
        [
            "del acl A /one",
            "del acl A /two",
            "del acl A /with\\ blanks\\ in\\ it",
        ],
    ),
}


@cells(CASES)
def test_check_do_check_do(
    start_haproxy: Start, relay: MakeRelay, short_path: Path, case: str, version: str, kind: str
) -> None:
    hap = start_with(start_haproxy, short_path, "".join(f"{one}\n" for one in BEFORE))
    wanted, path = CASES[case], f"{short_path}/a"
    commands = wanted.old if version == "2.2" and wanted.old is not None else wanted.commands
    filled = [re.sub(r"\bA\b", path, line) for line in commands]
    args = {"acl": path, **wanted.args}
    check, done = four_steps("haproxy_acl", args, relay(hap, kind), commands=filled)
    assert sorted(content(hap, path)) == sorted(wanted.after)
    assert done["acls"] == check["acls"]
    assert done["acls"][0]["count"] == len(wanted.after)
    assert (done["acls"][0]["acl"], done["acls"][0]["updated"]) == (path, 0)
    assert done["entries"] == check["entries"]
    patterns = [row["pattern"] for row in done["entries"]]
    if args.get("return") == "all":
        assert patterns == content(hap, path)
    elif args.get("return") == "changed":
        assert patterns == ["/new one"]
    else:
        assert patterns == []


def test_patterns_of_the_configuration(hap: Haproxy, relay: MakeRelay, version: str) -> None:
    number, wire = inline(hap), relay(hap)
    args = {"acl": number, "entries": ["192.0.2.1", "2001:db8::/32"], "state": "exact"}
    check, done = four_steps("haproxy_acl", args, wire)
    assert done["commands"] == check["commands"]
    assert done["acls"][0]["acl"] == number
    assert content(hap, number) == ["192.0.2.1", "2001:db8::/32"]


ODD = [
    "a;show info",
    "back\\",
    "\\",
    "<<",
    "<<EOF",
    "#0x1",
    "#0x55aa55aa55aa",
    "# comment",
    "@1",
    " ",
    "\tboth\t",
    "é ☃ 🦭",
    "\u2028\x85\x0b\x0c",
    "'q' \"q\"",
    "> ",
    "+ ",
    "0x1 2",
    "x" * 3900,
]


@pytest.mark.parametrize("state", ["present", "exact"])
def test_odd_text_arrives_unchanged(hap: Haproxy, name: str, state: str) -> None:
    args = {"socket": str(hap.admin), "acl": name, "entries": ODD, "state": state}
    done = module(args)
    assert not done.get("failed"), done
    old = BEFORE if state == "present" else []
    assert content(hap, name) == [*old, *ODD]
    assert module(args)["changed"] is False
    assert module({**args, "state": "absent"})["acls"][0]["removed"] == len(ODD)
    assert content(hap, name) == old


@pytest.mark.parametrize(
    "entries",
    [
        "",
        [""],
        ["a\nb"],
        ["a\rb"],
        ["a\0b"],
        [None],
        [False],
        [1.5],
        [["a"]],
        {"a": "b"},
        ["x" * 4090],
    ],
)
@pytest.mark.parametrize("version", ["3.2"])
def test_what_cannot_be_carried_is_refused(
    hap: Haproxy, name: str, relay: MakeRelay, entries: t.Any
) -> None:
    wire = relay(hap)
    done = module({"socket": wire.address, "acl": name, "entries": entries})
    assert done["failed"] is True
    assert done["msg"].startswith("entries: ")
    assert wire.connections == 0


def test_duplicates(start_haproxy: Start, short_path: Path, name: str) -> None:
    """They do no harm until they shall go; HAProxy 3.4 alone removes them one by one."""
    hap = start_with(start_haproxy, short_path, "/d\n/k\n/d\n/d\n")
    args = {"socket": str(hap.admin), "acl": name}
    assert module({**args, "entries": ["/d"]})["changed"] is False
    done = module({**args, "entries": ["/d"], "state": "absent"})
    assert done["acls"][0]["removed"] == 3
    assert content(hap, name) == ["/k"]
    hap.ask(f"add acl {name} /k")
    assert module({**args, "entries": ["/k"], "state": "exact"})["changed"] is True
    assert content(hap, name) == ["/k"]
    assert module({**args, "entries": ["/k"], "state": "exact"})["changed"] is False


def test_refused_pattern(start_haproxy: Start, short_path: Path, name: str, version: str) -> None:
    hap = start_with(start_haproxy, short_path, "10.0.0.0/8\n", use="src")
    args = {"socket": str(hap.admin), "acl": name, "entries": ["192.0.2.0/24", "bogus"]}
    for state in ("exact", "present"):
        done = module({**args, "state": state})
        assert done["failed"] is True
        assert "'bogus' is not a valid IPv4 or IPv6 address." in done["msg"]
        if state == "exact" and version != "2.2":
            assert (done["changed"], done["commands"]) == (False, [])
            assert content(hap, name) == ["10.0.0.0/8"]
        else:
            assert done["changed"] is (state == "exact" or version != "2.2")
            # 2.2 has not removed what was to be replaced either.
            assert content(hap, name) == ["10.0.0.0/8", "192.0.2.0/24"]
            assert done["not_sent"] == ([f"del acl {name} 10.0.0.0/8"] if state == "exact" else [])


def test_level(hap: Haproxy, name: str, version: str) -> None:
    done = module({"socket": str(hap.user), "acl": name, "entries": ["/new"]})
    if version == "3.4":
        assert "has level user, but this needs level admin" in done["msg"]
        assert content(hap, name) == BEFORE
    else:
        assert done["changed"] is True
        assert content(hap, name) == [*BEFORE, "/new"]


def test_unknown_acl(hap: Haproxy, name: str, version: str) -> None:
    for wrong in (f"{name}x", "#77", "", "virt@none"):
        done = module({"socket": str(hap.admin), "acl": wrong, "entries": ["a"]})
        assert done["failed"] is True
        if not wrong:
            assert "is empty" in done["msg"]
        elif wrong == "virt@none" and version in ("2.2", "2.6"):
            assert "virt@ exists since HAProxy 3.0" in done["msg"]
        else:
            assert f"has no acl {wrong!r}; there is " in done["msg"]


def test_thousands(hap: Haproxy, name: str, relay: MakeRelay) -> None:
    wire = relay(hap)
    patterns = [f"/path/{number}" for number in range(5000)]
    args = {"socket": wire.address, "acl": name, "entries": patterns, "state": "exact"}
    assert module(args)["acls"][0]["count"] == 5000
    assert wire.connections == 1
    assert sorted(content(hap, name)) == sorted(patterns)
    wire.changes()
    assert module(args)["changed"] is False
    assert wire.changes() == []
