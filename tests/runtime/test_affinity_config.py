# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What haproxy_affinity writes is taken by every HAProxy version, and transparent backends keep families apart."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from affinity_scene import Scene, app, check, frontend, in_namespace, scene

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _affinity_config as config

EVERYTHING: dict[str, t.Any] = {
    "global": {"maxconn": 1000, "nbthread": 2, "log": ["stderr format raw local0"], "raw": ["# a comment"]},
    "admin_socket": {"path": "/tmp/admin.sock", "mode": "600", "timeout": "1m"},
    "defaults": {
        "maxconn": 500,
        "timeouts": {"client_fin": "10s", "tarpit": "20s"},
        "options": ["dontlognull", "redispatch 2"],
    },
    "frontends": [
        frontend(
            default_backend="app",
            use_backends=[
                {"backend": "shop", "if": '{ path_beg /shop } or { hdr(host) -m str "a b" }'},
                {"backend": "asp", "if": "is_asp"},
            ],
            maxconn=100,
            options=["forwardfor"],
            raw=["acl is_asp path_beg /asp"],
        ),
        {"name": "mail", "mode": "tcp", "binds": [{"port": 25}, {"address": "::", "port": 25}], "default_backend": "smtp"},
        {"name": "passing", "mode": "tcp", "binds": [{"port": 3129, "transparent": True}], "default_backend": "wanted"},
        {"name": "dual", "binds": [{"address": "::", "port": 8000, "options": "v4v6"}], "default_backend": "app"},
    ],
    "backends": [
        {
            "name": "wanted", "mode": "tcp", "transparent": "clientip",
            "servers": [{"name": "original", "address": "0.0.0.0"}],
        },
        {
            **app("46"),
            "transparent": "clientip",
            "persistence": {
                "method": "cookie", "name": "SRV", "preserve": True, "postonly": True, "httponly": True,
                "secure": True, "domain": [".example.org", "example.com"], "maxidle": "30m", "maxlife": "8h",
            },
            "server_defaults": {
                "port": 80, "inter": "2s", "fastinter": "1s", "downinter": "5s", "rise": 2, "fall": 3,
                "maxconn": 100, "weight": 10, "slowstart": "10s", "on_marked_down": "shutdown-sessions",
            },
        },
        {
            "name": "shop",
            "transparent": "client",
            "persistence": {"appsession": "JSESSIONID len 52 timeout 10800000 request-learn"},
            "servers": [{**server, "port": 80} for server in app("46")["servers"]],
        },
        {
            "name": "asp",
            "persistence": {
                "method": "app_session", "name": "ASP.SESSION-ID", "prefix": True,
                "path_parameter": True, "query_string": True,
            },
            "servers": [{"name": "one", "address": "127.0.0.1", "port": 80, "check": False, "backup": True, "weight": 0}],
        },
        {
            "name": "smtp", "mode": "tcp", "transparent": "clientip", "persistence": {"method": "source"},
            "servers": app("46")["servers"], "server_defaults": {"port": 25},
        },
        {
            "name": "header", "transparent": "hdr_ip(x-forwarded-for,-1)",
            "servers": app("4")["servers"], "server_defaults": {"port": 80},
        },
        {
            "name": "fixed", "transparent": "fd81::99",
            "servers": app("6")["servers"], "server_defaults": {"port": 80},
        },
    ],
    "raw": ["listen stats", "    bind 127.0.0.1:8404", "    stats enable"],
}  # fmt: skip


def plan_for(version: str, variables: t.Mapping[str, t.Any]) -> config.Plan:
    parsed = config.parse_version(f"HAProxy version {version}")
    plan = config.make_plan(
        variables, {}, parsed, {"dev_log": True, "state_file": "/tmp/server-state"}
    )
    assert plan.problems == []
    return plan


def test_everything_is_valid(binaries: Path, version: str, short_path: Path) -> None:
    user = {} if version in ("2.2", "2.6") else {"user": "nobody", "group": "nogroup"}
    plan = plan_for(version, {**EVERYTHING, "global": {**EVERYTHING["global"], **user}})
    code, said = check(binaries / version / "run", plan, short_path / "haproxy.cfg")
    assert code == 0, said
    # nothing that the role writes by itself is deprecated or ignored; a state file is not there yet
    warned = [
        line for line in said.splitlines() if "[WARNING]" in line and "state file" not in line
    ]
    assert warned == []


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "insert", "indirect": False, "nocache": False},
        {"mode": "prefix"},
        {"mode": "prefix", "nocache": True, "httponly": True, "secure": True},
        {"mode": "rewrite"},
        {"mode": "rewrite", "nocache": True, "domain": "example.org"},
    ],
)
def test_cookie_modes_are_valid(
    binaries: Path, version: str, short_path: Path, values: dict[str, t.Any]
) -> None:
    backend = {**app(), "persistence": {"method": "cookie", **values}}
    user = {"user": "nobody", "group": "nogroup"}
    plan = plan_for(
        version,
        {"global": user, "frontends": [frontend(default_backend="app")], "backends": [backend]},
    )
    code, said = check(binaries / version / "run", plan, short_path / "haproxy.cfg")
    assert code == 0, said
    assert "cookie" not in said, said


def rights(version: str) -> dict[str, t.Any]:
    """An account that this machine has; before 3.0 transparent sources need root."""
    if version in ("2.2", "2.6"):
        return {"log": ["stderr format raw local0"]}
    return {"log": ["stderr format raw local0"], "user": "nobody", "group": "nogroup"}


def test_families_are_kept_apart(binaries: Path, version: str, short_path: Path) -> None:
    """Real clients of both families, 6to4 and IPv4 on a dual-stack bind among them, through usesrc clientip."""

    def body() -> None:
        with scene(binaries / version / "run", version, short_path) as it:
            plan = it.plan(
                **{"global": rights(version)},
                frontends=[
                    frontend(
                        default_backend="app",
                        use_backends=[{"backend": "app", "if": "{ path /a } || { path /b }"}],
                    ),
                    {
                        "name": "dual",
                        "binds": [{"address": "::", "port": 81, "options": "v4v6"}],
                        "default_backend": "app",
                    },
                ],
                backends=[
                    {
                        **app("46"),
                        "transparent": "clientip",
                        "persistence": {"method": "app_session", "name": "PHPSESSID"},
                    }
                ],
            )
            it.start(plan)
            worker_runs_as(it, version)
            for client in ("10.81.1.7", "fd81:0:0:1::7", "2002:a51:1::1"):
                for path in ("/", "/a", "/b"):
                    seen = it.get(path, source=client)
                    assert (seen.status, seen.client) == (200, client), path
            assert it.get("/", source="10.81.1.7", port=81).client == "10.81.1.7"
            assert it.get("/", source="fd81:0:0:1::7", port=81).client == "fd81:0:0:1::7"
            one_session_over_both_families(it)

    in_namespace(body)


def worker_runs_as(it: Scene, version: str) -> None:
    assert it.process
    status = Path(f"/proc/{it.process.pid}/status").read_text()
    uid = next(line.split()[2] for line in status.splitlines() if line.startswith("Uid:"))
    assert (uid == "0") == (version in ("2.2", "2.6"))


def one_session_over_both_families(it: Scene) -> None:
    """One stick table for both sections: a phone that changes from IPv4 to IPv6 keeps its server."""
    for _n in range(6):
        first = it.get("/session", source="10.81.1.8")
        # the round robins of the two sections must not agree by chance
        it.get("/", source="fd81:0:0:1::8")
        cookie = next(each.split(";")[0] for each in first.set_cookies if "PHPSESSID" in each)
        assert it.get("/session", cookie=cookie, source="fd81:0:0:1::8").server == first.server
        assert it.get("/session", cookie=cookie, source="2002:a51:1::1").server == first.server


def test_without_transparency_servers_see_the_proxy(
    binaries: Path, version: str, short_path: Path
) -> None:
    """The control of the test above."""

    def body() -> None:
        with scene(binaries / version / "run", version, short_path) as it:
            it.serve()
            seen = it.get("/", source="10.81.1.7")
            assert seen.status == 200
            assert seen.client != "10.81.1.7"

    in_namespace(body)
