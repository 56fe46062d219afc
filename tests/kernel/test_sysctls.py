# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sysctls by what the kernel makes of them for each interface, and for interfaces that come later."""

from __future__ import annotations

import sys
import typing as t

import pytest
from hosts import Host, items

CONF = "/proc/sys/net/ipv4/conf"


def set_(host: Host, key: str, **values: int) -> None:
    """Of `all` first, because the kernel writes that of forwarding through."""
    host.sh("".join(f"echo {value} >{CONF}/{name}/{key}\n" for name, value in values.items()))


def get(host: Host, key: str, *names: str) -> list[int]:
    return [int(host.sh(f"cat {CONF}/{name}/{key}")) for name in names]


def sysctls(result: dict[str, t.Any]) -> list[str]:
    return [item[len("sysctl ") :] for item in items(result) if item.startswith("sysctl ")]


# values of all, back and front; options; the changes; values afterwards.
EFFECTIVE: dict[str, tuple[str, tuple[int, int, int], dict[str, t.Any], list[str], list[int]]] = {
    "loose over strict": (
        "rp_filter",
        (1, 0, 0),
        {"rp_filter": 2, "interfaces": ["back"]},
        ["net.ipv4.conf.back.rp_filter"],
        [1, 2, 0],
    ),
    "strict by all": (
        "rp_filter",
        (1, 0, 0),
        {"rp_filter": 1, "interfaces": ["back"]},
        [],
        [1, 0, 0],
    ),
    "loose by all": (
        "rp_filter",
        (2, 0, 1),
        {"rp_filter": 2},
        [],
        [2, 0, 1],
    ),
    "loose everywhere": (
        "rp_filter",
        (0, 0, 1),
        {"rp_filter": 2},
        ["net.ipv4.conf.all.rp_filter"],
        [2, 0, 1],
    ),
    "strict everywhere": (
        "rp_filter",
        (0, 1, 2),
        {"rp_filter": 1},
        ["net.ipv4.conf.all.rp_filter", "net.ipv4.conf.front.rp_filter"],
        [1, 1, 1],
    ),
    "off everywhere": (
        "rp_filter",
        (2, 0, 1),
        {"rp_filter": 0},
        ["net.ipv4.conf.all.rp_filter", "net.ipv4.conf.front.rp_filter"],
        [0, 0, 0],
    ),
    "redirects by all": (
        "send_redirects",
        (1, 0, 0),
        {"send_redirects": False},
        ["net.ipv4.conf.all.send_redirects"],
        [0, 0, 0],
    ),
    "redirects by one": (
        "send_redirects",
        (0, 1, 0),
        {"send_redirects": False},
        ["net.ipv4.conf.back.send_redirects"],
        [0, 0, 0],
    ),
    "redirects of another one": (
        "send_redirects",
        (0, 0, 1),
        {"send_redirects": False, "interfaces": ["back"]},
        [],
        [0, 0, 1],
    ),
    "redirects wanted": (
        "send_redirects",
        (1, 0, 0),
        {"send_redirects": True},
        [],
        [1, 0, 0],
    ),
    "forwarding of one": (
        "forwarding",
        (1, 0, 1),
        {"forwarding": True},
        ["net.ipv4.conf.back.forwarding"],
        [1, 1, 1],
    ),
    "forwarding of all writes each": (
        "forwarding",
        (0, 0, 0),
        {"forwarding": True},
        ["net.ipv4.conf.all.forwarding"],
        [1, 1, 1],
    ),
    "forwarding of another one": (
        "forwarding",
        (1, 1, 0),
        {"forwarding": True, "interfaces": ["back"]},
        [],
        [1, 1, 0],
    ),
}


@pytest.mark.parametrize("name", EFFECTIVE)
def test_only_what_is_effectively_wrong_changes(host: Host, name: str) -> None:
    key, before, options, expected, after = EFFECTIVE[name]
    names = ("all", "back", "front")
    host.sh(
        f"echo 0 | tee {CONF}/*/send_redirects {CONF}/*/rp_filter; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"
    )
    set_(host, key, **dict(zip(names, before)))
    alone: dict[str, t.Any] = {"forwarding": None, "send_redirects": None, **options}
    untouched = host.state()
    predicted = host.module(check=True, **alone)
    assert sysctls(predicted) == expected
    result = host.module(**alone)
    assert result["changes"] == predicted["changes"]
    assert get(host, key, *names) == after
    # The boot unit's program judges and does the same.
    host.sh("tproxy-host check")
    if expected:
        set_(host, key, **dict(zip(names, before)))
        said = host.sh("tproxy-host check", check=False).splitlines()
        assert {line.split(":")[0] for line in said} >= {
            f"sysctl {item.replace('.', '/')}" for item in expected
        }
        host.sh("tproxy-host start; tproxy-host check")
        assert get(host, key, *names) == after
    host.module(state="absent")
    assert host.state() == untouched


def test_the_reason_is_said(host: Host) -> None:
    set_(host, "rp_filter", all=1, back=0)
    (change,) = (
        change
        for change in host.module(check=True, rp_filter=2, interfaces=["back"])["changes"]
        if "rp_filter" in change["item"]
    )
    assert change["found"] == "0 (effective 1, because that of all is)"
    assert change["wanted"] == "2"


@pytest.mark.parametrize("check", [True, False], ids=["check", "run"])
def test_what_protects_others_is_not_lowered(host: Host, check: bool) -> None:
    set_(host, "rp_filter", all=1)
    before = host.state()
    refusal = host.module(check=check, rp_filter=0, interfaces=["back"])
    assert refusal.get("option") == "rp_filter"
    assert refusal["found"] == ["net.ipv4.conf.all.rp_filter = 1"]
    assert host.state() == before


@pytest.mark.parametrize("value", [0, 1, 2])
def test_what_was_lowered_or_raised_by_an_earlier_run_is_in_nobodys_way(
    host: Host, value: int
) -> None:
    """The value of `all` that other options wanted goes back, and the interface has its own then."""
    set_(host, "rp_filter", all=0, back=0, front=0)
    before = host.state()
    host.module(rp_filter=2)
    options: dict[str, t.Any] = {"interfaces": ["back"], "rp_filter": value}
    assert items(host.module(**options))
    assert get(host, "rp_filter", "all", "front", "back") == [0, 0, value]
    assert items(host.module(check=True, **options)) == []
    host.module(state="absent")
    assert host.state() == before


def test_a_value_without_effect_is_warned_of(host: Host) -> None:
    set_(host, "rp_filter", all=1)
    given = {"net.ipv4.conf.back.rp_filter": 0, "net.ipv4.conf.front.src_valid_mark": 1}
    (warning,) = host.module(check=True, sysctls=given)["warnings"]
    assert "net.ipv4.conf.back.rp_filter = 0 has no effect" in warning
    assert (
        host.module(check=True, sysctls={**given, "net.ipv4.conf.all.rp_filter": 0})["warnings"]
        == []
    )


def test_of_two_lines_for_a_sysctl_the_last_one_counts(host: Host) -> None:
    options = {"sysctls": {"net.ipv4.conf.back.forwarding": 0}}
    host.module(**options)
    assert get(host, "forwarding", "all", "front", "back") == [1, 1, 0]
    host.sh("tproxy-host check; tproxy-host start")
    assert items(host.module(check=True, **options)) == []


def test_a_sysctl_of_several_numbers(host: Host) -> None:
    options = {"sysctls": {"net.ipv4.ip_local_port_range": "20000 50000"}}
    host.module(**options)
    host.sh("tproxy-host check; echo '30000 40000' >/proc/sys/net/ipv4/ip_local_port_range")
    assert "found: 30000 40000, wanted: 20000 50000" in host.sh("tproxy-host check", check=False)
    host.sh("tproxy-host start; tproxy-host check")
    assert items(host.module(check=True, **options)) == []


@pytest.mark.parametrize("forwarding", [True, False])
def test_interfaces_that_come_later_are_as_wanted(host: Host, forwarding: bool) -> None:
    host.sh(f"echo {1 - forwarding} >{CONF}/all/forwarding")
    options: dict[str, t.Any] = {"forwarding": forwarding, "send_redirects": False, "rp_filter": 0}
    host.sh(f"echo 2 | tee {CONF}/*/rp_filter")
    host.module(**options)
    host.sh("ip link add later type veth peer name end; ip link set later up")
    for key, value in (("forwarding", int(forwarding)), ("send_redirects", 0), ("rp_filter", 0)):
        assert get(host, key, "later") == [value]
    assert items(host.module(check=True, **options)) == []
    host.sh("tproxy-host check")


def test_an_interface_with_values_of_its_own_that_comes_back(host: Host) -> None:
    """Made anew it has the values of `default`; the loader gives it its own."""
    options: dict[str, t.Any] = {"interfaces": ["back"], "rp_filter": 2}
    host.module(**options)
    host.sh("ip link del back; ip link add back type veth peer name end; ip link set back up")
    host.sh(f"echo 1 >{CONF}/back/rp_filter")
    assert sysctls(host.module(check=True, **options)) == ["net.ipv4.conf.back.rp_filter"]
    host.sh("tproxy-host start; tproxy-host check")
    assert items(host.module(check=True, **options)) == []


# RFC 4861, 4.2 and 4.6.2: no default router; a prefix that is on the link, and is for addresses or not.
ADVERTISE = """
import socket, struct, sys
device, flags, lifetime = sys.argv[1], int(sys.argv[2], 0), int(sys.argv[3], 0)
out = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
index = socket.if_nametoindex(device)
advertisement = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 0, 0, 0)
prefix = struct.pack("!BBBBIII", 3, 4, 64, flags, lifetime, lifetime, 0)
address = socket.inet_pton(socket.AF_INET6, "2001:db8:7::")
out.sendto(advertisement + prefix + address, ("ff02::1", 0, 0, index))
"""


@pytest.mark.parametrize(
    ("flags", "lifetime"),
    [("0xc0", "900"), ("0xc0", "0xffffffff"), ("0x80", "900")],
    ids=["addresses", "addresses for ever", "a prefix on the link"],
)
def test_between_two_advertisements_a_host_without_a_default_route_keeps_what_it_has(
    host: Host, flags: str, lifetime: str
) -> None:
    """Forwarding switches off advertisements, and what they brought would run out."""
    learned = "ip -6 address show dev front to 2001:db8:7::/64; ip -6 route show 2001:db8:7::/64"

    def advertise(seconds: str, expected: str) -> None:
        """Until the host has learned what is expected of it."""
        host.run(sys.executable, "-c", ADVERTISE, "front-end", flags, seconds)
        host.sh(
            f"for i in $(seq 50); do ! ({learned}) | grep -q '{expected}' || exit 0; sleep 0.05; done; exit 1"
        )

    host.sh(
        # The other end shall only advertise.
        "echo 0 | tee /proc/sys/net/ipv6/conf/back/accept_ra /proc/sys/net/ipv6/conf/front-end/accept_ra\n"
        "for i in front front-end; do ip link set $i down addrgenmode eui64; done\n"
        "ip link set front up; ip link set front-end up\n"
        "for i in $(seq 50); do ip -6 address show dev front-end | grep -q fe80 && exit 0; sleep 0.05; done; exit 1"
    )
    advertise(lifetime, "dev front\\|2001:db8:7:")
    assert not host.sh("ip -6 route show default")
    result = host.module()
    assert [item for item in sysctls(result) if item.endswith("accept_ra")] == [
        "net.ipv6.conf.front.accept_ra"
    ]
    assert host.sh("cat /proc/sys/net/ipv6/conf/all/forwarding") == "1\n"
    # The next one is heard.
    advertise("8000", "[78][90][0-9][0-9]sec")
