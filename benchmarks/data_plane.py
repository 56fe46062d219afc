# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What transparent proxying costs on the way of the packets, as ratios to plain proxying in the same round.

Client, proxy and server are network namespaces; the proxy's rules are the module tproxy_rules' own, the same HAProxy
process serves every variant, and wrk asks from 32 client addresses. Each round measures all variants one after the
other, so that what disturbs the machine disturbs all. Two figures each: the rate by the clock, and the rate by a
second of processor time of client, proxy and server together, because the kernel does netfilter's work on the time of
whoever sent the packet. The script ends with 1 if a bound is exceeded.

Usage: scripts/benchmark data-plane [--rounds N] [--seconds S] [--haproxy VERSION]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [
    *os.environ["ANSIBLE_COLLECTIONS_PATH"].split(os.pathsep),
    str(REPO / "tests" / "kernel"),
]

from hosts import Host  # noqa: E402

CACHE = Path(os.environ["CLEARPROXY_CACHE"])
CLIENTS = 32
CONNECTIONS = 64
PORTS = {"plain": 8001, "transparent": 8002, "transparent, http-reuse safe": 8003}

# Each of wrk's threads has a destination of its own, and so, by the client's routes, a source of its own.
SCRIPT = """
local count = 0
function setup(thread)
  count = count + 1
  thread.addr = wrk.lookup("10.8.1." .. (100 + count), wrk.port)[1]
end
"""


@dataclass
class Variant:
    """One way of proxying; C(options) are tproxy_rules', none where the host has no rules."""

    name: str
    options: dict[str, t.Any] | None
    frontend: str
    rates: dict[str, list[float]] = field(default_factory=lambda: {"keep": [], "close": []})
    efficiency: dict[str, list[float]] = field(default_factory=lambda: {"keep": [], "close": []})


IIF = {"interfaces": ["back"]}
PLAIN = Variant("plain", None, "plain")
SHIPPED = Variant("iptables-nft", {"firewall": "iptables-nft"}, "transparent")
SAFE = Variant(
    "iptables-nft, http-reuse safe", {"firewall": "iptables-nft"}, "transparent, http-reuse safe"
)
OTHERS = [
    Variant("iptables-nft, iif", {"firewall": "iptables-nft", **IIF}, "transparent"),
    Variant("iptables-legacy", {"firewall": "iptables-legacy"}, "transparent"),
    Variant("nftables", {"firewall": "nftables"}, "transparent"),
    Variant("nftables, iif", {"firewall": "nftables", **IIF}, "transparent"),
]
VARIANTS = [PLAIN, SHIPPED, SAFE, *OTHERS]


# --- the network ----------------------------------------------------------------------------


def network(directory: Path) -> tuple[Host, Host, Host]:
    client, proxy, server = (Host(name, directory) for name in ("client", "proxy", "server"))
    client.sh(f"ip link add front type veth peer name front netns {proxy.holder.pid}")
    proxy.sh(f"ip link add back type veth peer name back netns {server.holder.pid}")
    proxy.sh(
        "ip address add 10.8.1.1/24 dev front; ip link set front up\n"
        "ip address add 10.8.2.1/24 dev back; ip link set back up\n"
        + "\n".join(
            f"ip address add 10.8.1.{100 + each}/32 dev front" for each in range(1, CLIENTS + 1)
        )
    )
    client.sh(
        "ip address add 10.8.1.2/24 dev front; ip link set front up\n"
        + "\n".join(
            f"ip address add 10.8.1.{200 + each}/32 dev front\n"
            f"ip route add 10.8.1.{100 + each}/32 dev front src 10.8.1.{200 + each}"
            for each in range(1, CLIENTS + 1)
        )
    )
    server.sh(
        "ip address add 10.8.2.11/24 dev back; ip address add 10.8.2.12/24 dev back\n"
        "ip link set back up; ip route add default via 10.8.2.1"
    )
    return client, proxy, server


DEFAULTS = """\
global
    nbthread 1
    maxconn 4000
defaults
    mode http
    timeout connect 2s
    timeout client 20s
    timeout server 20s
"""
SERVER = """\
frontend www
    bind :80
    http-request return status 200 content-type text/plain lf-string "%[src]\\n"
"""


def proxy_configuration() -> str:
    text = DEFAULTS
    for name, port in PORTS.items():
        source = "" if name == "plain" else "    source 0.0.0.0 usesrc clientip\n"
        reuse = "safe" if "safe" in name else "never"
        text += (
            f"listen p{port}\n    bind :{port}\n    balance roundrobin\n    http-reuse {reuse}\n{source}"
            "    server s1 10.8.2.11:80\n    server s2 10.8.2.12:80\n"
        )
    return text


@contextlib.contextmanager
def haproxy(host: Host, version: str, text: str, directory: Path) -> Iterator[int]:
    """A HAProxy on the host; its process number."""
    config = directory / f"{host.name}.cfg"
    config.write_text(text)
    process = subprocess.Popen(
        host.command(str(CACHE / "haproxy" / version / "run"), "-db", "-f", str(config)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        time.sleep(1)
        if process.poll() is not None:
            raise SystemExit(f"HAProxy {version} did not start: {process.communicate()[1]}")
        yield process.pid
    finally:
        process.kill()
        process.communicate()


# --- measuring ------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    def __init__(self, hosts: tuple[Host, Host, Host], pids: list[int], directory: Path) -> None:
        self.client, self.proxy, self.server = hosts
        self.pids = pids
        self.script = directory / "sources.lua"
        self.script.write_text(SCRIPT)
        self.installed: dict[str, t.Any] | None = None

    def install(self, options: dict[str, t.Any] | None) -> None:
        if options == self.installed:
            return
        wanted = {"families": ["ipv4"], **options} if options else {"state": "absent"}
        answer = self.proxy.module("tproxy_rules", **wanted)
        if "changes" not in answer:
            raise SystemExit(f"tproxy_rules {wanted}: {answer}")
        self.installed = options

    def check(self, variant: Variant) -> None:
        """Whom the server sees: the figures of a path that is not the one meant are worth nothing."""
        seen = self.client.run(
            *("curl", "-s", "-m", "5", f"http://10.8.1.101:{PORTS[variant.frontend]}/")
        ).strip()
        wanted = "10.8.2.1" if variant.frontend == "plain" else "10.8.1.201"
        if seen != wanted:
            raise SystemExit(f"{variant.name}: the server saw {seen!r} instead of {wanted}")

    def measure(self, variant: Variant, kind: str, seconds: int) -> tuple[float, float]:
        """Requests a second, and requests a second of processor time."""
        command = ["wrk", "-t", str(CLIENTS), "-c", str(CONNECTIONS), "-d", str(seconds)]
        command += ["-s", str(self.script), f"http://10.8.1.101:{PORTS[variant.frontend]}/"]
        if kind == "close":
            command += ["-H", "Connection: close"]
        before = sum(map(cpu_seconds, self.pids))
        process = subprocess.Popen(
            self.client.command(*command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        said = process.stdout.read()
        process.stdout.close()
        _pid, process.returncode, usage = os.wait4(process.pid, 0)
        spent = sum(map(cpu_seconds, self.pids)) - before + usage.ru_utime + usage.ru_stime
        found = re.search(r"(\d+) requests in ([0-9.]+)(ms|s)", said)
        if not found or "Non-2xx" in said:
            raise SystemExit(f"{variant.name}: wrk failed:\n{said}")
        requests = int(found.group(1))
        taken = float(found.group(2)) * (0.001 if found.group(3) == "ms" else 1)
        return requests / taken, requests / spent

    def round(self, seconds: int, count: bool) -> None:
        for variant in VARIANTS:
            self.install(variant.options)
            self.check(variant)
            for kind in ("keep", "close"):
                if variant is SAFE and kind == "close":
                    continue
                rate, efficiency = self.measure(variant, kind, seconds)
                if count:
                    variant.rates[kind].append(rate)
                    variant.efficiency[kind].append(efficiency)


# --- the verdict ----------------------------------------------------------------------------


def ratios(one: list[float], other: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile of the rounds' ratios."""
    pairs = [first / second for first, second in zip(one, other)]
    if len(pairs) < 2:
        return (pairs[0],) * 3
    low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive")
    return low, middle, high


def shown(found: tuple[float, float, float]) -> str:
    low, middle, high = found
    return f"{middle:.2f} [{low:.2f}–{high:.2f}]"


def table(kind: str, what: str) -> None:
    print(f"{what}, ratio to plain: median [quartiles]")
    print(f"    {'':32}{'by processor time':22}{'by the clock':22}a second, a CPU second")
    for variant in VARIANTS:
        if not variant.rates[kind]:
            continue
        by_cpu = shown(ratios(variant.efficiency[kind], PLAIN.efficiency[kind]))
        by_clock = shown(ratios(variant.rates[kind], PLAIN.rates[kind]))
        absolute = (
            f"{statistics.median(variant.rates[kind]):.0f}, "
            f"{statistics.median(variant.efficiency[kind]):.0f}"
        )
        print(f"    {variant.name:32}{by_cpu:22}{by_clock:22}{absolute}")
    print()


def verdict() -> bool:
    held: list[bool] = []

    def line(what: str, figures: str, good: bool) -> None:
        held.append(good)
        print(f"{what}\n    {figures}: {'held' if good else 'EXCEEDED'}")

    for kind, name in (("keep", "requests"), ("close", "new connections")):
        mine = ratios(SHIPPED.efficiency[kind], PLAIN.efficiency[kind])
        line(
            f"Transparent as shipped ({SHIPPED.name}) against plain, {name} a CPU second",
            f"ratio {shown(mine)}, bound ≥ 0.8",
            mine[1] >= 0.8,
        )
        best = max(
            (variant for variant in OTHERS),
            key=lambda each: ratios(each.efficiency[kind], PLAIN.efficiency[kind])[1],
        )
        other = ratios(best.efficiency[kind], PLAIN.efficiency[kind])
        line(
            f"The same against the best other backend ({best.name}), {name} a CPU second",
            f"{shown(mine)} and {shown(other)}, bound: not worse than by the noise (quartiles meet)",
            mine[2] >= other[0],
        )
    reuse = ratios(SHIPPED.efficiency["keep"], SAFE.efficiency["keep"])
    line(
        "http-reuse never, as shipped, against safe under usesrc clientip, requests a CPU second",
        f"ratio {shown(reuse)}, by the clock {shown(ratios(SHIPPED.rates['keep'], SAFE.rates['keep']))}, bound ≥ 1.3",
        reuse[1] >= 1.3,
    )
    return all(held)


def machine() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{os.cpu_count()} × {line.partition(':')[2].strip()}"
    return f"{os.cpu_count()} processors"


def main() -> int:
    parser = argparse.ArgumentParser(description="What transparent proxying costs, as ratios.")
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds (default: 9)")
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement (default: 2)")
    parser.add_argument("--haproxy", default="3.2", metavar="VERSION", help="(default: 3.2)")
    args = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("run as root: the measurements are made in network namespaces")
    print(
        f"{machine()}, Linux {platform.release()}, HAProxy {args.haproxy} with one thread; load before the run"
        f" {os.getloadavg()[0]:.1f};\n{args.rounds} rounds of {args.seconds} s for each figure, after one to warm"
        f" up; wrk with {CONNECTIONS} connections from {CLIENTS} addresses, 2 servers.\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="clp-") as work, contextlib.ExitStack() as stack:
        directory = Path(work)
        hosts = network(directory)
        for host in hosts:
            stack.callback(host.close)
        pids = [
            stack.enter_context(haproxy(hosts[2], args.haproxy, DEFAULTS + SERVER, directory)),
            stack.enter_context(haproxy(hosts[1], args.haproxy, proxy_configuration(), directory)),
        ]
        bench = Bench(hosts, pids, directory)
        for number in range(args.rounds + 1):
            bench.round(args.seconds if number else 1, number > 0)
    table("keep", "Requests over kept connections")
    table("close", "One connection a request, to the proxy and to the server")
    good = verdict()
    print(f"\nLoad after the run {os.getloadavg()[0]:.1f}.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
