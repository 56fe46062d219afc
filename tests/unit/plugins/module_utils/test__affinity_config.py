# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_config import (
    IPV6_CLIENT,
    Plan,
    both,
    make_plan,
    parse_version,
    seconds,
)

SERVERS = [
    {"name": "s1", "address": "10.1.0.1", "address_ipv6": "fd00::1", "port": 80},
    {"name": "s2", "address_ipv6": "fd00::2", "port": 80},
    {"name": "s3", "address": "10.1.0.3", "address_ipv6": "fd00::3", "port": 80, "check": False},
]


def plan(
    version: tuple[int, int] | None = (3, 0), dev_log: bool = True, **variables: t.Any
) -> Plan:
    variables.setdefault(
        "frontends",
        [{"name": "www", "binds": [{"port": 80}], "default_backend": "app"}],
    )
    variables.setdefault(
        "backends", [{"name": "app", "transparent": "clientip", "servers": SERVERS}]
    )
    return make_plan(variables, {}, version, {"dev_log": dev_log, "state_file": "/x/state"})


def lines(made: Plan, header: str) -> list[str]:
    assert made.problems == []
    return next(t.cast("list[str]", s["lines"]) for s in made.sections if s["header"] == header)


def rights(version: tuple[int, int], **variables: t.Any) -> list[str]:
    found = lines(plan(version, **variables), "global")
    return [line for line in found if line.split()[0] in ("user", "group", "setcap")]


@pytest.mark.parametrize("version", [(2, 2), (2, 6), (2, 9)])
def test_old_versions_stay_root_when_transparent(version: tuple[int, int]) -> None:
    assert rights(version) == ["user root", "group root"]


@pytest.mark.parametrize("version", [(3, 0), (3, 4)])
def test_new_versions_keep_one_capability(version: tuple[int, int]) -> None:
    assert rights(version) == ["user haproxy", "group haproxy", "setcap cap_net_raw"]


@pytest.mark.parametrize("version", [(2, 2), (3, 4)])
def test_nothing_is_kept_without_transparency(version: tuple[int, int]) -> None:
    backends = [{"name": "app", "servers": SERVERS}]
    assert rights(version, backends=backends) == ["user haproxy", "group haproxy"]


def test_root_on_request() -> None:
    assert rights((3, 4), **{"global": {"user": "root"}}) == ["user root", "group root"]


def test_another_account_cannot_be_transparent_on_old_versions() -> None:
    variables: dict[str, t.Any] = {"global": {"user": "proxy"}}
    made = plan((2, 6), **variables)
    assert made.sections == []
    assert made.problems == [
        "haproxy_affinity_global.user is 'proxy', but HAProxy 2.6 with a transparent backend is to run as root:"
        " ambient capabilities cannot be had, because the service is not there; remove user, change that, or"
        " install HAProxy 3.0 or newer."
    ]


def test_no_version_no_sections() -> None:
    made = plan(None)
    assert made.sections == []
    assert made.problems == []
    assert made.binds == [
        {
            "address": "0.0.0.0",
            "port": 80,
            "where": "haproxy_affinity_frontends[0].binds[0]",
            "transparent": False,
        }
    ]


INTERCEPTION: dict[str, t.Any] = {
    "frontends": [
        {
            "name": "passing",
            "mode": "tcp",
            "binds": [
                {"port": 3129, "transparent": True},
                {"address": "::", "port": 3129, "transparent": True, "options": "transparent"},
            ],
            "default_backend": "wanted",
        }
    ],
    "backends": [
        {
            "name": "wanted",
            "mode": "tcp",
            "transparent": "clientip",
            "servers": [{"name": "original", "address": "0.0.0.0", "address_ipv6": "::"}],
        }
    ],
}
LOOP = "tcp-request content reject if { dst_is_local }"


def test_interception() -> None:
    """What comes in for any address goes on to that address, but never to HAProxy itself."""
    made = plan(**INTERCEPTION)
    front = lines(made, "frontend passing")
    assert "bind 0.0.0.0:3129 transparent" in front
    assert "bind [::]:3129 v6only transparent" in front
    for name, address in (("wanted", "0.0.0.0"), ("wanted_ipv6", "[::]")):
        section = lines(made, f"backend {name}")
        assert LOOP in section
        assert f"server original {address} id 1 no-check" in section
    assert [bind["transparent"] for bind in made.binds] == [True, True]
    assert LOOP not in lines(plan(), "backend app")


def test_a_port_for_whatever_address_was_wanted() -> None:
    backends = [{**INTERCEPTION["backends"][0], "server_defaults": {"port": 8080}}]
    section = lines(plan(**{**INTERCEPTION, "backends": backends}), "backend wanted")
    assert "server original 0.0.0.0:8080 id 1 no-check" in section


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        ({"check": True}, "servers[0].check is true, but 0.0.0.0 is no host that could be checked"),
        (
            {"address_ipv6": "fd00::1"},
            "servers[0].address is '0.0.0.0' and address_ipv6 'fd00::1'; 0.0.0.0 and :: are the address",
        ),
        ({"address": "10.0.0.1", "address_ipv6": None}, "servers[0].port is missing"),
    ],
)
def test_interception_refused(server: dict[str, t.Any], problem: str) -> None:
    made = plan(
        **{
            **INTERCEPTION,
            "backends": [
                {
                    **INTERCEPTION["backends"][0],
                    "servers": [{**INTERCEPTION["backends"][0]["servers"][0], **server}],
                }
            ],
        }
    )
    assert any(problem in text for text in made.problems), made.problems


def test_log_follows_the_host() -> None:
    assert lines(plan(dev_log=True), "global")[0] == "log /dev/log local0"
    assert lines(plan(dev_log=False), "global")[0] == "log stdout format raw local0"


def test_a_pair_of_sections() -> None:
    made = plan()
    ipv4, ipv6 = lines(made, "backend app"), lines(made, "backend app_ipv6")
    assert "source 0.0.0.0 usesrc clientip" in ipv4
    assert "http-reuse never" in ipv4
    assert "source [::] usesrc clientip" in ipv6
    assert "http-reuse never" in ipv6
    # the same server has the same number in both, whichever servers are missing
    assert [line for line in ipv4 if line.startswith("server ")] == [
        "server s1 10.1.0.1:80 id 1",
        "server s3 10.1.0.3:80 id 3 no-check",
    ]
    assert [line for line in ipv6 if line.startswith("server ")] == [
        "server s1 [fd00::1]:80 id 1",
        "server s2 [fd00::2]:80 id 2",
        "server s3 [fd00::3]:80 id 3 no-check",
    ]


def test_rules_reach_the_pair() -> None:
    frontends = [
        {
            "name": "www",
            "binds": [{"port": 80}],
            "use_backends": [{"backend": "app", "if": "a || b"}],
            "default_backend": "app",
        }
    ]
    assert lines(plan(frontends=frontends), "frontend www")[-4:] == [
        f"use_backend app_ipv6 if a {IPV6_CLIENT} || b {IPV6_CLIENT}",
        "use_backend app if a || b",
        f"use_backend app_ipv6 if {IPV6_CLIENT}",
        "default_backend app",
    ]


def test_not_transparent_is_one_section_with_ipv4_first() -> None:
    made = plan(backends=[{"name": "app", "servers": SERVERS}])
    found = lines(made, "backend app")
    assert not any(line.startswith(("source", "http-reuse")) for line in found)
    assert "server s1 10.1.0.1:80" in found
    assert "server s2 [fd00::2]:80" in found


@pytest.mark.parametrize(
    ("transparent", "source"),
    [
        ("client", "source [::] usesrc client"),
        ("fd00::99", "source [::] usesrc [fd00::99]"),
    ],
)
def test_ipv6_only(transparent: str, source: str) -> None:
    servers = [{"name": "s", "address_ipv6": "fd00::2", "port": 80}]
    frontends = [
        {"name": "www", "binds": [{"address": "::", "port": 80}], "default_backend": "app"}
    ]
    backends = [{"name": "app", "transparent": transparent, "servers": servers}]
    assert source in lines(plan(backends=backends, frontends=frontends), "backend app")


def persistence(values: dict[str, t.Any], transparent: str = "none") -> Plan:
    return plan(
        backends=[
            {"name": "app", "transparent": transparent, "persistence": values, "servers": SERVERS}
        ]
    )


def test_source() -> None:
    found = lines(persistence({"method": "source"}), "backend app")
    assert found[1:3] == ["balance source", "hash-type consistent"]


def test_cookie() -> None:
    found = lines(persistence({"method": "cookie", "name": "SRV", "maxidle": "30m"}), "backend app")
    assert "cookie SRV insert indirect nocache maxidle 1800s" in found
    assert "server s1 10.1.0.1:80 cookie s1" in found


def test_app_session_shares_one_table() -> None:
    made = persistence({"method": "app_session", "name": "PHPSESSID", "timeout": "5h"}, "clientip")
    assert [line for line in lines(made, "backend app") if "stick" in line] == [
        "stick-table type string len 64 size 100k expire 5h peers haproxy_affinity",
        "stick on req.cook(PHPSESSID)",
        "stick store-response res.cook(PHPSESSID)",
    ]
    assert [line for line in lines(made, "backend app_ipv6") if "stick" in line] == [
        "stick on req.cook(PHPSESSID) table app",
        "stick store-response res.cook(PHPSESSID) table app",
    ]


def app_session(version: tuple[int, int] = (3, 0), **variables: t.Any) -> Plan:
    values = {"method": "app_session", "name": "PHPSESSID"}
    backends = [
        {"name": "app", "transparent": "clientip", "persistence": values, "servers": SERVERS}
    ]
    return plan(version, backends=backends, **variables)


@pytest.mark.parametrize(("version", "user"), [((2, 6), "root"), ((3, 0), "haproxy")])
def test_tables_are_taught_to_the_next_worker(version: tuple[int, int], user: str) -> None:
    made = app_session(version)
    assert "localpeer haproxy_affinity" in lines(made, "global")
    assert lines(made, "peers haproxy_affinity") == [
        f"bind unix@/run/haproxy/admin.sock.peers mode 600 user {user}",
        "server haproxy_affinity",
    ]


@pytest.mark.parametrize(
    "variables",
    [
        {"global": {"chroot": "/var/lib/haproxy"}},
        {"global": {"raw": "chroot /var/lib/haproxy"}},
        {"global": {"raw": "localpeer me"}},
        {"raw": ["peers all", "  peer me 10.0.0.1:1024"]},
    ],
)
def test_unless_that_cannot_work(variables: dict[str, t.Any]) -> None:
    made = app_session(**variables)
    assert not any("haproxy_affinity" in each for each in lines(made, "global"))
    assert not any("haproxy_affinity" in each for each in lines(made, "backend app"))
    assert not any(section["header"].startswith("peers") for section in made.sections)


def test_no_table_no_peers() -> None:
    assert "localpeer haproxy_affinity" not in lines(plan(), "global")


def test_app_session_without_learning_only_matches() -> None:
    values = {
        "method": "app_session",
        "name": "JSESSIONID",
        "request_learn": False,
        "path_parameter": True,
        "query_string": True,
    }
    assert [
        line for line in lines(persistence(values), "backend app") if "stick match" in line
    ] == [
        "stick match req.cook(JSESSIONID)",
        "stick match urlp(JSESSIONID,;),field(1,?)",
        "stick match urlp(jsessionid,;),field(1,?)",
        "stick match urlp(JSESSIONID)",
    ]


def test_raw_lines_everywhere() -> None:
    variables: dict[str, t.Any] = {"global": {"raw": ["g"]}}
    made = plan(
        **variables,
        defaults={"raw": "d"},
        frontends=[
            {"name": "www", "binds": [{"port": 80}], "raw": ["f"], "default_backend": "app"}
        ],
        backends=[{"name": "app", "servers": SERVERS, "raw": ["b1", "b2"]}],
        raw=["peers p", "  peer x 10.0.0.1:1"],
    )
    for header, line in (
        ("global", "g"),
        ("defaults", "d"),
        ("frontend www", "f"),
        ("backend app", "b2"),
    ):
        assert line in lines(made, header)
    assert made.sections[-1] == {"header": "", "lines": ["peers p", "peer x 10.0.0.1:1"]}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("", "X"),
        ("a", "a X"),
        ("a b", "a b X"),
        ("a or b", "a X || b X"),
        ("a || !b c", "a X || !b c X"),
        ("{ path or || } b", "{ path or || } b X"),
        ("{ path 'a || b' } || c", "{ path 'a || b' } X || c X"),
        ('{ path "x or } y" } or c', '{ path "x or } y" } X || c X'),
        (r"{ path a\ or\ b } or c", r"{ path a\ or\ b } X || c X"),
    ],
)
def test_both(condition: str, expected: str) -> None:
    assert both(condition, "X") == expected


@given(st.lists(st.lists(st.sampled_from(["a", "!a", "b", "!b"]), min_size=1), min_size=1), st.booleans(), st.booleans(), st.booleans())  # fmt: skip
def test_both_is_and(alternatives: list[list[str]], a: bool, b: bool, x: bool) -> None:
    """Whatever the values are, the new condition holds when the old one and the extra term hold."""
    values = {"a": a, "!a": not a, "b": b, "!b": not b, "X": x}

    def holds(condition: str) -> bool:
        return any(all(values[word] for word in part.split()) for part in condition.split("||"))

    condition = " || ".join(" ".join(words) for words in alternatives)
    assert holds(both(condition, "X")) == (holds(condition) and x)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", (2, 6)),
        ("HA-Proxy version 2.2.9-2+deb11u6 2023/12/23", (2, 2)),
        ("HAProxy version 3.10-dev1-abc", (3, 10)),
        ("nginx version: 1.2.3", None),
        ("", None),
    ],
)
def test_version(text: str, version: tuple[int, int] | None) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize(
    ("text", "expected"), [("30s", "30s"), ("2h", "7200s"), ("1d", "86400s"), ("5ms", "1s")]
)
def test_seconds(text: str, expected: str) -> None:
    assert seconds(text) == expected
