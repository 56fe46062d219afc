# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import dataclasses
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _table
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    Error,
    InputError,
    ParseError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_model import Server
from ansible_collections.clearproxy.haproxy.plugins.module_utils._table import (
    Desired,
    Entry,
    Seen,
    Table,
)

# --- replies --------------------------------------------------------------------------------

OLD = (
    "# table: app, type: ip, size:1024, used:2\n"
    "0x55757f270150: key=192.0.2.1 use=0 exp=3599994 server_id=1 gpc0=4294967295 "
    "conn_rate(10000)=3 bytes_in_cnt=-1 server_name=s1\n"
    "0x55757f270151: key=192.0.2.2 use=1 exp=0 server_id=0 gpc0=0 conn_rate(10000)=0 "
    "bytes_in_cnt=0 server_name=-\n\n"
)
NEW = (
    "# table: mine/shared, type: string, size:50, used:2\n"
    "0x7f50560712b0: key=a\\ b use=0 exp=12 shard=0 server_id=2 gpc0=5 gpc1=0 gpc0_rate(60000)=1 "
    "server_key=192.0.2.7:80\n"
    "0x7f50560712b1: key=a\\=\\xC3\\xA9\\\\x41\\t\\e\\x01\\r use=0 exp=0 shard=0 server_id=0 "
    "gpc0=0 gpc1=0 gpc0_rate(60000)=0 server_key=/run/a b\n\n"
)


def test_entries_of_old_versions() -> None:
    table, entries = _table.contents(OLD)
    assert table == Table("app", "ip", 1024, 2)
    assert entries == [
        Entry(
            "0x55757f270150",
            "192.0.2.1",
            0,
            3599994,
            {
                "server_id": 1,
                "gpc0": 2**32 - 1,
                "conn_rate": 3,
                "bytes_in_cnt": -1,
                "server_name": "s1",
            },
            {"conn_rate": 10000},
        ),
        Entry(
            "0x55757f270151",
            "192.0.2.2",
            1,
            0,
            {"server_id": 0, "gpc0": 0, "conn_rate": 0, "bytes_in_cnt": 0, "server_name": None},
            {"conn_rate": 10000},
        ),
    ]
    # 2.2 tells a name and goes by the number.
    assert [entry.server_key for entry in entries] == [None, None]
    assert [entry.server_id for entry in entries] == [1, None]


def test_entries_of_new_versions() -> None:
    table, entries = _table.contents(NEW)
    assert table == Table("mine/shared", "string", 50, 2)
    assert [entry.key for entry in entries] == ["a b", "a=é\\x41\t\x1b\x01\r"]
    assert [entry.server_key for entry in entries] == ["192.0.2.7:80", "/run/a b"]
    assert entries[0].periods == {"gpc0_rate": 60000}
    assert "shard" not in entries[0].data


def test_an_absent_key_is_answered_with_nothing() -> None:
    assert _table.contents("\n") == (None, [])


def test_tables() -> None:
    reply = OLD.splitlines()[0] + "\n" + NEW.splitlines()[0] + "\n\n"
    assert [table.name for table in _table.tables(reply)] == ["app", "mine/shared"]
    assert _table.tables("\n") == []


@pytest.mark.parametrize(
    "reply",
    [
        "No such table\n\n",
        "Permission denied\n\n",
        "# table: app, type: ip, size:x, used:0\n",
        OLD.splitlines()[0] + "\n# contents not dumped due to insufficient privileges\n\n",
        OLD.replace("exp=3599994", "exp="),
        OLD.replace("gpc0=0", "gpc0=0x1"),
        OLD.replace("gpc0=0 ", "gpc0 "),
        OLD.replace("0x55757f270150", "55757f270150"),
    ],
)
def test_other_replies(reply: str) -> None:
    with pytest.raises(ParseError, match="cannot understand HAProxy's reply to 'show table'"):
        _table.contents(reply)


@given(st.text() | st.text(st.sampled_from("# table:0x1key=useexp \\\n(),")))
def test_any_text_is_parsed_or_a_parse_error(text: str) -> None:
    for reply in (text, "# table: a, type: ip, size:1, used:1\n" + text):
        with contextlib.suppress(ParseError):
            _table.tables(reply)
        with contextlib.suppress(ParseError):
            _table.contents(reply)
    with contextlib.suppress(ParseError):
        _table.contents(f"# table: a, type: ip, size:1, used:1\n0x1: key=a use=0 exp=0 {text}\n")


def escaped(data: bytes) -> str:
    """How HAProxy writes a key (its own words: dump_text, measured)."""
    special = {9: "\\t", 10: "\\n", 13: "\\r", 27: "\\e", 32: "\\ ", 61: "\\=", 92: "\\\\"}
    return "".join(
        special.get(byte) or (chr(byte) if 32 < byte < 127 else f"\\x{byte:02X}") for byte in data
    )


@given(st.binary(max_size=40))
def test_keys_survive(data: bytes) -> None:
    row = f"0x1: key={escaped(data)} use=0 exp=0 gpc0=1\n\n"
    (entry,) = _table.contents("# table: a, type: string, size:1, used:1\n" + row)[1]
    assert entry.key.encode("utf-8", "surrogateescape") == data
    # Without surrogates, which no program that reads the result could take.
    entry.shown.encode("utf-8")
    if entry.shown != entry.key:
        with pytest.raises(UnicodeDecodeError):
            data.decode("utf-8")


# --- types and keys -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "column"),
    [
        ("gpc0", "gpc0", "gpc0"),
        ("gpc", "gpc", "gpc0"),
        ("gpc[0]", "gpc", "gpc0"),
        ("gpc[12]", "gpc[12]", "gpc12"),
        ("gpt[1]", "gpt[1]", "gpt1"),
        ("gpc_rate[1]", "gpc_rate[1]", "gpc1_rate"),
        ("gpc_rate", "gpc_rate", "gpc0_rate"),
        ("http_req_rate", "http_req_rate", "http_req_rate"),
        ("server_id", "server_id", "server_id"),
    ],
)
def test_types_of_data(text: str, name: str, column: str) -> None:
    kind = _table.data_type(text, rates=True)
    assert (kind.name, kind.column) == (name, column)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server_key", "no such type"),
        ("gpc2", "no such type of number; there is gpc, gpc0, gpc1"),
        ("gpc[01]", "no such type"),
        ("gpc[100]", "no such type"),
        ("gpc0[1]", "no such type"),
        ("gpc0 data.gpt0", "no such type"),
        ("gpc0\n", "no such type"),
        ("", "no such type"),
        ("conn_rate", "a rate falls by itself"),
        ("gpc_rate[1]", "a rate falls by itself"),
    ],
)
def test_types_that_cannot_be_set(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        _table.data_type(text, rates=False)


@pytest.mark.parametrize("value", [0, "0", 7, "007", 2**32 - 1])
def test_numbers(value: t.Any) -> None:
    assert _table.number(value, 2**32 - 1, "x") == int(value)


@pytest.mark.parametrize(
    "value", [-1, "-1", 2**32, str(2**32), "", "1.0", 1.0, True, None, "0x1", " 1", "١", "1_0", []]
)
def test_numbers_that_haproxy_would_twist(value: t.Any) -> None:
    with pytest.raises(InputError, match="must be a whole number from 0 to 4294967295"):
        _table.number(value, 2**32 - 1, "x")


@pytest.mark.parametrize(
    ("kind", "text", "key"),
    [
        ("ip", "192.0.2.1", "192.0.2.1"),
        ("ip", "::ffff:192.0.2.1", "192.0.2.1"),
        ("ipv6", "2001:DB8::0:1", "2001:db8::1"),
        ("ipv6", "192.0.2.1", "::ffff:192.0.2.1"),
        ("ipv6", "::FFFF:c000:201", "::ffff:192.0.2.1"),
        ("integer", "007", "7"),
        ("integer", "4294967295", "4294967295"),
        ("string", " a b", " a b"),
    ],
)
def test_keys(kind: str, text: str, key: str) -> None:
    table = Table("t", kind, 1, 0)
    assert _table.normal_key(table, text) == key
    # What is normal stays so.
    assert _table.normal_key(table, key) == key


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("ip", "2001:db8::1"),
        ("ip", "192.0.2.1/24"),
        ("ip", "01.2.3.4"),
        ("ip", "1"),
        ("ipv6", "fe80::1%eth0"),
        ("ipv6", "x"),
        ("integer", "-1"),
        ("integer", "4294967296"),
        ("integer", "1e3"),
        ("integer", "١"),
        ("binary", "61"),
        ("anything", "61"),
    ],
)
def test_keys_that_haproxy_would_twist(kind: str, text: str) -> None:
    with pytest.raises(InputError, match="of table 't'"):
        _table.normal_key(Table("t", kind, 1, 0), text)


@given(st.sampled_from(["ip", "ipv6", "integer", "string", "binary"]), st.text(min_size=1))
def test_any_key_is_normal_or_refused(kind: str, text: str) -> None:
    table = Table("t", kind, 1, 0)
    with contextlib.suppress(InputError):
        key = _table.normal_key(table, text)
        assert _table.normal_key(table, key) == key
        assert _table.same_key(table, key, key)


# --- what a task wants ----------------------------------------------------------------------

NOTHING: dict[str, t.Any] = {
    "table": "app",
    "state": "present",
    "entries": None,
    "where": None,
    "server": None,
    "backend": None,
    "in_use": "fail",
}


def wanted(**params: t.Any) -> Desired:
    if params.get("entries"):
        params["entries"] = [{"data": None, **entry} for entry in params["entries"]]
    return Desired.from_params({**NOTHING, **params})


CONDITION = {"type": "gpc0", "operator": "eq", "value": 0}


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "entries: state=present needs them"),
        ({"table": "a b", "entries": []}, "table 'a b'"),
        ({"table": "a/b/c", "entries": []}, "table 'a/b/c'"),
        ({"table": "a\n", "entries": []}, "table 'a"),
        ({"entries": [], "where": [CONDITION]}, "where: goes with state=absent only"),
        ({"state": "absent"}, "exactly one of entries, where and server"),
        ({"state": "absent", "entries": [], "server": "s"}, "exactly one of"),
        ({"state": "absent", "where": []}, "where: the list is empty"),
        ({"state": "absent", "where": [CONDITION] * 5}, "no more than 4 conditions"),
        ({"state": "empty", "entries": []}, "entries: state=empty clears the whole table"),
        ({"state": "empty", "where": [CONDITION]}, "where: state=empty clears the whole table"),
        ({"state": "empty", "server": "s"}, "server: state=empty clears the whole table"),
        ({"entries": [], "backend": "b"}, "backend: goes with server"),
        ({"table": "a/b", "entries": [], "server": "s"}, "backend: needed with server"),
        ({"entries": [], "server": "s s"}, "server 's s'"),
        ({"entries": [], "server": "s", "backend": "b;"}, "backend 'b;'"),
        ({"entries": [], "in_use": "leave"}, "in_use: goes with"),
        ({"entries": [{"key": ""}]}, "empty"),
        ({"entries": [{"key": "a\nb"}]}, "line break"),
        ({"entries": [{"key": "a\0b"}]}, "NUL"),
        ({"entries": [{"key": "a" * 2001}]}, "longer than 2000 bytes"),
        ({"entries": [{"key": "a\udc80"}]}, "is not valid text"),
        ({"state": "absent", "entries": [{"key": "a", "data": {"gpc0": 1}}]}, "data goes with"),
        ({"entries": [{"key": "a", "data": {"gpc0": 2**32}}]}, "from 0 to 4294967295"),
        ({"entries": [{"key": "a", "data": {"server_id": 2**31}}]}, "from 0 to 2147483647"),
        ({"entries": [{"key": "a", "data": {"bytes_in_cnt": 2**63}}]}, "9223372036854775807"),
        ({"entries": [{"key": "a", "data": {"conn_rate": 1}}]}, "a rate falls by itself"),
        ({"entries": [{"key": "a", "data": {"gpc": 1, "gpc[0]": 1}}]}, "gpc is given twice"),
        ({"state": "absent", "where": [{**CONDITION, "value": -1}]}, "from 0 to 4294967295"),
        ({"state": "absent", "where": [{**CONDITION, "type": "server_key"}]}, "no such type"),
    ],
)
def test_bad_input(params: dict[str, t.Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        wanted(**params)
    assert words in str(caught.value)


# --- plans ----------------------------------------------------------------------------------

TABLE = Table("app", "string", 100, 3)
S1 = Server("app", 3, "s1", 1, "192.0.2.1", 80, None, "running", 0, 1, 1, 0, 0, 0, 0)
S2 = dataclasses.replace(S1, name="s2", id=7, address="2001:db8::2")


def entry(key: str, use: int = 0, expires: int = 1000, **data: t.Any) -> Entry:
    return Entry(f"0x{key.encode('utf-8', 'surrogateescape').hex()}", key, use, expires, data, {})


def commands(steps: t.Iterable[_table.Step]) -> list[str]:
    return [step.command for step in steps]


def test_tables_of_a_backend() -> None:
    known = [Table(name, "ip", 1, 0) for name in ("app", "mine/app", "apps")]
    assert [table.name for table in _table.tables_of(known, "app")] == ["app"]
    assert _table.tables_of(known, "front") == []


@pytest.mark.parametrize(
    ("number", "key", "pins"),
    [
        (1, None, True),
        (7, None, False),
        (0, None, False),
        (1, "s1", True),
        # What a peer with other numbers has taught, and what has been set by hand.
        (7, "s1", True),
        (1, "s2", False),
        (7, "192.0.2.1:80", True),
        (1, "2001:db8::2:80", False),
        # A server that is gone.
        (1, "old", True),
        (7, "old", False),
    ],
)
def test_pinned(number: int, key: str | None, pins: bool) -> None:
    found = [entry("a", server_id=number, server_key=key)]
    assert _table.pinned(found, S1, [S2]) == (found if pins else [])


def test_forget_by_number() -> None:
    found = [entry("a", server_id=1), entry("b", server_id=7), entry("c", server_id=1)]
    steps = _table.forget_steps(TABLE, found, S1, [S2])
    assert commands(steps) == ["clear table app data.server_id eq 1"]
    assert _table.forget_steps(TABLE, found[1:2], S1, [S2]) == []
    assert _table.forget_steps(TABLE, [], S1, [S2]) == []
    # Tables that pin nobody.
    assert _table.forget_steps(TABLE, [entry("a", gpc0=1)], S1, [S2]) == []


def test_forget_by_key() -> None:
    found = [
        entry("a b", server_id=1, server_key="s1"),
        entry("b", server_id=1, server_key="s2"),
        entry("c", server_id=7, server_key="s1"),
        entry("\udc80", server_id=7, server_key="s1"),
        entry("", server_id=7, server_key="s1"),
    ]
    assert commands(_table.forget_steps(TABLE, found, S1, [S2])) == [
        "clear table app key a\\ b",
        "clear table app key c",
        "clear table app ptr 0x80",
        "clear table app ptr 0x",
    ]
    # Both ways where the number says a part of it.
    assert commands(_table.forget_steps(TABLE, [found[0], found[2]], S1, [S2])) == [
        "clear table app data.server_id eq 1",
        "clear table app key c",
    ]
    binary = Table("app", "binary", 1, 1)
    with pytest.raises(Error, match=r"clears no single entries of type binary.* server_id 7"):
        _table.forget_steps(binary, found[1:3], S1, [S2])


def present(**data: t.Any) -> Desired:
    return wanted(entries=[{"key": "a", "data": data}])


def test_set_nothing_else_than_what_differs() -> None:
    now = entry("a", gpc0=5, gpt0=1, server_id=0, server_key=None)
    change = _table.plan(present(gpc0=5, gpt0=2), Seen(TABLE, {"a": now}))
    assert commands(change.steps) == ["set table app key a data.gpt0 2"]
    assert change.before == {"app": {"a": {"gpc0": 5, "gpt0": 1}}}
    assert change.after == {"app": {"a": {"gpc0": 5, "gpt0": 2}}}
    assert change.result["entries"][0]["data"] == {**now.data, "gpt0": 2}
    assert (change.clears, change.creates) == ((), ())


def test_a_name_that_haproxy_follows_goes_first() -> None:
    now = entry("a", gpc0=5, server_id=1, server_key="s1")
    change = _table.plan(present(server_id=7), Seen(TABLE, {"a": now}))
    assert commands(change.steps) == [
        "clear table app key a",
        "set table app key a data.server_id 7",
    ]
    assert change.clears == (now,)
    assert change.result["entries"][0]["data"] == {"server_id": 7}
    assert _table.plan(present(server_id=1), Seen(TABLE, {"a": now})).steps == ()
    held = dataclasses.replace(now, use=2)
    with pytest.raises(Error, match="in use by streams"):
        _table.plan(present(server_id=7), Seen(TABLE, {"a": held}))
    change = _table.plan(present(server_id=1, gpc0=6), Seen(TABLE, {"a": held}))
    assert commands(change.steps) == ["set table app key a data.gpc0 6"]


def test_a_cut_key_is_another_one() -> None:
    seen = Seen(TABLE, {"abcdef": entry("abc")})
    for state in ("present", "absent"):
        with pytest.raises(InputError, match="keeps only 'abc' of it"):
            _table.plan(wanted(state=state, entries=[{"key": "abcdef"}]), seen)


def test_in_use() -> None:
    seen = Seen(TABLE, matching=(entry("a"), entry("b", use=1)))
    with pytest.raises(Error, match=r"1 of the entries .* \('b'\).*'in_use: leave'") as caught:
        _table.plan(wanted(state="empty"), seen)
    assert caught.value.details["in_use"][0]["key"] == "b"
    change = _table.plan(wanted(state="empty", in_use="leave"), seen)
    assert commands(change.steps) == ["clear table app"]
    assert list(change.after["app"]) == ["b"]
    assert change.clears == (entry("a"),)
    only_used = Seen(TABLE, matching=(entry("b", use=1),))
    change = _table.plan(wanted(state="empty", in_use="leave"), only_used)
    assert change.steps == ()
    assert change.before == change.after


def test_what_was_not_cleared() -> None:
    change = _table.plan(wanted(state="empty"), Seen(TABLE, matching=(entry("a"), entry("b"))))
    a, b = entry("a", expires=990), entry("b", expires=990)
    new = dataclasses.replace(a, pointer="0x9")
    assert _table.not_cleared(change, [a, entry("c")]) == [a]
    # Another place in memory, or a new life.
    assert _table.not_cleared(change, [new, entry("b", expires=1001)]) == []
    held = dataclasses.replace(b, expires=2000, use=1)
    assert _table.not_cleared(change, [held]) == [held]


@pytest.mark.parametrize(
    ("old", "now", "counted"),
    [
        ({"gpc0": 9}, {"gpc0": 0}, True),
        ({"gpc0": 9}, {"gpc0": 2}, True),
        (None, {"gpc0": 2}, True),
        # It was not set at all.
        ({"gpc0": 9}, {"gpc0": 9}, False),
        (None, None, False),
        # No counter.
        ({"gpc0": 9, "gpt0": 1}, {"gpc0": 0, "gpt0": 1}, False),
        ({"gpc0": 9, "gpt0": 1}, {"gpc0": 0, "gpt0": 3}, False),
    ],
)
def test_counters_go_on(
    old: dict[str, int] | None, now: dict[str, int] | None, counted: bool
) -> None:
    data = {"gpc0": 0, **({"gpt0": 2} if old and "gpt0" in old else {})}
    desired = present(**data)
    seen = [
        Seen(TABLE, {"a": None if values is None else entry("a", **values)})
        for values in (old, now)
    ]
    first, second = (_table.plan(desired, one) for one in seen)
    assert _table.only_counted(first, second, desired) is counted


NAMES = st.sampled_from(["a", "b", "c d", "é"])
DATA = st.dictionaries(st.sampled_from(["gpc0", "gpt0", "server_id"]), st.integers(0, 9))
ENTRIES = st.dictionaries(
    NAMES,
    st.tuples(
        st.fixed_dictionaries(
            {
                "gpc0": st.integers(0, 9),
                "gpt0": st.integers(0, 9),
                "server_id": st.sampled_from([0, 1, 7]),
                "server_key": st.sampled_from([None, "s1", "s2", "192.0.2.1:80", "gone"]),
            }
        ),
        st.integers(0, 1),
    ),
)


def apply(change: _table.TableChange, held: dict[str, Entry]) -> dict[str, Entry]:
    """What HAProxy makes of the steps, by their text."""
    now = dict(held)
    for step in change.steps:
        words = step.command.replace("\\ ", "\0").split(" ")
        key = words[4].replace("\0", " ") if words[3:4] == ["key"] else None
        if words[0] == "set":
            assert key is not None
            pairs = {words[i][5:]: int(words[i + 1]) for i in range(5, len(words), 2)}
            fresh = entry(key, gpc0=0, gpt0=0, server_id=0, server_key=None)
            old = now.get(key, fresh)
            now[key] = dataclasses.replace(old, data={**old.data, **pairs})
        elif key is not None:
            assert not now[key].use
            del now[key]
        elif len(words) == 3:
            now = {name: item for name, item in now.items() if item.use}
        else:
            name, _eq, value = words[3:]
            now = {
                k: item for k, item in now.items() if item.use or item.data[name[5:]] != int(value)
            }
    return now


@given(ENTRIES, st.dictionaries(NAMES, DATA), st.sampled_from(["present", "keys", "all", "server"]))
def test_a_plan_leads_where_it_says(
    having: dict[str, t.Any], wanting: dict[str, t.Any], way: str
) -> None:
    held = {key: entry(key, use, **data) for key, (data, use) in having.items()}
    if way == "present":
        desired = wanted(entries=[{"key": k, "data": v} for k, v in wanting.items()])
    elif way == "keys":
        desired = wanted(state="absent", in_use="leave", entries=[{"key": key} for key in wanting])
    elif way == "all":
        desired = wanted(state="empty", in_use="leave")
    else:
        desired = wanted(state="absent", in_use="leave", server="s1")

    def see(now: dict[str, Entry]) -> Seen:
        if desired.entries is not None:
            return Seen(TABLE, {key: now.get(key) for key in wanting})
        server = S1 if way == "server" else None
        return Seen(TABLE, {}, tuple(now.values()), server, (S2,))

    blocked = {key for key, item in held.items() if item.use and item.server_key} & set(wanting)
    if way == "present" and any(
        wanting[key].get("server_id", held[key].server_id or 0) != (held[key].server_id or 0)
        for key in blocked
    ):
        with pytest.raises(Error, match="in use"):
            _table.plan(desired, see(held))
        return
    change = _table.plan(desired, see(held))
    after = apply(change, held)
    again = _table.plan(desired, see(after))
    assert again.steps == ()
    assert again.before == change.after
    assert (change.steps == ()) == (held == after)
    if way == "present":
        for shown in change.result["entries"]:
            data = after[shown["key"]].data
            assert shown["data"].items() <= data.items()
            assert wanting[shown["key"]].items() <= data.items()
    else:
        assert set(held) - set(after) == {item.key for item in change.clears}
