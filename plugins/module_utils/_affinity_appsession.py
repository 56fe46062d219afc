# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Translate HAProxy 1.5's C(appsession) line into today's C(app_session) persistence; private to the collection.

The grammar and its defaults are those of HAProxy 1.5's configuration manual, section 4.2::

    appsession <cookie> len <length> timeout <holdtime>
               [request-learn] [prefix] [mode <path-parameters|query-string>]

HAProxy has refused the keyword since 1.6.
"""

from __future__ import annotations

import re
import typing as t

MODES = ("path-parameters", "query-string")

_NAME = re.compile(r"[A-Za-z0-9_.-]+\Z")
_TIME = re.compile(r"[1-9][0-9]*(us|ms|s|m|h|d)?\Z")


class AppsessionError(ValueError):
    """The line does not follow HAProxy 1.5's grammar; the message is one clause without a full stop."""


def translate(line: str) -> dict[str, t.Any]:
    """Return the C(persistence) dictionary that does what the old line did.

    The leading word C(appsession) is optional. The old time without a unit was in milliseconds.
    Without C(mode) the old parser looked into path parameters (C(;name=value)), so this does too.
    """
    words = line.split()
    if words[:1] == ["appsession"]:
        words = words[1:]
    if not words:
        raise AppsessionError("the appsession line is empty")
    name, rest = words[0], words[1:]
    if not _NAME.match(name):
        raise AppsessionError(
            f"the cookie name {name!r} in the appsession line may only have letters, digits and _.-"
        )
    result: dict[str, t.Any] = {
        "method": "app_session",
        "name": name,
        "request_learn": False,
        "prefix": False,
        "path_parameter": True,
        "query_string": False,
    }
    seen: set[str] = set()
    while rest:
        word = rest.pop(0)
        if word in seen:
            raise AppsessionError(f"{word!r} is given twice in the appsession line")
        seen.add(word)
        if word in ("request-learn", "prefix"):
            result[word.replace("-", "_")] = True
            continue
        if word not in ("len", "timeout", "mode"):
            raise AppsessionError(f"{word!r} is not a word of the appsession line")
        if not rest:
            raise AppsessionError(f"{word!r} has no value in the appsession line")
        value = rest.pop(0)
        if word == "len":
            if not value.isdigit() or not 0 < int(value) < 16384:
                raise AppsessionError(f"len {value!r} in the appsession line is not 1 to 16383")
            result["len"] = int(value)
        elif word == "timeout":
            match = _TIME.match(value)
            if not match:
                raise AppsessionError(f"timeout {value!r} in the appsession line is not a time")
            result["timeout"] = value if match.group(1) else f"{value}ms"
        elif value not in MODES:
            raise AppsessionError(
                f"mode {value!r} in the appsession line is not {' or '.join(MODES)}"
            )
        else:
            result["path_parameter"] = value == "path-parameters"
            result["query_string"] = value == "query-string"
    for word in ("len", "timeout"):
        if word not in seen:
            raise AppsessionError(f"the appsession line has no {word!r}")
    return result


def describe(translated: t.Mapping[str, t.Any]) -> str:
    """Return the translated persistence in one line of YAML flow style, for a warning."""
    parts = []
    for key, value in translated.items():
        if value is False:
            continue
        parts.append(f"{key}: {'true' if value is True else value}")
    return "{" + ", ".join(parts) + "}"
