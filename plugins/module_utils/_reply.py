# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: what a command of any kind does, and what its reply means. Private to the collection.

All of it was measured with HAProxy 2.2, 2.6, 3.0, 3.2 and 3.4.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import Command, encode
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError

Words = tuple[str, ...]

# What a command does: nothing but telling; something to its own conversation, which ends with the
# task; waiting; anything else.
READ = "read"
SESSION = "session"
WAIT = "wait"
CHANGE = "change"

_READS: tuple[Words, ...] = (
    ("show",),
    ("get",),
    ("help",),
    ("echo",),
    ("dump",),
    ("acme", "status"),
    ("debug", "dev", "hash"),
)
_COUNTERS = ("debug", "counters")
# Any other word resets the counters or switches them on or off.
_COUNTERS_SHOWN = {"?", "all", "bug", "cnt", "chk", "glt", "show"}
_SESSIONS: tuple[Words, ...] = (
    ("set", "timeout", "cli"),
    ("set", "anon", "on"),
    ("set", "anon", "off"),
    ("user",),
    ("operator",),
)

# What needs a level in every version that has it. Most of the rest is refused by HAProxy itself, but
# `clear table` of a user is a success that clears nothing (up to 3.0).
_ADMIN: tuple[Words, ...] = (
    ("set", "server"),
    ("set", "weight"),
    ("set", "maxconn"),
    ("set", "rate-limit"),
    ("set", "dynamic-cookie-key"),
    ("set", "profiling"),
    ("set", "anon", "global-key"),
    ("set", "ssl", "cert"),
    ("set", "ssl", "ca-file"),
    ("set", "ssl", "crl-file"),
    ("enable",),
    ("disable",),
    ("shutdown",),
    ("add", "server"),
    ("del", "server"),
    ("add", "backend"),
    ("del", "backend"),
    ("add", "ssl"),
    ("del", "ssl"),
    ("publish",),
    ("unpublish",),
    ("new", "ssl"),
    ("commit", "ssl"),
    ("abort", "ssl"),
    ("clear", "counters", "all"),
    ("acme", "renew"),
    ("show", "ssl", "crt-list"),
    ("wait",),
)
_OPERATOR: tuple[Words, ...] = (
    ("set", "table"),
    ("clear", "table"),
    ("clear", "counters"),
    ("get", "var"),
    ("show", "sess"),
    ("show", "errors"),
    ("show", "env"),
    ("show", "fd"),
    ("show", "libs"),
    ("show", "startup-logs"),
    # HAProxy tells a user that it has no memory for these.
    ("show", "ssl", "cert"),
    ("show", "ssl", "ca-file"),
    ("show", "ssl", "crl-file"),
    ("dump", "ssl"),
    ("trace",),
)

_MODES = ("expert-mode", "experimental-mode")

# A connection's timeout of 2^31 milliseconds, which are 24.8 days, makes HAProxy 3.0 and later abort;
# one is set for `wait` too.
_LONGEST = 20 * 86400

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclasses.dataclass(frozen=True)
class Raw:
    """A command as the user wrote it, in HAProxy's own grammar."""

    command: Command
    words: Words
    kind: str

    @property
    def shown(self) -> str:
        return self.command.shown

    @property
    def changes(self) -> bool:
        return self.kind == CHANGE

    @property
    def level(self) -> str:
        """The least level that every version wants for it, as far as it is known."""
        if _begins(self.words, _ADMIN):
            return "admin"
        return "operator" if _begins(self.words, _OPERATOR) else "user"

    @property
    def patience(self) -> float:
        """Seconds that its reply takes by intention."""
        if self.kind != WAIT or len(self.words) < 2:
            return 0.0
        return _seconds(self.words[1], 1e-3)


def _seconds(text: str, unit: float) -> float:
    """A time as HAProxy reads it, for which a number alone counts in such units; 0 if it is none."""
    match = re.fullmatch(r"([0-9]+)(us|ms|[smhd]|)", text, re.ASCII)
    return min(int(match[1]), 10**18) * _UNITS.get(match[2], unit) if match else 0.0


def split(text: str) -> Words:
    """The words of a line as HAProxy reads them: a backslash makes any character plain."""
    return tuple(
        re.sub(r"\\(.)", r"\1", item) for item in re.findall(r"(?:\\.|[^ \t\\])+", text, re.S)
    )


def raw_commands(value: t.Any) -> list[Raw]:
    """The module's option `commands`: texts, or dictionaries with a command and its payload."""
    items = value if isinstance(value, list) else [value]
    if not items:
        raise InputError("commands: the list is empty; name at least one command")
    return [_raw(item, number) for number, item in enumerate(items, 1)]


def _raw(item: t.Any, number: int) -> Raw:
    text, payload = item, None
    if isinstance(item, dict):
        unknown = sorted(str(key) for key in set(item) - {"command", "payload"})
        if unknown or "command" not in item:
            raise InputError(
                f"commands: number {number} must have command, and may have payload"
                + (f"; it has {', '.join(unknown)}" if unknown else "")
            )
        text, payload = item["command"], item.get("payload")
    if not isinstance(text, str) or not (payload is None or isinstance(payload, str)):
        raise InputError(
            f"commands: number {number} must be a text, or a dictionary with the texts command and "
            "payload; put it in quotes"
        )
    if text.rstrip(" \t").endswith("<<"):
        raise InputError(
            f"commands: {text!r} ends with '<<', which begins a payload: give its lines as payload"
        )
    lines = None if payload is None else tuple(payload.removesuffix("\n").split("\n"))
    command = Command(text, lines)
    try:
        encode(command)
    except InputError as exc:
        if ";" not in re.sub(r"\\.", "", text):
            raise
        raise InputError(
            f"{exc}; write several commands as a list, and a ';' that is part of a word as '\\;'",
            **exc.details,
        ) from None
    words = split(text)
    raw = Raw(command, words, _kind(words))
    _refuse(raw)
    return raw


def _kind(words: Words) -> str:
    if words == ("trace",) or (len(words) == 1 and words[0] in _MODES):
        return READ
    if words[:2] == _COUNTERS and set(words[2:]) <= _COUNTERS_SHOWN:
        return READ
    if _begins(words, _READS):
        return READ
    if _begins(words, _SESSIONS):
        return SESSION
    return WAIT if words[:1] == ("wait",) else CHANGE


def _refuse(raw: Raw) -> None:
    """What would break the conversation, or what an option does; in one sentence."""
    words, first = raw.words, raw.words[0]
    reason = ""
    if first.startswith("@"):
        reason = "the module chooses the worker; write the master's socket as master:///path"
    elif first in ("prompt", "quit"):
        reason = "it is about the connection, which the module opens and closes itself"
    elif words[:2] == ("set", "severity-output"):
        reason = "the module sets it itself, and returns it as severity"
    elif first in _MODES and len(words) > 1:
        reason = f"use the option {first.replace('-', '_')}"
    elif words[:2] == ("show", "events") and any(re.match(r"-\w*w", item) for item in words[3:]):
        reason = "with -w its reply never ends; leave it out"
    elif _begins(words, (("wait",), ("set", "timeout", "cli"))):
        time = words[1:2] if first == "wait" else words[3:4]
        if time and _seconds(time[0], 1e-3 if first == "wait" else 1.0) > _LONGEST:
            reason = "a time longer than 20 days may end HAProxy; give a shorter one"
    if reason:
        raise InputError(f"commands: '{raw.shown}' cannot be sent: {reason}")


def refuse_at(raw: Raw, *, master: bool) -> str | None:
    """Why a command cannot work at this kind of socket."""
    if master and raw.kind in (SESSION, WAIT):
        return (
            "the master process begins a new conversation with its worker for each command, "
            "which ends it at once; name the worker's own socket"
        )
    return None


def _begins(words: Words, prefixes: tuple[Words, ...]) -> bool:
    return any(words[: len(prefix)] == prefix for prefix in prefixes)


# --- replies --------------------------------------------------------------------------------

# `set severity-output number`. Dumps are not numbered, nor is an empty reply, which is a success.
_NUMBERED = re.compile(r"\[([0-7])\]: ")
SEVERITIES = ("emerg", "alert", "crit", "error", "warning", "notice", "info", "debug")
_ERROR = SEVERITIES.index("error")

_UNKNOWN = re.compile(r"Unknown command[.,:]")
# `set server` tells success and failure alike as warnings; these are its successes.
_SET_SERVER_DONE = re.compile(
    r"(IP changed from |port changed from |no need to change |nothing changed|\S+ changed its FQDN )"
)
_SET_SERVER_FAILED = "problem converting port"
# Long jobs print what they do before they know how it ends.
_LONG_JOB = re.compile(r"(Committing |Inserting )")
# Replies that carry no number although they are errors.
_NOT_FOUND = re.compile(r"Session not found\.")
_HIDDEN = "# contents not dumped due to insufficient privileges"

# Without numbers, as through the master process: what a change says when it succeeds, ...
_DONE = re.compile(
    r"(New \S.*|Server deleted\.|(.*\n)?Backend (registered|deleted|published|unpublished)\.|"
    r"(All sockets are|Frontend is) already (enabled|disabled)\.|health check port updated\.|"
    r"server ssl setting updated\.|Transaction (created|updated|aborted) for .*|"
    r"transaction (created|updated|aborted) for .*|.* deleted!|Entry .* deleted in crtlist .*|"
    r"OCSP Response updated.*|TLS ticket key updated.*|Done\.|.*\nSuccess!)",
    re.S,
)
# ... and how refusals to read begin.
_REFUSAL = re.compile(
    r"(No such |Can't |Cannot |Unknown |Variable not found|Key value expected|Filter entry #|"
    r"Data type not stored|Require |Missing |Invalid |Unable |unable |No entry can be found|"
    r"Failed|Interrupted|Optional argument|didn't find |Couldn't |Expects |Unsupported |"
    r"This command takes no |'[^'\n]*' unable to |(?!\[)[^\n]*(\bexpect|does not match))"
)


@dataclasses.dataclass(frozen=True)
class Reply:
    """What HAProxy answered: its text, and its own word for how serious it is, if it has one."""

    text: str
    severity: str | None = None


def understand(text: str, *, numbered: bool) -> Reply:
    """A reply without what `set severity-output number` and the framing add to it."""
    match = _NUMBERED.match(text) if numbered else None
    if match is None:
        return Reply(text.strip("\n"))
    return Reply(text[match.end() :].strip("\n"), SEVERITIES[int(match[1])])


def refusal(words: Words, reply: Reply, *, numbered: bool) -> str | None:
    """Why the command was not carried out, or None if it was."""
    text = reply.text.strip()
    # HAProxy 2.2 answers `help` as it answers an unknown command.
    if words[:1] == ("help",):
        return None
    if _UNKNOWN.match(text):
        return "it has no such command (help lists those that it has)"
    if reply.severity is not None and SEVERITIES.index(reply.severity) <= _ERROR:
        return text or "an error without a text"
    if words[:2] == ("set", "server") and (reply.severity == "warning" or not numbered) and text:
        done = _SET_SERVER_DONE.match(text) and _SET_SERVER_FAILED not in text
        return None if done or (not numbered and _DONE.fullmatch(text)) else text
    if _LONG_JOB.match(text):
        return None if re.search(r"^Success!", text, re.M) else text
    if words[:1] == ("show",) and (_NOT_FOUND.match(text) or _HIDDEN in text):
        return text
    if numbered:
        return None
    return _refusal_by_text(words, text)


def _refusal_by_text(words: Words, text: str) -> str | None:
    if text.startswith(("Permission denied", "This command is restricted to ")):
        return text
    if _kind(words) == READ:
        return text if _REFUSAL.match(text) and text.count("\n") < 20 else None
    return None if not text or _DONE.fullmatch(text) else text
