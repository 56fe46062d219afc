# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _map
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import (
    PAYLOAD_LIMIT,
    Step,
    encode,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    InputError,
    ParseError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._map import (
    ACL,
    MAP,
    Desired,
    Entry,
    Listed,
    Seen,
)

LISTING = """\
# id (file) description
0 (/etc/a.map) pattern loaded from file '/etc/a.map' used by map at file 'c.cfg' line 12{v}
6 (/etc/(b) x.map) pattern loaded from file '/etc/(b) x.map' used by map at file 'c.cfg' line 18{v}
9 (/etc/both) pattern loaded from file '/etc/both' used by acl at file 'c.cfg' line 21, by map at \
file 'c.cfg' line 22{v}
10 () acl 'path' file 'c.cfg' line 22{v}
-1 (virt@vv) pattern loaded from file 'virt@vv' used by acl at file 'c.cfg' line 22{v}

"""


def listed(version: int | None = 7, name: str = "M") -> Listed:
    return Listed(3, name, True, version)


def desired(state: str, pairs: t.Iterable[tuple[str, str]], **more: t.Any) -> Desired:
    return Desired(more.pop("kind", MAP), "M", state, tuple(pairs), **more)


def seen(pairs: t.Iterable[tuple[str, str]], version: int | None = 7) -> Seen:
    entries = [Entry(f"0x{number:x}", *pair) for number, pair in enumerate(pairs)]
    return Seen(listed(version), tuple(entries))


def commands(before: Seen, wanted: Desired) -> list[str]:
    return [step.shown for step in _map.plan_entries(before, wanted).steps]


# --- what HAProxy shows ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "version"),
    [("", None), (". curr_ver=0 next_ver=5 entry_cnt=18446744073709551614", 5)],
)
def test_listing(suffix: str, version: int | None) -> None:
    assert _map.listing(MAP, LISTING.format(v=suffix)) == [
        Listed(0, "/etc/a.map", True, version),
        Listed(6, "/etc/(b) x.map", True, version),
        Listed(9, "/etc/both", True, version),
        Listed(10, "", False, version),
        Listed(-1, "virt@vv", False, version),
    ]


@pytest.mark.parametrize(
    "text", ["", "Permission denied\n", "# id (file) description\nwhat is this\n", "0 (a) b"]
)
def test_no_listing(text: str) -> None:
    with pytest.raises(ParseError):
        _map.listing(ACL, text)


def test_contents() -> None:
    text = "0x1 k v  w \n0x2a lonely \n0xff z2\nz3 a\n\n"
    assert _map.contents(MAP, text) == (
        Entry("0x1", "k", "v  w "),
        Entry("0x2a", "lonely", ""),
        Entry("0xff", "z2\nz3", "a\n"),
    )
    assert _map.contents(ACL, "0x1 a b \n") == (Entry("0x1", "a b ", ""),)
    assert _map.contents(MAP, "0x1 k \u2028\x0b\x85\x1c\n")[0].value == "\u2028\x0b\x85\x1c"
    for empty in ("", "\n", "\n\n"):
        assert _map.contents(MAP, empty) == ()
    with pytest.raises(ParseError):
        _map.contents(MAP, "Unknown map identifier. Please use #<id> or <file>.\n")


@given(st.text(), st.sampled_from([MAP, ACL]))
def test_parsers_raise_nothing_but_parse_error(text: str, kind: str) -> None:
    for parse in (_map.listing, _map.contents):
        for variant in (text, f"# id (file) description\n{text}", f"0x1 a\n{text}"):
            try:
                parse(kind, variant)
            except ParseError:
                continue


ODD = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\n\r\0"), min_size=1)
KEYS = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\n\r\0 \t"),
    min_size=1,
    max_size=4,
)
PAIRS = st.lists(st.tuples(KEYS, ODD), max_size=8)


@given(PAIRS)
def test_what_is_shown_is_understood(pairs: list[tuple[str, str]]) -> None:
    text = "".join(f"0x{number:x} {key} {value}\n" for number, (key, value) in enumerate(pairs))
    assert [(entry.key, entry.value) for entry in _map.contents(MAP, text)] == pairs


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("/a", 1),
        ("opt@/a", 1),
        ("file@/a", 1),
        ("opt@/b", 2),
        ("/b", None),
        ("#1", 1),
        ("#01", 1),
        ("#9", None),
        ("", None),
        ("1", None),
        ("@x", 5),
    ],
)
def test_find(name: str, found: int | None) -> None:
    known = [
        Listed(1, "/a", True, 0),
        Listed(2, "opt@/b", True, 0),
        Listed(4, "", True, 0),
        Listed(5, "@x", True, 0),
    ]
    one = _map.find(known, name)
    assert (one.id if one else None) == found


@pytest.mark.parametrize(
    ("name", "named", "words"),
    [
        ("/a b;c", "/a b;c", "/a\\ b\\;c"),
        ("/a", "#3", "#3"),
        ("@1", "@1", "#3"),
        ("#x", "#x", "#3"),
        ("", "#3", "#3"),
        ("/caf\ufffd", "/caf\ufffd", "#3"),
    ],
)
def test_identifier(name: str, named: str, words: str) -> None:
    assert _map.identifier(listed(name=name), named) == words


# --- what the task wants --------------------------------------------------------------------


def params(kind: str, entries: t.Any, state: str = "present", name: str = "M") -> dict[str, t.Any]:
    return {kind: name, "entries": entries, "state": state, "return": "none"}


@pytest.mark.parametrize(
    ("kind", "state", "entries", "pairs"),
    [
        (MAP, "present", {"a": 1, "b": "x y"}, [("a", "1"), ("b", "x y")]),
        (MAP, "present", [{"key": 5, "value": "v"}], [("5", "v")]),
        (MAP, "present", [{"key": "a", "value": "v"}] * 2, [("a", "v")]),
        (MAP, "absent", ["a", 5, "a"], [("a", ""), ("5", "")]),
        (MAP, "absent", {"a": None, "b": 1.5}, [("a", ""), ("b", "")]),
        (MAP, "absent", [{"key": "a", "value": "v"}, {"key": "b"}], [("a", ""), ("b", "")]),
        (MAP, "absent", "a,b", [("a,b", "")]),
        (MAP, "absent", "x" * 20000, [("x" * 20000, "")]),
        (MAP, "exact", {}, []),
        (MAP, "exact", [], []),
        (ACL, "present", ["a b", 7, " "], [("a b", ""), ("7", ""), (" ", "")]),
        (ACL, "exact", 7, [("7", "")]),
    ],
)
def test_desired(kind: str, state: str, entries: t.Any, pairs: list[tuple[str, str]]) -> None:
    wanted = Desired.from_params(kind, params(kind, entries, state))
    assert list(wanted.pairs) == pairs
    assert wanted.ordered is (kind == MAP and state == "exact" and isinstance(entries, list))


@pytest.mark.parametrize(
    ("kind", "entries", "words"),
    [
        (MAP, {"a b": "v"}, "contains a blank"),
        (MAP, {"a\tb": "v"}, "contains a blank"),
        (MAP, {"a": ""}, "the value of 'a' '' is empty"),
        (MAP, {"a": "b\nc"}, "line break"),
        (MAP, {"a\0": "b"}, "line break or a NUL"),
        (MAP, {"a": "\udc80"}, "not valid text"),
        (MAP, {"a": True}, "the value of 'a' is True, which is not text: put it in quotes"),
        (MAP, {"a": 1.1}, "put it in quotes"),
        (MAP, {"a": None}, "put it in quotes"),
        (MAP, [{"key": "a"}], "'a' has no value"),
        (MAP, [{"value": "a"}], "must be a dictionary"),
        (MAP, [{"key": "a", "value": "b", "x": 1}], "must be a dictionary"),
        (MAP, ["a"], "must be a dictionary"),
        (MAP, None, "must be a dictionary"),
        (MAP, 1.5, "must be a dictionary"),
        (MAP, [{"key": "a", "value": "1"}, {"key": "a", "value": 2}], "given twice"),
        (MAP, {"a": "x" * 14400}, "at most 14336"),
        (MAP, {"a": " " + "x" * 4090}, "begins with a blank"),
        (ACL, {"a": "b"}, "must be a list of patterns"),
        (ACL, [""], "is empty"),
        (ACL, [True], "put it in quotes"),
        (ACL, [["a"]], "put it in quotes"),
        (ACL, ["a\rb"], "line break"),
        (ACL, ["x" * 4090], "do not fit"),
        (ACL, [" " * 2050], "do not fit"),
    ],
)
def test_bad_entries(kind: str, entries: t.Any, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        Desired.from_params(kind, params(kind, entries))


# --- the plan -------------------------------------------------------------------------------


def test_present_and_absent() -> None:
    before = seen([("a", "1"), ("b", "2"), ("#x", "3")])
    assert commands(before, desired("present", [("a", "1"), ("b", "x"), ("n", "y z")])) == [
        "add map M n y\\ z",
        "set map M b x",
    ]
    assert commands(before, desired("present", [("#x", "v")])) == ["set map M #0x2 v"]
    assert commands(before, desired("absent", [("a", ""), ("#x", ""), ("n", "")])) == [
        "del map M a",
        "del map M #0x2",
    ]


def test_duplicates() -> None:
    before = seen([("a", "1"), ("b", "2"), ("a", "3")])
    assert commands(before, desired("present", [("a", "3")])) == [
        "set map M a 3",
        "del map M #0x2",
    ]
    assert commands(before, desired("absent", [("a", "")])) == ["del map M #0x0", "del map M #0x2"]
    patterns = seen([("a", ""), ("a", "")])
    assert commands(patterns, desired("present", [("a", "")], kind=ACL)) == []
    assert commands(patterns, desired("absent", [("a", "")], kind=ACL)) == [
        "del acl M #0x0",
        "del acl M #0x1",
    ]


def test_a_long_value_is_added_before_the_old_one_goes() -> None:
    plan = _map.plan_entries(
        seen([("a", "1"), ("b", "2")]), desired("present", [("a", "x" * 5000)])
    )
    assert [step.shown for step in plan.steps] == ["add map M <<(1 line)", "del map M #0x0"]
    assert plan.steps[0].payload == ("a " + "x" * 5000,)


def test_transaction() -> None:
    pairs = [("a", "1"), ("b", " 2"), ("c", "3")]
    plan = _map.plan_entries(seen([("a", "1")]), desired("exact", pairs))
    assert [step.shown for step in plan.steps] == [
        "prepare map M",
        "add map @8 M <<(1 line)",
        "add map @8 M b \\ 2",
        "add map @8 M <<(1 line)",
        "commit map @8 M",
    ]
    assert plan.steps[0].accepts("New version created: 12\n")
    assert not plan.steps[0].accepts("Unknown map identifier. Please use #<id> or <file>.")
    again = _map.renumbered(plan.steps, 12)
    assert [step.shown for step in again][:1] == ["add map @12 M <<(1 line)"]
    assert again[-1].shown == "commit map @12 M"
    # Only the version is exchanged, whatever else looks like it.
    odd = _map.plan_entries(seen([]), desired("exact", [("@8", " @8 ")]))
    assert _map.renumbered(odd.steps, 9)[0].shown == "add map @9 M @8 \\ @8\\ "


def test_exact_in_order_without_transactions() -> None:
    before = seen([("a", "1"), ("b", "2"), ("c", "3")], version=None)
    wanted = desired("exact", [("b", "2"), ("a", "1"), ("c", "3")], ordered=True)
    assert commands(before, wanted) == [
        "add map M a 1",
        "add map M c 3",
        "del map M #0x0",
        "del map M #0x2",
    ]
    assert commands(before, desired("exact", wanted.pairs)) == []


@given(st.lists(st.tuples(KEYS, st.text("xy é", min_size=1, max_size=3000)), max_size=30))
def test_payloads_fit_and_lose_nothing(pairs: list[tuple[str, str]]) -> None:
    wanted = desired("exact", dict(pairs).items())
    steps = _map.transaction(listed(), wanted)
    found = []
    for step in steps[1:-1]:
        assert len(encode(step.wire)) <= PAYLOAD_LIMIT
        found += carried(step)
    assert found == list(wanted.pairs)


def carried(step: Step) -> list[tuple[str, str]]:
    """The entries of an `add`, as HAProxy reads them."""
    if step.payload is not None:
        found = []
        for line in step.payload:
            match = re.fullmatch(r"([^ \t]+)[ \t]+([^\n]*)", line, re.S)
            assert match is not None
            found.append((match.group(1), match.group(2)))
        return found
    parts = [re.sub(r"\\(.)", r"\1", part, flags=re.S) for part in split(step.command)]
    *_words, key, value = parts
    return [(key, value)]


def split(command: str) -> list[str]:
    return [found for found in re.findall(r"((?:\\.|[^\\ \t;<])+)", command, re.S) if found]


class Model:
    """HAProxy's behaviour as it was measured: `add` appends, `set` by key sets all."""

    def __init__(self, pairs: list[tuple[str, str]], one_by_one: bool) -> None:
        self.entries = {f"0x{number:x}": pair for number, pair in enumerate(pairs)}
        self.one_by_one = one_by_one
        self.next = len(pairs)
        self.prepared: dict[str, tuple[str, str]] = {}

    def do(self, step: Step) -> None:
        verb, _kind, *rest = [re.sub(r"\\(.)", r"\1", p, flags=re.S) for p in split(step.command)]
        if verb == "prepare":
            self.prepared = {}
        elif verb == "commit":
            self.entries = self.prepared
        elif verb == "add":
            versioned = rest[0] == "@8"
            key, value, *_more = [*rest[2 if versioned else 1 :], "", ""]
            for pair in [(key, value)] if step.payload is None else carried(step):
                (self.prepared if versioned else self.entries)[f"0x{self.next:x}"] = pair
                self.next += 1
        else:
            target = rest[1]
            refs = [ref for ref, pair in self.entries.items() if target in (pair[0], f"#{ref}")]
            assert refs, f"not found: {step.command}"
            assert not (target.startswith("#0x") and target[1:] not in self.entries)
            if verb == "set":
                for ref in refs:
                    self.entries[ref] = (self.entries[ref][0], rest[2])
            else:
                for ref in refs[:1] if self.one_by_one else refs:
                    del self.entries[ref]

    @property
    def seen(self) -> list[tuple[str, str]]:
        return list(self.entries.values())


SMALL = st.text("ab#é\\;<@", min_size=1, max_size=2)
VALUES = st.one_of(st.text("12 \\;<\t", min_size=1, max_size=3), st.just("y" * 5000))


@given(
    before=st.lists(st.tuples(SMALL, VALUES), max_size=8),
    wanted=st.dictionaries(SMALL, VALUES, max_size=5),
    state=st.sampled_from(["present", "absent", "exact"]),
    ordered=st.booleans(),
    kind=st.sampled_from([MAP, ACL]),
    version=st.sampled_from([None, 7]),
    one_by_one=st.booleans(),
)
def test_a_plan_does_what_it_says_and_is_then_empty(
    before: list[tuple[str, str]],
    wanted: dict[str, str],
    state: str,
    ordered: bool,
    kind: str,
    version: int | None,
    one_by_one: bool,
) -> None:
    if kind == ACL or state == "absent":
        wanted = dict.fromkeys(wanted, "")
    if kind == ACL:
        before, ordered = [(key, "") for key, _value in before], False
    ordered = ordered and state == "exact"
    goal = desired(state, wanted.items(), kind=kind, ordered=ordered)
    plan = _map.plan_entries(seen(before, version), goal)
    haproxy = Model(before, one_by_one)
    for step in plan.steps:
        encode(step.wire)
        haproxy.do(step)
    now = haproxy.seen
    if state == "absent":
        assert now == [pair for pair in before if pair[0] not in wanted]
    elif state == "exact" and ordered:
        assert now == list(wanted.items())
    elif state == "exact":
        assert sorted(now) == sorted(wanted.items())
    else:
        assert {key: value for key, value in now if key in wanted} == wanted
        others = [pair for pair in before if pair[0] not in wanted]
        assert [pair for pair in now if pair[0] not in wanted] == others
    again = _map.plan_entries(seen(now, version), goal)
    assert again.steps == ()
    assert again.before == again.after
    # What was foreseen is what came.
    told = _map.described(plan, again, seen(now, version), goal)
    assert told.before == plan.after
    assert told.result == plan.result
    assert bool(plan.steps) == (plan.before != plan.after)


def test_counts_and_rows() -> None:
    wanted = desired("present", [("a", "9"), ("n", "N")], returned="changed")
    plan = _map.plan_entries(seen([("a", "1"), ("b", "2"), ("a", "3")]), wanted)
    assert plan.result == {
        "maps": [{"map": "M", "id": 3, "count": 3, "added": 1, "updated": 1, "removed": 1}],
        "entries": [
            {"map": "M", "key": "a", "value": "9"},
            {"map": "M", "key": "n", "value": "N"},
        ],
    }
    assert plan.before == {"M": ["a 1", "a 3"]}
    assert plan.after == {"M": ["a 9", "n N"]}


def test_a_diff_has_an_end() -> None:
    many = [(f"k{number}", "v") for number in range(_map.SHOWN + 7)]
    shown = _map.plan_entries(seen([]), desired("present", many)).after["M"]
    assert (len(shown), shown[-1]) == (_map.SHOWN + 1, "… and 7 more")
