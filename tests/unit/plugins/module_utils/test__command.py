# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Words, lines and payloads, read back by a model of HAProxy's own reading of a connection."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _command
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import Command, Step
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError


@pytest.mark.parametrize(
    "command",
    [
        "",
        "   ",
        "a\nb",
        "a\rb",
        "a\0b",
        "a;b",
        "a\\\\;b",
        "a \\",
        "add map x <<",
        "a b<<EOF",
        "a \\<<x <<",
        "a \\<<",
        "a " * 65,
        "x" * 4096,
        "\ud800",
    ],
)
def test_encode_line_refuses(command: str) -> None:
    with pytest.raises(InputError):
        _command.encode(command)


@pytest.mark.parametrize(
    "command",
    [
        "show stat",
        "set map m k a\\;b",
        "a\\\\",
        "a \\<\\<x",
        "x" * 4095,
        "é",
        "a " * 64,
        "a\\ b " * 63,
    ],
)
def test_encode_line_carries(command: str) -> None:
    assert _command.encode(command) == command.encode() + b"\n"


# --- HAProxy's side -------------------------------------------------------------------------


@dataclasses.dataclass
class Run:
    """What HAProxy would carry out: the words of a command, and its payload."""

    words: list[bytes]
    payload: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Grammar:
    """How versions differ; measured, see tests/runtime/test_injection.py."""

    # A NUL ends a command (since 3.2), or the whole line.
    nul_separates: bool
    # A backslash before the end of a line takes it into the line (since 2.6).
    swallows: bool
    # `<<` begins a payload wherever the last word has it, escaped or not (2.2, 2.6).
    anywhere: bool


GRAMMARS = {
    "2.2": Grammar(nul_separates=False, swallows=False, anywhere=True),
    "2.6": Grammar(nul_separates=False, swallows=True, anywhere=True),
    "3.0": Grammar(nul_separates=False, swallows=True, anywhere=False),
    "3.2": Grammar(nul_separates=True, swallows=True, anywhere=False),
}


def carried_out(data: bytes, grammar: Grammar) -> list[Run]:
    """Written from HAProxy's rules, octet by octet; shares nothing with the encoder."""
    runs: list[Run] = []
    at = 0
    while at < len(data):
        words: list[bytes] = []
        raw: list[bytes] = []
        word, shown, begun = b"", b"", False
        ended = False
        while at < len(data) and not ended:
            octet = data[at : at + 1]
            at += 1
            after = data[at : at + 1]
            if octet == b"\\" and after and (after != b"\n" or grammar.swallows):
                word, shown, begun = word + after, shown + octet + after, True
                at += 1
            elif octet in b" \t\n;" or octet == b"\0":
                if begun:
                    words.append(word)
                    raw.append(shown)
                word, shown, begun = b"", b"", False
                ended = octet in b"\n;" or (octet == b"\0" and grammar.nul_separates)
                if octet == b"\0" and not grammar.nul_separates:
                    at = (data + b"\n").index(b"\n", at)
            else:
                word, shown, begun = word + octet, shown + octet, True
        last = raw[-1] if raw else b""
        if last.startswith(b"<<") or (grammar.anywhere and b"<<" in last.replace(b"\\<<", b"<<")):
            end = data.find(b"\n\n", at - 1)
            stop = len(data) if end < 0 else end + 1
            runs.append(Run(words[:-1], data[at:stop]))
            at = stop + 1
        else:
            runs.append(Run(words))
    return runs


ANY = st.text(max_size=60)
NASTY = st.text(alphabet="ab \t;\\<\n\r\0@#\"'é", max_size=14)


@pytest.mark.parametrize("version", GRAMMARS)
@given(texts=st.lists(st.one_of(ANY, NASTY), min_size=1, max_size=4))
def test_words_arrive_unchanged_or_are_refused(version: str, texts: list[str]) -> None:
    data, expected = b"", []
    for text in texts:
        try:
            data += _command.encode(f"set map m k {_command.word(text)}")
        except InputError:
            continue
        expected.append([b"set", b"map", b"m", b"k", text.encode()])
    runs = carried_out(data, GRAMMARS[version])
    assert [run.words for run in runs] == expected
    assert all(run.payload is None for run in runs)


@pytest.mark.parametrize("version", GRAMMARS)
@given(texts=st.lists(st.one_of(ANY, NASTY), min_size=1, max_size=4))
def test_no_line_becomes_two(version: str, texts: list[str]) -> None:
    """Whatever is handed to the encoder without having been made safe before."""
    data, count = b"", 0
    for text in texts:
        try:
            data += _command.encode(f"add map m {text}")
        except InputError:
            continue
        count += 1
    runs = carried_out(data, GRAMMARS[version])
    assert len(runs) == count
    assert all(run.payload is None and run.words[:3] == [b"add", b"map", b"m"] for run in runs)


@pytest.mark.parametrize("version", GRAMMARS)
@given(payload=st.lists(st.one_of(ANY, NASTY), min_size=1, max_size=5), name=NASTY)
def test_payloads_arrive_unchanged_or_are_refused(
    version: str, payload: list[str], name: str
) -> None:
    try:
        text = f"add map {_command.word(name)}"
        data = _command.encode(Command(text, tuple(payload))) + _command.encode("show info")
    except InputError:
        return
    first, second = carried_out(data, GRAMMARS[version])
    assert first.words == [b"add", b"map", name.encode()]
    assert first.payload == "".join(f"{line}\n" for line in payload).encode()
    assert second == Run([b"show", b"info"])


@given(NASTY.filter(bool))
def test_only_line_breaks_and_nul_are_refused(text: str) -> None:
    carried = not set(text) & set("\n\r\0")
    try:
        _command.encode(f"x {_command.word(text)}")
    except InputError:
        assert not carried
    else:
        assert carried


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a;b\n", {"2.2": 2, "2.6": 2, "3.0": 2, "3.2": 2}),
        (b"a\0b\n", {"2.2": 1, "2.6": 1, "3.0": 1, "3.2": 2}),
        (b"a \\\nb\n", {"2.2": 2, "2.6": 1, "3.0": 1, "3.2": 1}),
        (b"a \\<<\nb\n\nc\n", {"2.2": 2, "2.6": 2, "3.0": 4, "3.2": 4}),
        (b"a <<\nb\n\nc\n", {"2.2": 2, "2.6": 2, "3.0": 2, "3.2": 2}),
        (b"a \\;b\n", {"2.2": 1, "2.6": 1, "3.0": 1, "3.2": 1}),
    ],
)
def test_the_model_is_haproxys(data: bytes, expected: dict[str, int]) -> None:
    """Against what was measured: how many commands there are, the empty ones included."""
    found = {version: len(carried_out(data, grammar)) for version, grammar in GRAMMARS.items()}
    assert found == expected


# --- steps ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accepted", "reply", "taken"),
    [
        ("", "", True),
        ("", "\n", True),
        ("", "No such server.\n", False),
        ("Server deleted\\.", "Server deleted.\n\n", True),
        ("Server deleted\\.", "Server deleted. Not.\n", False),
        (".*Success!", "Committing F.\nSuccess!\n", True),
    ],
)
def test_a_step_knows_its_reply(accepted: str, reply: str, taken: bool) -> None:
    assert Step("x", "del server a/b", accepted=accepted).accepts(reply) is taken


def test_what_is_shown_of_a_payload() -> None:
    step = Step("x", "set ssl cert f", ("-----BEGIN PRIVATE KEY-----", "MIIB"))
    assert step.shown == "set ssl cert f <<(2 lines)"
    assert "MIIB" not in step.shown


@pytest.mark.parametrize("name", ["app", "a.b", "a:b", "a_b", "a-b", "1", "A" * 300])
def test_names(name: str) -> None:
    assert _command.normal_name(name, "backend") == name


@given(st.one_of(ANY, NASTY))
def test_a_name_is_a_name_or_refused(name: str) -> None:
    try:
        taken = _command.normal_name(name, "backend")
    except InputError:
        return
    assert taken == name
    assert re.fullmatch("[A-Za-z0-9_.:-]+", name)
    assert _command.word(name) == name


def test_hints() -> None:
    assert _command.near("ap", ["app", "web"]) == "there is app, …"
    assert _command.near("x", []) == "there are none"
