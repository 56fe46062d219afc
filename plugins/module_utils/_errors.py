# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception tree; only main() turns it into fail_json. Private to the collection."""

from __future__ import annotations

import typing as t

# Characters of a sentence.
_LONGEST = 2000


class Error(Exception):
    """Anything that ends a task: one sentence for a person, and `details` for programs.

    The details become return values of the failed task, next to `msg`. Values and replies may be
    in the sentence as they are.
    """

    def __init__(self, message: str, **details: t.Any) -> None:
        super().__init__(_one_line(message))
        self.details: dict[str, t.Any] = details


def _one_line(text: str) -> str:
    """What a terminal can show, and no other line, whatever text is in it."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    if len(shown) <= _LONGEST:
        return shown
    # The beginning says what is wrong, the end what to do.
    return f"{shown[: _LONGEST // 2]} … {shown[-_LONGEST // 3 :]}"


class InputError(Error):
    """A value of the task that cannot be carried out, found before anything was sent."""


class SocketError(Error):
    """The socket cannot be reached, or the conversation on it broke off."""


class NoAnswerError(SocketError):
    """The other side did not answer, or not in full, before the deadline."""


class ProtocolError(SocketError):
    """The other side answered something that HAProxy's runtime API never says."""


class LevelError(Error):
    """The socket's level does not allow what the task has to do."""


class VersionError(Error):
    """The running HAProxy is too old for what the task wants, or has lost it."""


class NotFoundError(Error):
    """A backend, server, map, … that HAProxy does not know."""


class ParseError(Error):
    """A reply that cannot be understood; names the reply and the line."""

    def __init__(self, what: str, problem: str, *, line: str | None = None) -> None:
        shown = "" if line is None else f" in the line {line[:200]!r}"
        super().__init__(
            f"cannot understand HAProxy's reply to '{what}': {problem}{shown}", reply_to=what
        )


class CommandError(Error):
    """HAProxy refused a command."""


class FloorError(Error):
    """Fewer servers would stay usable than the task demands."""


class WaitError(Error):
    """The deadline passed before the servers were where the task wants them."""
