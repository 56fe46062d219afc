# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import typing as t
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _parse
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import ParseError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_model import Traffic

# Transcripts of real processes, each of the same configuration in the same state.
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
VERSIONS = ["2.2", "2.6", "3.0", "3.2", "3.4"]


def said(version: str, name: str) -> str:
    return (FIXTURES / f"haproxy-{version}" / f"{name}.txt").read_text()


@pytest.mark.parametrize("version", VERSIONS)
def test_servers_state(version: str) -> None:
    servers = {srv.label: srv for srv in _parse.servers_state(said(version, "show_servers_state"))}
    assert set(servers) == {
        "app/web1",
        "app/web2",
        "app/web3",
        "app/web4",
        "follower/t1",
        "follower/unix1",
    }
    web1 = servers["app/web1"]
    assert (web1.state, web1.weight, web1.initial_weight) == ("ready", 5, 10)
    assert (web1.address, web1.port, web1.fqdn) == ("127.0.0.1", 8080, None)
    assert (web1.operational, web1.health_checks, web1.agent_checks) == ("running", True, False)
    newer = (web1.ssl, web1.check_port, web1.agent_port)
    assert newer == ((None,) * 3 if version == "2.2" else (False, 0, 0))
    assert (web1.check_address, web1.agent_address, web1.srv_record) == (None, None, None)
    assert web1.maxconn is None
    assert web1.usable
    assert servers["app/web2"].state == "drain"
    assert not servers["app/web2"].usable
    web3 = servers["app/web3"]
    assert (web3.state, web3.operational, web3.usable) == ("ready", "stopped", False)
    web4 = servers["app/web4"]
    assert (web4.state, web4.disabled_in_configuration) == ("maint", True)
    assert web4.address == "::1"
    assert servers["follower/unix1"].address is None
    assert len({srv.backend_id for srv in servers.values()}) == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_stat(version: str) -> None:
    rows = _parse.stat(said(version, "show_stat"))
    assert _parse.algorithms(rows) == {"app": "roundrobin", "follower": "static-rr"}
    checks = _parse.checks(rows)
    assert (checks["app", "web1"].rise, checks["app", "web1"].fall) == (2, 3)
    assert (checks["app", "web2"].full, checks["app", "web1"].full) == (4, 4)
    # What is in maintenance hides how its health is counted.
    assert checks["app", "web4"].rise == 0
    assert not checks["app", "web4"].passed(99)
    assert checks["follower", "t1"].tracked == "app/web1"
    assert _parse.streams(rows)["app", "web1"] == (0, 0)
    assert ("app", "BACKEND") not in _parse.streams(rows)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_other_replies(version: str) -> None:
    connections = _parse.servers_conn(said(version, "show_servers_conn"))
    assert connections["app", "web2"] == (0, 0)
    assert ("follower", "unix1") in connections
    assert "app" in _parse.backends(said(version, "show_backend"))
    assert _parse.level(said(version, "show_cli_level")) == "admin"
    assert ".".join(map(str, _parse.version(said(version, "show_info")))) == version
    assert _parse.uptime("Uptime: 0d 0h02m03s\nUptime_sec: 123\n") == 123
    assert not _parse.stopping("Stopping: 0\n")
    assert _parse.stopping("Version: 2.2\nStopping: 1\n")


@pytest.mark.parametrize(
    ("column", "text", "name", "value"),
    [
        ("srv_use_ssl", "1", "ssl", True),
        # `no-ssl`.
        ("srv_use_ssl", "-1", "ssl", False),
        ("srv_check_addr", "127.0.0.9", "check_address", "127.0.0.9"),
        # HAProxy takes the unspecified address for none.
        ("srv_check_addr", "0.0.0.0", "check_address", None),
        ("srv_agent_addr", "::", "agent_address", None),
        ("srv_check_port", "92", "check_port", 92),
        ("srv_agent_port", "93", "agent_port", 93),
        ("srvrecord", "_sip._tcp.example", "srv_record", "_sip._tcp.example"),
        ("srv_check_state", "7", "checking", True),
        ("srv_check_state", "4", "has_health_check", False),
        ("srv_agent_state", "18", "has_agent_check", True),
    ],
)
def test_newer_columns(column: str, text: str, name: str, value: t.Any) -> None:
    lines = said("3.2", "show_servers_state").splitlines()
    row = lines[2].split()
    row[lines[1][2:].split().index(column)] = text
    (server,) = _parse.servers_state("\n".join([lines[0], lines[1], " ".join(row)]))
    assert getattr(server, name) == value


def test_limits_and_cookies() -> None:
    rows = _parse.stat(
        "# pxname,svname,type,scur,qcur,slim,cookie,\n"
        "app,web1,2,0,0,,c1,\napp,web2,2,0,0,7,,\napp,BACKEND,1,0,0,200,SRV,\n"
    )
    assert _parse.maxconns(rows) == {("app", "web1"): 0, ("app", "web2"): 7}
    assert _parse.cookies(rows) == {("app", "web1"): ("SRV", "c1")}


def test_columns_are_found_by_name() -> None:
    """A version with other columns, in another order, is read all the same."""
    lines = said("2.6", "show_servers_state").splitlines()
    names = lines[1][2:].split()
    turned = [lines[0], "# new " + " ".join(reversed(names))]
    turned += ["x " + " ".join(reversed(line.split())) for line in lines[2:]]
    before = _parse.servers_state("\n".join(lines))
    assert _parse.servers_state("\n".join(turned)) == before


def test_connections_in_use_of_newer_versions() -> None:
    """3.4 has `served` before the columns that count."""
    text = (
        "# bkname/svname bkid/svid addr port - purge_delay served used_cur used_max need_est "
        "idle_sess unsafe_nb safe_nb idle_lim idle_cur idle_per_thr[2]\n"
        "app/web1 3/1 127.0.0.1 80 - 5000 7 3 9 1 2 0 5 -1 5 2 3\n"
    )
    assert _parse.servers_conn(text) == {("app", "web1"): (3, 5)}


def test_traffic() -> None:
    key = ("app", "web1")
    found = _parse.traffic({key: (2, 1), ("app", "web2"): (0, 0)}, {key: (3, 4)})
    assert found[key] == Traffic(streams=2, queued=1, used=3, idle=4)
    assert not found[key].drained
    assert found["app", "web2"].drained


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("servers_state", "", "format version"),
        ("servers_state", "2\n# x", "format version"),
        ("servers_state", "1\nbe_id", "no header"),
        ("servers_state", "1\n# be_id be_name", "no column"),
        ("stat", "Permission denied\n", "no header"),
        ("stat", "# pxname,svname\n", "no column"),
        ("stat", "# pxname,svname,type,scur,qcur\na,b\n", "2 columns instead of 5"),
        ("servers_conn", "", "no header"),
        ("servers_conn", "# a b\n", "column is missing"),
        ("servers_conn", "# bkname/svname used_cur idle_cur\napp 1 2\n", "not a server's line"),
        ("servers_conn", "# bkname/svname used_cur idle_cur\na/b 1\n", "not a server's line"),
        ("level", "root\n", "no such level"),
        ("backends", "x\n", "no header"),
        ("version", "Name: x\n", "no version"),
    ],
)
def test_parse_errors(kind: str, text: str, words: str) -> None:
    with pytest.raises(ParseError, match=words):
        getattr(_parse, kind)(text)


def read(text: str) -> list[dict[str, t.Any]]:
    """Every column, also of those that are read late."""
    return [server.as_dict() for server in _parse.servers_state(text)]


@pytest.mark.parametrize("value", ["-1", "x", "1_0", "٣", "", "9"])
def test_numbers_are_not_guessed(value: str) -> None:
    lines = said("2.6", "show_servers_state").splitlines()
    column = lines[1][2:].split().index("srv_op_state")
    row = lines[2].split()
    row[column] = value or "--"
    with pytest.raises(ParseError, match="a number was expected"):
        read("\n".join([lines[0], lines[1], " ".join(row)]))


PARSERS: list[t.Callable[[str], t.Any]] = [
    read,
    lambda text: _parse.checks(_parse.stat(text)),
    lambda text: _parse.streams(_parse.stat(text)),
    _parse.servers_conn,
    _parse.level,
    _parse.backends,
    _parse.version,
]


@given(st.data())
def test_nothing_but_parse_errors(data: st.DataObject) -> None:
    """Whatever arrives, and whatever becomes of a real reply on its way."""
    parser: t.Callable[[str], t.Any] = data.draw(st.sampled_from(PARSERS))
    text = data.draw(
        st.one_of(
            st.text(),
            st.binary().map(lambda raw: raw.decode("utf-8", "replace")),
            st.builds(
                lambda base, at, cut, put: (
                    base[: at % len(base)] + put + base[at % len(base) + cut :]
                ),
                st.sampled_from(
                    [
                        said(version, name)
                        for version in ("2.2", "3.4")
                        for name in ("show_servers_state", "show_stat", "show_servers_conn")
                    ]
                ),
                st.integers(0, 5000),
                st.integers(0, 40),
                st.text(max_size=5),
            ),
        )
    )
    with contextlib.suppress(ParseError):
        parser(text)
