# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts that are a network namespace and a private /etc, /var and /usr/local each. Nothing of the machine changes."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path
from unittest import mock

HERE = Path(__file__).parent
PLUGINS = "ansible_collections.clearproxy.haproxy.plugins"
# What the role asks for where the module, not told, leaves things alone.
ROLE: dict[str, dict[str, t.Any]] = {"tproxy_rules": {"forwarding": True, "send_redirects": False}}
COMMENT = "-m comment --comment clearproxy-tproxy-host"


class _Declared(Exception):
    """Ends a module's main() when it has said which arguments it takes."""


@functools.cache
def defaults(name: str) -> dict[str, t.Any]:
    """The module's own defaults, as its argument_spec has them."""
    module = importlib.import_module(f"{PLUGINS}.modules.{name}")
    declared: dict[str, dict[str, t.Any]] = {}

    def declare(argument_spec: dict[str, dict[str, t.Any]], **_rest: t.Any) -> t.NoReturn:
        declared.update(argument_spec)
        raise _Declared

    with mock.patch.object(module, "AnsibleModule", declare), contextlib.suppress(_Declared):
        module.main()
    assert declared
    return {option: spec.get("default") for option, spec in declared.items()}


class Host:
    """A holder process keeps the namespaces; everything else enters them by its number."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        layers = directory / name
        layers.mkdir(parents=True)
        script = f"mount -t tmpfs none {layers}\n" + "".join(
            f"mkdir -p {layers}{path}/up {layers}{path}/work\n"
            f"mount -t overlay overlay -o lowerdir={path},upperdir={layers}{path}/up,"
            f"workdir={layers}{path}/work {path}\n"
            for path in ("/etc", "/var", "/usr/local")
        )
        script += (
            "ip link set lo up\n"
            # What the machine's namespace hands down differs from machine to machine.
            "echo 0 >/proc/sys/net/ipv4/conf/all/forwarding\n"
            "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding\n"
            # Link-local addresses are there at once: until then no neighbour is asked for on behalf of a foreign source.
            "echo 0 | tee /proc/sys/net/ipv6/conf/all/accept_dad /proc/sys/net/ipv6/conf/default/accept_dad >/dev/null\n"
            "echo ready\nexec sleep 1200\n"
        )
        self.holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-ec", script], stdout=subprocess.PIPE, text=True
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == "ready\n"
        self.children: list[subprocess.Popen[str]] = []
        # Put before the modules' interpreter.
        self.command_prefix: tuple[str, ...] = ()

    def command(self, *argv: str) -> list[str]:
        return ["nsenter", f"--target={self.holder.pid}", "--net", "--mount", *argv]

    def run(self, *argv: str, text: str | None = None, check: bool = True) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            self.command(*argv),
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=environment,
        )
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {argv}: {done.stderr}{done.stdout}")
        return done.stdout

    def sh(self, script: str, check: bool = True) -> str:
        return self.run("sh", "-ec", script, check=check)

    def start(self, *argv: str) -> None:
        child = subprocess.Popen(self.command(*argv), stdout=subprocess.PIPE, text=True)
        self.children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"

    def stop_children(self, count: int) -> None:
        """Ends those that were started last."""
        for _number in range(count):
            self._end(self.children.pop())

    def module(
        self, name: str = "tproxy_rules", *, check: bool = False, **options: t.Any
    ) -> dict[str, t.Any]:
        (answer,) = self.modules((name, {"check": check, **options}))
        return answer

    def modules(self, *requests: tuple[str, dict[str, t.Any]]) -> list[dict[str, t.Any]]:
        """Several runs in one process, which takes less time; options have `check` among them."""
        given = [
            {
                "module": name,
                "options": {
                    **defaults(name),
                    **ROLE.get(name, {}),
                    **{key: value for key, value in options.items() if key != "check"},
                },
                "check": options.get("check", False),
            }
            for name, options in requests
        ]
        answer = self.run(
            *self.command_prefix, sys.executable, str(HERE / "driver.py"), text=json.dumps(given)
        )
        return t.cast("list[dict[str, t.Any]]", json.loads(answer))

    def state(self) -> str:
        """Everything that the modules may change, as text."""
        return self.sh(
            "for i in iptables ip6tables; do $i-save 2>/dev/null | grep -v '^#' || :; done\n"
            # Once used, a table of iptables-legacy stays, empty.
            "for i in iptables ip6tables; do $i-legacy-save | grep -v '^[#*]\\|^COMMIT\\|^:[A-Z]* ACCEPT' || :; done\n"
            "nft list ruleset\n"
            "for f in -4 -6; do ip $f -d rule; ip $f -d route show table all; done\n"
            "grep -r . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf 2>/dev/null | grep -v stable_secret | sort\n"
            "find /etc/tproxy* /etc/sysctl.d /etc/iproute2 /etc/systemd/system /usr/local/sbin /var/lib/tproxy*"
            " -printf '%p %m %l\\n' 2>/dev/null | sort\n"
        )

    def close(self) -> None:
        for child in (*self.children, self.holder):
            self._end(child)

    @staticmethod
    def _end(child: subprocess.Popen[str]) -> None:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def items(result: dict[str, t.Any]) -> list[str]:
    """The names of the changes; a refusal is no list of changes."""
    assert "changes" in result, result
    return [change["item"] for change in result["changes"]]


class Network:
    """client – proxy – server, or with a router of a smaller MTU before the server; IPv4 and IPv6."""

    def __init__(self, directory: Path, *, router_mtu: int | None = None) -> None:
        self.hosts: list[Host] = []
        self.client, self.proxy, self.server = (
            self.host(name, directory) for name in ("client", "proxy", "server")
        )
        self.link(self.client, "front", "10.9.1.11", self.proxy, "front", "10.9.1.2", "1")
        nearest, back = self.server, "back"
        if router_mtu:
            nearest, back = self.host("router", directory), "near"
            self.link(nearest, "far", "10.9.3.1", self.server, "back", "10.9.3.11", "3")
            nearest.sh(f"ip link set far mtu {router_mtu}")
            nearest.sh(
                "echo 1 | tee /proc/sys/net/ipv4/conf/all/forwarding /proc/sys/net/ipv6/conf/all/forwarding"
            )
            self.proxy.sh("echo 0 | tee /proc/sys/net/ipv4/tcp_mtu_probing")
        self.link(self.proxy, "back", "10.9.2.2", nearest, back, "10.9.2.11", "2")
        gateway = "2"
        if router_mtu:
            self.proxy.sh(
                "ip route add 10.9.3.0/24 via 10.9.2.11; ip route add fd09:3::/64 via fd09:2::11"
            )
            nearest.sh("ip route add default via 10.9.2.2; ip route add default via fd09:2::2")
            gateway = "3"
        last = "1" if router_mtu else "2"
        self.gateways = [f"10.9.{gateway}.{last}", f"fd09:{gateway}::{last}"]
        self.serve(f"10.9.{gateway}.11", f"fd09:{gateway}::11")

    def serve(self, ipv4: str, ipv6: str = "::1") -> None:
        """The server at these addresses, and the proxy before it."""
        self.server.start(sys.executable, str(HERE / "peer.py"), "server", "8080")
        self.proxy.start(sys.executable, str(HERE / "peer.py"), "relay", "80", "8080", ipv4, ipv6)

    def host(self, name: str, directory: Path) -> Host:
        made = Host(name, directory)
        self.hosts.append(made)
        return made

    def link(
        self,
        one: Host,
        name: str,
        address: str,
        other: Host,
        other_name: str,
        other_address: str,
        net: str,
    ) -> None:
        one.sh(f"ip link add {name} type veth peer name {other_name} netns {other.holder.pid}")
        for host, device, ipv4 in ((one, name, address), (other, other_name, other_address)):
            host.sh(
                f"ip address add {ipv4}/24 dev {device}\n"
                f"ip address add fd09:{net}::{ipv4.rpartition('.')[2]}/64 dev {device} nodad\n"
                f"ip link set {device} up\n"
            )

    def ask(self, family: str, *, size: int = 10, seconds: float = 5) -> str | None:
        """What the server says about a request of the client; None if nothing came back."""
        return self.ask_at("10.9.1.2" if family == "ipv4" else "fd09:1::2", size, seconds)

    def ask_at(self, address: str, size: int, seconds: float) -> str | None:
        answer = self.client.run(
            sys.executable,
            str(HERE / "peer.py"),
            "client",
            address,
            "80",
            str(size),
            str(seconds),
            check=False,
        )
        return answer.strip() or None

    def works(self, family: str, expected: bool = True) -> bool:
        wanted = {"ipv4": "10.9.1.11 10", "ipv6": "fd09:1::11 10"}[family]
        # A machine under load gets its time; what shall fail need not be waited for as long.
        answer = self.ask(family, seconds=5 if expected else 1.2)
        assert answer in (wanted, None)
        return answer == wanted

    def close(self) -> None:
        for host in self.hosts:
            host.close()
