# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""tproxy_info on real namespaces with real HAProxy: each single breakage has its name, and does what it says."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
import typing as t
from pathlib import Path

import pytest
from hosts import COMMENT, Network

REPO = Path(__file__).parents[2]

CONFIGURATION = """
global
{more}
defaults
    mode tcp
    retries 0
    timeout connect 900ms
    timeout client 5s
    timeout server 5s
frontend four
    bind 0.0.0.0:81
    default_backend app4
frontend six
    bind [::]:81 v6only
    default_backend app6
backend app4
    source 0.0.0.0 usesrc clientip
    server s1 10.9.2.11:8080
backend app6
    source [::] usesrc clientip
    server s1 [fd09:2::11]:8080
"""
PATH = "/etc/haproxy/haproxy.cfg"


class Site:
    """The network of tests/kernel with a real HAProxy on the proxy, port 81, and its unit enabled."""

    def __init__(self, directory: Path, version: str) -> None:
        self.network = Network(directory)
        self.proxy = self.network.proxy
        self.directory = directory
        self.version = version
        self.haproxy: subprocess.Popen[str] | None = None
        self.network.server.module("tproxy_return_path", gateways=self.network.gateways)
        self.proxy.module()
        self.proxy.sh("systemctl enable tproxy-host.service")

    def write(self, text: str) -> None:
        self.proxy.sh("mkdir -p /etc/haproxy")
        self.proxy.run("tee", PATH, text=text)

    def start(
        self, text: str, *prefix: str, wait: bool = True, program: Path | None = None
    ) -> None:
        self.write(text)
        binary = program or binaries() / self.version / "run"
        with open(self.directory / "haproxy.log", "w", encoding="utf-8") as log:
            self.haproxy = subprocess.Popen(
                self.proxy.command(*prefix, str(binary), "-W", "-f", PATH),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )
        deadline = time.monotonic() + 20
        while wait and not self.listens():
            assert self.haproxy.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def listens(self) -> bool:
        return self.proxy.sh("ss -Hltn 'sport = 81'").count("LISTEN") >= 2

    def log(self) -> str:
        return (self.directory / "haproxy.log").read_text()

    def stop(self) -> None:
        if self.haproxy is not None:
            for child in children(self.haproxy.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, 9)
            self.haproxy.kill()
            self.haproxy.wait()
            self.haproxy = None

    def info(self, **options: t.Any) -> dict[str, t.Any]:
        return self.proxy.module("tproxy_info", check=True, **options)

    def ask(self, family: str, seconds: float) -> str | None:
        address = "10.9.1.2" if family == "ipv4" else "fd09:1::2"
        answer = self.network.client.run(
            *("python3", str(Path(__file__).parent / "peer.py"), "client"),
            *(address, "81", "10", str(seconds)),
            check=False,
        )
        return answer.strip() or None

    def close(self) -> None:
        self.stop()
        self.network.close()


def children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for word in (task / "children").read_text().split():
                found += [int(word), *children(int(word))]
    return found


def binaries() -> Path:
    done = subprocess.run(
        [REPO / "scripts" / "haproxy-binaries", "--where"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Path(done.stdout.strip())


def failed(answer: dict[str, t.Any]) -> list[tuple[str, str]]:
    """Name and family of the checks that failed."""
    assert "checks" in answer, answer
    return [
        (check["name"], check["family"])
        for check in answer["checks"]
        if check["status"] == "failed"
    ]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[t.Callable[[str], Site]]:
    """The site of a version, working. A test that breaks it repairs it."""
    made: dict[str, Site] = {}

    def get(version: str) -> Site:
        if version not in made:
            made[version] = Site(tmp_path_factory.mktemp("site"), version)
            made[version].start(CONFIGURATION.format(more=RIGHTS[version]))
        return made[version]

    yield get
    for site in made.values():
        site.close()


@pytest.fixture
def site(sites: t.Callable[[str], Site]) -> Site:
    return sites("3.2")


# How the versions come to be allowed foreign addresses.
RIGHTS = {"2.6": "    user root", "3.2": "    user nobody\n    setcap cap_net_raw"}
TRANSPARENT = {"ipv4": "10.9.1.11 10", "ipv6": "fd09:1::11 10"}
MASKED = {"ipv4": "10.9.2.2 10", "ipv6": "fd09:2::2 10"}
BOTH = ["ipv4", "ipv6"]

TCP = f"PREROUTING -p tcp -m socket --transparent {COMMENT} -j DIVERT"
ICMP = f"PREROUTING -p icmp -m socket --transparent {COMMENT} -j DIVERT"


class Breakage(t.NamedTuple):
    script: str
    # Name and family of the checks that then fail.
    expected: list[tuple[str, str]]
    # The families that get no answer, or an answer to another address than the client's.
    broken: list[str] = []
    masked: list[str] = []
    # What repairs it; nothing: a run of tproxy_rules does.
    undo: str = ""


def both(name: str) -> list[tuple[str, str]]:
    return [(name, "ipv4"), (name, "ipv6")]


STATEFUL = (
    "iptables -A INPUT -i back -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
    "iptables -A INPUT -i back -p tcp -j DROP\n"
)
NO_INPUT = "iptables -F INPUT; iptables -t raw -F"

BREAKAGES = {
    "nothing": Breakage("", []),
    "rule": Breakage(f"iptables -t mangle -D {TCP}", [("divert_jump", "ipv4")], ["ipv4"]),
    "rule, IPv6": Breakage(f"ip6tables -t mangle -D {TCP}", [("divert_jump", "ipv6")], ["ipv6"]),
    "rule twice": Breakage(f"iptables -t mangle -A {TCP}", [("divert_jump", "ipv4")]),
    "ICMP rule": Breakage(f"iptables -t mangle -D {ICMP}", [("divert_icmp", "ipv4")]),
    "foreign ACCEPT before it": Breakage(
        "iptables -t mangle -I PREROUTING -i back -j ACCEPT",
        [("divert_jump", "ipv4")],
        ["ipv4"],
        undo="iptables -t mangle -D PREROUTING -i back -j ACCEPT",
    ),
    "chain emptied": Breakage("iptables -t mangle -F DIVERT", [("divert_chain", "ipv4")], ["ipv4"]),
    "ruleset flushed": Breakage(
        "nft flush ruleset",
        [*both("divert_chain"), *both("divert_jump")],
        BOTH,
    ),
    "wrong mark": Breakage(
        f"iptables -t mangle -R DIVERT 1 {COMMENT} -j MARK --set-xmark 0x2/0x2",
        [("mark", "ipv4")],
        ["ipv4"],
    ),
    "mask clash": Breakage(
        "iptables -t mangle -A FORWARD -j MARK --set-xmark 0x3/0x3",
        [("mark", "ipv4")],
        undo="iptables -t mangle -D FORWARD -j MARK --set-xmark 0x3/0x3",
    ),
    "foreign rule for our mark": Breakage(
        "ip rule add priority 50 fwmark 0x1 lookup 300; ip route add default dev front table 300",
        [("mark", "ipv4")],
        ["ipv4"],
        undo="ip rule del priority 50; ip route flush table 300",
    ),
    "ip rule": Breakage("ip rule del priority 101", [("ip_rule", "ipv4")], ["ipv4"]),
    "ip rule, IPv6": Breakage("ip -6 rule del priority 101", [("ip_rule", "ipv6")], ["ipv6"]),
    "ip rule with a wrong mark": Breakage(
        "ip rule del priority 101; ip rule add priority 101 fwmark 0x2/0x2 lookup 100",
        [("ip_rule", "ipv4")],
        ["ipv4"],
        undo="ip rule del priority 101",
    ),
    "ip rule behind main": Breakage(
        "ip rule del priority 101; ip rule add priority 32767 fwmark 1/1 lookup 100 protocol kernel",
        [("ip_rule", "ipv4")],
        ["ipv4"],
    ),
    "guard rule": Breakage("ip rule del priority 100", [("guard_rule", "ipv4")]),
    "VPN's rule before ours": Breakage(
        "ip rule add priority 90 not fwmark 0xca6c lookup 51820\n"
        "ip route add default dev front table 51820",
        [("ip_rule_order", "ipv4")],
        ["ipv4"],
        undo="ip rule del priority 90; ip route flush table 51820",
    ),
    "VPN's rule before ours, with nothing for clients": Breakage(
        "ip rule add priority 90 not fwmark 0xca6c lookup 51820\n"
        "ip route add 203.0.113.0/24 dev front table 51820",
        [],
        undo="ip rule del priority 90; ip route flush table 51820",
    ),
    "table empty": Breakage("ip route flush table 100", [("local_route", "ipv4")], ["ipv4"]),
    "table empty, IPv6": Breakage(
        "ip -6 route flush table 100", [("local_route", "ipv6")], ["ipv6"]
    ),
    "forwarding": Breakage(
        "echo 0 >/proc/sys/net/ipv4/conf/all/forwarding", [("forwarding", "ipv4")]
    ),
    "redirects": Breakage(
        "echo 1 >/proc/sys/net/ipv4/conf/back/send_redirects", [("send_redirects", "ipv4")]
    ),
    "strict source validation on symmetric routes": Breakage(
        "echo 1 >/proc/sys/net/ipv4/conf/back/rp_filter",
        [],
        undo="echo 0 >/proc/sys/net/ipv4/conf/back/rp_filter",
    ),
    "masquerading": Breakage(
        "iptables -t nat -A POSTROUTING -o back -j MASQUERADE",
        [("masquerade", "ipv4")],
        masked=["ipv4"],
        undo="iptables -t nat -D POSTROUTING -o back -j MASQUERADE",
    ),
    "masquerading by nft, IPv6": Breakage(
        "nft add table inet theirs\n"
        "nft 'add chain inet theirs p { type nat hook postrouting priority 100; }'\n"
        "nft add rule inet theirs p meta nfproto ipv6 oifname back masquerade",
        [("masquerade", "ipv6")],
        masked=["ipv6"],
        undo="nft delete table inet theirs",
    ),
    "masquerading without HAProxy, and for containers": Breakage(
        "iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n"
        "iptables -t nat -A POSTROUTING -m owner --uid-owner nobody -j ACCEPT\n"
        "iptables -t nat -A POSTROUTING -o back -j MASQUERADE",
        [],
        undo="iptables -t nat -F POSTROUTING",
    ),
    "stateful input": Breakage(STATEFUL, [], undo=NO_INPUT),
    "stateful input, answers not tracked": Breakage(
        f"{STATEFUL}iptables -t raw -A PREROUTING -i back -p tcp -j CT --notrack",
        [("notrack", "ipv4")],
        ["ipv4"],
        undo=NO_INPUT,
    ),
    "stateful input, requests not tracked": Breakage(
        f"{STATEFUL}iptables -t raw -A OUTPUT -o back -p tcp -j CT --notrack",
        [("notrack", "ipv4")],
        ["ipv4"],
        undo=NO_INPUT,
    ),
    "stateful input that accepts the mark, not tracked": Breakage(
        f"iptables -A INPUT -m mark --mark 0x1/0x1 -j ACCEPT\n{STATEFUL}"
        "iptables -t raw -A PREROUTING -i back -p tcp -j CT --notrack",
        [],
        undo=NO_INPUT,
    ),
    "input only for own addresses": Breakage(
        "nft add table inet theirs\n"
        "nft 'add chain inet theirs i { type filter hook input priority 0; }'\n"
        "nft add rule inet theirs i fib daddr type != local drop",
        both("input_filter"),
        BOTH,
        undo="nft delete table inet theirs",
    ),
    "output only with own addresses": Breakage(
        "iptables -A OUTPUT -o back ! -s 10.9.2.2/32 -j DROP",
        [("output_filter", "ipv4")],
        ["ipv4"],
        undo="iptables -F OUTPUT",
    ),
    "dropped on arrival": Breakage(
        "ip6tables -t raw -A PREROUTING -p tcp -m tcp --sport 8080 -j DROP",
        [("prerouting_filter", "ipv6")],
        ["ipv6"],
        undo="ip6tables -t raw -F",
    ),
    "unit disabled": Breakage(
        "systemctl disable tproxy-host.service",
        [("unit_enabled", "")],
        undo="systemctl enable tproxy-host.service",
    ),
    "boot file": Breakage("rm /etc/tproxy-host/ip6.batch", [("boot_files", "")]),
}


def broken_as_said(site: Site, broken: t.Container[str], masked: t.Container[str]) -> None:
    for family in BOTH:
        answer = site.ask(family, 1.1 if family in broken else 5)
        wanted = MASKED if family in masked else TRANSPARENT
        assert answer == (None if family in broken else wanted[family]), family


def bad(answer: dict[str, t.Any]) -> list[dict[str, t.Any]]:
    return [check for check in answer["checks"] if check["status"] != "ok"]


@pytest.mark.parametrize("name", BREAKAGES)
def test_each_breakage_has_its_name(site: Site, name: str) -> None:
    breakage = BREAKAGES[name]
    if breakage.script:
        site.proxy.sh(breakage.script)
    try:
        found = site.info(gather=GATHER)
        assert failed(found) == breakage.expected, bad(found)
        assert found["transparent"] == (not breakage.expected)
        assert found["failed_checks"] == list(
            dict.fromkeys(name for name, _family in breakage.expected)
        )
        for check in found["checks"]:
            assert bool(check["remedy"]) == (check["status"] == "failed")
        broken_as_said(site, breakage.broken, breakage.masked)
    finally:
        if breakage.undo:
            site.proxy.sh(breakage.undo)
        if not breakage.undo or ("ip_rule", "ipv4") in breakage.expected:
            site.proxy.module()


# All but the trial of the kernel, which takes longest.
GATHER = ["rules", "filters", "haproxy", "boot", "limits"]


def checks(answer: dict[str, t.Any], name: str) -> list[dict[str, str]]:
    return [check for check in answer["checks"] if check["name"] == name]


def test_the_kernel_is_tried(site: Site) -> None:
    found = site.info()
    assert failed(found) == []
    assert [(check["name"], check["family"], check["status"]) for check in found["checks"][:4]] == [
        ("transparent_socket", "ipv4", "ok"),
        ("transparent_socket", "ipv6", "ok"),
        ("kernel_support", "ipv4", "ok"),
        ("kernel_support", "ipv6", "ok"),
    ]


def test_without_rights_it_says_what_it_cannot_see(site: Site) -> None:
    site.proxy.command_prefix = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    try:
        found = site.info(haproxy=str(binaries() / "3.2" / "run"))
    finally:
        site.proxy.command_prefix = ()
    assert failed(found) == []
    assert not found["transparent"]
    unknown = {check["name"] for check in found["checks"] if check["status"] == "unknown"}
    assert {"transparent_socket", "kernel_support", "divert_jump", "input_filter"} <= unknown
    for check in found["checks"]:
        assert check["status"] != "unknown" or check["observed"]


def test_nothing_was_ever_set_up(tmp_path: Path) -> None:
    with contextlib.closing(Network(tmp_path)) as network:
        found = network.proxy.module("tproxy_info", haproxy="/nonexistent/haproxy", config=[PATH])
        assert not found["transparent"]
        assert set(found["failed_checks"]) >= {
            *("divert_chain", "divert_jump", "ip_rule", "guard_rule", "local_route"),
            *("haproxy_binary", "haproxy_running", "boot_files", "record", "unit_enabled"),
        }
        assert "mark" not in found["failed_checks"]
        assert failed(network.proxy.module("tproxy_info", gather=["kernel"])) == []


def test_marks_that_other_software_looks_at(site: Site) -> None:
    """The classic rules have no guard; what a VPN and firewalld set up then kills answers."""
    site.proxy.module(guard_rule=False)
    keys = "/proc/sys/net/ipv4/conf/all/src_valid_mark", "/proc/sys/net/ipv4/tcp_fwmark_accept"
    try:
        assert failed(site.info(gather=GATHER)) == []
        for key, name, broken in (
            (keys[0], "src_valid_mark", ["ipv4"]),
            (keys[1], "tcp_fwmark_accept", []),
        ):
            site.proxy.sh(f"echo 1 >{key}")
            found = site.info(gather=GATHER)
            assert [check for check, _family in failed(found)] == [name], bad(found)
            broken_as_said(site, broken, [])
            site.proxy.sh(f"echo 0 >{key}")
        # firewalld's IPv6_rpfilter.
        site.proxy.sh(
            "nft add table inet theirs\n"
            "nft 'add chain inet theirs p { type filter hook prerouting priority 10; }'\n"
            "nft add rule inet theirs p meta nfproto ipv6 fib saddr . mark . iif oif missing drop"
        )
        found = site.info(gather=GATHER)
        assert failed(found) == [("prerouting_filter", "ipv6")], bad(found)
        broken_as_said(site, ["ipv6"], [])
        site.proxy.module()
        site.proxy.sh(f"echo 1 >{keys[0]}; echo 1 >{keys[1]}")
        assert failed(site.info(gather=GATHER)) == []
        broken_as_said(site, [], [])
    finally:
        site.proxy.sh("nft delete table inet theirs", check=False)
        site.proxy.sh("".join(f"echo 0 >{key}\n" for key in keys))
        site.proxy.module()


def test_a_reload_of_firewalld_that_systemd_is_not_told_of(site: Site) -> None:
    site.proxy.sh("nft add table inet firewalld")
    try:
        (warning,) = site.proxy.module(check=True)["warnings"]
        assert "guard=true or firewall=nftables" in warning
        found = site.info(gather=GATHER)
        assert failed(found) == [("firewall_reload", "")], bad(found)
        for options in ({"guard": True}, {"firewall": "nftables"}):
            answer = site.proxy.module(**options)
            assert answer["warnings"] == []
            if options.get("guard"):
                # The guard's file alone puts nothing back.
                assert failed(site.info(gather=GATHER)) == [("unit_enabled", "")]
                site.proxy.sh("systemctl enable tproxy-host-guard.service")
            assert failed(site.info(gather=GATHER)) == []
    finally:
        site.proxy.sh("systemctl disable tproxy-host-guard.service", check=False)
        site.proxy.sh("nft delete table inet firewalld")
        site.proxy.module()


def test_strict_source_validation_on_asymmetric_routes(site: Site) -> None:
    """Requests leave by another interface than the one where answers come in."""
    network = site.network
    network.link(network.proxy, "back2", "10.9.4.2", network.server, "back2", "10.9.4.11", "4")
    site.proxy.module(interfaces=["back"])
    key = "/proc/sys/net/ipv4/conf/back/rp_filter"
    site.proxy.sh("ip route add 10.9.2.11 via 10.9.4.11")
    try:
        for value, broken in (("0", []), ("1", ["ipv4"]), ("2", [])):
            site.proxy.sh(f"echo {value} >{key}")
            found = site.info(gather=GATHER)
            assert failed(found) == [("rp_filter", "ipv4")] * len(broken), bad(found)
            assert checks(found, "rp_filter")[0]["subject"] == ("back" if broken else "")
            broken_as_said(site, broken, [])
    finally:
        site.proxy.sh(f"echo 0 >{key}; ip link del back2")
        site.proxy.module()


def test_the_ipv6_half_is_missing(site: Site) -> None:
    site.proxy.module(families=["ipv4"])
    try:
        found = site.info(gather=GATHER)
        assert failed(found) == [("families", "ipv6")]
        broken_as_said(site, ["ipv6"], [])
    finally:
        site.proxy.module()
    assert failed(site.info(gather=GATHER, rules={"families": ["ipv4"]})) != []


def test_wanted_options_instead_of_recorded_ones(site: Site) -> None:
    role = {"forwarding": True, "send_redirects": False}
    assert failed(site.info(gather=["rules"], rules=role)) == []
    found = site.info(gather=["rules"], rules={**role, "table": 4100})
    assert {"local_route", "ip_rule"} <= set(found["failed_checks"])
    answer = site.info(rules={"mark": "0"})
    assert answer["msg"].startswith("mark: ")


def test_ports_run_out(site: Site) -> None:
    proxy, client = site.proxy, site.network.client
    proxy.sh("echo 50000 50003 >/proc/sys/net/ipv4/ip_local_port_range")
    try:
        client.start("python3", "-c", HOLDER)
        found = site.info(gather=GATHER)
        assert failed(found) == [("free_ports", "ipv4")], bad(found)
        check = checks(found, "free_ports")[0]
        assert check["subject"] == "10.9.1.11 to 10.9.2.11 port 8080"
        assert check["observed"].endswith("of 4 ports")
        broken_as_said(site, ["ipv4"], [])
    finally:
        proxy.sh("echo 32768 60999 >/proc/sys/net/ipv4/ip_local_port_range")
        holder = client.children.pop()
        holder.kill()
        holder.wait()


HOLDER = """
import socket, time
held = [socket.create_connection(("10.9.1.2", 81)) for number in range(4)]
time.sleep(0.3)
print("ready", flush=True)
time.sleep(60)
"""


# HAProxy's own part


def configured(version: str, *changes: tuple[str, str], more: str | None = None) -> str:
    text = CONFIGURATION.format(more=RIGHTS[version] if more is None else more)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


FOUR = "    source 0.0.0.0 usesrc clientip\n"
SIX = "    source [::] usesrc clientip\n"
S4 = "server s1 10.9.2.11:8080"


class Rewritten(t.NamedTuple):
    """A configuration that HAProxy is started with."""

    changes: list[tuple[str, str]]
    expected: list[tuple[str, str]]
    broken: list[str] = []
    masked: list[str] = []


CONFIGURATIONS = {
    "without usesrc": Rewritten([(FOUR, ""), (SIX, "")], [("config_usesrc", "")], masked=BOTH),
    "a server's own source": Rewritten(
        [(S4, f"{S4} source 10.9.2.2")], [("config_source", "")], masked=["ipv4"]
    ),
    "usesrc in defaults": Rewritten(
        [(FOUR, ""), (SIX, ""), ("    mode tcp\n", f"    mode tcp\n{FOUR}")], []
    ),
    "both families in one backend": Rewritten(
        [(S4, f"{S4} weight 0\n    server s2 [fd09:2::11]:8080")],
        [("config_families", "")],
        ["ipv4"],
    ),
    "IPv6 clients to IPv4 servers": Rewritten(
        [("default_backend app6", "default_backend app4")], [("config_families", "ipv6")], ["ipv6"]
    ),
    "an IPv6 source for IPv4 servers": Rewritten(
        [(FOUR, SIX)], [("config_families", "")], ["ipv4"]
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations(site: Site, name: str) -> None:
    case = CONFIGURATIONS[name]
    site.stop()
    try:
        site.start(configured("3.2", *case.changes))
        found = site.info(gather=["haproxy"])
        assert failed(found) == case.expected, bad(found)
        broken_as_said(site, case.broken, case.masked)
    finally:
        site.stop()
        site.start(configured("3.2"))


@pytest.mark.parametrize("version", ["2.6", "3.2"])
def test_a_user_that_haproxy_will_not_start_as(
    sites: t.Callable[[str], Site], version: str
) -> None:
    """`haproxy -c` calls it valid. The running process is of an earlier configuration."""
    site = sites(version)
    good = configured(version)
    try:
        site.write(configured(version, more="    user nobody"))
        found = site.info(gather=GATHER)
        assert failed(found) == [("config_user", "")], bad(found)
        broken_as_said(site, [], [])
        binary = str(binaries() / version / "run")
        site.proxy.run(binary, "-c", "-f", PATH)
        done = subprocess.run(
            site.proxy.command(binary, "-db", "-f", PATH),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert done.returncode
        assert "require full privileges" in done.stderr
    finally:
        site.write(good)
    assert failed(site.info(gather=GATHER)) == []


@pytest.mark.parametrize("version", ["2.6", "3.2"])
def test_a_worker_without_the_capability(sites: t.Callable[[str], Site], version: str) -> None:
    site = sites(version)
    site.stop()
    try:
        site.start(configured(version, more=""), "setpriv", "--bounding-set=-net_raw,-net_admin")
        found = site.info(gather=GATHER)
        assert failed(found) == [("worker_capability", "")], bad(found)
        broken_as_said(site, BOTH, [])
    finally:
        site.stop()
        site.start(configured(version))
    assert failed(site.info(gather=GATHER)) == []


def test_haproxy_does_not_run(site: Site) -> None:
    site.stop()
    try:
        found = site.info(gather=GATHER, haproxy=str(binaries() / "3.2" / "run"))
        assert failed(found) == [("haproxy_running", "")], bad(found)
        assert not found["transparent"]
        assert checks(found, "worker_capability")[0]["status"] == "unknown"
    finally:
        site.start(configured("3.2"))


def test_a_program_is_not_haproxy_because_of_its_name(site: Site, tmp_path: Path) -> None:
    """Software about HAProxy is called like it, and HAProxy may be called anything."""
    exporter, other = tmp_path / "haproxy_exporter", tmp_path / "balancer"
    shutil.copy("/bin/sleep", exporter)
    shutil.copy(binaries() / "3.2" / "root" / "usr" / "sbin" / "haproxy", other)
    site.stop()
    others = [subprocess.Popen(site.proxy.command(str(exporter), "60"))]
    try:
        found = site.info(gather=["haproxy"], haproxy=str(other), config=[PATH])
        assert failed(found) == [("haproxy_running", "")], bad(found)
        site.start(configured("3.2"), program=other)
        assert failed(site.info(gather=["haproxy"], haproxy=str(other))) == []
        assert ("haproxy_running", "") in failed(site.info(gather=["haproxy"], config=[PATH]))
        # No systemd runs here; this is all that it is asked.
        assert site.haproxy is not None
        systemctl = f"#!/bin/sh\ncase $1 in show) echo {site.haproxy.pid} ;; esac\n"
        site.proxy.run("tee", "/usr/local/sbin/systemctl", text=systemctl)
        site.proxy.sh("chmod 755 /usr/local/sbin/systemctl")
        assert failed(site.info(gather=["haproxy"])) == []
        # A unit whose main process only asks another one to run HAProxy.
        site.stop()
        site.start(configured("3.2"))
        docker = tmp_path / "docker"
        docker.write_text("#!/bin/sh\nread line\n")
        docker.chmod(0o755)
        asking = subprocess.Popen(
            site.proxy.command(str(docker), "run", "haproxy:3.2", "haproxy", "-f", PATH),
            stdin=subprocess.PIPE,
        )
        others.append(asking)
        systemctl = f"#!/bin/sh\ncase $1 in show) echo {asking.pid} ;; esac\n"
        site.proxy.run("tee", "/usr/local/sbin/systemctl", text=systemctl)
        found = site.info(gather=["haproxy"])
        assert failed(found) == []
        (running,) = [check for check in found["checks"] if check["name"] == "haproxy_running"]
        assert running["observed"].startswith(f"{site.haproxy.pid} (workers ")
    finally:
        site.proxy.sh("rm -f /usr/local/sbin/systemctl")
        for other_process in others:
            other_process.kill()
            other_process.communicate()
        site.stop()
        site.start(configured("3.2"))


def test_a_binary_without_tproxy(site: Site, tmp_path: Path) -> None:
    """A real one whose list of features says what a build without it says."""
    whole = (binaries() / "3.2" / "root" / "usr" / "sbin" / "haproxy").read_bytes()
    assert whole.count(b"+LINUX_TPROXY") == 1
    other = tmp_path / "haproxy"
    other.write_bytes(whole.replace(b"+LINUX_TPROXY", b"-LINUX_TPROXY"))
    other.chmod(0o755)
    found = site.info(gather=GATHER, haproxy=str(other))
    assert failed(found) == [("haproxy_binary", "")], bad(found)
    for path, status in (("/bin/true", "unknown"), ("/nonexistent", "failed"), ("/etc", "unknown")):
        assert (
            checks(site.info(gather=["haproxy"], haproxy=path), "haproxy_binary")[0]["status"]
            == status
        )


def test_a_binary_that_never_ends(site: Site, tmp_path: Path) -> None:
    slow = tmp_path / "haproxy"
    slow.write_text("#!/bin/sh\nexec sleep 100\n")
    slow.chmod(0o755)
    started = time.monotonic()
    check = checks(site.info(gather=["haproxy"], haproxy=str(slow)), "haproxy_binary")[0]
    assert check["status"] == "unknown"
    assert "did not end within" in check["observed"]
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("may_kill", [True, False])
def test_old_workers(site: Site, may_kill: bool) -> None:
    """Without CAP_KILL the master cannot end workers of another user, and they go on accepting."""
    prefix = () if may_kill else ("setpriv", "--bounding-set=-kill")
    site.stop()
    strays: list[int] = []
    try:
        site.start(configured("3.2"), *prefix)
        assert site.haproxy is not None
        (old,) = children(site.haproxy.pid)
        strays.append(old)
        # It cannot end while it serves somebody.
        site.network.client.start("python3", "-c", HOLDER)
        site.haproxy.send_signal(12)
        deadline = time.monotonic() + 20
        while len(children(site.haproxy.pid)) != 2 or "Loading success" not in site.log():
            assert time.monotonic() < deadline, site.log()
            time.sleep(0.05)
        time.sleep(0.5)
        found = site.info(gather=["haproxy"])
        assert failed(found) == ([] if may_kill else [("old_workers", "")]), bad(found)
        assert checks(found, "old_workers")[0]["subject"] == f"process {old}"
    finally:
        for child in site.network.client.children:
            child.kill()
            child.wait()
        site.network.client.children.clear()
        site.stop()
        for pid in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        site.start(configured("3.2"))


def test_the_process_that_is_meant(site: Site, tmp_path: Path) -> None:
    assert site.haproxy is not None
    pid_file = tmp_path / "pid"
    pid_file.write_text(f"{site.haproxy.pid}\n")
    assert failed(site.info(gather=["haproxy"], pid_file=str(pid_file))) == []
    pid_file.write_text("1\n")
    meant = {"gather": ["haproxy"], "config": [PATH], "haproxy": str(binaries() / "3.2" / "run")}
    found = site.info(pid_file=str(pid_file), **meant)
    assert failed(found) == [("haproxy_running", "")]
    found = site.info(pid_file="/nonexistent", **meant)
    assert checks(found, "haproxy_running")[0]["observed"].startswith("cannot read /nonexistent")
    found = site.info(service="nonexistent.service", **meant)
    assert checks(found, "haproxy_running")[0]["status"] == "unknown"


def test_the_live_probe(site: Site) -> None:
    """By default of the configuration's servers; a server that answers elsewhere is only seen by it."""
    found = site.info(gather=[], probe={"payload": "none", "timeout": 2})
    assert [
        (check["name"], check["family"], check["subject"], check["status"])
        for check in found["checks"]
    ] == [
        ("probe", "ipv4", "10.9.2.11:8080", "ok"),
        ("probe", "ipv6", "[fd09:2::11]:8080", "ok"),
    ]
    assert found["transparent"]
    site.network.server.sh("ip route del default")
    try:
        server = [{"address": "10.9.2.11", "port": 8080}]
        found = site.info(gather=GATHER, probe={"servers": server, "timeout": 1})
        assert failed(found) == [("probe", "ipv4")], bad(found)
        assert checks(found, "probe")[0]["observed"].startswith("return_path: ")
        assert checks(found, "probe")[0]["remedy"]
    finally:
        site.network.server.sh("ip route add default via 10.9.2.2")
    assert site.info(gather=[], probe={"timeout": 0})["msg"].startswith("probe: timeout: ")


def test_it_changes_nothing(site: Site) -> None:
    before = site.proxy.state()
    found = site.proxy.module("tproxy_info")
    assert found["changed"] is False
    assert site.proxy.state() == before


def test_all_is_well_in_the_end(sites: t.Callable[[str], Site]) -> None:
    """The control of all the others: what was repaired is transparent again."""
    for version in ("2.6", "3.2"):
        found = sites(version).info()
        assert failed(found) == [], bad(found)
        assert found["transparent"]
        broken_as_said(sites(version), [], [])
