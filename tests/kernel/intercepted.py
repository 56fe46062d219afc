# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real HAProxy in the way of connections that are not addressed to it, and servers that say who they see."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from hosts import Host, Network

VERSIONS = Path(os.path.expanduser("~/.cache/clearproxy/haproxy"))

# Answers on every port with "CLIENT SERVER PORT", and then as many bytes as the request says.
SERVER = """
import selectors, socket, sys, threading
def serve(c, peer):
    with c:
        c.settimeout(5)
        data = b""
        try:
            while chunk := c.recv(65536):
                data += chunk
            own = c.getsockname()
            c.sendall(f"{peer[0]} {own[0]} {own[1]}".encode() + b"x" * int(data))
        except OSError:
            pass
waiting = selectors.DefaultSelector()
for port in map(int, sys.argv[1:]):
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        s = socket.socket(family, socket.SOCK_STREAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.bind((address, port))
        s.listen()
        waiting.register(s, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, events in waiting.select():
        threading.Thread(target=serve, args=key.fileobj.accept(), daemon=True).start()
"""

CLIENT = """
import socket, sys
address, port, size, seconds, own = sys.argv[1:]
with socket.create_connection((address, int(port)), float(seconds), (own, 0) if own else None) as c:
    c.sendall(size.encode())
    c.shutdown(socket.SHUT_WR)
    answer = b""
    while chunk := c.recv(65536):
        answer += chunk
print(answer.decode())
"""

CONFIGURATION = """
global
    nbthread 1
    maxconn 100
    log stdout format raw local0

defaults
    mode tcp
    log global
    log-format "%f %ci %[dst] %[dst_port]"
    timeout connect 2s
    timeout client 5s
    timeout server 5s
"""

PROXY = """
frontend {name}
    bind :{port} transparent
    tcp-request connection reject if {{ dst_is_local }}
    default_backend {name}_wanted

frontend {name}6
    bind [::]:{port} v6only transparent
    tcp-request connection reject if {{ dst_is_local }}
    default_backend {name}6_wanted

backend {name}_wanted
    source 0.0.0.0 usesrc clientip
    server wanted 0.0.0.0

backend {name}6_wanted
    source [::] usesrc clientip
    server wanted [::]
"""


@dataclass
class HAProxy:
    """One that runs, with the log of the connections that it had."""

    process: subprocess.Popen[bytes]
    path: Path

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def log(self) -> list[str]:
        """One line a connection: frontend, client, wanted address, wanted port."""
        return [line for line in self.path.read_text().splitlines() if len(line.split()) == 4]

    def expect(self, count: int) -> list[str]:
        """The lines since the beginning, of which there are to be so many; logging comes after the answer."""
        deadline = time.monotonic() + 3
        while len(self.log()) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(self.log()) == count, self.path.read_text()
        return self.log()


def start(
    host: Host, directory: Path, version: str = "3.2", *, text: str = "", **frontends: int
) -> HAProxy:
    """HAProxy with these frontends, each at the port where it gets what was caught."""
    wanted = frontends or {"any": 3129}
    configuration = directory / f"haproxy-{version}-{time.monotonic_ns()}.cfg"
    configuration.write_text(
        text
        or CONFIGURATION
        + "".join(PROXY.format(name=name, port=port) for name, port in wanted.items())
    )
    log = configuration.with_suffix(".log")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            host.command(str(VERSIONS / version / "run"), "-db", "-f", str(configuration)),
            stdout=stream,
            stderr=stream,
        )
    started = HAProxy(process, log)
    deadline = time.monotonic() + 15
    sockets = {f"{address}:{port}" for port in wanted.values() for address in ("0.0.0.0", "[::]")}
    while not sockets <= set(host.sh("ss -Hltn | awk '{print $4}'").split()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return started


def ask(
    host: Host, address: str, port: int, *, size: int = 0, seconds: float = 5, own: str = ""
) -> str | None:
    """What the server behind address and port says to a client on the host; None if nothing comes back."""
    arguments = (address, str(port), str(size), str(seconds), own)
    return host.run(sys.executable, "-c", CLIENT, *arguments, check=False).strip() or None


def serve(host: Host, *ports: int) -> None:
    host.start(sys.executable, "-c", SERVER, *map(str, ports))


class Routed(Network):
    """client – proxy – server: the proxy is the gateway of both, and nobody connects to its own addresses."""

    def __init__(self, directory: Path, *, client_mtu: int | None = None) -> None:
        self.hosts: list[Host] = []
        self.client, self.proxy, self.server = (
            self.host(name, directory) for name in ("client", "proxy", "server")
        )
        if client_mtu:
            router = self.host("router", directory)
            self.link(self.client, "front", "10.9.4.11", router, "far", "10.9.4.1", "4")
            self.link(router, "near", "10.9.1.1", self.proxy, "front", "10.9.1.2", "1")
            # Only its own way out is narrow; what the client says of its segments is not.
            router.sh(
                f"ip link set far mtu {client_mtu}\n"
                "echo 1 | tee /proc/sys/net/ipv4/conf/all/forwarding /proc/sys/net/ipv6/conf/all/forwarding\n"
                "ip route add default via 10.9.1.2; ip route add default via fd09:1::2"
            )
            self.proxy.sh(
                "ip route add 10.9.4.0/24 via 10.9.1.1; ip route add fd09:4::/64 via fd09:1::1\n"
                "echo 0 >/proc/sys/net/ipv4/tcp_mtu_probing"
            )
            gateways = ("10.9.4.1", "fd09:4::1")
        else:
            self.link(self.client, "front", "10.9.1.11", self.proxy, "front", "10.9.1.2", "1")
            gateways = ("10.9.1.2", "fd09:1::2")
        self.link(self.proxy, "back", "10.9.2.2", self.server, "back", "10.9.2.11", "2")
        self.client.sh("".join(f"ip route add default via {address}\n" for address in gateways))
        self.server.sh("ip route add default via 10.9.2.2; ip route add default via fd09:2::2")
