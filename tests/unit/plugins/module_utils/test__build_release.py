# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import itertools
import typing as t

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _build_release as core
from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_release import (
    Names,
    Process,
    Release,
    ReleaseError,
    Service,
    after,
    choose_pruned,
    plan_action,
    plan_switch,
)

A, B, C = (f"3.0.{n}-{str(n) * 12}" for n in (1, 2, 3))
ROOT = "/opt/haproxy"
STATES = [
    Names(*found)
    for found in itertools.product((None, A, B, C), repeat=3)
    if found[0] is not None or found[1] is None
]


def planned(names: Names, wanted: str) -> core.Switch | None:
    try:
        return plan_switch(names, wanted)
    except ReleaseError:
        return None


# --- switches -------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [A, B, C, "previous"])
@pytest.mark.parametrize("names", STATES, ids=str)
def test_a_switch_that_ends_anywhere_is_finished_by_the_next_run(names: Names, wanted: str) -> None:
    plan = planned(names, wanted)
    if plan is None:
        return
    done = after(names, plan.steps)
    assert done.current == plan.release
    if wanted == "previous":
        assert done.marker == done.previous != done.current
    elif wanted != names.current:
        assert done == Names(wanted, names.current or names.previous)
    for count in range(len(plan.steps) + 1):
        between = after(names, plan.steps[:count])
        again = plan_switch(between, wanted)
        assert after(between, again.steps) == done, between
        assert plan_switch(done, wanted).steps == ()


@pytest.mark.parametrize("wanted", [A, B, C, "previous"])
@pytest.mark.parametrize("names", STATES, ids=str)
def test_what_is_taken_back_is_as_it_was(names: Names, wanted: str) -> None:
    plan = planned(names, wanted)
    if plan is None:
        return
    for step in range(len(plan.steps) + 1):
        done = after(names, plan.steps)
        back = core.steps_back(names, plan.steps)
        assert after(done, back) == names
        assert after(done, back[:step]).current in (names.current, plan.release)


def test_forward_back_and_forward_again() -> None:
    names = Names()
    for wanted, expected in (
        (A, Names(A)),
        (B, Names(B, A)),
        ("previous", Names(A, B, B)),
        ("previous", Names(A, B, B)),
        (A, Names(A, B, B)),
        (B, Names(B, A)),
        ("previous", Names(A, B, B)),
        (C, Names(C, A)),
        ("previous", Names(A, C, C)),
    ):
        names = after(names, plan_switch(names, wanted).steps)
        assert names == expected, wanted


def test_a_second_rollback_says_that_it_was_done() -> None:
    plan = plan_switch(Names(A, B, B), "previous")
    assert plan.steps == ()
    assert plan.said == (
        f"{B} was rolled back already, {A} is in use; switch to a release by its ID to go forward"
    )


@pytest.mark.parametrize("names", [Names(), Names(A), Names(A, A), Names(A, A, A)], ids=str)
def test_without_an_earlier_release_there_is_nothing_to_go_back_to(names: Names) -> None:
    with pytest.raises(ReleaseError, match="there is no release before"):
        plan_switch(names, "previous")


# --- the service ----------------------------------------------------------------------------


def binary(identifier: str) -> str:
    return f"{ROOT}/releases/{identifier}/sbin/haproxy"


def service(master: str | None, *workers: str, **more: t.Any) -> Service:
    return Service(
        "active",
        "/etc/systemd/system/haproxy.service",
        Process(10, master) if master else None,
        tuple(Process(11 + n, exe) for n, exe in enumerate(workers)),
        **more,
    )


@pytest.mark.parametrize(
    ("found", "action"),
    [
        (None, "none"),
        (service(None), "start"),
        (service(binary(B), binary(B)), "none"),
        # An old worker finishes its connections.
        (service(binary(B), binary(A), binary(B)), "none"),
        # Ended after the links, before the reload.
        (service(binary(A), binary(A)), "reload"),
        # The reload failed: the master is the new one.
        (service(binary(B), binary(A)), "reload"),
        (service(binary(B), binary(B), binary(A)), "reload"),
        (service(binary(B)), "reload"),
        # Installed again under the same name.
        (service(f"{binary(B)} (deleted)", f"{binary(B)} (deleted)"), "reload"),
        (service("/usr/sbin/haproxy", "/usr/sbin/haproxy"), "restart"),
        (service(binary(B), binary(B), unread=True), "restart"),
        (service(binary(B), binary(B), outdated=True), "restart"),
        (service(None, unread=True), "start"),
    ],
)
def test_what_makes_the_service_run_the_release(found: Service | None, action: str) -> None:
    assert plan_action(found, binary(B), ROOT, configured=True) == action
    assert plan_action(found, binary(B), ROOT, configured=False) == "none"


def test_a_worker_from_before_is_no_proof() -> None:
    found = service(binary(B), binary(B))
    assert core.runs(found, binary(B))
    assert not core.runs(found, binary(B), {11})


def test_of_which_release_an_executable_is() -> None:
    assert core.release_of(binary(A), ROOT) == A
    assert core.release_of(f"{binary(A)} (deleted)", ROOT) == A
    assert core.release_of("/usr/sbin/haproxy", ROOT) is None


# --- what is removed ------------------------------------------------------------------------


def installed(*ids: str) -> list[Release]:
    return [Release(i, {"id": i, "built": f"2026-01-0{n}"}) for n, i in enumerate(ids, 1)]


@pytest.mark.parametrize(
    ("keep", "protected", "pruned"),
    [
        (0, (), []),
        (1, (), [A, B]),
        (1, (A,), [B, C]),
        (2, (A,), [B]),
        (1, (A, C), [B]),
        (3, (), []),
        (1, (A, B, C), []),
    ],
)
def test_the_oldest_go_and_never_what_is_in_use(
    keep: int, protected: tuple[str, ...], pruned: list[str]
) -> None:
    assert choose_pruned(installed(A, B, C), keep, protected) == pruned


def test_what_has_no_record_is_neither_counted_nor_removed() -> None:
    found = [Release("what", {}, "garbled"), *installed(A, B)]
    assert choose_pruned(found, 1, (B,)) == [A]


# --- records and archives -------------------------------------------------------------------

RECORD = {"id": f"3.0.1-{'a' * 12}", "version": "3.0.1", "fingerprint": "a" * 64}
RECORD["binary_sha256"] = "b" * 64


def test_a_record_that_fits_names_its_release() -> None:
    assert core.verify_record(RECORD, "x.tar.gz") == RECORD["id"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("fingerprint", None, "as fingerprint"),
        ("fingerprint", "A" * 64, "as fingerprint"),
        ("binary_sha256", "b" * 63, "as binary_sha256"),
        ("id", None, "no ID"),
        ("id", "../../etc-" + "a" * 12, "no ID"),
        ("id", f"3.0.2-{'a' * 12}", "do not make"),
        ("id", f"3.0.1-{'b' * 12}", "do not make"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(key: str, value: t.Any, words: str) -> None:
    with pytest.raises(ReleaseError, match=words):
        core.verify_record({**RECORD, key: value}, "x.tar.gz")


@pytest.mark.parametrize("text", ["", "[]", "{", "\0"])
def test_a_garbled_record_is_one_sentence(text: str) -> None:
    with pytest.raises(ReleaseError, match=r"release\.json cannot be read"):
        core.parse_record(text)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "sbin/../../x", "./../x", "etc/passwd", "x"]
)
def test_a_member_that_is_not_a_releases_is_refused(name: str) -> None:
    with pytest.raises(ReleaseError, match="nothing was unpacked"):
        core.member_name(name, "x.tar.gz")


@pytest.mark.parametrize(
    ("name", "path"),
    [(".", ""), ("./", ""), ("./sbin/haproxy", "sbin/haproxy"), ("release.json", "release.json")],
)
def test_the_path_of_a_member(name: str, path: str) -> None:
    assert core.member_name(name, "x.tar.gz") == path


@pytest.mark.parametrize(
    ("listed", "missing"),
    [
        ("+TPROXY +LUA -SYSTEMD", ["SYSTEMD"]),
        ("+TPROXY +LUA", []),
        ("+TPROXY -LUA +SYSTEMD", ["LUA"]),
        ("", ["TPROXY", "LUA"]),
    ],
)
def test_features_that_are_missing(listed: str, missing: list[str]) -> None:
    report = f"HAProxy version 3.0.1\nFeature list : {listed}\n" if listed else ""
    features = ["USE_TPROXY", "USE_LUA", "USE_SYSTEMD"]
    assert core.missing_features(report, features, ["USE_SYSTEMD"]) == missing


@pytest.mark.parametrize(
    ("version", "listed", "option"),
    [
        ("HA-Proxy version 2.2.9", "+SYSTEMD", "-Ws"),
        ("HAProxy version 3.0.1", "-SYSTEMD", "-W"),
        ("HAProxy version 3.0.1", "+LUA", "-W"),
        ("HAProxy version 3.1.0", "+LUA", "-Ws"),
    ],
)
def test_the_master_talks_to_systemd_where_it_can(version: str, listed: str, option: str) -> None:
    assert core.master_option(f"{version}\nFeature list : {listed}\n") == option


@pytest.mark.parametrize(
    ("release", "keep", "timeout", "words"),
    [
        ("3.0", 0, 30, "release is '3.0'"),
        ("../x", 0, 30, "release is"),
        (A, -1, 30, "keep is -1"),
        (A, 0, 0, "timeout is 0"),
    ],
)
def test_bad_options_are_refused(release: str, keep: int, timeout: int, words: str) -> None:
    with pytest.raises(core.InputError, match=words):
        core.check_options(release, keep, timeout)


def test_what_apt_says_of_packages() -> None:
    text = "a:\n  Installed: (none)\n  Candidate: 1.2\n  Version table:\nb:\n  Installed: 1\n  Candidate: 2\n"
    assert core.parse_policy(text) == {
        "a": {"installed": None, "candidate": "1.2"},
        "b": {"installed": "1", "candidate": "2"},
    }
