# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_frontend against real HAProxy processes: what it does, and what it sends."""

from __future__ import annotations

import contextlib
import csv
import io
import socket
import time
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import VERSIONS, Haproxy, Relay, cells, four_steps, run_module

Start = t.Callable[..., Haproxy]
MakeRelay = t.Callable[..., Relay]


def frontend(hap: Haproxy, args: dict[str, t.Any], *, check: bool = False) -> dict[str, t.Any]:
    return run_module("haproxy_frontend", {"socket": str(hap.admin), **args}, check=check)


def row(hap: Haproxy, name: str) -> dict[str, str] | None:
    """The FRONTEND row of `show stat`, read by a client that shares no code with the module's."""
    text = hap.ask("show stat -1 1 -1")
    for found in csv.DictReader(io.StringIO(text[2:])):
        if (found["pxname"], found["svname"]) == (name, "FRONTEND"):
            return t.cast("dict[str, str]", found)
    return None


def status(hap: Haproxy, name: str) -> str | None:
    found = row(hap, name)
    return None if found is None else found["status"]


def limit(hap: Haproxy, name: str) -> int:
    found = row(hap, name)
    assert found is not None
    return int(found["slim"])


def paused(hap: Haproxy) -> str:
    return "STOP" if hap.version == "2.2" else "PAUSED"


@pytest.fixture
def start(start_haproxy: Start, short_path: Path, version: str) -> t.Callable[[], Haproxy]:
    """Frontends of all kinds: `front` of the harness, and those whose names mislead."""

    def begin() -> Haproxy:
        # 3.3 and later refuse two proxies of one name.
        backend = "app" if version == "3.4" else "web"
        return start_haproxy(
            f"frontend web\n    bind unix@{short_path}/web.sock\n    default_backend {backend}\n"
            f"frontend 2\n    bind unix@{short_path}/2.sock\n    default_backend app\n"
            f"frontend off\n    disabled\n    bind unix@{short_path}/off.sock\n"
            f"listen both\n    bind unix@{short_path}/both.sock\n    server s1 127.0.0.1:1\n"
            "backend app\n    http-request return status 200\n"
            + ("" if version == "3.4" else "backend web\n    server s1 127.0.0.1:1\n")
        )

    return begin


@contextlib.contextmanager
def clients(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connections with a request each, however many of them HAProxy lets in."""
    with contextlib.ExitStack() as stack:
        found = []
        for number in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            sock.sendall(f"GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            found.append(sock)
        yield found


# --- check, do, check, do for each option ---------------------------------------------------

CASES: dict[str, tuple[list[str], dict[str, t.Any], list[str]]] = {
    # name: (commands that prepare, arguments, commands expected)
    "disabled": ([], {"frontends": "front", "state": "disabled"}, ["disable frontend front"]),
    "enabled": (
        ["disable frontend front"],
        {"frontend": ["front"], "state": "enabled"},
        ["enable frontend front"],
    ),
    "maxconn": ([], {"name": "front", "maxconn": 7}, ["set maxconn frontend front 7"]),
    "maxconn lowered": (
        ["set maxconn frontend front 100"],
        {"frontends": "front", "maxconn": "99"},
        ["set maxconn frontend front 99"],
    ),
    "maxconn 0 by force": (
        [],
        {"frontends": "front", "maxconn": 0, "force": True},
        ["set maxconn frontend front 0"],
    ),
    "enabled with a limit": (
        ["disable frontend front"],
        {"frontends": "front", "state": "enabled", "maxconn": 9},
        ["set maxconn frontend front 9", "enable frontend front"],
    ),
    "disabled with a limit": (
        [],
        {"frontends": "front", "state": "disabled", "maxconn": 9},
        ["disable frontend front", "set maxconn frontend front 9"],
    ),
    "listen section": (
        [],
        {"frontends": "both", "state": "disabled", "maxconn": 3},
        ["disable frontend both", "set maxconn frontend both 3"],
    ),
    "a backend of the same name": (
        [],
        {"frontends": "web", "state": "disabled", "maxconn": 3},
        ["disable frontend web", "set maxconn frontend web 3"],
    ),
    "a name like an id": (
        [],
        {"frontends": "2", "state": "disabled", "maxconn": 3},
        ["disable frontend 2", "set maxconn frontend 2 3"],
    ),
    "an id": (
        [],
        # The first proxy of the configuration.
        {"frontends": "#2", "state": "disabled"},
        ["disable frontend front"],
    ),
    "all": (
        ["disable frontend web"],
        {"frontends": "*", "state": "disabled"},
        [f"disable frontend {name}" for name in ("2", "both", "front")],
    ),
    "pattern": (
        [],
        {"frontends": ["[fw]*"], "maxconn": 5},
        ["set maxconn frontend front 5", "set maxconn frontend web 5"],
    ),
    "missing ignored": (
        [],
        {"frontends": ["front", "gone", "x*", "#99"], "maxconn": 5, "missing": "ignore"},
        ["set maxconn frontend front 5"],
    ),
    "shutdown": ([], {"frontends": "front", "state": "shutdown"}, ["shutdown frontend front"]),
    "shutdown of a listen section": (
        [],
        {"frontends": ["both", "front"], "state": "shutdown"},
        ["shutdown frontend both", "shutdown frontend front"],
    ),
    "shutdown of what is disabled": (
        ["disable frontend web"],
        {"frontends": ["web", "off"], "state": "shutdown"},
        ["shutdown frontend web"],
    ),
    "shutdown by id": (
        [],
        {"frontends": "#2", "state": "shutdown"},
        ["shutdown frontend front"],
    ),
}


@cells(CASES)
def test_check_do_check_do(
    start: t.Callable[[], Haproxy], relay: MakeRelay, case: str, version: str, kind: str
) -> None:
    prepare, args, expected = CASES[case]
    hap = start()
    for command in prepare:
        assert hap.ask(command).strip() == ""
    wire = relay(hap, kind)
    check, done = four_steps("haproxy_frontend", args, wire, commands=expected)
    assert [fe["name"] for fe in done["frontends"]] == [fe["name"] for fe in check["frontends"]]
    for fe, foreseen in zip(done["frontends"], check["frontends"]):
        assert fe["socket"] == wire.address
        assert (fe["state"], fe["maxconn"]) == (foreseen["state"], foreseen["maxconn"])
        if fe["state"] == "shutdown":
            unlisted = version == "2.2" or fe["name"] == "off"
            assert status(hap, fe["name"]) == (None if unlisted else "STOP")
        else:
            assert (
                status(hap, fe["name"]) == {"enabled": "OPEN", "disabled": paused(hap)}[fe["state"]]
            )
            assert limit(hap, fe["name"]) == fe["maxconn"]
    changed = {command.split()[-1] for command in expected if "maxconn" not in command}
    changed |= {command.split()[3] for command in expected if "maxconn" in command}
    untouched = {"front", "web", "2", "both"} - changed - {"web" if "web" in str(prepare) else ""}
    for name in untouched:
        assert (status(hap, name), limit(hap, name)) == ("OPEN", 200)


def test_shutdown_of_a_pattern(start: t.Callable[[], Haproxy]) -> None:
    """2.2 does not list them afterwards, and still the task ends well."""
    hap = start()
    args: dict[str, t.Any] = {"frontends": ["w*", "both"], "state": "shutdown"}
    for check in (True, False):
        refused = frontend(hap, args, check=check)
        assert refused["failed"] is True
        assert "force: true" in refused["msg"]
    assert status(hap, "web") == "OPEN"
    args["force"] = True
    done = frontend(hap, args)
    assert done["commands"] == ["shutdown frontend both", "shutdown frontend web"]
    assert [fe["state"] for fe in done["frontends"]] == ["shutdown", "shutdown"]
    again = frontend(hap, args)
    if hap.version == "2.2":
        assert "no frontend 'w*'" in again["msg"]
        again = frontend(hap, {**args, "missing": "ignore"})
    assert again.get("failed") is None, again
    assert again["changed"] is False


def test_reads_only_what_it_needs(start: t.Callable[[], Haproxy], relay: MakeRelay) -> None:
    wire = relay(start())
    args = {"socket": wire.address, "frontends": ["front", "#3", "w*"], "state": "enabled"}
    assert run_module("haproxy_frontend", args)["changed"] is False
    assert wire.commands() == ["prompt", "show cli level", "show info", "show stat -1 1 -1"]
    assert wire.connections == 1


# --- what clients notice --------------------------------------------------------------------


def test_what_clients_notice(start: t.Callable[[], Haproxy]) -> None:
    hap = start()
    with clients(hap.port, 1) as (old,):
        assert old.recv(100).startswith(b"HTTP/1.1 200")
        frontend(hap, {"frontends": "front", "state": "disabled"})
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", hap.port), timeout=2).close()
        # The port is given up, and another program may keep it.
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", hap.port))
            other.listen()
            failed = frontend(hap, {"frontends": "front", "state": "enabled"})
            assert "Failed to resume frontend" in failed["msg"]
            assert (failed["changed"], failed["commands"]) == (False, [])
        # What is open goes on.
        old.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert old.recv(100).startswith(b"HTTP/1.1 200")
        frontend(hap, {"frontends": "front", "state": "enabled"})
        with clients(hap.port, 1) as (new,):
            assert new.recv(100).startswith(b"HTTP/1.1 200")
        done = frontend(hap, {"frontends": "front", "state": "shutdown"})
        assert done["frontends"][0]["maxconn"] is None
        old.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert old.recv(100).startswith(b"HTTP/1.1 200")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", hap.port))
        other.listen()


def test_nobody_comes_in_at_zero(start: t.Callable[[], Haproxy]) -> None:
    hap = start()
    refused = frontend(hap, {"frontends": "front", "maxconn": 0})
    assert refused["failed"] is True
    assert "force: true" in refused["msg"]
    assert limit(hap, "front") == 200
    frontend(hap, {"frontends": "front", "maxconn": 0, "force": True})
    with clients(hap.port, 1) as (one,):
        one.settimeout(0.3)
        with pytest.raises(TimeoutError):
            one.recv(100)


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("maxconn", [-1, 2147483648, 4294967297, True, False, "abc", 1.5, ""])
def test_numbers_are_checked_here(
    start: t.Callable[[], Haproxy], relay: MakeRelay, maxconn: t.Any
) -> None:
    """HAProxy would take 4294967297 for 1 and abc for 0, and say nothing."""
    hap = start()
    wire = relay(hap)
    args = {"socket": wire.address, "frontends": "front", "maxconn": maxconn, "force": True}
    result = run_module("haproxy_frontend", args)
    assert result["failed"] is True
    assert "maxconn" in result["msg"]
    assert str(maxconn) in result["msg"]
    assert wire.commands() == []
    assert limit(hap, "front") == 200


def test_haproxy_does_not_check_numbers(start: t.Callable[[], Haproxy]) -> None:
    """The reason for the test above; and the highest value arrives unchanged."""
    hap = start()
    for text, taken in (("abc", 0), ("True", 0), ("4294967297", 1)):
        assert hap.ask(f"set maxconn frontend front {text}").strip() == ""
        assert limit(hap, "front") == taken
    done = frontend(hap, {"frontends": "front", "maxconn": 2147483647})
    assert done["changed"] is True
    assert limit(hap, "front") == 2147483647


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["front", "frnt"], "no frontend 'frnt'; there is front"),
        (["app"], "no frontend 'app'"),
        (["#99"], "no frontend '#99'"),
        (["x*"], "no frontend 'x*'"),
        (["front/s1"], "frontend 'front/s1'"),
        (["front maxconn"], "frontend 'front maxconn'"),
        (["front\nshutdown frontend web"], "frontend"),
        (["front;shutdown frontend web"], "frontend"),
        (["front\0"], "frontend"),
        (["<<"], "frontend"),
        (["f" * 5000], "no line may exceed"),
    ],
)
def test_names(
    start: t.Callable[[], Haproxy], relay: MakeRelay, names: list[str], words: str
) -> None:
    hap = start()
    wire = relay(hap)
    for state in ("disabled", "shutdown"):
        for check in (True, False):
            args = {"socket": wire.address, "frontends": names, "state": state, "force": True}
            result = run_module("haproxy_frontend", args, check=check)
            assert result["failed"] is True
            assert words in result["msg"]
            assert "\n" not in result["msg"]
            assert (result["changed"], result["commands"]) == (False, [])
    assert wire.changes() == []
    assert [status(hap, name) for name in ("front", "web", "both")] == ["OPEN"] * 3


@pytest.mark.parametrize("how", ["in the configuration", "at run time"])
def test_what_was_shut_down_cannot_be_changed(
    start: t.Callable[[], Haproxy], relay: MakeRelay, how: str
) -> None:
    hap = start()
    name = "off" if how == "in the configuration" else "front"
    if name == "front":
        hap.ask("shutdown frontend front")
    wire = relay(hap)
    args: dict[str, t.Any] = {"socket": wire.address, "frontends": [name, "web"]}
    for change in ({"state": "enabled"}, {"state": "disabled"}, {"maxconn": 5}):
        result = run_module("haproxy_frontend", {**args, **change})
        assert result["failed"] is True
        assert f"the frontend {name} " in result["msg"]
        assert "reload" in result["msg"]
    assert wire.changes() == []
    # Patterns mean those that can be changed.
    done = frontend(hap, {"frontends": "*", "maxconn": 5})
    assert name not in [fe["name"] for fe in done["frontends"]]
    assert len(done["commands"]) == len(done["frontends"])
    # Shut down it is already.
    assert frontend(hap, {"frontends": name, "state": "shutdown"})["changed"] is False


IDLE = "backend app\nfrontend idle\n    default_backend app\n"


def test_without_any_port_by_pattern(start_haproxy: Start, relay: MakeRelay, version: str) -> None:
    """There is nothing to close, and 2.6 and later say that this is done already."""
    hap = start_haproxy(IDLE)
    wire = relay(hap)
    args = {"socket": wire.address, "frontends": "*", "state": "disabled", "maxconn": 9}
    sent = ["disable frontend front", "set maxconn frontend front 9"]
    sent += ["disable frontend idle", "set maxconn frontend idle 9"]
    done = run_module("haproxy_frontend", args)
    assert done.get("failed") is None, done
    assert done.get("warnings") is None
    assert wire.changes() == sent
    bare = version != "2.2"
    assert done["commands"] == [one for one in sent if not (bare and one == sent[2])]
    found = {fe["name"]: (fe["state"], fe["maxconn"]) for fe in done["frontends"]}
    assert found == {"front": ("disabled", 9), "idle": ("enabled" if bare else "disabled", 9)}
    assert status(hap, "idle") == ("OPEN" if bare else "STOP")
    again = run_module("haproxy_frontend", args)
    assert (again.get("failed"), again["changed"], again["commands"]) == (None, False, [])
    assert again["diff"]["before"] == again["diff"]["after"]


@pytest.mark.parametrize("name", ["idle", "#3"])
def test_without_any_port_by_name(start_haproxy: Start, version: str, name: str) -> None:
    hap = start_haproxy(IDLE)
    number = (row(hap, "idle") or {})["iid"]
    names = ["front", "idle" if name == "idle" else f"#{number}"]
    result = frontend(hap, {"frontends": names, "state": "disabled"})
    if version == "2.2":
        assert len(result["commands"]) == 2
        return
    assert result["failed"] is True
    assert "the frontend idle at " in result["msg"]
    assert "no 'bind' line" in result["msg"]
    assert result["commands"] == ["disable frontend front"]
    assert result["changed"] is True
    # That it lets clients in is true, and to end it works.
    assert frontend(hap, {"frontends": names[1], "state": "enabled"})["changed"] is False
    assert frontend(hap, {"frontends": names[1], "state": "shutdown"})["changed"] is True


@pytest.mark.parametrize("state", ["disabled", "enabled"])
def test_somebody_was_faster(start: t.Callable[[], Haproxy], relay: MakeRelay, state: str) -> None:
    """The same HAProxy twice: when it is told the second time, all is done already."""
    hap = start()
    if state == "enabled":
        for name in ("front", "web"):
            hap.ask(f"disable frontend {name}")
    wire = relay(hap)
    args = {"socket": [str(hap.admin), wire.address], "frontends": ["front", "web"]}
    done = run_module("haproxy_frontend", {**args, "state": state})
    assert done.get("failed") is None, done
    commands = [f"{state[:-1]} frontend front", f"{state[:-1]} frontend web"]
    assert wire.changes() == commands
    # Counted once.
    assert done["commands"] == commands
    assert {fe["state"] for fe in done["frontends"]} == {state}
    assert status(hap, "web") == ("OPEN" if state == "enabled" else paused(hap))


def test_refused_behind_what_is_done_already(start_haproxy: Start, version: str) -> None:
    """All that was carried out is told, and nothing was sent behind the refusal."""
    hap = start_haproxy(IDLE.replace("idle", "a-idle") + "frontend z\n    default_backend app\n")
    hap.ask("disable frontend front")
    for name in ("a-idle", "z"):
        hap.ask(f"set maxconn frontend {name} 7")
    if version == "2.2":
        hap.ask("disable frontend z")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", hap.port))
        other.listen()
        args = {"frontends": "*", "state": "enabled", "maxconn": 9}
        result = frontend(hap, args)
    assert result["failed"] is True
    assert "refused 'enable frontend front': Failed to resume frontend" in result["msg"]
    done = ["set maxconn frontend a-idle 9", "set maxconn frontend front 9"]
    assert result["commands"] == done
    assert result["not_sent"][0] == "set maxconn frontend z 9"
    assert limit(hap, "z") == 7


ABSTRACT = [version for version in VERSIONS if version not in ("2.2", "2.6")]


@pytest.mark.parametrize("version", ABSTRACT)
def test_an_abstract_address_is_never_opened_again(
    start_haproxy: Start, version: str, short_path: Path
) -> None:
    """HAProxy 3.x says nothing and leaves it disabled; 2.6 ends when it is disabled."""
    hap = start_haproxy(
        f"frontend abs\n    bind abns@{short_path.name}\n    default_backend app\nbackend app\n"
    )
    assert frontend(hap, {"frontends": "abs", "state": "disabled"})["changed"] is True
    began = time.monotonic()
    result = frontend(hap, {"frontends": "abs", "state": "enabled"})
    assert time.monotonic() - began < 1
    assert result["failed"] is True
    assert "only a reload" in result["msg"]
    assert "abns@" in result["msg"]
    assert (result["commands"], result["changed"]) == (["enable frontend abs"], True)
    assert status(hap, "abs") == "PAUSED"


@pytest.mark.parametrize("level", ["user", "operator"])
def test_level(start: t.Callable[[], Haproxy], level: str) -> None:
    hap = start()
    args = {
        "socket": str(hap.directory / f"{level}.sock"),
        "frontends": "front",
        "state": "disabled",
    }
    result = run_module("haproxy_frontend", args)
    assert result["failed"] is True
    assert f"has level {level}, but this needs level admin" in result["msg"]
    assert status(hap, "front") == "OPEN"


def test_several_sockets(start: t.Callable[[], Haproxy], start_haproxy: Start) -> None:
    one, two = start(), start_haproxy("backend app\n")
    both = [str(one.admin), str(two.admin)]
    # `web` is known to the first only, and nothing is done there either.
    failed = frontend(one, {"socket": both, "frontends": ["front", "web"], "state": "disabled"})
    assert failed["failed"] is True
    assert str(two.admin) in failed["msg"]
    assert status(one, "front") == "OPEN"
    args = {"socket": both, "frontends": "front", "state": "disabled"}
    done = frontend(one, args)
    assert done["commands"] == ["disable frontend front"] * 2
    assert [fe["socket"] for fe in done["frontends"]] == both
    assert status(one, "front") == status(two, "front") == paused(one)
    assert frontend(one, args)["changed"] is False


# --- the release that aborts ----------------------------------------------------------------

FULL = "frontend full\n    maxconn 2\n"
HELD = "frontend full\n    rate-limit sessions 2\n"
LOCKING = [version for version in VERSIONS if version == "2.6"]
OTHERS = [version for version in VERSIONS if version != "2.6"]


@pytest.fixture
def busy(start_haproxy: Start, closed_port: int) -> t.Callable[[str], tuple[Haproxy, int]]:
    """A frontend with more clients than it lets in."""

    def begin(section: str) -> tuple[Haproxy, int]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        hap = start_haproxy(
            f"{section}    bind 127.0.0.1:{port}\n    default_backend app\n"
            "backend app\n    http-request return status 200\n"
        )
        return hap, port

    return begin


def until_full(hap: Haproxy) -> None:
    hap.until(lambda: int((row(hap, "full") or {})["scur"]) >= 2)


@pytest.mark.parametrize("version", LOCKING)
@pytest.mark.parametrize(("section", "maxconn"), [(FULL, 5), (HELD, 300), (HELD, 100)])
def test_the_deadlock_of_2_6_is_not_provoked(
    busy: t.Callable[[str], tuple[Haproxy, int]], relay: MakeRelay, section: str, maxconn: int
) -> None:
    hap, port = busy(section)
    with clients(port, 4):
        until_full(hap)
        wire = relay(hap)
        args = {"socket": wire.address, "frontends": "full", "maxconn": maxconn}
        for check in (True, False):
            result = run_module("haproxy_frontend", args, check=check)
            assert result["failed"] is True
            assert "lock up and abort" in result["msg"]
            assert "state: disabled" in result["msg"]
        assert wire.changes() == []
        assert hap.process.poll() is None
        # The remedy that the message names.
        done = frontend(hap, {"frontends": "full", "state": "disabled", "maxconn": maxconn})
        assert done.get("failed") is None, done
        done = frontend(hap, {"frontends": "full", "state": "enabled"})
        assert (status(hap, "full"), limit(hap, "full")) == ("OPEN", maxconn)
    with clients(port, 1) as (new,):
        assert new.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("version", LOCKING)
@pytest.mark.parametrize("section", [FULL, HELD])
def test_the_deadlock_of_2_6_is_real(
    busy: t.Callable[[str], tuple[Haproxy, int]], section: str
) -> None:
    """What the module refuses ends the whole process; if not, the refusal has to go."""
    hap, port = busy(section)
    with clients(port, 4):
        until_full(hap)
        # The reply may or may not get out before the lock; HAProxy's watchdog counts processor time.
        with contextlib.suppress(OSError):
            assert hap.ask("set maxconn frontend full 150").strip() == ""
        assert hap.process.wait(60) == -6


@pytest.mark.parametrize("version", OTHERS)
@pytest.mark.parametrize("section", [FULL, HELD])
def test_others_let_the_waiting_in(
    busy: t.Callable[[str], tuple[Haproxy, int]], section: str
) -> None:
    hap, port = busy(section)
    with clients(port, 4) as found:
        until_full(hap)
        done = frontend(hap, {"frontends": "full", "maxconn": 150})
        assert done["commands"] == ["set maxconn frontend full 150"]
        for sock in found if section == FULL else found[:1]:
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
    assert hap.process.poll() is None


@pytest.mark.parametrize("version", LOCKING)
def test_what_is_safe_in_2_6_is_done(busy: t.Callable[[str], tuple[Haproxy, int]]) -> None:
    """Lowering a full frontend, and raising one that has places left."""
    hap, port = busy(FULL)
    with clients(port, 1):
        time.sleep(0.05)
        assert frontend(hap, {"frontends": "full", "maxconn": 3})["changed"] is True
    with clients(port, 5):
        hap.until(lambda: int((row(hap, "full") or {})["scur"]) >= 3)
        assert frontend(hap, {"frontends": "full", "maxconn": 2})["changed"] is True
    assert limit(hap, "full") == 2
    assert hap.process.poll() is None
