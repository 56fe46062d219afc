# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real HAProxy processes of every supported version, as fixtures.

CLEARPROXY_HAPROXY_VERSIONS="2.6 3.2" limits the versions; normally all are run. Whatever is
missing is fetched by scripts/haproxy-binaries; a version that cannot be had fails the tests.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import (
    BASE,
    REPO,
    VERSIONS,
    Certificates,
    Haproxy,
    Relay,
    answers,
    echo_origin,
    free_port,
    http_origin,
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "versions(since, until, what): HAProxy versions that have what is tested"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the versions that a test says nothing about."""
    left_out = [item for item in items if not _concerned(item)]
    items[:] = [item for item in items if item not in set(left_out)]
    config.hook.pytest_deselected(items=left_out)


def _concerned(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("versions")
    if marker is None:
        return True
    version = tuple(map(int, str(item.callspec.params["version"]).split(".")))  # type: ignore[attr-defined]
    first, last = (
        tuple(map(int, str(marker.kwargs.get(key, other)).split(".")))
        for key, other in (("since", "0.0"), ("until", "99.0"))
    )
    return first <= version <= last


@pytest.fixture(scope="session")
def binaries() -> Path:
    """The directory in which scripts/haproxy-binaries keeps the versions."""
    script = str(REPO / "scripts" / "haproxy-binaries")
    subprocess.run([script, *VERSIONS], check=True, timeout=900)
    where = subprocess.run(
        [script, "--where"],
        check=True,
        timeout=60,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Path(where.stdout.strip())


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose sockets stay below the 107 bytes of a unix address."""
    path = Path(tempfile.mkdtemp(prefix="clp-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def origin() -> Iterator[int]:
    with http_origin() as port:
        yield port


@pytest.fixture
def echo() -> Iterator[int]:
    with echo_origin() as port:
        yield port


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses connections and that nobody else can take meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


@pytest.fixture
def start_haproxy(
    binaries: Path, version: str, short_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Haproxy]]:
    """Start HAProxy with the given backends; it is ended by its pid.

    With a master process if asked for, by the test or by its parameter `kind`.
    """
    running: list[Haproxy] = []
    callspec = getattr(request.node, "callspec", None)
    wanted = callspec is not None and callspec.params.get("kind") == "master"

    def start(
        backends: str,
        *,
        default: str = "app",
        mode: str = "http",
        master: bool = wanted,
        master_level: str = "admin",
    ) -> Haproxy:
        directory = short_path / f"h{len(running)}"
        directory.mkdir()
        log = directory / "log"
        command = [str(binaries / version / "run"), "-db", "-f", str(directory / "haproxy.cfg")]
        path = directory / "master.sock" if master else None
        if master:
            command += ["-W", "-S", f"{path},mode,600,level,{master_level}"]
        for _attempt in range(3):
            port = free_port()
            base = BASE.replace("mode http\n", f"mode {mode}\n")
            config = base.format(directory=directory, port=port, default=default) + backends
            (directory / "haproxy.cfg").write_text(config)
            with log.open("wb") as out:
                process = subprocess.Popen(command, stdout=out, stderr=out)
            hap = Haproxy(
                version,
                directory,
                directory / "admin.sock",
                directory / "user.sock",
                port,
                process,
                path,
            )
            running.append(hap)
            end = time.monotonic() + 10
            while process.poll() is None and time.monotonic() < end:
                with contextlib.suppress(OSError):
                    # The master listens a little later than its worker.
                    if hap.ask("show info").startswith("Name:") and answers(path):
                        return hap
                time.sleep(0.02)
            if "Address already in use" not in log.read_text():
                break
        raise AssertionError(f"HAProxy {version} did not start: {log.read_text()}")

    yield start
    for hap in running:
        if hap.process.poll() is None:
            hap.process.send_signal(signal.SIGCONT)
            hap.process.terminate()
            try:
                hap.process.wait(5)
            except subprocess.TimeoutExpired:
                hap.process.kill()
                hap.process.wait(5)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def relay(short_path: Path, certificates: Certificates) -> Iterator[Callable[..., Relay]]:
    relays: list[Relay] = []

    def make(hap: Haproxy, kind: str = "unix") -> Relay:
        target = hap.master if kind == "master" else hap.admin
        assert target is not None, "this HAProxy was started without a master"
        relays.append(Relay(short_path / f"r{len(relays)}", target, kind, certificates))
        return relays[-1]

    yield make
    for item in relays:
        item.close()
