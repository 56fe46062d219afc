# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients stay on their server: every method of haproxy_affinity, on every HAProxy version."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from affinity_scene import SERVERS, Scene, in_namespace, scene

Stage = Callable[[Callable[[Scene], None]], None]

CLIENTS = [f"10.81.1.{number}" for number in range(1, 41)]


@pytest.fixture
def stage(binaries: Path, version: str, short_path: Path) -> Stage:
    """Run a test's body inside a scene."""

    def play(body: Callable[[Scene], None]) -> None:
        def inside() -> None:
            with scene(binaries / version / "run", version, short_path) as made:
                body(made)

        in_namespace(inside)

    return play


def session_of(set_cookies: list[str], name: str = "PHPSESSID") -> str:
    """What a browser would send back."""
    return next(cookie.split(";")[0] for cookie in set_cookies if cookie.startswith(name))


def test_none_spreads(stage: Stage) -> None:
    """The control of all others: without persistence one client meets every server."""

    def body(it: Scene) -> None:
        it.serve()
        assert set(it.servers(6, source=CLIENTS[0])) == set(SERVERS)

    stage(body)


def test_source_keeps_addresses_and_moves_only_the_lost_server_s(stage: Stage) -> None:
    def body(it: Scene) -> None:
        it.serve(persistence={"method": "source"})
        homes = {client: it.get(source=client).server for client in CLIENTS}
        assert set(homes.values()) == set(SERVERS)
        for client, home in homes.items():
            assert it.get(source=client).server == home
        it.ask("set server app/app2 state maint")
        moved = {client for client in CLIENTS if it.get(source=client).server != homes[client]}
        assert moved == {client for client, home in homes.items() if home == "app2"}

    stage(body)


def test_cookie_insert(stage: Stage) -> None:
    def body(it: Scene) -> None:
        it.serve(
            persistence={
                "method": "cookie",
                "name": "SRV",
                "httponly": True,
                "attr": ["SameSite=Strict"],
            }
        )
        first = it.get("/public")
        (cookie,) = first.set_cookies
        assert cookie.startswith(f"SRV={first.server};")
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        # nocache: a shared cache must not hand one client's cookie to another
        assert "private" in (first.headers.get_all("Cache-Control") or [])
        kept = f"lang=en; SRV={first.server}"
        assert set(it.servers(6, cookie=kept)) == {first.server}
        again = it.get(cookie=kept)
        assert again.set_cookies == []
        # indirect: the application does not see it
        assert again.cookie == "lang=en"
        # dropped, or naming no server: balanced anew, with a new cookie
        assert set(it.servers(6)) == set(SERVERS)
        stray = it.get(cookie="SRV=nobody")
        assert stray.set_cookies
        assert stray.set_cookies[0].startswith(f"SRV={stray.server}")

    stage(body)


def test_a_dead_server_s_clients_are_moved_and_pinned_again(stage: Stage) -> None:
    def body(it: Scene) -> None:
        it.serve(persistence={"method": "cookie", "name": "SRV"})
        for origin in it.origins["app1"]:
            origin.shutdown()
            origin.server_close()
        answer = it.get(cookie="SRV=app1")
        assert answer.status == 200
        assert answer.server in ("app2", "app3")
        it.ask("set server app/app1 health down")
        answer = it.get(cookie="SRV=app1")
        assert answer.set_cookies[0].startswith(f"SRV={answer.server};")
        it.origins["app1"] = []

    stage(body)


def test_cookie_prefix(stage: Stage) -> None:
    def body(it: Scene) -> None:
        it.serve(persistence={"method": "cookie", "name": "PHPSESSID", "mode": "prefix"})
        first = it.get("/session")
        cookie = session_of(first.set_cookies)
        assert cookie.startswith(f"PHPSESSID={first.server}~")
        assert set(it.servers(6, path="/session", cookie=cookie)) == {first.server}
        # the application sees its own cookie as it made it
        assert "~" not in it.get("/session", cookie=cookie).cookie

    stage(body)


def test_cookie_rewrite(stage: Stage) -> None:
    def body(it: Scene) -> None:
        it.serve(persistence={"method": "cookie", "name": "SRV", "mode": "rewrite"})
        first = it.get("/own")
        assert first.set_cookies[0].startswith(f"SRV={first.server}")
        assert set(it.servers(6, cookie=f"SRV={first.server}")) == {first.server}

    stage(body)


def test_app_session_follows_the_application_s_own_cookie(stage: Stage) -> None:
    def body(it: Scene) -> None:
        it.serve(persistence={"method": "app_session", "name": "PHPSESSID", "request_learn": False})
        homes = {}
        for _n in range(6):
            first = it.get("/session")
            homes[session_of(first.set_cookies)] = first.server
        assert set(homes.values()) == set(SERVERS)
        for cookie, home in homes.items():
            # PHP names the session only once, so this is what the table remembers
            assert set(it.servers(4, path="/session", cookie=f"theme=dark; {cookie}")) == {home}
        # dropped: a new session each time, on any server
        assert len({it.get("/session").server for _n in range(6)}) > 1

    stage(body)


@pytest.mark.parametrize("learn", [True, False])
def test_app_session_after_its_entry_is_lost(stage: Stage, learn: bool) -> None:
    """PHP does not repeat Set-Cookie, so without request_learn such a client is never pinned again."""

    def body(it: Scene) -> None:
        it.serve(persistence={"method": "app_session", "name": "PHPSESSID", "request_learn": learn})
        cookie = session_of(it.get("/session").set_cookies)
        assert len(it.servers(4, path="/session", cookie=cookie)) == 1
        it.ask("clear table app")
        met = it.servers(6, path="/session", cookie=cookie)
        assert len(met) == (1 if learn else 3)

    stage(body)


def test_app_session_survives_a_changed_configuration(stage: Stage, version: str) -> None:
    """Nothing but the table knows where these clients belong: PHP does not repeat Set-Cookie."""

    def body(it: Scene) -> None:
        it.directory.chmod(0o755)  # the role's directory is open, too
        given = {"method": "app_session", "name": "PHPSESSID", "request_learn": False}
        it.serve(persistence=given)
        homes = {}
        for _n in range(6):
            first = it.get("/session")
            homes[session_of(first.set_cookies)] = first.server
        if version == "2.6":
            # it teaches nothing before it has waited 5 s for a teacher of its own
            time.sleep(6)
        for balance in ("leastconn", "roundrobin"):
            it.serve(persistence=given, balance=balance)
            assert it.entries() == 6
            for cookie, home in homes.items():
                assert set(it.servers(4, path="/session", cookie=cookie)) == {home}

    stage(body)


def test_app_session_timeout_counts_idle_time(stage: Stage) -> None:
    """The old appsession forgot a session that was not used, not one that was old."""

    def body(it: Scene) -> None:
        it.serve(
            persistence={
                "method": "app_session",
                "name": "PHPSESSID",
                "timeout": "1500ms",
                "request_learn": False,
            }
        )
        first = it.get("/session")
        cookie = session_of(first.set_cookies)
        for _n in range(4):
            time.sleep(0.5)
            assert it.get("/session", cookie=cookie).server == first.server
        assert it.entries() == 1
        time.sleep(2.2)
        assert it.entries() == 0

    stage(body)


def test_app_session_without_cookies(stage: Stage) -> None:
    """A client that refuses cookies carries the session in the URL, as servlet containers and PHP do."""

    def body(it: Scene) -> None:
        it.serve(
            persistence={
                "method": "app_session",
                "name": "JSESSIONID",
                "path_parameter": True,
                "query_string": True,
            }
        )
        for path in (
            "/shop;jsessionid=aaaa",
            "/shop;JSESSIONID=bbbb?page=1",
            "/shop?x=1&JSESSIONID=cccc",
        ):
            assert len(it.servers(6, path=path)) == 1, path
        # cookie and path parameter name one session
        home = it.get("/shop;jsessionid=dddd").server
        assert set(it.servers(4, cookie="JSESSIONID=dddd")) == {home}
        # whatever query follows
        for query in ("?page=1", "?page=2&x=/a;b"):
            assert set(it.servers(4, path=f"/shop;jsessionid=dddd{query}")) == {home}, query
        assert len(it.servers(6, path="/shop?other=1")) == 3

    stage(body)


def test_appsession_line_with_prefix(stage: Stage) -> None:
    """ASP: cookie ASPSESSIONIDXXXX=id, whose name is known by its beginning only."""

    def body(it: Scene) -> None:
        it.serve(
            persistence={
                "appsession": "appsession ASPSESSIONID len 64 timeout 3h prefix mode query-string"
            }
        )
        homes = {}
        for _n in range(6):
            first = it.get("/asp")
            homes[session_of(first.set_cookies, "ASPSESSIONID")] = first.server
        assert set(homes.values()) == set(SERVERS)
        for cookie, home in homes.items():
            for sent in (cookie, f"theme=dark; {cookie}", f"a=1; {cookie}; z=2"):
                assert set(it.servers(3, path="/asp", cookie=sent)) == {home}, sent
            assert set(it.servers(3, path=f"/asp?a=b&{cookie}")) == {home}
        # no session at all: the whole header must not become a key
        before = it.entries()
        assert len(it.servers(6, path="/", cookie="theme=dark; xASPSESSIONIDQQ=1")) == 3
        assert it.entries() == before

    stage(body)
