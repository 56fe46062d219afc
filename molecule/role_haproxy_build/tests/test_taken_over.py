# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The distribution's HAProxy on every Debian: taken over, served by what was built, reloaded by hand, given back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from lab import TPROXY_HOSTS, Lab

CONVERGE = Path(__file__).resolve().parent.parent / "converge.yml"
SERVER = "/var/lib/haproxy/server-state"
HELPER = "/usr/local/sbin/haproxy-server-states"

every_debian = pytest.mark.parametrize("host", TPROXY_HOSTS)


def serves(lab: Lab, host: str) -> bool:
    return lab.host(host).run("curl -sf --max-time 5 http://127.0.0.1:8099/").stdout == "served"


def question(command: str) -> str:
    """A shell command that asks the admin socket one thing."""
    script = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock');"
        " s.sendall(sys.argv[1].encode()+bytes([10])); print(s.makefile().read())"
    )
    return f'python3 -c "{script}" "{command}"'


def ask(lab: Lab, host: str, command: str) -> str:
    return lab.run(host, question(command))


def states(lab: Lab, host: str) -> dict[str, str]:
    """Server -> its administrative state, 1 is maintenance."""
    rows = [line.split() for line in ask(lab, host, "show servers state app").splitlines()]
    return {row[3]: row[6] for row in rows if len(row) >= 20 and row[0] != "#"}


def worker(lab: Lab, host: str) -> str:
    """The worker that answers on the admin socket, nothing while none does."""
    found = re.search(r"^Pid: (\d+)$", str(lab.host(host).run(question("show info")).stdout), re.M)
    return found[1] if found else ""


def reload(lab: Lab, host: str) -> None:
    """By hand, and until the new worker answers."""
    before = worker(lab, host)
    lab.run(host, "systemctl reload haproxy")
    lab.wait(lambda: worker(lab, host) not in ("", before), "the new worker")


@every_debian
def test_what_was_built_serves_in_the_place_of_the_package(lab: Lab, host: str) -> None:
    packaged = lab.run(host, "dpkg-query -W -f '${source:Version}' haproxy")
    assert lab.run(host, "haproxy -v").split()[2].split("-")[0] == packaged.split("-")[0]
    assert serves(lab, host)
    pid = lab.run(host, "systemctl show haproxy --property MainPID --value").strip()
    assert lab.run(host, f"readlink /proc/{pid}/exe").startswith("/opt/haproxy/releases/")
    assert lab.host(host).service("haproxy").is_enabled
    page = lab.run(host, "readlink -e /usr/local/share/man/man1/haproxy.1")
    assert page.startswith("/opt/haproxy/releases/")


@every_debian
def test_the_unit_that_was_there_is_remembered(lab: Lab, host: str) -> None:
    former = json.loads(lab.run(host, "cat /opt/haproxy/taken-over.json"))
    assert former["unit"].endswith("/lib/systemd/system/haproxy.service")
    assert former["enabled"] is True
    assert former["running"] is True


@every_debian
def test_maintenance_survives_a_reload_typed_by_hand_and_not_a_start(lab: Lab, host: str) -> None:
    ask(lab, host, "set server app/one state maint")
    for _again in range(2):
        reload(lab, host)
        assert states(lab, host) == {"one": "1", "two": "0"}
    # The control: without the helper the states are lost, and the reload is not.
    lab.run(host, f"mv {HELPER} /srv/helper && rm -f {SERVER}")
    try:
        reload(lab, host)
        assert states(lab, host) == {"one": "0", "two": "0"}
    finally:
        lab.run(host, f"mv /srv/helper {HELPER}")
    ask(lab, host, "set server app/one state maint")
    reload(lab, host)
    lab.run(host, "systemctl restart haproxy")
    assert states(lab, host) == {"one": "0", "two": "0"}


def test_states_that_cannot_be_asked_for_do_not_stop_the_reload(lab: Lab) -> None:
    host = "debian12"
    ask(lab, host, "set server app/one state maint")
    reload(lab, host)
    lab.run(host, "mv /run/haproxy-master.sock /run/elsewhere.sock")
    try:
        reload(lab, host)
        # None are better than those of an earlier reload.
        assert states(lab, host) == {"one": "0", "two": "0"}
        assert "the servers' states are not kept" in lab.run(host, "journalctl -u haproxy")
    finally:
        lab.run(host, "systemctl restart haproxy")


def test_what_does_not_suit_the_distributions_haproxy_is_not_given_back(lab: Lab) -> None:
    host = "debian12"
    lab.run(host, "cp -p /etc/haproxy/haproxy.cfg /srv/kept.cfg")
    try:
        lab.run(host, "printf 'bogus\\n' >>/etc/haproxy/haproxy.cfg")
        run = lab.play(CONVERGE, "-e", "haproxy_build_state=absent", "--limit", host)
        assert run.code != 0
        assert run.changed == 0, run.output
        assert "would run again" in " ".join(run.output.split())
        assert serves(lab, host)
    finally:
        lab.run(host, "mv /srv/kept.cfg /etc/haproxy/haproxy.cfg")


# The last one: what was taken over is gone afterwards.
def test_it_is_given_back_as_it_was(lab: Lab) -> None:
    run = lab.play(CONVERGE, "-e", "haproxy_build_state=absent", "--limit", "tproxy_hosts")
    assert run.code == 0, run.output
    for host in TPROXY_HOSTS:
        service = lab.host(host).service("haproxy")
        assert service.is_running
        assert service.is_enabled
        unit = lab.run(host, "systemctl show haproxy --property FragmentPath --value").strip()
        assert unit.endswith("/lib/systemd/system/haproxy.service")
        assert not unit.startswith("/etc/")
        pid = lab.run(host, "systemctl show haproxy --property MainPID --value").strip()
        assert lab.run(host, f"readlink /proc/{pid}/exe").strip() == "/usr/sbin/haproxy"
        assert serves(lab, host)
        left = lab.run(host, "find /opt /usr/local /etc/systemd/system -name '*haproxy*' ! -type d")
        assert [line for line in left.split() if "wants/haproxy.service" not in line] == []
    again = lab.play(CONVERGE, "-e", "haproxy_build_state=absent", "--limit", "tproxy_hosts")
    assert again.changed == 0, again.output
