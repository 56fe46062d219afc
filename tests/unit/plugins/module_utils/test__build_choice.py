# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import json
import typing as t

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_choice import (
    choose,
    fingerprint,
    make_wanted,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_features import BASE
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError

MADE_OF: dict[str, t.Any] = {
    "source_sha256": "a" * 64,
    "patches": ["b" * 64],
    "make": ["TARGET=linux-glibc", "USE_LUA=1"],
    "compiler": "gcc (Debian 12.2.0-14) 12.2.0",
    "libraries": {"libssl-dev": "3.0.20", "liblua5.4-dev": "5.4.4"},
    "platform": "Debian 12 x86_64",
    "libc": "glibc",
}
WANTED = make_wanted({"platform": "Debian 12 x86_64"})


def record(name: str, built: str = "2026-01-01", **other: t.Any) -> dict[str, t.Any]:
    return {
        "id": name,
        "wanted": WANTED,
        "compiler": "gcc 12",
        "libraries": {"libssl-dev": "3.0.20"},
        "source": {"sha256": "a" * 64},
        "built": built,
        **other,
    }


def test_what_is_left_out_has_its_default() -> None:
    assert make_wanted({}) == {
        "source": {"kind": "distribution", "suite": "", "version": ""},
        "patches": [],
        "features": BASE,
        "tls_library": None,
        "cflags": "",
        "make_arguments": [],
        "target": "linux-glibc",
        "platform": "",
    }


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ({"features": {}}, {"features": {"USE_LUA": True}}),
        ({"cflags": "-O3 -g"}, {"cflags": " -O3\n-g "}),
        ({"patches": ["sha256:" + "AB" * 32]}, {"patches": ["ab" * 32]}),
        (
            {"source": {"kind": "distribution"}},
            {"source": {"mirror": "https://m", "archive": "/a"}},
        ),
        (
            {"source": {"kind": "release", "version": "3.2.1", "mirror": "https://m/"}},
            {
                "source": {
                    "kind": "release",
                    "version": "3.2.1",
                    "mirror": "https://m",
                    "suite": "sid",
                }
            },
        ),
        (
            {"source": {"kind": "archive", "archive": "/a.tgz", "checksum": "sha256:" + "F" * 64}},
            {"source": {"kind": "archive", "archive": "https://m/a.tgz", "checksum": "f" * 64}},
        ),
        (
            {"tls_library": {"path": "/opt/q/"}},
            {"tls_library": {"path": "/opt/q", "lib": "lib", "name": None, "headers": "…"}},
        ),
    ],
)
def test_the_same_wish_in_other_words_is_the_same(
    one: dict[str, t.Any], same: dict[str, t.Any]
) -> None:
    assert make_wanted(one) == make_wanted(same)


def test_a_file_of_checksums_may_be_about_several_archives() -> None:
    sums = "https://m/SHA256SUMS"
    one, other = (
        make_wanted(
            {"source": {"kind": "archive", "archive": f"https://m/{name}", "checksum": sums}}
        )
        for name in ("a.tgz", "b.tgz")
    )
    assert one != other
    assert one["source"]["checksum"] == sums


@pytest.mark.parametrize(
    "other",
    [
        {"source": {"suite": "trixie"}},
        {"source": {"version": "3.0.11"}},
        {"source": {"kind": "release", "version": "3.0.11"}},
        {"source": {"kind": "archive", "archive": "/a"}},
        {"patches": ["a", "b"]},
        {"patches": ["b", "a"]},
        {"features": {"USE_LUA": False}},
        {"tls_library": {"path": "/opt/q"}},
        {"tls_library": {"path": "/opt/q", "version": "3.1.7"}},
        {"cflags": "-O3"},
        {"make_arguments": ["CPU=native"]},
        {"target": "linux-musl"},
        {"platform": "Debian 13 x86_64"},
    ],
)
def test_another_wish_is_another(other: dict[str, t.Any]) -> None:
    assert make_wanted(other) != make_wanted({})
    assert json.loads(json.dumps(make_wanted(other))) == make_wanted(other)


@pytest.mark.parametrize(
    "bad",
    [
        {"colour": 1},
        {"source": {"kind": "git"}},
        {"source": {"branch": "x"}},
        {"source": "x"},
        {"patches": "x"},
        {"tls_library": "/opt"},
    ],
)
def test_a_wish_of_another_form_is_refused(bad: dict[str, t.Any]) -> None:
    with pytest.raises(InputError, match="give "):
        make_wanted(bad)


def test_the_fingerprint_is_of_the_json_with_sorted_keys() -> None:
    text = json.dumps(MADE_OF, sort_keys=True, separators=(",", ":"))
    assert fingerprint(MADE_OF) == hashlib.sha256(text.encode()).hexdigest()
    assert fingerprint(dict(reversed(MADE_OF.items()))) == fingerprint(MADE_OF)


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("source_sha256", "c" * 64),
        ("patches", []),
        ("make", ["USE_LUA=1", "TARGET=linux-glibc"]),
        ("compiler", "gcc 14"),
        ("libraries", {"libssl-dev": "3.0.21", "liblua5.4-dev": "5.4.4"}),
        ("platform", "Debian 13 x86_64"),
        ("libc", "musl"),
    ],
)
def test_whatever_decides_changes_the_fingerprint(key: str, other: t.Any) -> None:
    assert fingerprint({**MADE_OF, key: other}) != fingerprint(MADE_OF)
    without = {name: value for name, value in MADE_OF.items() if name != key}
    with pytest.raises(InputError, match=f"lacks {key}"):
        fingerprint(without)


def test_a_fingerprint_of_something_else_is_refused() -> None:
    with pytest.raises(InputError, match="colour"):
        fingerprint({**MADE_OF, "colour": 1})
    with pytest.raises(InputError, match="cannot be taken"):
        fingerprint({**MADE_OF, "libraries": {1, 2}})


def test_the_one_in_use_comes_first_then_the_newest() -> None:
    a, b, c = record("a", "2026-01-01"), record("b", "2026-03-01"), record("c", "2026-02-01")
    d = record("d", "2026-04-01")
    assert choose([a, b, c], [d], WANTED, "a") == {"release": a, "where": "installed"}
    assert choose([a, b, c], [d], WANTED, None) == {"release": b, "where": "installed"}
    assert choose([a, b, c], [d], WANTED, "d") == {"release": b, "where": "installed"}
    assert choose([], [a, d, c], WANTED) == {"release": d, "where": "cached"}
    assert choose([], [], WANTED) == {"release": {}, "where": "none"}


def test_what_does_not_run_does_not_serve() -> None:
    broken = record("a", usable=False, problem="its library is gone")
    assert choose([broken], [], WANTED, "a")["where"] == "none"
    assert choose([broken], [record("a")], WANTED, "a")["where"] == "cached"


def test_what_has_no_record_does_not_serve() -> None:
    assert choose([{"id": "a", "usable": True}], [{}], WANTED, "a")["where"] == "none"


@pytest.mark.parametrize(
    ("known", "serves"),
    [
        ({}, True),
        ({"compiler": "gcc 12"}, True),
        ({"compiler": "gcc 14"}, False),
        ({"libraries": {"libssl-dev": "3.0.20", "zlib1g-dev": "1"}}, True),
        ({"libraries": {"libssl-dev": "3.0.21"}}, False),
        ({"libraries": {"libssl-dev": {"installed": "3.0.21", "candidate": "3.0.21"}}}, False),
        ({"libraries": {"libssl-dev": {"installed": None, "candidate": "3.0.21"}}}, True),
        ({"libraries": {"libssl-dev": None}}, True),
        ({"source_sha256": "a" * 64}, True),
        ({"source_sha256": "c" * 64}, False),
    ],
)
def test_what_is_known_has_to_be_the_same(known: dict[str, t.Any], serves: bool) -> None:
    assert (choose([record("a")], [], WANTED, "a", **known)["where"] == "installed") is serves
    assert (choose([], [record("a")], WANTED, "a", **known)["where"] == "cached") is serves


def test_another_wish_is_not_served() -> None:
    other = make_wanted({"features": {"USE_LUA": False}, "platform": "Debian 12 x86_64"})
    assert choose([record("a")], [record("b")], other, "a")["where"] == "none"
