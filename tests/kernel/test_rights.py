# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real HAProxy of every version under every right: whose address the server sees, what the processes may, what a reload leaves."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import typing as t
from pathlib import Path

import pytest
from hosts import HERE, Host, Network

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _affinity_config as config
from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_rights import (
    NUMBERS,
    features,
    worker_problems,
)

REPO = HERE.parents[1]
PROBE = REPO / "roles/haproxy_affinity/files/haproxy_affinity_probe.py"
SCRIPT = REPO / "scripts/haproxy-binaries"
VERSIONS = ["2.2", "2.6", "3.0", "3.2", "3.4"]
UNIT = {
    "ExecStart": "argv[]=haproxy -W -f $CONFIG -p $PIDFILE $EXTRAOPTS ;",
    "Environment": "PIDFILE=/run/haproxy.pid",
}
PORT = 81


@functools.cache
def where() -> Path:
    done = subprocess.run([str(SCRIPT), "--where"], check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip())


def program(version: str) -> str:
    return str(where() / version / "root/usr/sbin/haproxy")


@pytest.fixture(scope="session")
def binaries() -> Path:
    subprocess.run([str(SCRIPT), *VERSIONS], check=True, timeout=900, stdout=subprocess.DEVNULL)
    return where()


@pytest.fixture(scope="module")
def proxy(network: Network, binaries: Path) -> Host:
    """The proxy with a /run of its own, and the way to the binaries open for an unprivileged user."""
    network.proxy.sh(
        "mount -t tmpfs -o mode=755 none /run; mkdir /run/haproxy; chown nobody:nogroup /run/haproxy"
    )
    closed = [each for each in (binaries, *binaries.parents) if not each.stat().st_mode & 0o001]
    if closed:
        network.proxy.sh(
            "mkdir /run/up /run/work; chmod 755 /run/up\n"
            f"mount -t overlay overlay -o lowerdir={closed[-1]},upperdir=/run/up,workdir=/run/work {closed[-1]}\n"
            f"chmod o+x {' '.join(map(str, closed))}"
        )
    return network.proxy


def plan(proxy: Host, version: str, rights: str, *, transparent: str = "clientip") -> config.Plan:
    """The role's own plan for this binary."""
    said = proxy.run(program(version), "-vv")
    made = config.make_plan(
        {
            "rights": rights,
            "global": {
                "user": "nobody" if rights != "root" else "root",
                "group": "nogroup",
                "log": "stderr format raw local0",
            },
            "defaults": {"mode": "tcp"},
            "frontends": [
                {
                    "name": "www",
                    "binds": [{"address": "10.9.1.2", "port": PORT}],
                    "default_backend": "app",
                }
            ],
            "backends": [
                {
                    "name": "app",
                    "transparent": transparent,
                    "servers": [
                        {"name": "s", "address": "10.9.2.11", "port": 8080, "check": False}
                    ],
                }
            ],
        },
        {},
        config.parse_version(said),
        {"features": features(said), "unit": UNIT},
    )
    assert made.problems == []
    assert made.rights.right in (rights, "none") or rights == "auto"
    return made


class Running:
    """One HAProxy in master-worker mode, started as the unit with the plan's additions starts it."""

    def __init__(
        self,
        proxy: Host,
        version: str,
        made: config.Plan,
        *,
        change: t.Callable[[str], str] = str,
        capabilities: t.Sequence[str] | None = None,
    ) -> None:
        self.proxy, self.made = proxy, made
        text = "\n".join(
            line
            for section in made.sections
            for line in (section["header"], *(f"  {each}" for each in section["lines"]))
        )
        # no file of states here
        text = change(text).replace("  load-server-state-from-file global\n", "")
        proxy.run(
            "sh",
            "-c",
            "cat >/etc/h.cfg; chmod 644 /etc/h.cfg; rm -f /run/haproxy/*",
            text=text + "\n",
        )
        allowed = made.rights.drop_in[0] if made.rights.right != "ambient" else ""
        names = capabilities or allowed.partition("=")[2].split() or made.rights.capabilities
        words = ",".join(["-all", *(f"+{name[4:].lower()}" for name in names)])
        prefix = ["setpriv", f"--bounding-set={words}"]
        if made.rights.right == "ambient":
            prefix += ["--reuid=nobody", "--regid=nogroup", "--clear-groups"]
            prefix += [f"--inh-caps={words}", f"--ambient-caps={words}"]
        self.process = subprocess.Popen(
            proxy.command(*prefix, program(version), "-W", "-db", "-f", "/etc/h.cfg"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""

    def probe(self, command: str, **options: t.Any) -> dict[str, t.Any]:
        request = json.dumps({"socket": self.made.socket, "config": "/etc/h.cfg", **options})
        answer = self.proxy.run(sys.executable, str(PROBE), command, request)
        return t.cast("dict[str, t.Any]", json.loads(answer))

    def look(self, seconds: float = 0) -> dict[str, t.Any]:
        unit = {"unit": "haproxy.service", "main_pid": self.process.pid}
        return self.probe("rights", **unit, user=self.made.rights.user, timeout=seconds)

    def problems(self, seconds: float = 0) -> list[str]:
        return worker_problems(self.look(seconds), dataclasses.asdict(self.made.rights))

    def wait_for_worker(self, but: int = 0) -> int:
        """As the role does: the one that answers, and is not the old one."""
        seen = self.probe("wait", pid=but, timeout=20)
        assert seen["ready"], self.said() if self.process.poll() is not None else seen
        return int(seen["pid"])

    def reload(self) -> None:
        old = self.probe("worker")["pid"]
        os.kill(self.process.pid, signal.SIGUSR2)
        self.wait_for_worker(old)

    def said(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.output += self.process.communicate(timeout=10)[0] or ""
        return self.output

    def end(self) -> None:
        """The master and its workers are a process group of their own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def running(*arguments: t.Any, **options: t.Any) -> t.Iterator[Running]:
    it = Running(*arguments, **options)
    try:
        yield it
    finally:
        it.end()


def ask(network: Network) -> str:
    """Whom the server saw, and how many bytes; empty if nothing came back."""
    peer = [sys.executable, str(HERE / "peer.py"), "client", "10.9.1.2", str(PORT), "10", "3"]
    return network.client.run(*peer, check=False).strip()


RIGHTS = [
    (version, right)
    for version in VERSIONS
    for right in ("setcap", "ambient", "root")
    if right != "setcap" or version >= "3"
]


@pytest.mark.parametrize(("version", "right"), RIGHTS)
def test_the_server_sees_the_client_before_and_after_a_reload(
    network: Network, proxy: Host, version: str, right: str
) -> None:
    with running(proxy, version, plan(proxy, version, right)) as it:
        it.wait_for_worker()
        assert ask(network) == "10.9.1.11 10"
        assert it.problems() == []
        (worker,) = it.look()["workers"]
        raw, bind = 1 << NUMBERS["CAP_NET_RAW"], 1 << NUMBERS["CAP_NET_BIND_SERVICE"]
        if right == "root":
            assert worker["uid"] == 0
            assert worker["effective"] == worker["bounding"]
        else:
            assert worker["uid"] == it.look()["wanted_uid"] != 0
            assert worker["effective"] == (raw if right == "setcap" else raw | bind)
        it.reload()
        assert it.problems(20) == []
        (after,) = it.look()["workers"]
        assert after["pid"] != worker["pid"]
        assert after["effective"] == worker["effective"]
        assert ask(network) == "10.9.1.11 10"


@pytest.mark.parametrize("version", VERSIONS)
def test_auto_starts_and_is_not_root(network: Network, proxy: Host, version: str) -> None:
    made = plan(proxy, version, "auto")
    assert made.rights.right == ("setcap" if version >= "3" else "ambient")
    with running(proxy, version, made) as it:
        it.wait_for_worker()
        assert ask(network) == "10.9.1.11 10"
        assert it.look()["workers"][0]["uid"] != 0


@pytest.mark.parametrize("version", ["2.2", "2.6"])
def test_old_versions_accept_a_user_and_then_do_not_start(proxy: Host, version: str) -> None:
    def with_user(text: str) -> str:
        return text.replace("user root", "user nobody").replace("group root", "group nogroup")

    with running(proxy, version, plan(proxy, version, "root"), change=with_user) as it:
        assert it.process.wait(20) != 0
        assert "require full privileges" in it.said()
    # which is why the role does not leave it to "haproxy -c"
    proxy.run(program(version), "-c", "-f", "/etc/h.cfg")


@pytest.mark.parametrize("version", ["2.2", "2.6"])
def test_old_versions_do_not_know_setcap(proxy: Host, version: str) -> None:
    def with_setcap(text: str) -> str:
        return text.replace("  group root", "  group nogroup\n  setcap cap_net_raw")

    with running(proxy, version, plan(proxy, version, "root"), change=with_setcap) as it:
        assert it.process.wait(20) != 0
        assert "unknown keyword 'setcap'" in it.said()


@pytest.mark.parametrize("version", ["2.6", "3.2"])
def test_a_user_line_or_a_chroot_ends_an_unprivileged_start(proxy: Host, version: str) -> None:
    for line in ("user nobody", "chroot /var/empty"):

        def with_line(text: str, line: str = line) -> str:
            return text.replace("global\n", f"global\n  {line}\n", 1)

        with running(proxy, version, plan(proxy, version, "ambient"), change=with_line) as it:
            with contextlib.suppress(subprocess.TimeoutExpired):
                it.process.wait(5)
            assert not it.probe("worker")["answers"], line


@pytest.mark.parametrize("version", ["2.2", "2.6", "3.4"])
def test_a_missing_capability_is_named_though_haproxy_starts(
    network: Network, proxy: Host, version: str
) -> None:
    made = plan(proxy, version, "ambient")
    with running(proxy, version, made, capabilities=["CAP_NET_BIND_SERVICE"]) as it:
        it.wait_for_worker()
        assert ask(network) == ""
        problems = it.problems()
        assert any("lacks CAP_NET_RAW in its ambient set" in each for each in problems), problems
        assert any("lacks CAP_NET_RAW (CapEff 0000000000000400)" in each for each in problems)


def test_3_0_without_setcap_is_named(network: Network, proxy: Host) -> None:
    """It starts without a word, and no server ever sees a connection."""

    def without(text: str) -> str:
        return text.replace("  setcap cap_net_raw\n", "")

    with running(proxy, "3.0", plan(proxy, "3.0", "setcap"), change=without) as it:
        it.wait_for_worker()
        assert ask(network) == ""
        (problem,) = it.problems()
        assert "lacks CAP_NET_RAW (CapEff 0000000000000000)" in problem


@pytest.mark.parametrize("version", ["3.0", "3.4"])
def test_without_cap_kill_a_reload_leaves_a_worker_that_listens(proxy: Host, version: str) -> None:
    made = plan(proxy, version, "setcap")
    names = set(made.rights.drop_in[0].partition("=")[2].split()) - {"CAP_KILL"}
    with running(proxy, version, made, capabilities=sorted(names)) as it:
        it.wait_for_worker()
        it.reload()
        problems = it.problems(3)
        assert any(
            f"still listens on 10.9.1.2 port {PORT}: the master, which lacks CAP_KILL," in each
            for each in problems
        ), problems
        assert any("lacks CAP_KILL in its bounding set" in each for each in problems)
        # one that still leaves gets its time
        (old,) = (each["pid"] for each in it.look()["workers"] if not each["current"])
        leave = threading.Timer(1, os.kill, (old, signal.SIGKILL))
        leave.start()
        problems = it.problems(20)
        leave.join()
        assert not any("old worker" in each for each in problems), problems


def test_an_old_worker_with_a_connection_may_stay(network: Network, proxy: Host) -> None:
    with running(proxy, "3.2", plan(proxy, "3.2", "setcap")) as it:
        it.wait_for_worker()
        # a client that has sent half a request and waits
        client = subprocess.Popen(
            network.client.command(
                "sh",
                "-c",
                "exec python3 -c 'import socket, time;"
                f' s = socket.create_connection(("10.9.1.2", {PORT})); s.send(b"x");'
                " print(1, flush=True); time.sleep(60)'",
            ),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "1\n"
            it.reload()
            assert it.problems(5) == []
            assert len(it.look()["workers"]) == 2
        finally:
            client.kill()
            client.wait()
            if client.stdout is not None:
                client.stdout.close()
        # and when the connection has gone, so does the worker
        assert it.problems(20) == []
        assert len(it.look()["workers"]) == 1
