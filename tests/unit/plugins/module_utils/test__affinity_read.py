# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_read import (
    NAME,
    Reader,
    read_lines,
    read_list,
)


def reader(data: t.Any) -> tuple[Reader, list[str]]:
    problems: list[str] = []
    return Reader(data, "top[0]", problems), problems


@pytest.mark.parametrize("value", ["7", 7, " 7 "])
def test_integer_takes_digits(value: t.Any) -> None:
    it, problems = reader({"n": value})
    assert it.integer("n", None, 1, 10) == 7
    assert problems == []


@pytest.mark.parametrize("value", ["seven", 0, 11, True, 7.5, [7]])
def test_integer_refuses(value: t.Any) -> None:
    it, problems = reader({"n": value})
    assert it.integer("n", 3, 1, 10) == 3
    assert problems == [f"top[0].n is {value!r}; give a whole number from 1 to 10."]


@pytest.mark.parametrize(
    ("value", "meant"),
    [(True, True), ("yes", True), ("On", True), (1, True), ("no", False), (0, False)],
)
def test_flag(value: t.Any, meant: bool) -> None:
    it, problems = reader({"f": value})
    assert it.flag("f", not meant) is meant
    assert problems == []


def test_flag_refuses() -> None:
    it, problems = reader({"f": "perhaps"})
    assert it.flag("f", True) is True
    assert problems == ["top[0].f is 'perhaps'; give true or false."]


@pytest.mark.parametrize("value", ["30s", "5m", "100ms", "0s"])
def test_time(value: str) -> None:
    it, problems = reader({"t": value})
    assert it.time("t", None) == value
    assert problems == []


@pytest.mark.parametrize("value", [30, "30", "5 m", "1w"])
def test_time_needs_its_unit(value: t.Any) -> None:
    it, problems = reader({"t": value})
    assert it.time("t", "1s") == "1s"
    assert len(problems) == 1
    assert "with its unit" in problems[0]


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "", True, ["a"], {"a": 1}])
def test_text_is_one_line(value: t.Any) -> None:
    it, problems = reader({"x": value})
    assert it.text("x", "default") == "default"
    assert len(problems) == 1
    assert problems[0].startswith("top[0].x is ")


def test_missing_name() -> None:
    it, problems = reader({})
    assert it.name() is None
    assert it.required("x", NAME, "a name") is None
    assert problems == [
        "top[0].name is missing; give a name of letters, digits and _.:-.",
        "top[0].x is missing; give a name.",
    ]


def test_unknown_key_suggests() -> None:
    it, problems = reader({"balanc": "source", "zzz": 1})
    it.text("balance")
    it.finish()
    assert problems == [
        "top[0].balanc is not a known key; did you mean balance.",
        "top[0].zzz is not a known key; known are balance.",
    ]


@pytest.mark.parametrize("data", ["text", ["list"], True, 5])
def test_wrong_kind(data: t.Any) -> None:
    _it, problems = reader(data)
    assert len(problems) == 1
    assert problems[0].endswith("; give a dictionary.")


def test_null_is_empty() -> None:
    it, problems = reader(None)
    assert it.text("x", "default") == "default"
    assert problems == []


def test_lines() -> None:
    problems: list[str] = []
    assert read_lines(" a \n\n b", "raw", problems) == ("a", "b")
    assert read_lines(["a", 5, " "], "raw", problems) == ("a", "5")
    assert problems == []
    assert read_lines(["a\nb", None], "raw", problems) == ()
    assert read_lines({"a": 1}, "raw", problems) == ()
    assert [each.split(" is ")[0] for each in problems] == ["raw[0]", "raw[1]", "raw"]


def test_list_of_dictionaries() -> None:
    problems: list[str] = []
    assert [it.path for it in read_list([{}, {}], "top", problems)] == ["top[0]", "top[1]"]
    assert problems == []
    assert read_list({"a": 1}, "top", problems) == []
    assert problems == ["top is a dictionary; give a list of dictionaries."]
