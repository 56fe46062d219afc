# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_server in the place of community.general.haproxy, as docs/…/guide_community_general says.

The option sets are those of the examples in that module's documentation (13.4.0); what each of them
promises is asserted. Then come its options one by one, and the differences of the guide's table.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from harness import FULL, REPO, VERSIONS, Haproxy, Relay, run_module

from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _parse,
    _server_operation,
    _transport,
)
from ansible_collections.clearproxy.haproxy.plugins.modules import haproxy_server

Start = t.Callable[..., Haproxy]
MakeRelay = t.Callable[..., Relay]

# What {{ inventory_hostname }} and /var/run/haproxy.sock stand for here.
HOST = "web1"

DISABLED = {"state": "disabled", "host": HOST}
ENABLED = {"state": "enabled", "host": HOST}
WWW = {"backend": "www"}

EXAMPLES: dict[str, dict[str, t.Any]] = {
    "disable in a backend": {**DISABLED, **WWW},
    "disable with its checks": {**DISABLED, "health": True, "agent": True},
    "disable everywhere": {**DISABLED},
    "disable, socket given": {**DISABLED, **WWW},
    "disable and wait": {**DISABLED, **WWW, "wait": True},
    "drain, then disable, within an hour": {
        **DISABLED,
        **WWW,
        "wait": True,
        "drain": True,
        "wait_interval": 60,
        "wait_retries": 60,
    },
    "disable and drop sessions": {**DISABLED, **WWW, "shutdown_sessions": True},
    "disable everywhere, or fail": {**DISABLED, "fail_on_not_found": True},
    "enable": {**ENABLED, **WWW},
    "enable and wait": {**ENABLED, **WWW, "wait": True},
    "enable and wait ten times five seconds": {
        **ENABLED,
        **WWW,
        "wait": True,
        "wait_retries": 10,
        "wait_interval": 5,
    },
    "enable with a weight": {**ENABLED, **WWW, "weight": 10},
    "drain": {"state": "drain", "host": HOST, **WWW},
}


def server(hap: Haproxy, args: dict[str, t.Any], *, check: bool = False) -> dict[str, t.Any]:
    return run_module("haproxy_server", {"socket": str(hap.admin), **args}, check=check)


class _Agent(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"up\n")


@pytest.fixture
def agent() -> Iterator[int]:
    """What agent checks ask, and what always says that the server is up."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Agent) as found:
        threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
        yield int(found.server_address[1])
        found.shutdown()


@pytest.fixture
def hap(start_haproxy: Start, echo: int, agent: int) -> Haproxy:
    """web1 in two backends with both kinds of checks, and beside it web2."""
    checks = "check inter 100ms"
    # Not too often: 2.2 counts the connection of a check as one in use.
    agents = f"agent-check agent-port {agent} agent-inter 500ms"
    hap = start_haproxy(
        f"backend www\n    server web1 127.0.0.1:{echo} {checks} {agents} weight 100\n"
        f"    server web2 127.0.0.1:{echo} {checks}\n"
        f"backend other\n    server web1 127.0.0.1:{echo} {checks} {agents}\n",
        default="www",
        mode="tcp",
    )
    hap.until_up("www/web1", "www/web2", "other/web1")
    return hap


def checks_of(hap: Haproxy, backend: str) -> tuple[bool, bool]:
    """Whether health checks and agent checks of its web1 are switched on."""
    row = hap.row(backend, HOST)
    return bool(int(row["srv_check_state"]) & 4), bool(int(row["srv_agent_state"]) & 4)


@contextlib.contextmanager
def session(hap: Haproxy) -> Iterator[socket.socket]:
    """A client with a session at web1, which must be the only server that takes clients."""
    with socket.create_connection(("127.0.0.1", hap.port), timeout=5) as sock:
        sock.sendall(b"hello\n")
        assert sock.recv(100) == b"hello\n"
        yield sock


# --- the documented examples ----------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(hap: Haproxy, relay: MakeRelay, name: str) -> None:
    """What the example promises happens, what it does not name is left alone, and twice is once."""
    args = EXAMPLES[name]
    if "wait_interval" in args and not FULL and hap.version != VERSIONS[-1]:
        # Between the look at once, which may be too early, and the next: to wait it out once is enough.
        args = {**args, "wait_interval": args["wait_interval"] / 10}
    if args["state"] == "enabled":
        for backend in ("www", "other"):
            assert hap.ask(f"set server {backend}/web1 state maint").strip() == ""
    only_www = "backend" in args
    wire = relay(hap)
    full = {"socket": wire.address, **args}

    foreseen = run_module("haproxy_server", full, check=True)
    assert foreseen["changed"] is True
    assert wire.changes() == []
    began = time.monotonic()
    done = run_module("haproxy_server", full)
    assert done.get("failed") is None, done
    assert done["changed"] is True
    assert done["diff"] == foreseen["diff"]
    assert time.monotonic() - began < 8

    state = {"disabled": "maint", "enabled": "ready", "drain": "drain"}[args["state"]]
    before = "maint" if state == "ready" else "ready"
    assert hap.state("www", HOST) == state
    assert hap.state("other", HOST) == (before if only_www else state)
    assert hap.state("www", "web2") == "ready"
    expected = (not args.get("health"), not args.get("agent"))
    assert checks_of(hap, "www") == expected
    assert checks_of(hap, "other") == ((True, True) if only_www else expected)
    assert hap.weight("www", HOST) == args.get("weight", 100)
    if args["state"] == "enabled" and args.get("wait"):
        assert hap.status("www", HOST) == "UP"
    elif state == "maint":
        assert hap.status("www", HOST) == "MAINT"

    wire.commands()
    again = run_module("haproxy_server", full)
    assert again.get("failed") is None, again
    assert again["changed"] is False
    assert wire.changes() == []


def test_every_example_is_here() -> None:
    """One host each, and no option that the old module does not have."""
    assert len(EXAMPLES) == 13
    for args in EXAMPLES.values():
        assert set(args) <= set(OLD_OPTIONS)


# Every option of the old module, with the type and the choices it has there.
OLD_OPTIONS: dict[str, tuple[str, ...]] = {
    "agent": ("bool",),
    "backend": ("str",),
    "drain": ("bool",),
    "fail_on_not_found": ("bool",),
    "health": ("bool",),
    "host": ("list",),
    "shutdown_sessions": ("bool",),
    "socket": ("list",),
    "state": ("str", "enabled", "disabled", "drain"),
    "wait": ("bool",),
    "wait_interval": ("float",),
    "wait_retries": ("int",),
    "weight": ("str",),
}


@pytest.mark.parametrize("name", OLD_OPTIONS)
def test_every_option_is_taken(name: str) -> None:
    """Numbers may be fractions here and a string is a list of one; else the types are the same."""
    spec = haproxy_server.argument_spec()
    option = next(
        option
        for known, option in spec.items()
        if name == known or name in option.get("aliases", [])
    )
    kind, *choices = OLD_OPTIONS[name]
    assert option["type"] == kind
    assert set(choices) <= set(option.get("choices", choices))


# --- what is promised while clients are there -----------------------------------------------


def only_web1(hap: Haproxy) -> None:
    hap.ask("set server www/web2 state maint")


def test_drain_waits_for_the_sessions(hap: Haproxy) -> None:
    """The example with `drain` and `wait`, in seconds instead of minutes."""
    only_web1(hap)
    args = {**DISABLED, **WWW, "wait": True, "drain": True, "wait_interval": 1, "wait_retries": 9}
    with session(hap) as client:
        timer = threading.Timer(0.5, client.close)
        timer.start()
        states = []
        watch = threading.Timer(0.3, lambda: states.append(hap.state("www", HOST)))
        watch.start()
        done = server(hap, args)
        timer.join()
        watch.join()
    assert done.get("failed") is None, done
    assert done["commands"] == [
        "set server www/web1 state drain",
        "set server www/web1 state maint",
    ]
    assert states == ["drain"]
    assert done["waited"] >= 0.4
    assert hap.status("www", HOST) == "MAINT"


def test_drain_fails_when_the_time_is_over(hap: Haproxy) -> None:
    """And leaves the server draining, as the old module does."""
    only_web1(hap)
    args = {**DISABLED, **WWW, "wait": True, "drain": True, "wait_interval": 1, "wait_retries": 1}
    with session(hap) as client:
        failed = server(hap, args)
        assert failed["failed"] is True
        assert "www/web1" in failed["msg"]
        assert 0.9 < failed["waited"] < 3
        assert hap.state("www", HOST) == "drain"
        client.sendall(b"still\n")
        assert client.recv(100) == b"still\n"


def test_shutdown_sessions_ends_them(hap: Haproxy) -> None:
    only_web1(hap)
    with session(hap) as client:
        done = server(hap, EXAMPLES["disable and drop sessions"])
        assert done.get("failed") is None, done
        client.settimeout(3)
        assert client.recv(100) == b""
    assert "shutdown sessions server www/web1" in done["commands"]
    # Without it they go on.
    server(hap, {**ENABLED, **WWW})
    with session(hap) as client:
        server(hap, {**DISABLED, **WWW})
        client.sendall(b"still\n")
        assert client.recv(100) == b"still\n"


def test_drain_overrides_shutdown_sessions(hap: Haproxy) -> None:
    """Sessions end by themselves; and what is enabled keeps them, as before."""
    only_web1(hap)
    kill = {"shutdown_sessions": True}
    args = {**DISABLED, **WWW, **kill, "drain": True, "wait": True}
    with session(hap) as client:
        assert server(hap, {**ENABLED, **WWW, **kill})["commands"] == []
        failed = server(hap, {**args, "wait_interval": 0.3, "wait_retries": 1})
        assert failed["failed"] is True
        assert failed["commands"] == ["set server www/web1 state drain"]
        client.sendall(b"still\n")
        assert client.recv(100) == b"still\n"


def test_checks_come_back_with_the_server(hap: Haproxy) -> None:
    """`health` and `agent` go where `state` goes."""
    both = {"health": True, "agent": True}
    server(hap, {**DISABLED, **WWW, **both})
    assert checks_of(hap, "www") == (False, False)
    done = server(hap, {**ENABLED, **WWW, **both, "wait": True, "wait_retries": 5})
    assert done.get("failed") is None, done
    assert checks_of(hap, "www") == (True, True)
    assert hap.status("www", HOST) == "UP"
    # Each alone.
    server(hap, {**DISABLED, **WWW, "agent": True})
    assert checks_of(hap, "www") == (True, False)
    server(hap, {**ENABLED, **WWW, "agent": True})
    server(hap, {**DISABLED, **WWW, "health": True})
    assert checks_of(hap, "www") == (False, True)
    # With drain neither is touched, as before.
    server(hap, {**ENABLED, **WWW, **both})
    server(hap, {"state": "drain", "host": HOST, **WWW, **both})
    assert checks_of(hap, "www") == (True, True)


@pytest.mark.parametrize(("weight", "result"), [("50%", 50), ("0", 0), (256, 256), ("100%", 100)])
def test_weights(hap: Haproxy, weight: t.Any, result: int) -> None:
    assert server(hap, {**ENABLED, **WWW, "weight": weight}).get("failed") is None
    assert hap.weight("www", HOST) == result


def test_no_weight_given_leaves_it_alone(hap: Haproxy) -> None:
    hap.ask("set server www/web1 weight 7")
    server(hap, {**DISABLED, **WWW})
    server(hap, {**ENABLED, **WWW})
    assert hap.weight("www", HOST) == 7


# --- the deliberate differences, row by row of the guide's table ----------------------------

GONE = {"state": "disabled", "host": "web9"}


def difference_unknown_server(hap: Haproxy, _closed: int) -> None:
    """Was: ok, nothing changed, unless fail_on_not_found."""
    for args in (GONE, {**GONE, **WWW}, {**GONE, "fail_on_not_found": True}):
        failed = server(hap, args)
        assert failed["failed"] is True
        assert "web9" in failed["msg"]
    # What the playbook says counts.
    done = server(hap, {**GONE, "fail_on_not_found": False})
    assert (done.get("failed"), done["changed"]) == (None, False)
    assert server(hap, {**GONE, "missing": "ignore"})["changed"] is False


def difference_unknown_in_some_backends(hap: Haproxy, _closed: int) -> None:
    """Was: with fail_on_not_found, backends changed until the first that lacks the server."""
    done = server(hap, {"state": "disabled", "host": "web2", "fail_on_not_found": True})
    assert done["commands"] == ["set server www/web2 state maint"]


def difference_refused_commands(hap: Haproxy, _closed: int) -> None:
    """Was: ok, with `Permission denied` or the like somewhere in `output`."""
    denied = server(hap, {"socket": str(hap.user), **DISABLED})
    assert denied["failed"] is True
    assert "level admin" in denied["msg"]
    wrong = server(hap, {**ENABLED, **WWW, "weight": 999})
    assert wrong["failed"] is True
    assert "999" in wrong["msg"]
    assert hap.weight("www", HOST) == 100


def difference_up(hap: Haproxy, closed: int) -> None:
    """Was: `UP 1/3`, which HAProxy says before the first check, counted as up."""
    del closed
    failed = server(hap, {"state": "disabled", "host": "dead", "backend": "down"})
    assert failed.get("failed") is None
    began = time.monotonic()
    args = {"state": "enabled", "host": "dead", "backend": "down", "wait": True}
    failed = server(hap, {**args, "wait_retries": 2, "wait_interval": 0.2})
    assert failed["failed"] is True
    assert "down/dead" in failed["msg"]
    assert time.monotonic() - began < 3


def difference_no_check(hap: Haproxy, _closed: int) -> None:
    """Was: a server without checks is never `UP`, so that waiting for it always failed."""
    server(hap, {"state": "disabled", "host": "bare", "backend": "down"})
    args = {"state": "enabled", "host": "bare", "backend": "down", "wait": True}
    done = server(hap, args)
    assert (done.get("failed"), done["changed"]) == (None, True)
    assert done["waited"] < 1


def difference_changed(hap: Haproxy, _closed: int) -> None:
    """Was: changed whenever the number of sessions was another one afterwards."""
    only_web1(hap)
    with session(hap):
        done = server(hap, {**ENABLED, **WWW})
        assert (done["changed"], done["commands"]) == (False, [])


def difference_drain_of_others(hap: Haproxy, _closed: int) -> None:
    """Was: drain with enabled waited until the server had no sessions, which may never be."""
    for state in ("enabled", "drain"):
        refused = server(hap, {"host": HOST, **WWW, "state": state, "drain": True, "wait": True})
        assert refused["failed"] is True
        assert "drain_first" in refused["msg"]


def difference_drain_waits(hap: Haproxy, _closed: int) -> None:
    """Was: without wait, drain and maintenance in the same millisecond."""
    only_web1(hap)
    with session(hap) as client:
        timer = threading.Timer(0.4, client.close)
        timer.start()
        done = server(hap, {**DISABLED, **WWW, "drain": True})
        timer.join()
    assert done.get("failed") is None, done
    assert done["waited"] >= 0.3


def difference_wait_means_drained(hap: Haproxy, _closed: int) -> None:
    """Was: wait was over as soon as the status said MAINT or DRAIN, with clients still there."""
    only_web1(hap)
    quick = {"wait": True, "wait_retries": 1, "wait_interval": 0.2}
    with session(hap):
        for state in ("disabled", "drain"):
            failed = server(hap, {**WWW, "host": HOST, "state": state, **quick})
            assert failed["failed"] is True
            assert "www/web1 still has 1 streams" in failed["msg"]
        # Who does not want to wait for clients does not say wait: it is in effect at once.
        done = server(hap, {**DISABLED, **WWW})
        assert (done.get("failed"), hap.status("www", HOST)) == (None, "MAINT")


def difference_down_server(hap: Haproxy, _closed: int) -> None:
    """Was: to drain a server that is down timed out, because HAProxy goes on to say DOWN."""
    hap.until(lambda: hap.status("down", "dead") == "DOWN")
    args = {"host": "dead", "backend": "down", "wait": True, "wait_retries": 1}
    done = server(hap, {**args, "state": "drain"})
    assert done.get("failed") is None, done
    assert hap.state("down", "dead") == "drain"


def difference_weight_with_any_state(hap: Haproxy, _closed: int) -> None:
    """Was: ignored unless enabled."""
    server(hap, {**DISABLED, **WWW, "weight": 5})
    assert (hap.state("www", HOST), hap.weight("www", HOST)) == ("maint", 5)


def difference_check_mode(hap: Haproxy, _closed: int) -> None:
    """Was: skipped."""
    done = server(hap, DISABLED, check=True)
    assert done["changed"] is True
    assert done["commands"] == [
        "set server other/web1 state maint",
        "set server www/web1 state maint",
    ]
    assert hap.state("www", HOST) == "ready"


def difference_checks_that_do_not_exist(hap: Haproxy, _closed: int) -> None:
    """Was: ok, and HAProxy 2.2 then shows a check that never runs."""
    before = hap.row("down", "bare")
    for which in ("health", "agent"):
        args = {"state": "enabled", "host": "bare", "backend": "down", which: True}
        failed = server(hap, args)
        assert failed["failed"] is True
        assert "down/bare" in failed["msg"]
        assert failed["changed"] is False
    assert hap.row("down", "bare")["srv_check_state"] == before["srv_check_state"]
    # To switch off what is not there is nothing.
    done = server(
        hap, {"state": "disabled", "host": "bare", "backend": "down", "health": True, "agent": True}
    )
    assert done["commands"] == ["set server down/bare state maint"]


def difference_names_are_names(hap: Haproxy, _closed: int) -> None:
    """Was: a `;` in a value began another command."""
    for option in ("host", "backend", "weight"):
        args = {**ENABLED, **WWW, option: "web1; disable server www/web2"}
        failed = server(hap, args)
        assert failed["failed"] is True
        assert hap.state("www", "web2") == "ready"


def difference_shutdown_sessions_and_drain(hap: Haproxy, _closed: int) -> None:
    """Was: ignored unless disabled."""
    only_web1(hap)
    with session(hap) as client:
        done = server(hap, {"state": "drain", "host": HOST, **WWW, "shutdown_sessions": True})
        assert done["commands"] == [
            "set server www/web1 state drain",
            "shutdown sessions server www/web1",
        ]
        client.settimeout(3)
        assert client.recv(100) == b""


def difference_default_time(hap: Haproxy, _closed: int) -> None:
    """Was: 24 looks, one every 5 s; with wait_interval: 60 alone, 24 minutes."""
    del hap
    given = dict.fromkeys(("wait_timeout", "wait_interval", "wait_retries"))
    assert _server_operation.Waiting.from_params(given).timeout == 300
    alone = _server_operation.Waiting.from_params({**given, "wait_interval": 60.0})
    assert (alone.timeout, alone.interval) == (300, 60)
    retries = _server_operation.Waiting.from_params({**given, "wait_retries": 25})
    assert retries.timeout == 125


def difference_socket(hap: Haproxy, _closed: int) -> None:
    """Was: /var/run/haproxy.sock, which neither Debian nor Red Hat has."""
    usual = _transport.USUAL_SOCKETS
    assert {"/run/haproxy/admin.sock", "/var/run/haproxy.sock", "/var/lib/haproxy/stats"} <= {
        *usual
    }
    # The first that exists.
    assert str(_transport.usual_address(["/nowhere/at/all", str(hap.admin)])) == str(hap.admin)


def difference_development_versions(hap: Haproxy, _closed: int) -> None:
    """Was: a version like 2.9-dev12 could not be read, and drain then did nothing."""
    info = re.sub("^Version: .*$", "Version: 2.9-dev12", hap.ask("show info"), flags=re.M)
    assert _parse.version(info) == (2, 9)


def difference_interval_zero(hap: Haproxy, _closed: int) -> None:
    """Was: a loop without a pause."""
    failed = server(hap, {**ENABLED, **WWW, "wait": True, "wait_interval": 0})
    assert "wait_interval" in failed["msg"]


def difference_one_retry(hap: Haproxy, _closed: int) -> None:
    """Was: looked once less than wait_retries says, so that 1 always failed."""
    args = {**DISABLED, **WWW, "wait": True, "wait_retries": 1}
    assert server(hap, args).get("failed") is None


def difference_result(hap: Haproxy, _closed: int) -> None:
    """Was: state_before, state_after, command, output."""
    done = server(hap, {**DISABLED, **WWW})
    assert done["commands"] == ["set server www/web1 state maint"]
    assert [srv["state"] for srv in done["servers"]] == ["maint"]
    assert {"state_before", "state_after", "command", "output"}.isdisjoint(done)


DIFFERENCES = {
    name.partition("_")[2]: function
    for name, function in dict(globals()).items()
    if name.startswith("difference_")
}


@pytest.fixture
def hap_and_dead(start_haproxy: Start, echo: int, closed_port: int) -> tuple[Haproxy, int]:
    """Quicker than `hap`: without agents, and beside it a dead server and one without checks."""
    hap = start_haproxy(
        f"backend www\n    server web1 127.0.0.1:{echo} check inter 100ms weight 100\n"
        f"    server web2 127.0.0.1:{echo} check inter 100ms\n"
        f"backend other\n    server web1 127.0.0.1:{echo} check inter 100ms\n"
        f"backend down\n    server dead 127.0.0.1:{closed_port} check inter 1s downinter 1s "
        f"fastinter 100ms\n    server bare 127.0.0.1:{echo}\n",
        default="www",
        mode="tcp",
    )
    hap.until_up("www/web1", "www/web2", "other/web1")
    return hap, closed_port


@pytest.mark.parametrize("name", DIFFERENCES)
def test_difference(hap_and_dead: tuple[Haproxy, int], name: str) -> None:
    DIFFERENCES[name](*hap_and_dead)


GUIDE = REPO / "docs" / "docsite" / "rst" / "guide_community_general.rst"


def test_the_guide_has_every_difference() -> None:
    """Each row of its table is named after the function above that proves it."""
    rows = re.findall(r"^ {3}\* - \.\. (\w+)$", GUIDE.read_text(), re.M)
    assert sorted(rows) == sorted(DIFFERENCES)


def test_the_guide_has_every_option() -> None:
    text = GUIDE.read_text()
    for name in OLD_OPTIONS:
        assert f"``{name}``" in text, name


# --- as a playbook --------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS[-1:])
def test_playbook(hap: Haproxy, tmp_path: Path) -> None:
    """Four of the examples as they stand in a playbook, only the name of the module changed."""
    tasks = []
    for name in (
        "disable with its checks",
        "enable and wait ten times five seconds",
        "drain, then disable, within an hour",
        "enable with a weight",
    ):
        args = {"socket": str(hap.admin), **EXAMPLES[name], "host": "{{ inventory_hostname }}"}
        tasks.append({"name": name.capitalize(), "clearproxy.haproxy.haproxy_server": args})
    play = [{"name": "Migrate", "hosts": "all", "gather_facts": False, "tasks": tasks}]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play, sort_keys=False))
    import ansible_collections.clearproxy.haproxy as collection

    env = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(Path(next(iter(collection.__path__))).parents[2]),
        "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
        "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
        "ANSIBLE_NOCOLOR": "1",
    }
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            "-i",
            f"{HOST},",
            "-c",
            "local",
            "-e",
            f"ansible_python_interpreter={sys.executable}",
            str(tmp_path / "play.yml"),
        ],
        env=env,
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"{HOST}\s*: ok=4\s+changed=4 .*failed=0", done.stdout), done.stdout
    assert (hap.state("www", HOST), hap.weight("www", HOST)) == ("ready", 10)
    assert hap.state("other", HOST) == "maint"
    assert checks_of(hap, "other") == (False, False)
