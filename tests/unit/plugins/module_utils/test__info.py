# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _info, _parse
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    InputError,
    ParseError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._info_operation import (
    SUBSETS,
    Wanted,
    needed_level,
)

# Transcripts of real processes, each of the same configuration in the same state.
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
VERSIONS = ["2.2", "2.6", "3.0", "3.2", "3.4"]


def said(version: str, name: str) -> str:
    return (FIXTURES / f"haproxy-{version}" / f"{name}.txt").read_text()


@pytest.mark.parametrize("version", VERSIONS)
def test_process(version: str) -> None:
    found = _info.process(said(version, "show_info_global"))
    assert found["Version"].startswith(version)
    assert isinstance(found["Pid"], int)
    assert found["Stopping"] is False
    assert isinstance(found["node"], str)


def test_process_keeps_names_as_text() -> None:
    text = "Version: 3.4\nnode: 12\ndescription: 7\nX_pct: 99.5\nSslX: -1\nempty: \nStopping: 1\n"
    assert _info.process(text) == {
        "Version": "3.4",
        "node": "12",
        "description": "7",
        "X_pct": 99.5,
        "SslX": -1,
        "empty": None,
        "Stopping": True,
    }


@pytest.mark.parametrize("text", ["", "Name: HAProxy\n", "Version: 3\nnonsense\n"])
def test_process_must_be_one(text: str) -> None:
    with pytest.raises(ParseError):
        _info.process(text)


@pytest.mark.parametrize("version", VERSIONS)
def test_stats(version: str) -> None:
    found = _info.stats(_parse.stat(said(version, "show_stat")))
    (web1,) = [row for row in found if row["svname"] == "web1"]
    assert (web1["pxname"], web1["type"], web1["weight"]) == ("app", "server", 5)
    assert web1["slim"] is None
    assert "" not in web1
    assert "-" not in web1
    assert {row["type"] for row in found} <= {"frontend", "backend", "server", "listener"}
    assert _info.ids(_parse.stat(said(version, "show_stat"))).keys() == {"app", "follower"}


def test_a_servers_name_stays_a_text() -> None:
    (row,) = _info.stats([{"pxname": "1", "svname": "2", "type": "2", "scur": "3", "addr": ""}])
    assert row == {"pxname": "1", "svname": "2", "type": "server", "scur": 3, "addr": None}


@pytest.mark.parametrize("version", VERSIONS)
def test_backends(version: str) -> None:
    names = ["app", "off", "follower"]
    since = (int(version[0]), int(version[2]))
    found = _info.backends(names, _parse.stat(said(version, "show_stat")), since)
    assert [record["name"] for record in found] == names
    assert [record["disabled"] for record in found] == [False, True, False]
    assert found[0]["balance"] == "roundrobin"
    assert found[0]["up"] is True
    assert found[0]["published"] is (True if version == "3.4" else None)
    assert found[1]["up"] is found[1]["id"] is found[1]["published"] is None


def test_an_unpublished_backend() -> None:
    row = {"pxname": "b", "svname": "BACKEND", "type": "1", "status": "DOWN (UNPUB)", "iid": "4"}
    (found,) = _info.backends(["b"], [row], (3, 4))
    assert (found["published"], found["up"], found["id"]) == (False, False, 4)


@pytest.mark.parametrize("version", VERSIONS)
def test_sessions(version: str) -> None:
    found = [row for row in _info.sessions(said(version, "show_sess")) if row["protocol"]]
    (client,) = found
    assert client["id"].startswith("0x")
    assert client["source"].startswith("127.0.0.1:")
    assert (client["frontend"], client["backend"], client["server"]) == ("li", "li", "x")
    assert (client["protocol"], client["age"]) == ("tcpv4", 1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("1m30s", 90), ("2h5m", 7500), ("1d2h", 93600), ("<NEVER>", None), ("", None)],
)
def test_ages(text: str, seconds: int | None) -> None:
    line = f"0x1: proto=tcpv4 src=1.1.1.1:2 fe=f be=<NONE> srv=<none> age={text} exp="
    (found,) = _info.sessions(line)
    assert found["age"] == seconds
    assert found["backend"] is found["server"] is found["expires"] is None


@pytest.mark.parametrize("version", VERSIONS)
def test_errors(version: str) -> None:
    (found,) = _info.errors(said(version, "show_errors"))
    assert (found["frontend"], found["backend"], found["server"]) == ("front", None, None)
    assert (found["problem"], found["event"]) == ("invalid request", 0)
    assert found["source"].startswith("127.0.0.1:")
    assert found["time"].startswith("23/Nov/2026:")
    assert found["lines"][-3:] == [
        "  00000  GET /a\\x01b HTTP/1.1\\r\\n",
        "  00019  Ho st: x\\r\\n",
        "  00029  \\r\\n",
    ]


def test_no_errors() -> None:
    assert _info.errors("Total events captured on [x] : 0\n\n") == []


@pytest.mark.parametrize("version", VERSIONS)
def test_peers(version: str) -> None:
    (section,) = _info.peers(said(version, "show_peers"))
    assert (section["name"], section["disabled"]) == ("pp", False)
    other, own = section["peers"]
    assert (other["name"], other["local"], own["name"], own["local"]) == (
        "other",
        False,
        "me",
        True,
    )
    assert other["address"].startswith("127.0.0.1:")
    assert other["new_conn"] > 0
    assert other["proto_err"] == 0
    assert other["tables"] == own["tables"] == ["st"]
    assert other["last_status"] in ("CONN", "HSHK", "TOUT", "NONE")
    assert other["app_state"] == (None if version in ("2.2", "2.6") else "STOPPED")


@pytest.mark.parametrize("version", VERSIONS)
def test_resolvers(version: str) -> None:
    found = {
        section["name"]: section["nameservers"]
        for section in _info.resolvers(said(version, "show_resolvers"))
    }
    assert [server["name"] for server in found["rr"]] == ["n1", "n2"]
    assert found["rr"][0]["counters"]["sent"] > 0
    assert len(found["rr"][0]["counters"]) == 15


@pytest.mark.parametrize("text", ["", "\n", "No resolvers found\n"])
def test_no_resolvers(text: str) -> None:
    assert _info.resolvers(text) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_certificate(version: str) -> None:
    assert _info.certificate(said(version, "show_ssl_cert_site")) == {
        "subject": "/CN=lo",
        "issuer": "/CN=lo",
        "serial": "607508B5418B51B876206A8824A91CB5ED913F5A",
        "algorithm": "RSA2048",
        "alternative_names": ["DNS:lo"],
    }


def test_an_empty_certificate() -> None:
    found = _info.certificate("Filename: x\nStatus: Empty\n")
    assert found["alternative_names"] == []
    assert found["subject"] is None


PARSERS: list[Callable[[str], t.Any]] = [
    _info.process,
    _info.sessions,
    _info.errors,
    _info.peers,
    _info.resolvers,
    _info.certificate,
    lambda text: _info.stats(_parse.stat(text)),
]
# Something of what they look for, so that they get beyond the first line.
PIECES = st.sampled_from(
    [
        "0x1: [x] id=p disabled=0",
        "  0x2: id=a(local,active) addr=1.1.1.1:1 last_status=NONE",
        "        reconnect=1s new_conn=3",
        "              table:0x1 id=t update=0",
        "Resolvers section r",
        " nameserver n:",
        "  sent:        15",
        "0x1: proto=tcpv4 src=x fe=f be=b srv=s age=5s",
        "Total events captured on [x] : 1",
        "[t] frontend f (#2): invalid request",
        "  backend b (#3), server s (#1), event #5, src 1.1.1.1:2",
        "Version: 3.2.1",
        "# pxname,svname,type,scur,qcur",
        "a,b,2,1,",
    ]
)


@pytest.mark.parametrize("parser", PARSERS)
@given(st.lists(PIECES | st.text(max_size=40), max_size=12), st.sampled_from(["\n", "", "\r\n"]))
def test_parsers_raise_nothing_but_parse_error(
    parser: Callable[[str], t.Any], lines: list[str], end: str
) -> None:
    try:
        found = parser(end.join(lines))
    except ParseError:
        return
    assert isinstance(found, (list, dict))


# --- what a task may ask for ------------------------------------------------------------------


def wanted(*gather: str, **filters: t.Any) -> Wanted:
    return Wanted.from_params({"gather": list(gather), "backend": None, "server": None, **filters})


def test_all_and_named_subsets() -> None:
    assert wanted("all") == Wanted(SUBSETS, named=False)
    assert wanted("servers", "process") == Wanted(("process", "servers"), named=True)
    assert wanted("servers", backend=["a"], server=["b"]).backend == ("a",)


@pytest.mark.parametrize(
    ("gather", "filters", "words"),
    [
        ([], {}, "list is empty"),
        (["all", "stats"], {}, "all goes alone"),
        (["servers"], {"backend": []}, "backend: empty"),
        (["servers"], {"server": ["a", ""]}, "server: empty"),
        (["process", "maps"], {"backend": ["a"]}, "backend: limits"),
        (["backends"], {"server": ["a"]}, "server: limits"),
    ],
)
def test_what_makes_no_sense(gather: list[str], filters: dict[str, t.Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        wanted(*gather, **filters)


def test_levels() -> None:
    assert needed_level("maps", (3, 2)) == "user"
    assert needed_level("acls", (3, 4)) == "admin"
    assert needed_level("sessions", (2, 2)) == "operator"
    assert needed_level("stats", (3, 4)) == "user"
