# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_command against real HAProxy processes of every supported version."""

from __future__ import annotations

import signal
import threading
import time
import typing as t
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from harness import VERSIONS, Haproxy, Relay, cells, run_module

MODULE = "haproxy_command"
BACKEND = """\
backend app
    server s1 127.0.0.1:1 weight 10
    server s2 127.0.0.1:1 weight 10 disabled
    stick-table type ip size 1k expire 1h store gpc0
"""

Start = Callable[..., Haproxy]
MakeRelay = Callable[..., Relay]


def run(where: t.Any, commands: t.Any, **args: t.Any) -> dict[str, t.Any]:
    socket = {"socket": where.address, **where.options} if isinstance(where, Relay) else {}
    return run_module(MODULE, {"socket": str(where), "commands": commands, **socket}, **args)


def at_least(version: str, needed: str) -> bool:
    return [int(part) for part in version.split(".")] >= [int(part) for part in needed.split(".")]


# No other command takes long.
WITH_WAIT = pytest.mark.parametrize(
    "version", [version for version in VERSIONS if at_least(version, "3.0")]
)

# What the module is made for, as (commands, wire lines, an effect that HAProxy shows).
CASES: dict[str, tuple[t.Any, list[str], Callable[[Haproxy], bool]]] = {
    "old word": (
        "disable server app/s1",
        ["disable server app/s1"],
        lambda hap: hap.state("app", "s1") == "maint",
    ),
    "several": (
        ["set server app/s1 state drain", "set weight app/s1 3"],
        ["set server app/s1 state drain", "set weight app/s1 3"],
        lambda hap: hap.state("app", "s1") == "drain" and hap.weight("app", "s1") == 3,
    ),
    "payload": (
        [{"command": "add map #0", "payload": "k one\nl two words\n"}],
        ["add map #0 <<", "k one", "l two words"],
        lambda hap: " l two words" in hap.ask("show map #0"),
    ),
    "escapes": (
        r"add map #0 a\;b two\ words\\",
        [r"add map #0 a\;b two\ words\\"],
        lambda hap: " a;b two words\\\n" in hap.ask("show map #0"),
    ),
    "warning that is a success": (
        "set server app/s1 addr 127.0.0.7",
        ["set server app/s1 addr 127.0.0.7"],
        lambda hap: hap.row("app", "s1")["srv_addr"] == "127.0.0.7",
    ),
    "warning that is no news": (
        "set server app/s1 addr 127.0.0.1",
        ["set server app/s1 addr 127.0.0.1"],
        lambda hap: hap.row("app", "s1")["srv_addr"] == "127.0.0.1",
    ),
    "notice": (
        ["disable frontend front", "disable frontend front"],
        ["disable frontend front", "disable frontend front"],
        lambda hap: ",PAUSED," in hap.ask("show stat") or ",STOP," in hap.ask("show stat"),
    ),
    "stick table": (
        "set table app key 192.0.2.1 data.gpc0 5",
        ["set table app key 192.0.2.1 data.gpc0 5"],
        lambda hap: "key=192.0.2.1 use=0" in hap.ask("show table app"),
    ),
}
# A later word about it wins.
SHORT = "global\n    stats timeout 300ms\n"
MAP = """\
    http-request set-var(txn.a) path,map_str({path})
"""


def with_map(start_haproxy: Start, short_path: Path) -> Haproxy:
    path = short_path / "m.map"
    path.write_text("first 1\n")
    return start_haproxy(BACKEND + MAP.format(path=path))


def picture(hap: Haproxy) -> list[str]:
    """What the commands change, without the seconds since a server's last change."""
    rows = [row.split() for row in hap.ask("show servers state").splitlines()]
    states = [word for row in rows for word in row[:9] + row[10:]]
    return [*hap.ask("show map #0").split(), *hap.ask("show table app").split(), *states]


@cells(CASES)
def test_changes_are_sent_once_checked_and_counted(
    start_haproxy: Start, relay: MakeRelay, short_path: Path, case: str, version: str, kind: str
) -> None:
    hap = with_map(start_haproxy, short_path)
    wire = relay(hap, kind)
    commands, lines, effect = CASES[case]
    before = picture(hap)
    check = run(wire, commands, check=True)
    assert not set(lines) & set(wire.commands())
    assert check["changed"] is True
    assert [reply["sent"] for reply in check["replies"]] == [False] * len(check["commands"])
    assert picture(hap) == before
    done = run(wire, commands)
    assert not done.get("failed"), done
    assert done["changed"] is True
    assert done["commands"] == check["commands"]
    assert [line for line in wire.commands() if line in lines] == lines
    hap.until(lambda: effect(hap))
    # An escape hatch compares nothing: it sends the same again.
    again = run(wire, commands)
    assert again["changed"] is True
    assert [line for line in wire.commands() if line in lines] == lines


READS = [
    "show info",
    "show stat",
    "show servers state",
    "show cli level",
    "get weight app/s1",
    "help",
    "show table app",
    "  show\tbackend",
    r"sho\w backend",
]


def test_reads_are_no_change_and_run_in_check_mode(
    start_haproxy: Start, relay: MakeRelay, version: str
) -> None:
    hap = start_haproxy(BACKEND)
    wire = relay(hap)
    for check in (True, False):
        wire.commands()
        result = run(wire, READS, check=check)
        assert not result.get("failed"), result
        assert result["changed"] is False
        assert result["commands"] == []
        assert wire.commands()[-len(READS) :] == READS
        texts = {reply["command"]: reply["reply"] for reply in result["replies"]}
        assert texts["show info"].startswith("Name: HAProxy\nVersion: ")
        assert texts["show stat"].startswith("# pxname,svname,")
        assert texts["show cli level"] == "admin"
        assert texts["get weight app/s1"] == "10 (initial 10)"
        assert "show info" in texts["help"]
        assert texts[READS[-1]] == texts[READS[-2]] == "# name\napp"
        assert all(reply["sent"] and not reply["changes"] for reply in result["replies"])
        assert result["replies"][3]["severity"] == "info"
        assert result["replies"][0]["severity"] is None
        assert result["replies"][0]["lines"] == texts["show info"].splitlines()


def test_one_string_is_one_command_commas_included(
    start_haproxy: Start, short_path: Path, version: str
) -> None:
    hap = with_map(start_haproxy, short_path)
    done = run(hap.admin, "add map #0 k a,b")
    assert done["commands"] == ["add map #0 k a,b"]
    assert " k a,b\n" in hap.ask("show map #0")


# A refused command in the middle, the words of its reply, and what it leaves undone.
REFUSED = {
    "no such server": ("set server app/nope state ready", "No such server."),
    "no such command": ("set nonsense app/s1", "no such command"),
    "half a command": ("set server app/s1 state", "expects 'ready', 'drain' and 'maint'"),
    "garbage": ("set weight app/s1 abc", "garbage"),
    "warning that is a failure": ("set server app/s1 addr nope", "Invalid addr 'nope'"),
    "half a success": ("set server app/s1 addr 127.0.0.9 port abc", "problem converting port"),
    "no such map": ("add map /nope k v", "Unknown map identifier"),
    "read": ("show table nope", "No such table"),
    "read of a crt-list": ("show ssl crt-list nope", "didn't find the specified filename"),
    "read of a key": ("show tls-keys nope", "unable to locate"),
    "read of a resolver": ("show resolvers nope", "Can't find that resolvers section"),
    "read without a number": ("show sess 0x1", "Session not found."),
    "restricted": ("debug dev log hello", "restricted to expert mode"),
}


@cells(REFUSED)
def test_a_refusal_fails_and_stops(
    start_haproxy: Start, relay: MakeRelay, case: str, version: str, kind: str
) -> None:
    hap = start_haproxy(BACKEND)
    wire = relay(hap, kind)
    command, words = REFUSED[case]
    if case == "restricted" and version == "2.2":
        words = "no such command"
    result = run(wire, ["disable server app/s1", command, "set weight app/s1 3"])
    assert result["failed"] is True
    assert result["changed"] is True
    assert result["commands"] == ["disable server app/s1"]
    assert command in result["msg"]
    assert words in result["msg"]
    assert "\n" not in result["msg"]
    assert "of 3 commands 1 were carried out there, 1 were not sent" in result["msg"]
    assert [item["command"] for item in result["refused"]] == [command]
    assert result["not_sent"] == ["set weight app/s1 3"]
    assert [reply["command"] for reply in result["replies"]] == ["disable server app/s1", command]
    assert "set weight app/s1 3" not in wire.commands()
    assert hap.state("app", "s1") == "maint"
    assert hap.weight("app", "s1") == 10


# HAProxy 2.2 ignores what it does not know there.
@pytest.mark.parametrize("version", [v for v in VERSIONS if at_least(v, "3.2")])
@pytest.mark.parametrize("kind", ["unix", "master"])
@pytest.mark.parametrize(
    "command", ["show profiling bogus", "show pools bogus", "show sess bogus", "show dev x"]
)
def test_a_read_that_is_refused_fails_at_every_socket(
    start_haproxy: Start, relay: MakeRelay, command: str, version: str, kind: str
) -> None:
    wire = relay(start_haproxy(BACKEND), kind)
    result = run(wire, command)
    assert result["failed"] is True
    assert command in result["msg"]


def test_a_time_that_would_end_haproxy_is_refused(start_haproxy: Start, version: str) -> None:
    hap = start_haproxy(BACKEND)
    for command in ("wait 30d srv-removable app/s1", "set timeout cli 3000000"):
        assert "longer than 20 days" in run(hap.admin, ["disable server app/s1", command])["msg"]
    assert not run(hap.admin, "set timeout cli 20d").get("failed")
    assert hap.state("app", "s1") == "ready"


def test_a_refused_change_is_none(start_haproxy: Start, version: str) -> None:
    hap = start_haproxy(BACKEND)
    result = run(hap.admin, "disable server app/nope")
    assert result["failed"] is True
    assert result["changed"] is False
    assert result["commands"] == []


def test_a_certificate_that_cannot_be_committed_fails(
    start_haproxy: Start, version: str, short_path: Path
) -> None:
    """HAProxy prints `Committing …` before it knows; the end of the reply counts."""
    hap = start_haproxy(BACKEND)
    name = str(short_path / "none.pem")
    result = run(hap.admin, [f"new ssl cert {name}", f"commit ssl cert {name}"])
    assert result["failed"] is True
    assert result["commands"] == [f"new ssl cert {name}"]
    assert "No ongoing transaction" in result["msg"]


# Input that never reaches HAProxy.
HOSTILE: dict[str, t.Any] = {
    "semicolon": "show info;disable server app/s1",
    "newline": "show info\ndisable server app/s1",
    "carriage return": "show info\rdisable server app/s1",
    "nul": "show info\0disable server app/s1",
    "final backslash": "show info \\",
    "payload in the line": "add map #0 <<",
    "half escaped payload": r"add map #0 \<<",
    "named payload": "add map #0 <<EOF",
    "escaped backslash": r"add map #0 k a\\;disable server app/s1",
    "empty line in a payload": {"command": "add map #0", "payload": "k v\n\ndisable server app/s1"},
    "empty payload": {"command": "add map #0", "payload": ""},
    "nul in a payload": {"command": "add map #0", "payload": "k v\0x"},
    "empty": "",
    "blank": " \t",
    "too long": "show info " + "x" * 5000,
    "no command": {"payload": "x"},
    "unknown key": {"command": "show info", "more": 1},
    "number": 5,
    "nothing": None,
    "prompt": "prompt",
    "quit": "quit",
    "prefix": "@1 show info",
    "prefix of a process": "@!123 show info",
    "severity": "set severity-output none",
    "mode": "expert-mode on",
    "other mode": "experimental-mode on",
    # A connection's timeout beyond 2^31 milliseconds makes HAProxy 3.0 and later abort.
    "wait that kills": "wait 30d",
    "timeout that kills": "set timeout cli 3000000",
    "endless": "show events buf0 -w",
    "endless from now": "show events buf0 -nw",
    "escaped prompt": r"pro\mpt",
}


# The module's own refusal is the same for every version.
@pytest.mark.parametrize("version", sorted({VERSIONS[0], VERSIONS[-1]}))
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_input_is_refused_before_anything_is_sent(
    start_haproxy: Start, relay: MakeRelay, case: str, version: str
) -> None:
    hap = start_haproxy(BACKEND)
    wire = relay(hap)
    result = run(wire, ["disable server app/s1", HOSTILE[case]])
    assert result["failed"] is True
    assert "\n" not in result["msg"]
    assert result["changed"] is False
    assert wire.commands() == []
    assert hap.state("app", "s1") == "ready"


def test_a_payload_that_is_too_long_is_refused_before_anything_is_sent(
    start_haproxy: Start, short_path: Path, version: str
) -> None:
    hap = with_map(start_haproxy, short_path)
    lines = "".join(f"key{number} {'v' * 90}\n" for number in range(1300))
    long = {"command": "add map #0", "payload": lines}
    result = run(hap.admin, ["add map #0 k v", long])
    assert result["failed"] is True
    assert "split it" in result["msg"]
    assert "key" not in hap.ask("show map #0")
    fitting = {"command": "add map #0", "payload": "".join(lines.splitlines(True)[:140])}
    assert not run(hap.admin, fitting).get("failed")
    assert hap.ask("show map #0").count(" key") == 140


def test_an_empty_list_is_refused() -> None:
    assert "list is empty" in run("/nowhere", [])["msg"]


def test_a_private_key_in_a_payload_needs_no_log(start_haproxy: Start, version: str) -> None:
    hap = start_haproxy(BACKEND)
    begin, end = "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"
    command = {"command": "set ssl cert x.pem", "payload": f"{begin}\nabc\n{end}\n"}
    result = run(hap.admin, [command])
    assert result["failed"] is True
    assert "no_log: true" in result["msg"]
    assert "haproxy_certificate" in result["msg"]
    hidden = run_module(
        MODULE, {"socket": str(hap.admin), "commands": [command], "_ansible_no_log": True}
    )
    # It got as far as HAProxy, which has no such certificate, and nothing shows the key.
    assert hidden["refused"][0]["command"] == "set ssl cert x.pem <<(3 lines)"
    assert "abc" not in str({k: v for k, v in hidden.items() if k != "invocation"})


def test_the_level_is_checked_before_anything_is_sent(start_haproxy: Start, version: str) -> None:
    hap = start_haproxy(BACKEND)
    operator = hap.directory / "operator.sock"
    for check in (True, False):
        result = run(hap.user, ["show info", "set server app/s1 state drain"], check=check)
        assert result["failed"] is True
        assert "level user" in result["msg"]
        assert "level admin" in result["msg"]
        assert "replies" not in result
    assert run(operator, "set weight app/s1 3")["level"] == "operator"
    assert not run(hap.user, ["show stat", "show servers state"]).get("failed")
    assert not run(operator, ["show sess", "show errors", "clear counters"]).get("failed")
    assert hap.state("app", "s1") == "ready"


def test_what_a_user_clears_is_no_success(start_haproxy: Start, version: str) -> None:
    """HAProxy up to 3.0 answers `clear table` of a user like a success, and clears nothing."""
    hap = start_haproxy(BACKEND)
    hap.ask("set table app key 192.0.2.1 data.gpc0 1")
    result = run(hap.user, "clear table app")
    assert result["failed"] is True
    assert result["changed"] is False
    assert "192.0.2.1" in hap.ask("show table app")


def test_what_a_user_does_not_see_is_no_success(start_haproxy: Start, version: str) -> None:
    hap = start_haproxy(BACKEND)
    result = run(hap.user, "show table app")
    assert result["failed"] is True
    assert "insufficient privileges" in result["msg"]


def test_modes(start_haproxy: Start, version: str) -> None:
    hap = start_haproxy(BACKEND)
    command = "set var proc.x int(3)"
    result = run_module(
        MODULE, {"socket": str(hap.admin), "commands": command, "experimental_mode": True}
    )
    if version == "2.2":
        assert "experimental_mode exists since HAProxy 2.4" in result["msg"]
        return
    assert not result.get("failed"), result
    assert "value=<3>" in hap.ask("get var proc.x")
    # Only when asked, and not kept for others.
    assert "restricted to experimental mode" in run(hap.admin, command)["msg"]


def test_expert_mode(start_haproxy: Start, version: str) -> None:
    hap = start_haproxy(BACKEND)
    args = {"socket": str(hap.admin), "commands": "debug dev log hello", "expert_mode": True}
    result = run_module(MODULE, args)
    assert not result.get("failed"), result
    assert result["commands"] == ["debug dev log hello"]
    denied = run_module(MODULE, {**args, "socket": str(hap.user), "commands": "show info"})
    assert "level admin" in denied["msg"]


def test_the_conversation_may_be_changed(start_haproxy: Start, version: str) -> None:
    hap = start_haproxy(BACKEND)
    commands = ["set timeout cli 20", "operator", "show cli level", "user", "show cli level"]
    result = run(hap.admin, commands)
    assert not result.get("failed"), result
    assert result["changed"] is False
    assert [reply["reply"] for reply in result["replies"]] == ["", "", "operator", "", "user"]
    if at_least(version, "3.0"):
        shown = run(hap.admin, ["set anon on 7", "show servers state"])["replies"][1]["reply"]
        assert " s1 " not in shown


def test_wait_gets_the_time_that_it_asks_for(start_haproxy: Start, version: str) -> None:
    hap = start_haproxy(BACKEND)
    args = {"socket": str(hap.admin), "timeout": 0.2}
    began = time.monotonic()
    result = run_module(MODULE, {**args, "commands": ["wait 500ms"]})
    took = time.monotonic() - began
    if not at_least(version, "3.0"):
        assert "no such command" in result["msg"]
        return
    assert not result.get("failed"), result
    assert result["changed"] is False
    assert took >= 0.5
    assert result["replies"][0]["reply"] == "Done."
    check = run_module(MODULE, {**args, "commands": ["wait 1h"]}, check=True)
    assert check["changed"] is False
    assert check["replies"][0]["sent"] is False
    failed = run_module(MODULE, {**args, "commands": ["wait 50 srv-removable app/s1"]})
    assert failed["failed"] is True
    removed = run_module(
        MODULE, {**args, "commands": ["wait 1s srv-removable app/s2", "del server app/s2"]}
    )
    assert removed["commands"] == ["del server app/s2"]
    assert "s2" not in hap.ask("show servers state")


def test_several_sockets_in_their_order(start_haproxy: Start, version: str) -> None:
    one, two = start_haproxy(BACKEND), start_haproxy(BACKEND.replace("server s2", "server x2"))
    sockets = [str(one.admin), str(two.admin)]
    done = run_module(MODULE, {"socket": sockets, "commands": "disable server app/s1"})
    assert [reply["socket"] for reply in done["replies"]] == sockets
    assert one.state("app", "s1") == two.state("app", "s1") == "maint"
    failed = run_module(MODULE, {"socket": sockets, "commands": "set weight app/s2 3"})
    assert failed["failed"] is True
    assert failed["changed"] is True
    assert failed["commands"] == ["set weight app/s2 3"]
    assert str(two.admin) in failed["msg"]
    assert one.weight("app", "s2") == 3
    # Nothing at all where one of the sockets cannot take it.
    level = run_module(
        MODULE, {"socket": [str(one.admin), str(two.user)], "commands": "enable server app/s1"}
    )
    assert level["failed"] is True
    assert one.state("app", "s1") == "maint"


@WITH_WAIT
def test_a_socket_that_waited_is_asked_anew(start_haproxy: Start, version: str) -> None:
    """The second HAProxy closes its idle connection while the first one is busy."""
    one, two = start_haproxy(BACKEND), start_haproxy(BACKEND + SHORT)
    assert "timeout 300ms" in (two.directory / "haproxy.cfg").read_text()
    sockets = [str(one.admin), str(two.admin)]
    done = run_module(
        MODULE, {"socket": sockets, "commands": ["wait 600", "disable server app/s1"]}
    )
    assert not done.get("failed"), done
    assert two.state("app", "s1") == "maint"


@WITH_WAIT
def test_haproxy_that_goes_away_is_told(start_haproxy: Start, version: str) -> None:
    hap = start_haproxy(BACKEND)
    killer = threading.Timer(0.4, hap.process.kill)
    killer.start()
    result = run(hap.admin, ["disable server app/s1", "wait 5s", "enable server app/s1"])
    killer.join()
    assert result["failed"] is True
    assert result["commands"] == ["disable server app/s1"]
    assert result["unknown"] == []
    assert result["not_sent"] == ["enable server app/s1"]
    assert "closed the connection" in result["msg"]


@WITH_WAIT
def test_a_process_that_is_being_stopped_is_told(
    start_haproxy: Start, short_path: Path, version: str
) -> None:
    """It still takes commands, which are lost with it."""
    hap = with_map(start_haproxy, short_path)
    stopper = threading.Timer(0.2, hap.process.send_signal, [signal.SIGUSR1])
    stopper.start()
    result = run(hap.admin, ["wait 500", "add map #0 k v"])
    stopper.join()
    assert result["failed"] is True
    assert "was reloaded or is being stopped" in result["msg"]
    assert result["changed"] is True
    assert result["commands"] == ["add map #0 k v"]


# --- through the master process, where replies carry no severity ------------------------------

THROUGH_MASTER = {
    "set server": ("set server app/s1 state drain", None),
    "address": ("set server app/s1 addr 127.0.0.7", None),
    "notice": ("enable frontend front", None),
    "certificate": ("new ssl cert x.pem", None),
    "no such server": ("set server app/nope state drain", "No such server."),
    "invalid address": ("set server app/s1 addr nope", "Invalid addr"),
    "no such command": ("set nonsense", "no such command"),
    "garbage": ("set weight app/s1 abc", "garbage"),
    "commit": ("commit ssl cert y.pem", "No ongoing transaction"),
    "no such table": ("show table nope", "No such table"),
}


@pytest.mark.parametrize("case", THROUGH_MASTER)
def test_through_the_master_process(start_haproxy: Start, case: str, version: str) -> None:
    hap = start_haproxy(BACKEND, master=True)
    command, words = THROUGH_MASTER[case]
    result = run(f"master://{hap.master}", command)
    if words is None:
        assert not result.get("failed"), result
        assert result["commands"] == [command]
    else:
        assert result["failed"] is True
        assert words in result["msg"]
        assert result["changed"] is False


def test_what_the_master_process_does_not_take(start_haproxy: Start, version: str) -> None:
    hap = start_haproxy(BACKEND, master=True)
    where = f"master://{hap.master}"
    for command in ("wait 1s", "operator", "set timeout cli 5", "@1 show info", "@master reload"):
        result = run(where, command)
        assert result["failed"] is True, command
        assert "master" in result["msg"]
    modes = {"socket": where, "commands": "show info", "expert_mode": True}
    assert "worker's own socket" in run_module(MODULE, modes)["msg"]


# --- the examples ----------------------------------------------------------------------------


def test_the_documented_examples(start_haproxy: Start, version: str, short_path: Path) -> None:
    from ansible_collections.clearproxy.haproxy.plugins.modules import haproxy_command

    path = short_path / "hosts.map"
    path.write_text("")
    config = BACKEND.replace("server s1", "server web1") + MAP.format(path=path)
    hap = start_haproxy(config)
    text = haproxy_command.EXAMPLES.replace("/etc/haproxy/hosts.map", str(path))
    tried = 0
    for task in yaml.safe_load(text):
        args = task.get("clearproxy.haproxy.haproxy_command")
        if args is None:
            continue
        tried += 1
        args["socket"] = str(hap.admin)
        result = run_module(MODULE, args)
        old = {"wait 10s": "3.0", "set anon": "3.0", "set var": "2.4"}
        since = [old[key] for key in old if key in str(args)]
        if since and not at_least(version, since[0]):
            assert result["failed"] is True
        else:
            assert not result.get("failed"), (task["name"], result["msg"])
    assert tried >= 7
    assert " c.example two words\n" in hap.ask(f"show map {path}")
