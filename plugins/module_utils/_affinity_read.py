# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read one dictionary of role input key by key, collecting every problem with its path; private to the collection.

Role argument specs neither convert nor apply sub-option defaults, so this is the one place where
C("7"), C(7), C("yes") and C(true) become what they mean.
"""

from __future__ import annotations

import difflib
import re
import typing as t
from collections.abc import Mapping

TIME = re.compile(r"[0-9]+(us|ms|s|m|h|d)\Z")
SIZE = re.compile(r"[1-9][0-9]*[kKmMgG]?\Z")
NAME = re.compile(r"[A-Za-z0-9_.:-]+\Z")
COOKIE_NAME = re.compile(r"[A-Za-z0-9_.-]+\Z")

_TRUE = frozenset({"yes", "true", "on", "1"})
_FALSE = frozenset({"no", "false", "off", "0"})


class Reader:
    """One mapping at C(path). Every getter notes a problem and returns its default when the value is wrong."""

    def __init__(self, data: t.Any, path: str, problems: list[str]) -> None:
        self.path = path
        self.problems = problems
        self.known: set[str] = set()
        self.data: Mapping[str, t.Any] = {}
        if data is None:
            return
        if isinstance(data, Mapping):
            self.data = data
        else:
            self.problem("", f"is {_kind(data)}; give a dictionary")

    def at(self, key: str) -> str:
        """Return the full path of C(key)."""
        return f"{self.path}.{key}" if key else self.path

    def problem(self, key: str, text: str) -> None:
        """Note a problem: C(text) follows the path, without a full stop."""
        self.problems.append(f"{self.at(key)} {text}.")

    def has(self, key: str) -> bool:
        """Tell whether the key is given with a value other than null."""
        return self._raw(key) is not None

    def _raw(self, key: str) -> t.Any:
        self.known.add(key)
        return self.data.get(key)

    def text(
        self,
        key: str,
        default: str | None = None,
        pattern: re.Pattern[str] | None = None,
        meaning: str = "a single line of text",
    ) -> str | None:
        """Return one line of text; numbers are accepted and become text."""
        value = self._raw(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            self.problem(key, f"is {_kind(value)}; give {meaning}")
            return default
        found = str(value).strip()
        if not found or has_control(found) or (pattern and not pattern.match(found)):
            self.problem(key, f"is {found!r}; give {meaning}")
            return default
        return found

    def required(
        self,
        key: str,
        pattern: re.Pattern[str] | None = None,
        meaning: str = "a single line of text",
    ) -> str | None:
        """Return one line of text; a missing key is a problem."""
        if self._raw(key) is None:
            self.problem(key, f"is missing; give {meaning}")
            return None
        return self.text(key, None, pattern, meaning)

    def name(self, key: str = "name") -> str | None:
        """Return a name as HAProxy allows it (configuration manual, section 4)."""
        return self.required(key, NAME, "a name of letters, digits and _.:-")

    def integer(self, key: str, default: int | None, low: int, high: int) -> int | None:
        """Return a whole number within the range, digits in a string accepted."""
        value = self._raw(key)
        if value is None:
            return default
        if isinstance(value, str) and re.match(r"-?[0-9]+\Z", value.strip()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.problem(key, f"is {value!r}; give a whole number from {low} to {high}")
            return default
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean; the words that YAML users mean are accepted."""
        value = self._raw(key)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
        self.problem(key, f"is {value!r}; give true or false")
        return default

    def time(self, key: str, default: str | None) -> str | None:
        """Return a HAProxy time. The unit is required: HAProxy itself takes ms in some places and s in others."""
        return self.text(key, default, TIME, "a time with its unit, like 30s, 5m, 1h")

    def choice(self, key: str, default: str, choices: t.Sequence[str]) -> str:
        """Return one of the choices."""
        value = self._raw(key)
        if value is None:
            return default
        if value not in choices:
            self.problem(key, f"is {value!r}; give one of {', '.join(choices)}")
            return default
        return str(value)

    def lines(self, key: str) -> tuple[str, ...]:
        """Return a list of lines; one string is accepted and cut at its line ends."""
        return read_lines(self._raw(key), self.at(key), self.problems)

    def sub(self, key: str) -> Reader:
        """Return a reader of the dictionary under C(key); an absent one is empty."""
        return Reader(self._raw(key), self.at(key), self.problems)

    def subs(self, key: str) -> list[Reader]:
        """Return a reader for each dictionary of the list under C(key)."""
        value = self._raw(key)
        if value is None:
            return []
        return read_list(value, self.at(key), self.problems)

    def finish(self) -> None:
        """Note every key that nothing asked for."""
        for key in self.data:
            if key not in self.known:
                near = difflib.get_close_matches(str(key), sorted(self.known), 1)
                hint = (
                    f"did you mean {near[0]}"
                    if near
                    else f"known are {', '.join(sorted(self.known))}"
                )
                self.problem(str(key), f"is not a known key; {hint}")


def read_list(value: t.Any, path: str, problems: list[str]) -> list[Reader]:
    """Return a reader for each dictionary of a list."""
    if not isinstance(value, (list, tuple)):
        problems.append(f"{path} is {_kind(value)}; give a list of dictionaries.")
        return []
    return [Reader(item, f"{path}[{index}]", problems) for index, item in enumerate(value)]


def read_lines(value: t.Any, path: str, problems: list[str]) -> tuple[str, ...]:
    """Return the non-empty lines of a list or of one string, without surrounding blanks."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = value.splitlines()
    if not isinstance(value, (list, tuple)):
        problems.append(f"{path} is {_kind(value)}; give a list of lines.")
        return ()
    found = []
    for index, line in enumerate(value):
        if isinstance(line, bool) or not isinstance(line, (str, int)) or has_control(str(line)):
            problems.append(f"{path}[{index}] is {_kind(line)}; give a single line of text.")
        elif str(line).strip():
            found.append(str(line).strip())
    return tuple(found)


def has_control(text: str) -> bool:
    """Tell whether the text has a character that would end a line of haproxy.cfg or hide in it."""
    return any((ord(char) < 32 and char != "\t") or ord(char) == 127 for char in text)


def _kind(value: t.Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, Mapping):
        return "a dictionary"
    if isinstance(value, (list, tuple)):
        return "a list"
    return repr(value)
