# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What haproxy_server costs, as ratios of runs that alternate within one measurement.

Four comparisons, each with a bound; the script ends with 1 if one is exceeded:

- a play whose one task drains 1,000 servers, against the same play with ansible.builtin.ping;
- the same, against community.general.haproxy's measured seconds a server, times 1,000;
- the module's work without Ansible and imports, against a bare client that pipelines the same
  commands over the socket and reads the states before and after;
- finding that nothing has to be done on 10,000 servers in 100 backends, against the bare read.

Usage: scripts/benchmark [--runs N] [--haproxy VERSION]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = os.environ["ANSIBLE_COLLECTIONS_PATH"].split(os.pathsep)

from ansible_collections.clearproxy.haproxy.plugins.module_utils._argspec import (  # noqa: E402
    clients_from,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_operation import (  # noqa: E402
    Operation,
    Waiting,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_plan import (  # noqa: E402
    Desired,
)
from ansible_collections.clearproxy.haproxy.plugins.modules.haproxy_server import (  # noqa: E402
    argument_spec,
)

CACHE = Path(os.environ["CLEARPROXY_CACHE"])
OWN = os.environ["ANSIBLE_COLLECTIONS_PATH"]
PEER = "ansible==12.3.0"

PLAY = """\
- name: Measure one task
  hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: The task
      {task}
"""


# --- HAProxy --------------------------------------------------------------------------------


def configuration(directory: Path, backends: int, servers: int) -> str:
    lines = [
        "global",
        f"    stats socket {directory}/admin.sock mode 600 level admin",
        "defaults",
        "    mode http",
        "    timeout connect 1s",
        "    timeout client 1s",
        "    timeout server 1s",
        "    balance roundrobin",
    ]
    for backend in range(backends):
        lines.append(f"backend b{backend}")
        lines += [f"    server s{number} 127.0.0.1:9" for number in range(servers)]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def haproxy(version: str, backends: int, servers: int) -> Iterator[str]:
    """A HAProxy with so many servers; the path of its admin socket."""
    binary = CACHE / "haproxy" / version / "run"
    with tempfile.TemporaryDirectory(prefix="clp-", dir="/tmp") as work:
        directory = Path(work)
        config = directory / "haproxy.cfg"
        config.write_text(configuration(directory, backends, servers))
        process = subprocess.Popen(
            [str(binary), "-db", "-f", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            path = str(directory / "admin.sock")
            end = time.monotonic() + 30
            while True:
                with contextlib.suppress(OSError):
                    if bare(path, ["show info"])[0].startswith("Name:"):
                        break
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"HAProxy {version} did not start")
                time.sleep(0.05)
            yield path
        finally:
            process.terminate()
            process.wait(10)


def bare(path: str, commands: list[str]) -> list[str]:
    """The least that a client can do: prompt mode, a window of 256, split at the prompt."""
    replies: list[str] = []
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(b"prompt\n")
        buffer = b""
        while not buffer.endswith(b"\n> "):
            buffer += sock.recv(65536)
        for start in range(0, len(commands), 256):
            part = commands[start : start + 256]
            sock.sendall("".join(f"{command}\n" for command in part).encode())
            chunks: list[bytes] = []
            got = 0
            tail = b""
            while got < len(part):
                data = sock.recv(262144)
                if not data:
                    raise SystemExit("HAProxy closed the connection")
                # A prompt may be cut in two.
                got += (tail + data).count(b"\n> ")
                tail = data[-2:]
                chunks.append(data)
            replies += b"".join(chunks).decode().split("\n> ")[:-1]
    return replies


def drained(path: str) -> int:
    """How many servers HAProxy itself calls drained."""
    lines = bare(path, ["show servers state"])[0].splitlines()[2:]
    return sum(int(line.split()[6]) & 8 != 0 for line in lines if line)


def set_all(path: str, servers: int, state: str) -> None:
    bare(path, [f"set server b0/s{number} state {state}" for number in range(servers)])


# --- measuring ------------------------------------------------------------------------------


class Measure:
    """Times of several things, taken in turn."""

    def __init__(self, **actions: tuple[Callable[[], t.Any], Callable[[], t.Any]]) -> None:
        self.actions = actions
        self.seconds: dict[str, list[float]] = {name: [] for name in actions}

    def run(self, runs: int) -> Measure:
        """One round to warm up, then `runs` that count; each action has a preparation."""
        for round_ in range(runs + 1):
            for name, (prepare, action) in self.actions.items():
                prepare()
                start = time.perf_counter()
                action()
                taken = time.perf_counter() - start
                if round_:
                    self.seconds[name].append(taken)
        return self

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, one: str, other: str) -> float:
        """The median of the ratios, round by round: what disturbs the machine disturbs both."""
        pairs = zip(self.seconds[one], self.seconds[other])
        return statistics.median(first / second for first, second in pairs)


class Report:
    """Lines for people, and whether every bound held."""

    def __init__(self) -> None:
        self.ok = True

    def line(self, what: str, figures: str, ratio: float, bound: float, *, least: bool) -> None:
        held = ratio >= bound if least else ratio <= bound
        self.ok = self.ok and held
        sign = "≥" if least else "≤"
        print(f"{what}\n    {figures}")
        print(f"    ratio {ratio:.2f}, bound {sign} {bound:g}: {'held' if held else 'EXCEEDED'}\n")


def nothing() -> None:
    """No preparation."""


def playbook(directory: Path, name: str, task: str, collections: str) -> Callable[[], None]:
    path = directory / f"{name}.yml"
    path.write_text(PLAY.format(task=task))
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": collections,
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
        "ANSIBLE_PIPELINING": "true",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
    }
    program = str(Path(sys.executable).with_name("ansible-playbook"))

    def run() -> None:
        done = subprocess.run(
            [program, str(path)], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")

    return run


def peer_collections() -> str:
    """Where community.general is: taken from the wheel that ships it, once."""
    target = CACHE / "peer" / PEER
    if not (target / "complete").exists():
        print(f"Fetching community.general from {PEER} …\n", flush=True)
        with tempfile.TemporaryDirectory() as work:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work]
            subprocess.run([*pip, PEER], check=True, stderr=subprocess.DEVNULL)
            with zipfile.ZipFile(next(Path(work).glob("ansible-*.whl"))) as wheel:
                wanted = "ansible_collections/community/general/"
                names = [name for name in wheel.namelist() if name.startswith(wanted)]
                wheel.extractall(target, names)
        (target / "complete").touch()
    return str(target)


# --- the comparisons ------------------------------------------------------------------------


def plays(report: Report, version: str, runs: int) -> None:
    servers, sample = 1000, 10
    with haproxy(version, 1, servers) as path, tempfile.TemporaryDirectory() as work:
        directory = Path(work)
        task = (
            "clearproxy.haproxy.haproxy_server: "
            f'{{socket: {path}, backend: b0, servers: "*", state: drain, return: %s}}'
        )
        ours = playbook(directory, "ours", task % "none", OWN)
        told = playbook(directory, "told", task % "changed", OWN)
        ping = playbook(directory, "ping", "ansible.builtin.ping:", OWN)
        peer = playbook(
            directory,
            "peer",
            "community.general.haproxy: "
            f'{{socket: {path}, backend: b0, host: "s{{{{ item }}}}", state: drain}}\n'
            f"      loop: '{{{{ range({sample}) | list }}}}'",
            peer_collections(),
        )

        def all_ready() -> None:
            set_all(path, servers, "ready")

        measure = Measure(
            ours=(all_ready, ours),
            ping=(nothing, ping),
            told=(all_ready, told),
            peer=(all_ready, peer),
        ).run(runs)
        set_all(path, servers, "ready")
        ours()
        found = drained(path)
        if found != servers:
            raise SystemExit(f"only {found} of {servers} servers are drained afterwards")
    print(f"HAProxy says afterwards that {found} of {servers} servers are drained.\n")
    report.line(
        f"A play draining {servers} servers with one haproxy_server task, against one with ping",
        f"{measure.median('ours'):.2f} s with return: none, {measure.median('ping'):.2f} s; telling "
        f"the full state of all {servers} besides: {measure.median('told'):.2f} s, "
        f"ratio {measure.ratio('told', 'ping'):.2f}",
        measure.ratio("ours", "ping"),
        1.3,
        least=False,
    )
    each = [
        (peer_ - ping_) / sample
        for peer_, ping_ in zip(measure.seconds["peer"], measure.seconds["ping"])
    ]
    seconds = statistics.median(each)
    report.line(
        "community.general.haproxy, its seconds a server times 1,000, against that play",
        f"{seconds:.2f} s a server (of {sample} in a loop, the play's start aside), "
        f"so {seconds * servers:.0f} s, against {measure.median('ours'):.2f} s",
        seconds * servers / measure.median("ours"),
        100,
        least=True,
    )


def work_alone(report: Report, version: str, runs: int) -> None:
    servers = 1000
    with haproxy(version, 1, servers) as path:
        task = {"socket": [path], "backend": "b0", "servers": ["*"], "state": "drain"}

        def same() -> None:
            module_work({**task, "return": "none"})

        def told() -> None:
            module_work(task)

        def plain() -> None:
            bare(path, ["show servers state b0"])
            set_all(path, servers, "drain")
            drained(path)

        def all_ready() -> None:
            set_all(path, servers, "ready")

        measure = Measure(
            same=(all_ready, same), told=(all_ready, told), plain=(all_ready, plain)
        ).run(runs * 4)
    report.line(
        f"Draining {servers} servers without Ansible and imports, against a bare pipelined client",
        f"{measure.median('same') * 1000:.1f} ms with return: none, "
        f"{measure.median('plain') * 1000:.1f} ms; telling the full state of all {servers} besides: "
        f"{measure.median('told') * 1000:.1f} ms, ratio {measure.ratio('told', 'plain'):.2f}",
        measure.ratio("same", "plain"),
        3,
        least=False,
    )


def no_op(report: Report, version: str, runs: int) -> None:
    with haproxy(version, 100, 100) as path:

        def ours() -> None:
            module_work({"socket": [path], "servers": ["*"], "state": "ready"})

        def plain() -> None:
            bare(path, ["show servers state"])

        measure = Measure(ours=(nothing, ours), plain=(nothing, plain)).run(runs * 4)
    report.line(
        "Nothing to do on 10,000 servers in 100 backends, against the bare read",
        f"{measure.median('ours') * 1000:.1f} ms, {measure.median('plain') * 1000:.1f} ms",
        measure.ratio("ours", "plain"),
        4,
        least=False,
    )


def module_work(given: dict[str, t.Any]) -> None:
    """What haproxy_server's main() does between Ansible's reading and writing."""
    spec = argument_spec()
    params = {name: option.get("default") for name, option in spec.items()} | given
    desired, waiting = Desired.from_params(params), Waiting.from_params(params)
    with clients_from(params) as clients:
        Operation(clients, desired, waiting, params["return"]).run()


def machine() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{os.cpu_count()} × {line.partition(':')[2].strip()}"
    return f"{os.cpu_count()} processors"


def main() -> int:
    parser = argparse.ArgumentParser(description="What haproxy_server costs, as ratios.")
    parser.add_argument("--runs", type=int, default=5, help="counted rounds (default: 5)")
    parser.add_argument("--haproxy", default="3.2", metavar="VERSION", help="(default: 3.2)")
    args = parser.parse_args()
    print(
        f"{machine()}, Linux {platform.release()}, Python {platform.python_version()}, HAProxy "
        f"{args.haproxy};\nmedians of {args.runs} rounds of plays and {args.runs * 4} of the rest, "
        "after one to warm up;\nratios are medians of the rounds' ratios.\n",
        flush=True,
    )
    report = Report()
    plays(report, args.haproxy, args.runs)
    work_alone(report, args.haproxy, args.runs)
    no_op(report, args.haproxy, args.runs)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
