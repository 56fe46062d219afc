# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""tproxy_return_path on a real kernel."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
import typing as t
from pathlib import Path

import pytest
from failing import failing
from hosts import Host, Network, items

ADDRESSES = """
ip address add 10.9.2.11/24 dev back
ip address add fd09:2::11/64 dev back nodad
ip address add 10.9.5.11/24 dev front
ip address add fd09:5::11/64 dev front nodad
"""
GATEWAYS = ["10.9.2.2", "fd09:2::2"]


def next_hop(host: Host, destination: str) -> str:
    words = host.sh(f"ip route get {destination}").split()
    return words[words.index("via") + 1]


# What another default route may look like.
BEFORE = {
    "none": "true",
    "same metric": "ip route add default via 10.9.5.1 dev front",
    "dhcp": "ip route add default via 10.9.5.1 dev front proto dhcp src 10.9.5.11 metric 100",
    "several": "ip route add default via 10.9.5.1 dev front proto static;"
    "ip route append default via 10.9.2.9 dev back; ip route add default via 10.9.5.7 dev front metric 50",
    "several next hops": "ip route add default proto static"
    " nexthop via 10.9.5.1 dev front nexthop via 10.9.2.9 dev back weight 3",
    "IPv6": "ip -6 route add default via fd09:5::1 dev front",
    "IPv6, same next hop": "ip -6 route add default via fd09:2::2 dev back metric 1",
    "IPv6, with and without next hop": "ip -6 route add default dev front metric 1;"
    "ip -6 route append default via fd09:5::1 dev front metric 1",
    "same next hop": "ip route add default via 10.9.5.1 dev front;"
    "ip route append default via 10.9.2.2 dev back",
    "IPv6, metric 1": "ip -6 route add default via fd09:5::1 dev front metric 1 mtu 1400",
}


@pytest.mark.parametrize("name", BEFORE)
def test_check_apply_again_absent(host: Host, name: str) -> None:
    host.sh(ADDRESSES + BEFORE[name])
    before = host.state()
    predicted, done = way_backs(host, {"check": True}, {}, {"gateways": GATEWAYS})
    assert done["changes"] == predicted["changes"]
    assert items(done)[:2] == ["ipv4 default route", "ipv6 default route"]
    assert next_hop(host, "192.0.2.1") == "10.9.2.2"
    assert next_hop(host, "2001:db8::1") == "fd09:2::2"
    again, gone, nothing = way_backs(
        host, {}, {"state": "absent"}, {"state": "absent"}, {"gateways": GATEWAYS}
    )
    assert items(again) == []
    assert items(gone)
    assert items(nothing) == []
    assert host.state() == before


def test_a_refused_route_leaves_the_old_one(host: Host) -> None:
    """More than one rival, and the interface goes down between looking and setting."""
    host.sh(ADDRESSES + BEFORE["several"])
    host.sh(
        "mkdir -p /usr/local/sbin; cat >/usr/local/sbin/ip <<'EOF'\n#!/bin/sh\n"
        '[ "$2" = -batch ] && /sbin/ip link set back down\nexec /sbin/ip "$@"\nEOF\n'
        "chmod +x /usr/local/sbin/ip"
    )
    refusal = host.module("tproxy_return_path", gateways=GATEWAYS)
    assert "refused" in refusal["msg"], refusal
    host.sh("rm /usr/local/sbin/ip")
    assert next_hop(host, "192.0.2.1") == "10.9.5.1"


def test_an_interface_that_is_down_is_refused_before_any_change(host: Host) -> None:
    host.sh(ADDRESSES + BEFORE["same metric"] + "\nip link set back down")
    before = host.state()
    for check in (True, False):
        refusal = host.module("tproxy_return_path", check=check, gateways=GATEWAYS[:1])
        assert refusal.get("option") == "gateways", refusal
        assert "the subnet of back, which is down" in refusal["msg"]
    assert host.state() == before


def test_absent_ends_even_if_an_old_route_can_not_come_back(host: Host) -> None:
    host.sh(ADDRESSES)
    before = host.state()
    host.sh(BEFORE["several"])
    host.module("tproxy_return_path", gateways=GATEWAYS)
    host.sh("ip address del 10.9.5.11/24 dev front")
    done = host.module("tproxy_return_path", state="absent")
    (warning,) = done["warnings"]
    assert "the old ipv4 route 'default via 10.9.5.1 dev front proto static" in warning
    # The one whose subnet is still there.
    assert next_hop(host, "192.0.2.1") == "10.9.2.9"
    assert items(host.module("tproxy_return_path", state="absent")) == []
    host.sh("ip address add 10.9.5.11/24 dev front; ip route del default")
    assert host.state() == before


def test_another_gateway_replaces_ours(host: Host) -> None:
    host.sh(ADDRESSES + BEFORE["same metric"])
    before = host.state()
    host.module("tproxy_return_path", gateways=GATEWAYS)
    changes = host.module("tproxy_return_path", gateways=["10.9.2.3"])["changes"]
    assert changes[0]["found"].startswith("default via 10.9.2.2")
    assert changes[0]["wanted"].startswith("default via 10.9.2.3")
    assert changes[1]["item"] == "ipv6 default route"
    assert changes[1]["wanted"] == ""
    assert next_hop(host, "192.0.2.1") == "10.9.2.3"
    host.module("tproxy_return_path", state="absent")
    assert host.state() == before


# Options of each mode, with everything that it has.
DIRECT = ["10.9.2.3", "10.9.8.0/24", "fd09:2::3", "fd09:8::/64"]
MODES: dict[str, dict[str, t.Any]] = {
    "default_gateway": {"mode": "default_gateway", "gateways": GATEWAYS},
    "source_address": {"mode": "source_address", "gateways": GATEWAYS, "direct": DIRECT},
    "connection_mark": {
        "mode": "connection_mark",
        "gateways": GATEWAYS,
        "direct": DIRECT,
        "mac_addresses": ["02:00:5e:10:00:01", "02:00:5e:10:00:02"],
        "loose_rp_filter": True,
    },
}
# A host on which others route and mark, too.
OTHERS = (
    ADDRESSES
    + """
ip route add default via 10.9.5.1 dev front; ip -6 route add default via fd09:5::1 dev front
for f in -4 -6; do
    ip $f rule add priority 50 iif front fwmark 0x40/0x40 lookup 52
    ip $f rule add priority 5210 fwmark 0x80000/0xff0000 lookup main
    ip $f route add unreachable default table 52
done
ip rule add priority 100 from 10.9.77.0/24 lookup 52
mkdir -p /etc/iproute2/rt_tables.d
echo '52 vpn' >/etc/iproute2/rt_tables.d/vpn.conf
nft 'add table inet others; add chain inet others c { type filter hook prerouting priority mangle; }'
nft 'add rule inet others c meta mark 0x40 ct mark set meta mark'
iptables -t mangle -A PREROUTING -m mark --mark 0x40 -j CONNMARK --save-mark --mask 0x40
echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter
"""
)


def way_back(host: Host, **options: t.Any) -> dict[str, t.Any]:
    return host.module("tproxy_return_path", **options)


def way_backs(host: Host, *runs: dict[str, t.Any]) -> list[dict[str, t.Any]]:
    """The last one holds what all have in common."""
    *each, common = runs
    return host.modules(*(("tproxy_return_path", {**common, **run}) for run in each))


@pytest.mark.parametrize("mode", MODES)
def test_beside_others_and_byte_for_byte_back(host: Host, mode: str) -> None:
    host.sh(OTHERS)
    before = host.state()
    predicted = way_back(host, check=True, **MODES[mode])
    assert host.state() == before
    done = way_back(host, **MODES[mode])
    assert done["changes"] == predicted["changes"]
    assert done["diff"] == predicted["diff"]
    assert done["warnings"] == []
    after = host.state()
    assert [line for line in before.splitlines() if line not in after.splitlines()] == (
        ["unicast default via 10.9.5.1 dev front table main proto boot scope global "]
        if mode == "default_gateway"
        # The value that is set loose.
        else ["/proc/sys/net/ipv4/conf/back/rp_filter:0"]
        if mode == "connection_mark"
        else []
    )
    assert way_back(host, **MODES[mode])["changes"] == []
    assert host.state() == after
    predicted = way_back(host, check=True, state="absent")
    assert host.state() == after
    assert way_back(host, state="absent")["changes"] == predicted["changes"]
    assert host.state() == before
    assert items(way_back(host, state="absent")) == []


def test_changed_options_leave_nothing(host: Host) -> None:
    """Every mode after every other, with every value changed."""
    host.sh(OTHERS)
    before = host.state()
    marked = MODES["connection_mark"]
    source = MODES["source_address"]
    steps: list[dict[str, t.Any]] = [
        MODES["default_gateway"],
        source,
        marked,
        MODES["default_gateway"],
        marked,
        source,
        {**source, "addresses": ["10.9.5.11", "fd09:2::11"], "direct": DIRECT[1:]},
        {**source, "table": 202, "table_name": "back", "rule_priority": 7},
        {**source, "table": 202, "table_name": "back", "gateways": ["10.9.5.9"], "direct": []},
        {**marked, "table": 202, "mark": "0x100", "mask": "0x700", "gateways": GATEWAYS[1:]},
        {**marked, "mac_addresses": [], "gateways": ["10.9.5.9", "fd09:2::9"]},
        {**marked, "loose_rp_filter": False, "gateways": GATEWAYS[1:]},
        {"mode": "default_gateway", "gateways": ["10.9.5.9"]},
    ]
    for number, options in enumerate(steps):
        done, left = way_backs(host, {}, {"check": True}, options)
        assert items(done), number
        assert items(left) == [], number
        state = host.state()
        own = options["mode"] != "default_gateway"
        name = options.get("table_name", "tproxy_backend") if own else None
        for other in ("tproxy_backend", "back"):
            used = re.search(rf"lookup {other} | table {other} ", state)
            assert bool(used) == (other == name), number
        assert not re.search(r"(lookup|(?<!inet )table) (101|202) ", state), number
        assert ("table inet tproxy_backend" in state) == (options["mode"] == "connection_mark")
        for device, value in (("back", "0"), ("front", "0")):
            loose = options.get("loose_rp_filter") and any(
                gateway.startswith("10.9.2" if device == "back" else "10.9.5")
                for gateway in options["gateways"]
            )
            line = f"/conf/{device}/rp_filter:{'2' if loose else value}\n"
            assert line in state, number
    way_back(host, state="absent")
    assert host.state() == before


# From what to what; nothing of either may be left.
TURNS: dict[str, tuple[dict[str, t.Any], dict[str, t.Any]]] = {
    "own table": (MODES["default_gateway"], MODES["source_address"]),
    "marks": (
        MODES["source_address"],
        {**MODES["connection_mark"], "table": 202, "table_name": "back", "rule_priority": 7},
    ),
    "default route": (MODES["connection_mark"], MODES["default_gateway"]),
    "other default route": (
        MODES["default_gateway"],
        {"mode": "default_gateway", "gateways": ["10.9.5.9", "fd09:5::9"]},
    ),
}


@pytest.mark.parametrize("name", TURNS)
def test_a_run_that_ended_in_the_middle_forgets_nothing(host: Host, name: str) -> None:
    """Each step of the second run fails in turn; what either has made by then is known to the third, and to absent."""
    host.sh(OTHERS)
    first, second = TURNS[name]
    before = host.state()
    with failing(host, 0) as calls:
        way_back(host, **first)
        made = calls()
        way_back(host, **second)
        steps = calls() - made
        way_back(host, state="absent")
    assert steps >= 2
    for number in range(made + 1, made + steps + 1):
        with failing(host, number):
            runs = (first, second, second, {**second, "check": True}, {"state": "absent"})
            answers = host.modules(*(("tproxy_return_path", options) for options in runs))
        assert "msg" in answers[1], number
        assert items(answers[2]), number
        assert items(answers[3]) == [], number
        assert host.state() == before, number


ROUTES = {
    "route": ("ip route del default via 10.9.2.2", ["ipv4 default route"]),
    "route, IPv6": ("ip -6 route del default via fd09:2::2", ["ipv6 default route"]),
    "route replaced": ("ip route replace default via 10.9.5.1 dev front", ["ipv4 default route"]),
    # As a DHCP client without a metric does, or an administrator.
    "another route": ("ip route append default via 10.9.5.1 dev front", ["ipv4 default route"]),
    "another route that loses": (
        "ip route add default via 10.9.5.1 dev front metric 100; ip route del default metric 100",
        [],
    ),
}
POLICY = {
    "table empty": ("ip route del default table 101", ["ipv4 route to default in table 101"]),
    "table empty, IPv6": (
        "ip -6 route flush table 101",
        [f"ipv6 route to {net} in table 101" for net in ("fd09:2::3", "fd09:8::/64", "default")],
    ),
    "gateway wrong": (
        "ip route replace default via 10.9.2.9 dev back table 101",
        ["ipv4 route to default in table 101"],
    ),
    "protocol of the route": (
        "ip route replace default via 10.9.2.2 dev back proto static table 101",
        ["ipv4 route to default in table 101"],
    ),
    "two routes": (
        "ip route append default via 10.9.2.9 dev back table 101",
        ["ipv4 route to default in table 101"],
    ),
    "two routes, IPv6": (
        "ip -6 route append default via fd09:2::9 dev back table 101",
        ["ipv6 route to default in table 101"],
    ),
    "exception gone": (
        "ip route del throw 10.9.2.3 table 101",
        ["ipv4 route to 10.9.2.3 in table 101"],
    ),
    "exception led": (
        "ip -6 route del throw fd09:2::3 table 101; ip -6 route add fd09:2::3 dev back table 101",
        ["ipv6 route to fd09:2::3 in table 101"],
    ),
    "name of the table": (
        "echo '101 other' >>/etc/iproute2/rt_tables.d/tproxy-backend.conf",
        ["file /etc/iproute2/rt_tables.d/tproxy-backend.conf"],
    ),
    "boot file": ("rm /etc/tproxy-backend/ip6.batch", ["file /etc/tproxy-backend/ip6.batch"]),
    "loader": (
        "chmod 644 /usr/local/sbin/tproxy-backend; echo >>/usr/local/sbin/tproxy-backend",
        ["file /usr/local/sbin/tproxy-backend"],
    ),
    "unit": (
        "sed -i s/oneshot/simple/ /etc/systemd/system/tproxy-backend.service",
        ["file /etc/systemd/system/tproxy-backend.service"],
    ),
    "record": (
        "echo broken >/var/lib/tproxy-backend/state.json",
        ["file /var/lib/tproxy-backend/state.json"],
    ),
}
MARKS = {
    "rule": ("ip rule del priority 110", ["ipv4 rule 110 on lo"]),
    "rule, IPv6": ("ip -6 rule del priority 110", ["ipv6 rule 110 on lo"]),
    "rule after main": (
        "ip rule del priority 110; ip rule add priority 32770 iif lo fwmark 2/2 lookup 101",
        ["ipv4 rule 110 on lo"],
    ),
    "ruleset flushed": (
        "nft flush ruleset",
        ["nftables chain prerouting", "nftables chain output"],
    ),
    "chain flushed": ("nft flush chain inet tproxy_backend output", ["nftables chain output"]),
    "chain gone": (
        "nft delete chain inet tproxy_backend prerouting",
        ["nftables chain prerouting"],
    ),
    "mark of others": (
        "nft insert rule inet tproxy_backend prerouting ct mark set 0x5",
        ["nftables chain prerouting"],
    ),
    "chain of others": ("nft add chain inet tproxy_backend x", ["nftables chain x"]),
    "strict": (
        "echo 1 >/proc/sys/net/ipv4/conf/back/rp_filter",
        ["sysctl net.ipv4.conf.back.rp_filter"],
    ),
    "file of marks": ("rm /etc/tproxy-backend/nft.rules", ["file /etc/tproxy-backend/nft.rules"]),
    "sysctl file": (
        "sed -i s/2/1/ /etc/sysctl.d/99-tproxy-backend.conf",
        ["file /etc/sysctl.d/99-tproxy-backend.conf"],
    ),
}
SOURCES = {
    "rule": ("ip rule del priority 110", ["ipv4 rule 110 from 10.9.2.11"]),
    "rule, IPv6": ("ip -6 rule del priority 110", ["ipv6 rule 110 from fd09:2::11"]),
    "rule after main": (
        "ip rule del priority 110; ip rule add priority 32770 from 10.9.2.11 lookup 101 protocol kernel",
        ["ipv4 rule 110 from 10.9.2.11"],
    ),
    "protocol of the rule": (
        "ip rule del priority 110; ip rule add priority 110 from 10.9.2.11 lookup 101 protocol static",
        ["ipv4 rule 110 from 10.9.2.11"],
    ),
    "two rules": (
        "ip rule add priority 120 from 10.9.2.11 lookup 101",
        ["ipv4 rule 120 from 10.9.2.11"],
    ),
}
BREAKAGES = {
    "default_gateway": {
        **ROUTES,
        **{name: POLICY[name] for name in ("boot file", "loader", "unit", "record")},
    },
    "source_address": {**POLICY, **SOURCES},
    "connection_mark": MARKS,
}


@pytest.mark.parametrize("mode", BREAKAGES)
def test_each_breakage_is_named_exactly_and_repaired(host: Host, mode: str) -> None:
    host.sh(OTHERS)
    way_back(host, **MODES[mode])
    after = host.state()
    for name, (script, expected) in BREAKAGES[mode].items():
        host.sh(script)
        predicted, done, left = way_backs(host, {"check": True}, {}, {"check": True}, MODES[mode])
        assert items(predicted) == expected, name
        assert done["changes"] == predicted["changes"], name
        assert items(left) == [], name
        # What others flushed of their own is theirs to bring back.
        assert _without_others(host.state()) == _without_others(after), name


def _without_others(state: str) -> str:
    blocks = re.sub(r"(?ms)^table (inet others|ip mangle) \{.*?^\}\n", "", state)
    return re.sub(r"(?m)^(\*mangle|[:-].*|COMMIT)\n", "", blocks)


@pytest.mark.parametrize("mode", MODES)
def test_the_boot_files_do_what_the_module_does(host: Host, mode: str) -> None:
    host.sh(ADDRESSES)
    way_back(host, **MODES[mode])
    after = host.state()
    host.sh("ip route del default; ip -6 route del default", check=False)
    host.sh(
        "for f in -4 -6; do ip $f route flush table 101; ip $f rule del priority 110; done",
        check=False,
    )
    host.sh("nft flush ruleset; echo 1 >/proc/sys/net/ipv4/conf/back/rp_filter")
    if mode != "connection_mark":
        host.sh("echo 0 >/proc/sys/net/ipv4/conf/back/rp_filter")
    for _again in range(2):
        host.sh("tproxy-backend start")
        assert host.state() == after


@pytest.mark.parametrize("mode", MODES)
def test_a_boot_before_the_interface_is_there(host: Host, mode: str) -> None:
    """What can be set is; the loader fails, so that systemd runs it again, until all is there."""
    host.sh(ADDRESSES)
    way_back(host, **MODES[mode])
    after = host.state()
    # Takes its routes along, but not the rules.
    host.sh("ip link del back")
    assert host.sh("tproxy-backend start 2>/dev/null || echo failed") == "failed\n"
    host.sh("ip link add back type veth peer name back-end")
    host.sh("ip link set back addrgenmode none up; ip link set back-end addrgenmode none up")
    assert host.sh("tproxy-backend start 2>/dev/null || echo failed") == "failed\n"
    host.sh(ADDRESSES.replace("ip address add 10.9.5", ": ").replace("ip address add fd09:5", ": "))
    assert host.sh("tproxy-backend start || echo failed") == ""
    assert items(way_back(host, **MODES[mode])) == []
    assert sorted(host.state().splitlines()) == sorted(after.splitlines())


# Of the breakages those that the loader sees, too: it looks for what is missing.
SEEN = {
    "default_gateway": ["route", "route, IPv6", "route replaced"],
    "source_address": [
        "table empty",
        "table empty, IPv6",
        "gateway wrong",
        "exception gone",
        "exception led",
        "rule",
        "rule, IPv6",
        "protocol of the rule",
    ],
    "connection_mark": [name for name in MARKS if "file" not in name and "after" not in name],
}
# The kernel forgets the routes, and in IPv6 the address too, which others bring back.
DOWN_AND_UP = (
    "ip link set back down; ip link set back up; ip address add fd09:2::11/64 dev back nodad"
)


@pytest.mark.parametrize("mode", MODES)
def test_check_names_what_start_repairs(host: Host, mode: str) -> None:
    host.sh(ADDRESSES)
    if mode == "connection_mark":
        host.sh("ip route add default dev front; ip -6 route add default dev front")
    way_back(host, **MODES[mode])
    assert host.sh("tproxy-backend check") == ""
    for script in (DOWN_AND_UP, *(BREAKAGES[mode][name][0] for name in SEEN[mode])):
        host.sh(script, check=False)
        assert host.sh("tproxy-backend check || echo $?").endswith("\n1\n"), script
        host.sh("tproxy-backend start; tproxy-backend check")
    assert items(way_back(host, check=True, **MODES[mode])) == []


@pytest.mark.parametrize("mode", ["source_address", "connection_mark"])
def test_the_guard_brings_traffic_back_within_ten_seconds(tmp_path: Path, mode: str) -> None:
    network = Network(tmp_path)
    with contextlib.closing(network):
        server = network.server
        server.sh("ip route add default via 10.9.2.99; ip -6 route add default via fd09:2::99")
        options = {"mode": mode, "gateways": network.gateways, "guard": True}
        options["loose_rp_filter"] = mode == "connection_mark"
        network.proxy.module()
        assert items(way_back(server, **options))
        assert network.works("ipv4")
        guard = subprocess.Popen(
            server.command("/usr/local/sbin/tproxy-backend", "guard", "1"),
            stdout=subprocess.PIPE,
            text=True,
        )
        server.children.append(guard)
        down, _sign, up = DOWN_AND_UP.partition("; ")
        # It looks while nothing can be put back, and says so.
        server.sh(f"{down}\nsleep 2.5")
        begin = time.monotonic()
        server.sh(
            f"{up}\n"
            "ip route replace default via 10.9.2.99; ip -6 route replace default via fd09:2::99"
        )
        while not all(network.works(family, expected=False) for family in ("ipv4", "ipv6")):
            # Of looks a second apart: at one of the next.
            assert time.monotonic() - begin < 6
        guard.terminate()
        assert guard.communicate(timeout=10)[0].endswith("put back\n")
        assert items(way_back(server, check=True, **options)) == []


def test_the_guard_respects_stop_and_absent(host: Host) -> None:
    host.sh(ADDRESSES)
    before = host.state()
    options = {**MODES["source_address"], "guard": True}
    way_back(host, **options)
    unit = host.sh("cat /etc/systemd/system/tproxy-backend-guard.service")
    assert "ExecStart=/usr/local/sbin/tproxy-backend guard\n" in unit
    host.start("sh", "-c", "echo ready; exec tproxy-backend guard 0.1")
    host.sh("tproxy-backend stop; ip route flush table 101; tproxy-backend restore; sleep 0.7")
    assert host.sh("ip route show table 101") == ""
    # `check` does not wait for it.
    host.stop_children(1)
    host.sh("tproxy-backend start; ip rule del priority 110; tproxy-backend restore")
    assert host.sh("tproxy-backend check") == ""
    host.sh("tproxy-backend stop")
    assert "file /var/lib/tproxy-backend/stopped" in items(way_back(host, **options))
    assert items(way_back(host, **options)) == []
    way_back(host, state="absent")
    assert host.state() == before


def test_the_unit_is_one_that_systemd_takes(host: Host) -> None:
    way = host.module("tproxy_return_path", gateways=GATEWAYS[:1])
    assert way.get("option") == "gateways"
    host.sh(ADDRESSES)
    way_back(host, gateways=GATEWAYS, guard=True)
    said = host.sh("systemd-analyze verify /etc/systemd/system/tproxy-backend*.service 2>&1 || :")
    assert "tproxy-backend" not in said, said
    host.sh("sh -n /usr/local/sbin/tproxy-backend")


# What is in the way (more of it in tests/unit): how it comes there, the options, the option that is refused, and what is said.
CONFLICTS: dict[str, tuple[str, dict[str, t.Any], str, str]] = {
    "rule of others": (
        "ip rule add priority 300 from 10.9.77.1 lookup 101",
        MODES["source_address"],
        "table",
        "table 101 is in use by the ipv4 rule 'priority 300 from 10.9.77.1 lookup 101",
    ),
    "nftables table of others": (
        "nft add table inet tproxy_backend",
        MODES["connection_mark"],
        "mode",
        "did not make",
    ),
    "strict": (
        ":",
        {**MODES["connection_mark"], "loose_rp_filter": False},
        "loose_rp_filter",
        "the reverse path filter of back is strict",
    ),
    "file of others": (
        "echo mine >/usr/local/sbin/tproxy-backend",
        MODES["source_address"],
        "files",
        "/usr/local/sbin/tproxy-backend is there and was not written by this collection",
    ),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_what_is_in_the_way_is_refused_before_any_change(host: Host, name: str) -> None:
    script, options, option, said = CONFLICTS[name]
    host.sh(OTHERS)
    host.sh(script)
    before = host.state()
    *refusals, end = way_backs(host, {"check": True}, {}, {"state": "absent"}, options)
    for refusal in refusals:
        assert refusal.get("option") == option, refusal
        assert said in refusal["msg"]
        assert refusal["found"]
    # Nor does an end of ours that never began take anything away.
    assert items(end) == []
    assert host.state() == before


def test_a_rule_of_others_before_ours_is_warned_of(host: Host) -> None:
    host.sh(ADDRESSES)
    host.sh("ip rule add priority 20 from all lookup 52")
    for options in (MODES["source_address"], MODES["connection_mark"]):
        done = way_back(host, **options)
        assert "stands before ours and may lead answers elsewhere" in done["warnings"][0]


def test_no_nft_is_said(host: Host) -> None:
    host.sh(ADDRESSES)
    host.sh("mount --bind /dev/null $(readlink -f $(command -v nft))")
    done = way_back(host, check=True, **MODES["connection_mark"])
    assert items(done)
    assert done["unseen"] == [
        "the program nft is not installed on this host; install its package (Debian: nftables)"
    ]
    assert way_back(host, **MODES["connection_mark"])["msg"] in done["unseen"]
    assert way_back(host, **MODES["source_address"])["unseen"] == []


def test_a_kernel_that_cannot_mark_is_named_before_any_change(host: Host) -> None:
    """nft without the right to look stands for a kernel that refuses the rules."""
    host.sh(ADDRESSES)
    host.sh(
        "mkdir -p /usr/local/sbin; cat >/usr/local/sbin/nft <<'EOF'\n#!/bin/sh\n"
        'case "$1" in --check) echo "Error: Could not process rule: No such file or directory" >&2; exit 1 ;; esac\n'
        'exec /usr/sbin/nft "$@"\nEOF\nchmod +x /usr/local/sbin/nft'
    )
    before = host.state()
    for check in (True, False):
        refusal = way_back(host, check=check, **MODES["connection_mark"])
        assert refusal.get("option") == "mode", refusal
        assert "cannot mark connections (Error: Could not process rule" in refusal["msg"]
    assert host.state() == before


@pytest.mark.parametrize(
    ("gateways", "said"),
    [
        ([], "none given"),
        (["10.9.2.300"], "not an IP address"),
        (["proxy.example"], "not an IP address"),
        (["10.9.99.1"], "on no subnet that this host is connected to (it has 10.9"),
        (["10.9.2.11"], "an address of this host itself"),
        (["fe80::1"], "link-local"),
        (["10.9.2.2", "10.9.2.3"], "both ipv4"),
        (["0.0.0.0"], "cannot be a gateway"),
    ],
)
def test_refused_before_any_change(host: Host, gateways: list[str], said: str) -> None:
    host.sh(ADDRESSES)
    before = host.state()
    for check in (True, False):
        refusal = host.module("tproxy_return_path", check=check, gateways=gateways)
        assert refusal.get("option") == "gateways", refusal
        assert said in refusal["msg"]
    assert host.state() == before
