# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import typing as t

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_model import (
    Member,
    Site,
    read_site,
)

B = "haproxy_affinity_backends[0]"
F = "haproxy_affinity_frontends[0]"

SITE: dict[str, t.Any] = {
    "frontends": [
        {"name": "www", "binds": [{"address": "10.0.0.1", "port": 80}], "default_backend": "app"}
    ],
    "backends": [
        {
            "name": "app",
            "servers": [
                {"name": "s1", "address": "10.1.0.1", "port": 80},
                {"name": "s2", "address": "10.1.0.2", "port": 80},
            ],
        }
    ],
}
GROUP = {"g": [Member("s1", "10.1.0.1", "fd00::1"), Member("s2", "10.1.0.2", None)]}


def site(
    change: t.Callable[[dict[str, t.Any]], t.Any] | None = None,
) -> tuple[Site, list[str], list[str]]:
    variables = copy.deepcopy(SITE)
    if change:
        change(variables)
    return read_site(variables, GROUP)


def backend(**values: t.Any) -> t.Callable[[dict[str, t.Any]], None]:
    def change(variables: dict[str, t.Any]) -> None:
        variables["backends"][0].update(values)
        for key in [key for key, value in values.items() if value is None]:
            del variables["backends"][0][key]

    return change


def frontend(**values: t.Any) -> t.Callable[[dict[str, t.Any]], None]:
    return lambda variables: variables["frontends"][0].update(values)


def test_defaults() -> None:
    found, problems, warnings = site()
    assert (problems, warnings) == ([], [])
    (app,) = found.backends
    assert (app.mode, app.balance, app.hash_type) == ("http", "roundrobin", None)
    assert (app.transparent, app.http_reuse, app.persistence.method) == ("none", None, "none")
    assert app.default_server == "check"
    assert not found.transparent
    assert found.socket.path == "/run/haproxy/admin.sock"
    assert dict(found.defaults.timeouts)["http-request"] == "10s"
    assert "redispatch" in found.defaults.options


def test_reading_changes_nothing() -> None:
    variables = copy.deepcopy(SITE)
    read_site(variables, GROUP)
    assert variables == SITE


@pytest.mark.parametrize(
    ("change", "path", "text"),
    [
        (backend(persistence={"method": "sticky"}), f"{B}.persistence.method", "an unknown method"),
        (backend(persistence={"name": "X"}), f"{B}.persistence.method", "is missing"),
        (backend(persistence="source"), f"{B}.persistence", "give a dictionary"),
        (backend(persistence={"method": "app_session"}), f"{B}.persistence.name", "is missing"),
        (
            backend(persistence={"method": "app_session", "name": "a b"}),
            f"{B}.persistence.name",
            "session cookie",
        ),
        (
            backend(persistence={"method": "source", "name": "X"}),
            f"{B}.persistence.name",
            "not a known key",
        ),
        (
            backend(persistence={"appsession": "X len 5"}),
            f"{B}.persistence.appsession",
            "no 'timeout'",
        ),
        (
            backend(persistence={"method": "cookie", "mode": "prefix", "indirect": True}),
            f"{B}.persistence.indirect",
            "mode insert only",
        ),
        (
            backend(persistence={"method": "cookie", "domain": "localhost"}),
            f"{B}.persistence.domain[0]",
            "with a dot",
        ),
        (
            backend(persistence={"method": "cookie", "attr": ["a;b"]}),
            f"{B}.persistence.attr[0]",
            "NAME=VALUE",
        ),
        (
            backend(mode="tcp", persistence={"method": "cookie"}),
            f"{B}.persistence.method",
            "needs mode http",
        ),
        (
            backend(persistence={"method": "source"}, balance="leastconn"),
            f"{B}.balance",
            "remove one",
        ),
        (backend(mode="udp"), f"{B}.mode", "give one of http, tcp"),
        (backend(name="a b"), f"{B}.name", "a name of letters"),
        (backend(name=None), f"{B}.name", "is missing"),
        (backend(balanc="source"), f"{B}.balanc", "did you mean balance"),
        (backend(transparent="clientipp"), f"{B}.transparent", "give clientip"),
        (backend(transparent="hdr_ip(x y)"), f"{B}.transparent", "give clientip"),
        (
            backend(mode="tcp", transparent="hdr_ip(x-forwarded-for)"),
            f"{B}.transparent",
            "needs mode http",
        ),
        (backend(servers=[]), f"{B}.servers", "is empty"),
        (backend(servers="s1"), f"{B}.servers", "list of dictionaries"),
        (
            backend(servers=[{"name": "s1", "port": 80}]),
            f"{B}.servers[0].address",
            "a server without address",
        ),
        (
            backend(servers=[{"name": "s1", "address": "10.0.0.1"}]),
            f"{B}.servers[0].port",
            "is missing",
        ),
        (
            backend(servers=[{"name": "s1", "address": "10.0.0.1", "port": "http"}]),
            f"{B}.servers[0].port",
            "1 to 65535",
        ),
        (
            backend(servers=[{"name": "s1", "address": "10.0.0.300", "port": 80}]),
            f"{B}.servers[0].address",
            "IP address or a host name",
        ),
        (
            backend(servers=[{"name": "s1", "address_ipv6": "10.0.0.3", "port": 80}]),
            f"{B}.servers[0].address_ipv6",
            "give an IPv6 address",
        ),
        (
            backend(servers=[{"name": "s1", "address": "10.0.0.3", "port": 80, "cookie": "a|b"}]),
            f"{B}.servers[0].cookie",
            "without blanks",
        ),
        (backend(servers_group="g"), f"{B}.servers_group", "together with servers"),
        (
            backend(servers=None, servers_group="nope"),
            f"{B}.servers_group",
            "no host in the inventory",
        ),
        (frontend(default_backend="nope"), f"{F}.default_backend", "an unknown backend"),
        (
            frontend(use_backends=[{"backend": "nope", "if": "TRUE"}]),
            f"{F}.use_backends[0].backend",
            "an unknown backend",
        ),
        (frontend(use_backends=[{"backend": "app"}]), f"{F}.use_backends[0].if", "is missing"),
        (
            frontend(use_backends=[{"backend": "app", "if": "unless TRUE"}]),
            f"{F}.use_backends[0].if",
            "starts with 'unless'",
        ),
        (frontend(binds=[]), f"{F}.binds", "is empty"),
        (frontend(binds=[{"address": "10.0.0.1"}]), f"{F}.binds[0].port", "is missing"),
        (
            frontend(binds=[{"address": "nowhere", "port": 80}]),
            f"{F}.binds[0].address",
            "an IP address",
        ),
        (frontend(binds=[{"port": 80}, {"port": 80}]), f"{F}.binds[1]", "so does"),
        (frontend(mode="tcp", raw=5), f"{F}.raw", "list of lines"),
        (frontend(raw=["a\nb"]), f"{F}.raw[0]", "single line"),
        (backend(mode="tcp"), f"{F}.default_backend", "same mode"),
        (lambda v: v.update(backends={}), None, "an unknown backend"),
        (lambda v: v.update(backends="x"), "haproxy_affinity_backends", "list of dictionaries"),
        (
            lambda v: v["backends"].append(v["backends"][0]),
            "haproxy_affinity_backends[1].name",
            "own name",
        ),
        (lambda v: v["frontends"][0].update(name="app"), f"{B}.name", "own name"),
        (
            lambda v: v.update({"global": {"maxconn": 0}}),
            "haproxy_affinity_global.maxconn",
            "whole number",
        ),
        (
            lambda v: v.update(admin_socket={"level": "user"}),
            "haproxy_affinity_admin_socket.level",
            "needs admin",
        ),
        (
            lambda v: v.update(admin_socket={"path": "/" + "x" * 100}),
            "haproxy_affinity_admin_socket.path",
            "at most 84",
        ),
        (
            lambda v: v.update(defaults={"timeouts": {"client": 50000}}),
            "haproxy_affinity_defaults.timeouts.client",
            "with its unit",
        ),
        (lambda v: v.update(raw={"a": 1}), "haproxy_affinity_raw", "list of lines"),
    ],
)
def test_refusals(
    change: t.Callable[[dict[str, t.Any]], t.Any], path: str | None, text: str
) -> None:
    _site, problems, _warnings = site(change)
    wanted = [
        each for each in problems if path is None or each.startswith((f"{path} ", f"{path}:"))
    ]
    assert wanted, problems
    assert any(text in each for each in wanted), wanted
    assert all(each.endswith(".") for each in problems)


def test_servers_of_a_group() -> None:
    found, problems, warnings = site(
        backend(
            servers=None, servers_group="g", server_defaults={"port": 8080}, transparent="clientip"
        )
    )
    assert problems == []
    assert [(s.name, s.address, s.address_ipv6, s.port) for s in found.backends[0].servers] == [
        ("s1", "10.1.0.1", "fd00::1", 8080),
        ("s2", "10.1.0.2", None, 8080),
    ]
    assert len(warnings) == 1
    assert "s2 has no IPv6 address" in warnings[0]


def test_a_group_s_host_without_address_names_host_and_remedy() -> None:
    variables = copy.deepcopy(SITE)
    variables["backends"] = [{"name": "app", "servers_group": "g", "server_defaults": {"port": 80}}]
    _site, problems, _warnings = read_site(variables, {"g": [Member("web9", None, None)]})
    assert problems == [
        f"{B}.servers_group has host web9, a server without address; set haproxy_affinity_address (or"
        " haproxy_affinity_address_ipv6) for web9 or gather its facts."
    ]


def test_a_host_s_own_settings() -> None:
    variables = copy.deepcopy(SITE)
    variables["backends"] = [{"name": "app", "servers_group": "g", "server_defaults": {"port": 80}}]
    own = {"port": 81, "weight": 5, "backup": True, "address_ipv6": "fd00::9"}
    found, problems, _warnings = read_site(variables, {"g": [Member("web1", None, None, own)]})
    assert problems == []
    (server,) = found.backends[0].servers
    assert (server.address_ipv6, server.port, server.words) == ("fd00::9", 81, "weight 5 backup")


def test_wrong_hostvar_is_named() -> None:
    variables = copy.deepcopy(SITE)
    variables["backends"] = [{"name": "app", "servers_group": "g", "server_defaults": {"port": 80}}]
    _site, problems, _warnings = read_site(variables, {"g": [Member("web1", "10.0.0.999", None)]})
    assert problems == [
        "haproxy_affinity_address of host web1 is '10.0.0.999'; give an IP address or a host name."
    ]


@pytest.mark.parametrize("char", "#\"'\\${} ,;~|")
def test_what_haproxy_cfg_reads_itself_is_no_cookie_value(char: str) -> None:
    """A "#" would hide the rest of the server's line, its check among it."""
    servers = [{"name": "s1", "address": "10.0.0.1", "port": 80, "cookie": f"a{char}b"}]
    _site, problems, _warnings = site(backend(servers=servers))
    assert [each.split(" is ")[0] for each in problems] == [f"{B}.servers[0].cookie"]


@pytest.mark.parametrize("char", "#\"'\\$;")
def test_nor_a_cookie_s_attribute(char: str) -> None:
    given = {"method": "cookie", "attr": [f"Path=/a{char}b"]}
    _site, problems, _warnings = site(backend(persistence=given))
    assert [each.split(" is ")[0] for each in problems] == [f"{B}.persistence.attr[0]"]


@pytest.mark.parametrize(
    ("balance", "hash_type"),
    [
        ("hdr(host)", "consistent"),
        ("hdr (host)", "consistent"),
        ("rdp-cookie(mstshash)", "consistent"),
        ("rdp-cookie", "consistent"),
        ("uri depth 2", "consistent"),
        ("leastconn", None),
        ("random(2)", None),
    ],
)
def test_algorithms_that_hash_are_consistent(balance: str, hash_type: str | None) -> None:
    found, problems, _warnings = site(backend(balance=balance))
    assert problems == []
    assert found.backends[0].hash_type == hash_type


def test_cookie_values_must_differ() -> None:
    servers = [
        {"name": "a:1", "address": "10.0.0.1", "port": 80},
        {"name": "a-1", "address": "10.0.0.2", "port": 80},
    ]
    _site, problems, _warnings = site(backend(persistence={"method": "cookie"}, servers=servers))
    assert len(problems) == 1
    assert problems[0].startswith(f"{B}.servers[1].cookie of a-1 is 'a-1', the value of a:1 too")
    # the same values are of no interest where no cookie is used
    assert site(backend(servers=servers))[1] == []


def test_transparent_makes_pairs() -> None:
    found, problems, _warnings = site(
        backend(
            transparent="clientip",
            servers=[{"name": "s", "address": "10.0.0.1", "address_ipv6": "fd00::1", "port": 80}],
        )
    )
    assert problems == []
    assert found.backends[0].paired
    assert found.backends[0].http_reuse == "never"
    assert found.transparent


def test_a_pair_s_second_name_is_taken() -> None:
    def change(variables: dict[str, t.Any]) -> None:
        server = {"name": "s", "address": "10.0.0.1", "address_ipv6": "fd00::1", "port": 80}
        variables["backends"] = [
            {"name": "app", "transparent": "clientip", "servers": [server]},
            {"name": "app_ipv6", "servers": [server]},
        ]

    assert any("makes the section 'app_ipv6'" in each for each in site(change)[1])


def test_families_that_cannot_meet_are_refused() -> None:
    def change(variables: dict[str, t.Any]) -> None:
        variables["frontends"][0]["binds"] = [{"address": "fd00::80", "port": 80}]
        variables["backends"][0]["transparent"] = "clientip"

    _site, problems, _warnings = site(change)
    assert len(problems) == 1
    assert problems[0].startswith(
        f"{F}.binds[0] accepts IPv6 clients, but no server of backend 'app'"
    )


@pytest.mark.parametrize("source", ["hdr_ip(x-forwarded-for)", "192.0.2.9"])
def test_an_ipv4_source_needs_ipv4_servers(source: str) -> None:
    servers = [{"name": "s", "address_ipv6": "fd00::1", "port": 80}]
    _site, problems, _warnings = site(backend(transparent=source, servers=servers))
    assert any("has no IPv4 address" in each for each in problems)


def test_a_raw_rule_may_not_name_a_pair() -> None:
    def change(variables: dict[str, t.Any]) -> None:
        variables["frontends"][0]["raw"] = ["use_backend app if { path /x }"]
        variables["backends"][0].update(
            transparent="clientip",
            servers=[{"name": "s", "address": "10.0.0.1", "address_ipv6": "fd00::1", "port": 80}],
        )

    _site, problems, _warnings = site(change)
    assert len(problems) == 1
    assert problems[0].startswith(f"{F}.raw[0] names the backend 'app'")


def test_backends_in_raw_sections_are_known() -> None:
    def change(variables: dict[str, t.Any]) -> None:
        variables["frontends"][0]["default_backend"] = "special"
        variables["raw"] = "backend special\n  server a 10.0.0.1:80"

    assert site(change)[1] == []


@pytest.mark.parametrize(
    ("bind", "lines"),
    [
        ({"port": 80}, ["bind 0.0.0.0:80"]),
        ({"address": "*", "port": 80}, ["bind 0.0.0.0:80"]),
        (
            {"address": "10.0.0.1", "port": "80", "options": "ssl crt /x"},
            ["bind 10.0.0.1:80 ssl crt /x"],
        ),
        ({"address": "fd00::1", "port": 80}, ["bind [fd00::1]:80"]),
        ({"address": "[fd00:0::1]", "port": 80}, ["bind [fd00::1]:80"]),
        ({"address": "::", "port": 80}, ["bind [::]:80 v6only"]),
        ({"address": "::", "port": 80, "options": ["v6only", "tfo"]}, ["bind [::]:80 v6only tfo"]),
        (
            {"address": "::", "port": 80, "options": "v4v6 tfo"},
            ["bind 0.0.0.0:80 tfo", "bind [::]:80 v6only tfo"],
        ),
        ({"address": "/run/x.sock", "options": "mode 600"}, ["bind /run/x.sock mode 600"]),
    ],
)
def test_every_bind_is_of_one_family(bind: dict[str, t.Any], lines: list[str]) -> None:
    found, problems, _warnings = site(frontend(binds=[bind]))
    assert problems == []
    assert [each.line for each in found.frontends[0].binds] == lines


def test_old_line_warns_into_what() -> None:
    for given in (
        {"appsession": "appsession PHPSESSID len 52 timeout 3h"},
        {"method": "appsession PHPSESSID len 52 timeout 3h"},
    ):
        found, problems, warnings = site(backend(persistence=given))
        assert problems == []
        assert found.backends[0].persistence.method == "app_session"
        assert (
            "{method: app_session, name: PHPSESSID, path_parameter: true, len: 52, timeout: 3h}"
            in warnings[0]
        )
        assert "has no request-learn" in warnings[1]


def test_old_line_with_an_addition() -> None:
    given = {"appsession": "PHPSESSID len 52 timeout 3h", "request_learn": True, "table_size": "5k"}
    found, problems, warnings = site(backend(persistence=given))
    assert problems == []
    values = found.backends[0].persistence.values
    assert (values["request_learn"], values["table_size"], values["timeout"]) == (True, "5k", "3h")
    assert len(warnings) == 1
