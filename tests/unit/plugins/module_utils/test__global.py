# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import typing as t
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _command, _global
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    InputError,
    ParseError,
    VersionError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._global import Desired, Process

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
NAMES = (*_global.SETTINGS, *_global.PROFILING)
PARAMS: dict[str, t.Any] = {**dict.fromkeys(NAMES), "clear_counters": None}
NOW = Process(
    200,
    {**dict.fromkeys(_global.SETTINGS, 0), "maxconn": 200, "profiling_tasks": "auto"},
)
NOW.values["profiling_memory"] = "off"
OLD = "Per-task CPU profiling              : auto      # set profiling tasks {on|auto|off}\n\n"
NEW = (
    "Per-task CPU profiling              : auto-off      # set profiling tasks {on|auto|off}\n"
    "Memory usage profiling              : off           # set profiling memory {on|off}\n\n"
)


def desired(**params: t.Any) -> Desired:
    return Desired.from_params({**PARAMS, **params})


def plan(now: Process = NOW, **params: t.Any) -> list[str]:
    change = _global.plan_process(now, desired(**params), "/sock")
    return [step.command for step in change.steps]


@pytest.mark.parametrize("version", ["2.2", "2.6", "3.0", "3.2", "3.4"])
def test_real_replies(version: str) -> None:
    directory = FIXTURES / f"haproxy-{version}"
    info = (directory / "show_info_global.txt").read_text()
    found = _global.process(info, (directory / "show_profiling.txt").read_text())
    assert found.as_dict() == {
        "hard_maxconn": 200,
        "maxconn": 150,
        "rate_limit_connections": 11,
        "rate_limit_sessions": 12,
        "rate_limit_ssl_sessions": 13,
        "rate_limit_http_compression": 14,
        "profiling_tasks": "on",
        "profiling_memory": None if version == "2.2" else "off",
    }


def test_profiling() -> None:
    info = "Hard_maxconn: 5\nMaxconn: 5\nCompressBpsRateLim: 10240\n"
    # What 2.2 says, and what the later ones say.
    assert _global.process(info, OLD).values["profiling_tasks"] == "auto"
    assert _global.process(info, NEW).values["profiling_tasks"] == "auto"
    found = _global.process(info, NEW.replace("auto-off", "on").replace(": off", ": on"))
    assert (found.values["profiling_tasks"], found.values["profiling_memory"]) == ("on", "on")
    assert found.values["rate_limit_http_compression"] == 10
    assert found.values["rate_limit_ssl_sessions"] is None


@pytest.mark.parametrize(
    ("info", "profiling"),
    [
        ("Maxconn: 5\n", NEW),
        ("Hard_maxconn: x\n", NEW),
        ("Hard_maxconn: 5\nMaxconn: -1\n", NEW),
        ("Hard_maxconn: 5\n", ""),
        ("Hard_maxconn: 5\n", NEW.replace("auto-off", "odd")),
    ],
)
def test_unknown_replies(info: str, profiling: str) -> None:
    with pytest.raises(ParseError, match="show "):
        _global.process(info, profiling)


@pytest.mark.parametrize(
    ("params", "commands"),
    [
        ({"maxconn": 100}, ["set maxconn global 100"]),
        ({"maxconn": 200}, []),
        ({"maxconn": 0}, []),
        ({"rate_limit_connections": 7}, ["set rate-limit connections global 7"]),
        ({"rate_limit_sessions": 7}, ["set rate-limit sessions global 7"]),
        ({"rate_limit_ssl_sessions": 7}, ["set rate-limit ssl-sessions global 7"]),
        ({"rate_limit_http_compression": 7}, ["set rate-limit http-compression global 7"]),
        ({"rate_limit_sessions": 0}, []),
        ({"profiling_tasks": "on"}, ["set profiling tasks on"]),
        ({"profiling_tasks": "auto"}, []),
        ({"profiling_memory": "on"}, ["set profiling memory on"]),
        ({"profiling_memory": "off"}, []),
        ({"clear_counters": "max"}, ["clear counters"]),
        ({"clear_counters": "all"}, ["clear counters all"]),
    ],
)
def test_commands(params: dict[str, t.Any], commands: list[str]) -> None:
    assert plan(**params) == commands


def test_maxconn() -> None:
    lowered = Process(200, {**NOW.values, "maxconn": 50})
    change = _global.plan_process(lowered, desired(maxconn=0), "/sock")
    assert [step.command for step in change.steps] == ["set maxconn global 0"]
    assert (change.before, change.after) == ({"maxconn": 50}, {"maxconn": 200})
    with pytest.raises(InputError, match="started for 200"):
        plan(maxconn=201)


@pytest.mark.parametrize("name", _global.SETTINGS)
@pytest.mark.parametrize("value", [True, False])
def test_truth_values_are_no_numbers(name: str, value: bool) -> None:
    with pytest.raises(InputError, match=f"^{name} {value}: must be a number"):
        desired(**{name: value})


def test_clearing_is_always_done_and_proves_nothing() -> None:
    (step,) = _global.plan_process(NOW, desired(clear_counters="all"), "/sock").steps
    assert not step.readable


def test_what_the_build_lacks() -> None:
    bare = Process(200, {**NOW.values, "rate_limit_ssl_sessions": None})
    with pytest.raises(VersionError, match="rate_limit_ssl_sessions"):
        plan(bare, rate_limit_ssl_sessions=5)
    plain = Process(200, NOW.values, has_memory_profiling=False)
    assert "has_memory_profiling" not in plain.as_dict()
    assert plan(plain, profiling_memory="off") == []
    with pytest.raises(VersionError, match="USE_MEMORY_PROFILING"):
        plan(plain, profiling_memory="on")


numbers = {name: st.none() | st.integers(0, 300) for name in _global.SETTINGS}
wishes = st.fixed_dictionaries(
    {
        **numbers,
        "profiling_tasks": st.sampled_from([None, "on", "auto", "off"]),
        "profiling_memory": st.sampled_from([None, "on", "off"]),
    }
)


@given(wishes, wishes)
def test_a_plan_leads_to_its_own_prediction(
    had: dict[str, t.Any], params: dict[str, t.Any]
) -> None:
    now = Process(200, {name: NOW.values[name] if had[name] is None else had[name] for name in had})
    try:
        change = _global.plan_process(now, desired(**params), "/sock")
    except InputError:
        assert (params["maxconn"] or 0) > 200
        return
    for step in change.steps:
        assert _command.encode(step.command)
        assert step.accepts("\n")
        assert not step.accepts("Value out of range.\n\n")
    assert bool(change.steps) == (change.before != change.after)
    (row,) = change.result["processes"]
    after = Process(row.pop("hard_maxconn"), row)
    again = _global.plan_process(after, desired(**params), "/sock")
    assert again.steps == ()
    assert again.before == change.after


@given(st.text())
def test_the_parser_only_raises_parse_errors(text: str) -> None:
    for info in (text, f"Hard_maxconn: 5\nMaxconn: {text}"):
        for profiling in (text, f"Per-task CPU profiling : {text}\n", NEW):
            with contextlib.suppress(ParseError):
                _global.process(info, profiling)
