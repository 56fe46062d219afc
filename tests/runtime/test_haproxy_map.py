# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_map against real HAProxy processes: what it does, and what it sends."""

from __future__ import annotations

import dataclasses
import re
import time
import typing as t
from pathlib import Path

import pytest
from harness import VERSIONS, Haproxy, Relay, cells, four_steps, run_module

Start = t.Callable[..., Haproxy]
MakeRelay = t.Callable[..., Relay]

# HAProxy 2.2 has no transactions.
TRANSACTIONS = pytest.mark.parametrize("version", [one for one in VERSIONS if one != "2.2"])
BEFORE = "k1 v1\nk2 two words\nk3 v3\n"


def module(args: dict[str, t.Any], *, check: bool = False) -> dict[str, t.Any]:
    return run_module("haproxy_map", args, check=check)


def content(hap: Haproxy, name: object) -> list[str]:
    """The entries as HAProxy shows them, without their addresses."""
    lines = hap.ask(f"show map {name}").split("\n")
    assert all(line.startswith("0x") for line in lines if line), lines
    return [line.split(" ", 1)[1] for line in lines if line]


def start_with(start: Start, directory: Path, text: str = BEFORE, use: str = "map") -> Haproxy:
    """A HAProxy that looks paths up in the map `m`."""
    (directory / "m").write_bytes(text.encode("utf-8", "surrogateescape"))
    return start(rules(directory, f"{use}({directory}/m)"))


def rules(directory: Path, *lookups: str) -> str:
    lines = "".join(f"    http-request set-header x %[path,{lookup}]\n" for lookup in lookups)
    return f"frontend maps\n    bind unix@{directory}/maps.sock\n{lines}backend app\n"


@pytest.fixture
def hap(start_haproxy: Start, short_path: Path) -> Haproxy:
    return start_with(start_haproxy, short_path)


@pytest.fixture
def name(short_path: Path) -> str:
    return f"{short_path}/m"


# --- check, do, check, do for each option ---------------------------------------------------


@dataclasses.dataclass
class Case:
    """Arguments, the commands expected (M is the map), and what is in the map afterwards.

    `sent` is what goes over the wire where that differs; `old` are 2.2's commands. 0x… is the address
    of k2.
    """

    args: dict[str, t.Any]
    commands: list[str]
    after: list[str]
    sent: list[str] | None = None
    old: list[str] | None = None


CASES = {
    "new key": Case(
        {"entries": {"k4": "v4"}},
        ["add map M k4 v4"],
        ["k1 v1", "k2 two words", "k3 v3", "k4 v4"],
    ),
    "other value": Case(
        {"entries": {"k1": "new", "k3": "v3"}, "state": "present"},
        ["set map M k1 new"],
        ["k1 new", "k2 two words", "k3 v3"],
    ),
    "new and other, as a list": Case(
        {"entries": [{"key": "n", "value": 5}, {"key": "k2", "value": "a  b"}], "return": "all"},
        ["add map M n 5", "set map M k2 a\\ \\ b"],
        ["k1 v1", "k2 a  b", "k3 v3", "n 5"],
    ),
    "absent": Case(
        {"entries": ["k1", "never"], "state": "absent"},
        ["del map M k1"],
        ["k2 two words", "k3 v3"],
    ),
    "absent, one key": Case(
        {"entries": "k3", "state": "absent", "return": "changed"},
        ["del map M k3"],
        ["k1 v1", "k2 two words"],
    ),
    "absent, as a dictionary": Case(
        {"entries": {"k2": "whatever", "k3": None}, "state": "absent"},
        ["del map M k2", "del map M k3"],
        ["k1 v1"],
    ),
    "exact": Case(
        {"entries": {"k2": "two words", "k1": "new", "n": "N"}, "state": "exact"},
        ["prepare map M", "add map @1 M <<(3 lines)", "commit map @1 M"],
        ["k2 two words", "k1 new", "n N"],
        ["prepare map M", "add map @1 M <<", "k2 two words", "k1 new", "n N", "commit map @1 M"],
        ["add map M n N", "set map M k1 new", "del map M k3"],
    ),
    "exact, with blanks in front": Case(
        {"entries": {"a": "1", "b": " 2", "c": "3 "}, "state": "exact"},
        [
            "prepare map M",
            "add map @1 M <<(1 line)",
            "add map @1 M b \\ 2",
            "add map @1 M <<(1 line)",
            "commit map @1 M",
        ],
        ["a 1", "b  2", "c 3 "],
        [
            "prepare map M",
            "add map @1 M <<",
            "a 1",
            "add map @1 M b \\ 2",
            "add map @1 M <<",
            "c 3 ",
            "commit map @1 M",
        ],
        [
            "add map M a 1",
            "add map M b \\ 2",
            "add map M c 3\\ ",
            "del map M k1",
            "del map M #0x…",
            "del map M k3",
        ],
    ),
    "exact, nothing": Case(
        {"entries": {}, "state": "exact"},
        ["prepare map M", "commit map @1 M"],
        [],
        old=["del map M k1", "del map M #0x…", "del map M k3"],
    ),
    "exact, in order": Case(
        {
            "entries": [{"key": "k1", "value": "v1"}, {"key": "k3", "value": "v3"}],
            "state": "exact",
            "return": "all",
        },
        ["prepare map M", "add map @1 M <<(2 lines)", "commit map @1 M"],
        ["k1 v1", "k3 v3"],
        ["prepare map M", "add map @1 M <<", "k1 v1", "k3 v3", "commit map @1 M"],
        ["del map M #0x…"],
    ),
    "by number": Case(
        {"map": "#0", "entries": {"k1": "x"}},
        ["set map #0 k1 x"],
        ["k1 x", "k2 two words", "k3 v3"],
    ),
}


@cells(CASES)
def test_check_do_check_do(
    start_haproxy: Start, relay: MakeRelay, short_path: Path, case: str, version: str, kind: str
) -> None:
    hap, wanted = start_with(start_haproxy, short_path), CASES[case]
    path = f"{short_path}/m"

    words = hap.ask(f"show map {path}").split("\n")[1].split()[0]

    def filled(lines: list[str]) -> list[str]:
        return [re.sub(r"\bM\b", path, line).replace("0x…", words) for line in lines]

    commands = wanted.old if version == "2.2" and wanted.old is not None else wanted.commands
    sent = None if version == "2.2" or wanted.sent is None else filled(wanted.sent)
    args = {"map": path, **wanted.args}
    check, done = four_steps(
        "haproxy_map", args, relay(hap, kind), commands=filled(commands), sent=sent
    )
    assert sorted(content(hap, path)) == sorted(wanted.after)
    if version != "2.2":
        assert content(hap, path) == wanted.after
    assert done["maps"] == check["maps"]
    assert done["maps"][0]["count"] == len(wanted.after)
    assert (done["maps"][0]["map"], done["maps"][0]["id"]) == (path, 0)
    assert done["entries"] == check["entries"]
    rows = [f"{row['key']} {row['value']}" for row in done["entries"]]
    if args.get("return") == "all":
        assert rows == content(hap, path)
    else:
        assert rows == []
    assert done["diff"]["before"] != done["diff"]["after"]


def test_return(hap: Haproxy, name: str) -> None:
    args = {"socket": str(hap.admin), "map": name, "entries": {"k1": "x", "k3": "v3", "n": "N"}}
    rows = module({**args, "return": "changed"}, check=True)["entries"]
    where = {"socket": str(hap.admin), "map": name}
    assert rows == [{**where, "key": "k1", "value": "x"}, {**where, "key": "n", "value": "N"}]
    every = module({**args, "return": "all"})
    assert [row["key"] for row in every["entries"]] == ["k1", "k2", "k3", "n"]
    summary = {**where, "id": 0, "count": 4, "added": 1, "updated": 1, "removed": 0}
    assert every["maps"] == [summary]
    again = module({**args, "return": "changed"})
    assert (again["entries"], again["maps"][0]["added"]) == ([], 0)


def test_diff_has_what_differs(hap: Haproxy, name: str) -> None:
    args = {"socket": str(hap.admin), "map": name}
    done = module({**args, "entries": {"k1": "v1", "k2": "x", "n": "N"}, "state": "exact"})
    assert done["diff"]["before"] == {name: ["k2 two words", "k3 v3"]}
    # 2.2 appends what is new; the others have the order of the task.
    assert done["diff"]["after"] == {name: ["k2 x", "n N"]}
    many = {f"n{number}": "v" for number in range(1000)}
    check = module({**args, "entries": many}, check=True)
    assert len(check["diff"]["after"][name]) == 501
    assert check["diff"]["after"][name][-1] == "… and 500 more"


# --- text that is not quite harmless --------------------------------------------------------

ODD = [
    ("plain", "value with  several   blanks "),
    ("lead", " leading"),
    ("tab", "\ttab\tin\tit\t"),
    ("blank", " "),
    ("semi;colon", "a;show info;b"),
    ("back\\slash", "\\"),
    ("\\", "\\n \\\\"),
    ("here<<doc", "<<"),
    ("<<", "<<EOF"),
    ("#0x1", "a reference that is none"),
    ("#0x55aa55aa55aa", "v"),
    ("#", "#"),
    ("#1", "# comment"),
    ("@1", "@2"),
    ("0x1", "0x2 3"),
    ("ключ-é-☃-🦭", "значение ☃ 🦭"),
    ("\u2028", "\u2028\x85\x0b\x0c\x1c"),
    ("'q'", '"quoted value"'),
    ("{}", "$HOME %[src] ${x} *?[a]"),
    ("+", "+ "),
    (">", "> "),
    ("prompt", "> > >"),
    ("del", "\x7f\x1b[31m"),
]


@pytest.mark.parametrize("state", ["present", "exact"])
def test_odd_text_arrives_unchanged(
    hap: Haproxy, name: str, relay: MakeRelay, version: str, state: str
) -> None:
    """And every one of them can be changed and removed again."""
    wire = relay(hap)
    first = [{"key": key, "value": "first"} for key, _value in ODD]
    entries = [{"key": key, "value": value} for key, value in ODD]
    args = {"socket": wire.address, "map": name, "state": state}
    assert module({**args, "entries": first})["changed"] is True
    done = module({**args, "entries": entries})
    assert not done.get("failed"), done
    expected = [f"{key} {value}" for key, value in ODD]
    old = BEFORE.splitlines() if state == "present" else []
    assert content(hap, name) == old + expected
    wire.changes()
    assert module({**args, "entries": entries})["changed"] is False
    assert wire.changes() == []
    gone = module({**args, "entries": [key for key, _value in ODD], "state": "absent"})
    assert gone["changed"] is True
    assert len(gone["commands"]) == len(ODD)
    assert content(hap, name) == old


@pytest.mark.parametrize(
    "entries",
    [
        {"a b": "v"},
        {"a\tb": "v"},
        {"a\nb": "v"},
        {"a": "v\nw"},
        {"a": "v\r"},
        {"a": "v\0"},
        {"": "v"},
        {"a": ""},
        {"a": None},
        {"a": True},
        {"a": 1.5},
        {"a": ["v"]},
        {"a": "x" * 15000},
        {"a": " " + "x" * 4090},
        [{"key": "a", "value": "1"}, {"key": "a", "value": "2"}],
        [{"key": "a"}],
        [{"key": "a", "value": "v", "more": "v"}],
        ["a"],
        "a b",
    ],
)
@pytest.mark.parametrize("version", ["3.2"])
def test_what_cannot_be_carried_is_refused(
    hap: Haproxy, name: str, relay: MakeRelay, entries: t.Any
) -> None:
    wire = relay(hap)
    for state in ("present", "exact"):
        args = {"socket": wire.address, "map": name, "entries": entries, "state": state}
        done = module(args)
        assert done["failed"] is True
        assert done["msg"].startswith("entries: ")
        assert "\n" not in done["msg"]
    assert wire.connections == 0


def test_long_values(hap: Haproxy, name: str, relay: MakeRelay) -> None:
    """Longer than a line: a payload, and a change adds before it removes."""
    wire = relay(hap)
    args = {"socket": wire.address, "map": name}
    long, longer = "x" * 5000, "y" * 14300
    done = module({**args, "entries": {"long": long}})
    assert done["commands"] == [f"add map {name} <<(1 line)"]
    done = module({**args, "entries": {"long": longer}})
    assert re.fullmatch(
        rf"add map {name} <<\(1 line\), del map {name} #0x[0-9a-f]+", ", ".join(done["commands"])
    )
    assert content(hap, name)[-1] == f"long {longer}"
    assert len(content(hap, name)) == 4
    assert module({**args, "entries": {"long": longer}})["changed"] is False
    exact = {"long": longer, "longer": longer, "k": " " + "z" * 3000}
    assert module({**args, "entries": exact, "state": "exact"})["changed"] is True
    assert sorted(content(hap, name)) == sorted(f"{key} {value}" for key, value in exact.items())
    assert module({**args, "entries": exact, "state": "exact"})["changed"] is False


# --- duplicates, and what others have left behind -------------------------------------------

DUPLICATES = "d 1\nk v\nd 2\nd 3\n"


def test_duplicates_of_a_key(start_haproxy: Start, short_path: Path, name: str) -> None:
    """One entry stays, with the value; HAProxy 3.4 alone removes duplicates one by one."""
    hap = start_with(start_haproxy, short_path, DUPLICATES)
    args = {"socket": str(hap.admin), "map": name}
    check = module({**args, "entries": {"d": "2"}}, check=True)
    done = module({**args, "entries": {"d": "2"}})
    assert done["commands"] == check["commands"]
    assert content(hap, name) == ["d 2", "k v"]
    assert done["maps"][0]["removed"] == 2
    assert module({**args, "entries": {"d": "2"}})["changed"] is False


@pytest.mark.parametrize("state", ["absent", "exact"])
def test_duplicates_removed(start_haproxy: Start, short_path: Path, name: str, state: str) -> None:
    hap = start_with(start_haproxy, short_path, DUPLICATES)
    args = {"socket": str(hap.admin), "map": name}
    entries: t.Any = ["d"] if state == "absent" else {"k": "v"}
    done = module({**args, "entries": entries, "state": state})
    assert done["changed"] is True
    assert content(hap, name) == ["k v"]
    assert module({**args, "entries": entries, "state": state})["changed"] is False


def test_exact_with_a_duplicate_is_not_exact(
    start_haproxy: Start, short_path: Path, name: str
) -> None:
    hap = start_with(start_haproxy, short_path, "a 1\na 1\n")
    args = {"socket": str(hap.admin), "map": name, "entries": {"a": "1"}, "state": "exact"}
    assert module(args)["changed"] is True
    assert content(hap, name) == ["a 1"]


def test_order_matters_in_a_list_only(start_haproxy: Start, short_path: Path, name: str) -> None:
    hap = start_with(start_haproxy, short_path, "^/a 1\n^/b 2\n^/ 3\n", use="map_reg")
    args = {"socket": str(hap.admin), "map": name, "state": "exact"}
    assert module({**args, "entries": {"^/": "3", "^/b": "2", "^/a": "1"}})["changed"] is False
    new = [("^/b", "2"), ("^/", "3"), ("^/a", "1")]
    entries = [{"key": key, "value": value} for key, value in new]
    check, done = (
        module({**args, "entries": entries}, check=True),
        module({**args, "entries": entries}),
    )
    assert done["changed"] is True
    assert done["diff"] == check["diff"]
    assert done["diff"]["after"] == {name: ["^/b 2", "^/ 3", "^/a 1"]}
    assert content(hap, name) == ["^/b 2", "^/ 3", "^/a 1"]
    assert module({**args, "entries": entries})["changed"] is False


def test_entries_that_a_task_cannot_name(start_haproxy: Start, short_path: Path, name: str) -> None:
    """Without a value, of Latin-1 bytes, with a line break or a blank in the key."""
    hap = start_with(start_haproxy, short_path, "lonely\nlatin\udce9 v\udce9\nk v\n")
    hap.ask(f"add map {name} <<\nglued\nk2 v2\n")
    hap.ask(f"add map {name} two\\ words v")
    args = {"socket": str(hap.admin), "map": name, "state": "exact"}
    done = module({**args, "entries": {"k": "v"}})
    assert not done.get("failed"), done
    assert content(hap, name) == ["k v"]
    hap.ask(f"add map {name} <<\nglued\nk2 v2\n")
    assert module({**args, "entries": ["glued\nk2"], "state": "absent"})["failed"] is True
    # The blank may be the key's or the value's, so only `exact` touches such an entry.
    hap.ask(f"add map {name} two\\ words v")
    absent = module({**args, "entries": ["two"], "state": "absent"})
    assert "Key not found." in absent["msg"]
    lonely = module({**args, "entries": {"k": "v", "lonely": "x"}})
    assert not lonely.get("failed"), lonely
    assert content(hap, name) == ["k v", "lonely x"]


# --- what HAProxy refuses -------------------------------------------------------------------


def test_refused_value(start_haproxy: Start, short_path: Path, name: str, version: str) -> None:
    hap = start_with(start_haproxy, short_path, "k 1\n", use="map_str_int")
    args = {"socket": str(hap.admin), "map": name}
    done = module({**args, "entries": {"a": "1", "b": "many", "c": "3"}})
    assert done["failed"] is True
    assert f"refused 'add map {name} b many': unable to parse 'many'." in done["msg"]
    assert done["commands"][0] == f"add map {name} a 1"
    assert done["changed"] is True
    assert done["refused"][0]["command"] == f"add map {name} b many"
    # 2.2 and 2.6 say nothing and keep the old value.
    done = module({**args, "entries": {"k": "many"}})
    assert done["failed"] is True
    if version in ("2.2", "2.6"):
        assert f"still needs 'set map {name} k many'" in done["msg"]
    else:
        assert "unable to parse 'many'." in done["msg"]
        assert done["changed"] is False
    assert "k 1" in content(hap, name)


def test_a_refused_transaction_changes_nothing(
    start_haproxy: Start, short_path: Path, name: str, version: str
) -> None:
    hap = start_with(start_haproxy, short_path, "k 1\nl 2\n", use="map_str_int")
    entries = {**{f"n{number}": number for number in range(3000)}, "bad": "many", "last": 1}
    done = module({"socket": str(hap.admin), "map": name, "entries": entries, "state": "exact"})
    assert done["failed"] is True
    assert "unable to parse 'many'." in done["msg"]
    if version == "2.2":
        assert done["changed"] is True
        return
    assert done["msg"].endswith(f"the map {name} is as it was")
    assert (done["changed"], done["commands"]) == (False, [])
    assert content(hap, name) == ["k 1", "l 2"]
    # Nothing of it comes back with the next one.
    args = {"socket": str(hap.admin), "map": name, "entries": {"x": 9}, "state": "exact"}
    done = module(args)
    assert done["commands"][-1] == f"commit map @2 {name}"
    assert content(hap, name) == ["x 9"]


def meddling(wire: Relay, needle: bytes, deed: t.Callable[[], None]) -> Relay:
    """Do something before the client's command with `needle` is passed on."""

    def meanwhile(data: bytes) -> None:
        if needle in data:
            deed()

    wire.meanwhile = meanwhile
    return wire


def cut() -> None:
    raise ConnectionError("cut off by the test")


@pytest.mark.parametrize("state", ["present", "exact", "absent"])
def test_two_sockets_of_one_haproxy(hap: Haproxy, name: str, relay: MakeRelay, state: str) -> None:
    """What was done through the first is not done again through the second."""
    both = [str(hap.admin), relay(hap).address]
    entries = {"n": "N", "k1": "new", "k3": "v3"}
    args = {"socket": both, "map": name, "entries": entries, "state": state}
    done = module(args)
    assert not done.get("failed"), done
    assert done["changed"] is True
    after = {
        "present": ["k1 new", "k2 two words", "k3 v3", "n N"],
        "exact": ["k1 new", "k3 v3", "n N"],
        "absent": ["k2 two words"],
    }
    assert sorted(content(hap, name)) == after[state]
    assert module(args)["changed"] is False


@TRANSACTIONS
def test_somebody_else_commits_first(hap: Haproxy, name: str, relay: MakeRelay) -> None:
    def meddle() -> None:
        assert hap.ask(f"prepare map {name}").strip() == "New version created: 2"
        hap.ask(f"add map @2 {name} theirs 1")
        assert hap.ask(f"commit map @2 {name}").strip() == ""

    wire = meddling(relay(hap), b"commit map @1", meddle)
    done = module({"socket": wire.address, "map": name, "entries": {"ours": "1"}, "state": "exact"})
    assert done["failed"] is True
    assert "Version number out of range" in done["msg"]
    assert "somebody else" in done["msg"]
    assert (done["changed"], done["commands"]) == (False, [])
    assert content(hap, name) == ["theirs 1"]


@TRANSACTIONS
def test_somebody_else_prepares_first(hap: Haproxy, name: str, relay: MakeRelay) -> None:
    """The version is not the one foreseen; what is returned is what was sent."""

    def meddle() -> None:
        assert hap.ask(f"prepare map {name}").strip() == "New version created: 1"

    wire = meddling(relay(hap), b"prepare map", meddle)
    args = {"socket": wire.address, "map": name, "entries": {"ours": "1"}, "state": "exact"}
    assert module(args, check=True)["commands"][-1] == f"commit map @1 {name}"
    wire.changes()
    done = module(args)
    assert done["commands"][1:] == [f"add map @2 {name} <<(1 line)", f"commit map @2 {name}"]
    assert f"commit map @2 {name}" in wire.changes()
    assert content(hap, name) == ["ours 1"]


@TRANSACTIONS
@pytest.mark.parametrize("at", ["add", "commit"])
def test_cut_off_in_a_transaction(hap: Haproxy, name: str, relay: MakeRelay, at: str) -> None:
    wire = meddling(relay(hap), f"{at} map @1".encode(), cut)
    done = module({"socket": wire.address, "map": name, "entries": {"ours": "1"}, "state": "exact"})
    assert done["failed"] is True
    assert content(hap, name) == BEFORE.splitlines()
    if at == "add":
        assert done["msg"].endswith("is as it was")
        assert (done["changed"], done["commands"], done["unknown"]) == (False, [], [])
        assert done["not_sent"] == []
    else:
        # Nobody knows, so nothing is claimed.
        assert done["unknown"] == [f"commit map @1 {name}"]
        assert "is as it was" not in done["msg"]


def test_level(hap: Haproxy, name: str, version: str) -> None:
    args = {"socket": str(hap.user), "map": name, "entries": {"k1": "x"}}
    for check in (True, False):
        done = module(args, check=check)
        if version == "3.4":
            assert done["failed"] is True
            assert "has level user, but this needs level admin" in done["msg"]
        else:
            assert done["changed"] is True
    assert content(hap, name)[0] == ("k1 v1" if version == "3.4" else "k1 x")


# --- names ----------------------------------------------------------------------------------


def test_unknown_map(hap: Haproxy, name: str, version: str) -> None:
    args = {"socket": str(hap.admin), "entries": {"a": "b"}}
    for wrong in (f"{name}x", "#77", "0", "virt@none", "opt@none", "@1"):
        done = module({**args, "map": wrong})
        assert done["failed"] is True
        if "virt@" in wrong or "opt@" in wrong:
            since = version in ("2.2", "2.6")
            assert ("exists since HAProxy 3.0" in done["msg"]) is since
        else:
            assert f"has no map {wrong!r}; there is {name}" in done["msg"]
    done = module({**args, "map": "a\nb"})
    assert done["msg"].startswith("map 'a\\nb' contains a line break")


def test_unusual_names(start_haproxy: Start, short_path: Path, version: str) -> None:
    names = [f"{short_path}/with blank", f"{short_path}/semi;colon <<", f"{short_path}/(b"]
    for one in names:
        Path(one).write_text("k v\n")
    lookups = [f'map("{one}")' for one in names]
    if version not in ("2.2", "2.6"):
        names += ["virt@empty", f"opt@{short_path}/none"]
        lookups += ["map(virt@empty)", f"map(opt@{short_path}/none)"]
    hap = start_haproxy(rules(short_path, *lookups))
    for number, one in enumerate(names):
        for state in ("present", "exact"):
            entries = {"k": "v", "n": state}
            args = {"socket": str(hap.admin), "map": one, "entries": entries, "state": state}
            done = module(args)
            assert done["changed"] is True, done
            assert sorted(content(hap, f"#{number}")) == ["k v", f"n {state}"]
            assert module(args)["changed"] is False


def test_a_file_that_an_acl_shares(start_haproxy: Start, short_path: Path, name: str) -> None:
    text = rules(short_path, f"map({name})")
    text = text.replace(
        "backend app", f"    http-request deny if {{ path -M -f {name} }}\nbackend app"
    )
    (short_path / "m").write_text(BEFORE)
    hap = start_haproxy(text)
    args = {"socket": str(hap.admin), "entries": {"k1": "x"}}
    assert module({**args, "map": name})["changed"] is True
    assert content(hap, name)[0] == "k1 x"
    acl = {"socket": str(hap.admin), "acl": name, "entries": ["k1"], "state": "absent"}
    done = run_module("haproxy_acl", acl)
    assert done["failed"] is True
    assert "use the module haproxy_map" in done["msg"]


# --- many -----------------------------------------------------------------------------------


def test_several_haproxies(
    start_haproxy: Start, short_path: Path, name: str, relay: MakeRelay
) -> None:
    first = start_with(start_haproxy, short_path)
    second = start_haproxy(rules(short_path, f"map({name})").replace("maps.sock", "maps2.sock"))
    second.ask(f"set map {name} k1 new")
    wires = [relay(first), relay(second)]
    both = [wire.address for wire in wires]
    for state, entries in (
        ("present", {"k1": "new", "n": "N"}),
        ("exact", {"n": "N"}),
        ("absent", {"n": "N"}),
    ):
        args = {"socket": both, "map": name, "entries": entries, "state": state}
        check, done = module(args, check=True), module(args)
        assert done["changed"] is True, done
        assert done["commands"] == check["commands"]
        assert [row["socket"] for row in done["maps"]] == both
        assert content(first, name) == content(second, name)
        assert module(args)["changed"] is False
    # Everything is found before anything is sent to any.
    for wire in wires:
        wire.changes()
    third = start_haproxy("backend app\n")
    args = {"socket": [*both, str(third.admin)], "map": name, "entries": {"x": "y"}}
    done = module(args)
    assert (done["failed"], done["changed"]) == (True, False)
    assert str(third.admin) in done["msg"]
    assert [wire.changes() for wire in wires] == [[], []]


def test_ten_thousand(hap: Haproxy, name: str, relay: MakeRelay, version: str) -> None:
    """In few writes and well below the seconds that one connection an entry would take."""
    wire = relay(hap)
    entries = {f"host{number:05d}.example.com": f"backend {number % 7}" for number in range(10000)}
    args = {"socket": wire.address, "map": name, "entries": entries, "state": "exact"}
    began = time.monotonic()
    done = module(args)
    seconds = time.monotonic() - began
    assert done["changed"] is True
    assert content(hap, name) == [f"{key} {value}" for key, value in entries.items()]
    assert seconds < 5
    assert wire.connections == 1
    assert done["maps"][0]["count"] == 10000
    assert done["entries"] == []
    if version != "2.2":
        assert len(done["commands"]) < 40
    wire.changes()
    assert module(args)["changed"] is False
    assert wire.changes() == []
    less = {key: value for key, value in entries.items() if value != "backend 3"}
    gone = [key for key in entries if key not in less]
    absent = {"socket": wire.address, "map": name, "entries": gone, "state": "absent"}
    assert module(absent)["maps"][0]["removed"] == len(gone)
    assert len(content(hap, name)) == len(less)
