# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: words, commands and payloads in HAProxy's grammar. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import difflib
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError

# HAProxy 2.2 and 2.6 lose a connection for good when a line exceeds about 15 KiB.
LINE_LIMIT = 4096
# Bytes of a payload and its command. HAProxy before 3.4 takes no more than its tune.bufsize of
# 16 KiB; 3.4.7 takes 128, but above 16 sometimes never answers when they arrive in pieces.
PAYLOAD_LIMIT = 15 * 1024
# HAProxy's MAX_CLI_ARGS.
_WORDS = 64

_NAME = re.compile(r"[A-Za-z0-9_.:-]+\Z")
_HARMLESS = re.compile(r"[A-Za-z][A-Za-z0-9_.:/% -]*\Z")


class Command(t.NamedTuple):
    """One line, and the lines of its payload if it has one."""

    text: str
    payload: tuple[str, ...] | None = None

    @property
    def shown(self) -> str:
        """For people and return values: payloads may be long, or a private key."""
        if self.payload is None:
            return self.text
        lines = "1 line" if len(self.payload) == 1 else f"{len(self.payload)} lines"
        return f"{self.text} <<({lines})"


class Step(t.NamedTuple):
    """One command that changes something: what it changes, and which replies accept it."""

    key: t.Any
    command: str
    payload: tuple[str, ...] | None = None
    # A regular expression for the whole reply, without white space around it.
    accepted: str = ""
    # Whether its effect can be read back; if not, it is part of every plan.
    readable: bool = True

    @property
    def wire(self) -> Command:
        return Command(self.command, self.payload)

    @property
    def shown(self) -> str:
        return self.command if self.payload is None else self.wire.shown

    def accepts(self, reply: str) -> bool:
        if not self.accepted:
            return not reply.strip()
        return re.fullmatch(self.accepted, reply.strip(), re.S) is not None


def word(text: str) -> str:
    """One word of a command, so that HAProxy reads exactly this text.

    HAProxy's grammar (2.2 to 3.4) takes a backslash before any character as that character. Line
    breaks and NUL cannot be carried at all.
    """
    if not text or re.search(r"[\n\r\0]", text):
        raise InputError(
            f"{text!r} cannot be part of a command: it is empty or contains a line break or a NUL"
        )
    return re.sub(r"([\\; \t<])", r"\\\1", text)


def normal_name(text: str, what: str) -> str:
    """A name as HAProxy allows it; nothing else could name anything."""
    if not _NAME.match(text):
        raise InputError(
            f"{what} {text!r}: HAProxy's names consist of letters, digits and any of '_.:-'"
        )
    return text


def near(name: str, known: c.Iterable[str]) -> str:
    """A hint for a name that does not exist."""
    names = sorted(set(known))
    found = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    found = sorted(found) or names[:5]
    if not found:
        return "there are none"
    return f"there is {', '.join(found)}{', …' if len(names) > len(found) else ''}"


def encode(command: str | Command) -> bytes:
    """The bytes of exactly one command: the last guard against one becoming two.

    Refuses whatever would end the line early, start a second command, start a payload, or swallow
    the line's end; and payload lines that would end the payload. Words are made safe before, by
    whoever builds the command.
    """
    if isinstance(command, str):
        command = Command(command)
    line = _encode_line(command.text, command.payload is not None)
    if command.payload is not None:
        line += _encode_payload(command.text, command.payload)
    if len(line) > PAYLOAD_LIMIT:
        raise InputError(
            f"the command {command.text[:60]!r} has {len(line)} bytes with its payload; no more "
            f"than {PAYLOAD_LIMIT} can be sent: split it",
            command=command.text,
        )
    return line


def _encode_line(text: str, has_payload: bool) -> bytes:
    # Most commands hold nothing that could mean something else.
    short = len(text) < LINE_LIMIT and text.count(" ") < _WORDS
    if not has_payload and short and _HARMLESS.match(text):
        return text.encode("ascii") + b"\n"
    if not text.strip():
        raise InputError("an empty command cannot be sent", command=text)
    if re.search(r"[\n\r\0]", text):
        raise InputError(
            f"the command {text!r} contains a line break or a NUL, which HAProxy's grammar "
            "cannot carry",
            command=text,
        )
    # Escaped characters are plain text for HAProxy; what is left over is grammar. But to 2.2 and
    # 2.6 even `\<<` begins a payload.
    bare = re.sub(r"\\.", "x", text)
    if bare.endswith("\\") or ";" in bare or "<<" in text:
        raise InputError(
            f"the command {text!r} contains an unescaped ';', '<<' or final '\\'",
            command=text,
        )
    if len(re.findall(r"[^ \t]+", bare)) + has_payload > _WORDS:
        raise InputError(
            f"the command {text[:60]!r}… has more than {_WORDS} words, and HAProxy up to 3.0 "
            "ignores the rest",
            command=text[:200],
        )
    line = _bytes(text, text) + (b" <<\n" if has_payload else b"\n")
    if len(line) > LINE_LIMIT:
        raise InputError(
            f"the command {text[:60]!r}… has {len(line)} bytes; no line may exceed {LINE_LIMIT}",
            command=text[:200],
        )
    return line


def _encode_payload(text: str, payload: tuple[str, ...]) -> bytes:
    for line in payload:
        if not line or re.search(r"[\n\r\0]", line):
            raise InputError(
                f"the payload of the command {text!r} has an empty line, or one with a line break "
                "or a NUL, which HAProxy's grammar cannot carry",
                command=text,
            )
    return b"".join(_bytes(line, text) + b"\n" for line in payload) + b"\n"


def _bytes(text: str, command: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"the command {command!r} is not valid text", command=command) from None
