# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What lasts and what does not: the guard puts back what somebody removes, `absent` leaves nothing at all."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
import typing as t

import pytest
from failing import failing
from hosts import Host, items

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render

BACKENDS = ("iptables", "iptables-legacy", "nftables")

# A host that has lived: in every kind of table, in both variants of iptables, in files and in sysctls.
FOREIGN = """
iptables -t mangle -N THEIRS
iptables -t mangle -A THEIRS -j MARK --set-xmark 0x4000/0x4000
iptables -t mangle -A PREROUTING -i front -p udp -m comment --comment "not ours" -j THEIRS
iptables -t nat -A POSTROUTING -o front -j MASQUERADE
iptables -A INPUT -m mark --mark 0x1/0x1 -j ACCEPT
ip6tables -t mangle -A PREROUTING -p tcp -j CONNMARK --restore-mark
ip6tables-legacy -t mangle -A PREROUTING -p udp -j ACCEPT
iptables-legacy -t raw -A PREROUTING -p udp --dport 53 -j NOTRACK
nft add table inet theirs
nft add chain inet theirs DIVERT '{ type filter hook prerouting priority -200; }'
nft add rule inet theirs DIVERT tcp dport 81 counter accept
ip rule add priority 50 from 203.0.113.9 lookup 300
ip rule add priority 5000 not fwmark 0xca6c lookup 51820
ip -6 rule add priority 60 fwmark 0x4000/0x4000 lookup 301
ip route add 203.0.113.0/24 dev front
ip route add default dev front table 300
ip -6 route add 2001:db8:1::/64 dev front table 301
echo 0 >/proc/sys/net/ipv4/conf/front/send_redirects
echo 0 >/proc/sys/net/ipv4/conf/all/accept_redirects
echo 1 >/proc/sys/net/ipv4/conf/back/forwarding
echo 2 >/proc/sys/net/ipv4/conf/back/rp_filter
mkdir -p /etc/iproute2/rt_tables.d /etc/sysctl.d
echo '300 theirs' >/etc/iproute2/rt_tables.d/theirs.conf
echo 'net.ipv4.conf.all.rp_filter = 0' >/etc/sysctl.d/98-theirs.conf
"""

# Options that leave something else behind each, were it forgotten.
IN_BETWEEN: tuple[dict[str, t.Any], ...] = (
    {"guard": True, "rp_filter": 2, "sysctls": {"net.ipv4.tcp_mtu_probing": 1}},
    {
        "interfaces": ["back"],
        "mark": "0x100",
        "mask": "0x300",
        "table": 4100,
        "table_name": "elsewhere",
        "rule_priority": 7000,
        "chain": "TO_HAPROXY",
    },
)


def everything(host: Host) -> str:
    """All that absent must leave as it was, byte for byte; only counters and dates are masked."""
    text = host.sh(
        "for i in iptables ip6tables; do echo $i; $i-nft-save 2>/dev/null || :; done\n"
        # The kernel keeps a table of iptables-legacy that was once used; empty, it does nothing.
        "for i in iptables ip6tables; do for t in raw mangle nat filter; do\n"
        "  grep -qx $t /proc/net/$(echo $i | sed s/tables/_tables/)_names && $i-legacy-save -t $t | grep -v '^:[A-Z]* ACCEPT' || :\n"
        "done; done | grep '^[:-]' || :\n"
        "nft list ruleset\n"
        "for f in -4 -6; do ip $f -d rule; ip $f -d route show table all; done\n"
        "grep -rs . /proc/sys/net/ipv4 /proc/sys/net/ipv6 | grep -Ev 'stable_secret|congestion_control|fastopen_key' | sort\n"
        "find /etc /usr/local/sbin $(ls -d /var/lib/tproxy* 2>/dev/null) -type d -printf '%p %m\\n' -o -printf '%p %m %l\\n' | sort\n"
        "find /etc /usr/local/sbin -type f -exec cksum {} + | sort -k3\n"
    )
    text = re.sub(r"\[\d+:\d+\]|packets \d+ bytes \d+| expires \d+sec", "", text)
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def same(one: str, other: str) -> None:
    """Says which lines differ, not all of the two."""
    before, after = one.splitlines(), other.splitlines()
    assert sorted(set(before) - set(after)) == [], "gone"
    assert sorted(set(after) - set(before)) == [], "left behind"
    assert one == other


@pytest.mark.parametrize("foreign", ["", FOREIGN], ids=["fresh", "lived-in"])
@pytest.mark.parametrize("firewall", BACKENDS)
def test_absent_is_as_if_it_had_never_been(host: Host, firewall: str, foreign: str) -> None:
    host.sh(foreign)
    before = everything(host)
    for options in IN_BETWEEN:
        assert items(host.module(firewall=firewall, **options))
    assert everything(host) != before
    assert items(host.module(state="absent"))
    same(before, everything(host))
    assert items(host.module(state="absent")) == []


def test_absent_after_every_backend(host: Host) -> None:
    host.sh(FOREIGN)
    before = everything(host)
    for firewall, options in zip((*BACKENDS, BACKENDS[0]), (*IN_BETWEEN, *IN_BETWEEN)):
        host.module(firewall=firewall, **options)
        assert items(host.module(check=True, firewall=firewall, **options)) == []
        host.sh("tproxy-host check")
    host.module(state="absent")
    same(before, everything(host))


def test_absent_after_stop_by_hand(host: Host) -> None:
    before = everything(host)
    host.module(guard=True)
    host.sh("tproxy-host stop")
    host.module(state="absent")
    same(before, everything(host))


# The program that fails or is killed, and with which arguments.
INTERRUPTIONS = {
    "routes of IPv4": ("iptables", "ip", "-4 -batch"),
    "routes of IPv6": ("iptables", "ip", "-6 -batch"),
    "rules of IPv4": ("iptables", "iptables-restore", "--noflush"),
    "rules of IPv6": ("iptables", "ip6tables-restore", "--noflush"),
    "nft": ("nftables", "nft", "-f"),
}


@contextlib.contextmanager
def interrupted(host: Host, program: str, arguments: str, action: str) -> t.Iterator[None]:
    """Only where the rules really go: not in the scratch namespace where they are tried."""
    path = f"/usr/local/sbin/{program}"
    real = host.sh(f"command -v {program}").strip()
    host.sh(
        f"""cat >{path} <<'END'
#!/bin/sh
case "$(readlink /proc/self/ns/net) $*" in '{host.sh("readlink /proc/self/ns/net").strip()} '*'{arguments}'*) {action} ;; esac
exec {real} "$@"
END
chmod +x {path}"""
    )
    try:
        yield
    finally:
        host.sh(f"rm {path}")


@pytest.mark.parametrize("action", ["exit 1", "kill -9 $PPID; exit 1"], ids=["fails", "killed"])
@pytest.mark.parametrize("name", INTERRUPTIONS)
def test_a_run_that_ended_in_the_middle(host: Host, name: str, action: str) -> None:
    """The next run completes it, and absent removes what it has done so far."""
    firewall, program, arguments = INTERRUPTIONS[name]
    host.sh(FOREIGN)
    before = everything(host)
    with (
        interrupted(host, program, arguments, action),
        contextlib.suppress(json.JSONDecodeError, AssertionError),
    ):
        assert "msg" in host.module(firewall=firewall)
    assert host.sh("cat /proc/sys/net/ipv4/conf/all/forwarding") == "1\n", "it ended too early"
    if action == "exit 1":
        assert items(host.module(firewall=firewall))
        assert items(host.module(check=True, firewall=firewall)) == []
        with interrupted(host, program, arguments, action):
            assert "msg" in host.module(state="absent")
    host.module(state="absent")
    same(before, everything(host))


OTHERWISE = {
    "mark": "0x100",
    "mask": "0x300",
    "table": 4100,
    "table_name": "elsewhere",
    "rule_priority": 7000,
    "chain": "TO_HAPROXY",
    "nft_table": "another",
    "forwarding": None,
}
# From what to what; nothing of either may be left.
TURNS: dict[str, tuple[dict[str, t.Any], dict[str, t.Any]]] = {
    "to nftables": ({}, {**OTHERWISE, "firewall": "nftables"}),
    "to iptables-legacy": (
        {"firewall": "nftables", "rule_protocol": "static"},
        {**OTHERWISE, "firewall": "iptables-legacy", "interfaces": ["back"], "families": ["ipv6"]},
    ),
}


@pytest.mark.parametrize("name", TURNS)
def test_a_run_that_ended_in_the_middle_forgets_nothing(host: Host, name: str) -> None:
    """Each step of the second run fails in turn; what either has made by then is known to the third, and to absent."""
    host.sh(FOREIGN)
    first, second = TURNS[name]
    before = everything(host)
    with failing(host, 0) as calls:
        host.module(**first)
        made = calls()
        host.module(**second)
        steps = calls() - made
        host.module(state="absent")
    assert steps >= 4
    for number in range(made + 1, made + steps + 1):
        with failing(host, number):
            runs = (first, second, second, {**second, "check": True}, {"state": "absent"})
            answers = host.modules(*(("tproxy_rules", options) for options in runs))
        assert "msg" in answers[1], number
        assert items(answers[2]), number
        assert items(answers[3]) == [], number
        same(before, everything(host))


def test_absent_after_two_runs_that_ended_in_the_middle(host: Host) -> None:
    before = everything(host)
    host.module(firewall="nftables")
    for options in (OTHERWISE, {"chain": "THIRD", "table": 7, "rule_priority": 70}):
        with interrupted(host, "ip6tables-restore", "--noflush", "exit 1"):
            assert "msg" in host.module(**options)
    host.module(state="absent")
    same(before, everything(host))


def test_absent_with_a_lost_record(host: Host) -> None:
    """Only the sysctls' old values are lost with it."""
    host.sh(FOREIGN)
    before = everything(host)
    host.module(forwarding=None, send_redirects=None, guard=True)
    host.sh("rm -r /var/lib/tproxy-host")
    host.module(state="absent")
    same(before, everything(host))


# The guard


@contextlib.contextmanager
def guarded(host: Host, *seconds: str) -> t.Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        host.command("/usr/local/sbin/tproxy-host", "guard", *seconds),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def fine(host: Host, within: float) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if host.sh("tproxy-host check && echo fine || :").endswith("fine\n"):
            return True
        time.sleep(0.5)
    return False


BREAKAGES = (
    "nft flush ruleset; iptables-legacy -t mangle -F; iptables-legacy -t mangle -X",
    "ip rule del pref 101; ip -6 rule del pref 101",
    "ip route flush table 100; ip -6 route flush table 100",
    "ip link set lo down; ip link set lo up",
    "echo 0 >/proc/sys/net/ipv4/conf/all/forwarding; echo 1 >/proc/sys/net/ipv4/conf/all/send_redirects",
)


@pytest.mark.parametrize("firewall", BACKENDS)
def test_the_guard_puts_back_within_ten_seconds(host: Host, firewall: str) -> None:
    options = {"firewall": firewall, "guard": True, "interfaces": ["back"], "rp_filter": 2}
    host.module(**options)
    # What it costs and how fast it is are two sides of this number.
    assert render.GUARD_SECONDS <= 5
    with guarded(host) as guard:
        host.sh("\n".join(BREAKAGES))
        host.sh("ip link del back")
        assert fine(host, 10)
        host.sh(
            "ip link add back type veth peer name end; echo 0 >/proc/sys/net/ipv4/conf/back/rp_filter"
        )
        assert fine(host, 10)
        assert items(host.module(check=True, **options)) == []
        guard.terminate()
        said = guard.communicate(timeout=10)[0].splitlines()
    # It may have looked in the middle of the damage.
    assert 2 <= len(said) <= 4, said
    assert all(line.endswith("put back") for line in said)
    assert "sysctl net/ipv4/conf/back/rp_filter: found: 0, wanted: 2" in said[-1]


@pytest.mark.parametrize("breakage", BREAKAGES)
@pytest.mark.parametrize("firewall", BACKENDS)
def test_check_names_what_start_repairs(host: Host, firewall: str, breakage: str) -> None:
    host.module(firewall=firewall)
    host.sh("tproxy-host check")
    host.sh(breakage)
    assert host.sh("tproxy-host check || echo $?").endswith("\n1\n")
    host.sh("tproxy-host start; tproxy-host check")
    assert items(host.module(check=True, firewall=firewall)) == []


def test_the_guard_respects_stop(host: Host) -> None:
    host.module(guard=True)
    with guarded(host, "0.2"):
        host.sh("tproxy-host stop")
        time.sleep(2)
        assert "haproxy_tproxy" not in host.sh("ip rule; iptables-save")
        host.sh("tproxy-host start; ip rule del pref 101")
        assert fine(host, 10)
    # What was stopped by hand is a difference like any other.
    host.sh("tproxy-host stop")
    assert f"file {render.STOPPED}" in items(host.module(guard=True))
    assert items(host.module(check=True, guard=True)) == []


def test_the_guard_respects_a_stop_that_is_at_work(host: Host) -> None:
    """It has to wait for the lock then, and what it knew before says nothing any more."""
    host.module(guard=True)
    with guarded(host, "0.1") as guard:
        host.sh(
            "flock /etc/tproxy-host sh -ec 'sleep 0.7; touch /var/lib/tproxy-host/stopped; ip rule del pref 101'"
        )
        time.sleep(0.7)
        assert "101:" not in host.sh("ip rule")
        guard.terminate()
        assert guard.communicate(timeout=10)[0] == ""


@pytest.mark.parametrize(("verb", "seconds"), [("start", 60), ("stop", 60), ("restore", 20)])
def test_nothing_is_done_without_the_lock(host: Host, verb: str, seconds: int) -> None:
    """In less than the 90 s that systemd gives a unit, others' units among them."""
    host.module()
    host.sh(
        "ip rule del pref 101; printf '#!/bin/sh\\nexit 1\\n' >/usr/local/sbin/flock; chmod +x /usr/local/sbin/flock"
    )
    before = everything(host)
    said = host.sh(f"tproxy-host {verb} 2>&1 || echo $?").splitlines()
    assert said == [
        f"tproxy-host: another one has kept /etc/tproxy-host locked for {seconds} seconds; nothing was changed",
        "1",
    ]
    same(before, everything(host))


def test_restore_is_for_what_was_not_stopped(host: Host) -> None:
    """Whatever systemd says, which may just be starting the unit, or not run at all."""
    host.module()
    host.sh("nft flush ruleset; tproxy-host restore; tproxy-host check; tproxy-host stop")
    stopped = everything(host)
    host.sh("tproxy-host restore")
    same(stopped, everything(host))
    host.sh("tproxy-host start; ip rule del pref 101; tproxy-host restore; tproxy-host check")


@pytest.mark.parametrize("protocol", ["kernel", "boot", "static"])
def test_check_knows_every_protocol(host: Host, protocol: str) -> None:
    host.module(rule_protocol=protocol)
    assert host.sh("tproxy-host check") == ""
    other = "static" if protocol != "static" else "kernel"
    host.sh(f"ip route replace local default dev lo table 100 proto {other}")
    assert "ip -4 route: missing: local default dev lo" in host.sh("tproxy-host check || :")
    host.sh("ip -6 route flush table 100; tproxy-host start")
    assert host.sh("tproxy-host check") == ""
    assert items(host.module(check=True, rule_protocol=protocol)) == []


def test_check_takes_what_other_versions_of_ip_say(host: Host) -> None:
    """With less in it: what goes without saying."""
    host.module(rule_protocol="boot")
    host.sh(
        'printf \'#!/bin/sh\\n/sbin/ip "$@" | sed "/^[0-9]*:/b; s/ proto boot//; s/ scope [a-z]*//; s/ pref medium//"\\n\' >/usr/local/sbin/ip;'
        "chmod +x /usr/local/sbin/ip"
    )
    assert host.sh("ip -4 -d route show table 100") == "local default dev lo \n"
    assert host.sh("tproxy-host check") == ""
    host.sh("/sbin/ip -6 route flush table 100")
    assert "ip -6 route: missing" in host.sh("tproxy-host check || :")


def test_one_start_is_enough_for_values_that_change_each_other(host: Host) -> None:
    """Forwarding of all overwrites that of every interface, and switches redirects."""
    wanted = {
        "net.ipv4.conf.all.accept_redirects": 1,
        "net.ipv4.conf.back.forwarding": 0,
        # What counts is the greater one, of all; the literal value is kept all the same.
        "net.ipv4.conf.all.rp_filter": 2,
        "net.ipv4.conf.back.rp_filter": 1,
    }
    host.module(interfaces=["front"], sysctls=wanted)
    assert host.sh("tproxy-host check") == ""
    for damage in (
        "echo 0 >/proc/sys/net/ipv4/conf/all/forwarding; echo 1 >/proc/sys/net/ipv4/conf/all/accept_redirects",
        "echo 0 >/proc/sys/net/ipv4/conf/back/rp_filter",
    ):
        host.sh(damage)
        assert "found: 0, wanted: 1" in host.sh("tproxy-host check || :")
        assert host.sh("tproxy-host start; tproxy-host check") == ""
        assert items(host.module(check=True, interfaces=["front"], sysctls=wanted)) == []


def test_the_guard_and_the_module_wait_for_each_other(host: Host) -> None:
    host.module(guard=True)
    with guarded(host, "0.05") as guard:
        for options in (*IN_BETWEEN, {}, *IN_BETWEEN):
            assert "msg" not in host.module(**{**options, "guard": True})
            assert items(host.module(check=True, **{**options, "guard": True})) == []
        guard.terminate()
        assert guard.communicate(timeout=10)[0] == ""


def test_the_guard_says_once_what_it_cannot_help(host: Host) -> None:
    host.module(guard=True)
    host.sh("echo 'net.ipv4.tcp_congestion_control = nonsense' >>/etc/sysctl.d/99-tproxy-host.conf")
    with guarded(host, "0.1") as guard:
        time.sleep(3)
        guard.terminate()
        said = guard.communicate(timeout=10)[0].splitlines()
    assert len(said) == 1
    assert said[0].startswith("sysctl net/ipv4/tcp_congestion_control: found: ")
    assert said[0].endswith("; cannot put back")


def test_rules_of_others_that_come_and_go_are_nothing_to_the_guard(host: Host) -> None:
    host.module(guard=True)
    host.sh(
        "iptables -t mangle -A PREROUTING -p udp -j ACCEPT; ip rule add from 203.0.113.9 lookup 300"
    )
    host.sh("tproxy-host check")
    # But one that stands before ours takes packets away.
    host.sh("iptables -t mangle -I PREROUTING -p tcp -j ACCEPT")
    assert "not in place" in host.sh("tproxy-host check", check=False)
    host.sh("tproxy-host start; tproxy-host check")
    assert host.sh("iptables-save -t mangle").count("-j ACCEPT") == 3


def test_the_guards_unit_is_understood_by_systemd(host: Host) -> None:
    host.module(guard=True)
    said = host.sh(
        "systemd-analyze verify /etc/systemd/system/tproxy-host-guard.service 2>&1", check=False
    )
    assert "tproxy-host" not in said
    host.sh(
        "mkdir -p /var/alternate/etc/systemd/system; cp /etc/systemd/system/tproxy-host*.service /var/alternate/etc/systemd/system;"
        "systemctl --root=/var/alternate enable tproxy-host tproxy-host-guard"
    )
    link = "/var/alternate/etc/systemd/system/tproxy-host.service.wants/tproxy-host-guard.service"
    assert host.sh(f"readlink {link}").endswith("/etc/systemd/system/tproxy-host-guard.service\n")
    items_gone = items(host.module(guard=False))
    assert items_gone == ["file /etc/systemd/system/tproxy-host-guard.service"]
