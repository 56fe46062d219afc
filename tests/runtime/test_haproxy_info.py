# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_info against real HAProxy processes of every supported version."""

from __future__ import annotations

import contextlib
import csv
import io
import socket
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from harness import Certificates, Haproxy, Relay, cells, free_port, run_module

MODULE = "haproxy_info"
SUBSETS = [
    "process",
    "backends",
    "frontends",
    "servers",
    "stats",
    "stick_tables",
    "sessions",
    "errors",
    "certificates",
    "maps",
    "acls",
    "peers",
    "resolvers",
]
CONFIG = """\
global
    localpeer me
backend app
    balance leastconn
    server s1 127.0.0.1:{origin} weight 10
    server s2 127.0.0.1:{origin} weight 10 disabled
    server canary1 127.0.0.1:{origin} weight 20 maxconn 30
backend empty
backend off
    disabled
    server s9 127.0.0.1:1
backend pinned
    cookie SRV insert
    stick-table type ip size 1k expire 1h store gpc0,conn_rate(10s) peers pp
    server s1 127.0.0.1:1 cookie one backup
listen both
    bind 127.0.0.1:{listen}
    http-request set-var(txn.a) path,map_str({directory}/some.map)
    http-request deny if {{ src -f {directory}/some.acl }} {{ path /no }}
    server only 127.0.0.1:1
frontend secure
    bind 127.0.0.1:{secure} ssl crt {directory}/site.pem
    default_backend app
peers pp
    peer me 127.0.0.1:{peer}
    peer other 127.0.0.1:1
resolvers dns
    nameserver n1 127.0.0.1:1
"""

Start = Callable[..., Haproxy]
MakeRelay = Callable[..., Relay]


@pytest.fixture
def hap(start_haproxy: Start, short_path: Path, certificates: Certificates, echo: int) -> Haproxy:
    """A HAProxy that has something of everything."""
    (short_path / "some.map").write_text("k1 one\nk2 two words\n")
    (short_path / "some.acl").write_text("192.0.2.0/24\n")
    pem = certificates.server
    (short_path / "site.pem").write_text(pem.read_text())
    return start_haproxy(
        CONFIG.format(
            origin=echo,
            directory=short_path,
            listen=free_port(),
            secure=free_port(),
            peer=free_port(),
        )
    )


def gather(where: t.Any, *subsets: str, **options: t.Any) -> dict[str, t.Any]:
    args = {"socket": str(where), **options}
    if isinstance(where, Relay):
        args = {**args, "socket": where.address, **where.options}
    if subsets:
        args["gather"] = list(subsets)
    return run_module(MODULE, args)


def names(result: dict[str, t.Any], subset: str, key: str = "name") -> list[str]:
    return [record[key] for record in result[subset]]


# What each subset sends, besides the level and the version, which are always asked.
COMMANDS: dict[str, list[str]] = {
    "process": [],
    "backends": ["show backend", "show stat -1 2 -1"],
    "frontends": ["show stat -1 1 -1"],
    "servers": ["show servers state"],
    "stats": ["show stat"],
    "stick_tables": ["show table", "show table pinned"],
    "sessions": ["show sess"],
    "errors": ["show errors"],
    "peers": ["show peers"],
    "resolvers": ["show resolvers"],
}


@cells(COMMANDS)
def test_only_what_is_asked_for_is_read(
    hap: Haproxy, relay: MakeRelay, case: str, version: str, kind: str
) -> None:
    wire = relay(hap, kind)
    result = gather(wire, case)
    assert not result.get("failed"), result
    assert result["changed"] is False
    assert set(result) & set(SUBSETS) == {case}
    assert result[case] or case in ("sessions", "errors")
    assert all(record["socket"] == wire.address for record in result[case])
    # Before them the conversation is opened; through the master process that asks for its worker.
    wanted, commands = ["show cli level", "show info", *COMMANDS[case]], wire.commands()
    assert commands[-len(wanted) :] == wanted
    assert len(commands) <= len(wanted) + 3
    assert wire.connections == 1


def test_everything(hap: Haproxy, version: str) -> None:
    result = gather(hap.admin, "all")
    assert not result.get("failed"), result
    assert result["omitted"] == []
    assert all(result[subset] for subset in SUBSETS if subset not in ("sessions", "errors"))


def test_the_default_is_cheap(hap: Haproxy, version: str) -> None:
    result = gather(hap.user)
    assert set(result) & set(SUBSETS) == {"process", "backends", "frontends", "servers"}


def test_process(hap: Haproxy, version: str) -> None:
    (process,) = gather(hap.admin, "process")["process"]
    assert process["Version"].startswith(f"{version}.")
    assert process["Pid"] == hap.process.pid
    assert process["Maxconn"] == 200
    assert process["Stopping"] is False
    assert isinstance(process["Uptime_sec"], int)
    lines = [line for line in hap.ask("show info").splitlines() if ":" in line]
    assert set(process) == {"socket", *(line.split(":")[0] for line in lines)}


def test_backends(hap: Haproxy, version: str) -> None:
    found = {record["name"]: record for record in gather(hap.admin, "backends")["backends"]}
    assert list(found) == ["app", "empty", "off", "pinned", "both"]
    app = found["app"]
    published = True if version == "3.4" else None
    assert (app["up"], app["published"], app["disabled"]) == (True, published, False)
    assert (app["mode"], app["balance"]) == ("http", "leastconn")
    assert (app["weight"], app["active_servers"], app["backup_servers"]) == (30, 2, 0)
    assert found["pinned"]["backup_servers"] == 1
    assert found["pinned"]["cookie"] == "SRV"
    assert found["off"]["disabled"] is True
    assert found["off"]["up"] is None
    assert app["id"] == int(hap.row("app", "s1")["be_id"])
    hap.ask("set server app/s1 state maint;set server app/canary1 state maint")
    (app,) = gather(hap.admin, "backends", backend="app")["backends"]
    assert app["up"] is False
    # A user does not see these, and is not told anything wrong.
    (app,) = gather(hap.user, "backends", backend="app")["backends"]
    assert app["balance"] is None


def test_a_backend_may_be_unpublished(hap: Haproxy, version: str) -> None:
    hap.ask("unpublish backend app")
    (app,) = gather(hap.admin, "backends", backend="app")["backends"]
    assert app["published"] is (False if version == "3.4" else None)
    assert app["up"] is True


def test_frontends(hap: Haproxy, version: str) -> None:
    hap.ask("disable frontend front")
    hap.ask("set maxconn frontend secure 77")
    found = {record["name"]: record for record in gather(hap.admin, "frontends")["frontends"]}
    assert set(found) == {"front", "both", "secure"}
    assert found["front"]["state"] == "disabled"
    assert found["secure"]["state"] == "enabled"
    assert found["secure"]["maxconn"] == 77


def test_servers(hap: Haproxy, version: str) -> None:
    hap.ask("set server app/s1 state drain")
    found = gather(hap.admin, "servers")["servers"]
    by_label = {f"{record['backend']}/{record['name']}": record for record in found}
    assert set(by_label) == {
        "app/s1",
        "app/s2",
        "app/canary1",
        "off/s9",
        "pinned/s1",
        "both/only",
    }
    assert by_label["app/s1"]["state"] == "drain"
    assert by_label["app/s1"]["usable"] is False
    assert by_label["app/canary1"]["weight"] == 20
    # The same shape as the module that changes them returns, but for what only waiting tells.
    args = {"socket": str(hap.admin), "servers": "s1", "backend": "app", "return": "all"}
    (server,) = run_module("haproxy_server", {**args, "state": "drain"})["servers"]
    own = by_label["app/s1"]
    assert set(own) <= set(server)
    assert {key: server[key] for key in own if key != "last_change"} == {
        key: value for key, value in own.items() if key != "last_change"
    }


def test_a_servers_maxconn_comes_with_the_statistics(hap: Haproxy, version: str) -> None:
    assert gather(hap.admin, "servers", server="canary1")["servers"][0]["maxconn"] is None
    both = gather(hap.admin, "servers", "stats", server="canary1")
    assert both["servers"][0]["maxconn"] == 30
    assert both["stats"][0]["slim"] == 30


def test_stats(hap: Haproxy, version: str) -> None:
    found = gather(hap.admin, "stats")["stats"]
    rows = list(csv.DictReader(io.StringIO(hap.ask("show stat")[2:].rstrip("\n"))))
    assert [(row["pxname"], row["svname"]) for row in found] == [
        (row["pxname"], row["svname"]) for row in rows
    ]
    types = {(row["pxname"], row["svname"]): row["type"] for row in found}
    assert types["app", "BACKEND"] == "backend"
    assert types["both", "FRONTEND"] == "frontend"
    assert types["app", "s1"] == "server"
    (app,) = [row for row in found if row["svname"] == "canary1"]
    assert (app["weight"], app["slim"], app["status"], app["mode"]) == (20, 30, "no check", "http")
    assert app["check_status"] is None
    assert app["addr"].startswith("127.0.0.1:")
    # Nothing that HAProxy tells got lost, and what looks like a number is one.
    for row, typed in zip(rows, found):
        told = {key: value for key, value in row.items() if value and key not in ("", "-", "type")}
        assert {key: str(typed[key]) for key in told} == told
        assert not [key for key in told if str(typed[key]).isdigit() and typed[key] is str]


def test_stick_tables(hap: Haproxy, version: str) -> None:
    hap.ask("set table pinned key 192.0.2.1 data.gpc0 5")
    (table,) = gather(hap.admin, "stick_tables")["stick_tables"]
    assert (table["name"], table["type"], table["size"], table["used"]) == ("pinned", "ip", 1024, 1)
    (entry,) = table["entries"]
    assert entry["key"] == "192.0.2.1"
    assert entry["data"]["gpc0"] == 5
    assert entry["periods"] == {"conn_rate": 10000}
    assert 3590000 < entry["expires"] <= 3600000


@contextlib.contextmanager
def session(hap: Haproxy, request: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", hap.port), 5) as sock:
        sock.sendall(request)
        yield sock


def test_sessions(start_haproxy: Start, version: str, echo: int) -> None:
    config = f"backend app\n    server s1 127.0.0.1:{echo}\nbackend other\n"
    hap = start_haproxy(config, mode="tcp")
    with session(hap, b"hello") as sock:
        assert sock.recv(5) == b"hello"
        (found,) = gather(hap.admin, "sessions")["sessions"]
        host, port = sock.getsockname()
        assert found["source"] == f"{host}:{port}"
        assert (found["frontend"], found["backend"], found["server"]) == ("front", "app", "s1")
        assert found["protocol"] == "tcpv4"
        assert found["age"] in (0, 1)
        assert 0 <= found["expires"] <= 60
        assert gather(hap.admin, "sessions", backend="other")["sessions"] == []
        assert len(gather(hap.admin, "sessions", backend="app", server="s1")["sessions"]) == 1
        assert hap.ask(f"shutdown session {found['id']}") == "\n"
        hap.until(lambda: gather(hap.admin, "sessions")["sessions"] == [])


def test_errors(start_haproxy: Start, version: str, short_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    hap = start_haproxy(f"backend app\n    server s1 127.0.0.1:{port}\nbackend other\n")
    assert gather(hap.admin, "errors")["errors"] == []
    with session(hap, b"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n") as sock:
        assert b" 400 " in sock.recv(500)
        source = "{}:{}".format(*sock.getsockname())
    with session(hap, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as sock:
        server, _address = listener.accept()
        with server:
            server.sendall(b"HTTP/1.1 200 OK\r\nbad header: \x01\r\n\r\n")
            assert b" 502 " in sock.recv(500)
    listener.close()
    found = {record["problem"]: record for record in gather(hap.admin, "errors")["errors"]}
    assert set(found) == {"invalid request", "invalid response"}
    request, response = found["invalid request"], found["invalid response"]
    assert (request["frontend"], request["backend"], request["server"]) == ("front", None, None)
    assert request["source"] == source
    assert isinstance(request["event"], int)
    assert (response["frontend"], response["backend"], response["server"]) == (
        "front",
        "app",
        "s1",
    )
    assert any("GET /\\x01 HTTP/1.1" in line for line in request["lines"])
    assert any("bad header" in line for line in response["lines"])
    limited = gather(hap.admin, "errors", backend="app")["errors"]
    assert [record["problem"] for record in limited] == ["invalid response"]


def test_certificates(hap: Haproxy, version: str, short_path: Path) -> None:
    found = {record["name"]: record for record in gather(hap.admin, "certificates")["certificates"]}
    record = found[str(short_path / "site.pem")]
    shown = hap.ask(f"show ssl cert {short_path / 'site.pem'}")
    assert f"SHA1 FingerPrint: {record['fingerprint']}" in shown
    assert f"Subject: {record['subject']}" in shown
    assert f"Issuer: {record['issuer']}" in shown
    assert f"Serial: {record['serial']}" in shown
    assert record["status"] == "Used"
    assert record["pending"] is False
    assert record["not_after"].endswith("Z")
    assert "PRIVATE" not in str(record)


def test_no_certificates(start_haproxy: Start, version: str) -> None:
    result = gather(start_haproxy("backend app\n    server s1 127.0.0.1:1\n").admin, "certificates")
    assert not result.get("failed"), result
    assert result["certificates"] == []


def test_maps_and_acls(hap: Haproxy, version: str, short_path: Path) -> None:
    result = gather(hap.admin, "maps", "acls")
    maps = {record["name"]: record["entries"] for record in result["maps"]}
    assert maps[str(short_path / "some.map")] == [
        {"key": "k1", "value": "one"},
        {"key": "k2", "value": "two words"},
    ]
    acls = {record["name"]: record["entries"] for record in result["acls"] if record["name"]}
    assert acls[str(short_path / "some.acl")] == ["192.0.2.0/24"]
    assert ["/no"] in [record["entries"] for record in result["acls"] if not record["name"]]


def test_peers(hap: Haproxy, version: str) -> None:
    (section,) = gather(hap.user, "peers")["peers"]
    assert section["name"] == "pp"
    assert section["disabled"] is False
    found = {peer["name"]: peer for peer in section["peers"]}
    assert set(found) == {"me", "other"}
    assert found["me"]["local"] is True
    assert found["other"]["local"] is False
    assert found["other"]["address"] == "127.0.0.1:1"
    assert found["other"]["tables"] == ["pinned"]
    assert isinstance(found["other"]["new_conn"], int)
    assert isinstance(found["other"]["last_status"], str)
    assert (found["other"]["app_state"] is None) is (version in ("2.2", "2.6"))


def test_resolvers(hap: Haproxy, version: str) -> None:
    found = {record["name"]: record for record in gather(hap.user, "resolvers")["resolvers"]}
    (server,) = found["dns"]["nameservers"]
    assert server["name"] == "n1"
    assert server["counters"]["timeout"] == 0


def test_no_resolvers(start_haproxy: Start, version: str) -> None:
    hap = start_haproxy("backend app\n")
    names_of = names(gather(hap.admin, "resolvers"), "resolvers")
    # Since 2.6 HAProxy makes a section of its own from the host's resolv.conf, if there is one.
    assert names_of in ([], ["default"])


# --- filters -----------------------------------------------------------------------------------


def test_filters_read_less(hap: Haproxy, relay: MakeRelay, version: str) -> None:
    wire = relay(hap)
    result = gather(wire, "servers", "stats", backend="app", server=["s*", "canary1"])
    assert not result.get("failed"), result
    labels = [("app", "s1"), ("app", "s2"), ("app", "canary1")]
    assert [(row["backend"], row["name"]) for row in result["servers"]] == labels
    assert [(row["pxname"], row["svname"]) for row in result["stats"]] == labels
    commands = wire.commands()
    assert "show servers state app" in commands
    assert "show servers state" not in commands
    assert "show stat" not in commands
    assert f"show stat #{hap.row('app', 's1')['be_id']} 6 -1" in commands
    backend_only = gather(wire, "stats", backend="app")["stats"]
    assert [row["svname"] for row in backend_only] == ["s1", "s2", "canary1", "BACKEND"]


def test_patterns_of_backends(hap: Haproxy, version: str) -> None:
    result = gather(hap.admin, "backends", "servers", "stats", backend=["p*", "both"])
    assert names(result, "backends") == ["pinned", "both"]
    assert sorted(names(result, "servers", "backend")) == ["both", "pinned"]
    assert {row["pxname"] for row in result["stats"]} == {"pinned", "both"}


def test_filters_in_the_plural(hap: Haproxy, version: str) -> None:
    plural = gather(hap.admin, "servers", backends=["pinned"], servers=["*"])
    assert plural["servers"] == gather(hap.admin, "servers", backend=["pinned"])["servers"] != []


def test_many_backends_are_read_at_once(
    start_haproxy: Start, relay: MakeRelay, version: str
) -> None:
    text = "".join(f"backend b{i}\n    server s 127.0.0.1:1\n" for i in range(12))
    wire = relay(start_haproxy("backend app\n" + text))
    result = gather(wire, "servers", "stats", backend="b*")
    assert sorted(names(result, "servers", "backend")) == sorted(f"b{i}" for i in range(12))
    assert {row["pxname"] for row in result["stats"]} == {f"b{i}" for i in range(12)}
    commands = wire.commands()
    assert "show servers state" in commands
    assert "show stat -1 6 -1" in commands
    assert len(commands) < 10


def test_a_frontend_of_the_same_name(start_haproxy: Start, version: str) -> None:
    """HAProxy's own filter by name would find nothing then."""
    if version == "3.4":
        config = "backend 3\n    server s1 127.0.0.1:1\n"
    else:
        config = f"frontend 3\n    bind 127.0.0.1:{free_port()}\n"
        config += "backend 3\n    server s1 127.0.0.1:1\n"
    hap = start_haproxy("backend app\n" + config)
    result = gather(hap.admin, "stats", "servers", "backends", backend="3")
    assert [row["svname"] for row in result["stats"]] == ["s1", "BACKEND"]
    assert names(result, "servers") == ["s1"]
    assert names(result, "backends") == ["3"]


UNKNOWN: dict[str, tuple[dict[str, t.Any], str]] = {
    "backend": ({"gather": "backends", "backend": "ap"}, "no backend 'ap'; there is app"),
    "pattern": ({"gather": "servers", "backend": "x*"}, "no backend 'x*'"),
    "server": ({"gather": "servers", "server": "s3"}, "no server 's3'; there is s1"),
    "server elsewhere": ({"gather": "stats", "backend": "pinned", "server": "s2"}, "no server"),
    "server of sessions": ({"gather": "sessions", "server": "nope"}, "no server 'nope'"),
    "unused filter": ({"gather": "process", "backend": "app"}, "backend: limits"),
    "unused server": ({"gather": "backends", "server": "s1"}, "server: limits"),
    "nothing": ({"gather": []}, "gather: the list is empty"),
    "all and more": ({"gather": ["all", "process"]}, "all goes alone"),
    "empty name": ({"gather": "servers", "server": [""]}, "server: empty"),
    "no such subset": ({"gather": "everything"}, "gather"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_bad_input_is_one_sentence(hap: Haproxy, case: str, version: str) -> None:
    args, words = UNKNOWN[case]
    result = run_module(MODULE, {"socket": str(hap.admin), **args})
    assert result["failed"] is True
    assert words in result["msg"]
    assert "\n" not in result["msg"]


# --- levels ------------------------------------------------------------------------------------


def needs(subset: str, version: str) -> str:
    if subset in ("maps", "acls"):
        return "admin" if version == "3.4" else "user"
    above = ("stick_tables", "sessions", "errors", "certificates")
    return "operator" if subset in above else "user"


def test_levels(hap: Haproxy, version: str) -> None:
    order = ["user", "operator", "admin"]
    for level in order:
        where = hap.directory / f"{level}.sock"
        beyond = [one for one in SUBSETS if order.index(needs(one, version)) > order.index(level)]
        for subset in SUBSETS:
            result = gather(where, subset)
            if subset in beyond:
                assert result["failed"] is True, (level, subset)
                assert f"gather: {subset} cannot be read" in result["msg"]
                assert f"level {level}, but this needs" in result["msg"]
            else:
                assert not result.get("failed"), (level, subset, result)
        result = gather(where, "all")
        assert not result.get("failed"), result
        assert [entry["subset"] for entry in result["omitted"]] == beyond
        assert all(result[subset] == [] for subset in beyond)


def test_several_sockets(start_haproxy: Start, version: str) -> None:
    one = start_haproxy("backend app\n    server s1 127.0.0.1:1\n")
    two = start_haproxy("backend app\n    server x1 127.0.0.1:1\n")
    sockets = [str(one.admin), str(two.admin)]
    result = run_module(MODULE, {"socket": sockets})
    assert names(result, "process", "Pid") == [one.process.pid, two.process.pid]
    assert [(row["socket"], row["name"]) for row in result["servers"]] == list(
        zip(sockets, ["s1", "x1"])
    )


def test_check_mode_reads_the_same(hap: Haproxy, version: str) -> None:
    args = {"socket": str(hap.admin), "gather": ["backends"], "backend": "app"}
    check, real = run_module(MODULE, args, check=True), run_module(MODULE, args)
    for answer in (check, real):
        # It counts seconds, and one may pass between the two.
        for backend in answer["backends"]:
            assert backend.pop("last_change") >= 0
    assert check["backends"] == real["backends"]
    assert check["changed"] is False


def test_the_documented_examples(hap: Haproxy, version: str) -> None:
    from ansible_collections.clearproxy.haproxy.plugins.modules import haproxy_info

    tried = 0
    for task in yaml.safe_load(haproxy_info.EXAMPLES):
        if "clearproxy.haproxy.haproxy_info" not in task:
            continue
        tried += 1
        args = task["clearproxy.haproxy.haproxy_info"] or {}
        result = run_module(MODULE, {**args, "socket": str(hap.admin)})
        assert not result.get("failed"), (task["name"], result)
    assert tried >= 5
