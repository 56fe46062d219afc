# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import dataclasses
import typing as t
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _command, _frontend
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    InputError,
    NotFoundError,
    ParseError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._frontend import (
    Desired,
    Frontend,
    Seen,
)

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
PARAMS: dict[str, t.Any] = {
    "frontends": ["www"],
    "state": None,
    "maxconn": None,
    "force": False,
    "missing": "fail",
}
V26 = (2, 6, 12)
V34 = (3, 4, 7)
HEADER = "# pxname,svname,iid,type,status,scur,qcur,slim,rate,rate_lim,\n"


def desired(**params: t.Any) -> Desired:
    return Desired.from_params({**PARAMS, **params})


def fe(name: str = "www", **values: t.Any) -> Frontend:
    base: dict[str, t.Any] = {"id": 2, "state": "enabled", "maxconn": 100, "connections": 3}
    return Frontend(name, **{**base, **values})


def plan(
    *frontends: Frontend, version: _frontend.Version = V34, **params: t.Any
) -> tuple[list[str], dict[str, t.Any]]:
    change = _frontend.plan_frontends(Seen(version, frontends), desired(**params), "/sock")
    return [step.command for step in change.steps], change.after


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"frontends": []}, "frontends"),
        ({"frontends": ["a b"]}, "frontend 'a b'"),
        ({"frontends": ["a\nb"]}, "frontend"),
        ({"frontends": ["a;b"]}, "frontend"),
        ({"frontends": ["#"]}, "frontend '#'"),
        ({"frontends": ["#x"]}, "frontend '#x'"),
        ({"frontends": ["#1*"]}, "frontend '#1*'"),
        ({"frontends": [""]}, "frontend ''"),
        ({"maxconn": -1}, "maxconn -1"),
        ({"maxconn": 2**31}, "maxconn 2147483648"),
        ({"maxconn": 2**32 + 1}, "maxconn 4294967297"),
        ({"maxconn": 0}, "force: true"),
        ({"maxconn": True}, "maxconn True: must be a number"),
        ({"maxconn": False, "force": True}, "maxconn False: must be a number"),
        ({"frontends": ["*"], "state": "shutdown"}, "force: true"),
        ({"frontends": ["www", "mai?"], "state": "shutdown"}, "'mai?'"),
        ({"frontends": ["[w]ww"], "state": "shutdown"}, "force: true"),
        ({"maxconn": 5, "state": "shutdown"}, "shutdown"),
    ],
)
def test_bad_input(params: dict[str, t.Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        desired(**params)
    assert words in str(caught.value)


def test_zero_by_force() -> None:
    assert plan(fe(), maxconn=0, force=True)[0] == ["set maxconn frontend www 0"]


@pytest.mark.parametrize("version", ["2.2", "2.6", "3.0", "3.2", "3.4"])
def test_real_replies(version: str) -> None:
    directory = FIXTURES / f"haproxy-{version}"
    number = _frontend.version_of((directory / "show_info_global.txt").read_text())
    assert number[:2] == tuple(int(part) for part in version.split("."))
    assert number[2] > 0
    text = (directory / "show_stat_frontends.txt").read_text()
    found = {frontend.name: frontend for frontend in _frontend.frontends(text, number)}
    # `off` is disabled in the configuration; two proxies of one name are refused by 3.4.
    names = {"open", "paused", "ended", "held", "3", "both", "same"}
    absent = {"2.2": {"ended"}, "3.4": {"same"}}.get(version, set())
    assert set(found) == names - absent
    assert found["open"] == Frontend("open", 2, "enabled", 77)
    assert found["paused"] == Frontend("paused", 3, "disabled", 50)
    if version != "2.2":
        assert found["ended"] == Frontend("ended", 4, "shutdown", None)
    assert found["held"] == Frontend("held", 6, "enabled", 200, rate_limit=5)
    assert (found["3"].id, found["both"].id) == (7, 8)


def test_development_version() -> None:
    assert _frontend.version_of("Name: HAProxy\nVersion: 2.9-dev12\n") == (2, 9, 0)


@pytest.mark.parametrize(
    ("status", "version", "state"),
    [
        ("OPEN", V34, "enabled"),
        ("FULL", (2, 2, 9), "enabled"),
        ("PAUSED", V34, "disabled"),
        ("STOP", (2, 2, 9), "disabled"),
        ("STOP", V26, "shutdown"),
        ("STOP", V34, "shutdown"),
    ],
)
def test_status(status: str, version: _frontend.Version, state: str) -> None:
    """The same word means another thing in 2.2."""
    found = _frontend.frontends(
        f"{HEADER}www,FRONTEND,2,0,{status},1,,7,2,0,\n"
        f"www,BACKEND,2,1,UP,1,0,7,2,,\nFRONTEND,FRONTEND,4,2,UP,0,0,,0,,\n",
        version,
    )
    limit = None if state == "shutdown" else 7
    assert found == [Frontend("www", 2, state, limit, 1, 2, 0)]


@pytest.mark.parametrize("row", ["www,FRONTEND,2,0,ODD,1,,7,2,0,", "w,F,2,0,OPEN,1,,x,2,0,"])
def test_unknown_reply(row: str) -> None:
    with pytest.raises(ParseError, match="show stat"):
        _frontend.frontends(f"{HEADER}{row}\n", V34)


# --- planning -------------------------------------------------------------------------------


def test_order() -> None:
    """Nobody comes in before the limit is right, and nobody waits while it is changed."""
    assert plan(fe(), state="disabled", maxconn=7)[0] == [
        "disable frontend www",
        "set maxconn frontend www 7",
    ]
    assert plan(fe(state="disabled"), state="enabled", maxconn=7)[0] == [
        "set maxconn frontend www 7",
        "enable frontend www",
    ]


def test_what_has_no_port_is_not_disabled() -> None:
    seen = Seen(V34, (fe("idle", id=3), fe("www")))
    wanted = desired(frontends=["*"], state="disabled", maxconn=7)
    change = _frontend.plan_frontends(seen, wanted, "/sock", {"idle"})
    assert [step.command for step in change.steps] == [
        "set maxconn frontend idle 7",
        "disable frontend www",
        "set maxconn frontend www 7",
    ]
    assert change.after["idle"] == {"state": "enabled", "maxconn": 7}
    # To shut it down works.
    wanted = desired(frontends=["idle"], state="shutdown")
    assert len(_frontend.plan_frontends(seen, wanted, "/sock", {"idle"}).steps) == 1


def test_names() -> None:
    several = (fe("www"), fe("wwws", id=3), fe("mail", id=4), fe("3", id=5))
    commands = plan(*several, frontends=["w*"], state="disabled")[0]
    assert commands == ["disable frontend www", "disable frontend wwws"]
    assert plan(*several, frontends=["#3"], state="disabled")[0] == ["disable frontend wwws"]
    assert plan(*several, frontends=["3"], state="disabled")[0] == ["disable frontend 3"]
    assert len(plan(*several, frontends=["*", "www"], state="disabled")[0]) == 4
    ignored = plan(*several, frontends=["x*", "mail"], state="disabled", missing="ignore")
    assert ignored[0] == ["disable frontend mail"]
    with pytest.raises(NotFoundError, match=r"no frontend 'wwx' or '#9'; there is www") as caught:
        plan(*several, frontends=["wwx", "#9", "www"], state="disabled")
    assert caught.value.details["not_found"] == ["wwx", "#9"]


def test_shut_down() -> None:
    gone = fe("old", id=9, state="shutdown", maxconn=None)
    unlisted = Frontend("old", None, "shutdown", None)
    for one in (gone, unlisted):
        for params in ({"state": "enabled"}, {"state": "disabled"}, {"maxconn": 7}):
            with pytest.raises(NotFoundError, match="shut down"):
                plan(one, fe(), frontends=["old"], **params)
            # A pattern means what can still be changed.
            assert len(plan(one, fe(), frontends=["*"], **params)[1]) == 1
        assert plan(one, frontends=["old"], state="shutdown")[0] == []
        assert plan(one, frontends=["o*"], state="shutdown", force=True)[0] == []
        assert plan(one, frontends=["old"])[0] == []
    assert plan(gone, frontends=["#9"], state="shutdown")[0] == []


FULL = {"connections": 100}
HELD = {"rate_limit": 5, "rate": 5}


@pytest.mark.parametrize(
    ("version", "values", "params", "refused"),
    [
        (V26, FULL, {"maxconn": 101}, True),
        (V26, {"connections": 120}, {"maxconn": 101}, True),
        (V26, {"connections": 99}, {"maxconn": 101}, False),
        (V26, FULL, {"maxconn": 50}, False),
        (V26, FULL, {"maxconn": 100}, False),
        (V26, HELD, {"maxconn": 50}, True),
        (V26, HELD, {"maxconn": 101}, True),
        (V26, {"rate_limit": 5}, {"maxconn": 101}, False),
        (V26, FULL, {"maxconn": 101, "state": "enabled"}, True),
        (V26, FULL, {"maxconn": 101, "state": "disabled"}, False),
        (V26, {**FULL, "state": "disabled"}, {"maxconn": 101}, False),
        (V26, {**FULL, "state": "disabled"}, {"maxconn": 101, "state": "enabled"}, False),
        ((2, 6, 20), FULL, {"maxconn": 101}, False),
        ((2, 4, 27), FULL, {"maxconn": 101}, True),
        ((2, 4, 28), FULL, {"maxconn": 101}, False),
        ((2, 7, 99), FULL, {"maxconn": 101}, True),
        ((2, 8, 11), FULL, {"maxconn": 101}, True),
        ((3, 0, 5), FULL, {"maxconn": 101}, True),
        ((3, 0, 6), FULL, {"maxconn": 101}, False),
        ((3, 1, 0), FULL, {"maxconn": 101}, False),
        ((2, 2, 9), FULL, {"maxconn": 101}, False),
    ],
)
def test_what_would_abort_haproxy_is_refused(
    version: _frontend.Version, values: dict[str, t.Any], params: dict[str, t.Any], refused: bool
) -> None:
    if refused:
        with pytest.raises(InputError, match="abort"):
            plan(fe(**values), version=version, **params)
    else:
        plan(fe(**values), version=version, **params)


# --- properties -----------------------------------------------------------------------------

frontends_ = st.lists(
    st.builds(
        Frontend,
        st.from_regex(r"[a-z0-9_.:-]{1,6}", fullmatch=True),
        st.integers(1, 50),
        st.sampled_from(["enabled", "disabled", "shutdown"]),
        st.integers(1, 9),
        st.integers(0, 9),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    unique_by=(lambda one: one.name, lambda one: one.id),
    max_size=5,
)


@given(
    found=frontends_,
    names=st.lists(st.sampled_from(["*", "a*", "?", "#1", "www"]), min_size=1),
    state=st.sampled_from([None, "enabled", "disabled", "shutdown"]),
    maxconn=st.none() | st.integers(1, 12),
    version=st.sampled_from([V26, V34, (2, 2, 9)]),
)
def test_a_plan_leads_to_its_own_prediction(
    found: list[Frontend],
    names: list[str],
    state: str | None,
    maxconn: int | None,
    version: _frontend.Version,
) -> None:
    if state == "shutdown":
        maxconn = None
    wanted = desired(frontends=names, state=state, maxconn=maxconn, missing="ignore", force=True)
    try:
        change = _frontend.plan_frontends(Seen(version, tuple(found)), wanted, "/sock")
    except (InputError, NotFoundError):
        return
    for step in change.steps:
        assert _command.encode(step.command)
        assert step.accepts("\n")
        assert not step.accepts("No such frontend.\n\n")
    assert bool(change.steps) == (change.before != change.after)
    after = {row["name"]: Frontend(**row) for row in change.result["frontends"]}
    now = tuple(after.get(one.name, one) for one in found)
    again = _frontend.plan_frontends(Seen(version, now), wanted, "/sock")
    assert again.steps == ()
    assert again.before == change.after
    # What is not named stays as it is.
    assert all(
        dataclasses.asdict(one) == dataclasses.asdict(after.get(one.name, one))
        for one in found
        if one.name not in change.before
    )


@given(st.text(), st.sampled_from([V26, (2, 2, 9)]))
def test_the_parser_only_raises_parse_errors(text: str, version: _frontend.Version) -> None:
    for reply in (text, HEADER + text, f"{HEADER}a,FRONTEND,1,0,{text},0,0,1,0,0,\n"):
        with contextlib.suppress(ParseError):
            _frontend.frontends(reply, version)
    for reply in (text, f"Version: {text}"):
        with contextlib.suppress(ParseError):
            _frontend.version_of(reply)


@given(st.text())
def test_names_never_leave_their_place(text: str) -> None:
    try:
        wanted = desired(frontends=[text], state="disabled", missing="ignore")
    except InputError:
        return
    for name in wanted.literal:
        assert _command.encode(f"set maxconn frontend {_command.word(name)}")
