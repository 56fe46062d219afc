# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Switches and rollbacks of a running HAProxy, beside the one that the role runs: own root, command, unit and ports."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from lab import Lab

ROOT, COMMAND, SERVICE = "/opt/haproxy-try", "/usr/local/sbin/haproxy-try", "haproxy-try.service"
UNIT, CONFIG = f"/etc/systemd/system/{SERVICE}", "/srv/haproxy-try.cfg"
A, B, BROKEN = (f"3.0.{n}-{str(n) * 12}" for n in (1, 2, 3))

PACK = """\
import hashlib, io, json, sys, tarfile
binary = open(sys.argv[1], "rb").read()
n = int(sys.argv[2])
record = {"id": f"3.0.{n}-{str(n) * 12}", "version": f"3.0.{n}", "fingerprint": str(n) * 64,
          "binary_sha256": hashlib.sha256(binary).hexdigest(), "built": f"2026-01-0{n}"}
with tarfile.open(f"/srv/try-{n}.tar.gz", "w:gz", compresslevel=1) as archive:
    for name, content, mode in (("sbin/haproxy", binary, 0o755), ("release.json", json.dumps(record).encode(), 0o644)):
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), mode
        archive.addfile(info, io.BytesIO(content))
"""
UNIT_TEXT = f"""\
[Service]
Type=notify
ExecStart={COMMAND} -Ws -f {CONFIG} -p /run/haproxy-try.pid
ExecReload={COMMAND} -Ws -f {CONFIG} -c -q
ExecReload=/bin/kill -USR2 $MAINPID
KillMode=mixed
SuccessExitStatus=143
Restart=always
"""
CONFIG_TEXT = """\
defaults
    mode http
    timeout client 5s
    timeout server 5s
    timeout connect 5s
frontend f
    bind 127.0.0.1:8097
    http-request redirect location /served
"""
# Answers every question, and ends instead of running.
HOLLOW = """\
#!/bin/sh
case " $* " in *" -vv "* | *" -c "*) exec "{binary}" "$@" ;; esac
echo 'this one does not run' >&2
exit 1
"""


def write(lab: Lab, path: str, text: str) -> None:
    lab.run("proxy", f"printf %s {shlex.quote(text)} >{path}")


def release(lab: Lab, *, check: bool = False, may_fail: bool = False, **options: Any) -> Any:
    task = {
        "name": "switch",
        "clearproxy.haproxy.haproxy_build_release": {
            "root": ROOT,
            "command": COMMAND,
            "service": SERVICE,
            "unit": UNIT,
            "config": CONFIG,
            "timeout": 10,
            **options,
        },
        "register": "done",
    }
    # The callback that prints the results has an `action` of its own.
    said = {"name": "action", "ansible.builtin.debug": {"msg": "{{ done.action }}"}}
    play = [{"hosts": "proxy", "gather_facts": False, "tasks": [task, said]}]
    found = lab.results(play, *(["--check"] if check else []), may_fail=may_fail)["proxy"]
    return {**found[0][1], "action": found[-1][1].get("msg")} if len(found) > 1 else found[0][1]


def running(lab: Lab) -> str:
    """The release of the master."""
    pid = lab.run("proxy", f"systemctl show {SERVICE} --property MainPID --value").strip()
    return lab.run("proxy", f"readlink /proc/{pid}/exe").split("/")[4]


def serves(lab: Lab) -> bool:
    done = lab.host("proxy").run("curl -s --max-time 5 -o /dev/null http://127.0.0.1:8097/")
    return bool(done.rc == 0)


@pytest.fixture(scope="module")
def two(lab: Lab) -> Iterator[Lab]:
    """Releases of the same binary: A and B were switched to, and BROKEN is an archive."""
    binary = lab.run("proxy", "readlink -e /usr/local/sbin/haproxy").strip()
    write(lab, "/srv/pack.py", PACK)
    write(lab, UNIT, UNIT_TEXT)
    write(lab, CONFIG, CONFIG_TEXT)
    write(lab, "/srv/hollow", HOLLOW.format(binary=binary))
    lab.run("proxy", "systemctl daemon-reload")
    try:
        for number, file in ((1, binary), (2, binary), (3, "/srv/hollow")):
            lab.run("proxy", f"python3 /srv/pack.py {file} {number}")
        for number, identifier, action in ((1, A, "start"), (2, B, "reload")):
            options: dict[str, Any] = {
                "artefact": f"/srv/try-{number}.tar.gz",
                "release": identifier,
            }
            predicted = release(lab, check=True, **options)
            done = release(lab, **options)
            assert (predicted["action"], done["action"]) == (action, action)
            assert done["release"] == predicted["release"] == identifier
            assert running(lab) == identifier
            assert serves(lab)
        yield lab
    finally:
        lab.run(
            "proxy",
            f"systemctl stop {SERVICE}; rm -rf {ROOT} {COMMAND} {UNIT} {CONFIG} /srv/try-* /srv/hollow /srv/pack.py;"
            f" systemctl daemon-reload; systemctl reset-failed {SERVICE} 2>/dev/null || true",
        )


def test_a_rollback_takes_less_than_a_second_and_is_done_once(two: Lab) -> None:
    done = release(two, release="previous")
    assert (done["action"], done["before"], done["release"]) == ("reload", B, A)
    assert running(two) == A
    assert serves(two)
    assert done["seconds"] < 1, done
    again = release(two, release="previous")
    assert again["changed"] is False
    assert "rolled back already" in again["msg"]
    forward = release(two, release=B)
    assert (forward["action"], forward["release"]) == ("reload", B)
    assert running(two) == B
    assert release(two, release=B)["changed"] is False


def test_a_run_that_ended_between_the_links_and_the_reload_is_finished(two: Lab) -> None:
    two.run("proxy", f"ln -sfn releases/{A} {ROOT}/current && ln -sfn releases/{B} {ROOT}/previous")
    done = release(two, release=A)
    assert (done["action"], done["release"]) == ("reload", A)
    assert running(two) == A
    release(two, release=B)


def test_a_changed_unit_restarts(two: Lab) -> None:
    two.run("proxy", f"echo '# changed' >>{UNIT}")
    assert release(two, check=True, release=B)["action"] == "restart"
    assert release(two, release=B)["action"] == "restart"
    assert release(two, release=B)["changed"] is False


def test_a_release_that_does_not_run_is_taken_back(two: Lab) -> None:
    done = release(two, may_fail=True, artefact="/srv/try-3.tar.gz", release=BROKEN)
    assert done["failed"] is True
    assert done["serving"] == B
    assert f"haproxy {BROKEN} was switched to and does not run" in done["msg"]
    assert f"{B} serves" in done["msg"]
    assert running(two) == B
    assert serves(two)
    info = two.run("proxy", f"readlink {ROOT}/current {ROOT}/previous")
    assert info.split() == [f"releases/{B}", f"releases/{A}"]


def test_a_worker_that_cannot_start_leaves_the_old_one_serving(two: Lab) -> None:
    taken = "python3 -m http.server --bind 127.0.0.1 8096"
    two.run("proxy", f"systemd-run --unit=try-taken {taken}")
    old = two.run("proxy", f"cat {CONFIG}")
    try:
        write(two, CONFIG, f"{old}    bind 127.0.0.1:8096\n")
        done = release(two, may_fail=True, release=A)
        assert done["failed"] is True
        assert done["serving"] == B
        assert serves(two)
    finally:
        two.run("proxy", "systemctl stop try-taken")
        write(two, CONFIG, old)
    # The master was left waiting: the next run repairs it.
    done = release(two, release=B)
    assert not done.get("failed"), done
    assert running(two) == B
    assert serves(two)
