# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every kind of socket against real HAProxy processes: TCP, TLS, and the master's with reloads."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
import typing as t
from pathlib import Path

import pytest
from harness import (
    MODULES,
    REPO,
    Certificates,
    Haproxy,
    Relay,
    ask,
    cells,
    four_steps,
    free_port,
    reload,
    run_module,
    run_module_process,
    since,
)

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _transport
from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import Client
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import Step
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    LevelError,
    SocketError,
)

GUIDE = REPO / "docs" / "docsite" / "rst" / "guide_runtime_api.rst"

Start = t.Callable[..., Haproxy]
MakeRelay = t.Callable[..., Relay]

APP = "backend app\n    server s1 127.0.0.1:1\n    server s2 127.0.0.1:1\n"
DRAIN: dict[str, t.Any] = {"servers": ["s1"], "state": "drain"}


def server(**more: t.Any) -> dict[str, t.Any]:
    return run_module("haproxy_server", {**DRAIN, "timeout": 5, **more})


def assert_one_sentence(result: dict[str, t.Any], *words: str) -> None:
    assert result.get("failed") is True, result
    assert "exception" not in result, result
    assert "\n" not in result["msg"]
    assert len(result["msg"]) < 500
    for word in words:
        assert word in result["msg"], result["msg"]


# --- the same on every kind -----------------------------------------------------------------

CASES: dict[str, tuple[dict[str, t.Any], list[str]]] = {
    "one": ({"servers": "s1", "state": "drain"}, ["set server app/s1 state drain"]),
    "all": (
        {"servers": "*", "state": "maint"},
        ["set server app/s1 state maint", "set server app/s2 state maint"],
    ),
    "weight": ({"servers": "s2", "weight": 7}, ["set server app/s2 weight 7"]),
    "by backend": (
        {"backend": "app", "servers": "s2", "state": "drain"},
        ["set server app/s2 state drain"],
    ),
}


@cells(CASES)
def test_one_conversation_a_task(
    start_haproxy: Start, relay: MakeRelay, case: str, version: str, kind: str
) -> None:
    hap = start_haproxy(APP)
    wire = relay(hap, kind)
    args, commands = CASES[case]
    four_steps("haproxy_server", args, wire, commands=commands)
    assert wire.connections == 4
    for name in re.findall("app/(s[12])", " ".join(commands)):
        assert (hap.state("app", name), hap.weight("app", name)) != ("ready", 1)


# --- TCP ------------------------------------------------------------------------------------


def test_tcp(start_haproxy: Start, version: str) -> None:
    four, six = free_port(), free_port()
    hap = start_haproxy(
        f"global\n    stats socket ipv4@127.0.0.1:{four} level admin\n"
        f"    stats socket ipv6@[::1]:{six} level operator\n{APP}"
    )
    done = server(socket=f"tcp://127.0.0.1:{four}")
    assert done["changed"] is True
    assert hap.state("app", "s1") == "drain"
    assert server(socket=f"tcp://localhost:{four}")["changed"] is False
    assert_one_sentence(server(socket=f"tcp://[::1]:{six}"), "has level operator", f"[::1]:{six}")
    assert_one_sentence(
        server(socket=f"tcp://127.0.0.1:{four}", client_cert="/x"), "client_cert", "tls://"
    )


# --- TLS ------------------------------------------------------------------------------------


def documented_sections() -> list[str]:
    """The sections that the guide gives for a socket in a network, the second one below chroot."""
    found = re.findall(r"^ {3}listen admin\n(?: {7}\S.*\n)+", GUIDE.read_text(), re.M)
    assert len(found) == 2
    return [textwrap.dedent(section) for section in found]


@pytest.fixture(scope="session")
def papers(certificates: Certificates) -> Certificates:
    """More certificates, most of which may not be accepted."""
    where = certificates.directory
    stranger = certificates.authority("stranger")
    here = "IP:127.0.0.1,DNS:localhost"
    for name, names, days, authority in (
        ("mine", "", 30, None),
        ("elsewhere", "IP:192.0.2.1,DNS:elsewhere.example", 30, None),
        ("expired", here, -1, None),
        ("foreign", here, 30, stranger),
    ):
        cert, key = certificates.issue(name, names=names, days=days, authority=authority)
        (where / f"{name}.pem").write_text(cert.read_text() + key.read_text())
    (where / "garbage").write_text("not PEM\n")
    (where / "hashed").mkdir()
    (where / "hashed" / "ca.pem").write_text(certificates.ca.read_text())
    for command in (
        f"openssl pkcs8 -topk8 -in {where}/mine.key -passout pass:secret -out {where}/locked.key",
        f"openssl rehash {where}/hashed",
    ):
        subprocess.run(command.split(), check=True, timeout=60)
    return certificates


def test_tls(start_haproxy: Start, short_path: Path, papers: Certificates, version: str) -> None:
    """What the documentation says works, and whoever is turned away is told why."""
    where = papers.directory
    doors = ("good", "elsewhere", "expired", "foreign", "plain", "ignored")
    port = {name: free_port() for name in doors}
    secured = f"ca-file {papers.ca} verify required"
    section = documented_sections()[0]
    for old, new in (
        (":9999", f"127.0.0.1:{port['good']}"),
        ("/etc/haproxy/admin.pem", str(papers.server)),
        ("/etc/haproxy/operators.pem", str(papers.ca)),
        ("/run/haproxy/admin.sock", f"{short_path}/h0/admin.sock"),
    ):
        assert section.count(old) == 1
        section = section.replace(old, new)
    for name in ("elsewhere", "expired", "foreign"):
        section += f"    bind 127.0.0.1:{port[name]} ssl crt {where}/{name}.pem {secured}\n"
    hap = start_haproxy(
        f"{APP}{section}global\n"
        f"    stats socket ipv4@127.0.0.1:{port['plain']} level admin\n"
        f"    stats socket ipv4@127.0.0.1:{port['ignored']} ssl crt {papers.server} {secured} "
        "level admin\n"
    )
    with_key = {"client_key": None}
    bare = {"client_cert": None, "client_key": None}
    refused: dict[str, tuple[str, dict[str, t.Any], list[str]]] = {
        "no certificate": ("good", bare, ["does it want a client_cert"]),
        "another authority's certificate": (
            "good",
            {"client_cert": f"{where}/foreign.pem", **with_key},
            ["ca-file of its bind line", "foreign.pem"],
        ),
        "an expired certificate": (
            "good",
            {"client_cert": f"{where}/expired.pem", **with_key},
            ["still valid", "expired.pem"],
        ),
        "an unknown authority": ("good", {"ca_path": f"{where}/stranger.crt"}, ["not trusted"]),
        "the host's authorities": ("good", {"ca_path": None}, ["not trusted", "ca_path"]),
        "another host": ("elsewhere", {}, ["not trusted", "127.0.0.1"]),
        "an expired server": ("expired", {}, ["not trusted", "expired"]),
        "a foreign server": ("foreign", {}, ["not trusted"]),
        "plain text": ("plain", {}, ["speaks no TLS", "listen"]),
        "no such certificate": ("good", {"client_cert": "/nowhere"}, ["client_cert /nowhere"]),
        "a directory": ("good", {"client_cert": str(where)}, ["client_cert", "cannot be read"]),
        "garbage": ("good", {"client_cert": f"{where}/garbage"}, ["client_cert", "garbage"]),
        "no such key": ("good", {"client_key": "/nowhere"}, ["client_key /nowhere"]),
        "another's key": ("good", {"client_key": f"{where}/foreign.key"}, ["foreign.key"]),
        "a locked key": ("good", {"client_key": f"{where}/locked.key"}, ["unencrypted key"]),
        "no such authority": ("good", {"ca_path": "/nowhere"}, ["ca_path /nowhere"]),
        "a garbage authority": ("good", {"ca_path": f"{where}/garbage"}, ["ca_path", "garbage"]),
        "a key alone": ("good", {"client_cert": None}, ["client_key", "client_cert"]),
    }
    for name, (door, options, words) in refused.items():
        address = f"tls://127.0.0.1:{port[door]}"
        start = time.monotonic()
        result = server(socket=address, **{**papers.options, **options})
        assert time.monotonic() - start < 3, name
        assert_one_sentence(result, *words)
        assert any(word in result["msg"] for word in (address, "client_", "ca_path")), name
    assert_one_sentence(
        server(socket=f"tcp://127.0.0.1:{port['good']}"), "tls://", "closed the connection"
    )
    assert hap.state("app", "s1") == "ready"

    if version == "2.2":
        assert server(socket=f"tls://127.0.0.1:{port['ignored']}", **papers.options)["changed"]
    else:
        # Why the documentation warns: nobody is asked for a certificate here.
        assert_one_sentence(
            server(socket=f"tls://127.0.0.1:{port['ignored']}", **papers.options), "speaks no TLS"
        )
        assert server(socket=f"tcp://127.0.0.1:{port['ignored']}")["changed"] is True
    accepted: list[tuple[str, dict[str, t.Any]]] = [
        (f"127.0.0.1:{port['good']}", {}),
        (f"localhost:{port['good']}", {}),
        (f"127.0.0.1:{port['good']}", {"client_cert": f"{where}/mine.pem", **with_key}),
        (f"127.0.0.1:{port['good']}", {"ca_path": f"{where}/hashed"}),
        (f"127.0.0.1:{port['foreign']}", {"validate_certs": False}),
        (f"127.0.0.1:{port['elsewhere']}", {"validate_certs": False, "ca_path": None}),
    ]
    for weight, (place, options) in enumerate(accepted, 10):
        given = {**papers.options, **options, "socket": f"tls://{place}", "weight": weight}
        done = server(**given)
        assert done.get("failed") is None, done
        assert hap.weight("app", "s1") == weight
        assert server(**given)["changed"] is False


def test_tls_below_chroot(
    start_haproxy: Start, short_path: Path, papers: Certificates, version: str
) -> None:
    """The other documented configuration, with HAProxy's user and root directory changed."""
    port = free_port()
    section = documented_sections()[1]
    for old, new in (
        (":9999", f"127.0.0.1:{port}"),
        ("/etc/haproxy/admin.pem", str(papers.server)),
        ("/etc/haproxy/operators.pem", str(papers.ca)),
        ("unix@/admin.sock", "unix@/admin2.sock"),
    ):
        assert section.count(old) == 1
        section = section.replace(old, new)
    line = re.search(r"stats socket /var/lib/haproxy/admin\.sock .*", GUIDE.read_text())
    assert line is not None
    stats = line.group().replace("user haproxy", "user nobody")
    stats = stats.replace("/var/lib/haproxy/admin.sock", f"{short_path}/h0/admin2.sock")
    short_path.chmod(0o755)
    hap = start_haproxy(
        f"{APP}{section}global\n    user nobody\n    chroot {short_path}/h0\n    {stats}\n"
    )
    done = server(socket=f"tls://127.0.0.1:{port}", **papers.options)
    assert done.get("failed") is None, done
    assert hap.state("app", "s1") == "drain"


def test_a_key_that_the_user_may_not_read(papers: Certificates) -> None:
    given = {"socket": ["tls://127.0.0.1:1"], **DRAIN, **papers.options}
    result, stderr, _seconds = run_module_process("haproxy_server", given, deadline=20, uid=65534)
    assert "Traceback" not in stderr
    assert_one_sentence(result, "ca_path", "ermission denied")


def test_an_encrypted_key_asks_nobody(papers: Certificates) -> None:
    """At a terminal, where OpenSSL would ask for the password and wait for ever."""
    given = {
        **DRAIN,
        **papers.options,
        "socket": ["tls://127.0.0.1:1"],
        "client_key": str(papers.directory / "locked.key"),
    }
    code = (
        "import json, sys\n"
        "from ansible.module_utils.testing import patch_module_args\n"
        f"import {MODULES}.haproxy_server as m\n"
        "with patch_module_args(json.loads(sys.argv[1])): m.main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-c", code, json.dumps(given)], environment)
    seen = bytearray()
    try:
        with contextlib.suppress(OSError):
            # Ends with an error when the other side of the terminal is closed.
            while select.select([terminal], [], [], 20)[0] and b"pass" not in seen.lower():
                seen += os.read(terminal, 65536)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
    assert b"Enter" not in seen
    assert b"unencrypted key" in seen


# --- the master's socket --------------------------------------------------------------------


def client_at(address: str, timeout: float = 5) -> Client:
    return Client(_transport.Connection(_transport.parse_address(address), timeout))


@pytest.mark.parametrize("level", ["user", "operator"])
def test_the_masters_level(start_haproxy: Start, version: str, level: str) -> None:
    hap = start_haproxy(APP, master=True, master_level=level)
    result = server(socket=f"master://{hap.master}")
    assert_one_sentence(result, f"has level {level}", str(hap.master), "needs level admin")
    client = client_at(f"master://{hap.master}")
    client.require_level(level)
    assert client.is_master
    with pytest.raises(LevelError):
        client.require_level("admin")
    client.close()


def test_the_wrong_one_of_both(start_haproxy: Start, version: str) -> None:
    hap = start_haproxy(APP, master=True)
    assert_one_sentence(server(socket=str(hap.master)), f"master://{hap.master}")
    assert_one_sentence(server(socket=f"master://{hap.admin}"), "without master://")


def test_a_payload_through_the_master(start_haproxy: Start, short_path: Path, version: str) -> None:
    table = short_path / "m"
    table.write_text("one 1\n")
    hap = start_haproxy(f"{APP}    http-request set-header x %[src,map({table})]\n", master=True)
    lines = tuple(f"k{n} value {n}; set server app/s1 state maint" for n in range(200))
    for address in (f"master://{hap.master}", str(hap.admin)):
        client = client_at(address)
        client.apply([Step("x", f"add map {table}", lines)])
        shown = [line.split(" ", 1)[1] for line in client.read(f"show map {table}").splitlines()]
        assert shown == ["one 1", *lines]
        client.apply([Step("x", f"clear map {table}"), Step("y", f"add map {table} one 1")])
        client.close()
    assert hap.state("app", "s1") == "ready"


@since("3.0", "wait")
def test_wait_is_cut_short_by_the_master(start_haproxy: Start, version: str) -> None:
    """What Client.is_master is for."""
    hap = start_haproxy(APP, master=True)
    for address, reply in ((f"master://{hap.master}", "Interrupted."), (str(hap.admin), "Done.")):
        client = client_at(address)
        client.require_level("admin")
        assert client.read("wait 50ms").startswith(reply)
        client.close()


def test_the_masters_own_backend_is_not_the_users(start_haproxy: Start, version: str) -> None:
    """HAProxy 2.2 lists a backend MASTER, whose server refuses every command."""
    hap = start_haproxy(APP, master=True)
    assert ("MASTER" in hap.ask("show servers state")) is (version == "2.2")
    done = server(socket=str(hap.admin), servers=["*"])
    assert done["commands"] == ["set server app/s1 state drain", "set server app/s2 state drain"]
    shown = run_module("haproxy_info", {"socket": str(hap.admin), "gather": ["servers"]})
    assert {row["backend"] for row in shown["servers"]} == {"app"}


def test_reload_between_two_commands(start_haproxy: Start, version: str) -> None:
    """The worker of the first command stays the worker of the task, or the task ends."""
    hap = start_haproxy(APP, master=True)
    for address in (f"master://{hap.master}", str(hap.admin)):
        client = client_at(address)
        # Asks for the process id too, by which a process is known however young it is.
        assert client.version >= (2, 2)
        reload(hap)
        with pytest.raises(SocketError, match="reloaded"):
            client.require_current()
        client.close()


def many(count: int) -> str:
    lines = "".join(f"    server s{n} 127.0.0.1:1\n" for n in range(1, count + 1))
    return f"backend app\n{lines}"


@pytest.mark.parametrize("kind", ["unix", "master"])
@pytest.mark.parametrize("command", ["signal", "reload"])
def test_reload_during_a_batch(
    start_haproxy: Start, relay: MakeRelay, version: str, kind: str, command: str
) -> None:
    hap = start_haproxy(many(600), master=True)
    assert hap.master is not None
    wire = relay(hap, kind)
    # The fifth, as names are sorted.
    fifth = b"set server app/s102 state drain"

    def meanwhile(data: bytes) -> None:
        if fifth in data:
            if command == "reload":
                with contextlib.suppress(OSError):
                    ask(t.cast("Path", hap.master), "reload")
                time.sleep(0.3)
            else:
                reload(hap)

    wire.meanwhile = meanwhile
    result = server(socket=wire.address, servers=["*"])
    assert_one_sentence(result, "reloaded", str(wire.path))
    assert result["changed"] is bool(result["commands"])
    done = len(result["commands"])
    if kind == "unix":
        # The old process answers on; what it accepted is lost with it.
        assert done + len(result["refused"]) + len(result["not_sent"]) == 600
    else:
        assert 4 <= done <= 5
        assert len(result["unknown"]) <= 1
        assert done + len(result["unknown"]) + len(result["not_sent"]) == 600
    assert hap.state("app", "s600") == "ready"


def test_replaced_during_a_batch(
    start_haproxy: Start, relay: MakeRelay, binaries: Path, version: str
) -> None:
    """Without a master: another process takes over with -sf, the old one goes on talking."""
    hap = start_haproxy(many(600))
    wire = relay(hap)
    started: list[subprocess.Popen[bytes]] = []

    def meanwhile(data: bytes) -> None:
        if b"set server app/s102 state drain" in data and not started:
            command = [str(binaries / version / "run"), "-db", "-f", f"{hap.directory}/haproxy.cfg"]
            started.append(
                subprocess.Popen(
                    [*command, "-sf", str(hap.process.pid)],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            hap.until(lambda: hap.worker == started[0].pid)

    wire.meanwhile = meanwhile
    try:
        result = server(socket=wire.address, servers=["*"])
        assert_one_sentence(result, "reloaded", str(wire.path))
        assert result["changed"] is bool(result["commands"])
        done = len(result["commands"])
        assert done + len(result["refused"]) + len(result["not_sent"]) == 600
        assert hap.state("app", "s1") == "ready"
    finally:
        for process in started:
            process.terminate()
            process.wait(5)


def test_after_a_failed_reload(start_haproxy: Start, version: str) -> None:
    """The master's prompt tells of it; the worker that went on is the one to talk to."""
    hap = start_haproxy(APP, master=True)
    assert hap.master is not None
    config = hap.directory / "haproxy.cfg"
    config.write_text(config.read_text() + "nonsense\n")
    hap.process.send_signal(signal.SIGUSR2)

    def failed() -> bool:
        with contextlib.suppress(OSError):
            return "ReloadFailed" in ask(t.cast("Path", hap.master), "prompt\nquit")
        return False

    hap.until(failed)
    done = server(socket=f"master://{hap.master}")
    assert done.get("failed") is None, done
    assert hap.state("app", "s1") == "drain"


def test_a_stuck_worker_and_a_dead_one(start_haproxy: Start, version: str) -> None:
    """The master answers for neither; it ends with its last worker."""
    hap = start_haproxy(APP, master=True)
    pid = hap.worker
    os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    result = server(socket=f"master://{hap.master}", timeout=0.5)
    assert time.monotonic() - start < 2
    assert_one_sentence(result, "did not answer '@1 show info'", str(hap.master))
    os.kill(pid, signal.SIGKILL)
    hap.process.wait(5)
    assert_one_sentence(server(socket=f"master://{hap.master}"), str(hap.master), "not running")
