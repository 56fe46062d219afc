# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""HAProxy's own words: -vv, arguments, /proc, configuration."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_haproxy as haproxy
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_haproxy import (
    Process,
    Source,
)

OLD = "HA-Proxy version 2.2.9-2+deb11u6 2023/12/23 - https://haproxy.org/\n"
NEW = "HAProxy version 3.2.26-1 2026/10/14 - https://haproxy.org/\n"


@pytest.mark.parametrize(
    ("text", "branch", "transparent"),
    [
        (f"{OLD}Feature list : +EPOLL +TPROXY +LINUX_TPROXY +LUA\n", (2, 2), True),
        (f"{NEW}Feature list : +EPOLL -LINUX_TPROXY +LUA\n", (3, 2), False),
        (f"{NEW}Feature list : +EPOLL +LUA\n", (3, 2), False),
        ("HA-Proxy version 1.8.30\n  OPTIONS = USE_LINUX_TPROXY=1 USE_LUA=1\n", (1, 8), True),
        (NEW, (3, 2), None),
        ("", (0, 0), None),
    ],
)
def test_binary(text: str, branch: tuple[int, int], transparent: bool | None) -> None:
    found = haproxy.binary(text, "/usr/sbin/haproxy")
    assert (found.branch, found.transparent) == (branch, transparent)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((name, True) for name in ("haproxy", "haproxy-3.0.11", "haproxy26", "haproxy-2.9-dev5")),
        # As the kernel cuts them, and in full.
        *((name, False) for name in ("haproxy_exporte", "haproxy_exporter", "haproxy-exporter")),
        *((name, False) for name in ("haproxy-systemd", "haproxyctl", "haproxy-wi", "sh", "")),
    ],
)
def test_the_programs_name(text: str, expected: bool) -> None:
    assert haproxy.is_name(text) is expected


def test_status() -> None:
    text = "Name:\thaproxy\nPPid:\t7\nUid:\t0\t65534\t65534\t65534\nCapEff:\t0000000000002000\n"
    assert haproxy.status(text) == (7, 65534, 0x2000)
    assert haproxy.status("PPid:\tx\nUid:\nCapEff:\tz\n") == (None, None, None)
    assert [
        Process(1, 0, capabilities=bits).may_be_transparent
        for bits in (0x2000, 0x1000, 0xC00, None)
    ] == [True, True, False, None]


def test_arguments() -> None:
    argv = "haproxy -Ws -f a.cfg -f /etc/haproxy -p /run/x -sf 12 13 -x sockpair@4"
    process = Process(20, 1, tuple(argv.split()))
    assert process.files == ("a.cfg", "/etc/haproxy")
    assert process.predecessors == (12, 13)
    assert process.supervises
    assert Process(1, 0, ("haproxy", "-db", "--", "a", "b")).files == ("a", "b")
    assert Process(1, 0, ("haproxy", "-f")).files == ()


def pids(processes: list[Process]) -> list[tuple[int, list[int], list[int]]]:
    return [
        (found.master.pid, [one.pid for one in found.workers], [one.pid for one in found.old])
        for found in haproxy.instances(processes)
    ]


def test_instances() -> None:
    first = ("haproxy", "-W", "-f", "a")
    again = (*first, "-sf", "11")
    assert pids([]) == []
    assert pids([Process(10, 1, first), Process(11, 10, first)]) == [(10, [11], [])]
    assert pids([Process(10, 1, again), Process(11, 10, first), Process(12, 10, again)]) == [
        (10, [12], [11])
    ]
    # Without a master.
    assert pids([Process(10, 1, ("haproxy", "-db", "-f", "a"))]) == [(10, [10], [])]
    # A worker that outlived its master, beside a new one and alone.
    assert pids([Process(10, 1, first), Process(11, 10, first), Process(5, 1, first)]) == [
        (10, [11], [5])
    ]
    assert pids([Process(5, 1, first)]) == [(5, [5], [])]
    # Two that have nothing to do with each other.
    assert pids([Process(1, 0, ("h", "-f", "a")), Process(2, 0, ("h", "-f", "b"))]) == [
        (1, [1], []),
        (2, [2], []),
    ]


TEXT = """
global   # not "everything"
    user haproxy
    setcap cap_net_raw,cap_net_bind_service
defaults
    source 0.0.0.0 usesrc clientip
defaults plain
    mode http
frontend web
    bind :80,[::]:80 v6only
    use_backend b if { path /b }
    default_backend a
backend a from plain
    server s1 10.0.0.1:80 check
backend b
    server s1 fd00::1:80
    server-template t 3 app.example:80 source [::] usesrc client
    default-server source 10.0.0.9
listen c from plain
    bind 10.0.0.5:81
    source "0.0.0.0" usesrc hdr_ip(x-forwarded-for,-1)  # the client's
    server s1 ipv4@10.0.0.1:81 cookie source
    server s2 /run/x.sock
    server any 0.0.0.0
    no option http-server-close
"""


def test_configuration() -> None:
    found = haproxy.configuration([("x", TEXT)])
    assert (found.paths, found.user) == (("x",), "haproxy")
    assert found.setcap == ("cap_net_raw", "cap_net_bind_service")
    web, a, b, c = found.proxies
    assert [proxy.name for proxy in found.backends] == ["a", "b", "c"]
    assert [proxy.name for proxy in found.transparent] == ["b", "c"]
    assert (web.binds, web.default_backend, web.switches) == ((":80", "[::]:80"), "a", True)
    assert a.source is None
    assert c.source == Source("0.0.0.0", "hdr_ip(x-forwarded-for,-1)")
    assert [(one.address, one.port, one.family) for one in (*b.servers, *c.servers)] == [
        ("fd00::1", 80, "ipv6"),
        ("app.example", 80, None),
        ("10.0.0.1", 81, "ipv4"),
        ("/run/x.sock", None, None),
        ("0.0.0.0", None, "ipv4"),
    ]
    assert [b.source_of(one) for one in b.servers] == [
        Source("10.0.0.9"),
        Source("[::]", "client"),
    ]
    assert found.targets() == (("ipv4", "10.0.0.1", 81),)


def test_a_plain_defaults_section_begins_anew() -> None:
    text = "defaults\n source 0.0.0.0 usesrc clientip\ndefaults\n mode tcp\nbackend a\n server s 10.0.0.1"
    assert haproxy.configuration([("x", text)]).transparent == ()


@pytest.mark.parametrize(
    ("bind", "families"),
    [
        (":80", ("ipv4",)),
        ("*:80", ("ipv4",)),
        ("10.0.0.1:80", ("ipv4",)),
        ("[::]:80", ("ipv6",)),
        (":::80", ("ipv6",)),
        ("ipv6@:80", ("ipv6",)),
        ("/run/x.sock", ()),
        ("unix@/run/x.sock", ()),
        ("fd@3", ()),
        ("app.example:80", ()),
    ],
)
def test_bind_families(bind: str, families: tuple[str, ...]) -> None:
    assert haproxy.bind_families(bind) == families


WORDS = (
    "global defaults frontend backend listen from source usesrc server default-server bind user "
    "setcap default_backend use_backend no 10.0.0.1:80 [::1]:80 [ ] :: : 1:2:3 \" ' \\ # server-template"
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(WORDS.split()) | st.text(max_size=5), max_size=6), max_size=8)
)
def test_whatever_a_configuration_says_it_is_read(lines: list[list[str]]) -> None:
    text = "\n".join(" ".join(line) for line in lines)
    found = haproxy.configuration([("x", text)])
    found.targets()
    for proxy in found.proxies:
        for bind in proxy.binds:
            haproxy.bind_families(bind)
    haproxy.status(text)
    haproxy.binary(text, "x")
