# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab as tests and the demo see it: its addresses, its hosts, and Ansible runs against it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable

import pytest
import testinfra
from testinfra.host import Host

REPO = Path(__file__).resolve().parent.parent.parent
NUMBER = os.environ.get("CLEARPROXY_LAB_NUMBER", "100")
FRONT, BACK = f"10.{NUMBER}.1", f"10.{NUMBER}.2"
FRONT_IPV6, BACK_IPV6 = f"fd00:c1ea:{NUMBER}:1:", f"fd00:c1ea:{NUMBER}:2:"

# What the proxy listens on (inventory/group_vars/haproxy_proxies.yml).
WWW, BY_SOURCE, BY_SESSION, SPREAD, NOT_TRANSPARENT = 80, 8001, 8002, 8003, 8004
PROXY = {"ipv4": f"{FRONT}.2", "ipv6": f"{FRONT_IPV6}:2"}
PROXY_BACK = {"ipv4": f"{BACK}.2", "ipv6": f"{BACK_IPV6}:2"}
CLIENT = {"ipv4": f"{FRONT}.11", "ipv6": f"{FRONT_IPV6}:11"}
SERVERS = ("app1", "app2")

# The proxies that carry their network inside (files/neighbours), one of each Debian.
TPROXY_HOSTS = ("debian11", "debian12", "debian13")

# For tests whose property another, quicker test of the gate shows too.
FULL = os.environ.get("CLEARPROXY_FULL") == "1"
full = pytest.mark.skipif(not FULL, reason="part of scripts/test --full")


def url(family: str, port: int, path: str = "/index.php") -> str:
    host = PROXY[family]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{path}"


def page(body: str) -> dict[str, str]:
    """The fields of a test page."""
    return dict(line.split(": ", 1) for line in body.splitlines() if ": " in line)


@dataclass(frozen=True)
class Run:
    """One finished run of ansible-playbook."""

    code: int
    output: str
    recap: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        return sum(host["changed"] for host in self.recap.values())


class Loader:
    """Requests at a steady rate from the client, in the background, every one counted (files/load.py)."""

    def __init__(self, port: int, path: str, *arguments: str) -> None:
        client = ["podman", "exec", "--interactive", f"clearproxy-{NUMBER}-client", "python3", "-"]
        with (REPO / "molecule/resources/files/load.py").open() as script:
            self.process = subprocess.Popen(
                [*client, PROXY["ipv4"], str(port), path, *arguments],
                stdin=script,
                stdout=subprocess.PIPE,
                text=True,
            )

    def result(self) -> dict[str, Any]:
        """The load generator's count, when its last request has been answered or has failed."""
        return dict(json.loads(self.process.communicate(timeout=300)[0]))


class Lab:
    """Hosts by their inventory names, and playbook runs."""

    def host(self, name: str) -> Host:
        return testinfra.get_host(f"podman://clearproxy-{NUMBER}-{name}")

    def run(self, name: str, command: str) -> str:
        """Run a shell command on a host; its output, or a failed test."""
        done = self.host(name).run(command)
        assert done.rc == 0, f"{name}: {command}\n{done.stdout}\n{done.stderr}"
        return str(done.stdout)

    def restart(self, *names: str) -> None:
        """Reboot hosts: new network namespaces, nothing survives but files."""
        for name in names:
            subprocess.run(
                ["podman", "restart", "--time", "20", f"clearproxy-{NUMBER}-{name}"],
                check=True,
                capture_output=True,
                timeout=120,
            )
        for name in names:
            self.wait(partial(self.booted, name), f"{name} to boot")

    def booted(self, name: str) -> bool:
        """Whether systemd has finished; some units of a container may have failed."""
        state = self.host(name).run("systemctl is-system-running").stdout.strip()
        return state in ("running", "degraded")

    @staticmethod
    def wait(probe: Callable[[], Any], what: str, seconds: float = 30) -> Any:
        """What the probe returned, once that was true; a failed test after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            result = probe()
            if result:
                return result
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
            time.sleep(0.2)

    def play(
        self, playbook: str | Path | list[dict[str, Any]], *arguments: str, timeout: int = 900
    ) -> Run:
        """Run a playbook (a name, a path, or the plays themselves) against the lab."""
        done = self._ansible(playbook, arguments, timeout)
        recap = {}
        for line in done.stdout.partition("PLAY RECAP")[2].splitlines():
            name, colon, counts = line.partition(" : ")
            if colon:
                recap[name.strip()] = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", counts)}
        return Run(done.returncode, done.stdout + done.stderr, recap)

    def results(
        self,
        playbook: str | Path | list[dict[str, Any]],
        *arguments: str,
        may_fail: bool = False,
        timeout: int = 900,
    ) -> dict[str, list[tuple[str, dict[str, Any]]]]:
        """What the tasks returned: host -> (task's name, result) in the order of the run."""
        done = self._ansible(
            playbook, arguments, timeout, ANSIBLE_STDOUT_CALLBACK="ansible.posix.json"
        )
        assert done.returncode == 0 or may_fail, done.stdout[-4000:] + done.stderr
        found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for play in json.loads(done.stdout)["plays"]:
            for task in play["tasks"]:
                name = task["task"]["name"].rpartition(" : ")[2]
                for host, result in task["hosts"].items():
                    found.setdefault(host, []).append((name, result))
        return found

    @staticmethod
    def _ansible(
        playbook: str | Path | list[dict[str, Any]],
        arguments: tuple[str, ...],
        timeout: int,
        **settings: str,
    ) -> subprocess.CompletedProcess[str]:
        env = dict(
            os.environ,
            ANSIBLE_FORCE_COLOR="0",
            ANSIBLE_NOCOLOR="1",
            ANSIBLE_CALLBACK_RESULT_FORMAT="yaml",
            **settings,
        )
        if isinstance(playbook, list):
            path = Path(env["CLEARPROXY_CACHE"]) / f"play-{NUMBER}.json"
            path.write_text(json.dumps(playbook))
            playbook = path
        return subprocess.run(
            [
                "ansible-playbook",
                f"--inventory={REPO}/molecule/resources/inventory/",
                str(playbook),
                *arguments,
            ],
            env=env,
            cwd=REPO,
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    def get(self, address: str, options: str = "") -> str:
        """One request by the client's curl; the body, or '' when it failed."""
        done = self.host("client").run(f"curl -gsS --max-time 5 {options} '{address}'")
        return str(done.stdout) if done.rc == 0 else ""


def through(lab: Lab, host: str, family: str, options: str = "") -> str | None:
    """Whom the server in one of TPROXY_HOSTS sees when the client there asks the proxy; None without an answer."""
    address = {"ipv4": "10.99.1.2", "ipv6": "[fd00:99:1::2]"}[family]
    done = lab.host(host).run(
        f"ip netns exec client curl -gsSf --max-time 2 {options} http://{address}/"
    )
    return done.stdout.strip() if done.rc == 0 else None
