# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every function that reads a reply of HAProxy: it understands it, or says that it does not."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _certificate,
    _frontend,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import ParseError

UTILS = Path(_certificate.__file__).parent
PACKAGE = _certificate.__name__.rpartition(".")[0]
OTHERS = re.compile(r"_(affinity|build|kernel)_|_transport|_operation")
_READS = re.compile(r"(The .* )?`(show|get) |A .*`show ")
FIXTURES = Path(__file__).parent.parent / "fixtures"
REPLIES = [path.read_text() for path in sorted(FIXTURES.glob("haproxy-*/*")) if path.is_file()]

# What a parser takes besides the reply.
MORE: dict[str, t.Any] = {
    "_certificate.kind": _certificate.KINDS["certificate"],
    "_certificate.name": "/etc/haproxy/www.pem",
    "_dynamic_server.backend": "app",
    "_dynamic_server.name": "s1",
    "_frontend.version": _frontend.version_of("Name: HAProxy\nVersion: 3.2.26-1\n"),
    "_map.kind": "map",
}


def parsers() -> Iterator[tuple[str, Callable[[str], t.Any]]]:
    """The functions whose description says that they read what a `show` command replies."""
    for path in sorted(UTILS.glob("_*.py")):
        if OTHERS.search(path.stem):
            continue
        module = importlib.import_module(f"{PACKAGE}.{path.stem}")
        for name, function in vars(module).items():
            said = inspect.getdoc(function) or ""
            own = inspect.isfunction(function) and function.__module__ == module.__name__
            if own and not name.startswith("_") and _READS.match(said) and _takes_text(function):
                yield f"{path.stem}.{name}", _reading(path.stem, function)


def _takes_text(function: Callable[..., t.Any]) -> bool:
    first = next(iter(inspect.signature(function).parameters.values()), None)
    return first is not None and str(first.annotation) == "str"


def _reading(stem: str, function: Callable[..., t.Any]) -> Callable[[str], t.Any]:
    def read(text: str) -> t.Any:
        return function(
            *(MORE.get(f"{stem}.{name}", text) for name in inspect.signature(function).parameters)
        )

    return read


PARSERS = dict(parsers())


def test_they_are_found() -> None:
    assert {"_parse.servers_state", "_parse.stat", "_map.contents", "_info.process"} <= set(PARSERS)
    assert len(PARSERS) > 15


def spoilt(text: str, at: int, length: int, instead: str) -> str:
    at %= len(text) + 1
    return text[:at] + instead + text[at + length :]


texts = st.one_of(
    st.text(max_size=300),
    st.binary(max_size=300).map(lambda data: data.decode("utf-8", "replace")),
    st.lists(
        st.sampled_from(["#", "0x1", ",", "=", ":", "-", "\n", "1", "\t", "a[b]", "7/8", "key="]),
        max_size=40,
    ).map(" ".join),
    st.builds(
        spoilt,
        st.sampled_from(REPLIES),
        st.integers(min_value=0),
        st.integers(min_value=0, max_value=40),
        st.text(max_size=8),
    ),
    st.sampled_from(REPLIES),
)


@pytest.mark.parametrize("parser", PARSERS)
@given(text=texts)
@settings(max_examples=150, deadline=None)
def test_nothing_but_a_parse_error(parser: str, text: str) -> None:
    with contextlib.suppress(ParseError):
        PARSERS[parser](text)
