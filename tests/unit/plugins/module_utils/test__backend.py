# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import typing as t

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _backend,
    _command,
    _parse,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    InputError,
    NotFoundError,
    ParseError,
)

# Other work on the machine must not turn them red.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
PARAMS: dict[str, t.Any] = {
    "backend": "app",
    "state": "present",
    "defaults": None,
    "mode": None,
    "guid": None,
    "published": None,
    "dynamic_cookie": None,
    "dynamic_cookie_key": None,
    "write_only": "always",
    "wait": True,
    "wait_timeout": 300.0,
}
BACKEND = _backend.Backend("app", 3, "http", True, "disabled")
GONE = _backend.Found(None, ("app2", "web"))


def desired(**params: t.Any) -> _backend.Desired:
    return _backend.Desired.from_params({**PARAMS, **params})


def there(**values: t.Any) -> _backend.Found:
    return _backend.Found(dataclasses.replace(BACKEND, **values), ("app",))


def plan(found: _backend.Found, **params: t.Any) -> _backend.BackendChange:
    return _backend.plan_backend(found, desired(**params), "/run/x")


def lines(change: _backend.BackendChange) -> list[str]:
    return [step.command for step in change.steps]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"backend": "a b"}, "backend 'a b'"),
        ({"backend": "#3"}, "backend '#3'"),
        ({"defaults": "a b"}, "defaults 'a b'"),
        ({"mode": "tcp"}, "mode: goes with defaults"),
        ({"guid": "x"}, "guid: goes with defaults"),
        ({"defaults": "d", "guid": ""}, "''"),
        ({"defaults": "d", "guid": "a\nb"}, "line break"),
        ({"dynamic_cookie_key": ""}, "dynamic_cookie_key"),
        ({"dynamic_cookie_key": "hush\n"}, "dynamic_cookie_key"),
        ({"dynamic_cookie_key": "hush\0"}, "dynamic_cookie_key"),
        ({"dynamic_cookie_key": "hush\ud800"}, "dynamic_cookie_key"),
        ({"dynamic_cookie_key": "hush;" * 200}, "dynamic_cookie_key"),
        ({"dynamic_cookie_key": "hush", "write_only": "error"}, "dynamic_cookie_key"),
        ({"wait_timeout": -1.0}, "wait_timeout"),
        ({"wait_timeout": float("inf")}, "wait_timeout"),
        ({"state": "absent", "published": False}, "published: goes with state: present"),
        ({"state": "absent", "dynamic_cookie_key": "hush"}, "dynamic_cookie_key: goes"),
    ],
)
def test_bad_input(params: dict[str, t.Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        desired(**params)
    assert words in str(caught.value)
    assert "hush" not in f"{caught.value} {caught.value.details}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("found", "params", "commands"),
    [
        ({}, {}, []),
        ({}, {"dynamic_cookie": "disabled"}, []),
        ({}, {"dynamic_cookie": "enabled"}, ["enable dynamic-cookie backend app"]),
        (
            {"dynamic_cookie": None},
            {"dynamic_cookie": "disabled"},
            ["disable dynamic-cookie backend app"],
        ),
        (
            {"dynamic_cookie": None},
            {"dynamic_cookie": "disabled", "write_only": "on_change_only"},
            [],
        ),
        (
            {"dynamic_cookie": None},
            {"dynamic_cookie": "disabled", "write_only": "on_change_only", "published": False},
            ["disable dynamic-cookie backend app", "unpublish backend app"],
        ),
        ({}, {"dynamic_cookie_key": "k", "write_only": "on_change_only"}, []),
        ({}, {"published": True}, []),
        ({"published": False}, {"published": True}, ["publish backend app"]),
        ({}, {"defaults": "d", "mode": "http", "guid": "x"}, []),
        ({}, {"state": "absent"}, ["unpublish backend app", "del backend app"]),
        ({"published": False}, {"state": "absent"}, ["del backend app"]),
    ],
)
def test_commands(found: dict[str, t.Any], params: dict[str, t.Any], commands: list[str]) -> None:
    assert lines(plan(there(**found), **params)) == commands


def test_adding() -> None:
    change = plan(GONE, defaults="d", mode="tcp", guid="a b", published=True)
    assert lines(change) == [
        r"add backend app from d mode tcp guid a\ b",
        "publish backend app",
    ]
    assert change.before == {"app": {"state": "absent"}}
    assert change.after == {"app": {"state": "present", "published": True}}
    assert lines(plan(GONE, defaults="d", published=False)) == ["add backend app from d"]
    assert plan(GONE, state="absent").steps == ()
    with pytest.raises(NotFoundError, match="no backend 'app'; there is app2"):
        plan(GONE)


@pytest.mark.parametrize(
    ("found", "params", "words"),
    [
        (there(id=None), {"published": True}, "published: .* is disabled"),
        (there(id=None), {"state": "absent"}, "is disabled"),
        (there(), {"mode": "tcp", "defaults": "d"}, "exists with mode http"),
        (
            dataclasses.replace(there(), servers=("a", "b", "c", "d")),
            {"state": "absent"},
            r"has servers \(a, b, c…\)",
        ),
        (
            there(dynamic_cookie=None),
            {"dynamic_cookie": "enabled", "write_only": "error"},
            "no server .* shows",
        ),
    ],
)
def test_refused(found: _backend.Found, params: dict[str, t.Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan(found, **params)


def test_the_key_is_hidden_and_first() -> None:
    change = plan(there(), dynamic_cookie="enabled", dynamic_cookie_key="hush; hush")
    assert [step.shown for step in change.steps] == [
        "set dynamic-cookie-key backend app (hidden)",
        "enable dynamic-cookie backend app",
    ]
    assert change.steps[0].wire.shown == change.steps[0].shown
    assert _command.encode(change.steps[0].wire) == (
        b"set dynamic-cookie-key backend app hush\\;\\ hush\n"
    )
    assert not change.steps[0].readable
    assert "hush" not in repr((change.before, change.after, change.result, desired()))


def test_what_cannot_be_seen_is_not_predicted() -> None:
    change = plan(there(dynamic_cookie=None), dynamic_cookie="enabled")
    assert not change.steps[0].readable
    assert change.before == change.after == {"app": {"state": "present", "dynamic_cookie": None}}


@pytest.mark.parametrize(
    ("reply", "deleted"),
    [
        ("Backend deleted.", True),
        ("Server b/s1 is going DOWN.\nServer deleted.\nBackend deleted.", True),
        ("Backend must be unpublished prior to its deletion.", False),
        ("Server deleted.", False),
        ("", False),
    ],
)
def test_replies(reply: str, deleted: bool) -> None:
    assert plan(there(), state="absent").steps[-1].accepts(reply) is deleted
    text = reply.replace("Backend deleted", "New backend registered")
    assert plan(GONE, defaults="d").steps[0].accepts(text) is deleted


@pytest.mark.parametrize(
    ("cookies", "seen"),
    [
        ([], None),
        (["c1"], None),
        (["c1", ""], "disabled"),
        (["0123456789abcdef", "c1"], "enabled"),
        # Servers that HAProxy 2.6 got at run time have none.
        (["0123456789abcdef", ""], "enabled"),
        (["0123456789ABCDEF"], None),
        (["0123456789abcdef0"], None),
    ],
)
def test_dynamic_cookies(cookies: list[str], seen: str | None) -> None:
    rows = [{"type": "2", "cookie": cookie} for cookie in cookies]
    rows.append({"type": "1", "cookie": "SRV"})
    assert _backend.dynamic_cookie_of(rows) == seen


@pytest.mark.parametrize("version", ["2.2", "2.6", "3.0", "3.2", "3.4"])
def test_real_replies(version: str) -> None:
    major, minor = version.split(".")
    rows = _parse.stat((FIXTURES / f"haproxy-{version}" / "show_stat.txt").read_text())
    names = {row["pxname"] for row in rows if row["type"] == "1"}
    assert names
    for name in names:
        backend = _backend.backend_of(rows, name, (int(major), int(minor)))
        assert backend.id is not None
        assert backend.mode in ("http", "tcp")
        assert (backend.published is None) is (version != "3.4")
    assert _backend.backend_of(rows, "nope", (3, 4)).disabled


ROWS = st.lists(
    st.fixed_dictionaries(
        {"pxname": st.just("app"), "type": st.sampled_from(["0", "1", "2"])},
        optional={"iid": st.text(), "status": st.text(), "mode": st.text(), "cookie": st.text()},
    )
)


@PATIENT
@given(ROWS)
def test_parser_raises_nothing_else(rows: list[dict[str, str]]) -> None:
    with contextlib.suppress(ParseError):
        _backend.backend_of(rows, "app", (3, 4))
    assert _backend.dynamic_cookie_of(rows) in ("enabled", "disabled", None)


SEEN = st.sampled_from(["enabled", "disabled", None])


@PATIENT
@given(
    st.just(GONE) | st.builds(there, published=st.booleans(), dynamic_cookie=SEEN),
    st.fixed_dictionaries(
        {
            "published": st.none() | st.booleans(),
            "dynamic_cookie": SEEN,
            "dynamic_cookie_key": st.none() | st.just("k"),
            "write_only": st.sampled_from(["always", "on_change_only"]),
        }
    ),
)
def test_plan_applied_is_empty(found: _backend.Found, params: dict[str, t.Any]) -> None:
    change = plan(found, defaults="d", **params)
    (after,) = change.result["backends"]
    now = _backend.Found(_backend.Backend(**{**after, "id": 3}), ("app",))
    again = plan(now, defaults="d", **params)
    assert not any(step.readable for step in again.steps)
    assert again.before == again.after == change.after
    if params["write_only"] == "on_change_only":
        assert again.steps == ()


@PATIENT
@given(st.text(), st.text())
def test_no_text_escapes(name: str, text: str) -> None:
    """Every text either goes out as one command, or is refused as input."""
    for params in (
        {"backend": name},
        {"defaults": name},
        {"defaults": "d", "guid": text},
        {"defaults": "d", "dynamic_cookie_key": text},
    ):
        with contextlib.suppress(InputError, NotFoundError):
            for step in plan(GONE, **params).steps:
                assert _command.encode(step.wire).count(b"\n") == 1
