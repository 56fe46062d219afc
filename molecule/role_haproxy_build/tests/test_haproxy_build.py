# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A build as the hosts have it: what it reports, who made it, and what becomes of one that is not wanted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab import NUMBER, REPO, Lab, Run, full

CONVERGE = Path(__file__).resolve().parent.parent / "converge.yml"
# Little to compile, and that fast.
SMALL: dict[str, Any] = {
    "haproxy_build_features": {"USE_LUA": False, "USE_OPENSSL": False, "USE_PROMEX": False},
    "haproxy_build_make_arguments": ["CPU_CFLAGS=-O0"],
}


def build(lab: Lab, *arguments: str, **variables: Any) -> Run:
    return lab.play(CONVERGE, "--limit", "proxy", "-e", json.dumps(variables), *arguments)


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
    assert "USE_LINUX_TPROXY=1" in record["make"]
    assert record["binary_sha256"] == lab.run("proxy", "sha256sum /usr/local/sbin/haproxy")[:64]
    assert record["libraries"]["libssl-dev"]
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
    # As a Makefile would that somebody has changed: what is asked for is right, what is built is not.
    listed = "build_features=+LINUX_TPROXY +PCRE2 +PCRE2_JIT +SYSTEMD -TPROXY +ZLIB"
    run = build(lab, **small(arguments=[listed]))
    assert run.code != 0
    assert "does not report +TPROXY in 'haproxy -vv'" in " ".join(run.output.split())
    assert state(lab) == before


def small(**more: Any) -> dict[str, Any]:
    """Another release than any before: what has no meaning for HAProxy still has one for the fingerprint."""
    arguments = [*SMALL["haproxy_build_make_arguments"], *more.pop("arguments", [])]
    return {**SMALL, "haproxy_build_make_arguments": arguments, **more}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["CC=cc -include /nowhere.h"], ("did not compile", "/nowhere.h", "build.log")),
        pytest.param(["CC=/nowhere/cc"], ("did not compile", "/nowhere/cc: not found"), marks=full),
        pytest.param(
            ["LDFLAGS=-Wl,--dynamic-linker=/nowhere"], ("does not run", "No such file"), marks=full
        ),
    ],
)
def test_what_does_not_compile_or_run_is_refused(
    lab: Lab, arguments: list[str], words: tuple[str, ...]
) -> None:
    before = state(lab)
    run = build(lab, **small(arguments=arguments))
    assert run.code != 0
    said = " ".join(run.output.split())
    for word in words:
        assert word in said
    assert "what was installed stays as it is" in said
    assert state(lab) == before
    # The user that compiles, not root.
    owner = lab.run("proxy", "stat -c %U /var/cache/haproxy-build/build.log").strip()
    assert owner == "haproxy-build"


@full
def test_a_full_disk_is_told_and_harms_nothing(lab: Lab) -> None:
    before = state(lab)
    lab.run("proxy", "mkdir /srv/small && mount -t tmpfs -o size=12m tmpfs /srv/small")
    try:
        work = {"__haproxy_build_work": "/srv/small/build"}
        run = build(lab, **small(arguments=["DEBUG=-DFULL_DISK"]), **work)
        assert run.code != 0
        assert "No space left on device" in run.output
        assert state(lab) == before
    finally:
        lab.run("proxy", "umount /srv/small && rmdir /srv/small")


PATCH = """\
--- a/include/haproxy/version.h
+++ b/include/haproxy/version.h
@@ -1,3 +1,4 @@
+#define PATCHED_BY_LAB 1
 /*
  * include/haproxy/version.h
  * This file serves as a template for future include files.
"""


def test_a_patch_that_does_not_apply_is_named(lab: Lab, tmp_path: Path) -> None:
    before = state(lab)
    good, bad = tmp_path / "good.patch", tmp_path / "bad.patch"
    good.write_text(PATCH)
    bad.write_text(
        PATCH.replace("future include", "past include").replace(
            "version.h\n  * This", "version.h\n  * That"
        )
    )
    run = build(lab, **small(haproxy_build_patches=[str(good), str(bad)]))
    assert run.code != 0
    said = " ".join(run.output.split())
    assert f"{bad} of haproxy_build_patches does not apply" in said
    assert state(lab) == before


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("Fetch the source", marks=full),
        pytest.param("Unpack the source", marks=full),
        "Wait for the compiler",
        pytest.param("Copy the release", marks=full),
        pytest.param("Put the release in its place", marks=full),
        # At the links and the reload.
        "Put the release in use",
    ],
)
def test_a_run_that_is_killed_is_finished_by_the_next(lab: Lab, where: str) -> None:
    before = state(lab)
    wanted = small(arguments=[f"DEBUG=-DKILLED_{where.upper().replace(' ', '_')}"])
    said = lab.killed(CONVERGE, where, "--limit", "proxy", "-e", json.dumps(wanted))
    assert f" : {where}" in said
    assert serves(lab)
    run = build(lab, **wanted)
    assert run.code == 0, run.output
    now = state(lab)
    assert now["running"] == now["current"] != before["current"]
    # The same master: HAProxy was reloaded, and never stopped.
    assert now["pid"] == before["pid"]
    assert serves(lab)
    assert build(lab).code == 0
    forget(lab, now)


def serves(lab: Lab) -> bool:
    return lab.host("proxy").run("curl -sf --max-time 5 http://127.0.0.1:8099/").stdout == "served"


def forget(lab: Lab, of: dict[str, str]) -> None:
    """A release that no other test expects."""
    lab.run("proxy", f"rm -r {Path(of['current']).parent.parent}")


def load(count: int, rate: int) -> subprocess.Popen[str]:
    """Requests on the proxy itself, every one counted (files/load.py)."""
    client = ["podman", "exec", "--interactive", f"clearproxy-{NUMBER}-proxy", "python3", "-"]
    with (REPO / "molecule/resources/files/load.py").open() as script:
        return subprocess.Popen(
            [*client, "127.0.0.1", "8099", "/plain", "--count", str(count), "--rate", str(rate)],
            stdin=script,
            stdout=subprocess.PIPE,
            text=True,
        )


def test_an_upgrade_and_the_way_back_lose_no_request(lab: Lab) -> None:
    before = state(lab)
    assert build(lab, **SMALL).code == 0
    small_one = state(lab)
    assert build(lab).code == 0
    with load(10_000, 100) as loader:
        assert build(lab, **SMALL).code == 0
        assert state(lab)["running"] == small_one["current"]
        ((_name, back),) = lab.results("clearproxy.haproxy.rollback", "--limit", "proxy")["proxy"]
        assert back["changed"]
        assert back["seconds"] < 1
        assert state(lab)["running"] == before["current"]
        assert loader.poll() is None, "the load ended before the switches did"
        counted = json.loads(loader.communicate(timeout=300)[0])
    assert counted["sent"] == 10_000
    assert counted["failed"] == 0, counted["reasons"]
    # The control: the loader sees a restart.
    with load(400, 100) as loader:
        lab.run("proxy", "sleep 1 && systemctl restart haproxy")
        assert json.loads(loader.communicate(timeout=300)[0])["failed"] > 0
    forget(lab, small_one)


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


def test_three_hosts_of_one_platform_are_one_compilation(lab: Lab) -> None:
    """The first builds; the others have neither a compiler nor the source, and no way to them."""
    hosts = ("debian12", "client", "app2")
    play = [
        {
            "hosts": ",".join(hosts),
            "order": "reverse_sorted",
            "roles": [{"role": "clearproxy.haproxy.haproxy_build"}],
            "vars": {**SMALL, "haproxy_build_make_arguments": ["CPU_CFLAGS=-O0 -g1"]},
        }
    ]
    try:
        # A compilation, and what a bare host has to be brought for it.
        results = lab.results(play, timeout=1800)
        ran = {
            host: [name for name, result in results[host] if not result.get("skipped")]
            for host in hosts
        }
        assert [host for host in hosts if "Compile HAProxy (minutes)" in ran[host]] == ["debian12"]
        made = "sha256sum /opt/haproxy/current/sbin/haproxy /opt/haproxy/current/release.json"
        assert len({lab.run(host, made) for host in hosts}) == 1
        for host in hosts[1:]:
            assert lab.host(host).run("command -v gcc").rc != 0
        again = lab.play(play)
        assert again.changed == 0, again.output
    finally:
        gone = [{**play[0], "hosts": "client,app2", "vars": {"haproxy_build_state": "absent"}}]
        assert lab.play(gone).code == 0


@pytest.fixture(scope="module")
def tarball(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upstream's part of the source package that the proxy builds, on the controller."""
    here = tmp_path_factory.mktemp("source")
    fetched = [
        {
            "hosts": "proxy",
            "tasks": [
                {"file": {"path": "/srv/source", "state": "directory"}},
                {
                    "clearproxy.haproxy.haproxy_build_source": {
                        "suite": "trixie",
                        "dest": "/srv/source",
                    }
                },
                {"find": {"paths": "/srv/source", "patterns": "*.orig.tar.gz"}, "register": "it"},
                {"fetch": {"src": "{{ it.files[0].path }}", "dest": f"{here}/", "flat": True}},
            ],
        }
    ]
    assert lab.play(fetched).code == 0
    (found,) = here.iterdir()
    version = found.name.split("_")[1].removesuffix(".orig.tar.gz")
    return found.rename(here / f"haproxy-{version}.tar.gz")


def test_a_tarball_of_the_controller_is_built_once_whatever_it_is_called(
    lab: Lab, tarball: Path
) -> None:
    before = state(lab)
    version = tarball.name.removeprefix("haproxy-").removesuffix(".tar.gz")
    own = {"haproxy_build_source": "archive", "haproxy_build_archive": str(tarball), **SMALL}
    run = build(lab, **own)
    assert run.code == 0, run.output
    built = state(lab)
    assert built["running"] == built["current"] != before["current"]
    assert lab.run("proxy", "haproxy -v").split()[2].startswith(version)
    with no_network(lab):
        again = build(lab, **own)
    assert again.changed == 0, again.output

    # The same by the way of a mirror, with its own checksum file: asked for in other words, and not compiled again.
    place = f"/srv/mirror/{'.'.join(version.split('.')[:2])}/src"
    name = tarball.name
    lab.run("proxy", f"mkdir -p {place} && cp /srv/source/*.orig.tar.gz {place}/{name}")
    lab.run("proxy", f"cd {place} && sha256sum {name} >{name}.sha256")
    lab.run("proxy", "systemd-run --unit=lab-mirror python3 -m http.server -d /srv/mirror 8095")
    release: dict[str, Any] = {
        "haproxy_build_source": "release",
        "haproxy_build_version": version,
        "haproxy_build_mirror": "http://127.0.0.1:8095",
        **SMALL,
    }
    try:
        run = build(lab, **release)
        assert run.code == 0, run.output
        assert "Compile HAProxy" not in run.output
        assert state(lab) == built
        assert build(lab, **release).changed == 0

        # What is not what it should be: one sentence, and HAProxy as it was.
        wrong = build(lab, **release, haproxy_build_checksum=64 * "0")
        assert wrong.code != 0
        assert "SHA-256 checksum" in " ".join(wrong.output.split())
        lab.run("proxy", f"truncate -s 100000 {place}/{name}")
        # Another release, or the one that is installed would serve.
        cut = build(lab, **{**release, **small(arguments=["DEBUG=-DCUT"])})
        assert cut.code != 0
        assert name in cut.output
        assert state(lab) == built
    finally:
        lab.run("proxy", "systemctl stop lab-mirror; rm -r /srv/mirror")
    assert build(lab).code == 0
    forget(lab, built)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"haproxy_build_suite": "nowhere"}, ("haproxy_build_suite", "nowhere")),
        ({"haproxy_build_suite": "a b"}, ("haproxy_build_suite", "a b")),
        ({"haproxy_build_version": "9.9-1"}, ("haproxy_build_version", "9.9-1")),
        ({"haproxy_build_features": {"openssl": True}}, ("haproxy_build_features", "USE_OPENSSL")),
        (
            {"haproxy_build_features": {"USE_TPROXY": False}},
            ("haproxy_build_features", "USE_TPROXY"),
        ),
        (
            {"haproxy_build_features": {"USE_QUIC": True}},
            ("haproxy_build_features", "USE_QUIC_OPENSSL_COMPAT"),
        ),
        ({"haproxy_build_tls_library": {"path": "/no"}}, ("haproxy_build_tls_library", "/no")),
        ({"haproxy_build_cflags": "-O3; id"}, ("haproxy_build_cflags", "-O3; id")),
        ({"haproxy_build_target": "generic"}, ("haproxy_build_target", "linux-glibc")),
        ({"haproxy_build_source": "release"}, ("haproxy_build_version", "no version is given")),
        (
            {"haproxy_build_source": "archive", "haproxy_build_archive": "/no.tar.gz"},
            ("haproxy_build_archive", "/no.tar.gz"),
        ),
        ({"haproxy_build_patches": ["/no.patch"]}, ("haproxy_build_patches", "/no.patch")),
        ({"haproxy_build_host": "nobody"}, ("haproxy_build_host", "nobody")),
        ({"haproxy_build_server_state_file": "a b"}, ("haproxy_build_server_state_file", "a b")),
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
