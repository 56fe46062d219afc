# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The servers see the client's own address, and clients stay on their server."""

from __future__ import annotations

import pytest
from lab import (
    BY_SESSION,
    BY_SOURCE,
    CLIENT,
    FRONT,
    NOT_TRANSPARENT,
    PROXY_BACK,
    SERVERS,
    SPREAD,
    WWW,
    Lab,
    page,
    url,
)

FAMILIES = ("ipv4", "ipv6")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("port", [WWW, BY_SOURCE, BY_SESSION, SPREAD])
def test_the_application_sees_the_clients_own_address(lab: Lab, family: str, port: int) -> None:
    assert page(lab.get(url(family, port)))["peer"] == CLIENT[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_without_transparency_it_sees_the_proxys(lab: Lab, family: str) -> None:
    """The control: were the lab's own network showing client addresses, this would fail."""
    # Such a backend has one family: a proxy connection need not be of the client's.
    assert page(lab.get(url(family, NOT_TRANSPARENT)))["peer"] in PROXY_BACK.values()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_applications_log_shows_the_client(lab: Lab, family: str) -> None:
    marker = f"/index.php?marker-{family}"
    server = page(lab.get(url(family, WWW, marker)))["server_name"]
    line = lab.run(server, f"grep -F 'GET {marker} ' /var/log/nginx/application.log | tail -n 1")
    assert line.split()[0] == CLIENT[family]


def test_haproxy_was_built_here_with_tproxy(lab: Lab) -> None:
    version = lab.run("proxy", "/usr/local/sbin/haproxy -vv")
    assert "+TPROXY" in version
    assert version.startswith("HAProxy version 3.0.")
    assert lab.run("proxy", "grep VERSION_CODENAME /etc/os-release").strip().endswith("bookworm")
    pid = lab.run("proxy", "systemctl show --property MainPID --value haproxy").strip()
    assert lab.run("proxy", f"readlink /proc/{pid}/exe").startswith("/opt/haproxy/releases/")


def servers_of(
    lab: Lab, port: int, options: str, count: int = 10, path: str = "/session.php"
) -> list[str]:
    return [
        page(lab.get(url("ipv4", port, path), options))["server_name"] for attempt in range(count)
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("port", [WWW, BY_SESSION])
def test_a_client_with_its_cookies_stays(lab: Lab, family: str, port: int) -> None:
    seen = set()
    for client in range(6):
        jar = f"-c /tmp/jar-{client} -b /tmp/jar-{client}"
        lab.run("client", f"rm -f /tmp/jar-{client}")
        pages = [page(lab.get(url(family, port, "/session.php"), jar)) for attempt in range(10)]
        assert len({p["server_name"] for p in pages}) == 1
        # The application agrees: one session, every visit counted in it.
        assert [p["visits"] for p in pages] == [str(n) for n in range(1, 11)]
        assert len({p["session_id"] for p in pages}) == 1
        seen.add(pages[0]["server_name"])
    assert seen == set(SERVERS)


@pytest.mark.parametrize("port", [WWW, BY_SESSION])
def test_a_client_without_cookies_does_not(lab: Lab, port: int) -> None:
    """The control: a balancer that always chose one server would pass the test above."""
    assert set(servers_of(lab, port, "")) == set(SERVERS)


def test_haproxys_cookie_is_beside_the_applications(lab: Lab) -> None:
    headers = lab.get(url("ipv4", WWW, "/session.php"), "-D - -o /dev/null").lower()
    assert "set-cookie: session_cookie=app" in headers
    assert "set-cookie: phpsessid=" in headers


def test_by_source_an_address_stays_and_addresses_spread(lab: Lab) -> None:
    homes = {}
    for n in range(100, 120):
        servers = set(
            servers_of(lab, BY_SOURCE, f"--interface {FRONT}.{n}", count=3, path="/index.php")
        )
        assert len(servers) == 1
        homes[n] = servers.pop()
    assert set(homes.values()) == set(SERVERS)


def test_without_persistence_requests_alternate(lab: Lab) -> None:
    assert set(servers_of(lab, SPREAD, "-c /tmp/jar -b /tmp/jar")) == set(SERVERS)
