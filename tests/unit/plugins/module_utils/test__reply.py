# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _reply
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import encode, word
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError


def raw(text: str) -> _reply.Raw:
    (found,) = _reply.raw_commands(text)
    return found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("show info", ("show", "info")),
        (" show \t info  ", ("show", "info")),
        (r"add map m a\ b c\;d", ("add", "map", "m", "a b", "c;d")),
        (r"s\how info", ("show", "info")),
        (r"a\\ b", ("a\\", "b")),
        (r"\<\< x", ("<<", "x")),
        ("", ()),
    ],
)
def test_words_are_those_that_haproxy_reads(text: str, words: tuple[str, ...]) -> None:
    assert _reply.split(text) == words


@given(st.lists(st.text(st.characters(exclude_characters="\n\r\0"), min_size=1), min_size=1))
def test_split_undoes_the_escapes(words: list[str]) -> None:
    assert _reply.split(" ".join(map(word, words))) == tuple(words)


KINDS = {
    _reply.READ: [
        "show info",
        "show ssl crt-list -n /l",
        r"sho\w stat",
        "get map /m k",
        "help",
        "help show",
        "echo hi",
        "dump ssl cert x",
        "dump stats-file",
        "acme status",
        "trace",
        "expert-mode",
        "experimental-mode",
        "debug counters",
        "debug counters all bug",
        "debug dev hash x",
        "show events buf0",
        "show events buf0 -n",
    ],
    _reply.SESSION: ["set timeout cli 5", "set anon on 3", "set anon off", "user", "operator"],
    _reply.WAIT: ["wait", "wait 5s", "wait -h"],
    _reply.CHANGE: [
        "set server a/b state maint",
        "shows info",
        "clear counters",
        "trace h1 sink buf0",
        "acme renew x",
        "set anon global-key 3",
        "set timeout",
        "debug counters reset",
        "debug dev exit",
        "httpclient GET http://x/",
        "update ssl ocsp-response x",
        "SHOW info",
        r"\ show info",
        "unheard of",
    ],
}


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in KINDS.items() for text in texts]
)
def test_kinds(kind: str, text: str) -> None:
    found = raw(text)
    assert found.kind == kind
    assert found.changes is (kind == _reply.CHANGE)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("wait 500", 0.5),
        ("wait 500ms", 0.5),
        ("wait 3s srv-removable a/b", 3),
        ("wait 2m", 120),
        ("wait 1h", 3600),
        ("wait 1d", 86400),
        ("wait 20us", 0.00002),
        ("wait", 0),
        ("wait -h", 0),
        ("wait 5x", 0),
        ("show info", 0),
    ],
)
def test_patience(text: str, seconds: float) -> None:
    assert raw(text).patience == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("show info", "user"),
        ("show sess", "operator"),
        ("clear table t", "operator"),
        ("clear counters", "operator"),
        ("clear counters all", "admin"),
        ("set server a/b state maint", "admin"),
        ("show ssl crt-list", "admin"),
        # Every level may do it with HAProxy before 3.4.
        ("add map m k v", "user"),
    ],
)
def test_levels(text: str, level: str) -> None:
    assert raw(text).level == level


REFUSED: list[tuple[t.Any, str]] = [
    ([], "list is empty"),
    ("", "empty command"),
    (" ", "empty command"),
    (5, "number 1 must be a text"),
    (None, "number 1 must be a text"),
    (["show info", True], "number 2 must be a text"),
    ([["show info"]], "number 1 must be a text"),
    ({}, "must have command"),
    ({"payload": "x"}, "must have command"),
    ({"command": "x", "text": "y"}, "it has text"),
    ({"command": 1}, "must be a text"),
    ({"command": "x", "payload": ["y"]}, "must be a text"),
    ({"command": "x", "payload": "a\n\nb"}, "empty line"),
    ({"command": "x", "payload": ""}, "empty line"),
    ("a;b", "unescaped"),
    ("a;b", "write several commands as a list"),
    ("a\nb", "line break"),
    ("a\0b", "NUL"),
    ("a\\", "final"),
    ("a << b", "unescaped"),
    ("a <<", "begins a payload"),
    (r"a \<<", "begins a payload"),
    ("x" * 5000, "4096"),
    ("\ud800", "not valid text"),
    ("prompt", "it is about the connection"),
    (r"pr\ompt i", "it is about the connection"),
    ("quit", "it is about the connection"),
    ("@1 show info", "chooses the worker"),
    (r"\@1 show info", "chooses the worker"),
    ("set severity-output none", "sets it itself"),
    ("expert-mode on", "use the option expert_mode"),
    ("experimental-mode off", "use the option experimental_mode"),
    ("wait 21d", "longer than 20 days"),
    ("wait 30d srv-removable a/b", "longer than 20 days"),
    (r"wa\it 9999999999", "longer than 20 days"),
    ("set timeout cli 3000000", "longer than 20 days"),
    ("set timeout cli 2500000s", "longer than 20 days"),
    ("wait " + "9" * 3000, "longer than 20 days"),
    ("set timeout cli 30d", "longer than 20 days"),
    ("set timeout cli 99999999999999", "longer than 20 days"),
    ("show events buf0 -w", "never ends"),
    ("show events buf0 -n -nw", "never ends"),
]


@pytest.mark.parametrize(("value", "words"), REFUSED)
def test_what_cannot_be_sent(value: t.Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        _reply.raw_commands(value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_a_semicolon_is_answered_with_a_list() -> None:
    with pytest.raises(InputError) as caught:
        _reply.raw_commands(r"add map m a\;b << x")
    assert "as a list" not in str(caught.value)


def test_what_is_20_days_can_be_sent() -> None:
    for text in ("wait 20d", "wait 1728000000", "set timeout cli 1728000", "set timeout cli 20d"):
        assert raw(text).shown == text


@given(st.one_of(st.text(), st.dictionaries(st.text(), st.text()), st.lists(st.text())))
def test_whatever_passes_is_exactly_one_command(value: t.Any) -> None:
    try:
        found = _reply.raw_commands(value)
    except InputError:
        return
    for one in found:
        assert encode(one.command).count(b"\n") == 1


def test_a_payload_is_shown_as_its_number_of_lines() -> None:
    found = _reply.raw_commands({"command": "add map m", "payload": "k v\nl w\n"})[0]
    assert found.command.payload == ("k v", "l w")
    assert found.shown == "add map m <<(2 lines)"


def test_what_the_master_process_does_not_carry() -> None:
    for text in ("wait 5s", "operator", "set anon on"):
        assert _reply.refuse_at(raw(text), master=True)
        assert _reply.refuse_at(raw(text), master=False) is None
    assert _reply.refuse_at(raw("set server a/b state maint"), master=True) is None


# --- replies: as they were measured -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "numbered", "reply"),
    [
        ("\n", True, _reply.Reply("")),
        ("[3]: No such server.\n\n", True, _reply.Reply("No such server.", "error")),
        ("[6]: admin\n", True, _reply.Reply("admin", "info")),
        ("[4]: nothing changed\n", True, _reply.Reply("nothing changed", "warning")),
        ("[9]: x", True, _reply.Reply("[9]: x")),
        ("[3]: x", False, _reply.Reply("[3]: x")),
        ("  a\n b\n\n", True, _reply.Reply("  a\n b")),
    ],
)
def test_understand(text: str, numbered: bool, reply: _reply.Reply) -> None:
    assert _reply.understand(text, numbered=numbered) == reply


# Command, reply with its number, and whether HAProxy carried it out.
NUMBERED = [
    ("set server a/b state maint", "", True),
    ("set server a/b state x", "[3]: 'set server <srv> state' expects …", False),
    ("set server a/b addr 1.1.1.1", "[4]: IP changed from '1' to '2' by 'stats socket command'", True),
    ("set server a/b addr 1.1.1.1", "[4]: nothing changed", True),
    ("set server a/b addr 1.1.1.1", "[4]: no need to change the addr by 'x'", True),
    ("set server a/b addr 1 port a", "[4]: IP changed from '1' to '2', problem converting port 'a'", False),
    ("set server a/b addr x", "[4]: Invalid addr 'x'", False),
    ("set server a/b check-addr x", "[4]: invalid addr 'x'", False),
    ("set server a/b check-port 5", "[5]: health check port updated.", True),
    ("set server a/b check-port x", "[4]: provided port is not an integer", False),
    ("set server a/b fqdn x", "[4]: a/b changed its FQDN from y to x by 'z'", True),
    ("set server a/b fqdn x", "[4]: could not update a/b FQDN by 'stats socket command'", False),
    ("disable frontend f", "[5]: All sockets are already disabled.", True),
    ("add server a/b 1.1.1.1", "[6]: New server registered.", True),
    ("add server a/b 1.1.1.1", "[3]: Already exists a server with the same name in backend.", False),
    ("no such", "[6]: Unknown command: 'no', but maybe …\n  show info : x", False),
    ("no such", "[6]: Unknown command, but maybe …", False),
    ("no such", "[6]: Unknown command. Please enter one of …", False),
    ("help", "[6]: Unknown command. Please enter one of …", True),
    ("commit ssl cert x", "Committing x.\nSuccess!", True),
    ("commit ssl cert x", "Committing x.\nWarning: …\nSuccess!", True),
    ("commit ssl cert x", "Committing x.\nunable to …\nFailed!", False),
    ("add ssl crt-list l x", "Inserting certificate 'x' in crt-list 'l'.\nSuccess!", True),
    ("add ssl crt-list l x", "Inserting certificate 'x' in crt-list 'l'.\nerror", False),
    ("show sess 0x1", "Session not found.", False),
    ("show table t", "# table: t, type: ip\n# contents not dumped due to insufficient privileges", False),
    ("get map m k", "type=str, case=sensitive, found=no", True),
    ("wait 1s", "[6]: Done.", True),
    ("wait 1s x", "[3]: Failed.", False),
    ("trace", "[4]: Supported trace sources …", True),
    ("show startup-logs", "[6]: ", True),
    ("debug dev log x", "[3]: This command is restricted to expert mode only.", False),
    ("show ssl crt-list nope", "[3]: didn't find the specified filename", False),
    ("show tls-keys nope", "[3]: 'show tls-keys' unable to locate referenced filename", False),
    ("show profiling bogus", "[3]: Expects either 'all', 'status', 'tasks', …", False),
    ("show ssl ocsp-response x", "[3]: Certificate ID does not match any certificate.", False),
    ("show ssl sni -f x", "[3]: Couldn't find the specified frontend!", False),
    ("show sess x", "[3]: Unsupported option 'x', try 'help' for more info.", False),
    ("show dev x", "[3]: This command takes no argument.", False),
    ("show ssl ocsp-response x", "[3]: 'show ssl ocsp-response' expects a valid certid.", False),
    ("show startup-logs", "[WARNING] (8) : 'bind' expects …, which does not match, unable to", True),
    ("clear table t", "[3]: Permission denied", False),
    ("clear table t", "[3]: ", False),
]  # fmt: skip


@pytest.mark.parametrize(("command", "text", "done"), NUMBERED)
def test_numbered_replies(command: str, text: str, done: bool) -> None:
    reply = _reply.understand(text, numbered=True)
    assert (_reply.refusal(_reply.split(command), reply, numbered=True) is None) is done


# The same through the master process, but for an error without a text.
@pytest.mark.parametrize(("command", "text", "done"), NUMBERED[:-1])
def test_replies_without_numbers(command: str, text: str, done: bool) -> None:
    reply = _reply.understand(re.sub(r"^\[\d\]: ", "", text), numbered=False)
    assert (_reply.refusal(_reply.split(command), reply, numbered=False) is None) is done


@pytest.mark.parametrize("text", ["Something new.", "[6]: Whatever", "Permission denied"])
def test_an_unknown_word_about_a_change_is_no_success_without_numbers(text: str) -> None:
    reply = _reply.understand(text, numbered=False)
    assert _reply.refusal(("set", "weight"), reply, numbered=False) == text


@given(st.text(), st.lists(st.text(min_size=1), min_size=1), st.booleans())
def test_no_reply_makes_trouble(text: str, words: list[str], numbered: bool) -> None:
    reply = _reply.understand(text, numbered=numbered)
    found = _reply.refusal(tuple(words), reply, numbered=numbered)
    assert found is None or isinstance(found, str)
