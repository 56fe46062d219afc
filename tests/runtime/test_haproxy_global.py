# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_global against real HAProxy processes: what it does, and what it sends."""

from __future__ import annotations

import contextlib
import csv
import io
import socket
import time
import typing as t

import pytest
from harness import Haproxy, Relay, cells, four_steps, run_module

Start = t.Callable[..., Haproxy]
MakeRelay = t.Callable[..., Relay]

APP = "backend app\n    http-request return status 200\n"
FIELDS = {
    "maxconn": "Maxconn",
    "rate_limit_connections": "ConnRateLimit",
    "rate_limit_sessions": "SessRateLimit",
    "rate_limit_ssl_sessions": "SslRateLimit",
    "rate_limit_http_compression": "CompressBpsRateLim",
}


def run(hap: Haproxy, args: dict[str, t.Any], *, check: bool = False) -> dict[str, t.Any]:
    return run_module("haproxy_global", {"socket": str(hap.admin), **args}, check=check)


def info(hap: Haproxy, name: str) -> str:
    for line in hap.ask("show info").splitlines():
        if line.startswith(f"{name}: "):
            return line.partition(": ")[2]
    raise AssertionError(name)


def profiling(hap: Haproxy) -> str:
    return hap.ask("show profiling status").splitlines()[0].partition(": ")[2].split()[0]


# --- check, do, check, do for each option ---------------------------------------------------

CASES: dict[str, tuple[list[str], dict[str, t.Any], list[str], dict[str, str]]] = {
    # name: (commands that prepare, arguments, commands expected, what `show info` tells then)
    "maxconn": ([], {"maxconn": 100}, ["set maxconn global 100"], {"Maxconn": "100"}),
    "maxconn restored": (
        ["set maxconn global 50"],
        {"maxconn": 0},
        ["set maxconn global 0"],
        {"Maxconn": "200"},
    ),
    "maxconn raised to the most": (
        ["set maxconn global 50"],
        {"maxconn": 200},
        ["set maxconn global 200"],
        {"Maxconn": "200"},
    ),
    "connections": (
        [],
        {"rate_limit_connections": 2147483647},
        ["set rate-limit connections global 2147483647"],
        {"ConnRateLimit": "2147483647"},
    ),
    "sessions": (
        [],
        {"rate_limit_sessions": 8},
        ["set rate-limit sessions global 8"],
        {"SessRateLimit": "8"},
    ),
    "no limit of sessions": (
        ["set rate-limit sessions global 5"],
        {"rate_limit_sessions": 0},
        ["set rate-limit sessions global 0"],
        {"SessRateLimit": "0"},
    ),
    "ssl sessions": (
        [],
        {"rate_limit_ssl_sessions": 9},
        ["set rate-limit ssl-sessions global 9"],
        {"SslRateLimit": "9"},
    ),
    "compression in kilobytes": (
        [],
        {"rate_limit_http_compression": 10},
        ["set rate-limit http-compression global 10"],
        {"CompressBpsRateLim": "10240"},
    ),
    "as much compression as fits": (
        [],
        {"rate_limit_http_compression": 4194303},
        ["set rate-limit http-compression global 4194303"],
        {"CompressBpsRateLim": "4294966272"},
    ),
    "tasks": (
        ["set profiling tasks auto"],
        {"profiling_tasks": "on"},
        ["set profiling tasks on"],
        {},
    ),
    "tasks, as YAML reads it": (
        ["set profiling tasks on"],
        {"profiling_tasks": False},
        ["set profiling tasks off"],
        {},
    ),
    "tasks automatically": (
        ["set profiling tasks off"],
        {"profiling_tasks": "auto"},
        ["set profiling tasks auto"],
        {},
    ),
    "several, some there already": (
        ["set rate-limit sessions global 5"],
        {"rate_limit_sessions": 5, "rate_limit_connections": 7, "maxconn": 150},
        ["set maxconn global 150", "set rate-limit connections global 7"],
        {"Maxconn": "150", "ConnRateLimit": "7", "SessRateLimit": "5"},
    ),
}


@cells(CASES)
def test_check_do_check_do(
    start_haproxy: Start, relay: MakeRelay, case: str, version: str, kind: str
) -> None:
    prepare, args, expected, told = CASES[case]
    hap = start_haproxy(APP)
    for command in prepare:
        assert hap.ask(command).strip() == ""
    before = {name: info(hap, name) for name in FIELDS.values()}
    wire = relay(hap, kind)
    check, done = four_steps("haproxy_global", args, wire, commands=expected)
    assert done["processes"] == check["processes"]
    (process,) = done["processes"]
    assert (process["socket"], process["hard_maxconn"]) == (wire.address, 200)
    assert {name: info(hap, name) for name in FIELDS.values()} == {**before, **told}
    for option, name in FIELDS.items():
        unit = 1024 if name == "CompressBpsRateLim" else 1
        assert process[option] * unit == int(info(hap, name))
    if "profiling_tasks" in args:
        # 2.6 and later add what `auto` does at the moment.
        assert profiling(hap).partition("-")[0] == process["profiling_tasks"]
        assert expected == [f"set profiling tasks {process['profiling_tasks']}"]


ALWAYS = {"max": "clear counters", "all": "clear counters all"}


@cells(ALWAYS)
def test_clear_counters(
    start_haproxy: Start, relay: MakeRelay, case: str, version: str, kind: str
) -> None:
    """An order: carried out every time."""
    hap = start_haproxy(APP)
    with socket.create_connection(("127.0.0.1", hap.port), timeout=5) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert sessions(hap) == (1, 1)
    _check, done = four_steps(
        "haproxy_global",
        {"clear_counters": case},
        relay(hap, kind),
        commands=[ALWAYS[case]],
        always=True,
    )
    assert done["diff"] == {"before": {}, "after": {}}
    assert sessions(hap) == ((1, 0) if case == "max" else (0, 0))


def sessions(hap: Haproxy) -> tuple[int, int]:
    """How many sessions the frontend has had, and how many at once at most."""
    for row in csv.DictReader(io.StringIO(hap.ask("show stat -1 1 -1")[2:])):
        if row["pxname"] == "front":
            return int(row["stot"]), int(row["smax"])
    raise AssertionError("no frontend")


def test_reads_only_what_it_needs(start_haproxy: Start, relay: MakeRelay) -> None:
    wire = relay(start_haproxy(APP))
    args = {"socket": wire.address, "maxconn": 200, "profiling_tasks": "auto"}
    run_module("haproxy_global", args)
    wire.commands()
    assert run_module("haproxy_global", args)["changed"] is False
    assert wire.commands() == ["prompt", "show cli level", "show info", "show profiling status"]


# --- what clients notice --------------------------------------------------------------------


def test_the_limits_hold(start_haproxy: Start) -> None:
    hap = start_haproxy(APP)
    run(hap, {"maxconn": 1})
    with contextlib.ExitStack() as stack:
        found = []
        for _number in range(2):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", hap.port), 5))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            found.append(sock)
        assert found[0].recv(100).startswith(b"HTTP/1.1 200")
        found[1].settimeout(0.3)
        with pytest.raises(TimeoutError):
            found[1].recv(100)
        # Those that wait are let in; no version minds, unlike with a frontend's limit.
        assert run(hap, {"maxconn": 0})["changed"] is True
        found[1].settimeout(5)
        assert found[1].recv(100).startswith(b"HTTP/1.1 200")
    run(hap, {"rate_limit_sessions": 4})
    began = time.monotonic()
    for _number in range(7):
        with socket.create_connection(("127.0.0.1", hap.port), 5) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
    assert time.monotonic() - began > 0.3
    assert hap.process.poll() is None


# --- refusals -------------------------------------------------------------------------------

WRONG = [
    (name, value)
    for name in FIELDS
    for value in (-1, 2147483648, 4294967296, True, False, "abc", "", "5; clear counters all")
]


def test_numbers_are_checked_here(start_haproxy: Start, relay: MakeRelay) -> None:
    """HAProxy would take garbage for 0, and 4294967296 too."""
    hap = start_haproxy(APP)
    wire = relay(hap)
    for name, value in [*WRONG, ("rate_limit_http_compression", 4194304)]:
        result = run_module("haproxy_global", {"socket": wire.address, name: value})
        assert result["failed"] is True, (name, value)
        assert name in result["msg"]
        assert "\n" not in result["msg"]
    assert wire.commands() == []
    # The reason:
    for text, taken in (("4294967296", "0"), ("7", "7"), ("abc", "0"), ("8", "8"), ("True", "0")):
        hap.ask(f"set rate-limit sessions global {text}")
        assert info(hap, "SessRateLimit") == taken
    hap.ask("set rate-limit http-compression global 4194304")
    assert info(hap, "CompressBpsRateLim") == "0"


def test_more_than_started_for(start_haproxy: Start, relay: MakeRelay) -> None:
    hap = start_haproxy(APP)
    wire = relay(hap)
    for check in (True, False):
        args = {"socket": wire.address, "maxconn": 201, "rate_limit_sessions": 5}
        result = run_module("haproxy_global", args, check=check)
        assert result["failed"] is True
        assert "was started for 200 connections" in result["msg"]
    assert wire.changes() == []
    assert hap.ask("set maxconn global 201").strip() == "Value out of range."


def test_memory(start_haproxy: Start, relay: MakeRelay, version: str) -> None:
    """No distribution's HAProxy can be switched on; one that is off is left alone."""
    hap = start_haproxy(APP)
    wire = relay(hap)
    args = {"socket": wire.address, "profiling_memory": "on", "maxconn": 100}
    check = run_module("haproxy_global", args, check=True)
    result = run_module("haproxy_global", args)
    assert result["failed"] is check["failed"] is True
    assert result["msg"] == check["msg"]
    assert wire.changes() == []
    assert info(hap, "Maxconn") == "200"
    off = run_module("haproxy_global", {"socket": wire.address, "profiling_memory": "off"})
    if version == "2.2":
        for one in (result, off):
            assert "'set profiling memory' exists since HAProxy 2.4" in one["msg"]
            assert (one["version"], one["since"]) == ("2.2", "2.4")
        return
    assert "was built without USE_MEMORY_PROFILING=1" in result["msg"]
    assert hap.ask("set profiling memory on").strip() == "Memory profiling not compiled in."
    assert (off.get("failed"), off["changed"]) == (None, False)
    assert off["processes"][0]["profiling_memory"] == "off"


@pytest.mark.parametrize("level", ["user", "operator"])
def test_level(start_haproxy: Start, level: str) -> None:
    hap = start_haproxy(APP)
    args = {"socket": str(hap.directory / f"{level}.sock"), "rate_limit_sessions": 5}
    result = run_module("haproxy_global", args)
    assert result["failed"] is True
    assert f"has level {level}, but this needs level admin" in result["msg"]
    assert info(hap, "SessRateLimit") == "0"


def test_an_operator_may_not_read_it(start_haproxy: Start, version: str) -> None:
    """The reason why the highest values, which an operator may clear, need an admin here."""
    operator = start_haproxy(APP).directory / "operator.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(operator))
        sock.sendall(b"show profiling status; clear counters\n")
        reply = b""
        while part := sock.recv(4096):
            reply += part
    assert reply.count(b"Permission denied") == (0 if version == "2.2" else 1)
    result = run_module("haproxy_global", {"socket": str(operator), "clear_counters": "max"})
    assert "has level operator, but this needs level admin" in result["msg"]


def test_several_sockets(start_haproxy: Start) -> None:
    one, two = start_haproxy(APP), start_haproxy(APP)
    two.ask("set maxconn global 20")
    # Everything is checked at both before anything is sent to one.
    failed = run(one, {"socket": [str(one.admin), str(two.user)], "maxconn": 100})
    assert failed["failed"] is True
    assert str(two.user) in failed["msg"]
    assert info(one, "Maxconn") == "200"
    both = [str(one.admin), str(two.admin)]
    done = run(one, {"socket": both, "maxconn": 10})
    assert done["commands"] == ["set maxconn global 10"] * 2
    assert [(row["socket"], row["maxconn"]) for row in done["processes"]] == [
        (both[0], 10),
        (both[1], 10),
    ]
    assert done["diff"]["before"] == {both[0]: {"maxconn": 200}, both[1]: {"maxconn": 20}}
    assert (info(one, "Maxconn"), info(two, "Maxconn")) == ("10", "10")
    assert run(one, {"socket": both, "maxconn": 10})["changed"] is False


def test_nothing_wanted_tells_what_there_is(start_haproxy: Start) -> None:
    result = run(start_haproxy(APP), {})
    assert result["changed"] is False
    assert result["processes"][0]["maxconn"] == 200
