# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_stick_table against real HAProxy processes: what it does, and what it sends."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import (
    VERSIONS,
    Haproxy,
    Relay,
    cells,
    four_steps,
    free_port,
    http_origin,
    run_module,
)

Start = t.Callable[..., Haproxy]
MakeRelay = t.Callable[..., Relay]
MODULE = "haproxy_stick_table"

TABLES = """\
backend app
    stick-table type ip size 1k expire 1h store gpc0,gpt0,conn_cnt,bytes_in_cnt,conn_rate(1h)
    stick on src
    server s1 127.0.0.1:1 id 1
    server s2 127.0.0.1:2 id 7
backend six
    stick-table type ipv6 size 1k expire 1h store gpc0
backend num
    stick-table type integer size 1k store gpt0
backend str
    stick-table type string len 8 size 1k store gpc0,server_id
backend bin
    stick-table type binary len 4 size 1k store gpc0,server_id
backend bare
    stick-table type ip size 1k
peers mine
    table shared type ip size 1k store gpc0,server_id
"""
ARRAYS = """\
backend arr
    stick-table type ip size 1k store gpc(3),gpt(2),gpc_rate(3,1h)
"""


def stick(hap: Haproxy | Relay, *, check: bool = False, **args: t.Any) -> dict[str, t.Any]:
    if isinstance(hap, Relay):
        where = {"socket": hap.address, **hap.options}
    else:
        where = {"socket": str(hap.admin)}
    return run_module(MODULE, {**where, **args}, check=check)


def changed(result: dict[str, t.Any]) -> bool:
    """A task that has failed in the middle has changed something, too."""
    assert not result.get("failed"), result
    return bool(result["changed"])


def some_versions(*versions: str) -> t.Any:
    """Those of them that this run is about."""
    found = [version for version in versions if version in VERSIONS]
    return pytest.mark.parametrize("version", found, indirect=True)


def rows(hap: Haproxy, table: str, more: str = "") -> dict[str, dict[str, str]]:
    """The entries of a table, by key: an own reading of HAProxy's own words."""
    found = {}
    for line in hap.ask(f"show table {table}{more}").splitlines():
        if line.startswith("0x"):
            pairs = [pair.partition("=") for pair in line.split(": ", 1)[1].split(" ")]
            row = {name.split("(")[0]: value for name, _eq, value in pairs}
            found[row.pop("key")] = row
    return found


def server_key(row: dict[str, str]) -> str:
    """HAProxy 2.2 calls it by another name."""
    return row.get("server_key", row.get("server_name", "?"))


@pytest.fixture
def hap(start_haproxy: Start, version: str) -> Haproxy:
    return start_haproxy(TABLES + ("" if version == "2.2" else ARRAYS))


# --- check, do, check, do for each option ---------------------------------------------------

A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"

CASES: dict[str, tuple[list[str], dict[str, t.Any], list[str]]] = {
    # name: (commands that prepare, arguments, commands expected)
    "new": ([], {"table": "app", "entries": [{"key": A}]}, [f"set table app key {A}"]),
    "new with data": (
        [],
        {"table": "app", "entries": [{"key": A, "data": {"gpc0": 5, "server_id": "7"}}]},
        [f"set table app key {A} data.gpc0 5 data.server_id 7"],
    ),
    "only what differs": (
        [f"set table app key {A} data.gpc0 5 data.gpt0 1", f"set table app key {B} data.gpc0 5"],
        {
            "table": "app",
            "entries": [
                {"key": A, "data": {"gpc0": 5, "gpt0": 2}},
                {"key": B, "data": {"gpc0": 5}},
                {"key": C, "data": {}},
            ],
        },
        [f"set table app key {A} data.gpt0 2", f"set table app key {C}"],
    ),
    "every counter": (
        [],
        {
            "table": "app",
            "entries": [
                {
                    "key": A,
                    "data": {
                        "gpc0": 2**32 - 1,
                        "gpt0": 2**32 - 1,
                        "conn_cnt": 2**32 - 1,
                        "bytes_in_cnt": 2**63 - 1,
                        "server_id": 2**31 - 1,
                    },
                }
            ],
        },
        [
            f"set table app key {A} data.gpc0 4294967295 data.gpt0 4294967295 data.conn_cnt "
            "4294967295 data.bytes_in_cnt 9223372036854775807 data.server_id 2147483647"
        ],
    ),
    "back to zero": (
        [f"set table app key {A} data.gpc0 5"],
        {"table": "app", "entries": [{"key": A, "data": {"gpc0": 0}}]},
        [f"set table app key {A} data.gpc0 0"],
    ),
    "pin": (
        [],
        {"table": "app", "server": "s2", "entries": [{"key": A}, {"key": B}]},
        [f"set table app key {A} data.server_id 7", f"set table app key {B} data.server_id 7"],
    ),
    "pin in another backend's words": (
        [],
        {
            "table": "mine/shared",
            "backend": "app",
            "server": "s2",
            "entries": [{"key": A, "data": {"gpc0": 1}}],
        },
        [f"set table mine/shared key {A} data.gpc0 1 data.server_id 7"],
    ),
    "IPv4 address in a long form": (
        [],
        {"table": "app", "entries": [{"key": f"::ffff:{A}", "data": {"gpc0": 1}}]},
        [f"set table app key {A} data.gpc0 1"],
    ),
    "IPv6 address in a long form": (
        [],
        {"table": "six", "entries": [{"key": "2001:DB8:0::0:1", "data": {"gpc0": 1}}]},
        ["set table six key 2001:db8::1 data.gpc0 1"],
    ),
    "IPv4 among IPv6": (
        [],
        {"table": "six", "entries": [{"key": A, "data": {"gpc0": 1}}]},
        [f"set table six key ::ffff:{A} data.gpc0 1"],
    ),
    "IPv4 within IPv6": (
        [],
        {"table": "six", "entries": [{"key": "::192.0.2.9", "data": {"gpc0": 1}}]},
        ["set table six key ::c000:209 data.gpc0 1"],
    ),
    "integer": (
        [],
        {"table": "num", "entries": [{"key": 7, "data": {"gpt0": 1}}, {"key": "0010"}]},
        ["set table num key 7 data.gpt0 1", "set table num key 10"],
    ),
    "string as long as may be": (
        [],
        {"table": "str", "entries": [{"key": "12345678", "data": {"gpc0": 1}}]},
        ["set table str key 12345678 data.gpc0 1"],
    ),
    "strings of any kind": (
        [],
        {
            "table": "str",
            "entries": [
                {"key": key, "data": {"gpc0": 1}}
                for key in (
                    "a b",
                    "a\\ b",
                    "é=ü",
                    "a;b",
                    "<<x",
                    "x<<",
                    "a\tb",
                    "\x1b\x01\x7f",
                    "\\x41",
                    "'\"",
                    "=",
                    "-",
                    "ptr",
                    "#1",
                    " x ",
                    "\\",
                )
            ],
        },
        [
            rf"set table str key {key} data.gpc0 1"
            for key in (
                r"a\ b",
                r"a\\\ b",
                "é=ü",
                r"a\;b",
                r"\<\<x",
                r"x\<\<",
                "a\\\tb",
                "\x1b\x01\x7f",
                r"\\x41",
                "'\"",
                "=",
                "-",
                "ptr",
                "#1",
                r"\ x\ ",
                r"\\",
            )
        ],
    ),
    "absent": (
        [f"set table app key {A} data.gpc0 5", f"set table app key {B}"],
        {"table": "app", "state": "absent", "entries": [{"key": A}, {"key": C}]},
        [f"clear table app key {A}"],
    ),
    "absent strings": (
        [r"set table str key a\ b", r"set table str key é\;", "set table str key x"],
        {"table": "str", "state": "absent", "entries": [{"key": "é;"}, {"key": "a b"}]},
        [r"clear table str key é\;", r"clear table str key a\ b"],
    ),
    "absent IPv6": (
        ["set table six key 2001:db8::1", "set table six key 2001:db8::2"],
        {"table": "six", "state": "absent", "entries": [{"key": "2001:0db8::1"}]},
        ["clear table six key 2001:db8::1"],
    ),
    "where": (
        [f"set table app key {A} data.gpc0 5", f"set table app key {B} data.gpc0 6"],
        {
            "table": "app",
            "state": "absent",
            "where": [{"type": "gpc0", "operator": "gt", "value": "5"}],
        },
        ["clear table app data.gpc0 gt 5"],
    ),
    "where four": (
        [f"set table app key {A} data.gpc0 5", f"set table app key {B} data.gpc0 5 data.gpt0 1"],
        {
            "table": "app",
            "state": "absent",
            "where": [
                {"type": "gpc0", "operator": "eq", "value": 5},
                {"type": "gpt0", "operator": "ne", "value": 0},
                {"type": "conn_rate", "operator": "le", "value": 0},
                {"type": "bytes_in_cnt", "operator": "lt", "value": 2**63 - 1},
            ],
        },
        [
            "clear table app data.gpc0 eq 5 data.gpt0 ne 0 data.conn_rate le 0 "
            "data.bytes_in_cnt lt 9223372036854775807"
        ],
    ),
    "unpin": (
        [
            f"set table app key {A} data.server_id 7",
            f"set table app key {B} data.server_id 1",
            f"set table app key {C} data.server_id 7",
        ],
        {"table": "app", "state": "absent", "server": "s2"},
        ["clear table app data.server_id eq 7"],
    ),
    "empty": (
        [f"set table app key {A}", "set table six key ::1"],
        {"table": "app", "state": "empty"},
        ["clear table app"],
    ),
    "leave what is in use": (
        [f"set table app key {A}"],
        {"table": "app", "state": "empty", "in_use": "leave"},
        ["clear table app"],
    ),
}


@cells(CASES)
def test_four_steps(hap: Haproxy, relay: MakeRelay, case: str, kind: str) -> None:
    prepare, args, commands = CASES[case]
    for command in prepare:
        assert hap.ask(command) == "\n"
    wire = relay(hap, kind)
    check, done = four_steps(MODULE, args, wire, commands=commands)
    assert check["cleared"] == [
        {**entry, "expires": old["expires"]}
        for entry, old in zip(done["cleared"], check["cleared"])
    ]
    table = args["table"]
    now = rows(hap, table)
    if args.get("state", "present") == "present":
        assert [entry["key"] for entry in done["entries"]] == list(done["diff"]["after"][table])
        assert len(now) == len(args["entries"])
    else:
        assert done["entries"] == []
        gone = {entry["key"] for entry in done["cleared"]}
        assert gone == set(done["diff"]["before"][table])
        assert not gone & set(now)
        # Nothing else has gone.
        assert len(gone) + len(now) == len([c for c in prepare if f" {table} " in c])


def test_data_is_there_and_returned(hap: Haproxy) -> None:
    hap.ask(f"set table app key {A} data.gpc0 5 data.conn_cnt 9")
    done = stick(hap, table="app", entries=[{"key": A, "data": {"gpc0": 6, "server_id": 7}}])
    row = rows(hap, "app")[A]
    assert (row["gpc0"], row["server_id"], row["conn_cnt"]) == ("6", "7", "9")
    (entry,) = done["entries"]
    assert (entry["table"], entry["key"], entry["use"]) == ("app", A, 0)
    assert 3_500_000 < entry["expires"] <= 3_600_000
    data = entry["data"]
    assert (data["gpc0"], data["server_id"], data["conn_cnt"], data["conn_rate"]) == (6, 7, 9, 0)
    assert entry["socket"] == str(hap.admin)
    assert done["diff"]["before"] == {"app": {A: {"gpc0": 5, "server_id": 0}}}
    assert done["diff"]["after"] == {"app": {A: {"gpc0": 6, "server_id": 7}}}


@some_versions("2.6", "3.2", "3.4")
def test_elements_of_arrays(hap: Haproxy, relay: MakeRelay, version: str) -> None:
    first = {"gpc[0]": 5, "gpt": 6}
    four_steps(
        MODULE,
        {"table": "arr", "entries": [{"key": A, "data": first}]},
        relay(hap),
        commands=[f"set table arr key {A} data.gpc 5 data.gpt 6"],
    )
    row = rows(hap, "arr")[A]
    assert (row["gpc0"], row["gpc1"], row["gpt0"], row["gpt1"]) == ("5", "0", "6", "0")
    second = {"gpc[2]": 5, "gpt[1]": 6}
    if version == "2.6":
        failed = stick(hap, table="arr", entries=[{"key": B, "data": second}])
        assert "does not know the type of data gpc[2]; up to 3.0 only" in failed["msg"]
        assert B not in rows(hap, "arr")
        return
    four_steps(
        MODULE,
        {"table": "arr", "entries": [{"key": A, "data": second}]},
        relay(hap),
        commands=[f"set table arr key {A} data.gpc[2] 5 data.gpt[1] 6"],
    )
    row = rows(hap, "arr")[A]
    assert (row["gpc0"], row["gpc1"], row["gpc2"], row["gpt1"]) == ("5", "0", "5", "6")
    where = [{"type": "gpc[2]", "operator": "eq", "value": 5}]
    four_steps(
        MODULE,
        {"table": "arr", "state": "absent", "where": where},
        relay(hap),
        commands=["clear table arr data.gpc[2] eq 5"],
    )


@some_versions("3.2")
def test_a_refused_command_leaves_no_entry(hap: Haproxy) -> None:
    """HAProxy does not tell how long an array is, and creates the entry before it looks."""
    entries = [{"key": A, "data": {"gpc": 1}}, {"key": B, "data": {"gpc[9]": 1}}]
    assert changed(stick(hap, table="arr", entries=entries, check=True)) is True
    failed = stick(hap, table="arr", entries=entries)
    assert "refused" in failed["msg"]
    assert "index out of range" in failed["msg"]
    assert set(rows(hap, "arr")) == {A}
    assert failed["changed"] is True
    assert failed["commands"] == [
        f"set table arr key {A} data.gpc 1",
        f"clear table arr key {B}",
    ]
    assert failed["refused"][0]["command"] == f"set table arr key {B} data.gpc[9] 1"


# --- what HAProxy would twist ---------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, t.Any], str]] = {
    "unknown table": (
        {"table": "ap", "entries": [{"key": A}]},
        "has no stick table 'ap'; there is app",
    ),
    "unknown server": (
        {"table": "app", "server": "s3", "entries": [{"key": A}]},
        "has no server 's3' in backend 'app'; there is s1, s2",
    ),
    "unknown backend": (
        {"table": "mine/shared", "backend": "none", "server": "s1", "state": "absent"},
        "has no backend 'none'",
    ),
    "server of a table without backend's name": (
        {"table": "six", "server": "s1", "state": "absent"},
        "table 'six' of HAProxy",
    ),
    "data that is not stored": (
        {"table": "app", "entries": [{"key": A, "data": {"gpc1": 3}}]},
        "does not store gpc1",
    ),
    "data of a table that stores none": (
        {"table": "bare", "entries": [{"key": A, "data": {"gpc0": 3}}]},
        "does not store gpc0",
    ),
    "condition on what is not stored": (
        {
            "table": "six",
            "state": "absent",
            "where": [{"type": "conn_rate", "operator": "eq", "value": 0}],
        },
        "does not store conn_rate",
    ),
    "IPv6 among IPv4": ({"table": "app", "entries": [{"key": "2001:db8::1"}]}, "IPv4 address"),
    "no address": ({"table": "app", "entries": [{"key": "bogus"}]}, "must be an IP address"),
    "network": ({"table": "app", "entries": [{"key": "192.0.2.0/24"}]}, "without a mask"),
    "short address": ({"table": "app", "entries": [{"key": "192.0.2"}]}, "must be an IP address"),
    "no IPv6 address": ({"table": "six", "entries": [{"key": "x"}]}, "must be an IP address"),
    "scope": ({"table": "six", "entries": [{"key": "fe80::1%lo"}]}, "must be an IP address"),
    "clearing no address": (
        {"table": "app", "state": "absent", "entries": [{"key": "bogus"}]},
        "must be an IP address",
    ),
    "no integer": ({"table": "num", "entries": [{"key": "abc"}]}, "from 0 to 4294967295"),
    "negative integer": ({"table": "num", "entries": [{"key": -1}]}, "from 0 to 4294967295"),
    "large integer": ({"table": "num", "entries": [{"key": 2**32}]}, "from 0 to 4294967295"),
    "binary": ({"table": "bin", "entries": [{"key": "abcd"}]}, "the table's type is binary"),
    "twice": (
        {"table": "six", "entries": [{"key": "::1"}, {"key": A}, {"key": "0::1"}]},
        "'::1' and '0::1' are the same key",
    ),
    "server twice": (
        {"table": "app", "server": "s1", "entries": [{"key": A, "data": {"server_id": 1}}]},
        "server_id and server say the same",
    ),
    "line break": ({"table": "str", "entries": [{"key": "a\nb"}]}, "line break"),
}


@cells(REFUSED)
def test_refused_before_anything_is_sent(
    hap: Haproxy, relay: MakeRelay, case: str, kind: str
) -> None:
    args, words = REFUSED[case]
    args = {**args}
    if "entries" in args:
        # Something that could be done comes first.
        first = {"str": "ok", "num": "1", "six": "2001:db8::7"}.get(args["table"], "192.0.2.77")
        args["entries"] = [{"key": first}, *args["entries"]]
        if args["table"] == "bin":
            args["entries"] = args["entries"][1:]
    wire = relay(hap, kind)
    for check in (True, False):
        failed = stick(wire, check=check, **args)
        assert failed.get("failed") is True, failed
        assert words in failed["msg"]
        assert "\n" not in failed["msg"]
        assert failed["changed"] is False
    assert wire.changes() == []
    for table in ("app", "six", "num", "str", "bin", "bare"):
        assert rows(hap, table) == {}


def test_long_strings_are_not_cut_off(hap: Haproxy, relay: MakeRelay) -> None:
    """HAProxy does not tell the length: an entry made of half a key is removed again."""
    wire = relay(hap)
    assert changed(stick(wire, table="str", entries=[{"key": "ok"}])) is True
    wire.commands()
    failed = stick(wire, table="str", entries=[{"key": "123456789", "data": {"gpc0": 3}}])
    assert "'123456789': table 'str' keeps only '12345678' of it" in failed["msg"]
    assert set(rows(hap, "str")) == {"ok"}
    assert failed["commands"] == wire.changes()
    assert failed["commands"][-1] == "clear table str key 123456789"
    # In bytes, and in the middle of a character.
    failed = stick(wire, table="str", entries=[{"key": "1234567é"}])
    assert r"keeps only '1234567\\xc3' of it" in failed["msg"]
    assert set(rows(hap, "str")) == {"ok"}
    # Where the half exists, it is seen before.
    hap.ask("set table str key 12345678 data.gpc0 9")
    wire.commands()
    for state in ("present", "absent"):
        failed = stick(wire, table="str", state=state, entries=[{"key": "123456789"}])
        assert "keeps only '12345678' of it" in failed["msg"]
    assert wire.changes() == []
    assert rows(hap, "str")["12345678"]["gpc0"] == "9"


def test_full_tables(start_haproxy: Start, relay: MakeRelay) -> None:
    table = "    stick-table type ip size 2 expire 1h store gpc0"
    hap = start_haproxy(f"backend purge\n{table}\nbackend keep\n{table} nopurge\n", default="keep")
    wire = relay(hap)
    three = [{"key": key} for key in (A, B, C)]
    for check in (True, False):
        failed = stick(wire, table="purge", entries=three, check=check)
        assert "3 do not fit into table 'purge', which has a size of 2" in failed["msg"]
    assert wire.changes() == []
    assert changed(stick(wire, table="keep", entries=three[:2])) is True
    failed = stick(wire, table="keep", entries=three[2:])
    assert "Unable to allocate a new entry" in failed["msg"]
    assert (failed["changed"], failed["commands"]) == (False, [])
    assert set(rows(hap, "keep")) == {A, B}


# --- rights ---------------------------------------------------------------------------------


def test_level(hap: Haproxy) -> None:
    """Up to 3.0 a user's `clear table` is answered like a success and does nothing."""
    hap.ask(f"set table app key {A}")
    for state in ("empty", "present"):
        args = {"entries": [{"key": B}]} if state == "present" else {}
        failed = run_module(
            MODULE, {"socket": str(hap.user), "table": "app", "state": state, **args}
        )
        assert "level user, but this needs level operator" in failed["msg"]
    assert set(rows(hap, "app")) == {A}
    assert rows(hap, "app")[A]["use"] == "0"
    operator = str(hap.directory / "operator.sock")
    done = run_module(MODULE, {"socket": operator, "table": "app", "state": "empty"})
    assert changed(done) is True
    assert rows(hap, "app") == {}


# --- with clients ---------------------------------------------------------------------------

CLIENTS = """\
backend app
    stick-table type string len 16 size 1k expire 1h store gpc0{peers}
    stick on url_param(id)
    server s1 127.0.0.1:{one} id {ids[0]}
    server s2 127.0.0.1:{two} id {ids[1]}
backend bytes
    stick-table type binary len 4 size 1k expire 1h
    stick on url_param(id)
    server s1 127.0.0.1:{one} id 1
    server s2 127.0.0.1:{two} id 2
backend other
    stick on url_param(id) table bytes
    stick on url_param(id),url_dec table app
    server s1 127.0.0.1:{one} id 2
    server s2 127.0.0.1:{two} id 1
backend addr
    stick-table type string len 16 size 1k expire 1h {srvkey}
    stick on url_param(id)
    server s1 127.0.0.1:{one} id 1
    server s2 127.0.0.1:{two} id 2
frontend more
    bind unix@{directory}/more.sock
    use_backend bytes if {{ path /bytes }}
    use_backend addr if {{ path /addr }}
    use_backend other if {{ path /other }}
    default_backend app
"""


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(str(self._path))


def get(hap: Haproxy, path: str) -> str:
    """Which server answers."""
    with contextlib.closing(_Unix(hap.directory / "more.sock")) as connection:
        connection.request("GET", path)
        return connection.getresponse().read().decode()


@pytest.fixture(scope="module")
def two_origins() -> Iterator[tuple[int, int]]:
    with http_origin(name="one") as one, http_origin(name="two") as two:
        yield one, two


@pytest.fixture
def clients(
    start_haproxy: Start, short_path: Path, version: str, two_origins: tuple[int, int]
) -> Haproxy:
    return start_haproxy(
        CLIENTS.format(
            one=two_origins[0],
            two=two_origins[1],
            ids=(1, 7),
            peers="",
            directory=short_path / "h0",
            srvkey="" if version == "2.2" else "srvkey addr",
        )
    )


def pin(hap: Haproxy, path: str, name: str, server: str) -> None:
    """Let a client be pinned to a server by HAProxy itself."""
    backend = path.strip("/") or "app"
    other = "s2" if server == "s1" else "s1"
    hap.ask(f"set server {backend}/{other} weight 0")
    assert get(hap, f"{path}?id={name}") == ("one" if server == "s1" else "two")
    hap.ask(f"set server {backend}/{other} weight 1")


def test_unpin_frees_clients(clients: Haproxy, relay: MakeRelay) -> None:
    for name, server in (("a", "s1"), ("b", "s2"), ("c", "s2")):
        pin(clients, "/", name, server)
    # A pinned client stays although its server takes no others.
    clients.ask("set server app/s2 weight 0")
    assert get(clients, "/?id=b") == "two"
    _check, done = four_steps(
        MODULE,
        {"table": "app", "state": "absent", "server": "s2"},
        relay(clients),
        commands=["clear table app data.server_id eq 7"],
    )
    assert {entry["key"] for entry in done["cleared"]} == {"b", "c"}
    assert get(clients, "/?id=b") == "one"
    assert set(rows(clients, "app")) == {"a", "b"}


@pytest.mark.parametrize("path", ["/bytes", "/addr"])
def test_unpin_from_other_tables(clients: Haproxy, relay: MakeRelay, path: str) -> None:
    """Binary keys, and (since 2.4) servers noted by address."""
    for name, server in (("a", "s1"), ("b", "s2")):
        pin(clients, path, name, server)
    table = path.strip("/")
    _check, done = four_steps(
        MODULE,
        {"table": table, "state": "absent", "server": "s1"},
        relay(clients),
        commands=[f"clear table {table} data.server_id eq 1"],
    )
    (entry,) = done["cleared"]
    assert entry["key"] == ("61000000" if table == "bytes" else "a")
    assert len(rows(clients, table)) == 1


@pytest.mark.parametrize("path", ["/", "/addr"])
def test_unpin_goes_by_the_name(
    clients: Haproxy, relay: MakeRelay, version: str, path: str
) -> None:
    """The number in an entry may be that of the server at a peer, or anybody's."""
    for name, server in (("a", "s1"), ("b", "s2")):
        pin(clients, path, name, server)
    table = path.strip("/") or "app"
    two = 7 if table == "app" else 2
    args = {"table": table, "state": "absent", "server": "s2"}
    clients.ask(f"set table {table} key a data.server_id {two}")
    clients.ask(f"set table {table} key b data.server_id 1")
    if version == "2.2":
        # By the number; the name is of no use.
        commands, left = [f"clear table {table} data.server_id eq {two}"], "b"
    else:
        commands, left = [f"clear table {table} key b"], "a"
    four_steps(MODULE, args, relay(clients), commands=commands)
    assert set(rows(clients, table)) == {left}
    assert get(clients, f"{path}?id={left}") == "one"


def test_binary_keys(clients: Haproxy, version: str) -> None:
    """HAProxy clears them by what they hold, never one alone."""
    pin(clients, "/other", "a", "s1")
    pin(clients, "/bytes", "b", "s2")
    pin(clients, "/bytes", "c", "s2")
    assert {row["server_id"] for row in rows(clients, "bytes").values()} == {"2"}
    one = stick(clients, table="bytes", state="absent", server="s1")
    if version == "2.2":
        # By the number, all are at s2.
        assert changed(one) is False
    else:
        assert "clears no single entries of type binary" in one["msg"]
        assert "together with all that have server_id 2" in one["msg"]
        assert one["changed"] is False
    where = [{"type": "server_id", "operator": "eq", "value": 2}]
    done = stick(clients, table="bytes", state="absent", where=where)
    assert {entry["key"] for entry in done["cleared"]} == {"61000000", "62000000", "63000000"}
    assert rows(clients, "bytes") == {}


def test_keys_that_are_no_text(clients: Haproxy, relay: MakeRelay, version: str) -> None:
    """Clients can have them. Only their places in memory name them, and only since 3.0."""
    pin(clients, "/other", "%ff", "s1")
    pin(clients, "/", "a", "s2")
    assert set(rows(clients, "app")) == {r"\xFF", "a"}
    args = {"table": "app", "state": "absent", "server": "s1"}
    one = run_module(MODULE, {"socket": str(clients.admin), **args}, check=True)
    if version == "2.2":
        assert changed(one) is False
    elif version == "2.6":
        assert "clearing entries whose keys are no text exists since HAProxy 3.0" in one["msg"]
    else:
        _check, done = four_steps(MODULE, args, relay(clients))
        assert done["commands"][0].startswith("clear table app ptr 0x")
        assert [entry["key"] for entry in done["cleared"]] == [r"\xff"]
        assert set(rows(clients, "app")) == {"a"}
    # By what they hold they go anyway.
    assert changed(stick(clients, table="app", state="empty")) is True
    assert rows(clients, "app") == {}


def test_move_a_pinned_client(clients: Haproxy, relay: MakeRelay, version: str) -> None:
    """HAProxy puts the number back where it has noted the server's name."""
    pin(clients, "/", "a", "s1")
    assert server_key(rows(clients, "app")["a"]) == "s1"
    clients.ask("set table app key a data.server_id 7")
    # 2.2 goes by the number.
    assert get(clients, "/?id=a") == ("two" if version == "2.2" else "one")
    assert rows(clients, "app")["a"]["server_id"] == ("7" if version == "2.2" else "1")
    clients.ask("clear table app")
    pin(clients, "/", "a", "s1")
    commands = ["clear table app key a", "set table app key a data.gpc0 4 data.server_id 7"]
    _check, done = four_steps(
        MODULE,
        {"table": "app", "server": "s2", "entries": [{"key": "a", "data": {"gpc0": 4}}]},
        relay(clients),
        commands=commands[1:] if version == "2.2" else commands,
    )
    assert len(done["cleared"]) == (0 if version == "2.2" else 1)
    assert get(clients, "/?id=a") == "two"
    row = rows(clients, "app")["a"]
    assert (row["server_id"], server_key(row), row["gpc0"]) == ("7", "s2", "4")
    # Where it is right already, the name does not matter.
    again = stick(clients, table="app", server="s2", entries=[{"key": "a"}])
    assert changed(again) is False


def test_entries_in_use(start_haproxy: Start, relay: MakeRelay, echo: int) -> None:
    port = free_port()
    hap = start_haproxy(
        "backend held\n"
        "    stick-table type ip size 1k expire 1h store gpc0\n"
        f"    server e 127.0.0.1:{echo}\n"
        "frontend holding\n"
        f"    bind 127.0.0.1:{port}\n"
        "    mode tcp\n"
        "    tcp-request connection track-sc0 src table held\n"
        "    default_backend far\n"
        "backend far\n"
        "    mode tcp\n"
        f"    server e 127.0.0.1:{echo}\n",
        default="held",
    )
    wire = relay(hap)
    hap.ask(f"set table held key {A}")
    ways: list[dict[str, t.Any]] = [
        {"state": "absent", "entries": [{"key": A}, {"key": "127.0.0.1"}]},
        {"state": "absent", "where": [{"type": "gpc0", "operator": "eq", "value": 0}]},
        {"state": "empty"},
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        # What HAProxy does by itself.
        assert hap.ask("clear table held data.gpc0 eq 0") == "\n"
        assert set(rows(hap, "held")) == {"127.0.0.1"}
        for way in ways:
            hap.ask(f"set table held key {A}")
            wire.commands()
            for check in (True, False):
                failed = stick(wire, table="held", check=check, **way)
                assert "1 of the entries to be cleared are in use" in failed["msg"]
                assert "'127.0.0.1'" in failed["msg"]
                assert failed["in_use"][0]["use"] == 1
                assert failed["changed"] is False
            assert wire.changes() == []
            _check, done = four_steps(MODULE, {"table": "held", "in_use": "leave", **way}, wire)
            assert [entry["key"] for entry in done["entries"]] == ["127.0.0.1"]
            assert [entry["key"] for entry in done["cleared"]] == [A]
    hap.until(lambda: rows(hap, "held")["127.0.0.1"]["use"] == "0")
    assert changed(stick(wire, table="held", state="empty")) is True
    assert rows(hap, "held") == {}


def test_counters_go_on_counting(start_haproxy: Start) -> None:
    """Traffic that counts right after a counter was set does not make the task fail."""
    hap = start_haproxy(
        "backend count\n"
        "    stick-table type ip size 1k expire 1h store gpc0\n"
        "    http-request track-sc0 src table count\n"
        "    http-request sc-inc-gpc0(0)\n",
        default="count",
    )
    stop = threading.Event()

    def hammer() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", hap.port, timeout=5)
        while not stop.is_set():
            connection.request("GET", "/")
            connection.getresponse().read()
        connection.close()

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        hap.until(lambda: int(rows(hap, "count").get("127.0.0.1", {}).get("gpc0", "0")) > 20)
        for value in (10**9, 0) * 8:
            wanted = [{"key": "127.0.0.1", "data": {"gpc0": value}}]
            done = stick(hap, table="count", entries=wanted)
            assert changed(done) is True
            assert value <= int(rows(hap, "count")["127.0.0.1"]["gpc0"]) < value + 10**8
            time.sleep(0.005)
    finally:
        stop.set()
        thread.join(5)


# --- several HAProxys -----------------------------------------------------------------------


def test_several_sockets(start_haproxy: Start) -> None:
    both = [start_haproxy(TABLES), start_haproxy(TABLES)]
    sockets = [str(hap.admin) for hap in both]
    both[0].ask(f"set table app key {A} data.gpc0 5")
    args = {"socket": sockets, "table": "app", "entries": [{"key": A, "data": {"gpc0": 5}}]}
    check = run_module(MODULE, args, check=True)
    done = run_module(MODULE, args)
    assert check["commands"] == done["commands"] == [f"set table app key {A} data.gpc0 5"]
    assert [entry["socket"] for entry in done["entries"]] == sockets
    assert check["diff"] == done["diff"]
    assert all(rows(hap, "app")[A]["gpc0"] == "5" for hap in both)
    assert changed(run_module(MODULE, args)) is False


def test_nothing_is_sent_if_one_of_several_cannot(start_haproxy: Start, relay: MakeRelay) -> None:
    good = start_haproxy(TABLES)
    bad = start_haproxy(TABLES.replace("store gpc0,gpt0,", "store gpt0,"))
    wire = relay(good)
    failed = run_module(
        MODULE,
        {
            "socket": [wire.address, str(bad.admin)],
            "table": "app",
            "entries": [{"key": A, "data": {"gpc0": 5}}],
        },
    )
    assert "does not store gpc0" in failed["msg"]
    assert str(bad.admin) in failed["msg"]
    assert wire.changes() == []
    assert rows(good, "app") == {}


PEERS = """\
global
    localpeer {me}
peers mine
    peer a 127.0.0.1:{ports[0]}
    peer b 127.0.0.1:{ports[1]}
"""


def test_peers(
    start_haproxy: Start, short_path: Path, two_origins: tuple[int, int], version: str
) -> None:
    """HAProxy teaches what is set and used, never what is cleared."""
    ports = (free_port(), free_port())
    # The servers have other numbers at the second; 2.2 would go by them.
    numbers = ((1, 2), (1, 2) if version == "2.2" else (2, 1))
    one, two = (
        start_haproxy(
            PEERS.format(me=me, ports=ports)
            + CLIENTS.format(
                one=two_origins[0],
                two=two_origins[1],
                ids=ids,
                peers=" peers mine",
                directory=short_path / f"h{number}",
                srvkey="",
            )
        )
        for number, (me, ids) in enumerate(zip("ab", numbers))
    )

    def settle() -> None:
        """What was taught before something else has arrived once that has."""
        for hap, other, key in ((one, two, "m1"), (two, one, "m2")):
            hap.ask(f"set table app key {key}")
            other.until(lambda o=other, k=key: k in rows(o, "app"))  # type: ignore[misc]
        for hap in (one, two):
            hap.ask("clear table app key m1")
            hap.ask("clear table app key m2")

    both = {"socket": [str(one.admin), str(two.admin)]}
    unpin = {"table": "app", "state": "absent", "server": "s1"}
    pin(one, "/", "x", "s1")
    settle()
    assert rows(two, "app")["x"]["server_id"] == "1"
    assert get(two, "/?id=x") == "one"
    settle()
    # The one that has used an entry last has its number in it.
    assert rows(one, "app")["x"]["server_id"] == str(numbers[1][0])
    # At one only: it stays at the other, and comes back as soon as that one uses it.
    assert changed(run_module(MODULE, {**unpin, "socket": str(one.admin)})) is True
    settle()
    assert "x" not in rows(one, "app")
    assert get(two, "/?id=x") == "one"
    settle()
    assert "x" in rows(one, "app")
    # At both: it is gone.
    done = run_module(MODULE, {**both, **unpin})
    assert [entry["key"] for entry in done["cleared"]] == ["x", "x"]
    settle()
    assert rows(one, "app") == rows(two, "app") == {}
    assert changed(run_module(MODULE, {**both, **unpin})) is False
    # What is set at one is taught to the other.
    stick(one, table="app", entries=[{"key": "y", "data": {"gpc0": 3}}])
    settle()
    assert rows(two, "app")["y"]["gpc0"] == "3"
