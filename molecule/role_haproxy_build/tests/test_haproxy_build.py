# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A build as the hosts have it: what it reports, who made it, and what becomes of one that is not wanted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, Run, full

CONVERGE = Path(__file__).resolve().parent.parent / "converge.yml"
# Little to compile, and that fast.
SMALL: dict[str, Any] = {
    "haproxy_build_features": {"USE_LUA": False, "USE_OPENSSL": False, "USE_PROMEX": False},
    "haproxy_build_make_arguments": ["CPU_CFLAGS=-O0"],
}


def build(lab: Lab, *arguments: str, **variables: Any) -> Run:
    return lab.play(CONVERGE, "-e", json.dumps(variables), *arguments)


def workers(lab: Lab) -> list[str]:
    """The process numbers of the workers of the running service."""
    script = "ps -o pid= --ppid $(systemctl show haproxy --property MainPID --value)"
    return lab.run("proxy", script).split()


def state(lab: Lab) -> dict[str, str]:
    """What must not change while a release is refused."""
    return {
        "current": lab.run("proxy", "readlink -f /usr/local/sbin/haproxy").strip(),
        "releases": lab.run("proxy", "ls /opt/haproxy/releases"),
        "running": lab.run(
            "proxy", "readlink /proc/$(systemctl show haproxy --property MainPID --value)/exe"
        ).strip(),
        "pid": lab.run("proxy", "systemctl show haproxy --property MainPID --value").strip(),
    }


@contextmanager
def no_network(lab: Lab) -> Iterator[None]:
    """The way to everything that is not on a subnet of the host is closed, and seen to be closed."""
    url = "$(grep -rhoE 'https?://[^ ]+' /etc/apt/sources.list* | head -n 1)"
    assert lab.host("proxy").run(f"curl -sS --max-time 10 -o /dev/null {url}").rc == 0
    lab.run("proxy", "ip route add prohibit default metric 0")
    try:
        assert lab.host("proxy").run(f"curl -sS --max-time 10 -o /dev/null {url}").rc != 0
        yield
    finally:
        lab.run("proxy", "ip route del prohibit default metric 0")


def test_the_command_reports_tproxy(lab: Lab) -> None:
    features = lab.run("proxy", "/usr/local/sbin/haproxy -vv | grep '^Feature list'").split()
    for feature in ("TPROXY", "LINUX_TPROXY", "OPENSSL", "PCRE2_JIT", "PROMEX", "LUA", "ZLIB"):
        assert f"+{feature}" in features


def test_the_record_says_what_it_was_made_of(lab: Lab) -> None:
    record = json.loads(lab.run("proxy", "cat /opt/haproxy/current/release.json"))
    version = lab.run("proxy", "haproxy -v").split()[2]
    assert version == record["version"]
    assert record["id"] == f"{version}-{record['fingerprint'][:12]}"
    assert "USE_LINUX_TPROXY=1" in record["wanted"]["make"]
    assert record["compiler"] == lab.run("proxy", "gcc --version").splitlines()[0]


def test_nothing_is_left_of_the_build_and_apt_is_untouched(lab: Lab) -> None:
    assert not lab.host("proxy").file("/var/cache/haproxy-build").exists
    assert not lab.host("proxy").file("/opt/haproxy/staging").exists
    assert lab.host("proxy").run("ls -d /tmp/haproxy-source-*").stdout == ""
    assert (
        lab.host("proxy").run("grep -r deb-src /etc/apt --exclude=lab-archive.sources").stdout == ""
    )
    owners = lab.run("proxy", "find /opt/haproxy ! -user root -o -perm /022 ! -type l")
    assert owners == ""


def test_the_release_runs_from_this_roles_unit(lab: Lab) -> None:
    service = lab.host("proxy").service("haproxy")
    assert service.is_running
    assert service.is_enabled
    now = state(lab)
    assert now["running"] == now["current"]
    assert now["current"].startswith("/opt/haproxy/releases/")
    unit = lab.run("proxy", "systemctl show haproxy --property FragmentPath --value").strip()
    assert unit == "/etc/systemd/system/haproxy.service"


def test_reloads_leave_no_old_worker(lab: Lab) -> None:
    before = workers(lab)
    for _again in range(3):
        lab.run("proxy", "systemctl reload haproxy")
    lab.wait(lambda: len(workers(lab)) == 1, "one worker")
    assert workers(lab) != before


def test_a_second_run_needs_no_network_and_does_nothing(lab: Lab) -> None:
    with no_network(lab):
        run = build(lab)
    assert run.code == 0, run.output
    assert run.changed == 0, run.output


def test_a_source_that_has_to_be_asked_for_needs_the_network(lab: Lab) -> None:
    """The control of the test above; also a host without a package source."""
    before = state(lab)
    with no_network(lab):
        run = build(lab, haproxy_build_suite="")
    assert run.code != 0
    assert run.changed == 0, run.output
    assert "haproxy_build on proxy" in run.output
    assert "mirrors" in run.output
    assert state(lab) == before


def test_a_binary_without_tproxy_is_refused(lab: Lab) -> None:
    before = state(lab)
    arguments = [*SMALL["haproxy_build_make_arguments"], "USE_LINUX_TPROXY="]
    run = build(lab, **{**SMALL, "haproxy_build_make_arguments": arguments})
    assert run.code != 0
    assert "does not report +LINUX_TPROXY in 'haproxy -vv'" in " ".join(run.output.split())
    assert state(lab) == before


@full
def test_what_does_not_compile_is_refused_with_the_end_of_the_log(lab: Lab) -> None:
    before = state(lab)
    run = build(lab, haproxy_build_make_arguments=["CC=cc -include /nowhere.h"])
    assert run.code != 0
    assert "did not compile" in run.output
    assert "/nowhere.h" in run.output
    assert "/var/cache/haproxy-build/build.log" in run.output
    assert state(lab) == before
    # The user that compiles, not root.
    owner = lab.run("proxy", "stat -c %U /var/cache/haproxy-build/build.log").strip()
    assert owner == "haproxy-build"


@full
def test_other_features_are_another_release_and_back_is_only_a_switch(lab: Lab) -> None:
    before = state(lab)
    other = build(lab, **SMALL)
    assert other.code == 0, other.output
    changed = state(lab)
    assert changed["current"] != before["current"]
    assert changed["running"] == changed["current"]
    # A reload, not a restart.
    assert changed["pid"] == before["pid"]
    assert "-OPENSSL" in lab.run("proxy", "haproxy -vv")

    # A configuration that the other release accepts and the first does not.
    lab.run("proxy", "cp -p /etc/haproxy/haproxy.cfg /srv/kept.cfg")
    try:
        lab.run("proxy", "printf 'bogus\\n' >>/etc/haproxy/haproxy.cfg")
        refused = build(lab)
        assert refused.code != 0
        assert "does not accept /etc/haproxy/haproxy.cfg" in " ".join(refused.output.split())
        assert state(lab) == changed
    finally:
        lab.run("proxy", "mv /srv/kept.cfg /etc/haproxy/haproxy.cfg")

    predicted = build(lab, "--check")
    with no_network(lab):
        back = build(lab)
    assert back.code == 0, back.output
    assert back.changed == predicted.changed > 0
    assert {**state(lab), "releases": ""} == {**before, "releases": ""}
    lab.wait(lambda: len(workers(lab)) == 1, "one worker")
    lab.run("proxy", f"rm -r {Path(changed['current']).parent.parent}")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"haproxy_build_suite": "nowhere"}, ("haproxy_build_suite", "nowhere")),
        ({"haproxy_build_suite": "a b"}, ("haproxy_build_suite", "a b")),
        ({"haproxy_build_version": "9.9-1"}, ("haproxy_build_version", "9.9-1")),
        ({"haproxy_build_features": {"openssl": True}}, ("haproxy_build_features", "USE_LUA")),
        (
            {"haproxy_build_features": {"USE_TPROXY": False}},
            ("haproxy_build_features", "USE_TPROXY"),
        ),
        ({"haproxy_build_make_arguments": ["-j9"]}, ("haproxy_build_make_arguments", "-j9")),
        (
            {"haproxy_build_capabilities": ["CAP_NET_RAW"]},
            ("haproxy_build_capabilities", "CAP_KILL"),
        ),
    ],
)
def test_bad_values_are_refused_before_anything_changes(
    lab: Lab, variables: dict[str, Any], words: tuple[str, ...]
) -> None:
    before = state(lab)
    run = build(lab, **variables)
    assert run.code != 0
    assert run.changed == 0, run.output
    for word in ("proxy", *words):
        assert word in run.output
    assert state(lab) == before
